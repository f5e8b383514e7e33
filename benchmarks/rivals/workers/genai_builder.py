"""onnxruntime-genai's model builder in its own environment: a transformers folder to an int4 ONNX folder.

Reads a job (a JSON file named on the command line); the last line of stdout is {"ok": true, "seconds": s} or
{"ok": false, "error": words}. The builder is called as its users call it, as a command.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def build(job: dict[str, Any]) -> dict[str, Any]:
    options = [f"{key}={value}" for key, value in job["options"].items()]
    places = ["-i", job["model"], "-o", job["out"], "-c", job["cache"]]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *places, "-p", "int4", "-e", "cpu"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, *(["--extra_options", *options] if options else [])], capture_output=True, text=True, check=False
    )
    if done.returncode or not (Path(job["out"]) / "model.onnx").is_file():
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"ok": False, "error": words[:300]}
    return {"ok": True, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(build(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
