"""What a stage is, and the context stages share.

A stage's folder is `<stage>-<hash>`; the hash covers its slice of the recipe, the hashes of the stages it reads, and
the versions of edgeslm and torch. `done.json` is written last and atomically: a folder with it is never touched again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeslm import __version__
from edgeslm.artifact import file_sha256
from edgeslm.progress import Progress
from edgeslm.recipe import Recipe, expand

if TYPE_CHECKING:
    import torch

    from edgeslm.compute import Compute
    from edgeslm.models.load import Loaded
    from edgeslm.models.source import Source


@dataclass(frozen=True)
class Stage:
    """`slice` picks what of the recipe the stage depends on; `needs` are the stages whose folders it reads."""

    name: str
    needs: tuple[str, ...]
    slice: Callable[[Context], Any]
    run: Callable[[Context, Path], None]


@dataclass
class Context:
    """One run of one recipe. `folders` maps finished stages to their folders."""

    recipe: Recipe
    base: Path  # the recipe's folder: relative paths start here
    root: Path  # runs/<name>
    progress: Progress
    folders: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def compute(self) -> Compute:
        from edgeslm import compute

        compute.keep_freed_memory()
        return compute.resolve(self.recipe.device, self.recipe.distill.train.precision, self.recipe.threads)

    @property
    def threads(self) -> int:
        return self.recipe.threads or available_cores()

    @cached_property
    def source(self) -> Source:
        from edgeslm.models.source import resolve

        part = self.recipe.teacher
        tokenizer = self.base / part.tokenizer if part.tokenizer else None
        return resolve(part.model, self.base, part.sha256, tokenizer)

    def load_teacher(self, dtype: torch.dtype) -> Loaded:
        """A fresh copy in `dtype` on the run's device, with the attention the recipe names."""
        from edgeslm.models.load import load

        loaded = load(self.source, dtype, self.compute.device)
        loaded.model.set_attn_implementation(self.recipe.distill.train.attention)
        return loaded

    @cached_property
    def tokenizer(self) -> Any:
        from edgeslm.models.tokenizer import load_tokenizer

        return load_tokenizer(self.source)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def files(patterns: Any, base: Path) -> list[tuple[str, str]]:
    """(name, sha256) of the files that patterns name: a stage that reads them depends on their content."""
    return [(path.name, file_sha256(path)) for path in expand(patterns, base)]


def computing(context: Context) -> list[Any]:
    """What decides the last bits of everything torch computes here."""
    chosen = context.compute
    return [str(chosen.device), str(chosen.dtype), chosen.threads, context.recipe.distill.train.attention]


def stage_hash(stage: Stage, context: Context) -> str:
    read = [context.folders[name].name for name in stage.needs]
    return digest(stage.name, stage.slice(context), read, __version__, version("torch"))


def write_json(path: Path, data: Any) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
