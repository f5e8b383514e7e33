"""The sub-command `design`: shapes for a budget and a device, in a table that explains itself. Never imports torch."""

from __future__ import annotations

import json
from typing import Any

import yaml

from edgeslm import units
from edgeslm.design import grids, propose
from edgeslm.design.device import Known, look_up
from edgeslm.design.propose import Ask, Proposal

COLUMNS = ("", "student", "parameters", "table", "weights", "cache", "memory", "decode", "prompt", "other grid")


def design(
    budget: str, device: str, bits: int, context: int, vocabulary: int | None, teacher: str | None, as_json: bool
) -> str:
    """What `edgeslm design` prints. Raises DataError, ModelError."""
    from edgeslm.design.teacher import shape_of

    known = look_up(device)
    ask = Ask(budget, bits, context, vocabulary, shape_of(teacher) if teacher else None)
    made = propose.propose(ask, known)
    plan = grids.plan_for(bits)
    if as_json:
        return json.dumps(document(ask, known, made, plan), indent=1)
    return "\n".join(lines(ask, known, made, plan))


def document(ask: Ask, known: Known, made: list[Proposal], plan: grids.Plan) -> dict[str, Any]:
    return {
        "device": known.title,
        "ceilings": vars(known.ceilings),
        "grounds": known.grounds,
        "context": ask.context,
        "quantize": {"plan": plan.rules()},
        "proposals": [p.to_json() for p in made],
    }


def lines(ask: Ask, known: Known, made: list[Proposal], plan: grids.Plan) -> list[str]:
    rows = [COLUMNS, *(_row(p) for p in made)]
    wide = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    table = ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows]
    best = next(p for p in made if p.recommended)
    return [*table, "", *_legend(ask, known, made, plan), "", *_paste(best, plan)]


def _row(p: Proposal) -> tuple[str, ...]:
    shape = p.shape
    said = (
        f"{p.student['kind']}: {shape['num_hidden_layers']} layers of {shape['hidden_size']}, ffn "
        f"{shape['intermediate_size']}, {shape['num_attention_heads']}/{shape['num_key_value_heads']} heads of "
        f"{shape['head_dim']}"
    )
    return (
        "*" if p.recommended else "",
        said,
        units.count(p.parameters),
        f"{p.embedding_share:.0%}",
        units.byte_count(p.weights_bytes),
        units.byte_count(p.cache_bytes),
        units.byte_count(p.weights_bytes + p.cache_bytes),
        _speed(p, "predicted_decode"),
        _speed(p, "predicted_prefill"),
        ", ".join(p.misfits) or "-",
    )


def _speed(p: Proposal, metric: str) -> str:
    found = p.predictions.get(metric)
    return "unknown" if found is None else f"{found.value:.3g}/s ({found.limited_by})"


def _legend(ask: Ask, known: Known, made: list[Proposal], plan: grids.Plan) -> list[str]:
    vocabulary = made[0].shape["vocab_size"]
    reached = {metric: f"x {share.value:.2f}, {share.source}" for metric, share in known.shares.items()}
    said = [
        f"* recommended: the deepest of those whose decode is within {1 - propose.AS_FAST:.0%} of the fastest, first "
        "those whose rows fit the grid (small models gain from depth, MobileLLM arXiv:2402.14905)",
        f"table: the share of {vocabulary:,} tokens' embedding (tied heads once); every token's head reads all of it",
        f"weights: layers in {plan.layers.name}, table in {plan.table.name}, norms in float32; rows under 'other grid' "
        f"are no multiple of {plan.layers.block} and take {plan.otherwise.name} ({plan.otherwise.bits:g} bits)"
        if plan.layers.block > plan.otherwise.block
        else f"weights: all matrices in {plan.layers.name}, norms in float32",
        f"cache: keys and values of {ask.context:,} tokens in float16; memory: weights + cache, without what the "
        "runtime holds besides",
        f"decode: tokens a second after {ask.context:,} tokens on {known.title}, "
        + (reached.get("decode") or "as a bound that no runtime passes")
        + f"; prompt: of {min(propose.PROMPT, ask.context)} tokens, "
        + (reached.get("prefill") or "likewise"),
        *(f"{rate}: {ground}" for rate, ground in known.grounds.items()),
    ]
    if known.ceilings.ops_int8_per_s is None or known.ceilings.flops_f32_per_s is None:
        said.append("prompt is unknown: nobody published this device's arithmetic; 'edgeslm bench --json' measures it")
    return said


def _paste(best: Proposal, plan: grids.Plan) -> list[str]:
    def flow(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()

    rules = plan.rules()
    if best.shape["model_type"] == "gpt2":
        rules = [{**rule, "pattern": rule["pattern"].replace("embed_tokens", "wte")} for rule in rules]
    return [f"student: {flow(best.student)}", f"quantize: {flow({'plan': rules})}"]
