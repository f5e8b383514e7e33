"""A group on two ranks that asks a server: `served_ranks_worker.py FOLDER HOST PORT`; its weights go to
FOLDER/weights.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from ranks_worker import shared
from test_codistill import step, train
from test_codistill_sharing import served

from edgeslm import parallel


def main(folder: Path, host: str, port: int) -> None:
    torch.set_num_threads(1)
    ranks = parallel.join()
    one = shared(step(0), "ddp", ranks, torch.float32)
    train((0,), folder, folder.parent / "x", served(k=9), [one], servers=[(host, port)] * 2, ranks=ranks)
    left = {m.name: m.value.detach().tolist() for m in one.masters.items}
    same = ranks.gathered(sum(float(m.value.double().sum()) for m in one.masters.items))
    if ranks.first:
        (folder / "weights.json").write_text(json.dumps({"weights": left, "same": len(set(same)) == 1}))
    ranks.wait()
    parallel.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
