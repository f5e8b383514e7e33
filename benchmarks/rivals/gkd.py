"""TRL's GKDTrainer, as it comes, in an environment of its own: the other side of `benchmarks.gkd_trainer`.

Reads a job (a JSON file named on the command line) with `student` and `teacher` (transformers folders), `rows` (a
safetensors file, one tensor [steps, B, T]), `steps`, `beta`, `dtype`, `lr`, `betas`, `clip`, `threads`, `allocator`,
`compiled`.
The last line of stdout is {"seconds": [...], "losses": [...], "peak_memory_bytes": n, "versions": {...}}. Of this
project it uses the two functions that set the allocator and count memory, the same as the side beside it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any


def train(job: dict[str, Any]) -> dict[str, Any]:
    import gc

    import torch
    from datasets import Dataset
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from edgeslm import compute

    torch.set_num_threads(job["threads"])
    if job["allocator"]:
        compute.keep_freed_memory()
    rows = load_file(job["rows"])["rows"]  # [steps, B, T]
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[job["dtype"]]

    def read(folder: str, dtype: torch.dtype) -> Any:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        model.config.use_cache = False
        return model

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([example["input_ids"] for example in examples])
        labels = ids.clone()
        labels[:, 0] = -100  # nothing predicts the first token, and the loss divides by the labels that count
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.start = 0.0
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as scratch:
        settings = GKDConfig(
            output_dir=scratch,
            beta=job["beta"],  # 0: KL(teacher || student); 0.5: Jensen-Shannon
            lmbda=0.0,  # no text of the student's own
            temperature=1.0,
            max_steps=job["steps"],
            per_device_train_batch_size=job["micro_rows"],
            gradient_accumulation_steps=rows.shape[1] // job["micro_rows"],
            learning_rate=job["lr"],
            lr_scheduler_type="constant",
            adam_beta1=job["betas"][0],
            adam_beta2=job["betas"][1],
            weight_decay=0.0,
            max_grad_norm=job["clip"],
            bf16=job["dtype"] == "bf16",
            torch_compile=job["compiled"],
            use_cpu=True,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        clock = Clock()
        trainer = GKDTrainer(
            model=read(job["student"], torch.float32),
            teacher_model=read(job["teacher"], dtype),
            args=settings,
            data_collator=collate,
            train_dataset=Dataset.from_dict({"input_ids": rows.flatten(0, 1).tolist()}),
            processing_class=AutoTokenizer.from_pretrained(job["student"]),
            callbacks=[clock],
        )
        gc.collect()
        here = compute.resolve("cpu", job["dtype"], job["threads"])
        compute.reset_peak_memory(here)
        trainer.train()
        peak = compute.peak_memory_bytes(here)
    return {
        "seconds": clock.seconds,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "peak_memory_bytes": peak,
        "versions": {name: metadata.version(name) for name in ("trl", "transformers", "accelerate", "torch")},
    }


if __name__ == "__main__":
    print(json.dumps(train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
