"""auto-round in its own environment: sign gradient descent on rounding, exported by its own GGUF writer.

Reads a job (a JSON file named on the command line); the last line of stdout is {"ok": true, "seconds": s, "file":
path} or {"ok": false, "error": words}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rows = [{"input_ids": torch.tensor([row])} for row in job["rows"]]
    start = time.perf_counter()
    rounder = AutoRound(
        model,
        tokenizer,
        scheme=job["scheme"],
        iters=job["iterations"],
        nsamples=len(rows),
        seqlen=len(job["rows"][0]),
        batch_size=job["batch"],
        dataset=rows,
        device_map="cpu",
        seed=0,
        enable_torch_compile=False,
        amp=False,  # else the model is cast to bfloat16, which costs it quality
    )
    rounder.quantize_and_save(job["out"], format=job["scheme"])
    files = sorted(Path(job["out"]).rglob("*.gguf"))
    if not files:
        return {"ok": False, "error": "it wrote no .gguf file"}
    return {"ok": True, "seconds": time.perf_counter() - start, "file": str(files[0])}


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(quantize(spec)))
