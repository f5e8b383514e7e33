"""What the records of `benchmarks.students` say: tables for people, a headline for machines."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks import record

Row = dict[str, Any]
CUT = "cut:"  # how arms begin that differ in what was cut
BEST = ("influence", "influence_run", "loss", "greedy")  # choices by importance


def headline(records: list[Row]) -> Row:
    return {**saving(records), **importance(records), **vocabulary(records)}


def runs_with(records: list[Row], arm: str = "scratch") -> list[tuple[Row, list[Row]]]:
    """(plan, finished trainings) of the token curves that have a student from scratch, or another `arm` (its name, or
    how that begins)."""
    found = []
    for plan in (r for r in records if r["kind"] == "plan"):
        done = [r for r in records if r["kind"] == "training" and r["run"] == plan["run"] and "failed" not in r]
        if any(r["arm"].startswith(arm) and r["purpose"] == "figure" for r in done):
            found.append((plan, done))
    return found


def of_last_run(records: list[Row], arm: str = "scratch") -> tuple[Row | None, list[Row]]:
    return next(reversed(runs_with(records, arm)), (None, []))


def saving(records: list[Row]) -> Row:
    """Of the last token curve."""
    plan, done = of_last_run(records)
    return {} if plan is None else saved_tokens(done)


def saved_tokens(done: list[Row]) -> Row:
    """N of the student from scratch over the tokens with which the pruned one has its held-out loss: between two
    budgets by a straight line in the logarithm of tokens; a bound where the smallest budget is already enough."""
    (scratch,) = [r for r in done if r["arm"] == "scratch" and r["purpose"] == "figure"][-1:]
    arm = sorted((r for r in done if r["arm"] == "pruned" and r["purpose"] == "figure"), key=lambda r: r["tokens"])
    points = [(r["tokens"], r["loss"]) for r in arm]
    needed = tokens_to(points, scratch["loss"])
    found: Row = {
        "token_saving": None if needed is None else scratch["tokens"] / needed,
        "token_saving_is_bound": bool(points) and points[0][1] <= scratch["loss"],
        "scratch": {k: scratch[k] for k in ("tokens", "loss", "kl", "lr", "parameters")},
        "pruned": [{k: r[k] for k in ("tokens", "loss", "kl", "lr", "parameters")} for r in arm],
    }
    return found


def tokens_to(points: list[tuple[int, float]], loss: float) -> float | None:
    """Tokens at which a curve of (tokens, loss) comes down to `loss`; None where it does not."""
    before: tuple[int, float] | None = None
    for tokens, value in points:
        if value <= loss:
            if before is None or before[1] <= value:
                return tokens
            share = (before[1] - loss) / (before[1] - value)
            return math.exp(math.log(before[0]) + share * (math.log(tokens) - math.log(before[0])))
        before = (tokens, value)
    return None


def importance(records: list[Row]) -> Row:
    """KL of layers chosen by importance over KL of layers at even distances: before training, and trained on as many
    tokens; means over seeds, with the largest spread of either."""
    found: Row = {}
    for base, rows in choices(records).items():
        best = [name for name in BEST if name in rows]
        if not best or "even" not in rows:
            continue
        name = min(best, key=lambda n: mean(rows[n], "kl"))
        told = {"choice": name, "after": mean(rows[name], "kl") / mean(rows["even"], "kl")}
        told["before"] = mean_before(rows[name]) / mean_before(rows["even"])
        told["spread"] = max(spread(rows[n], "kl") for n in (name, "even")) / mean(rows["even"], "kl")
        if "first" in rows:
            told["after_over_first"] = mean(rows[name], "kl") / mean(rows["first"], "kl")
        found[base] = told
    return {"importance_over_even": found} if found else {}


def choices(records: list[Row]) -> dict[str, dict[str, list[Row]]]:
    """{base: {choice: its rows, one a seed}} of the most tokens that all of a base's choices have."""
    found: dict[str, dict[str, list[Row]]] = {}
    _, done = of_last_run(records, CUT)
    for r in done:
        if r["arm"].startswith(CUT):
            found.setdefault("curve", {}).setdefault(r["arm"].removeprefix(CUT), []).append(r)
    for base in dict.fromkeys(r["base"] for r in records if r["kind"] == "row"):
        rows = [r for r in records if r["kind"] == "row" and r["base"] == base]
        most = max((r["tokens"] for r in rows if r["row"] == "even"), default=0)
        latest = {(r["row"], r["seed"]): r for r in rows if r["tokens"] == most}
        for (name, _), r in latest.items():
            found.setdefault(base, {}).setdefault(name, []).append(r)
    return found


def mean(rows: list[Row], key: str) -> float:
    return statistics.fmean(r[key] for r in rows)


def mean_before(rows: list[Row]) -> float:
    return statistics.fmean(r["before"]["kl"] for r in rows)


def spread(rows: list[Row], key: str) -> float:
    return max(r[key] for r in rows) - min(r[key] for r in rows)


def vocabulary(records: list[Row]) -> Row:
    """Of the teacher in fewer tokens, the row with the fewest bits per byte after the most training."""
    rows = [r for r in records if r["kind"] == "row" and r["row"].startswith("vocabulary") and r["vocabulary"]]
    rows = [r for r in rows if r["base"] == "smollm2"] or rows
    most = max((r["tokens"] for r in rows), default=0)
    rows = [r for r in rows if r["tokens"] == most]
    if not rows:
        return {}
    best = min(rows, key=bits)
    told = best["vocabulary"]
    spelled = best["bits"] or told["student"]
    return {
        "vocabulary_removed": 1 - told["kept"] / told["of"],
        "vocabulary_bits_per_byte_ratio": bits(best) / told["whole_teacher"]["bits_per_byte"],
        "vocabulary_bits_per_byte_over_whole_trained": over_control(records, best),
        "vocabulary_tokens_per_byte_ratio": spelled["tokens_per_byte"] / told["whole_teacher"]["tokens_per_byte"],
        "vocabulary_trained_tokens": best["tokens"],
    }


def over_control(records: list[Row], best: Row) -> float | None:
    """Bits per byte over those of the whole teacher trained on the same by the same; None where that is missing."""
    alike = ("base", "tokens", "lr", "seed", "text", "text_share", "batch_tokens")
    whole = [r for r in records if r["kind"] == "row" and r["row"] == "whole" and r["bits"]]
    whole = [r for r in whole if all(r.get(key) == best.get(key) for key in alike)]
    return bits(best) / bits(whole[-1]) if whole and best["bits"] else None


def bits(row: Row) -> float:
    return float((row["bits"] or row["vocabulary"]["student"])["bits_per_byte"])


def show(records: list[Row]) -> Row:
    for line in lines(records):
        print(line)
    drift = next((r["mup_lr_drift"] for r in reversed(record.read("mup"))), None)  # benchmarks.mup measures it
    return {"token_saving": None, "importance_over_even": None, "vocabulary_removed": None,
            "vocabulary_bits_per_byte_ratio": None, **headline(records), "mup_lr_drift": drift}  # fmt: skip


def readme(records: list[Row]) -> str:
    """Markdown: the rows, and in words what fewer tokens cost."""
    v = vocabulary(records)
    return "\n".join(rows_table(records)) + (
        f"\n\nRows of 0 tokens are before any training. With {v['vocabulary_removed']:.0%} of SmolLM2's vocabulary "
        f"removed and {v['vocabulary_trained_tokens']:,} tokens trained, held-out text is "
        f"{v['vocabulary_tokens_per_byte_ratio'] - 1:.1%} longer in tokens and takes "
        f"{more(v['vocabulary_bits_per_byte_ratio'])} bits a byte than of the teacher as it is, and "
        f"{more(v['vocabulary_bits_per_byte_over_whole_trained'])} than of the whole one trained alike."
    )


def more(ratio: float) -> str:
    return f"{abs(ratio - 1):.1%} {'more' if ratio >= 1 else 'fewer'}"


def lines(records: list[Row]) -> list[str]:
    return [*rows_table(records), *choices_table(records), *curve_table(records), saved(records)]


def rows_table(records: list[Row]) -> list[str]:
    latest = {(r["base"], r["row"], r["tokens"], r["seed"]): r for r in records if r["kind"] == "row"}
    if not latest:
        return []
    made = ["| teacher | cut | parameters | tokens trained | KL, nats/token | perplexity | bits/byte | tasks |"]
    made.append("|---|---|---|---|---|---|---|---|")
    for r in sorted(latest.values(), key=lambda r: (r["base"], r["tokens"])):
        spelled = f"{bits(r):.4f}" if r["vocabulary"] or r["bits"] else "–"
        tasks = ", ".join(f"{name} {t['student']:.2f}/{t['teacher']:.2f}" for name, t in r["tasks"].items()) or "–"
        size = f"{r['parameters'] / 1e6:.1f} M"
        made.append(
            f"| {r['base']} | `{r['row']}` | {size} | {r['tokens']:,} | {r['kl']:.4f} | {r['perplexity']:.2f} | "
            f"{spelled} | {tasks} |"
        )
    return made


def curve_table(records: list[Row]) -> list[str]:
    made = []
    for _, done in runs_with(records):
        figures = [r for r in done if r["purpose"] == "figure" and not r["arm"].startswith(CUT)]
        for r in sorted(figures, key=lambda r: (r["arm"], r["tokens"])):
            made.append(
                f"| `{r['arm']}` | {r['parameters'] / 1e6:.1f} M | {r['tokens']:,} | {r['lr']:g} | {r['loss']:.4f} | "
                f"{r['before']['kl']:.4f} | {r['kl']:.4f} |"
            )
    head = [
        "",
        "| student | parameters | tokens | lr | loss | KL, before training | KL |",
        "|---|---|---|---|---|---|---|",
    ]
    return [*head, *made] if made else []


def saved(records: list[Row]) -> str:
    """In words, what each token curve says."""
    return "\n".join(f"- {in_words(plan, done)}" for plan, done in runs_with(records))


def in_words(plan: Row, done: list[Row]) -> str:
    found = saved_tokens(done)
    scratch, longest = found["scratch"], found["pruned"][-1]
    shape = ", ".join(f"{value} {key}" for key, value in plan["shape"].items())
    needed = found["token_saving"]
    reached = (
        f"is at {longest['loss']:.4f} after {longest['tokens'] / 1e6:.1f} M: "
        f"{scratch['tokens'] / longest['tokens']:.0f} times fewer are not enough"
        if needed is None
        else f"has that loss after {scratch['tokens'] / needed / 1e6:.1f} M: **{needed:.0f} times fewer**"
    )
    edge = ", the least tried" if longest["lr"] == min(plan["lrs"]) else ""
    return (
        f"{scratch['parameters'] / 1e6:.1f} M parameters ({shape}): {scratch['tokens'] / 1e6:.0f} M tokens, "
        f"{scratch['tokens'] / scratch['parameters']:.0f} a parameter, end at {scratch['loss']:.4f} nats from scratch; "
        f"cut from its teacher and taught by it, the student {reached}. Rates {scratch['lr']:g} and {longest['lr']:g}"
        f"{edge}, each the best of {len(plan['lrs'])}; {plan['judged_tokens']:,} held-out tokens."
    )


def choices_table(records: list[Row]) -> list[str]:
    """Students of one size by what was cut, trained alike."""
    rows = choices(records).get("curve")
    if not rows:
        return []
    some = next(iter(rows.values()))
    made = [
        f"| cut, {some[0]['tokens']:,} tokens, lr {some[0]['lr']:g} | parameters | KL before training | KL, by seed "
        "| mean |"
    ]
    made.append("|---|---|---|---|---|")
    for name, seeds in sorted(rows.items(), key=lambda item: mean(item[1], "kl")):
        each = ", ".join(f"{r['kl']:.4f}" for r in sorted(seeds, key=lambda r: r["seed"]))
        size = f"{seeds[0]['parameters'] / 1e6:.2f} M"
        made.append(f"| `{name}` | {size} | {mean_before(seeds):.4f} | {each} | {mean(seeds, 'kl'):.4f} |")
    return made


def curves(records: list[Row]) -> str:
    """Markdown of the token curves: choices of what to cut, then tokens saved."""
    return "\n".join([*choices_table(records), *curve_table(records), "", saved(records)])
