"""How the student was made, on what machine, and how to make it again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from edgeslm.report import charts, students, tuning
from edgeslm.report.blocks import (
    ABSENT,
    Block,
    Chart,
    Code,
    Note,
    Section,
    Table,
    facts,
    missing,
    percent,
    plain_key,
    plain_value,
)
from edgeslm.report.folder import STAGES, Run
from edgeslm.units import byte_count, count, number, seconds


def making(run: Run) -> Section:
    blocks: list[Block] = [
        _influence(run),
        *students.cutting(run),
        *_importance_facts(run),
        *tuning.tuned(run),
        _curve(run),
        *_training(run),
        *_stages(run),
    ]
    return Section("making", "How it was made", blocks)


def _finite(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _influence(run: Run) -> Chart | Note:
    scores = run.importance.get("scores")
    if not isinstance(scores, list) or not scores:
        return missing("Influence of each layer", run.why_not("student"))
    if any(_finite(s) is None for s in scores):
        return missing("Influence of each layer", "importance.json holds scores that are no numbers")
    dropped = set(run.importance.get("dropped") or [])
    if str(run.importance.get("method")).endswith("_of_runs"):  # scores are of runs, by their first layer
        dropped = {min(dropped, default=-1)}
    fate = ["dropped" if i in dropped else "kept" for i in range(len(scores))]
    drawn = charts.columns(
        "influence", "Influence of each layer",
        [(str(i), s, fate[i], f"layer {i}: {s:.4g}, {fate[i]}") for i, s in enumerate(scores)], "layer", "influence",
    )  # fmt: skip
    rows = tuple((str(i), f"{s:.4g}", fate[i]) for i, s in enumerate(scores))
    table = Table("Influence of each layer", ("Layer", "Score", "Fate"), rows, frozenset({0, 1}))
    hint = str(run.importance.get("method", "")).replace("_", " ")
    return Chart("Influence of each layer", drawn, table, (("kept", "kept"), ("dropped", "dropped")), hint)


def _importance_facts(run: Run) -> list[Block]:
    i = run.importance
    rows = _rows(i, [
        ("Text that layers were judged on", "tokens", lambda v: f"{count(v)} tokens"),
        ("Parameters before", "parameters_before", count),
        ("Parameters after", "parameters_after", count),
        ("Loss before cutting", "loss_before", lambda v: f"{v:.4g} nats/token"),
        ("Loss after cutting, before training", "loss_after", lambda v: f"{v:.4g} nats/token"),
        ("KL after cutting, before training", "kl_after", lambda v: f"{v:.4g} nats/token"),
    ])  # fmt: skip
    return [Table("Cutting", ("Fact", "Value"), rows, frozenset({1}), half=True)] if rows else []


def _rows(data: dict[str, Any], wanted: list[tuple[str, str, Callable[[float], str]]]) -> tuple[tuple[str, str], ...]:
    found = [(label, _finite(data.get(key)), show) for label, key, show in wanted]
    return tuple((label, show(v)) for label, v, show in found if v is not None)


def _curve(run: Run) -> Chart | Note:
    if not run.steps:
        return missing("Training curve", run.why_not("distill"))
    points = [(float(s["step"]), float(s["loss"])) for s in run.steps]
    started = next((float(s["step"]) for s in run.steps if s.get("grid")), None)
    held = [(_step_at(run, h["tokens"]), h["kl"], f"held-out KL {h['kl']:.4g} after {count(h['tokens'])} tokens")
            for h in _held_out(run) if "kl" in h]  # fmt: skip
    drawn = charts.curve("training", "Training curve", points, held, started, "step", "nats per token")
    last = max(1, len(points) // 10)
    rows = [
        ("First loss", f"{points[0][1]:.4g}"),
        (f"Mean loss of the last {last} steps", f"{sum(y for _, y in points[-last:]) / last:.4g}"),
        ("Grid on from step", f"{started:.0f}" if started is not None else "never"),
    ]
    rows += [(f"Held-out KL after {count(h['tokens'])} tokens", f"{h['kl']:.4g}") for h in _held_out(run) if "kl" in h]
    legend = [("curve", "loss, mean in its min-max band")]
    legend += [("held", "held-out KL")] if held else []
    legend += [("bound", "weights on the grid from here")] if started is not None else []
    table = Table("Training curve", ("Fact", "nats per token"), tuple(rows), frozenset({1}))
    return Chart("Training curve", drawn, table, tuple(legend), "lower is better")


def _held_out(run: Run) -> list[dict[str, float]]:
    """Points with a token count; figures that are no numbers are left out of a point."""
    given = run.training.get("heldout")
    rows = [r for r in given if isinstance(r, dict)] if isinstance(given, list) else []
    clean = [{k: v for k in ("tokens", "kl", "top1") if (v := _finite(r.get(k))) is not None} for r in rows]
    return [r for r in clean if "tokens" in r]


def _step_at(run: Run, tokens: float) -> float:
    """The first step at which `tokens` had been seen (the log counts them); the last one when it never says."""
    reached = (float(s["step"]) for s in run.steps if (_finite(s.get("tokens")) or -1) >= tokens)
    return next(reached, float(run.steps[-1]["step"])) if tokens > 0 else float(run.steps[0]["step"])


def _training(run: Run) -> list[Block]:
    t = run.training
    if not t:
        return [missing("Training cost", run.why_not("distill"))]
    rows = _rows(t, [
        ("Steps", "steps", lambda v: f"{v:,.0f}"),
        ("Tokens", "tokens", count),
        ("Time", "seconds", seconds),
        ("Speed", "tokens_per_s", lambda v: number(v, "tokens/s")),
        ("Bound of this machine", "bound_tokens_per_s", lambda v: f"{number(v, 'tokens/s')} (modelled)"),
        ("Share of the bound", "share_of_bound", percent),
        ("Peak memory", "peak_memory_bytes", byte_count),
    ])  # fmt: skip
    rows = (*rows, *_processes(t.get("processes")))
    forwards = t.get("kl_by_forward")
    for dtype, kl in forwards.items() if isinstance(forwards, dict) else ():
        if (value := _finite(kl)) is not None:
            rows = (*rows, (f"Held-out KL, computed in {dtype}", f"{value:.4g}"))
    blocks: list[Block] = [Table("Training cost", ("Fact", "Value"), rows, frozenset({1}), half=True)] if rows else []
    held = tuple(
        (count(h["tokens"]), f"{h['kl']:.4g}" if "kl" in h else ABSENT, percent(h["top1"]) if "top1" in h else ABSENT)
        for h in _held_out(run)
    )
    if held:
        columns = ("Tokens seen", "KL, nats per token", "Top-1 agreement")
        blocks.append(Table("On held-out text while training", columns, held, frozenset({0, 1, 2}), half=True))
        return [*blocks, *_judged_on(run)]
    return [*blocks, missing("Held-out points", "the training summary holds none")]


def _processes(told: Any) -> list[tuple[str, str]]:
    """Of a training on several; what each took."""
    if not isinstance(told, dict):
        return []
    how = told.get("parallel")
    kind = f", {how.get('kind')}" if isinstance(how, dict) and isinstance(how.get("kind"), str) else ""
    ranks = _finite(told.get("ranks"))
    found = [] if ranks is None else [("Processes", f"{ranks:g}{kind}")]
    for label, key in (
        ("Peak memory of each process", "peak_memory_bytes"),
        ("Weights, masters and moments on each", "held_bytes"),
    ):
        sizes = told.get(key)
        each = [_finite(size) for size in sizes] if isinstance(sizes, list) else []
        if each:
            found.append((label, ", ".join(ABSENT if size is None else byte_count(size) for size in each)))
    return found


def _judged_on(run: Run) -> list[Block]:
    """The text of the held-out points, and a warning where shipped files were judged on another."""
    then, now = run.training.get("judged"), run.judged
    if not isinstance(then, dict) or not then.get("digest"):
        return []
    said = f"While training, the student was judged on {_text(then)}."
    if now.get("digest") and now["digest"] != then["digest"]:
        said += f" The shipped files were judged on other text, {_text(now)}: those figures do not go on from these."
    return [Note(said)]


def _text(judged: dict[str, Any]) -> str:
    files = judged.get("files")
    names = ", ".join(map(str, files)) if isinstance(files, list) else "files that are not named"
    return f"{judged.get('windows', '?')} windows of {judged.get('context', '?')} tokens of {names}"


def _stages(run: Run) -> list[Block]:
    spent, resumed = run.facts.get("seconds"), run.facts.get("resumed")
    spent, resumed = (x if isinstance(x, dict) else {} for x in (spent, resumed))
    rows = []
    for stage in STAGES:
        if stage in run.folders:
            time = _finite(spent.get(stage))
            state = "not finished" if stage in run.unfinished else "continued" if resumed.get(stage) else "in one go"
            rows.append((stage, run.folders[stage], seconds(time) if time is not None else ABSENT, state))
    if not rows:
        return [missing("Stages", "the run folder has no stage in it")]
    return [Table("Stages", ("Stage", "Folder", "Time", "State"), tuple(rows), frozenset({2}), half=True)]


def machine(run: Run) -> Section:
    """Each device that gave a figure, and every version that had a part in it."""
    blocks: list[Block] = []
    devices = {str(m.where.device.get("id")): m.where.device for m in (*run.speed, *run.quality)}
    for device in devices.values():
        rows = tuple((plain_key(k), plain_value(k, v)) for k, v in device.items() if v is not None)
        name = str(device.get("name") or device.get("cpu") or "the device")
        blocks.append(Table(f"Machine: {name}" if len(devices) > 1 else "Machine", ("Fact", "Value"), rows, half=True))
    if not devices:
        blocks.append(missing("Machine", run.why_not("benchmark")))
    versions = [(k, str(run.facts[k])) for k in ("edgeslm", "torch") if run.facts.get(k)]
    runtimes = {(m.where.runtime, m.where.runtime_version) for m in (*run.speed, *run.quality)}
    versions += sorted((name, version) for name, version in runtimes if name and name != "-")
    if versions:
        blocks.append(Table("Versions", ("What", "Version"), tuple(dict.fromkeys(versions)), half=True))
    jobs = dict.fromkeys(
        (m.metric.replace("_", " "), m.where.runtime, facts(m.where.job)) for m in run.speed if facts(m.where.job)
    )
    if jobs:
        blocks.append(Table("Jobs", ("Figure", "Runtime", "Job"), tuple(jobs)))
    return Section("machine", "The machine and its software", blocks)


def recipe(run: Run) -> Section:
    blocks: list[Block] = []
    if run.recipe:
        same = run.facts.get("recipe_hash")
        blocks.append(Note(f"Recipe hash {same}." if same else "The recipe's hash is not recorded."))
        blocks.append(Code("yaml", run.recipe))
        blocks.append(Note("Save the recipe above as recipe.yaml and run:"))
        blocks.append(Code("sh", "edgeslm run recipe.yaml"))
        blocks.append(Note("On a CPU with the same versions and thread count this gives the same weights bit for bit; "
                           "times differ with the machine. A run that stops goes on where it was."))  # fmt: skip
    else:
        blocks.append(missing("Recipe", "recipe.yaml is missing from the run folder"))
    return Section("recipe", "The recipe", blocks)
