"""How `edgeslm plan` prints a plan: one line per kind of tensor, then what the whole of it gives."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from edgeslm import units


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """plan.json -> lines of text. KL is to the float student, before any training."""
    tensors = list(plan["tensors"].values())
    lines = [f"{'tensors':14} {'bits':>6} {'size':>9} {'KL':>9}  formats"]
    for kind in dict.fromkeys(t["kind"] for t in tensors):
        rows = [t for t in tensors if t["kind"] == kind]
        weights, size = sum(math.prod(t["shape"]) for t in rows), sum(t["bytes"] for t in rows)
        expected = plan["joint"] * sum(t["kl"][t["format"]] for t in rows)
        formats = Counter(t["format"] for t in sorted(rows, key=lambda t: t["bits"]))
        said = ", ".join(f"{count} {name}" if len(rows) > 1 else name for name, count in formats.items())
        lines.append(f"{kind:14} {8 * size / weights:6.2f} {units.byte_count(size):>9} {expected:9.4f}  {said}")
    return [
        *lines,
        f"all tensors: {units.byte_count(plan['bytes'])}, {plan['bits']:.3f} bits a weight "
        f"(at most {units.byte_count(plan['allowed_bytes'])})",
        f"KL to the float student before training: {plan['predicted_kl']:.4f} nats a token predicted, "
        f"{plan['measured_kl']:.4f} measured on {plan['tokens']['measured_kl']:,} other tokens",
    ]
