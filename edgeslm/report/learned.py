"""What students learned, as a page: a pure function of the document of edgeslm.pipeline.learned."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeslm.report import charts, markdown
from edgeslm.report.blocks import ABSENT, Block, Chart, Note, Section, Table, Tile, Tiles, percent
from edgeslm.report.learned_charts import Line, lines, passage
from edgeslm.report.page import html, strict

Document = dict[str, Any]
GAUSS = 0.5 * math.log(2 * math.pi * math.e)
STRONG = 1.5  # nats below the background that are shaded darkest
EXPECTED = {  # what the paper expects of a run taught by a teacher beside one taught by text: more (1) or less (-1)
    "content": (1, "knowledge points that are content"),
    "content_share": (1, "content among all knowledge points"),
    "d_mean": (-1, "D mean, where they were learned"),
    "d_std": (-1, "D std, one after another or at once"),
    "d_std_of_way": (-1, "D std as a share of the whole way (not in the paper)"),
    "rho": (1, "ρ, what was not lost on the way"),
}


def render(document: Document, folder: Path) -> list[Path]:
    """Writes learned.json, learned.md and learned.html."""
    from edgeslm import __version__

    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "learned.html", folder / "learned.md", folder / "learned.json"]
    sections = build(document)
    said = {"edgeslm": __version__, "source": "from learned.json alone."}
    written[0].write_text(html("learned", said, sections), encoding="utf-8")
    written[1].write_text(markdown.document(sections), encoding="utf-8")
    text = json.dumps(strict(document), ensure_ascii=False, allow_nan=False)
    written[2].write_text(text + "\n", encoding="utf-8")
    return written


def build(document: Document) -> list[Section]:
    claimed = [claims(document)] if document["claims"] else []
    kept = [*information(document), *points(document)]
    drawn = sorted(kept, key=lambda block: isinstance(block, Note))  # charts side by side, then what they say
    layers = Section("kept", "What the layers keep", drawn)
    return [headline(document), *claimed, layers, way(document), read(document), method(document)]


def headline(document: Document) -> Section:
    tiles = []
    for run in document["runs"]:
        f = run["figures"]
        detail = f"{taught_by(run)}; {share(f['content_share'])} of its points are content, ρ {share(f['rho'])}"
        tiles.append(Tile(run["name"], f"{f['content']:,}", "knowledge points of content", detail))
    counted = sum(map(sum, document["text"]["counted"])) * len(document["runs"][0]["layers"])
    names = " and ".join(run["name"] for run in document["runs"])
    more = (
        f"A knowledge point is a token that a layer keeps clearly better than it keeps punctuation and the most "
        f"frequent words around it. {counted:,} tokens were looked at, each layer counted."
    )
    return Section("headline", "Learned", [Tiles(tuple(tiles))], f"What {names} learned", more)


def taught_by(run: dict[str, Any]) -> str:
    losses = ", ".join(dict.fromkeys(run["objective"]))
    return f"taught by a teacher ({losses})" if run["taught"] else f"taught by text ({losses})"


def share(value: float | None) -> str:
    return ABSENT if value is None else percent(value)


def verdict(claim: dict[str, Any]) -> str:
    """Against what the paper expects, at two standard errors over windows."""
    difference, error = claim["difference"], claim["standard_error"]
    if difference is None or error is None or math.isnan(difference):
        return ABSENT
    if abs(difference) <= 2 * error:
        return "undecided"
    return "as the paper" if difference * EXPECTED[claim["figure"]][0] > 0 else "against the paper"


def claims(document: Document) -> Section:
    rows = tuple(
        (f"{c['taught']} less {c['text']}", EXPECTED[c["figure"]][1], signed(c["difference"]),
         ABSENT if c["standard_error"] is None else f"± {c['standard_error']:.2g}",
         "more" if EXPECTED[c["figure"]][0] > 0 else "less", verdict(c)) for c in document["claims"]
    )  # fmt: skip
    columns = ("Runs", "Figure", "Difference a window", "Standard error", "The paper expects", "Found")
    lead = (
        "Cheng et al. (arXiv:2003.03622) expect that a student taught by a teacher learns more knowledge points, "
        "learns them at once rather than one after another, and by a straighter path. Differences are taken window by "
        "window; within two standard errors nothing is decided, and one seed says nothing about another."
    )
    return Section("claims", "Beside the paper", [Table("Beside the paper", columns, rows, frozenset({2, 3}))], lead)


def signed(value: float | None) -> str:
    return ABSENT if value is None or math.isnan(value) else f"{value:+.3g}"


def means(document: Document, run: dict[str, Any], point: int, layer: int) -> list[float]:
    """Of each window: mean entropy over the tokens that count."""
    found = []
    for values, counted in zip(run["entropies"][point][layer], document["text"]["counted"], strict=True):
        kept = [v for v, counts in zip(values, counted, strict=True) if counts]
        found.append(sum(kept) / len(kept))
    return found


def information(document: Document) -> list[Block]:
    rows: list[tuple[str, ...]] = []
    groups = []
    for number, run in enumerate(document["runs"], start=1):
        bars = []
        for at, layer in enumerate(run["layers"]):
            first, last = means(document, run, 0, at), means(document, run, -1, at)
            shares = [100 * math.exp(h - GAUSS) for h in last]
            mean, before = sum(last) / len(last), sum(first) / len(first)
            label = f"layer {layer} of {run['depth']}"
            noise = 100 * math.exp(mean - GAUSS)
            bars.append(charts.Bar(label, shares, f"r{number}", f"{noise:.0f} %"))
            rows.append((run["name"], label, f"{noise:.0f} %", f"{mean:.3f}", f"{before:.3f}"))
        groups.append((run["name"], bars))
    title = "Noise a token bears, by layer"
    drawn = charts.bars("information", title, "%", groups)
    columns = ("Run", "Layer", "Noise", "Entropy, nats", "Before training")
    table = Table(title, columns, tuple(rows), frozenset({2, 3, 4}))
    cost = percent(document["asked"]["tolerance"], 0)
    said = (
        "Noise a token bears: how much noise its embedding bears, in percent of the spread of all embeddings, until "
        f"the state after a layer has lost {cost} of its variance. Less noise: the layer keeps more of what the token "
        "says. More: it has thrown more away. Dots are windows."
    )
    return [Chart(title, drawn, table, (), "less keeps more"), Note(said)]


def points(document: Document) -> list[Block]:
    drawn, rows, legend = [], [], []
    for number, run in enumerate(document["runs"], start=1):
        legend += [(f"r{number}", f"{run['name']}, content"), (f"r{number} dashed", f"{run['name']}, background")]
        summed = {kind: [sum(layers) for layers in run["counts"][kind]] for kind in ("content", "background")}
        for kind, style in (("content", ""), ("background", " dashed")):
            spots = [
                (100 * p["walked"], count, f"{run['name']}, {kind}: {count:,} after {p['step']:,} steps")
                for p, count in zip(run["points"], summed[kind], strict=True)
            ]
            drawn.append(Line(f"r{number}{style}", spots))
        for p, content, background in zip(run["points"], summed["content"], summed["background"], strict=True):
            rows.append((run["name"], p["label"], f"{p['step']:,}", percent(p["walked"]), f"{content:,}",
                         f"{background:,}", share(content / (content + background) if content + background else None),
                         ))  # fmt: skip
    title = "Knowledge points along the way"
    columns = ("Run", "Point", "Steps", "Walked", "Content", "Background", "Share of content")
    table = Table(title, columns, tuple(rows), frozenset({2, 3, 4, 5, 6}))
    drawn_lines = lines("points", title, drawn, "way walked, % of the first weights' norm", "knowledge points")
    said = (
        "Knowledge points: at every kept point of the training, how many tokens stand out from the background, all "
        "layers together, along the way that the weights have come. Content: words of this text. Background: what "
        "stands in every text."
    )
    return [Chart(title, drawn_lines, table, tuple(legend)), Note(said)]


def way(document: Document) -> Section:
    rows = []
    for run in document["runs"]:
        f = run["figures"]
        rows.append((run["name"], f"{f['at_start']:,}", f"{f['learned']:,}", share(f["d_mean"]), share(f["d_std"]),
                     share(f["d_std_of_way"]), share(f["peak_mean"]), share(f["peak_std"]), share(f["rho"]),
                     share(f["again"]), share(run["points"][-1]["walked"])))  # fmt: skip
    columns = ("Run", "Held at the start", "Learned", "D mean", "D std", "D std of way", "Peak mean", "Peak std", "ρ",
               "Found again", "Whole way")  # fmt: skip
    notes: list[Block] = [
        Note("D mean: how far the weights had walked when a knowledge point that the start did not hold was first "
             "held, in percent of the first weights' norm. D std: the spread of that; small means learned at once, "
             "large one after another. Weights that move further give larger figures, so the spread is given as a "
             "share of the whole way too."),
        Note("Peak: the same for the point of each window and layer at which most are held, as the paper counts."),
        Note("ρ: of all knowledge points ever held, the share that the shipped student holds. High: a straight path; "
             "low: much was learned and lost again. Found again: the share that a second measurement with other "
             "noise finds too, so that a ρ near it is as straight as can be told."),
    ]  # fmt: skip
    table = Table("The way there", columns, tuple(rows), frozenset(range(1, 11)))
    return Section("way", "When it was learned, and how straight", [table, *notes], "Of tokens that are content.")


def read(document: Document) -> Section:
    """The last window, at the last layer asked, as the shipped students keep it."""
    window = -1
    tokens, counted = document["text"]["tokens"][window], document["text"]["counted"][window]
    content = document["text"]["content"][window]
    blocks, columns = [], []
    for run in document["runs"]:
        values = run["entropies"][-1][-1][window]
        kept = [v for v, c, counts in zip(values, content, counted, strict=True) if counts and not c]
        mean = sum(kept) / len(kept)
        told = [(t, min(1.0, (mean - v) / STRONG) if counts and mean - v > document["asked"]["margin"] else 0.0,
                 f"{t!r}: {mean - v:+.2f} nats" if counts else f"{t!r}: not counted")
                for t, v, counts in zip(tokens, values, counted, strict=True)]  # fmt: skip
        blocks.append((f"{run['name']}, layer {run['layers'][-1]} of {run['depth']}", told[1:]))
        columns.append([f"{mean - v:+.2f}" if c else "-" for v, c in zip(values, counted, strict=True)])
    rows = tuple(
        (visible(t), "content" if c else "background", *said)
        for t, c, *said in list(zip(tokens, content, *columns, strict=True))[1:]
    )
    names = tuple(run["name"] for run in document["runs"])
    title = "A passage as each student keeps it"
    table = Table(title, ("Token", "Kind", *names), rows, frozenset(range(2, 2 + len(names))))
    drawn = passage("passage", title, "The darker, the more of a token is kept.", blocks)
    lead = "Shaded: knowledge points, darker where the entropy lies further below the background's mean."
    return Section("passage", "A passage", [Chart(title, drawn, table, (), "darker keeps more")], lead)


def visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥") or "(nothing)"


def method(document: Document) -> Section:
    a = document["asked"]
    said = (
        f"{a['windows']} windows of {a['length']} tokens of {', '.join(a['files'])}. Margin {a['margin']:g} nats, "
        f"tolerance {a['tolerance']:g}, {a['steps']} steps of descent for each point and layer, seed {a['seed']}."
    )
    why = (
        "After Cheng et al. (arXiv:2003.03622), for text: noise is put on embeddings, one size a token; the background "
        "is punctuation and the fewest frequent words that make up half of the text; a token with a large embedding "
        "bears more noise of a given size."
    )
    return Section("method", "How it was measured", [Note(said), Note(why)])


def table_lines(document: Document) -> Sequence[str]:
    """The figures for a terminal."""
    out = [f"{'run':20} {'points':>7} {'content':>8} {'share':>7} {'D mean':>8} {'D std':>8} {'rho':>7} {'again':>7}"]
    for run in document["runs"]:
        f = run["figures"]
        told = [f"{share(f[k]):>{n}}" for k, n in (("content_share", 7), ("d_mean", 8), ("d_std", 8), ("rho", 7))]
        out.append(f"{run['name']:20} {f['points']:7,} {f['content']:8,} {' '.join(told)} {share(f['again']):>7}")
    out += ["", f"{'entropy of a token, nats':28} {'start':>8} {'end':>8}   less keeps more"]
    for run in document["runs"]:
        for at, layer in enumerate(run["layers"]):
            first, last = (means(document, run, point, at) for point in (0, -1))
            label = f"{run['name']}, layer {layer} of {run['depth']}"
            out.append(f"{label:28} {sum(first) / len(first):8.3f} {sum(last) / len(last):8.3f}")
    if document["claims"]:
        out.append("")
    for c in document["claims"]:
        error = "" if c["standard_error"] is None else f" ± {c['standard_error']:.2g}"
        out.append(f"{c['taught']} less {c['text']}, {EXPECTED[c['figure']][1]}: {signed(c['difference'])}{error} "
                   f"a window, {verdict(c)}")  # fmt: skip
    return out
