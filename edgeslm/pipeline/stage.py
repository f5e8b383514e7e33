"""What a stage is, and the context stages share.

A stage's folder is `<stage>-<hash>`; the hash covers its slice of the recipe, the hashes of the stages it reads, the
source text of those rooms of this package that decide its result, and the versions of the packages that compute it:
other code makes another folder, and nothing that older code made is taken for its result. What a stage reads brings
its own code along. `done.json` is written last and atomically: a folder with it is never touched again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeslm.artifact import file_sha256, write_whole
from edgeslm.errors import ModelError
from edgeslm.progress import Progress
from edgeslm.recipe import Recipe, expand

if TYPE_CHECKING:
    import torch

    from edgeslm.compute import Compute
    from edgeslm.models.load import Loaded
    from edgeslm.models.source import Source

PACKAGE = Path(__file__).parent.parent
# folders and files that decide what is trained: of every stage up to the frozen student
WEIGHTS: tuple[str, ...] = (
    "data", "formats", "knowledge", "models", "quantize", "schemes", "students", "teachers", "compute.py",
    "design/families.py",
    "parallel",
)  # fmt: skip
WEIGHTS += tuple(
    f"pipeline/{name}.py"
    for name in (
        "stage",
        "prepare",
        "heldout",
        "grid",
        "groups",
        "guides",
        "ranks",
        "processes",
        "planning",
        "rounding",
        "moments",
        "equalising",
        "record",
        "follow",
        "origin",
        "distill",
        "vocabulary",
        "sft",
        "sft_figures",
        "lora",
    )
)
SHARE = 0.9  # of a memory, that models and a step may take; the rest is the allocator's and the libraries'
RUN = "run:"  # a teacher that an earlier run shipped: run:NAME


@dataclass(frozen=True)
class Stage:
    """`slice` picks what of the recipe the stage depends on; `needs` are the stages whose folders it reads; `rooms` and
    `packages` are the code that decides its result, ours and others'."""

    name: str
    needs: tuple[str, ...]
    slice: Callable[[Context], Any]
    run: Callable[[Context, Path], None]
    rooms: tuple[str, ...] = WEIGHTS
    packages: tuple[str, ...] = ("torch", "transformers")
    resumes: bool = False  # goes on inside its folder when it was stopped; other stages start clean


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

    @cached_property
    def exact(self) -> Context:
        """Where models are held in float32, before and after training: here, or, where the card has no room for
        teacher and student so, on the CPU. Decided by the card's size, so that it is the same every time."""
        import torch

        from edgeslm import compute

        device = self.compute.device
        there = compute.memory_bytes(device) if device.type == "cuda" else None
        if there is None or self.exact_bytes <= SHARE * there:
            return self
        other = copy.copy(self)
        other.compute = replace(self.compute, device=torch.device("cpu"))
        return other

    @property
    def exact_bytes(self) -> float:
        """Of teacher and student in float32, the student being as large as its teacher at most."""
        from edgeslm.models.load import describe

        return 2.0 * 4 * describe(self.source).parameters

    @property
    def threads(self) -> int:
        return self.recipe.threads or available_cores()

    @cached_property
    def source(self) -> Source:
        """The recipe's first teacher."""
        part = self.recipe.teacher
        return self.resolve(part.model, part.sha256, part.tokenizer)

    def resolve(self, spec: str, sha256: str | None = None, tokenizer: str | None = None) -> Source:
        """A model that the recipe names, `run:NAME` included. Raises ModelError."""
        from edgeslm.models.source import resolve

        beside = self.base / tokenizer if tokenizer else None
        if spec.startswith(RUN):
            shipped = student_of(self.root.parent, spec.removeprefix(RUN))
            return replace(resolve(str(shipped), self.base, sha256, beside), spec=spec)
        return resolve(spec, self.base, sha256, beside)

    def load(self, source: Source, dtype: torch.dtype, whole: bool = False) -> Loaded:
        """A fresh copy in `dtype` on the run's device, with the attention the recipe names, and with the tokens that
        the recipe keeps, unless it is wanted `whole`."""
        from edgeslm.models.load import load

        loaded = load(source, dtype, self.compute.device)
        if self.kept is not None and not whole:
            from edgeslm.students.vocabulary import cut

            cut(loaded.model, self.kept)
        loaded.model.set_attn_implementation(self.recipe.distill.train.attention)
        return loaded

    def load_teacher(self, dtype: torch.dtype) -> Loaded:
        return self.load(self.source, dtype)

    @cached_property
    def whole_tokenizer(self) -> Any:
        """The teacher's own."""
        from edgeslm.models.tokenizer import load_tokenizer

        return load_tokenizer(self.source)

    @cached_property
    def kept(self) -> list[int] | None:
        """The ids of the teacher's vocabulary that the recipe keeps; None for all."""
        from edgeslm.pipeline.vocabulary import kept_ids

        return kept_ids(self)

    @cached_property
    def token_counts(self) -> Any:
        """How often the text that the recipe names uses each id of the teacher's vocabulary."""
        from edgeslm.pipeline.vocabulary import counted

        return counted(self)

    @cached_property
    def tokenizer(self) -> Any:
        """What the recipe's models read text with."""
        from edgeslm.models.subset import subset

        return self.whole_tokenizer if self.kept is None else subset(self.whole_tokenizer, self.kept)


def student_of(runs: Path, name: str) -> Path:
    """What the run `name` shipped as GGUF, or `NAME@1`: the folder of a point that its training kept. Raises ModelError
    when there is none yet."""
    name, at, point = name.partition("@")
    root, stage = runs / name, "distill" if at else "export"
    try:
        folder = root / read_json(root / "run.json")["stages"][stage]
        shipped = folder / "route" / point if at else folder / "student.gguf"
    except (OSError, json.JSONDecodeError, KeyError):
        shipped = None
    if shipped is None or not (folder / "done.json").exists() or not shipped.exists():
        what = f"no kept point {point} (distill.train.keep)" if at else "no exported student.gguf"
        raise ModelError(
            f"{RUN}{name}{at}{point}: {root} holds {what}; run the recipe of that name first, with the same --runs"
        )
    return shipped.resolve()


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
    code = code_digest(PACKAGE, stage.rooms), [version_of(name) for name in stage.packages]
    return digest(stage.name, stage.slice(context), read, code)


def place(stage: Stage, context: Context) -> Path:
    return context.root / f"{stage.name}-{stage_hash(stage, context)}"


@cache
def code_digest(package: Path, rooms: tuple[str, ...]) -> str:
    """sha256 over the sources of some folders and files of the package, read once a process."""
    folders = [package.glob(f"{room}/**/*.py") for room in rooms if not room.endswith(".py")]
    found = {package / room for room in rooms if room.endswith(".py")}.union(*folders)
    lines = [f"{file.relative_to(package).as_posix()} {file_sha256(file)}" for file in sorted(found)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def version_of(package: str) -> str | None:
    """Of an installed package, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_json(path: Path, data: Any) -> None:
    """Whole or not at all."""
    write_whole(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
