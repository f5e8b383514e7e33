"""The best scale of a grid with very few levels: all candidates at the price of one.

A scale d gives every weight its nearest level q; for those levels the best scale is sum(u w q) / sum(u q q), and the
squared error falls by the *gain* sum(u w q)^2 / sum(u q q) (u: importance). As d falls from infinity to 0 a weight x
changes its level at very few places. Each such *event* adds to both sums, so a histogram of events over d and its
running sum give the gain of every candidate at once, 8 to the octave; two rounds of rounding and least squares then
settle the best of them. Shape letters: n blocks, k weights, e events.
"""

from __future__ import annotations

import torch
from torch import Tensor

FINE = 3  # mantissa bits of a candidate: 8 to the octave
CANDIDATES = 9 << FINE  # from 2 max |w| down to a 256th of max |w|
TOP = 0x40000000 >> (23 - FINE)  # the bits of 2.0, of which 23 are mantissa
ROUNDS = 2


def usable(w: Tensor, importance: Tensor | None) -> Tensor:
    """Importance [n, k]; 1 where none is given and in blocks where all of it is 0, which still need a scale."""
    if importance is None:
        return torch.ones_like(w)
    return torch.where(importance.amax(1, keepdim=True) > 0, importance, 1.0)


def inverse(step: Tensor) -> Tensor:
    """1/step, and 0 where the step is 0. Never infinite: that of the smallest steps is cut to the largest float32."""
    most = torch.finfo(torch.float32).max
    return torch.where(step == 0, 0.0, (1.0 / step).clamp_(-most, most))


def binary_scale(w: Tensor, importance: Tensor | None) -> Tensor:
    """[n, 1] for levels -1, 1: the weighted mean magnitude, which no scale betters."""
    u = usable(w, importance)
    return (u * w.abs()).sum(1, keepdim=True) / u.sum(1, keepdim=True)


def ternary_scale(w: Tensor, importance: Tensor | None) -> Tensor:
    """[n, 1] for levels -1, 0, 1: x leaves 0 when d falls below 2 |x|."""
    x, u, most = _relative(w, importance)
    size = x.abs()
    return _settle(x, u, _best([(2 * size, u * size, u)])[0], 1) * most


def lopsided_scale(w: Tensor, importance: Tensor | None) -> Tensor:
    """[n, 1] for levels -1, 0, 1, 2, of either sign: a positive x also goes from 1 to 2 when d falls below x / 1.5."""
    x, u, most = _relative(w, importance)
    size = x.abs()
    out_of_zero = (2 * size, u * size, u)
    above, below = x.clamp(min=0), (-x).clamp_(min=0)
    up, up_gain = _best([out_of_zero, (above / 1.5, u * above, torch.where(x > 0, 3 * u, 0.0))])
    down, down_gain = _best([out_of_zero, (below / 1.5, u * below, torch.where(x < 0, 3 * u, 0.0))])
    return _settle(x, u, torch.where(up_gain >= down_gain, up, -down), 2) * most


def _relative(w: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(w / max |w|, importance, max |w|)"""
    most = w.abs().amax(1, keepdim=True)
    return w * inverse(most), usable(w, importance), most


def _best(events: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Events (at [n, k], product, square): at scale `at` <= 2 they add to sum(u w q) and sum(u q q).

    Returns the scale of largest gain and that gain, both [n, 1].
    """
    shape = (events[0][0].shape[0], CANDIDATES)
    products, squares = events[0][0].new_zeros(shape), events[0][0].new_zeros(shape)
    for at, product, square in events:
        # a float's exponent and first mantissa bits count candidates from 0 upwards
        bits = at.view(torch.int32) >> (23 - FINE)
        place = bits.neg_().add_(TOP).clamp_(0, CANDIDATES - 1).to(torch.int64)
        products.scatter_add_(1, place, product)
        squares.scatter_add_(1, place, square)
    products, squares = products.cumsum_(1), squares.cumsum_(1)
    d = torch.where(squares > 0, products / squares, 0.0)
    gain, best = products.mul_(d).max(dim=1, keepdim=True)
    return d.gather(1, best), gain


def _settle(x: Tensor, u: Tensor, d: Tensor, highest: int) -> Tensor:
    """Rounds to levels -1 .. highest and least squares by turns; neither can make the error larger."""
    for _ in range(ROUNDS):
        q = torch.mul(x, inverse(d)).round_().clamp_(-1, highest)
        weighted = u * q
        square = (weighted * q).sum(1, keepdim=True)
        d = torch.where(square > 0, (weighted * x).sum(1, keepdim=True) / square, d)
    return d
