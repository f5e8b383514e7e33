"""Runs a transformers folder with torch in float32: the reference that needs no exported file.

Job fields besides the task's: model (the folder), threads, context, dtype ("float32", "bfloat16", "float16").
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from common import Desk, JobError, main
from likelihood import Followed, Group
from tasks import TASKS


class Engine:
    def __init__(self, desk: Desk):
        import torch
        import transformers

        job = desk.job
        self.torch = torch
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(int(job["threads"]))
        torch.set_grad_enabled(False)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            job.get("dtype", "float32")
        ]
        start = time.perf_counter()
        try:
            self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                job["model"], dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise JobError(f"transformers cannot load {job['name']}: {line}") from error
        self.load_s = time.perf_counter() - start
        config = self.model.config
        self.context = int(job["context"])
        self.vocabulary = int(config.vocab_size)
        self.cache: Any = None
        self.length = 0
        self.info = {
            "runtime": "torch",
            "version": f"{torch.__version__} (transformers {transformers.__version__})",
            "threads": int(job["threads"]),
            "context": self.context,
            "dtype": job.get("dtype", "float32"),
            "layers": int(config.num_hidden_layers),
            "kv_heads": int(config.num_key_value_heads),
            "head_dim": int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
            "kv_element_bytes": dtype.itemsize,
            "vocabulary": self.vocabulary,
        }

    def score(self, ids: list[int], first: int) -> Iterator[np.ndarray]:
        hidden = self.model.base_model(input_ids=self.torch.tensor([ids]), use_cache=False).last_hidden_state
        yield self.model.lm_head(hidden[0, first:]).float().numpy()

    def follow(self, groups: list[Group]) -> Iterator[Followed]:
        """A group a call: its sequences whole, padded on the right, where causal attention does not look."""
        for number, (prefix, continuations) in enumerate(groups):
            wide = len(prefix) + max(map(len, continuations)) - 1
            padded = self.torch.zeros(len(continuations), wide, dtype=self.torch.long)
            for row, ids in zip(padded, continuations, strict=True):
                row[: len(prefix) + len(ids) - 1] = self.torch.tensor([*prefix, *ids[:-1]])
            hidden = self.model.base_model(input_ids=padded, use_cache=False).last_hidden_state
            kept, rows, at = [], [], 0
            for states, ids in zip(hidden, continuations, strict=True):
                kept.append(states[len(prefix) - 1 : len(prefix) + len(ids) - 1])
                rows.append(list(range(at, at + len(ids))))
                at += len(ids)
            yield number, self.model.lm_head(self.torch.cat(kept)).float().numpy(), rows

    def feed(self, ids: list[int]) -> np.ndarray:
        if self.length + len(ids) > self.context:
            raise JobError(f"{self.length + len(ids)} ids do not fit the context of {self.context}")
        output = self.model(
            input_ids=self.torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.cache = output.past_key_values
        self.length += len(ids)
        return output.logits[0, -1].float().numpy()

    def keep(self, n: int) -> None:
        if n == 0:
            self.cache = None
        elif n < self.length:
            self.cache.crop(n - self.length)  # a negative number: how many to drop
        self.length = min(n, self.length)


if __name__ == "__main__":
    main(Engine, TASKS)
