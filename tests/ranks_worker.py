"""Run by torchrun from test_ranks: some schemes on a tiny model; the first rank writes what each leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_scheme_kinds import CASES, STEPS, loop, make, run

from edgeslm import parallel


def one(name: str, folder: Path, ranks: parallel.Ranks) -> dict[str, torch.Tensor]:
    """Masters after a whole training; on a grid from the third step on."""
    kind, steps, guide, part, more = make(name, folder, "q4_0")
    for step in steps:
        object.__setattr__(step.settings, "ranks", ranks)
    run(kind, steps, guide, loop(folder, grid_start=2, ranks=ranks, **more), part)
    return {f"{i}|{m.name}": m.value.detach().clone() for i, s in enumerate(steps) for m in s.masters.items}


def main() -> None:
    torch.set_num_threads(1)
    out, names = Path(sys.argv[1]), sys.argv[2:]
    ranks = parallel.join()
    assert set(names) <= set(CASES) and STEPS > 4
    for name in names:
        found = one(name, out / name.replace(" ", "-"), ranks)
        same = ranks.gathered(sum(float(v.double().sum()) for v in found.values()))
        assert len(set(same)) == 1, f"{name}: ranks hold different weights: {same}"
        if ranks.first:
            save_file(found, out / f"{name.replace(' ', '-')}.safetensors")
        ranks.wait()
    parallel.leave()


if __name__ == "__main__":
    main()
