"""llama.cpp's own quantiser in a process of its own: an abort in C++ ends only this.

Reads a job (a JSON file named on the command line) and writes the GGUF it names; the last line of stdout is
{"ok": true, "seconds": s, "fallbacks": n} or {"ok": false, "error": llama.cpp's words}. A job with a list `dry` writes
nothing and says {"types": [...]}: for each of those jobs {tensor: type} as llama.cpp would choose. The importance comes
as an .npz of float32 vectors by GGUF tensor name; the C interface takes an array of (name, data, length) that ends
with no name. Source: llama.h, src/llama-quant.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

FALLBACKS = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")
REFUSAL = re.compile(r"failed to quantize: (.+)")
CHOSEN = re.compile(r"\] +(\S+) +- \[[^\]]*\], type = +\S+, size = .*-> .*\((\w+)\)")


def quantize(job: dict[str, Any], dry: bool = False) -> dict[str, Any]:
    """Runs one job; what llama.cpp logged is read for its choices, its count of fallbacks or its reason."""
    params = llama_cpp.llama_model_quantize_default_params()
    none = params.token_embedding_type  # GGML_TYPE_COUNT of this build: "not chosen"
    params.nthread, params.ftype, params.pure, params.dry_run = job["threads"], job["ftype"], job["pure"], dry
    params.token_embedding_type = none if job["embedding"] is None else job["embedding"]
    params.output_tensor_type = none if job["head"] is None else job["head"]
    kept: list[Any] = []  # ctypes holds no reference to what a structure points at
    if job["tensor_types"]:
        override = llama_cpp.llama_model_tensor_override
        rows = [override(pattern.encode(), kind) for pattern, kind in job["tensor_types"]]
        kept.append((override * (len(rows) + 1))(*rows, override(None, none)))
        params.tt_overrides = ctypes.cast(kept[-1], ctypes.POINTER(override))
    if job["importance"] is not None:
        params.imatrix = ctypes.cast(
            importance(Path(job["importance"]))[0], ctypes.POINTER(llama_cpp.llama_model_imatrix_data)
        )
    said: list[str] = []
    listen = llama_cpp.llama_log_callback(lambda level, text, data: said.append(text.decode("utf-8", "replace")))
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    start = time.perf_counter()
    code = llama_cpp.llama_model_quantize(job["source"].encode(), job["out"].encode(), ctypes.byref(params))
    seconds, log = time.perf_counter() - start, "".join(said)
    if code:
        reason = REFUSAL.search(log)
        return {"ok": False, "error": reason[1].strip() if reason else "it gave no reason", "types": {}}
    count = FALLBACKS.search(log)
    types = {name: kind.lower() for name, kind in CHOSEN.findall(log)} if dry else {}  # ggml says q3_K
    return {"ok": True, "seconds": seconds, "fallbacks": int(count[1]) if count else 0, "types": types}


@functools.cache
def importance(path: Path) -> tuple[Any, dict[str, Any]]:
    """The array llama.cpp wants, and the vectors it points into: the cache keeps both alive."""
    entry = llama_cpp.llama_model_imatrix_data
    with np.load(path, allow_pickle=False) as archive:
        vectors = {name: np.ascontiguousarray(archive[name], np.float32) for name in archive.files}
    pointer = ctypes.POINTER(ctypes.c_float)
    rows = [entry(name.encode(), v.ctypes.data_as(pointer), v.size) for name, v in vectors.items()]
    return (entry * (len(rows) + 1))(*rows, entry(None, None, 0)), vectors


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    llama_cpp.llama_backend_init()
    answer = {"types": [quantize(job, dry=True)["types"] for job in spec["dry"]]} if spec.get("dry") else quantize(spec)
    print(json.dumps(answer))
