"""torchao's quantisation-aware training in its own environment: symmetric int4 in groups of 32 on every linear layer.

The loss is ours, the forward KL to the float model on the same rows (mean over tokens), AdamW with a warm-up and a
cosine to zero; torchao brings the fake quantisation. Reads a job (a JSON file named on the command line), writes the
trained float weights as safetensors for llama.cpp's quantiser; the last line of stdout is {"ok": true, "seconds": s,
"tokens": n}.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 0.1  # share of the steps


def train(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    model = copy.deepcopy(teacher)
    int4 = torch.int4  # type: ignore[attr-defined]  # torch's stubs lack it
    weights = IntxFakeQuantizeConfig(int4, group_size=32, is_symmetric=True)
    quantize_(model, QATConfig(weight_config=weights, step="prepare"))
    rows = torch.tensor(job["rows"])
    batch = max(1, job["batch_tokens"] // rows.shape[1])
    steps = max(1, job["tokens"] // (batch * rows.shape[1]))
    optimiser = torch.optim.AdamW(model.parameters(), lr=job["lr"], weight_decay=0.0)
    start, first, loss = time.perf_counter(), 0.0, 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = job["lr"] * rate(step, steps)
        at = torch.arange(step * batch, (step + 1) * batch) % len(rows)
        total = 0.0
        for row in rows[at]:  # one at a time: logits of whole batches do not fit everywhere
            with torch.no_grad():
                wanted = teacher(row[None]).logits[0].log_softmax(-1)
            given = model(row[None]).logits[0].log_softmax(-1)
            part = torch.nn.functional.kl_div(given, wanted, reduction="sum", log_target=True) / len(row) / batch
            part.backward()
            total += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        loss, first = total, first or total
    names = dict(teacher.named_parameters())
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if name in names}
    if trained.keys() != names.keys():
        return {"ok": False, "error": f"{sorted(names.keys() ^ trained.keys())[0]} is not among the trained weights"}
    save_file(trained, job["out"])
    seconds = time.perf_counter() - start
    tokens = steps * batch * rows.shape[1]
    return {"ok": True, "seconds": seconds, "tokens": tokens, "loss": [first, loss]}


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(train(spec)))
