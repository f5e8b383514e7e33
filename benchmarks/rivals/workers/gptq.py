"""GPTQModel in its own environment: error-feedback rounding of the linear layers, symmetric 4-bit groups of 32.

Reads a job (a JSON file named on the command line) and writes one .npz: per layer `NAME|codes` uint8 [N, K], 0 to 15,
and `NAME|scales` float16 [N, K / 32], with w = (code - 8) scale: Q4_0's own lattice. The last line of stdout is
{"ok": true, "seconds": s} or {"ok": false, "error": words}. Layout of the saved weights: qweight int32 [K / 8, N],
eight 4-bit codes of one column in each word, lowest first; scales [K / group, N]; g_idx [K].
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BITS, GROUP, ZERO = 4, 32, 8


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on fewer it refuses to start
    import torch
    from gptqmodel import BACKEND, GPTQConfig, GPTQModel

    torch.set_num_threads(job["threads"])
    config = GPTQConfig(bits=BITS, group_size=GROUP, sym=True, desc_act=False, lm_head=False, device="cpu")
    model = GPTQModel.load(job["model"], config, dtype=torch.float32, backend=BACKEND.GPTQ_TORCH)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job["rows"]]
    start = time.perf_counter()
    model.quantize(rows, batch_size=job["batch"])
    seconds = time.perf_counter() - start
    folder = Path(job["folder"])
    model.save(str(folder))
    return save(folder, Path(job["out"])) | {"seconds": seconds}


def save(folder: Path, out: Path) -> dict[str, Any]:
    """The saved layers as codes and scales; refuses what is not Q4_0's lattice."""
    import numpy as np
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as archive:
            for key in filter(lambda k: k.endswith(".qweight"), archive.keys()):
                name = key.removesuffix(".qweight")
                words = archive.get_tensor(key).view(np.uint32)  # [K / 8, N]
                shifts = np.arange(0, 32, BITS, dtype=np.uint32)
                codes = ((words[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, words.shape[1]).T  # [N, K]
                groups = archive.get_tensor(f"{name}.g_idx")
                if not (groups == np.arange(codes.shape[1]) // GROUP).all():
                    return {"ok": False, "error": f"{name} has its columns in another order than they are stored"}
                found[f"{name}|codes"] = codes.astype(np.uint8)
                found[f"{name}|scales"] = archive.get_tensor(f"{name}.scales").T.astype(np.float16)
    np.savez(out, **found)
    return {"ok": True} if found else {"ok": False, "error": "it saved no quantised layer"}


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(quantize(spec)))
