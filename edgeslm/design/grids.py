"""Which of ggml's grids a number of bits means, and when rows are too odd for it. Sizes are those of edgeslm.formats
(a test holds them), which cannot be looked up without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeslm import cost
from edgeslm.errors import DataError

K_BLOCK = 256  # weights that K-quants and ternary grids share scales among


@dataclass(frozen=True)
class Grid:
    name: str
    block: int
    bits: float  # a weight, scales included


GRIDS = {
    grid.name: grid
    for grid in (
        Grid("q2_k", 256, 2.625),
        Grid("q3_k", 256, 3.4375),
        Grid("q4_k", 256, 4.5),
        Grid("q5_k", 256, 5.5),
        Grid("q6_k", 256, 6.5625),
        Grid("tq2_0", 256, 2.0625),
        Grid("q4_0", 32, 4.5),
        Grid("q5_0", 32, 5.5),
        Grid("q8_0", 32, 8.5),
        Grid("f16", 1, 16.0),
    )
}
# bits asked for -> (the grid for layers, the one for rows that its blocks do not divide)
BY_BITS = {
    2: ("q2_k", "q4_0"),
    3: ("q3_k", "q4_0"),
    4: ("q4_k", "q4_0"),
    5: ("q5_k", "q5_0"),
    6: ("q6_k", "q8_0"),
    8: ("q8_0", "f16"),
    16: ("f16", "f16"),
}
TABLES = {2: ("q4_k", "q4_0"), 3: ("q6_k", "q8_0"), 4: ("q6_k", "q8_0"), 5: ("q6_k", "q8_0")}  # embedding and head


@dataclass(frozen=True)
class Plan:
    """Grids by what they are for; `otherwise` for rows that blocks do not divide."""

    layers: Grid
    otherwise: Grid
    table: Grid
    table_otherwise: Grid

    def rules(self) -> list[dict[str, str]]:
        """The `quantize.plan` of a recipe; only names that a rule can fall back to are written."""
        rules = [_rule("*embed_tokens*", self.table, self.table_otherwise), _rule("*", self.layers, self.otherwise)]
        same = rules[0].keys() == rules[1].keys() and self.table == self.layers
        return rules[1:] if same and self.table_otherwise == self.otherwise else rules


def _rule(pattern: str, grid: Grid, otherwise: Grid) -> dict[str, str]:
    more = {} if grid.block <= otherwise.block else {"otherwise": otherwise.name}
    return {"pattern": pattern, "format": grid.name, **more}


def plan_for(bits: int) -> Plan:
    """Raises DataError for a number of bits that no grid here has."""
    if bits not in BY_BITS:
        raise DataError(f"--bits {bits}: no grid of so many bits; take one of {', '.join(map(str, BY_BITS))}")
    layers, table = BY_BITS[bits], TABLES.get(bits, BY_BITS[bits])
    return Plan(*(GRIDS[name] for name in (*layers, *table)))


@dataclass(frozen=True)
class Weights:
    """Bytes of a shape on a plan. `misfits`: row lengths that got the other grid."""

    total: int
    unread: int
    misfits: tuple[str, ...]


def weights(shape: Mapping[str, Any], plan: Plan) -> Weights:
    """Rows are as long as what a matrix reads: hidden channels, heads times their dimensions, feed-forward units."""
    n, d, f = cost.counts(shape), int(shape["hidden_size"]), int(shape["intermediate_size"])
    q = int(shape["num_attention_heads"]) * cost.head_dim(shape)
    down, out = n.layers * d * f, n.layers * d * q
    parts = {"hidden": (n.linear - down - out, d), "heads x dimensions": (out, q), "ffn": (down, f)}
    bits, misfits = 32.0 * n.small, []
    for name, (count, row) in parts.items():
        fits = row % plan.layers.block == 0
        bits += count * (plan.layers if fits else plan.otherwise).bits
        misfits += [] if fits else [f"{name} {row}"]
    table = (plan.table if d % plan.table.block == 0 else plan.table_otherwise).bits
    bits += (n.embedding + n.head + n.positions) * table
    return Weights(round(bits / 8), round(n.embedding * table / 8) if n.head else 0, tuple(misfits))
