"""A student that is a model of its own: same vocabulary, another shape, an embedding padded to another size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import LlamaForCausalLM

from edgeslm import recipe as recipes
from edgeslm.errors import RecipeError
from edgeslm.pipeline.run import run
from edgeslm.progress import Progress
from edgeslm.quantize.frozen import Frozen

sys.path.insert(0, str(Path(__file__).parent.parent / "edgeslm" / "runtimes" / "workers"))


def padded(rows: int) -> LlamaForCausalLM:
    model = tiny.llama(layers=2, seed=7)
    model.resize_token_embeddings(rows)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("existing")
    tiny.recipe(made)
    padded(320).save_pretrained(made / "small")
    tiny.tokenizer().save_pretrained(made / "small")
    return made


def student(folder: Path) -> list[str]:
    return [f"student={{kind: existing, model: {folder / 'small'}}}"]


def test_it_is_trained_and_frozen_in_its_own_shape(folder, tmp_path):
    loaded = recipes.load(folder / "tiny.yaml", student(folder))
    root = run(loaded, folder, tmp_path, Progress(quiet=True), until="distill")
    stages = json.loads((root / "run.json").read_text())["stages"]
    frozen = Frozen.load(root / stages["distill"] / "frozen")
    assert frozen.config["num_hidden_layers"] == 2 and frozen.config["vocab_size"] == 320
    points = json.loads((root / stages["distill"] / "heldout.json").read_text())["points"]
    assert points[-1]["kl"] < points[0]["kl"]
    facts = json.loads((root / stages["student"] / "importance.json").read_text())
    assert facts["method"] == "existing" and len(facts["source"]) == 64


def test_the_whole_way_with_vocabularies_of_two_sizes(folder, tmp_path):
    """The teacher has 288 rows, the student 320: both files are scored over what both have."""
    pytest.importorskip("llama_cpp")
    loaded = recipes.load(folder / "tiny.yaml", [*student(folder), "evaluate.prompts=[]", "benchmark=null"])
    root = run(loaded, folder, tmp_path, Progress(quiet=True))
    record = json.loads((root / "run.json").read_text())
    assert record["problems"] == []
    results = json.loads((root / record["stages"]["evaluate"] / "results.json").read_text())["measurements"]
    kl = next(m["values"][0] for m in results if m["metric"] == "kl")
    trained = json.loads((root / record["stages"]["distill"] / "summary.json").read_text())["kl_by_forward"]["float32"]
    assert kl == pytest.approx(trained, rel=0.05)


def test_another_vocabulary_is_refused_before_any_compute(folder, tmp_path):
    other = tiny.tokenizer()
    other.add_tokens(["<more>"])
    padded(320).save_pretrained(tmp_path / "small")
    other.save_pretrained(tmp_path / "small")
    loaded = recipes.load(folder / "tiny.yaml", [f"student={{kind: existing, model: {tmp_path / 'small'}}}"])
    with pytest.raises(RecipeError, match="speaks another vocabulary"):
        run(loaded, folder, tmp_path / "runs", Progress(quiet=True))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/teacher-*"))


def test_shared_ids_are_compared_and_padding_is_not():
    from scoring import divergence, log_probs, shared

    rng = np.random.default_rng(0)
    left = log_probs(rng.normal(size=(3, 20)))
    wide = log_probs(np.concatenate([left, rng.normal(size=(3, 4)) + 3], axis=1))  # padding takes much of the mass
    assert divergence(*shared(left, wide)).max() < 1e-12
    assert divergence(left, wide[:, :20]).max() > 0.1  # what leaving out the renormalisation would give


def test_the_step_leaves_padding_alone():
    """Columns that only the student has get no gradient from a teacher that has none."""
    from edgeslm.data.batch import Batch
    from edgeslm.teachers.live import LiveTeacher

    small, teacher = padded(320), tiny.llama(seed=1)
    step = tiny.step_of(small, [{"loss": "forward_kl"}], [teacher])
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.randint(0, 288, (2, 12), generator=generator), torch.ones(2, 12))
    _, grads, _ = tiny.gradients(step, batch, LiveTeacher(teacher))
    embedding = grads["model.embed_tokens.weight"]
    assert embedding[288:].abs().max() == 0 and embedding[:288].abs().max() > 0
