"""Plans: which format a tensor gets, and what is said when a block does not divide its rows."""

from __future__ import annotations

import pytest

from edgeslm.errors import FormatError
from edgeslm.formats import FORMATS
from edgeslm.quantize.plan import Plan, Rule, misfit_cost, planned_bytes

# SmolLM2's rows: 576 into most matrices, 1536 into down_proj
SHAPES = {
    "model.embed_tokens.weight": (1000, 576),
    "model.layers.0.self_attn.o_proj.weight": (576, 576),
    "model.layers.0.mlp.gate_proj.weight": (1536, 576),
    "model.layers.0.mlp.down_proj.weight": (576, 1536),
    "model.norm.weight": (576,),
}
WIDE = [n for n in ("q4_k", "q6_k", "n4_b256") if FORMATS[n].encode]
MISFITS = [n for n, s in SHAPES.items() if s[-1] == 576 and len(s) > 1]


@pytest.mark.parametrize("form", WIDE)
def test_rows_that_no_block_divides_are_refused_with_what_would_fit(form: str) -> None:
    with pytest.raises(FormatError) as caught:
        Plan.uniform(form).assign(SHAPES)
    said = str(caught.value)
    assert said.startswith(
        "model.embed_tokens.weight and 2 more (of 4 matrices): rows of 576 are no multiple of the 256-"
    )
    assert "hidden size is 512 or 768" in said and "otherwise: FORMAT" in said
    offered = said.partition("formats that fit: ")[2].partition(";")[0].split(", ")
    names = [o.split(" ")[0] for o in offered]
    assert names and all(576 % FORMATS[n].block == 0 and FORMATS[n].encode for n in names)
    assert all((FORMATS[n].ggml_type is None) == (FORMATS[form].ggml_type is None) for n in names)
    assert all(f"({FORMATS[n].bits:.4g} bits)" in o for n, o in zip(names, offered, strict=True))


@pytest.mark.parametrize("form", WIDE)
def test_otherwise_is_what_such_tensors_get_and_what_it_costs_is_told(form: str) -> None:
    plan = Plan((Rule("*", form, "q8_0"),))
    assigned = plan.assign(SHAPES)
    assert [n for n, f in assigned.items() if f == "q8_0"] == MISFITS
    assert assigned["model.layers.0.mlp.down_proj.weight"] == form and assigned["model.norm.weight"] == "f32"
    weights = sum(SHAPES[n][0] * 576 for n in MISFITS)
    extra = planned_bytes(dict.fromkeys(MISFITS, "q8_0"), SHAPES) - weights * FORMATS[form].bits / 8
    said = misfit_cost(form, MISFITS, assigned, SHAPES)
    assert "8.5 bits instead of" in said and f"{extra / 1e3:.1f} kB more" in said


def test_an_otherwise_that_does_not_fit_either_is_refused():
    with pytest.raises(
        FormatError, match=r"rows of 576 .* 128-weight blocks of n4_b128 \(rule '\*', otherwise: n4_b128"
    ):
        Plan((Rule("*", "n4_b256", "n4_b128"),)).assign(SHAPES)


def test_otherwise_changes_nothing_where_the_block_fits():
    assert set(Plan((Rule("*", "q4_0", "q8_0"),)).assign(SHAPES).values()) == {"q4_0", "f32"}


def test_first_match_wins_and_no_match_is_an_error():
    plan = Plan((Rule("*embed*", "q8_0"), Rule("*layers*", "q4_0")))
    assert plan.format_of("model.embed_tokens.weight", (10, 64)) == "q8_0"
    with pytest.raises(FormatError, match=r"lm_head\.weight: no rule of the plan matches"):
        plan.assign({**SHAPES, "lm_head.weight": (10, 64)})


def test_what_can_only_be_read_is_not_planned():
    read_only = [n for n, f in FORMATS.items() if f.encode is None and f.block == 256]
    assert read_only
    with pytest.raises(FormatError, match="can be read but not trained"):
        Plan.uniform(read_only[0]).assign({"model.layers.0.mlp.down_proj.weight": (8, 256)})
