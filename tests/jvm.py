"""The Android demo's logic on a desktop JVM, through the shim compiled for it; and a bundle of random weights."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import tiny

from android_demo.tools import build, shim
from edgeslm.errors import RuntimeFailure
from edgeslm.export import EXPORTERS, bundle
from edgeslm.export.bundle_read import seal
from edgeslm.quantize.freeze import freeze_floats

DEMO = Path(build.__file__).parents[1]


class Jvm:
    """The driver: a JSON object a line in, one a line out."""

    def __init__(self, classes: Path, library: Path | None):
        command = ["java", "-Xshare:auto", "-cp", str(classes), "org.edgeslm.core.Driver"]
        self.process = subprocess.Popen(
            [*command, *([str(library)] if library else [])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            encoding="utf-8",
        )  # fmt: skip

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the JVM ended while it was asked to {do}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def done(self, do: str, **fields: Any) -> dict[str, Any]:
        answer = self.ask(do, **fields)
        assert "error" not in answer, answer
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(30) == 0


def start(work: Path) -> Jvm:
    """Compiles core and driver into `work`. Raises RuntimeFailure when this machine lacks what that needs."""
    if shutil.which("javac") is None or shutil.which("java") is None:
        raise RuntimeFailure("no JDK here: apt-get install openjdk-17-jdk-headless")
    sources = sorted(map(str, (DEMO / "core/src").rglob("*.java")))
    command = ["javac", "-encoding", "UTF-8", "-Xlint:all", "-Werror", "--release", "11", "-d", str(work), *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Jvm(work, shim.host(work / "native"))


def small_bundle(folder: Path, max_new: int = 256, letters: bool = False, kind: str = "gguf") -> Path:
    """Exported as any student is. With `letters` it says letters only, else any bytes."""
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    model = tiny.llama(layers=2)
    if letters:  # the head is the embedding: what has no row of its own is never the most likely
        rows = model.get_input_embeddings().weight.data
        rows[[i for i in range(len(rows)) if not (tokenizer.convert_ids_to_tokens(i) or "").encode().isalpha()]] = 0
    weights, config = dict(model.named_parameters()), model.config.to_dict()
    frozen = freeze_floats(weights, "f16", "llama", config, folder / "tokenizer", "small", {})
    artifact = EXPORTERS[kind](frozen, folder / ("student.gguf" if kind == "gguf" else "student-onnx"))
    manifest = bundle.write(artifact, frozen, bundle.Origin("a/SmolLM2"), folder / "bundle")
    seal(folder / "bundle", {**manifest, "generation": {**manifest["generation"], "max_new": max_new}})
    return folder / "bundle"
