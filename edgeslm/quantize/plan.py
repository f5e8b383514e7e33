"""Which tensor sits on which grid: a list of (pattern, format), first match wins.

The same plan drives training and export. Norms and biases (1-D tensors) stay float32 whatever the plan says about
matrices: llama.cpp and onnxruntime hold them so.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeslm.errors import FormatError
from edgeslm.formats import FORMATS

FLOATS = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Rule:
    """`pattern` is a shell pattern on transformers' tensor name ("*embed_tokens*", "*.down_proj.weight", "*")."""

    pattern: str
    format: str


@dataclass(frozen=True)
class Plan:
    rules: tuple[Rule, ...]

    @classmethod
    def uniform(cls, format_name: str) -> Plan:
        return cls((Rule("*", format_name),))

    def format_of(self, name: str, shape: Sequence[int]) -> str:
        """The format of one tensor. Raises FormatError when no rule matches or a block does not divide the rows."""
        if len(shape) < 2:
            return "f32"
        chosen = next((r.format for r in self.rules if fnmatch.fnmatchcase(name, r.pattern)), None)
        if chosen is None:
            raise FormatError(
                f"{name}: no rule of the plan matches it; end the plan with {{pattern: '*', format: ...}}"
            )
        grid = FORMATS[chosen]
        if shape[-1] % grid.block:
            fits = ", ".join(f.name for f in FORMATS.values() if f.encode and shape[-1] % f.block == 0 and f.block > 1)
            raise FormatError(
                f"{name}: rows of {shape[-1]} are no multiple of the {grid.block}-weight blocks of {chosen}; "
                f"formats that fit: {fits or 'f16, f32'}"
            )
        if grid.encode is None:
            raise FormatError(f"{name}: {chosen} can be read but not yet trained or written; choose q4_0, q4_1 or q8_0")
        return chosen

    def assign(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
        """{tensor name: format name} for a whole model; problems of all tensors are told at once."""
        chosen, problems = {}, []
        for name, shape in shapes.items():
            try:
                chosen[name] = self.format_of(name, shape)
            except FormatError as error:
                problems.append(str(error))
        if problems:
            more = f" (and {len(problems) - 1} more tensors)" if len(problems) > 1 else ""
            raise FormatError(problems[0] + more)
        return chosen


def planned_bytes(assigned: Mapping[str, str], shapes: Mapping[str, Sequence[int]]) -> int:
    """Bytes of all tensors as shipped, metadata left out."""
    total = 0
    for name, format_name in assigned.items():
        count = 1
        for size in shapes[name]:
            count *= size
        total += count // FORMATS[format_name].block * FORMATS[format_name].bytes
    return total
