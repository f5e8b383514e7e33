"""Scale search shared by the symmetric grids: try candidates, keep the one of least squared error per block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def grid_steps(offset: int) -> list[float]:
    """Factors on the absmax scale. Below 1 the largest weight is clipped and the rest is finer; a negative
    factor gives the longer side of the grid (-offset .. offset-1) to the other sign."""
    shrink = [1.0, 0.95, 0.9, 0.85, 0.8] if offset == 8 else [1.0, 0.97, 0.94]
    return shrink + [-f * offset / (offset - 1) for f in shrink]


def to_float16(d: Tensor) -> Tensor:
    return d.clamp(-65504.0, 65504.0).to(torch.float16)


def best_of(
    w: Tensor,
    candidates: list[Tensor],
    offset: int,
    importance: Tensor | None = None,
    store: Callable[[Tensor], Tensor] = to_float16,
) -> Tensor:
    """w [n, k], candidate scales [n, 1] each -> the best after one least-squares refinement, float16 [n, 1].

    `store` puts a scale on the grid the file keeps; errors are judged after it, so what is chosen is what ships.
    """
    best = store(candidates[0])
    best_error = _error(w, best.float(), offset, importance)
    for d in candidates[1:]:
        best, best_error = _better(w, store(d), best, best_error, offset, importance)
    refined = store(_refine(w, best.float(), offset, importance))
    return _better(w, refined, best, best_error, offset, importance)[0]


def _better(
    w: Tensor, trial: Tensor, best: Tensor, best_error: Tensor, offset: int, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    error = _error(w, trial.float(), offset, importance)
    better = error < best_error
    return torch.where(better, trial, best), torch.where(better, error, best_error)


def _codes(w: Tensor, d: Tensor, offset: int) -> Tensor:
    """Signed codes as float32."""
    inverse = torch.where(d == 0, torch.zeros_like(d), 1.0 / d)
    return torch.round(w * inverse).clamp_(-offset, offset - 1)


def _refine(w: Tensor, d: Tensor, offset: int, importance: Tensor | None) -> Tensor:
    """Least-squares scale for the codes that `d` gives: sum(u w q) / sum(u q q)."""
    q = _codes(w, d, offset)
    weighted = q if importance is None else q * importance
    norm = (weighted * q).sum(1, keepdim=True)
    return torch.where(norm == 0, d, (weighted * w).sum(1, keepdim=True) / norm)


def _error(w: Tensor, d: Tensor, offset: int, importance: Tensor | None) -> Tensor:
    square = (w - _codes(w, d, offset) * d).square_()
    return (square if importance is None else square * importance).sum(1, keepdim=True)
