"""What the trainings of `benchmarks.codistillation` say together, and its table."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.codistillation_plan import ENSEMBLES, Design, Results, chosen
from benchmarks.codistillation_worker import Bench, Setup

LOOKS = 3  # that a loss is the mean of: it does not fall smoothly at a constant learning rate
Curve = list[tuple[int, float]]  # (step, nats a token on the text to report)


def curves(done: Results, training: str) -> Curve:
    """Mean over the copies of a training."""
    copies = [r["curve"] for name, r in done.items() if name.rsplit("/", 1)[0] == training]
    return [(row[0][0], statistics.fmean(r[3] for r in row)) for row in zip(*copies, strict=True)]


def final(curve: Curve) -> float:
    return statistics.fmean(loss for _, loss in curve[-LOOKS:])


def steps_to(curve: Curve, loss: float) -> float | None:
    """The step from which the running mean is at `loss` or below, between looks on a straight line; None for never."""
    smooth = [
        (curve[i][0], statistics.fmean(y for _, y in curve[max(0, i - LOOKS + 1) : i + 1])) for i in range(len(curve))
    ]
    before: tuple[float, float] | None = None
    for step, value in smooth:
        if value <= loss:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - loss) / max(before[1] - value, 1e-12)
        before = (step, value)
    return None


def arms(design: Design, done: Results) -> dict[str, dict[str, Any]]:
    """{arm: loss at the end and steps to the single model's, by seed}."""
    names = chosen(design, done)
    lines = {arm: [curves(done, t) for t in trainings] for arm, trainings in names.items()}
    if "single" not in lines:
        return {}
    baseline = statistics.fmean(final(c) for c in lines["single"])
    found = {}
    for arm, each in lines.items():
        reached = [steps_to(c, baseline) for c in each]
        some = [s / design.steps for s in reached if s is not None]
        ages = [r["ages"] for n, r in done.items() if n.rsplit("/", 1)[0] in names[arm] and r.get("ages")]
        found[arm] = {
            "lr": float(names[arm][0].rsplit("-lr", 1)[1]),
            "loss": [final(c) for c in each],
            "steps_to_baseline": [None if s is None else s / design.steps for s in reached],
            # a run that never gets there would need more than all steps: 1 stands for it, a lower bound
            "mean_steps_to_baseline": statistics.fmean(some + [1.0] * (len(reached) - len(some))),
            **({"oldest_peer": max(a["most"] for a in ages)} if ages else {}),
        }
    return found


def predictors(design: Design, done: Results) -> dict[str, list[tuple[str, ...]]]:
    """{arm: for each retraining the jobs whose mean is what would be shipped}: the first copy, or a whole ensemble."""
    names = chosen(design, done)
    found: dict[str, list[tuple[str, ...]]] = {
        arm: [(f"{t}/0",) for t in names[arm][: design.seeds]] for arm in names if len(names[arm]) > 1
    }
    lr = names["single"][0].rsplit("-lr", 1)[1]
    pairs: list[tuple[str, ...]] = [tuple(f"single-s{s}-lr{lr}/0" for s in pair) for pair in ENSEMBLES[: design.seeds]]
    if whole := [pair for pair in pairs if all(name in done for name in pair)]:
        found["ensemble"] = whole
    return found


def summary(setup: Setup, design: Design, done: Results, run: str) -> dict[str, Any]:
    """The record's last line."""
    found = arms(design, done)
    if not found:
        return {"kind": "summary", "run": run, "arms": {}, "missing": "the single model: the time was too short"}
    bench, churn = Bench(setup), {}
    for arm, each in predictors(design, done).items():
        models = [[bench.finished(name) for name in jobs] for jobs in each]
        if arm == "ensemble":
            found[arm] = {"loss": [bench.losses(m)[1] for m in models]}
        rows = [bench.churn(a, b) for a, b in itertools.combinations(models, 2)]
        if rows:
            churn[arm] = {k: statistics.fmean(r[k] for r in rows) for k in rows[0]} | {"pairs": len(rows)}
    return {"kind": "summary", "run": run, "arms": found, "churn": churn, **headline(found, churn)}


def headline(found: dict[str, Any], churn: dict[str, Any]) -> dict[str, float | None]:
    def steps(arm: str) -> float | None:
        return found[arm]["mean_steps_to_baseline"] if arm in found else None

    def ratio(one: float | None, other: float | None) -> float | None:
        return one / other if one is not None and other else None

    disagreement = {arm: row["mean_absolute_delta_p"] for arm, row in churn.items()}
    return {
        "steps_to_baseline": ratio(steps("disjoint"), steps("single")),
        "churn_ratio": ratio(disagreement.get("disjoint"), disagreement.get("single")),
        "ensemble_churn_ratio": ratio(disagreement.get("ensemble"), disagreement.get("single")),
        "disjoint_over_same": ratio(steps("disjoint"), steps("same")),
        "double_steps_to_baseline": ratio(steps("double"), steps("single")),
    }


def lines(plan: dict[str, Any], last: dict[str, Any]) -> list[str]:
    design = plan["design"]
    shape, text = plan["model"], plan["text"]
    out = [
        f"{design['steps']} steps of {plan['batch_tokens']:,} tokens, width {shape['hidden_size']}, "
        f"{shape['num_hidden_layers']} layers, vocabulary {text['vocabulary']}; {text['judged_tokens']:,} held-out "
        f"tokens; exchange every {design['exchange_every']} steps; {plan.get('accelerator', plan['device'])}",
        "",
        f"{'arm':16} {'lr':>8} {'loss, nats/token, by seed':34} {'steps to the single':>20} {'|dp|':>8} {'top-1':>7}",
    ]
    for arm, row in last["arms"].items():
        losses = ", ".join(f"{x:.4f}" for x in row["loss"])
        steps = f"{row['mean_steps_to_baseline']:.2f}" if "mean_steps_to_baseline" in row else "-"
        apart = last["churn"].get(arm)
        churn = f"{apart['mean_absolute_delta_p']:8.4f} {100 * apart['top1_changes']:6.1f}%" if apart else ""
        out.append(f"{arm:16} {row.get('lr', '-'):>8} {losses:34} {steps:>20} {churn}")
    return out


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown, of the last finished run."""
    last = next(r for r in reversed(records) if r["kind"] == "summary" and r["arms"])
    plan = next(r for r in records if r["kind"] == "plan" and r["run"] == last["run"])
    out = [
        "| arm | held-out loss, nats/token, by seed | share of the steps to the single model's loss | churn: mean "
        "absolute Δp | top-1 changes |",
        "|---|---|---|---|---|",
    ]
    for arm, row in last["arms"].items():
        each = row.get("steps_to_baseline", [])
        steps = f"{row['mean_steps_to_baseline']:.2f}" if each else "–"
        if each and None in each:
            steps = f"not reached by {each.count(None)} of {len(each)}"
        apart = last["churn"].get(arm)
        churn = (f"{apart['mean_absolute_delta_p']:.4f}", f"{apart['top1_changes']:.1%}") if apart else ("–", "–")
        out.append("| " + " | ".join([arm, ", ".join(f"{x:.4f}" for x in row["loss"]), steps, *churn]) + " |")
    design, lrs = plan["design"], ", ".join(f"{x:g}" for x in plan["design"]["lrs"])
    return (
        "\n".join(out) + f"\n\n{lines(plan, last)[0]}. Learning rate of each arm the best of {lrs}, constant; "
        f"churn over retrainings with another seed. Churn of codistilled copies ÷ single models "
        f"{last['churn_ratio']:.2f} (ensembles {last['ensemble_churn_ratio']:.2f}); "
        f"{design['seeds']} seeds of arms, {design['singles'] if 'singles' in design else 2 * design['seeds']} of "
        "single models; staleness and burn-in one seed each."
    )


def show(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table of the last finished run, on the standard output; its headline."""
    last = next((r for r in reversed(records) if r["kind"] == "summary" and r["arms"]), None)
    if last is None:
        raise SystemExit("no run has finished its single models yet: give it more --budget-s, or fewer --steps")
    plan = next(r for r in records if r["kind"] == "plan" and r["run"] == last["run"])
    print("\n".join(lines(plan, last)))
    return {key: last.get(key) for key in headline({}, {})}
