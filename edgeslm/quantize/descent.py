"""Coordinate descent on a layer's output error, from any rounding: codes one by one, scales group by group.

With E = W - Q and P = E H, moving q_j of a row by s changes tr(E H E^T) by s (s H_jj - 2 P_j): the best place for a
column, all others fixed, is the level nearest to q_j + P_j / H_jj. So no sweep ever raises the error, where
feedback alone (feedback.py), which never looks back, leaves some of it. A group's step and minimum, its levels L fixed,
have their best values by least squares in the same measure; they are put on the file's grid by the format's `gather`
and kept by those rows whose error falls.
Cyclic coordinate descent after GPTQ: Behdin et al., QuantEase, arXiv:2309.01885.
Shape letters: K columns, r rows, g groups in a block, z columns of a group, c columns at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.quantize.ladder import Ladder
from edgeslm.quantize.vectors import Vectors, sweep_columns

LAZY_COLUMNS = 32  # the others learn of what these did by one matrix product


@dataclass
class State:
    """r rows on the way down, columns first: `index` [K, r] of levels, as the rungs count them, `pull` P^T [K, r]."""

    index: Tensor
    pull: Tensor
    scales: list[Scales]  # by block of columns, each [r, ...]


def start(
    weight: Tensor, rounded: Tensor, index: Tensor, scales: list[Scales], hessian: Tensor
) -> tuple[State, Tensor]:
    """weight, rounded [r, K]; index [K, r] -> the state and the error of every row [r]."""
    lost = (weight - rounded).T
    pull = hessian @ lost
    return State(index, pull, scales), (lost * pull).sum(0)


def take(state: State, other: State, rows: Tensor) -> None:
    """`state` becomes `other` in the rows [r] that are true."""
    state.index = torch.where(rows, other.index, state.index)
    state.pull = torch.where(rows, other.pull, state.pull)
    state.scales = [_chosen(rows, theirs, ours) for theirs, ours in zip(other.scales, state.scales, strict=True)]


def sweep_codes(state: State, hessian: Tensor, form: BlockFormat, rungs: Ladder | Vectors) -> None:
    """Every column once, in order."""
    assert form.spread is not None
    lazy = min(LAZY_COLUMNS, form.block)
    for block, scales in enumerate(state.scales):
        step = form.spread(scales)[0].T.contiguous()  # [g, r]; the minimum does not move and drops out
        inverse = torch.where(step == 0, torch.zeros_like(step), 1.0 / step)
        size = form.block // step.shape[0]
        first = block * form.block
        if isinstance(rungs, Vectors):
            sweep_columns(state.index, state.pull, first, hessian, step, inverse, lazy, rungs)
            continue
        for at in range(first, first + form.block, lazy):
            part = slice(at, at + lazy)
            near, pull = hessian[part, part], state.pull[part].clone()
            moved = torch.empty_like(pull)
            for j in range(lazy):
                group = (at + j - first) // size
                level = rungs.levels[state.index[at + j].long()]
                wanted = (pull[j] * inverse[group]).div_(near[j, j]).add_(level)
                chosen, better = rungs.nearest(wanted)
                state.index[at + j] = chosen
                torch.mul(better.sub_(level), step[group], out=moved[j])
                pull[j + 1 :].addr_(near[j, j + 1 :], moved[j], alpha=-1)
            state.pull.addmm_(hessian[:, part], moved, alpha=-1)


def sweep_scales(state: State, hessian: Tensor, form: BlockFormat, rungs: Ladder | Vectors) -> None:
    """Every group's step and minimum once, in order."""
    assert form.spread is not None and form.gather is not None
    for block, scales in enumerate(state.scales):
        groups = form.spread(scales)[0].shape[1]
        size = form.block // groups
        for group in range(groups):
            at = block * form.block + group * size
            part = slice(at, at + size)
            levels = rungs.levels_of(state.index[part])  # [z, r]
            state.scales[block] = _refit(state, part, group, levels, state.scales[block], hessian, form)


def _refit(
    state: State, part: slice, group: int, levels: Tensor, scales: Scales, hessian: Tensor, form: BlockFormat
) -> Scales:
    """The scales of a block with one group's step and minimum moved where that lowers a row's error; updates P."""
    assert form.spread is not None and form.gather is not None
    near = hessian[part, part]
    step, minimum = form.spread(scales)  # [r, g]
    moved_step, moved_minimum = _least_squares(levels, state.pull[part], near, minimum is not None)
    new_step = step.clone()
    new_step[:, group] += moved_step
    new_minimum = None
    if minimum is not None:
        new_minimum = minimum.clone()
        new_minimum[:, group] += moved_minimum
    trial = form.gather(new_step, new_minimum, scales)
    now, then = _values(levels, group, *form.spread(trial)), _values(levels, group, step, minimum)
    moved = now - then  # [z, r]
    change = (moved * (near @ moved - 2 * state.pull[part])).sum(0)  # of each row's error
    better = change < 0
    moved *= better
    state.pull.addmm_(hessian[:, part], moved, alpha=-1)
    return _chosen(better, trial, scales)


def _values(levels: Tensor, group: int, step: Tensor, minimum: Tensor | None) -> Tensor:
    found = levels * step[:, group]
    return found if minimum is None else found - minimum[:, group]


def _chosen(rows: Tensor, this: Scales, that: Scales) -> Scales:
    """Scales [r, ...] of `this` in the rows [r] that are true, of `that` in the others."""
    return {key: torch.where(rows.reshape(-1, *[1] * (old.dim() - 1)), this[key], old) for key, old in that.items()}


def _least_squares(levels: Tensor, pull: Tensor, near: Tensor, affine: bool) -> tuple[Tensor, Tensor]:
    """Moves of step and minimum [r] that lower the error most: the error changes by
    s^2 L H L - 2 s L P with Q moving by s L, and with the minimum by s L - m 1."""
    weighed = near @ levels  # [z, r]
    a, b = (levels * weighed).sum(0), (levels * pull).sum(0)
    if not affine:
        return torch.where(a > 0, b / a, torch.zeros_like(a)), torch.zeros_like(a)
    c, d = weighed.sum(0), pull.sum(0)  # L H 1, 1 P
    e = near.sum()
    # [a -c; -c e] [s m] = [b -d]
    det = a * e - c * c
    ok = det > 1e-6 * a * e
    s = torch.where(ok, (b * e - c * d) / det, torch.zeros_like(a))
    m = torch.where(ok, (b * c - a * d) / det, -d / e)
    return s, m
