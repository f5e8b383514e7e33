"""One process of one point: `python -m edgeslm.training_cost.worker JOB RESULT`, started alone or by torchrun. The
first rank writes the result; a rank that runs out of memory writes that instead and leaves, and the others are ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeslm.training_cost import of_recipe, of_shape
from edgeslm.training_cost.store import MEASURED, NO_MEMORY

KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "recipe": of_recipe.measure,
    "shape": of_shape.measure,
}
ALLOCATOR = ("can't allocate memory", "not enough memory")  # what torch says on a CPU, where the error has no class
NO_MEMORY_CODE = 17


def held(measure: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """The measurement, or that memory ran out; None for a rank that has nothing to tell. Other errors pass."""
    import torch

    try:
        found = measure()
    except torch.OutOfMemoryError as error:
        return {"state": NO_MEMORY, "why": str(error).split(". ")[0]}
    except MemoryError:
        return {"state": NO_MEMORY, "why": "the machine has no more memory to give"}
    except RuntimeError as error:
        if not any(words in str(error) for words in ALLOCATOR):
            raise
        return {"state": NO_MEMORY, "why": str(error).splitlines()[0][-200:]}
    return None if found is None else {"state": MEASURED, **found}


def join(backend: str) -> None:
    """Meets the other ranks over `backend`. edgeslm.parallel takes over what it finds joined."""
    import torch
    import torch.distributed as dist

    from edgeslm import parallel
    from edgeslm.parallel.ranks import PATIENCE

    if parallel.size() == 1:
        return
    if (own := int(os.environ["LOCAL_RANK"])) < torch.cuda.device_count():
        torch.cuda.set_device(own)
    name = "cpu:gloo,cuda:nccl" if backend == "nccl" else backend  # a few small tensors lie on the CPU always
    dist.init_process_group(name, timeout=PATIENCE)


def main(arguments: Sequence[str]) -> int:
    from edgeslm import parallel

    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    join(job["point"]["backend"])
    found = held(lambda: KINDS[job["kind"]](job))
    if found is None:
        parallel.leave()
        return 0
    result = Path(arguments[1])
    part = result.with_name(f"{result.name}.{os.getpid()}")
    part.write_text(json.dumps(found), encoding="utf-8")
    os.replace(part, result)
    if found["state"] == NO_MEMORY:
        return NO_MEMORY_CODE
    parallel.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
