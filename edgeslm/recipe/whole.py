"""A recipe: frozen data that says everything a run needs. Loading it never imports torch.

Every key is known or refused with the nearest known name; problems of the whole file are told at once. Paths are
relative to the recipe's folder; `package:` means the text that ships with edgeslm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_serializer, model_validator

from edgeslm.errors import RecipeError
from edgeslm.recipe import text
from edgeslm.recipe.distill import DistillPart
from edgeslm.recipe.encoder import EncoderRecipe
from edgeslm.recipe.parts import (
    BenchmarkPart,
    DataPart,
    EvaluatePart,
    ExportPart,
    Part,
    Positive,
    QuantizePart,
    TeacherPart,
)
from edgeslm.recipe.sft import SftPart
from edgeslm.recipe.student import Student

ASSETS = Path(__file__).parent.parent / "assets"


class Recipe(Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Positive | None = None  # None: all cores this process may use
    teacher: TeacherPart = TeacherPart()
    data: DataPart
    student: Student
    sft: SftPart | None = None
    quantize: QuantizePart = QuantizePart()
    distill: DistillPart
    export: ExportPart = ExportPart()
    evaluate: EvaluatePart
    benchmark: BenchmarkPart | None = BenchmarkPart()

    @model_serializer(mode="wrap")
    def _as_it_was(self, plain: Any) -> dict[str, Any]:
        """Recipes from before there was a supervised stage keep their hash."""
        return {key: value for key, value in plain(self).items() if (key, value) != ("sft", None)}

    @model_validator(mode="after")
    def _answers_to_learn_from(self) -> Recipe:
        spoken = any(source.kind != "text" for source in self.data.sources)
        if any(getattr(term, "learn", "all") == "answers" for term in self.distill.objective) and not spoken:
            raise ValueError("distill.objective: learn: answers needs a chat or written source under data.sources")
        if self.sft is None:
            return self
        if self.sft.sources is None and not spoken:
            raise ValueError("sft: data.sources holds no dialogues; give sft.sources of kind chat or written")
        if self.sft.batch_tokens % self.data.sequence:
            raise ValueError(
                f"sft.batch_tokens ({self.sft.batch_tokens}) is no multiple of data.sequence ({self.data.sequence})"
            )
        if self.sft.lora is not None and self.sft.lora.dropout and self.distill.train.recompute:
            raise ValueError(
                "sft.lora.dropout: layers that run again in the backward pass (distill.train.recompute) would drop "
                "other inputs; set one of the two to 0 or false"
            )
        return self

    @model_validator(mode="after")
    def _learned_from_the_start(self) -> Recipe:
        if self.quantize.trains_scales and self.quantize.start:
            raise ValueError(
                "quantize.start: scales that are trained need weights on the grid from the first step; use start: 0"
            )
        if self.quantize.feeds_back and self.quantize.start:
            raise ValueError(
                f"quantize.start: {self.quantize.rounding} rounding is made before the first step; use start: 0"
            )
        part = self.quantize
        unread = part.feeds_back and part.target is None and not part.fits_again
        if unread and part.importance is not None and part.importance.file is not None:
            raise ValueError(
                f"quantize.importance.file: nothing would read it, {part.rounding} rounding measures inputs whole; "
                "give importance: {tokens: ...} or use rounding: nearest"
            )
        return self

    @model_validator(mode="after")
    def _channels_to_equalise(self) -> Recipe:
        part, student = self.quantize, self.student
        if part.equalise and student.kind == "scratch" and student.init.kind != "teacher":
            raise ValueError("quantize.equalise: weights drawn at random have no channels that matter more; say false")
        if part.equalise and part.importance is not None and part.importance.file is not None:
            raise ValueError(
                "quantize.importance.file: was measured before equalise moves scales of channels; give importance: "
                "{tokens: ...}, or say equalise: false"
            )
        terms = [(term.loss, term.model_extra or {}) for term in self.distill.objective]
        terms += [(getattr(self.distill.scheme, "loss", ""), getattr(self.distill.scheme, "model_extra", None) or {})]
        if part.equalise and any(n == "minilm" and "value" in more.get("relations", ("value",)) for n, more in terms):
            raise ValueError(
                "quantize.equalise: gives values other scales than the teacher's, which 'minilm' compares; give that "
                "loss relations: [query, key], or say equalise: false"
            )
        return self

    @model_validator(mode="after")
    def _some_steps_on_the_grid(self) -> Recipe:
        start, steps = self.quantize.start, self.distill.train.steps
        if 0 < start < 1 and steps and round(start * steps) == steps:
            raise ValueError(
                f"quantize.start ({start}) leaves none of the {steps} steps on the grid; lower it, or write 1 for a "
                "student that is trained in float and rounded at the end"
            )
        return self

    @model_validator(mode="after")
    def _rows_fill_steps(self) -> Recipe:
        if self.distill.train.batch_tokens % self.data.sequence:
            raise ValueError(
                f"distill.train.batch_tokens ({self.distill.train.batch_tokens}) is no multiple of data.sequence "
                f"({self.data.sequence})"
            )
        return self

    @model_validator(mode="after")
    def _a_phase_for_its_data(self) -> Recipe:
        if self.data.decay_shares is None:
            return self
        train = self.distill.train
        if train.schedule != "wsd" or not self.decay_steps:
            raise ValueError("data.sources: decay_share is for the decay phase of schedule: wsd; give it steps (decay)")
        if self.distill.scheme.kind == "codistill":
            raise ValueError("data.sources: decay_share is not for codistillation, whose groups read shards")
        return self

    @property
    def decay_steps(self) -> int:
        return round(self.distill.train.decay * self.distill.train.steps)

    @property
    def batch_rows(self) -> int:
        return self.distill.train.batch_tokens // self.data.sequence

    @property
    def tokens(self) -> int:
        """Tokens seen in training: a fixed number."""
        return self.distill.train.steps * self.distill.train.batch_tokens

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def training_yaml(self) -> str:
        """The parts that decide the weights; what is exported, judged and timed is left out."""
        return yaml.safe_dump(self._training(), sort_keys=False, allow_unicode=True)

    @property
    def training_hash(self) -> str:
        return hashlib.sha256(json.dumps(self._training(), sort_keys=True).encode()).hexdigest()[:16]

    def _training(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"export", "evaluate", "benchmark", "threads"})

    @property
    def hash(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


FAMILIES = {"causal": Recipe, "encoder": EncoderRecipe}


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `dotted.key=value` overrides (YAML values). Raises RecipeError with all problems."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError([f"{path}: no such recipe; recipes/ holds examples"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: cannot be read as UTF-8 text ({error})"]) from error
    except yaml.YAMLError as error:
        raise RecipeError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(data, dict):
        raise RecipeError([f"{path}: a recipe is a mapping of keys such as name, teacher, data, student, distill"])
    data.setdefault("name", path.stem)
    for override in overrides:
        text.override(data, override)
    family: Any = FAMILIES.get(data.get("family", "causal"))
    if family is None:
        raise RecipeError([f"{path.name}: unknown family '{data['family']}'; leave it out, or write encoder"])
    try:
        return family.model_validate(data)
    except ValidationError as error:
        raise RecipeError([text.sentence(e, path, family) for e in error.errors()]) from None


def expand(patterns: Sequence[str], base: Path) -> list[Path]:
    """Files that the patterns name, sorted; `package:` patterns look into the text that ships with edgeslm.
    Raises RecipeError for a pattern that matches nothing."""
    found: list[Path] = []
    for pattern in patterns:
        root, glob = (ASSETS, pattern.removeprefix("package:")) if pattern.startswith("package:") else (base, pattern)
        glob_root = Path(glob).anchor
        matches = sorted(Path(glob_root).glob(str(Path(glob).relative_to(glob_root))) if glob_root else root.glob(glob))
        if not matches:
            raise RecipeError([f"no file matches '{pattern}' (looked in {glob_root or root})"])
        found += matches
    return found
