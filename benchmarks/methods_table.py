"""What the records of `benchmarks.methods` say: a table for people, a headline for machines."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import methods_rows as rows
from benchmarks import record

Row = dict[str, Any]
BASE_LR = 0.0005  # the best of 0.0005, 0.001 and 0.002 for forward_kl (by KL) and for text (by loss)
FAMILY = {"response": "output", "layers": "layers, beside forward_kl", "scheme": "scheme or data"}


def by_rate(records: list[Row]) -> dict[str, dict[float, dict[int, Row]]]:
    """{method: {learning rate: {seed: its last row}}}"""
    found: dict[str, dict[float, dict[int, Row]]] = {}
    for r in records:
        if r["kind"] == "row":
            found.setdefault(r["method"], {}).setdefault(r["lr"], {})[r["seed"]] = r
    return {name: found[name] for name in rows.NAMES if name in found}


def latest(records: list[Row]) -> dict[str, dict[int, Row]]:
    """{method: {seed: row}} at the base recipe's learning rate."""
    return {name: rates[BASE_LR] for name, rates in by_rate(records).items() if BASE_LR in rates}


def spread(by_seed: dict[int, Row], key: str) -> float:
    """Largest minus smallest over seeds."""
    values = [r[key] for r in by_seed.values()]
    return max(values) - min(values)


def mean(by_seed: dict[int, Row], key: str) -> float:
    return statistics.fmean(r[key] for r in by_seed.values())


def headline(records: list[Row]) -> Row:
    """Ratios of means over seeds; `best` is the method of three seeds or more with the least held-out KL."""
    found = latest(records)
    repeated = {n: r for n, r in found.items() if len(r) >= 3 and n not in ("text", "forward_kl", *rows.BEFORE)}
    plain, text = found.get("forward_kl", {}), found.get("text", {})
    head: Row = {"rows": len([n for n in found if n not in rows.BEFORE]), **rival()}
    if plain and text:
        head["forward_kl_over_text"] = {
            key: {"ratio": mean(plain, key) / mean(text, key), "spread": [spread(plain, key), spread(text, key)]}
            for key in ("kl", "loss")
        }
    if plain and repeated:
        best = min(repeated, key=lambda n: mean(repeated[n], "kl"))
        head["best"] = best
        head["best_over_forward_kl"] = {
            key: {
                "ratio": mean(repeated[best], key) / mean(plain, key),
                "spread": [spread(repeated[best], key), spread(plain, key)],
            }
            for key in ("kl", "loss")
        }
    return head


def rival() -> Row:
    """Speed and memory beside TRL's GKD trainer, from the record of its own benchmark."""
    from benchmarks import gkd_trainer

    records = record.read(gkd_trainer.NAME)
    if not records:
        return {}
    last = gkd_trainer.figures(gkd_trainer.newest(records)[gkd_trainer.HEADLINE], gkd_trainer.HEADLINE)
    return {key: last[key] for key in ("trl_tokens_per_s_ratio", "trl_peak_memory_ratio")}


def costs(records: list[Row]) -> dict[str, dict[str, float]]:
    """{method: its step beside forward_kl's of the same minute}: ratios of time and of peak memory."""
    found = {}
    for r in records:
        if r["kind"] == "cost":
            found[r["method"]] = {
                "seconds": statistics.median(r["seconds"]),
                "ratio": statistics.median(r["seconds"]) / statistics.median(r["beside"]["seconds"]),
                "peak_memory_bytes": r["peak_memory_bytes"],
            }
    return found


def show(records: list[Row]) -> Row:
    spent = costs(records)
    for name, by_seed in latest(records).items():
        r = by_seed[min(by_seed)]
        tasks = ", ".join(f"{t} {v['student']:.3f}" for t, v in r["tasks"].items())
        step = f"{spent[name]['ratio']:.2f} x, {spent[name]['peak_memory_bytes'] / 1e9:.2f} GB" if name in spent else ""
        print(
            f"{name:22} lr {r['lr']}  KL {_values(by_seed, 'kl')}  loss {_values(by_seed, 'loss')}  "
            f"top-1 {100 * mean(by_seed, 'top1'):.1f} %  {step}  {tasks}"
        )
    return headline(records)


def _values(by_seed: dict[int, Row], key: str) -> str:
    return ", ".join(f"{by_seed[seed][key]:.4f}" for seed in sorted(by_seed))


def table(records: list[Row]) -> str:
    """Markdown: a row a method, best first within its family, and what was held equal."""
    found, spent = latest(records), costs(records)
    plain = mean(found["forward_kl"], "kl")
    lines = [
        "| what is transferred, or how | KL to the teacher, nats/token, by seed | ÷ forward KL | perplexity | top-1 | "
        "LAMBADA | ARC-easy |" + (" time of a step ÷ forward KL's | peak memory |" if spent else ""),
        "|---|---|---|---|---|---|---|" + ("---|---|" if spent else ""),
    ]
    for family, label in FAMILY.items():
        names = sorted((n for n in found if rows.FAMILIES[n] == family), key=lambda n: mean(found[n], "kl"))
        lines += [f"| *{label}* | | | | | | |" + (" | |" if spent else "")]
        lines += [_line(n, found[n], plain, spent) for n in names]
    first = next(iter(found["forward_kl"].values()))
    return "\n".join(lines) + (
        f"\n\nTeacher {first['base_model']} (float32), student {first['parameters'] / 1e6:.1f}M parameters, the same "
        f"{first['tokens']:,} training tokens of prose in the same order for every row that writes no text of its own; "
        f"judged on {first['judged_tokens']:,} held-out tokens ({', '.join(first['judged_files'])}) in float32; tasks "
        f"through llama.cpp, {first['tasks']['arc_easy']['items']} items each, where the teacher itself has "
        f"{first['tasks']['lambada_openai']['teacher']:.2f} and {first['tasks']['arc_easy']['teacher']:.2f}."
    )


def _line(name: str, by_seed: dict[int, Row], plain: float, costs_: Row) -> str:
    r = by_seed[min(by_seed)]
    tasks = [f"{r['tasks'][t]['student']:.2f}" if t in r["tasks"] else "–" for t in ("lambada_openai", "arc_easy")]
    spent = costs_.get(name)
    cost = [f"{spent['ratio']:.2f}", f"{spent['peak_memory_bytes'] / 1e9:.2f} GB"] if spent else ["–", "–"]
    cost = cost if costs_ else []
    cells = [f"`{name}`", _values(by_seed, "kl"), f"{mean(by_seed, 'kl') / plain:.3f}",
             f"{mean(by_seed, 'perplexity'):.0f}", f"{mean(by_seed, 'top1'):.1%}", *tasks, *cost]  # fmt: skip
    return "| " + " | ".join(cells) + " |"
