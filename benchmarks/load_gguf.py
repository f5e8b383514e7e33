"""A GGUF file into a float32 transformers model and its tokenizer: ours beside transformers' own GGUF loading.

Each side runs in fresh processes, in turn, so that neither has the other's caches or warmth; the file is in the page
cache for both. Imports are timed apart and are not part of the figure. transformers needs `accelerate` for this.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import record
from edgeslm.models.source import DEFAULT_TEACHER, resolve

NAME = "load_gguf"
SIDES = ("ours", "transformers")
MARK = "RESULT "

OURS = """
import json, sys, time
import torch
start = time.perf_counter()
from pathlib import Path
from edgeslm.models import load, source
from transformers import AutoModelForCausalLM, AutoTokenizer
import transformers.models.llama.modeling_llama, transformers.models.qwen2.modeling_qwen2
imported = time.perf_counter()
path = Path(sys.argv[1])
loaded = load.load(source.Source(path.name, path, "gguf", ""), torch.float32)
done = time.perf_counter()
model, tokenizer = loaded.model, loaded.tokenizer
"""

TRANSFORMERS = """
import json, sys, time
import torch
start = time.perf_counter()
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
import transformers.models.llama.modeling_llama, transformers.models.qwen2.modeling_qwen2
imported = time.perf_counter()
path = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
)
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
done = time.perf_counter()
"""

REPORT = """
import resource
total = sum(p.double().sum().item() for p in model.parameters())
ids = tokenizer("The year 1984 wasn't 42 times\\n\\nlonger.")["input_ids"]
print("RESULT " + json.dumps({"seconds": done - imported, "import_seconds": imported - start, "sum": total, "ids": ids,
      "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def one(code: str, path: Path) -> dict[str, Any]:
    """One load in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code + REPORT, str(path)], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise SystemExit(f"the loading process failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(lines[-1].removeprefix(MARK))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    path = arguments.model.expanduser().resolve() if arguments.model else resolve(DEFAULT_TEACHER, Path.cwd()).path
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; give a .gguf file with --model")
    values: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    path.read_bytes()  # into the page cache, for both sides alike
    for _ in range(arguments.repeats):
        for side, code in zip(SIDES, (OURS, TRANSFORMERS), strict=True):
            values[side].append(one(code, path))
    ours, theirs = (values[side][0] for side in SIDES)
    return {
        "versions": record.versions("edgeslm", "torch", "transformers", "tokenizers", "gguf", "accelerate"),
        "model": path.name,
        "same_weights": ours["sum"] == theirs["sum"],
        "same_ids": ours["ids"] == theirs["ids"],
        "values": {side: [{k: v for k, v in one.items() if k != "ids"} for one in values[side]] for side in SIDES},
    }


def medians(entry: dict[str, Any], key: str = "seconds") -> tuple[float, float]:
    ours, theirs = (statistics.median(v[key] for v in entry["values"][side]) for side in SIDES)
    return ours, theirs


def show(records: list[dict[str, Any]]) -> dict[str, Any]:
    print(f"{'date':19}  {'model':42}  {'ours s':>7}  {'theirs s':>8}  {'ratio':>6}  {'runs':>4}  same weights, ids")
    for entry in records:
        ours, theirs = medians(entry)
        print(
            f"{entry['date'][:19]}  {entry['model'][:42]:42}  {ours:7.2f}  {theirs:8.2f}  {theirs / ours:6.1f}  "
            f"{len(entry['values']['ours']):4}  {entry['same_weights']}, {entry['same_ids']}"
        )
    ours, theirs = medians(records[-1])
    return {"seconds": ours, "ratio": theirs / ours}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="the .gguf file (default: the embedded teacher)")
    parser.add_argument("--repeats", type=int, default=5, help="processes per side")


if __name__ == "__main__":
    record.main(NAME, run, show, options)
