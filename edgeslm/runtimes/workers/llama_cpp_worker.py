"""Runs a GGUF file with llama.cpp, through llama-cpp-python's low-level functions.

Job fields besides the task's: model, threads, context, kv ("f16" or "f32"), flash_attention ("auto", "on", "off"),
use_extra_bufts (false switches the repacked kernels off, where they crash). The file is memory-mapped.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from common import Desk, JobError, main
from likelihood import Followed, Group, cells, packs
from tasks import TASKS

FLASH = {"auto": -1, "off": 0, "on": 1}
GGML_TYPES = {"f32": 0, "f16": 1}
WARN, ERROR, CONTINUED = 3, 4, 5  # enum ggml_log_level
BATCH = 512  # ids decoded at once, llama.cpp's default physical batch
KV_SIZE = re.compile(r"llama_kv_cache: size = +([0-9.]+) MiB")
SEQUENCES = 64  # continuations decoded at once


class Engine:
    def __init__(self, desk: Desk):
        job = desk.job
        if job["task"] not in (
            "bench",
            "energy",
        ):  # untimed work shares its cores politely; a timed run waits as llama.cpp does
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from llama_cpp import llama_cpp as api

        self.api = api
        self._quiet()
        start = time.perf_counter()
        api.llama_backend_init()
        self.model = self._load(job)
        self.context = int(job["context"])
        many = job["task"] == "likelihood"
        self.room = max(BATCH, self.context) if many else BATCH  # ids of one call
        self.sequences = SEQUENCES if many else 1
        self.ctx = self._context(job)
        self.load_s = time.perf_counter() - start
        self.memory = api.llama_get_memory(self.ctx)
        self.vocabulary = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model)))
        self.batch = api.llama_batch_init(self.room, 0, self.sequences)
        self.length = 0
        self.info = self._info(job)

    def _quiet(self) -> None:
        """Keep llama.cpp's last warnings and errors for error sentences; say nothing else."""
        self.complaints: deque[str] = deque(maxlen=20)
        self.kv_cache_bytes: int | None = None
        last = [0]

        def log(level: int, text: bytes, _: Any) -> None:
            last[0] = last[0] if level == CONTINUED else level
            line = text.decode("utf-8", "replace").strip()
            if size := KV_SIZE.search(line):
                self.kv_cache_bytes = round(float(size[1]) * (1 << 20))
            if last[0] in (WARN, ERROR) and line:
                self.complaints.append(line)
                if last[0] == ERROR:
                    print(line, file=sys.stderr, flush=True)

        self._log = self.api.llama_log_callback(log)  # kept: ctypes would free it
        self.api.llama_log_set(self._log, ctypes.c_void_p(0))

    def _load(self, job: dict[str, Any]) -> Any:
        params = self.api.llama_model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = self.api.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = bool(job.get("use_extra_bufts", True))
        model = self.api.llama_model_load_from_file(str(job["model"]).encode(), params)
        if not model:
            raise JobError(f"llama.cpp cannot load {job['name']}: {self._complaint()}")
        return model

    def _context(self, job: dict[str, Any]) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = self.context
        params.n_batch = params.n_ubatch = min(BATCH, self.context)
        if self.sequences > 1:  # prefixes belong to several sequences, so all must share one cache
            params.n_ctx = params.n_batch = self.room
            params.n_ubatch = BATCH
            params.n_seq_max, params.kv_unified = self.sequences, True
        params.n_threads = params.n_threads_batch = int(job["threads"])
        params.flash_attn_type = FLASH[job.get("flash_attention", "auto")]
        params.type_k = params.type_v = GGML_TYPES[job.get("kv", "f16")]
        if job["task"] in ("score", "likelihood"):  # a whole window's logits at once
            params.n_outputs_max = params.n_outputs_max_per_seq = params.n_batch
        params.offload_kqv = params.op_offload = False
        ctx = self.api.llama_init_from_model(self.model, params)
        if not ctx:
            raise JobError(f"llama.cpp cannot make a context of {self.context} for {job['name']}: {self._complaint()}")
        return ctx

    def _complaint(self) -> str:
        return self.complaints[-1] if self.complaints else "no reason given"

    def _info(self, job: dict[str, Any]) -> dict[str, Any]:
        api = self.api
        return {
            "runtime": "llama.cpp",
            "version": f"{api.llama_version().decode()} (llama-cpp-python {version('llama_cpp_python')})",
            "features": [
                item.split("=")[0].strip().removeprefix("CPU :").strip()
                for item in api.llama_print_system_info().decode().split("|")
                if item.strip().endswith("= 1")
            ],
            "threads": int(job["threads"]),
            "context": self.context,
            "kv": job.get("kv", "f16"),
            "flash_attention": job.get("flash_attention", "auto"),
            "mmap": True,
            "use_extra_bufts": bool(job.get("use_extra_bufts", True)),
            "layers": int(api.llama_model_n_layer(self.model)),
            "kv_heads": int(api.llama_model_n_head_kv(self.model)),
            "head_dim": self._head_dim(),
            "kv_element_bytes": 4 if job.get("kv") == "f32" else 2,
            "vocabulary": self.vocabulary,
        }

    def _head_dim(self) -> int:
        """As the file states it, else the embedding shared by the heads: the two need not agree."""
        architecture = self._value("general.architecture")
        stated = architecture and self._value(f"{architecture}.attention.key_length")
        if stated:
            return int(stated)
        return int(self.api.llama_model_n_embd(self.model)) // max(1, self.api.llama_model_n_head(self.model))

    def _value(self, key: str) -> str:
        """A metadata value of the file as text; empty when it has none."""
        text = ctypes.create_string_buffer(256)
        length = self.api.llama_model_meta_val_str(self.model, key.encode(), text, len(text))
        return text.value.decode("utf-8", "replace") if length >= 0 else ""

    def _decode(self, ids: list[int], wanted_from: int) -> np.ndarray:
        """Append up to BATCH ids -> float32 [m, V] logits of those from `wanted_from` on, valid till the next call."""
        batch, count = self.batch, len(ids)
        if self.length + count > self.context:
            raise JobError(f"{self.length + count} ids do not fit the context of {self.context}")
        batch.n_tokens = count
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, self.length + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= wanted_from
        status = self.api.llama_decode(self.ctx, batch)
        if status != 0:
            raise JobError(f"llama.cpp stopped with status {status}: {self._complaint()}")
        self.length += count
        rows = count - max(0, wanted_from)
        if rows <= 0:
            return np.empty((0, self.vocabulary), np.float32)
        pointer = self.api.llama_get_logits(self.ctx)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.vocabulary))

    def score(self, ids: list[int], first: int) -> Iterator[np.ndarray]:
        self.keep(0)
        for start in range(0, len(ids), BATCH):
            rows = self._decode(ids[start : start + BATCH], max(0, first - start))
            if len(rows):
                yield rows

    def follow(self, groups: list[Group]) -> Iterator[Followed]:
        """Many groups a call: each id is fed once, those of a prefix for all sequences of its group."""
        for pack in packs(groups, self.room, self.sequences):
            self.api.llama_memory_clear(self.memory, False)
            self.batch.n_tokens = 0
            sequence = outputs = 0
            laid: list[tuple[int, int, list[list[int]]]] = []  # group, its first row, rows of its continuations
            for number, _, (prefix, continuations) in pack:
                everyone = range(sequence, sequence + len(continuations))
                for position, token in enumerate(prefix):
                    self._lay(token, position, everyone, position == len(prefix) - 1)
                first, rows = outputs, []
                outputs += 1
                for own, ids in zip(everyone, continuations, strict=True):
                    for position, token in enumerate(ids[:-1], start=len(prefix)):
                        self._lay(token, position, (own,), True)
                    rows.append([0, *range(outputs - first, outputs - first + len(ids) - 1)])
                    outputs += len(ids) - 1
                sequence += len(continuations)
                laid.append((number, first, rows))
            assert self.batch.n_tokens == sum(cells(part) for _, _, part in pack)
            status = self.api.llama_decode(self.ctx, self.batch)
            if status != 0:
                raise JobError(f"llama.cpp stopped with status {status}: {self._complaint()}")
            logits = np.ctypeslib.as_array(self.api.llama_get_logits(self.ctx), shape=(outputs, self.vocabulary))
            for number, first, rows in laid:
                yield number, logits[first:], rows

    def _lay(self, token: int, position: int, sequences: Any, wanted: bool) -> None:
        """One id into the batch, for one or several sequences."""
        batch, i = self.batch, self.batch.n_tokens
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, len(sequences), wanted
        for k, sequence in enumerate(sequences):
            batch.seq_id[i][k] = sequence
        batch.n_tokens = i + 1

    def feed(self, ids: list[int]) -> np.ndarray:
        for start in range(0, len(ids), BATCH):
            piece = ids[start : start + BATCH]
            rows = self._decode(piece, len(piece) - 1 if start + BATCH >= len(ids) else len(piece))
        return rows[-1]

    def keep(self, n: int) -> None:
        if n == 0:
            self.api.llama_memory_clear(self.memory, False)
        elif n < self.length and not self.api.llama_memory_seq_rm(self.memory, 0, n, -1):
            raise JobError("llama.cpp could not cut the sequence back")
        self.length = min(n, self.length)


if __name__ == "__main__":
    main(Engine, TASKS)
