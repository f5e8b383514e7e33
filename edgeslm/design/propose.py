"""From a budget and a device to proposals, each with what it would cost there, and one that is recommended."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from edgeslm import cost
from edgeslm.design import grids, shapes
from edgeslm.design.device import Known
from edgeslm.errors import DataError

AS_FAST = 0.95  # of the fastest: within this, depth decides
PROMPT = 512  # tokens of the prompt whose speed is predicted, or the context where that is shorter
MOST = 8
UNITS = {"k": 1e3, "M": 1e6, "B": 1e9}
BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class Ask:
    """`budget`: "0.1B" and "60M" count parameters, "60MB" bytes of weights as shipped."""

    budget: str
    bits: int
    context: int
    vocabulary: int | None = None
    teacher: dict[str, Any] | None = None


@dataclass(frozen=True)
class Proposal:
    student: dict[str, Any]
    shape: dict[str, Any]
    parameters: int
    embedding_share: float
    weights_bytes: int
    cache_bytes: float  # at the context, float16
    misfits: tuple[str, ...]  # rows that got the other grid
    predictions: dict[str, cost.Prediction]
    recommended: bool = False

    @property
    def decode(self) -> float | None:
        found = self.predictions.get("predicted_decode")
        return None if found is None else found.value

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


DEFAULT_VOCABULARY = 49152  # SmolLM2's


def propose(ask: Ask, known: Known) -> list[Proposal]:
    """In the order of their width. Raises DataError for a budget that nothing fits."""
    plan = grids.plan_for(ask.bits)
    if not 1 <= ask.context <= 1 << 24:
        raise DataError(f"--context {ask.context}: is no length of a text; take a few hundred or thousand tokens")
    vocabulary = ask.vocabulary or (ask.teacher["vocab_size"] if ask.teacher else DEFAULT_VOCABULARY)
    if ask.teacher and vocabulary > ask.teacher["vocab_size"]:
        raise DataError(f"--vocabulary {vocabulary}: is more than the teacher's {ask.teacher['vocab_size']}")
    parameters = _parameters(ask.budget, plan)
    found: list[shapes.Shape] = []
    for block in dict.fromkeys((plan.layers.block, plan.otherwise.block)):
        some = (
            shapes.cut(ask.teacher, parameters, vocabulary, block)
            if ask.teacher
            else shapes.from_scratch(parameters, vocabulary, block)
        )
        seen = {(s.student["kind"], s.config["hidden_size"]) for s in found}
        found += [s for s in some if (s.student["kind"], s.config["hidden_size"]) not in seen]
        if not ask.teacher and len(found) > 1:
            break  # shapes whose rows fit are enough
    if not found:
        raise DataError(_nothing(ask, parameters, vocabulary))
    made = [_costed(shape, plan, ask, known) for shape in found]
    made.sort(key=lambda p: (p.shape["hidden_size"], p.shape["num_hidden_layers"]))
    best = _recommended(made)
    return [Proposal(**{**vars(p), "recommended": p is best}) for p in _spread(made, best)]


def _spread(made: list[Proposal], best: Proposal) -> list[Proposal]:
    """At most MOST of them, evenly over the widths, the recommended one among them."""
    if len(made) <= MOST:
        return made
    places = {round(i * (len(made) - 1) / (MOST - 1)) for i in range(MOST)}
    return [p for i, p in enumerate(made) if i in places or p is best]


def _costed(shape: shapes.Shape, plan: grids.Plan, ask: Ask, known: Known) -> Proposal:
    config, n = shape.config, cost.counts(shape.config)
    held = grids.weights(config, plan)
    load = cost.Load(config, held.total, held.unread, int8=plan.layers.bits < 16)
    lengths = [min(PROMPT, ask.context)]
    found = cost.predict(known.ceilings, load, depths=[ask.context], lengths=lengths, efficiencies=known.shares)
    return Proposal(
        shape.student,
        config,
        n.total,
        n.embedding / n.total,
        held.total,
        cost.kv_bytes(config, ask.context),
        held.misfits,
        {one.metric: one for one in found},
    )


def _recommended(made: list[Proposal]) -> Proposal:
    """Of those about as fast as the fastest: rows that fit the grid first, then the deepest."""
    fastest = max((p.decode or 0.0 for p in made), default=0.0)
    fast = [p for p in made if (p.decode or 0.0) >= AS_FAST * fastest]
    return min(fast, key=lambda p: (len(p.misfits), -p.shape["num_hidden_layers"]))


def _parameters(budget: str, plan: grids.Plan) -> int:
    """A size in bytes becomes parameters by the bits of the layers' grid. Raises DataError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k|M|B|kB|MB|GB)", budget.strip())
    if match is None or float(match[1]) <= 0:
        raise DataError(f"--budget {budget}: is no size; write parameters as 0.1B or 60M, bytes as 60MB")
    if match[2] in BYTES:
        return round(float(match[1]) * BYTES[match[2]] * 8 / plan.layers.bits)
    return round(float(match[1]) * UNITS[match[2]])


def _nothing(ask: Ask, parameters: int, vocabulary: int) -> str:
    if ask.teacher:
        whole = cost.counts(ask.teacher).total
        return (
            f"--budget {ask.budget}: no student of about {parameters:,} parameters can be cut from a teacher of "
            f"{whole:,} with {vocabulary:,} tokens; take another budget or a smaller --vocabulary"
        )
    return (
        f"--budget {ask.budget}: no shape of about {parameters:,} parameters with {vocabulary:,} tokens; take a larger "
        "budget or a smaller --vocabulary"
    )
