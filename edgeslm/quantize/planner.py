"""Mixed precision: given a size, which format every tensor gets, so that the predicted KL to the float model is least.

What a tensor costs on a format is measured (`sensitivity`); rounding errors of different tensors hardly know of each
other, so that costs add up, and the choice is a knapsack with one option per tensor. Bytes of blocks have a large
common divisor, so the knapsack is solved exactly by dynamic programming over bytes, and the same table holds the best
choice for every smaller size: the curve of KL against bytes.

One measurement of a cost is local (small errors, one tensor at a time). `plan` therefore corrects it where it is used:
it puts the tensors of one kind (all `down_proj`, ...) on their chosen formats, measures the KL, scales the costs of
that kind, and chooses again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeslm.errors import FormatError
from edgeslm.formats import FORMATS
from edgeslm.quantize.plan import FLOATS, planned_bytes

CELLS = 1 << 17  # sizes told apart; where blocks have no large common divisor, sizes are rounded up to this many
FRONTIER_POINTS = 160
FACTORS = (0.25, 4.0)  # a measured kind may change its costs by so much; more would mean the model of costs is wrong
LAYER = re.compile(r"\.layers\.(\d+)\.")

Shapes = Mapping[str, Sequence[int]]
Costs = Mapping[str, Mapping[str, float]]  # {tensor: {format: KL in nats per token}}


def layer_of(name: str) -> int | None:
    """The layer of a transformers tensor name; None for embedding and head."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def kind_of(name: str) -> str:
    """`model.layers.3.mlp.down_proj.weight` -> `down_proj`."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else name


def options(
    shapes: Shapes, names: Sequence[str] | None, refused: Collection[str] = (), own: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """{matrix: formats it may take}, smallest first. `names` None: every grid that can be trained and written.

    `refused` cannot be held by a container of the recipe. `own` is the type of each tensor in the teacher's file: a
    dequantised teacher's own grid would cost nothing and mean nothing. Raises FormatError when a tensor is left
    without any format.
    """
    wanted = [n for n in FORMATS if n not in FLOATS] if names is None else list(dict.fromkeys(names))
    usable = [n for n in wanted if FORMATS[n].fit is not None and FORMATS[n].encode is not None and n not in refused]
    usable.sort(key=lambda n: FORMATS[n].bits)
    found = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        found[name] = [n for n in usable if shape[-1] % FORMATS[n].block == 0 and n != (own or {}).get(name)]
        if not found[name]:
            raise FormatError(
                f"{name}: none of {', '.join(wanted)} fits its rows of {shape[-1]} weights"
                + (f", and its own type in the teacher's file ({own[name]}) is left out" if own and name in own else "")
                + "; add a format with a block that divides them to quantize.target.formats"
            )
    return found


def parameters_of(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def limits(choices: Mapping[str, Sequence[str]], shapes: Shapes) -> tuple[int, int]:
    """(smallest, largest) bytes of a model that any choice gives; vectors are float32."""
    ends = []
    for pick in (min, max):
        formats = {n: pick(choices[n], key=lambda f: FORMATS[f].bits) if n in choices else "f32" for n in shapes}
        ends.append(planned_bytes(formats, shapes))
    return ends[0], ends[1]


def budget(bits: float | None, size: int | None, choices: Mapping[str, Sequence[str]], shapes: Shapes) -> int:
    """Bytes that all tensors may take. Raises FormatError for a target that no choice can meet."""
    parameters = parameters_of(shapes)
    wanted = int(bits * parameters / 8) if bits is not None else int(size or 0)
    low, high = limits(choices, shapes)

    def told(count: int) -> str:
        return f"{count / 1e6:.1f} MB, {8 * count / parameters:.2f} bits a weight"

    if wanted < low:
        raise FormatError(
            f"quantize.target: asks for {told(wanted)}, but the smallest that these formats give is {told(low)}; "
            "raise the target, or allow formats of fewer bits whose blocks divide the rows"
        )
    if wanted > high:
        raise FormatError(
            f"quantize.target: allows {told(wanted)}, but the largest formats need only {told(high)}; "
            "lower the target, or use quantize.plan with one format"
        )
    return wanted


@dataclass(frozen=True)
class Solution:
    """`formats` {tensor: format}, and the least cost for sizes up to the largest: (bytes, cost), bytes rising."""

    formats: dict[str, str]
    cost: float
    frontier: tuple[tuple[int, float], ...]


def solve(costs: Costs, shapes: Shapes, allowed_bytes: int) -> Solution:
    """One format per tensor of `costs`, least summed cost within `allowed_bytes` (other tensors are float32).

    Exact when the sizes fit into CELLS steps; else sizes are rounded up, so that the budget always holds. Equal costs
    go to the smaller format. The same input gives the same choice.
    """
    names = list(costs)
    sizes = {n: {f: planned_bytes({n: f}, shapes) for f in costs[n]} for n in names}
    ranked = {n: sorted(costs[n], key=lambda f: (sizes[n][f], costs[n][f], f)) for n in names}
    base = planned_bytes({n: "f32" for n in shapes if n not in costs}, shapes)
    base += sum(sizes[n][ranked[n][0]] for n in names)
    extra = {n: [sizes[n][f] - sizes[n][ranked[n][0]] for f in ranked[n]] for n in names}
    unit = _unit(list(extra.values()))
    units = {n: [-(-e // unit) for e in extra[n]] for n in names}
    cells = sum(max(u) for u in units.values()) + 1
    best = np.zeros(cells)  # least cost with at most so many units
    taken: list[NDArray[np.uint8]] = []
    for name in names:
        best, chosen = _add(best, units[name], [costs[name][f] for f in ranked[name]])
        taken.append(chosen)
    cell = min((allowed_bytes - base) // unit, cells - 1)
    if cell < 0:
        raise FormatError(f"quantize.target: {allowed_bytes} bytes are less than the smallest choice, {base}")
    formats = {}
    at = cell
    for name, chosen in zip(reversed(names), reversed(taken), strict=True):
        pick = int(chosen[at])
        formats[name] = ranked[name][pick]
        at -= units[name][pick]
    steps = np.unique(np.linspace(0, cells - 1, FRONTIER_POINTS).astype(int))
    frontier = tuple((base + int(i) * unit, float(best[i])) for i in steps)
    return Solution({n: formats[n] for n in names}, float(best[cell]), frontier)


def _unit(extra: Sequence[Sequence[int]]) -> int:
    """Bytes of one cell: what divides all differences in size, or the multiple of it that gives about CELLS cells."""
    common = reduce(math.gcd, (e for row in extra for e in row), 0) or 1
    return common * max(1, -(-sum(max(row) for row in extra) // (common * CELLS)))


def _add(
    best: NDArray[np.float64], units: Sequence[int], costs: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """The table with one more tensor, and which of its options each cell takes."""
    new = best + costs[0]  # the smallest option takes no extra unit
    chosen = np.zeros(len(best), dtype=np.uint8)
    for index in range(1, len(units)):
        shift = units[index]
        trial = best[: len(best) - shift] + costs[index]
        better = trial < new[shift:]
        new[shift:][better] = trial[better]
        chosen[shift:][better] = index
    return new, chosen


@dataclass(frozen=True)
class Planned:
    """The choice, and how far its prediction can be trusted. KL in nats per token, to the float model."""

    formats: dict[str, str]
    costs: dict[str, dict[str, float]]  # corrected
    kinds: dict[str, dict[str, float]]  # {kind: {predicted, measured, factor}} of the first choice
    joint: float  # KL of the whole first choice / sum of its kinds' KL
    predicted: float  # with nearest rounding
    left: dict[str, float] | None  # shares that feedback leaves, where the choice went by them
    frontier: tuple[tuple[int, float], ...]


def plan(
    costs: Costs,
    shapes: Shapes,
    allowed_bytes: int,
    measure: Callable[[Mapping[str, str]], float],
    left: Mapping[str, float] | None = None,
) -> Planned:
    """`measure({tensor: format})`: the KL with just these tensors on their formats, by nearest rounding. One call per
    kind, one for all. `left` {tensor: share of its cost that rounding with feedback will leave} is chosen by, and costs
    stay those of nearest rounding."""

    def fed(row: Costs) -> Costs:
        return {n: {f: c * left[n] for f, c in own.items()} for n, own in row.items()} if left else row

    first = solve(fed(costs), shapes, allowed_bytes).formats
    kinds: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(map(kind_of, costs)):
        members = {n: f for n, f in first.items() if kind_of(n) == kind}
        predicted, measured = sum(costs[n][f] for n, f in members.items()), measure(members)
        factor = min(max(measured / predicted, FACTORS[0]), FACTORS[1]) if predicted > 0 and measured > 0 else 1.0
        kinds[kind] = {"predicted": predicted, "measured": measured, "factor": factor}
    corrected = {n: {f: c * kinds[kind_of(n)]["factor"] for f, c in row.items()} for n, row in costs.items()}
    apart = sum(corrected[n][f] for n, f in first.items())
    joint = measure(first) / apart if apart > 0 else 1.0
    solution = solve(fed(corrected), shapes, allowed_bytes)
    nearest = solve(corrected, shapes, allowed_bytes) if left else solution
    frontier = tuple((size, joint * cost) for size, cost in nearest.frontier)
    predicted = joint * sum(corrected[n][f] for n, f in solution.formats.items())
    return Planned(solution.formats, corrected, kinds, joint, predicted, dict(left) if left else None, frontier)


def to_json(planned: Planned, shapes: Shapes, allowed_bytes: int) -> dict[str, Any]:
    """plan.json: what was chosen, from what, and the curve of predicted KL against bytes."""
    whole = {n: planned.formats.get(n, "f32") for n in shapes}
    size = planned_bytes(whole, shapes)
    return {
        "allowed_bytes": allowed_bytes,
        "bytes": size,
        "bits": 8 * size / parameters_of(shapes),
        "parameters": parameters_of(shapes),
        "predicted_kl": planned.predicted,
        "left_by_feedback": planned.left,
        "rules": [[n, f] for n, f in planned.formats.items()],
        "kinds": planned.kinds,
        "joint": planned.joint,
        "frontier": [list(point) for point in planned.frontier],
        "uniform": _uniform(planned, shapes),
        "tensors": {
            n: {
                "layer": layer_of(n),
                "kind": kind_of(n),
                "shape": list(shapes[n]),
                "format": f,
                "bits": FORMATS[f].bits,
                "bytes": planned_bytes({n: f}, shapes),
                "kl": planned.costs[n],
            }
            for n, f in planned.formats.items()
        },
    }


def _uniform(planned: Planned, shapes: Shapes) -> list[dict[str, Any]]:
    """What one format for all matrices would give, where every matrix may take it."""
    every = [f for f in FORMATS if all(f in row for row in planned.costs.values())]
    return [
        {
            "format": f,
            "bytes": planned_bytes({n: f if n in planned.costs else "f32" for n in shapes}, shapes),
            "kl": planned.joint * sum(row[f] for row in planned.costs.values()),
        }
        for f in every
    ]
