"""`edgeslm design`: shapes of the asked size whose sections are recipes, costs that are `cost`'s, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeslm import cost
from edgeslm.cli.design import design
from edgeslm.design import grids, propose, shapes
from edgeslm.design import teacher as teachers
from edgeslm.design.device import look_up
from edgeslm.errors import DataError, ModelError

SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def asked(budget: str = "0.1B", bits: int = 4, **more: Any) -> propose.Ask:
    return propose.Ask(**({"budget": budget, "bits": bits, "context": 1024} | more))


def test_grids_are_the_formats() -> None:
    from edgeslm.formats import FORMATS

    for grid in grids.GRIDS.values():
        assert (FORMATS[grid.name].block, FORMATS[grid.name].bits) == (grid.block, grid.bits), grid.name
    for bits in grids.BY_BITS:
        plan = grids.plan_for(bits)
        assert {plan.layers.name, plan.otherwise.name, plan.table.name} <= set(grids.GRIDS)


def test_what_can_be_cut_in_width_is_what_the_families_say() -> None:
    from edgeslm.models.arch import ARCHS

    assert set(teachers.WIDTH) == {name for name, arch in ARCHS.items() if "width" in arch.cuts}
    assert set(teachers.FAMILIES.values()) == {n for n, arch in ARCHS.items() if arch.architecture != n}


@pytest.mark.parametrize("teacher", [None, SMOLLM2])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_proposal_has_the_size_and_is_a_model(teacher: dict[str, Any] | None, bits: int) -> None:
    from edgeslm.models.shapes import parameter_shapes, pruned
    from edgeslm.quantize.plan import Plan, Rule, planned_bytes

    made = propose.propose(asked(bits=bits, teacher=teacher), look_up("pi5"))
    plan = grids.plan_for(bits)
    assert len(made) > 1 and sum(p.recommended for p in made) == 1
    rules = Plan(tuple(Rule(r["pattern"], r["format"], r.get("otherwise")) for r in plan.rules()))
    for p in made:
        assert abs(p.parameters / 1e8 - 1) <= shapes.NEAR
        config = {**p.shape, "max_position_embeddings": 2048}
        real = parameter_shapes(config)
        assert sum(x[0] * (x[1] if len(x) > 1 else 1) for x in real.values()) == p.parameters
        assert planned_bytes(rules.assign(real), real) == pytest.approx(p.weights_bytes, rel=1e-6)
        assert bool(p.misfits) == any(len(x) > 1 and x[1] % plan.layers.block for x in real.values())
        if teacher is not None and p.student["kind"] == "width":
            sizes = {k: v for k, v in p.student.items() if k != "kind"}
            cut = pruned({**teacher, "max_position_embeddings": 2048}, sizes)
            assert {k: cut[k] for k in p.shape} == p.shape


def test_costs_are_those_of_cost() -> None:
    known = look_up("pi5")
    for p in propose.propose(asked(), known):
        load = cost.Load(p.shape, p.weights_bytes, int8=True)
        (decode,) = cost.predict(known.ceilings, load, depths=[1024])
        assert p.predictions["predicted_decode"] == decode and p.decode == decode.value
        assert p.cache_bytes == cost.kv_bytes(p.shape, 1024)


def test_the_recommended_is_the_deepest_of_the_fast_ones_that_fit() -> None:
    made = propose.propose(asked("0.5B", context=4096), look_up("pi5"))
    fastest = max(p.decode or 0.0 for p in made)
    fast = [p for p in made if (p.decode or 0.0) >= propose.AS_FAST * fastest and not p.misfits]
    best = next(p for p in made if p.recommended)
    assert best in fast and all(p.shape["num_hidden_layers"] <= best.shape["num_hidden_layers"] for p in fast)
    assert len(made) > len(fast) > 1


def test_fewer_tokens_leave_more_for_layers() -> None:
    many, few = (propose.propose(asked(vocabulary=v, teacher=SMOLLM2), look_up("pi5")) for v in (49152, 16384))
    depth = [next(p for p in made if p.student["kind"] == "depth") for made in (many, few)]
    assert depth[1].student == {"kind": "depth", "layers": 26, "vocabulary": {"keep": 16384}}
    assert depth[0].student == {"kind": "depth", "layers": 20} and depth[1].shape["vocab_size"] == 16384


def test_a_budget_in_bytes_is_one_in_parameters() -> None:
    made = propose.propose(asked("60MB"), look_up("pi5"))
    assert all(abs(p.weights_bytes / 60e6 - 1) < 0.2 for p in made)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": "small"}, "is no size"),
        ({"budget": "0M"}, "is no size"),
        ({"budget": "1k"}, "no shape of about"),
        ({"budget": "900M", "teacher": SMOLLM2}, "no student of about"),
        ({"bits": 7}, "no grid of so many bits"),
        ({"context": 0}, "no length of a text"),
        ({"vocabulary": 50000, "teacher": SMOLLM2}, "more than the teacher's"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        propose.propose(asked(**({"budget": "0.1B"} | change)), look_up("pi5"))
    assert "\n" not in str(caught.value)


def test_a_device_that_is_unknown_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no profile 'toaster'"):
        look_up("toaster")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(DataError, match="no document of 'edgeslm bench"):
        look_up(str(tmp_path / "x.json"))
    (tmp_path / "x.json").write_text('{"measurements": []}')
    with pytest.raises(DataError, match="no measured ceilings"):
        look_up(str(tmp_path / "x.json"))


def test_a_bench_document_gives_ceilings_and_what_was_reached(tmp_path: Path) -> None:
    def row(metric: str, *values: float, artifact: str = "-", **extra: Any) -> dict[str, Any]:
        where = {"device": {"id": "d", "name": "A board"}, "artifact": artifact}
        return {"metric": metric, "values": values, "where": where, "extra": extra}

    rows = [
        row("memory_bandwidth", 9e9, 10e9),
        row("compute", 1e11),
        row("compute_int8", 4e11),
        row("decode", 39.0, 40.0, 41.0, artifact="a.gguf", depth=128),
        row("decode_bound", 80.0, artifact="a.gguf", depth=128),
        row("decode", 30.0, artifact="b.gguf", depth=128),
        row("decode_bound", 40.0, artifact="b.gguf", depth=128),
    ]
    (tmp_path / "board.json").write_text(json.dumps({"measurements": rows}))
    known = look_up(str(tmp_path / "board.json"))
    assert known.ceilings == cost.Ceilings(10e9, 1e11, 4e11) and known.title == "A board"
    assert known.shares["decode"].value == pytest.approx((0.5 + 0.75) / 2) and "prefill" not in known.shares
    text = design("0.1B", str(tmp_path / "board.json"), 4, 1024, None, None, False)
    assert "x 0.62, 2 timings of board.json" in text and "unknown" not in text


def test_the_text_ends_in_a_recipe_that_loads(tmp_path: Path) -> None:
    from tiny import recipe as made_recipe

    from edgeslm import recipe as recipes
    from edgeslm.recipe.student import Student  # noqa: F401 (the sections below are its kinds)

    for teacher in (None, tmp_path / "teacher"):
        if teacher is not None:
            teacher.mkdir()
            (teacher / "config.json").write_text(json.dumps(SMOLLM2))
        text = design("0.1B", "pi5", 4, 1024, None, str(teacher) if teacher else None, False)
        pasted = yaml.safe_load("\n".join(line for line in text.splitlines() if line.startswith(("student:", "quant"))))
        (tmp_path / "r").mkdir(exist_ok=True)
        path = made_recipe(tmp_path / "r")
        data = yaml.safe_load(path.read_text()) | pasted
        path.write_text(yaml.safe_dump(data))
        loaded = recipes.load(path)
        assert loaded.student.kind == pasted["student"]["kind"] and loaded.quantize.rules[-1].otherwise == "q4_0"


def test_headers_of_files_are_read_without_torch(tmp_path: Path) -> None:
    from test_models import tiny_gguf

    for name in ("llama", "qwen3", "gemma3_text"):
        path, model = tiny_gguf(tmp_path / f"{name}.gguf", name)
        shape = teachers.shape_of(str(path))
        config = model.config.to_dict()
        assert shape["model_type"] == config["model_type"] and shape["head_dim"] == model.config.head_dim
        assert cost.counts(shape).total == sum(p.numel() for p in model.parameters())
    with pytest.raises(ModelError, match="neither a GGUF file nor a folder"):
        (tmp_path / "m.bin").write_bytes(b"x")
        teachers.shape_of(str(tmp_path / "m.bin"))
    code = (
        "import sys\nfor name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "from edgeslm.cli.design import design\n"
        f"print(design('30k', 'pi5', 8, 64, None, {str(tmp_path / 'llama.gguf')!r}, True))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    said = done.stdout if done.returncode == 0 else done.stderr
    assert '"proposals"' in said or "no student of about" in said, said
