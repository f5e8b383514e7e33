"""The `distill` part of a recipe: schemes, targets, objective and training. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from edgeslm.recipe.codistill import CodistillScheme
from edgeslm.recipe.parts import Beta, Fraction, Part, Positive, Sampling


class OfflineScheme(Part):
    """The teacher is trained beforehand and does not change (survey, section 4.1)."""

    kind: Literal["offline"] = "offline"


class OnlineScheme(Part):
    """`peers` students that teach each other (DML, arXiv:1706.00384); the first is shipped. `learn_from`: the mean of
    the others, the `ensemble` of all (ONE, arXiv:1806.04606), or the `leader`, the peer of least loss of late.
    `outer_share`: the recipe's teacher's part of the mean; at 0 it does not teach."""

    kind: Literal["online"]
    peers: Annotated[int, Field(ge=2)] = 2
    learn_from: Literal["mean", "ensemble", "leader"] = "mean"
    outer_share: Fraction = 0.0


class SelfScheme(Part):
    """The student is its own teacher: the `moving_average` of its weights (`decay` a step), a `snapshot` of them taken
    `every` so many steps (arXiv:1812.00123), or its last layer teaching exits after the layers `exits` (`deep`,
    arXiv:1905.08094; the recipe's teacher, where the objective needs one, teaches the last layer)."""

    kind: Literal["self"]
    teacher: Literal["moving_average", "snapshot", "deep"] = "moving_average"
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.98
    every: Positive = 16
    exits: tuple[Positive, ...] = ()

    @model_validator(mode="after")
    def _exits_for_deep(self) -> SelfScheme:
        if (self.teacher == "deep") != bool(self.exits):
            raise ValueError("exits: name the layers that get an exit for teacher: deep, and leave it out otherwise")
        for key, teacher in (("decay", "moving_average"), ("every", "snapshot")):
            if self.teacher != teacher and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: is for teacher: {teacher}; leave it out")
        return self


class RouteScheme(Part):
    """Teachers one after another for equal shares of the steps, the recipe's own last: `anchors` are models such as
    `run:NAME@1`, kept points of one training (RCO, arXiv:1904.09149)."""

    kind: Literal["route"]
    anchors: Annotated[tuple[str, ...], Field(min_length=1)]


class BlockwiseScheme(Part):
    """For the first `share` of the steps runs of layers learn one after another what the teacher holds at their end,
    by `loss`; then all learn the objective (after arXiv:1812.01839)."""

    kind: Literal["blockwise"]
    blocks: Annotated[int, Field(ge=2)] = 3
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    loss: str = "hidden"


class ResidualScheme(Part):
    """The student learns what an earlier one, `base`, still gets wrong: their logits are added (arXiv:2002.09168,
    2006.04719). It is of use only together with that earlier student."""

    kind: Literal["residual"]
    base: str


Scheme = Annotated[
    OfflineScheme | OnlineScheme | SelfScheme | RouteScheme | BlockwiseScheme | ResidualScheme | CodistillScheme,
    Field(discriminator="kind"),
]


class LiveTargets(Part):
    """The teacher runs beside the student."""

    kind: Literal["live"] = "live"


class TopKTargets(Part):
    """The teacher's `k` likeliest outcomes of every prediction and one bucket for the rest, recorded before training
    at `temperature`. `folder`: recorded elsewhere, for the same rows."""

    kind: Literal["topk"]
    k: Positive = 24
    temperature: Annotated[float, Field(gt=0)] = 1.0
    folder: str | None = None


class SampledTargets(Part):
    """An unbiased sample (sparse logit sampling, arXiv:2503.16870): the `keep` likeliest outcomes as they are, and
    `samples` draws that stand for all others. With keep: 0 all is drawn."""

    kind: Literal["sampled"]
    keep: Annotated[int, Field(ge=0)] = 16
    samples: Positive = 16
    temperature: Annotated[float, Field(gt=0)] = 1.0
    folder: str | None = None


Targets = Annotated[LiveTargets | TopKTargets | SampledTargets, Field(discriminator="kind")]


class OnPolicyPart(Part):
    """A `share` of the batches keeps `prompt` tokens of each row; the student writes on and the teacher grades (GKD,
    arXiv:2306.13649). `teacher_share`: the teacher's part in what each token is drawn from (MiniLLM, arXiv:2306.08543).
    `contrast` > 0: an adversary writes instead, the teacher against the student, p_teacher (p_teacher / p_student) **
    contrast: text that the teacher finds likely and the student does not yet. `candidates`: so many texts a row, of
    which the one is used on which student and teacher (in the online scheme the peers) differ most."""

    share: Fraction
    prompt: Positive = 32
    teacher_share: Fraction = 0.0
    contrast: Annotated[float, Field(ge=0)] = 0.0
    candidates: Positive = 1
    sampling: Sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0)

    @model_validator(mode="after")
    def _one_author(self) -> OnPolicyPart:
        if self.contrast and self.teacher_share:
            raise ValueError("contrast and teacher_share exclude each other; set one of them to 0")
        return self


class LossTerm(BaseModel):
    """`loss` names an entry of edgeslm.knowledge.LOSSES. `layers`, for losses on features: a map by name (uniform,
    last, middle, embedding, all, groups) or pairs [[student's, teacher's], ...], where several of the teacher's layers
    may be listed for one. `teacher`: whose features, where there are several. All other keys are the function's keyword
    arguments."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    loss: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    layers: str | tuple[tuple[int, int | tuple[int, ...]], ...] | None = None
    teacher: Annotated[int, Field(ge=0)] = 0


class TextTerm(LossTerm):
    """`learn: answers`: from what the assistant says in dialogues alone, its end of turn included (edgeslm.data.
    answers), for losses on the output. By default from all tokens: what a teacher says of a prompt teaches as well."""

    learn: Literal["all", "answers"] = "all"

    @model_serializer(mode="wrap")
    def _as_it_was(self, plain: Any) -> dict[str, Any]:
        """Recipes from before there was a choice keep their hash."""
        return {key: value for key, value in plain(self).items() if (key, value) != ("learn", "all")}


class MupPart(Part):
    """Learning rates of muP (edgeslm.students.mup) for a student that started so: `lr` is that of `base_width`. A
    student from scratch with init: {kind: mup} brings its own; this is for one that is trained on."""

    base_width: Positive


class DdpParallel(Part):
    """Every process holds the whole student and learns from its share of each step's rows: PyTorch's
    DistributedDataParallel, which sends gradients, as float32 sums, while the backward pass runs."""

    kind: Literal["ddp"] = "ddp"


class Fsdp2Parallel(Part):
    """Every process holds its rows of every tensor of the student: PyTorch's fully_shard. Weights, float32 masters,
    gradients and moments take 1/n of the memory each; a layer's weights are gathered while it runs. To begin with every
    process builds the whole student, and at the end the first one freezes it. Processes need one file system.
    `teacher`: whole on every process, or `sharded` too, once it is loaded."""

    kind: Literal["fsdp2"]
    teacher: Literal["replicated", "sharded"] = "replicated"


class TrainPart(Part):
    """`loss_lr`: peak learning rate of weights that belong to losses. `keep`: at so many equally spaced points before
    the end the student is kept, as `run:NAME@1` and so on, for recipes that follow this training's route. `parallel`:
    how the processes that torchrun starts share the work; one process alone has nothing to share."""

    steps: Annotated[int, Field(ge=0)]  # 0: the student as built
    batch_tokens: Positive = 2048
    micro_rows: Positive = 8
    lr: Annotated[float, Field(gt=0)] = 3e-4
    loss_lr: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup: Fraction = 0.05
    decay: Fraction = 0.4
    clip: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    precision: Literal["auto", "bf16", "f32"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"
    recompute: bool = False  # layers keep their inputs only and run again in the backward pass: less memory, more time
    offload: bool = False  # masters, moments and gradients in main memory instead of the card's: less of it, more time
    compile: bool = False  # fuses each layer's small operations; pays off after a few dozen steps
    checkpoint_every: Positive = 20
    keep: Annotated[int, Field(ge=0)] = 0
    mup: MupPart | None = None
    parallel: Annotated[DdpParallel | Fsdp2Parallel, Field(discriminator="kind")] = DdpParallel()

    @model_validator(mode="after")
    def _one_way_to_run_layers(self) -> TrainPart:
        if self.compile and self.recompute:
            raise ValueError("recompute: compiled layers are not run again; set compile or recompute to false")
        return self

    @model_validator(mode="after")
    def _decay_of_its_schedule(self) -> TrainPart:
        if self.schedule == "cosine" and self.decay != type(self).model_fields["decay"].default:
            raise ValueError("decay: is the last phase of schedule: wsd; a cosine falls all the way, leave decay out")
        return self

    @model_validator(mode="after")
    def _points_before_the_end(self) -> TrainPart:
        if 0 < self.steps <= self.keep:
            raise ValueError(f"keep: {self.keep} points do not fit before the end of {self.steps} steps; keep fewer")
        return self


class DistillPart(Part):
    scheme: Scheme = OfflineScheme()
    targets: Targets = LiveTargets()
    on_policy: OnPolicyPart | None = None
    objective: Annotated[tuple[TextTerm, ...], Field(min_length=1)] = (TextTerm(loss="forward_kl"),)
    train: TrainPart

    @model_validator(mode="after")
    def _fit_together(self) -> DistillPart:
        recorded, scheme = self.targets.kind != "live", self.scheme.kind
        if recorded and scheme != "offline":
            raise ValueError(f"targets: recorded targets teach in the offline scheme, not in '{scheme}'")
        if self.train.offload and scheme != "offline":
            raise ValueError(f"train.offload: is for the offline scheme, not for '{scheme}'; set it to false")
        if recorded and self.on_policy:
            raise ValueError(
                "on_policy: text that the student writes has no recorded targets; use targets: {kind: live}"
            )
        if self.on_policy and scheme not in ("offline", "online"):
            raise ValueError(f"on_policy: students write in the offline and online schemes, not in '{scheme}'")
        return self
