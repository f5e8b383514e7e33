"""Fills the tables of both READMEs from the records: `python -m benchmarks.readme`; with `--check` it only compares.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`. A test runs `--check`, so no table can be typed by hand.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import (
    codistillation_shares,
    codistillation_table,
    devices,
    encoders,
    evaluation,
    gkd_trainer,
    grid_cost,
    grid_options,
    load_gguf,
    memory_plan,
    methods_table,
    mup,
    parity,
    picture,
    quality_ladder,
    quickstart,
    quickstart_controls,
    record,
    retention,
    students_picture,
    students_table,
    train_step,
    training_cost,
)
from benchmarks.rivals.rows import best_rival

# recipes that are rows of benchmarks.methods
METHOD_RECIPES = {
    "stories15m-6m": "forward_kl",
    "stories15m-9m": "assistant_made",
    "stories15m-6m-recorded": "recorded_sampled",
    "stories15m-6m-on-policy": "on_policy",
    "stories15m-6m-data-free": "data_free",
    "stories15m-6m-two-teachers": "teachers_mean",
    "stories15m-6m-self-taught": "self_average",
}
PAGES = (Path(__file__).parent.parent / "README.md", Path(__file__).parent / "README.md")
RECIPE = quickstart_controls.RECIPE


def quickstart_table() -> str:
    entry = record.read("quickstart")[-1]
    head, deep = quickstart.headline(entry), decode_ratio_deep()
    tokens = next(int(m["tokens"]) for m in entry["measurements"] if m["metric"] == "kl")
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in entry["stage_seconds"].items())
    text = (
        f"{head['size_ratio']:.1f} times smaller than the float32 teacher, {head['decode_ratio']:.1f} times its decode "
        f"speed and {head['memory_ratio']:.1f} times less memory in llama.cpp; KL to the teacher {head['kl']:.3f} nats "
        f"a token and top-1 agreement {head['top1_agreement']:.1%} on {tokens:,} held-out tokens (Austen, Chesterton)."
        f"{deep} All of it on a machine that others share."
    )
    return f"{quickstart.table(entry)}\n\n{text}\n\nStages: {stages}. {machine_of(entry)}."


def decode_ratio_deep() -> str:
    """Decoding as the devices' record has it, with its interval; nothing without such a record."""
    newest = devices.newest_pair(record.read(devices.NAME))
    found = newest[1].get("decode") if newest else None
    return f" Decoding {found.label.partition(' at ')[2]} tokens into a text it was {found.words}." if found else ""


def controls_table() -> str:
    entry = next(r for r in reversed(record.read("quickstart_controls")) if r["kind"] == "result")
    lines = [
        "| arm | learning rate | KL, nats/token, by seed | mean | top-1 | perplexity |",
        "|---|---|---|---|---|---|",
    ]
    names = {
        "ours": "**distilled on the grid (ours)**",
        "float_then_rounded": "distilled in float, then rounded",
        "text_then_rounded": "trained on the text alone, then rounded",
        "untrained": "pruned and rounded, untrained",
    }
    for arm, label in names.items():
        rows = [s["arms"][arm] for s in entry["seeds"]]
        kl = [r["kl"] for r in rows]
        cells = [
            label,
            str(entry["lr"].get(arm, "–")),
            ", ".join(f"{v:.4f}" for v in kl),
            f"{statistics.fmean(kl):.4f}",
            f"{statistics.fmean(r['top1_agreement'] for r in rows):.1%}",
            f"{statistics.fmean(r['perplexity'] for r in rows):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    f = quickstart_controls.figures(entry)
    tokens = int(entry["seeds"][0]["arms"]["ours"]["tokens"])
    return (
        "\n".join(lines) + f"\n\n{entry['tokens']:,} training tokens each, the same rows in the same order; judged "
        f"on {tokens:,} held-out tokens through llama.cpp. Ours is {f['margin']:.4f} nats below the best control; "
        f"the largest spread over seeds of any arm is {f['spread']:.4f}."
    )


def speed_table() -> str:
    entry = record.read("train_step")[-1]
    lines = [
        "| training step, beside a plain loop | ours | plain | ratio | peak memory | ratio | share of bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in entry["rows"]:
        f = train_step.figures(entry, row)
        cells = [
            row,
            f"{f['tokens_per_s']:.0f} tok/s",
            f"{f['plain_tokens_per_s']:.0f} tok/s",
            f"{f['tokens_per_s_ratio']:.2f}",
            f"{f['peak_memory_bytes'] / 1e9:.2f} GB",
            f"{f['peak_memory_ratio']:.2f}",
            f"{f['share_of_bound']:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    ours, theirs = load_gguf.medians(record.read("load_gguf")[-1])
    text = (
        f"The bound is one bf16 matrix product measured in the same process. Reading SmolLM2's GGUF (weights and "
        f"tokenizer) takes {ours:.2f} s; transformers takes {theirs:.1f} s in the same minutes "
        f"({theirs / ours:.0f} times)."
    )
    return "\n".join(lines) + f"\n\n{text}"


def ladder_table() -> str:
    """One line a model and rung: ours, and the best rival that may weigh one bit more."""
    lines = [
        "| recipe | our bits | KL, nats/token, by seed | tokens trained | in training "
        "| best rival of a bit more | bits | KL | r |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    records = record.read(quality_ladder.NAME)
    for rows in quality_ladder.latest(records).values():
        rivals = [r for r in rows if r["kind"] == "rival"]
        for rung, above in quality_ladder.NEXT.items():
            best = best_rival(rivals, above + quality_ladder.TOLERANCE)
            lines += [ladder_line(ours, best) for ours in quality_ladder.by_recipe(rows, rung).values()]
    return "\n".join(lines)


def ladder_line(ours: list[dict[str, Any]], best: dict[str, Any] | None) -> str:
    """`ours`: seeds of one recipe."""
    mean, last = statistics.fmean(r["kl"] for r in ours), ours[-1]
    cells = [
        last["recipe"].removesuffix(".yaml"),
        f"{last['bits']:.2f}",
        ", ".join(f"{r['kl']:.4f}" for r in ours),
        f"{last['training_tokens']:,}{' on a GPU' if last.get('trained_on') == 'cuda' else ''}",
        f"{ours[0]['curve'][0]['kl']:.3f} → {ours[0]['curve'][-1]['kl']:.3f}",
    ]
    if best is None:
        return "| " + " | ".join([*cells, "–", "–", "–", "–"]) + " |"
    cells += [
        f"{best['rival']}: {best['name']}",
        f"{best['bits']:.2f}",
        f"{best['kl']:.4f}",
        f"{mean / best['kl']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def ladder_files() -> dict[str, set[str]]:
    """{recipe: sha256 of its files in the ladder's table}"""
    found: dict[str, set[str]] = {}
    for rows in quality_ladder.latest(record.read(quality_ladder.NAME)).values():
        for row in (r for r in rows if r["kind"] == "ours"):
            found.setdefault(row["recipe"].removesuffix(".yaml"), set()).add(row["sha256"])
    return found


def grids_table() -> str:
    entry = record.read(grid_cost.NAME)[-1]
    f = grid_cost.show_figures(entry)
    return (
        f"All of SmolLM2-135M's {entry['weights']:,} weights, {entry['threads']} threads: decoding takes at most "
        f"{f['slowest_decode_s']:.2f} s and packing at most {f['slowest_pack_s']:.2f} s in any format; keeping the "
        f"weights on their grid adds {f['k_formats_step_share']:.0%} to a training step for the dearest K format and "
        f"{f['largest_step_share']:.0%} for the dearest of all. {machine_of(entry)}."
    )


def machine_of(entry: dict[str, Any]) -> str:
    m = entry["machine"]
    return f"{m['cpu']}, {m['cores']} cores"


TABLES: dict[str, Callable[[], str]] = {
    "quickstart": quickstart_table,
    "controls": controls_table,
    "speed": speed_table,
    "ladder": ladder_table,
    "grids": grids_table,
    "options": lambda: grid_options.table(record.read(grid_options.NAME)),
    "retention": lambda: retention.table(record.read(retention.NAME), ladder_files()),
    "encoders": lambda: encoders.table(record.read(encoders.NAME)),
    "devices": lambda: devices.table(record.read(devices.NAME)),
    "parity": lambda: parity.table(record.read(parity.NAME)[-1]),
    "students": lambda: students_table.readme(record.read("students")),
    "curves": lambda: students_table.curves(record.read("students")),
    "mup": lambda: mup.table(record.read(mup.NAME)[-1]),
    "memory": lambda: memory_plan.table(memory_plan.latest(record.read(memory_plan.NAME))),
    "cost": lambda: training_cost.table(record.read(training_cost.NAME)),
    "gkd": lambda: gkd_trainer.table(record.read(gkd_trainer.NAME)),
    "shares": lambda: codistillation_shares.table(record.read(codistillation_shares.NAME)[-1]),
    "codistillation": lambda: codistillation_table.table(record.read("codistillation")),
    "methods": lambda: methods_table.table(record.read("methods")),
    "evaluation": lambda: evaluation.sentence(record.read(evaluation.NAME)[-1]),
}


def filled(pages: dict[Path, str]) -> dict[Path, str]:
    """The pages with every table made anew, each where its place is."""
    places = {name: re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.S) for name in TABLES}
    for name, place in places.items():
        holders = [path for path, text in pages.items() if place.search(text)]
        if len(holders) != 1:
            raise SystemExit(f"the table '{name}' has {len(holders)} places in the READMEs; it takes one")
        text = pages[holders[0]]
        found = place.search(text)
        assert found is not None
        pages = pages | {holders[0]: text[: found.end(1)] + TABLES[name]() + text[found.start(2) :]}
    return pages


def recipe_comment() -> str:
    """The last line of the recipe's first comment."""
    entry = record.read("quickstart")[-1]
    head, training = quickstart.headline(entry), entry["training"]
    return (
        f"# Measured: {head['gguf_bytes'] / 1e6:.1f} MB GGUF, KL {head['kl']:.3f} nats a token, top-1 "
        f"{head['top1_agreement']:.1%}, {training['tokens']:,} tokens, {head['run_seconds']:.0f} s on "
        f"{entry['machine']['cores']} cores"
    )


def recipe_comments() -> dict[Path, str]:
    """{recipe: the line of its first comment that says what was measured}"""
    found = {RECIPE: recipe_comment()}
    for rows in quality_ladder.latest(record.read(quality_ladder.NAME)).values():
        of_rungs = [quality_ladder.by_recipe(rows, rung).items() for rung in quality_ladder.NEXT]
        for name, seeds in chain.from_iterable(of_rungs):
            kl, top1 = (statistics.fmean(r[key] for r in seeds) for key in ("kl", "top1_agreement"))
            found[RECIPE.with_name(name)] = (
                f"# Measured: {seeds[-1]['bits']:.2f} bits, KL {kl:.4f} nats a token to its float teacher, top-1 "
                f"{top1:.1%}, {seeds[-1]['training_tokens']:,} tokens, {len(seeds)} seed{'s' if seeds[1:] else ''}"
            )
    by_method = methods_table.latest(record.read("methods"))
    for recipe, method in METHOD_RECIPES.items():
        first = by_method[method][min(by_method[method])]
        found[RECIPE.with_name(f"{recipe}.yaml")] = (
            f"# Measured: KL {first['kl']:.4f} nats a token to TinyStories 15M, perplexity {first['perplexity']:.0f}, "
            f"top-1 {first['top1']:.1%}, {first['judged_tokens']:,} held-out tokens, trained on {first['tokens']:,}"
        )
    return found


def commented(path: Path, line: str) -> str:
    """Raises SystemExit for a recipe that has no line to say it in."""
    said, count = re.subn(r"^# Measured: .*$", lambda m: line, path.read_text(encoding="utf-8"), count=1, flags=re.M)
    if not count:
        raise SystemExit(f"{path.name} was measured and does not say so; add a line '# Measured: ' to its comment")
    return said


def main() -> None:
    pages = filled({path: path.read_text(encoding="utf-8") for path in PAGES})
    recipes = {path: commented(path, line) for path, line in recipe_comments().items()}
    images = {
        picture.OUT: picture.draw(record.read("quickstart")[-1]),
        students_picture.OUT: students_picture.draw(record.read("students")),
    }
    made = {**pages, **recipes, **images}
    if "--check" in sys.argv:
        stale = [path.name for path, said in made.items() if path.read_text(encoding="utf-8") != said]
        if stale:
            raise SystemExit(f"not what the records say: {', '.join(stale)}; run python -m benchmarks.readme")
        return
    for path, said in made.items():
        path.write_text(said, encoding="utf-8")


if __name__ == "__main__":
    main()
