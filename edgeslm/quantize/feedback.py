"""Error-feedback rounding onto a block grid: GPTQ (Frantar et al., arXiv:2210.17323) in the block order of the file.

What counts is the error of the layer's output on real inputs, tr((W - Q) H (W - Q)^T) with H the second moment of the
inputs. Columns are rounded one after another, and what rounding column j loses is made good by the columns not yet
rounded. With H^-1 = U^T U, U upper triangular:

    q_j = nearest level of w_j;   e = (w_j - q_j) / U_jj;   w_i -= e U_ji for i > j;   the loss of column j is e^2

The scales of a block are searched when its first column is reached, on the weights as they stand then, the squared
error of column j weighed by 1 / U_jj^2: that is its loss once the later columns have done what they can. Blocks stay
whole, so columns keep their order. Rows do not touch each other; a row that plain rounding serves better keeps it.
Sweeps of coordinate descent (descent.py) follow. Codebook formats take several columns at a time (vectors.py).

Where the curvature of the outputs is known too (loss_moments.py), what counts is tr(H_O (W - Q) H (W - Q)^T), and rows
learn of each other as columns do: with H_O^-1 = V^T V, once rows B are rounded with the error E_B, the rows r that are
left become W_r += -V_Br^T V_BB^-T E_B, which costs the least whatever H is (Tseng et al., YAQA, arXiv:2505.22988).
Shape letters: O rows (outputs), K columns (inputs), r rows at a time, g groups in a block, c columns at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslm.formats import FORMATS
from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.quantize import descent
from edgeslm.quantize.curvature import DAMPENING, DAMPENING_ACROSS, Curvature, curvature
from edgeslm.quantize.ladder import Ladder, ladder
from edgeslm.quantize.plan import FLOATS
from edgeslm.quantize.vectors import Vectors, round_columns, vectors

SLICE_WEIGHTS = 1 << 20  # rows are taken so many weights at a time: they stay in the cache
SWEEPS = 2
ROWS = 128  # at a time, where rows learn of each other; fewer take longer
PARTS = 4  # into so many at most on a GPU, which waits for every launch


@dataclass(frozen=True)
class Rounded:
    """A weight on its grid: `codes` [n, k] and `scales` as the format has them, `weight` [O, K] what they decode to."""

    weight: Tensor
    codes: Tensor
    scales: Scales


def layer_error(weight: Tensor, rounded: Tensor, moment: Tensor) -> float:
    """tr((W - Q) H (W - Q)^T): mean squared error of the layer's output, summed over outputs."""
    lost = weight.float() - rounded.float()
    return float(((lost @ moment) * lost).sum(dtype=torch.float64))


@torch.no_grad()
def round_plainly(weight: Tensor, form: BlockFormat, importance: Tensor | None = None) -> Rounded:
    """Each weight to its nearest level, scales fitted with `importance` [K]: what feedback is measured against."""
    assert form.fit is not None
    blocks = form.to_blocks(weight)
    weights = None
    if importance is not None:
        weights = importance.expand(weight.shape).reshape(-1, form.block)
    scales = form.fit(blocks, weights)
    codes = form.nearest(blocks, scales, weights)
    return Rounded(form.decode(codes, scales).reshape(weight.shape), codes, scales)


@torch.no_grad()
def round_with_feedback(
    weight: Tensor,
    curve: Curvature,
    form: BlockFormat,
    *,
    across: Curvature | None = None,
    sweeps: int = SWEEPS,
    name: str = "tensor",
) -> Rounded:
    """weight [O, K] -> its rounding. `curve` is that of its inputs, `across` that of its outputs where it is known.
    `sweeps` rounds of coordinate descent over codes and scales follow the feedback.

    Raises FormatError when a block does not divide the rows, a weight is not finite or the format cannot be trained.
    """
    form.to_blocks(weight, name)
    left, cpu = weight.detach().float(), weight.device.type == "cpu"
    if across is None:
        step = max(1, SLICE_WEIGHTS // weight.shape[1]) if cpu else weight.shape[0]
        parts = [_round_rows(part, curve, form, sweeps) for part in left.split(step)]
    else:
        step = rows_together(weight.shape[0], weight.device)
        parts = _down_the_rows(left.clone(), curve, across.root, form, sweeps, step)
    codes = torch.cat([codes for codes, _ in parts])
    scales = {key: torch.cat([scales[key] for _, scales in parts]) for key in parts[0][1]}
    return Rounded(form.decode(codes, scales).reshape(weight.shape), codes, scales)


def rows_together(rows: int, device: torch.device) -> int:
    """Of a weight of so many rows: how many are rounded at a time and do not learn of each other."""
    return ROWS if device.type == "cpu" else max(ROWS, -(-rows // PARTS))


def round_model(
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    assigned: Mapping[str, str],
    *,
    outputs: Mapping[str, Tensor] | None = None,
    dampening: float = DAMPENING,
    sweeps: int = SWEEPS,
) -> Iterator[tuple[str, Rounded]]:
    """Every weight that has a second moment and a low-bit format, one after another; the others are left out.
    `outputs`: second moments [O, O] of the gradients of outputs, of the weights that have one."""
    last: tuple[Tensor, Curvature] | None = None
    for name, weight in weights.items():
        if name not in moments or assigned[name] in FLOATS:
            continue
        if last is None or last[0] is not moments[name]:
            last = (moments[name], curvature(moments[name], dampening))
        across = curvature(outputs[name], DAMPENING_ACROSS) if outputs and name in outputs else None
        form = FORMATS[assigned[name]]
        yield name, round_with_feedback(weight, last[1], form, across=across, sweeps=sweeps, name=name)


def _down_the_rows(
    left: Tensor, curve: Curvature, root: Tensor, form: BlockFormat, sweeps: int, step: int
) -> list[tuple[Tensor, Scales]]:
    """`left` [O, K] is what is still to be rounded; `step` rows at a time, `root` V [O, O] of the outputs."""
    parts = []
    for at in range(0, left.shape[0], step):
        till = min(left.shape[0], at + step)
        codes, scales = _round_rows(left[at:till], curve, form, sweeps)
        lost = left[at:till] - form.decode(codes, scales).reshape(till - at, -1)
        passed = torch.linalg.solve_triangular(root[at:till, at:till], root[at:till, till:], upper=True)
        left[till:].addmm_(passed.T, lost, alpha=-1)
        parts.append((codes, scales))
    return parts


def _rungs(form: BlockFormat, device: torch.device) -> Ladder | Vectors:
    """Where columns are rounded to: one by one, or v at a time where a code stands for several weights."""
    return ladder(form, device) if form.per_code == 1 or form.fit is None else vectors(form, device)


def _round_rows(weight: Tensor, curve: Curvature, form: BlockFormat, sweeps: int) -> tuple[Tensor, Scales]:
    """weight [r, K] -> (codes [n, k], scales), blocks in row-major order."""
    rungs = _rungs(form, weight.device)
    state, error = _feed(weight, curve, form)
    plain, plain_error = _plain(weight, curve, form)
    descent.take(state, plain, plain_error < error)  # weights that were on such a grid before lie on it again
    for _ in range(sweeps):
        descent.sweep_codes(state, curve.hessian, form, rungs)
        descent.sweep_scales(state, curve.hessian, form, rungs)
    return _whole(state.index, state.scales, rungs, form)


def _feed(weight: Tensor, curve: Curvature, form: BlockFormat) -> tuple[descent.State, Tensor]:
    """Rounding with feedback and its error [r]."""
    left = weight.T.contiguous()  # [K, r]: a column lies together. What is still to be rounded
    rungs = _rungs(form, weight.device)
    index = torch.empty_like(left, dtype=rungs.kind)
    weigh = curve.root.diagonal().square().reciprocal()
    scales = [_round_block(left, index, at, curve.root, weigh, form) for at in range(0, left.shape[0], form.block)]
    rounded = form.decode(*_whole(index, scales, rungs, form)).reshape(weight.shape)
    return descent.start(weight, rounded, index, scales, curve.hessian)


def _plain(weight: Tensor, curve: Curvature, form: BlockFormat) -> tuple[descent.State, Tensor]:
    """Each weight to its nearest level, the scales of every block fitted by themselves, and the error [r]."""
    found = round_plainly(weight, form)
    index = _rungs(form, weight.device).index(found.codes).reshape(weight.shape).T.contiguous()
    by_row = {key: value.unflatten(0, (weight.shape[0], -1)) for key, value in found.scales.items()}
    scales = [{key: v[:, block] for key, v in by_row.items()} for block in range(weight.shape[1] // form.block)]
    return descent.start(weight, found.weight, index, scales, curve.hessian)


def _whole(index: Tensor, found: list[Scales], rungs: Ladder | Vectors, form: BlockFormat) -> tuple[Tensor, Scales]:
    """index [K, r] and scales by block of columns -> (codes [n, k], scales [n, ...]); row i's blocks lie together."""
    codes = rungs.codes_of(index.T.reshape(-1, form.block))
    return codes, {key: torch.stack([s[key] for s in found], 1).flatten(0, 1) for key in found[0]}


def _round_block(left: Tensor, index: Tensor, first: int, root: Tensor, weigh: Tensor, form: BlockFormat) -> Scales:
    """Rounds columns first .. first + k of `left` [K, r], in order; fills `index` and returns the scales [r, ...]."""
    assert form.fit is not None and form.spread is not None
    rungs, end = _rungs(form, left.device), first + form.block
    scales = form.fit(left[first:end].T.contiguous(), weigh[first:end].expand(left.shape[1], -1))
    step, minimum, inverse = _by_group(*form.spread(scales))
    size, lazy = form.block // step.shape[0], min(descent.LAZY_COLUMNS, form.block)
    if isinstance(rungs, Vectors):
        round_columns(left, index, first, root, step, inverse, lazy, rungs)
        return scales
    for at in range(first, end, lazy):
        till = at + lazy
        errors = left.new_empty(lazy, left.shape[1])
        for j in range(at, till):
            group = (j - first) // size
            shifted = left[j] + minimum[group]
            chosen, level = rungs.nearest(shifted * inverse[group])
            index[j] = chosen
            error = errors[j - at]
            torch.sub(shifted, level.mul_(step[group]), out=error).div_(root[j, j])
            left[j + 1 : till].addr_(root[j, j + 1 : till], error, alpha=-1)
        left[till:].addmm_(root[at:till, till:].T, errors, alpha=-1)
    return scales


def _by_group(step: Tensor, minimum: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """[r, g] of a block -> step, minimum, 1 / step (0 where the step is), each [g, r]."""
    step = step.T.contiguous()
    minimum = torch.zeros_like(step) if minimum is None else minimum.T.contiguous()
    return step, minimum, torch.where(step == 0, torch.zeros_like(step), 1.0 / step)
