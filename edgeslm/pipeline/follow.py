"""Following a student while it is trained, and summing up afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm import cost
from edgeslm.pipeline.stage import Context, read_json, write_json

ITSELF = 1e-4  # nats: less is rounding


def forward_kls(
    context: Context, student: Any, judge: Any, frozen: Any, windows: Any, base: Any = None
) -> dict[str, float]:
    """{type: KL to the teacher of what was frozen, both computed in it}, for the type of training and float32: what
    rounding in compute hides. Leaves the student where float32 has room."""
    import torch

    from edgeslm.compute import uncompiled
    from edgeslm.schemes.measure import closeness

    found = {}
    for dtype in dict.fromkeys((context.compute.dtype, torch.float32)):
        here = placed(context, student, frozen, dtype)
        teacher = judge if dtype == context.compute.dtype else here.load_teacher(dtype).model
        beside = None if base is None else base.to(here.compute.device)
        with uncompiled():
            told = closeness(student, teacher, windows.to(here.compute.device), beside)
        found[str(dtype).removeprefix("torch.")] = told.kl
    return found


def placed(context: Context, student: Any, frozen: Any, dtype: Any) -> Context:
    """Puts what was frozen into the student, in `dtype`, and both where such models have room; the context of there."""
    here = context if dtype == context.compute.dtype else context.exact
    for name, parameter in student.named_parameters():
        parameter.data = frozen.tensors[name].decode().to(here.compute.device, dtype)
    student.to(here.compute.device)  # buffers too
    return here


def worse_than_start(points: list[dict[str, float]]) -> str:
    """A sentence where training took the student further from its teacher than it was; empty where it did not, and of
    one that began as its teacher, which all that it learns takes away from it."""
    if len(points) < 2 or points[-1]["kl"] <= points[0]["kl"] or points[0]["kl"] < ITSELF:
        return ""
    return (
        f"training made the student worse: held-out KL to the teacher was {points[0]['kl']:.4f} before it and is "
        f"{points[-1]['kl']:.4f} now; lower distill.train.lr (ten times is a fair first try) or train on other text"
    )


class Points:
    """Closeness on the text to judge by, a few times a run; kept across a restart, but not across another text."""

    def __init__(
        self, context: Context, student: Any, judge: Any, folder: Path, base: Any = None, *, writes: bool = True
    ):
        """`base`: the earlier student whose logits are added to this one's. `writes`: of processes that judge a student
        together, one keeps what they found."""
        from edgeslm.pipeline.heldout import heldout_ids, judged

        self.context, self.student, self.judge, self.base, self.writes = context, student, judge, base, writes
        self.path = folder / "heldout.json"
        self.judged = judged(context)
        kept: dict[str, Any] = read_json(self.path) if self.path.exists() else {"judged": {}}
        same = kept["judged"].get("digest") == self.judged["digest"]
        self.points: list[dict[str, float]] = kept["points"] if same else []
        self.windows = heldout_ids(context)

    def __call__(self, done: int) -> None:
        from edgeslm.compute import uncompiled
        from edgeslm.schemes.measure import closeness

        tokens = done * self.context.recipe.distill.train.batch_tokens
        with uncompiled():
            found = closeness(self.student, self.judge, self.windows, self.base)
        if not self.writes:
            return
        point = {"tokens": tokens, "kl": found.kl, "top1": found.top1, "loss": found.loss, "judged": found.tokens}
        self.points = [p for p in self.points if p["tokens"] < tokens] + [point]
        write_json(self.path, {"judged": self.judged, "points": self.points})
        self.context.progress.say(
            f"  distil: after {tokens:,} tokens KL to the teacher {found.kl:.4f} nats a token, "
            f"top-1 agreement {100 * found.top1:.1f} % ({found.tokens:,} held-out tokens)"
        )


def summary(
    context: Context,
    folder: Path,
    config: Any,
    teacher: bool,
    points: Points,
    forwards: dict[str, float],
) -> None:
    """Speed comes from the log, so that it is right after a restart; the bound from one matrix product now."""
    import json
    import statistics

    from edgeslm import compute

    recipe = context.recipe
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["tokens_per_s"] for line in lines]
    rate = statistics.median(rates) if rates else None
    teacher_config = read_json(context.folders["teacher"] / "teacher.json")["config"] if teacher else None
    flops = compute.matmul_flops(context.compute)
    bound = cost.training_bound(config, recipe.data.sequence, flops, teacher_config)
    write_json(
        folder / "summary.json",
        {
            "steps": recipe.distill.train.steps,
            "tokens": recipe.tokens,
            "seconds": sum(line["seconds"] for line in lines),  # of all steps, whatever process made them
            "tokens_per_s": rate,
            "bound_tokens_per_s": bound,
            "share_of_bound": None if rate is None else rate / bound,
            "matmul_flops_per_s": flops,
            "peak_memory_bytes": compute.peak_memory_bytes(context.compute),  # of the process that ended the training
            "dtype": str(context.compute.dtype).removeprefix("torch."),
            "device": str(context.compute.device),
            "threads": context.compute.threads,
            "heldout": points.points,
            "judged": points.judged,
            "kl_by_forward": forwards,  # the same frozen integers, computed in either type
        },
    )
