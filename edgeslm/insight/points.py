"""Knowledge points, when they were learned, and how many were lost on the way (after arXiv:2003.03622).

A knowledge point is a token that a layer keeps clearly better than it keeps the window's background:

    mean of H over background tokens - H_i > margin

Measured at every kept point k = 0..M of a training (0: the student as built, M: as shipped):

- how many, and which share of them is content (the paper's foreground);
- walked_k = sum over j <= k of ||w_j - w_(j-1)|| / ||w_0||, and from it D_mean and D_std, mean and standard deviation
  over knowledge points of `walked` where each was first held: a small spread means learned at once, not one after
  another. The paper takes for each picture the point at which it has the most knowledge points; that figure is given
  too (`peak`), by window and layer, with the standard deviation where the paper gives the variance. A student
  built from its teacher's weights holds many points before it is trained: these were not learned here and are left
  out of D, not out of `peak`. A training that walks further has larger D, so D_std is also given as a share of its
  own whole way (not in the paper);
- rho: the share of all knowledge points ever held that the last point holds. A path without detours loses few. Noise in
  the entropies loses some too, so rho stands beside `again`: the share of the last point's knowledge points that are
  found again with other noise.

Points of a bfloat16 training are rounded to it where they were kept, the first and the last are not: ways much shorter
than a thousandth of the first norm would be rounding.

D, peak and rho are about content tokens, as the paper's are about the foreground. All of it depends on how many points
were kept, so trainings are compared at equal numbers of them.

Letters: P kept points, L layers, B windows, T tokens. `counted` [B, T] leaves out tokens that are judged by nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # numpy's


def held(entropies: Array, content: Array, counted: Array, margin: float) -> Array:
    """bool [..., B, T] from entropies [..., B, T]. Every window must have a background token that counts."""
    background = counted & ~content
    mean = (entropies * background).sum(-1) / background.sum(-1)
    return counted & (mean[..., None] - entropies > margin)


def walked(distances: Array, norm: float) -> Array:
    """[P] from the P - 1 distances between neighbouring points and the norm of the first."""
    return np.concatenate([[0.0], np.cumsum(distances) / norm])


def counts(points: Array, content: Array) -> dict[str, Array]:
    """{"content": [P, L], "background": [P, L]} from points [P, L, B, T]."""
    return {"content": (points & content).sum((-1, -2)), "background": (points & ~content).sum((-1, -2))}


def figures(points: Array, content: Array, path: Array) -> dict[str, float | int | None]:
    """Of points [P, L, B, T] along `path` [P] (see `walked`). None for what has no case."""
    of_content, last = points & content, points[-1]
    ever, at_end = of_content.any(0).sum(), of_content[-1].sum()
    learned = of_content.any(0) & ~of_content[0]
    first = path[of_content.argmax(0)][learned]  # argmax of bool: the first point that holds it
    peak = path[of_content.sum(-1).argmax(0)]  # [L, B]
    return {
        "points": int(last.sum()),
        "content": int(at_end),
        "content_share": _share(at_end, last.sum()),
        "at_start": int(of_content[0].sum()),
        "learned": int(learned.sum()),
        "d_mean": float(first.mean()) if first.size else None,
        "d_std": float(first.std()) if first.size else None,
        "d_std_of_way": float(first.std() / path[-1]) if first.size and path[-1] else None,
        "peak_mean": float(peak.mean()),
        "peak_std": float(peak.std()),
        "rho": _share(at_end, ever),
    }


def again(points: Array, other: Array, content: Array) -> float | None:
    """Which share of the content points [L, B, T] another measurement of the same student finds too."""
    return _share((points & other & content).sum(), (points & content).sum())


def _share(part: Array, whole: Array) -> float | None:
    return float(part / whole) if whole else None


def difference(left: Array, right: Array, content: Array, paths: tuple[Array, Array], name: str) -> tuple[float, float]:
    """(left's figure `name` less right's, standard error), window by window: both read the same text. Windows where one
    of them has no such figure are left out; (nan, nan) of fewer than two."""
    found = []
    for b in range(content.shape[0]):
        one = slice(b, b + 1)
        pair = [figures(p[:, :, one], content[one], path)[name] for p, path in zip((left, right), paths, strict=True)]
        if None not in pair:
            found.append(float(pair[0]) - float(pair[1]))  # type: ignore[arg-type]
    if len(found) < 2:
        return float("nan"), float("nan")
    return float(np.mean(found)), float(np.std(found, ddof=1) / len(found) ** 0.5)
