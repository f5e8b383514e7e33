"""torch with transformers' own modules: the reference. Folders as `save_pretrained` writes them."""

from __future__ import annotations

from edgeslm.runtimes.base import Runtime

RUNTIME = Runtime(
    name="torch",
    title="torch",
    formats=("torch",),
    worker="torch_worker.py",
    packages=("torch", "transformers"),
    defaults={"dtype": "float32"},
)
