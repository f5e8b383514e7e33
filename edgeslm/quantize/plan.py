"""Which tensor sits on which grid: a list of (pattern, format), first match wins.

The same plan drives training and export. Norms and biases (1-D tensors) stay float32 whatever the plan says about
matrices: llama.cpp and onnxruntime hold them so. A tensor whose rows a block does not divide gets what its rule says
under `otherwise`; a rule that says nothing is refused, with the formats and sizes that would do.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeslm import units
from edgeslm.errors import FormatError
from edgeslm.formats import FORMATS

FLOATS = ("f32", "f16", "bf16")
OFFERED = 5


@dataclass(frozen=True)
class Rule:
    """`pattern` is a shell pattern on transformers' tensor name ("*embed_tokens*", "*.down_proj.weight", "*").
    `otherwise`: the format of matching tensors whose rows are no whole number of `format`'s blocks."""

    pattern: str
    format: str
    otherwise: str | None = None


@dataclass(frozen=True)
class Plan:
    rules: tuple[Rule, ...]

    @classmethod
    def uniform(cls, format_name: str) -> Plan:
        return cls((Rule("*", format_name),))

    def rule_of(self, name: str) -> Rule:
        """The first rule that matches. Raises FormatError when none does."""
        for rule in self.rules:
            if fnmatch.fnmatchcase(name, rule.pattern):
                return rule
        raise FormatError(f"{name}: no rule of the plan matches it; end the plan with {{pattern: '*', format: ...}}")

    def format_of(self, name: str, shape: Sequence[int]) -> str:
        """The format of one tensor. Raises FormatError when no rule matches or a block does not divide the rows."""
        return self.assign({name: shape})[name]

    def assign(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
        """{tensor name: format name} for a whole model. Raises FormatError that tells what is wrong with all of it."""
        chosen: dict[str, str] = {}
        misfits: dict[tuple[Rule, str, int], list[str]] = {}
        problems: list[str] = []
        for name, shape in shapes.items():
            if len(shape) < 2:
                chosen[name] = "f32"
                continue
            try:
                rule = self.rule_of(name)
            except FormatError as error:
                problems.append(str(error))
                continue
            wanted = rule.otherwise if rule.otherwise and not divides(rule.format, shape) else rule.format
            if not divides(wanted, shape):
                misfits.setdefault((rule, wanted, shape[-1]), []).append(name)
            elif FORMATS[wanted].encode is None:
                problems.append(
                    f"{name}: {wanted} can be read but not trained or written; {_offers(wanted, shape[-1])}"
                )
            else:
                chosen[name] = wanted
        matrices = sum(len(shape) > 1 for shape in shapes.values())
        told = [_misfit(*key, names, matrices) for key, names in misfits.items()] + problems[:1]
        if told:
            more = f" (and {len(problems) - 1} more tensors)" if len(problems) > 1 else ""
            raise FormatError("; ".join(told) + more)
        return chosen


def divides(format_name: str, shape: Sequence[int]) -> bool:
    """Whether the rows of a tensor are whole numbers of a format's blocks."""
    return shape[-1] % FORMATS[format_name].block == 0


def _offers(wanted: str, row: int) -> str:
    """Formats of the same container whose blocks fit a row, those of nearest size first."""
    grid = FORMATS[wanted]
    fits = [f for f in FORMATS.values() if f.encode and f.block > 1 and row % f.block == 0]
    same = [f for f in fits if (f.ggml_type is None) == (grid.ggml_type is None)]
    near = sorted(same, key=lambda f: abs(f.bits - grid.bits))[:OFFERED]
    near.sort(key=lambda f: f.bits)
    return "formats that fit: " + (", ".join(f"{f.name} ({f.bits:.4g} bits)" for f in near) or "f16 (16 bits)")


def _misfit(rule: Rule, wanted: str, row: int, names: list[str], matrices: int) -> str:
    """Which tensors, what fits them, and which sizes would make the block fit."""
    block = FORMATS[wanted].block
    below, above = row // block * block, (row // block + 1) * block
    sizes = f"{below} or {above}" if below else str(above)
    where = f"otherwise: {wanted}" if wanted == rule.otherwise else f"format: {wanted}"
    cure = "" if wanted == rule.otherwise else ", or say what such tensors get with `otherwise: FORMAT` in the rule"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{names[0]}{more} (of {matrices} matrices): rows of {row} are no multiple of the {block}-weight blocks of "
        f"{wanted} (rule '{rule.pattern}', {where}); {_offers(wanted, row)}; "
        f"a student whose {_size_name(names)} is {sizes} would fit{cure}"
    )


def _size_name(names: list[str]) -> str:
    """What sets the length of these rows in a transformer."""
    kinds = {
        "FFN size" if ".down_proj." in n else "heads times head size" if ".o_proj." in n else "hidden size"
        for n in names
    }
    return "hidden size" if "hidden size" in kinds else kinds.pop() if len(kinds) == 1 else "FFN and head size"


def planned_bytes(assigned: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> int:
    """Bytes of all tensors as shipped, metadata left out."""
    total = 0
    for name, format_name in assigned.items():
        total += math.prod(shapes[name]) // FORMATS[format_name].block * FORMATS[format_name].bytes
    return total


def misfit_cost(
    wanted: str, names: Sequence[str], assigned: Mapping[str, str], shapes: Mapping[str, Sequence[int]]
) -> str:
    """What tensors that did not get the `wanted` format take more (or less) than they would have, for a reader."""
    weights = sum(math.prod(shapes[n]) for n in names)
    bits = 8 * planned_bytes({n: assigned[n] for n in names}, shapes) / weights
    extra = bits - FORMATS[wanted].bits
    sign = "more" if extra >= 0 else "less"
    return (
        f": {bits:.4g} bits instead of the {FORMATS[wanted].bits:.4g} of {wanted}, "
        f"{units.byte_count(abs(extra) * weights / 8)} {sign}"
    )
