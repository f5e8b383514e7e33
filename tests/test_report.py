"""The report: one run folder made here, then its page, its Markdown and its JSON must agree and survive damage."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm import measurement
from edgeslm.artifact import Artifact
from edgeslm.errors import DataError
from edgeslm.measurement import Measurement, Where
from edgeslm.report import ReportFiles, charts, render
from edgeslm.report.blocks import Chart, Table, times
from edgeslm.report.folder import read
from edgeslm.report.markdown import inline
from edgeslm.report.page import SECTIONS, build
from edgeslm.report.svg import log_ticks, round_ticks
from edgeslm.units import byte_count

STAGES = ("teacher", "data", "student", "distill", "export", "evaluate", "benchmark")
FOLDERS = {stage: f"{stage}-{i}a2b3c4d" for i, stage in enumerate(STAGES)}
DEVICE = {
    "id": "5f3a9c21", "name": "Example CPU @ 2.60 GHz", "cpu": "Example CPU @ 2.60 GHz", "cores": 2,
    "memory_bytes": 16_700_000_000, "os": "Linux 6.1 x86_64", "bandwidth_bytes_per_s": 11_800_000_000,
}  # fmt: skip
RUNTIMES = {"gguf": ("llama.cpp", "0.5.0"), "onnx": ("onnxruntime", "1.31.1")}
# name, container, grid, bytes, tensor bytes, parameters, decode, prefill, first token s, load s, anon, file, perplexity
FILES = (
    ("student.gguf", "gguf", "q4_0", 73_412_320, 71_210_880, 106_196_352, 61.2, 402, 0.33, 0.11, 41e6, 72e6, 24.31),
    ("teacher-f32.gguf", "gguf", "f32", 540_212_480, 538_060_032, 134515008, 15.4, 118, 1.12, 0.42, 62e6, 539e6, 18.62),
    ("teacher-f16.gguf", "gguf", "f16", 271_180_800, 269_030_016, 134515008, 27.9, 131, 1.01, 0.27, 60e6, 270e6, 18.63),
    ("student-onnx", "onnx", "q4_0", 96_180_224, 71_210_880, 106_196_352, 48.8, 371, 0.36, 0.52, 208e6, 31e6, 24.31),
    ("teacher-f32-onnx", "onnx", "f32", 541_833_984, 538_060_032, 134515008, 13.9, 143, 0.93, 1.32, 690e6, 35e6, 18.62),
)  # fmt: skip
EVIL = "<script>alert('x')</script> & \"quoted\" | `tick` ``` fence\n# not a heading"


def _where(row: tuple[Any, ...], job: dict[str, Any], artifact: str | None = None) -> Where:
    runtime, version = RUNTIMES[row[1]]
    return Where(DEVICE, runtime, version, artifact or row[0], "ab" * 32, row[1], job, 2)


def _repeats(middle: float, spread: float, n: int, rng: random.Random) -> tuple[float, ...]:
    return tuple(middle * (1 + rng.uniform(-spread, spread)) for _ in range(n))


def _benchmark(rng: random.Random) -> list[Measurement]:
    job = {"prompt_tokens": 128, "new_tokens": 64, "repeats": 7}
    out = []
    for row in FILES:
        where = _where(row, job)
        for metric, unit, middle, spread, better in (
            ("decode", "tokens/s", row[6], 0.04, "higher"), ("prefill", "tokens/s", row[7], 0.05, "higher"),
            ("time_to_first_token", "s", row[8], 0.06, "lower"), ("load", "s", row[9], 0.12, "lower"),
        ):  # fmt: skip
            values = _repeats(middle, spread, 7, rng)
            out.append(Measurement(metric, unit, values, where, warmups=(values[0] * 1.2,), better=better))
        out.append(Measurement("token_latency", "s", _repeats(1 / row[6], 0.1, 64, rng), where))
        peaks = {"rss_anon_peak": row[10], "rss_file_peak": row[11], "pss_peak": row[10] + row[11] * 0.97}
        for metric, value in {**peaks, "vm_hwm": row[10] + row[11]}.items():
            out.append(Measurement(metric, "bytes", (value,), where))
        bound = Measurement("decode_bound", "tokens/s", (11.8e9 / row[4],), where, kind="modelled", better="higher")
        joules = Measurement("energy_per_token", "J/token", (12 / row[6],), where, kind="estimated", covers="package",
                             note="12 W (the CPU's nominal power) x seconds per token")  # fmt: skip
        out += [bound, joules]
    band = Measurement("memory_bandwidth", "bytes/s", _repeats(11.8e9, 0.02, 5, rng), _where(FILES[0], {}, "-"),
                       better="higher")  # fmt: skip
    return [*out, band]


def _quality(rng: random.Random) -> list[Measurement]:
    job = {"text": "wikitext-2 validation", "context": 512}
    edges = [0.0, *(10 ** (k / 2) for k in range(-10, 4))]
    weights = [3, 5, 12, 30, 80, 190, 420, 900, 1600, 2100, 1500, 620, 160, 20]
    out = []
    for row in FILES:
        where = _where(row, job)
        out.append(Measurement("perplexity", "1", (row[12],), where, extra={"tokens": 7640}))
        if row[0].startswith("student"):
            extra = {
                "percentiles": {"50": 0.121, "90": 0.744, "99": 3.19, "99.9": 7.02}, "tokens": 7640,
                "histogram": {"edges": edges, "counts": weights}, "standard_error": 0.0058,
            }  # fmt: skip
            out.append(Measurement("kl", "nats/token", (0.2874 + rng.random() * 1e-5,), where, extra=extra))
            out.append(Measurement("top1_agreement", "1", (0.7617,), where, better="higher", extra={"tokens": 7640}))
    return out


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


def _distill(folder: Path, rng: random.Random) -> None:
    with (folder / "log.jsonl").open("w", encoding="utf-8") as log:
        for step in range(600):
            loss = 0.31 + 3.4 * math.exp(-step / 55) + (0.16 * math.exp(-(step - 350) / 40) if step >= 350 else 0)
            row = {"step": step, "loss": loss * rng.uniform(0.88, 1.13), "lr": 3e-4, "tokens": 2048 * (step + 1),
                   "tokens_per_s": 812.0, "grid": step >= 350, "terms": {"forward_kl": loss}}  # fmt: skip
            log.write(json.dumps(row) + "\n")
    points = ((0, 3.91, 0.21), (409_600, 0.481, 0.688), (819_200, 0.392, 0.721), (1_228_800, 0.2912, 0.7601))
    held = [{"tokens": t, "kl": kl, "top1": top} for t, kl, top in points]
    _write(folder / "summary.json", {
        "steps": 600, "tokens": 1_228_800, "seconds": 1513.0, "tokens_per_s": 812.1, "peak_memory_bytes": 2_913_000_000,
        "share_of_bound": 0.614, "bound_tokens_per_s": 1322.6, "heldout": held,
    })  # fmt: skip


def make_run(root: Path, evil: str = EVIL) -> Path:
    """A complete run of realistic figures under root/smol-q4."""
    rng = random.Random(7)
    run = root / "smol-q4"
    for folder in FOLDERS.values():
        (run / folder).mkdir(parents=True)
        _write(run / folder / "done.json", {})
    _write(run / "run.json", {
        "schema": 1, "name": "smol-q4", "recipe_hash": "c0ffee1234567890", "edgeslm": "0.1.0", "torch": "2.13.0",
        "started": "2025-11-21T18:30:00Z", "stages": FOLDERS,
        "seconds": {s: 3.0 * 4**i for i, s in enumerate(STAGES)}, "resumed": {s: s == "distill" for s in STAGES},
        "problems": [{"stage": "benchmark", "what": "the browser runtime was not found on this machine"}],
    })  # fmt: skip
    (run / "recipe.yaml").write_text(
        "# SmolLM2 to 4 bits\nname: smol-q4\nteacher:\n  model: smollm2\nstudent:\n  kind: depth\n  layers: 22\n"
        f"note: {json.dumps(evil)}\n", encoding="utf-8",
    )  # fmt: skip
    scores = [0.48, 0.29] + [0.05 + 0.11 * abs(math.sin(i * 1.7)) + 0.004 * i for i in range(2, 29)] + [0.41]
    dropped = sorted(sorted(range(30), key=scores.__getitem__)[:8])
    _write(run / FOLDERS["student"] / "importance.json", {
        "method": "block_influence", "tokens": 65_536, "scores": scores, "dropped": dropped,
        "kept": [i for i in range(30) if i not in dropped], "loss_before": 2.924, "loss_after": 6.834, "kl_after": 3.91,
        "parameters_before": 134_515_008, "parameters_after": 106_196_352,
    })  # fmt: skip
    _distill(run / FOLDERS["distill"], rng)
    artifacts = [
        Artifact(r[0], run / FOLDERS["export"] / r[0], r[1], f"{i}e" * 32, r[3], r[4], r[5], r[2], "c0ffee",
                 "as dequantised from Q4_1" if r[0] == "teacher-f32.gguf" else "")
        for i, r in enumerate(FILES)
    ]  # fmt: skip
    _write(run / FOLDERS["export"] / "artifacts.json", [a.to_json() for a in artifacts])
    _write(run / FOLDERS["export"] / "exact.json", [
        {"artifact": r[0], "tensors": t, "exact": t, "planned": t - 45, "planned_exact": t - 45, "first_mismatch": None}
        for r, t in zip(FILES, (200, 272, 272, 200, 272), strict=True)
    ])  # fmt: skip
    measurement.dump(_quality(rng), run / FOLDERS["evaluate"] / "results.json")
    _write(run / FOLDERS["evaluate"] / "answers.json", [
        {"prompt": prompt, "answers": [{"artifact": "student.gguf", "text": ours, "tokens": 41},
                                       {"artifact": "teacher-f32.gguf", "text": theirs, "tokens": 38}]}
        for prompt, ours, theirs in (
            ("Why is the sky blue?",
             "The sky is blue because of the way light is scattered by the air. Blue light is scattered more.",
             "The sky appears blue because of Rayleigh scattering: the molecules of the air scatter short wavelengths "
             "more than long ones, so blue light reaches us from every direction."),
            (evil, evil, evil),
        )
    ])  # fmt: skip
    measurement.dump(_benchmark(rng), run / FOLDERS["benchmark"] / "results.json")
    _write(run / FOLDERS["benchmark"] / "problems.json", [
        {"artifact": "teacher-f32-onnx", "what": "onnxruntime's worker was killed (signal 9) in the 8th repeat"}
    ])  # fmt: skip
    return run


VOID = {"meta", "link", "br", "hr", "img", "input", "path", "rect", "circle", "line"}


class Page(HTMLParser):
    """Checks nesting; collects tags, attributes, text and tables by caption."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(source)
        self.close()
        assert self.open == [], f"unclosed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def files(run: Path) -> ReportFiles:
    return render(run)


@pytest.fixture(scope="module")
def page(files: ReportFiles) -> Page:
    return Page(files.html.read_text(encoding="utf-8"))


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Every table of a Markdown file as cells, escapes kept."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("| "):
            if not inside:
                tables.append([])
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            if not all(re.fullmatch(r" -+:? ", c) for c in cells):
                tables[-1].append([c.strip() for c in cells])
        inside = line.startswith("| ")
    return tables


def test_sections_are_there_in_order(page: Page) -> None:
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert ids == [name for name in SECTIONS if name not in ("formats", "retention", "peers")]  # not in it
    assert ids[0] == "headline"


def test_headline_says_what_the_files_and_measurements_say(files: ReportFiles) -> None:
    lead = files.markdown.read_text(encoding="utf-8").split("\n\n## ")[0].replace("\\", "")
    assert "7.4\u00d7 smaller" in lead  # 540212480 / 73412320 = 7.359
    assert "decodes 3.9\u00d7" in lead or "decodes 4.0\u00d7" in lead  # 61.2 / 15.4 within the repeats' spread
    assert "float32 teacher" in lead and "llama.cpp 0.5.0" in lead
    assert "76.2 %" in lead and "0.287 nats per token" in lead


def test_the_tables_of_page_and_markdown_are_the_same(files: ReportFiles, page: Page) -> None:
    in_markdown = markdown_tables(files.markdown.read_text(encoding="utf-8"))[1:]  # the first one holds the tiles
    in_page = [[[inline(cell) for cell in row] for row in table] for table in page.tables]
    assert len(in_page) > 12
    assert in_page == in_markdown


def test_every_ratio_of_the_json_is_in_both(files: ReportFiles, page: Page) -> None:
    data = json.loads(files.json.read_text(encoding="utf-8"))
    assert data["schema"] == 1
    ratios = [row for t in page.tables if "student is" in t[0] for row in t[1:]]
    shown = [row[i] for row in ratios for i in range(3, len(row), 2)]
    factors = [(c["factor"], c["word"], c["kind"]) for c in data["comparisons"]]
    expected = [f"{times(f if f >= 1 else 1 / f)} {w}" + ("" if k == "measured" else f" ({k})") for f, w, k in factors]
    assert sorted(shown) == sorted(expected)
    assert len(shown) == 3 * 8  # student.gguf beside two teachers, student-onnx beside one; eight figures each
    size = next(c for c in data["comparisons"] if c["metric"] == "size")
    assert size["factor"] == pytest.approx(540_212_480 / 73_412_320)


def test_the_json_holds_every_raw_value(run: Path, files: ReportFiles) -> None:
    data = json.loads(files.json.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    given = measurement.load(run / FOLDERS["evaluate"] / "results.json")
    given += measurement.load(run / FOLDERS["benchmark"] / "results.json")
    assert [Measurement.from_json(m) for m in data["measurements"]] == given
    assert [a["name"] for a in data["artifacts"]] == [r[0] for r in FILES]
    assert data["artifacts"][0]["path"] == f"{FOLDERS['export']}/student.gguf"
    assert data["exact"][0]["exact"] == 200 and data["run"]["recipe_hash"] == "c0ffee1234567890"


def test_the_page_opens_offline(files: ReportFiles, page: Page) -> None:
    source = files.html.read_text(encoding="utf-8")
    assert "default-src 'none'" in source
    assert not re.search(r"https?:|@import|url\(|//[a-z]", source)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "srcset", "onload", "onclick", "style"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")


def test_untrusted_text_stays_text(files: ReportFiles, page: Page) -> None:
    source = files.html.read_text(encoding="utf-8")
    assert "<script" not in source and "&lt;script&gt;" in source
    said = "".join(page.words)
    assert said.count(EVIL) >= 3  # prompt, student, teacher
    text = files.markdown.read_text(encoding="utf-8")
    fence = "````text\n" + EVIL + "\n````"
    assert text.count(fence) == 3
    assert "<script" not in text.replace(fence, "").split("````yaml")[0]


def test_markdown_words_cannot_become_markup() -> None:
    assert inline("<b>|x|`y`*z*\n# [a](b) & c") == "&lt;b&gt;\\|x\\|\\`y\\`\\*z\\* \\# \\[a\\](b) &amp; c"


def test_charts_are_accessible_and_sound(run: Path) -> None:
    drawn = [b for s in build(read(run)) for b in s.blocks if isinstance(b, Chart)]
    titles = [c.title for c in drawn]
    assert len(drawn) == 11 and len(set(titles)) == len(titles)
    keys = set()
    for chart in drawn:
        root = ET.fromstring(chart.svg)
        assert root.get("role") == "img" and root[0].tag == "title" and root[1].tag == "desc"
        assert root.get("aria-labelledby") == f"{root[0].get('id')} {root[1].get('id')}"
        keys.add(root[0].get("id"))
        assert chart.table.rows and "nan" not in chart.svg and "inf" not in re.sub(r"influence", "", chart.svg)
        height = float(root.get("viewBox", "").split()[3])
        for mark in root.iter():
            for axis, limit in (("x", 440), ("x1", 440), ("x2", 440), ("cx", 440), ("y", height), ("cy", height)):
                assert -0.1 <= float(mark.get(axis, "0")) <= limit + 0.1, (chart.title, mark.attrib)
    assert len(keys) == len(drawn)


def test_a_bar_is_as_long_as_its_median() -> None:
    rows = [
        charts.Bar("student.gguf", (30, 40, 50), "student", "40", bound=80),
        charts.Bar("b", (20,), "teacher", "20"),
    ]
    root = ET.fromstring(charts.bars("k", "t", "tokens/s", [("llama.cpp", rows)]))
    widths = [float(r.get("width", "")) for r in root.iter("rect") if "bar" in r.get("class", "")]
    assert widths == [pytest.approx(439 / 2, abs=0.1), pytest.approx(439 / 4, abs=0.1)]
    assert len(list(root.iter("circle"))) == 3  # raw repeats; a single value has no spread
    bound = next(e for e in root.iter("line") if e.get("class") == "bound")
    assert float(bound.get("x1", "")) == pytest.approx(439, abs=0.1)


def test_energy_that_no_sensor_gave_is_called_an_estimate(files: ReportFiles, page: Page) -> None:
    text = files.markdown.read_text(encoding="utf-8")
    assert "> Estimated, not measured: 12 W (the CPU's nominal power)" in text
    energy = next(t for t in page.tables if t[1][2].endswith("J/token"))
    assert {row[6] for row in energy[1:]} == {"estimated"}


def test_problems_come_first(files: ReportFiles) -> None:
    text = files.markdown.read_text(encoding="utf-8")
    assert text.index("signal 9") < text.index("## The files")
    assert "- benchmark: the browser runtime was not found" in text


def test_an_inexact_tensor_is_a_problem(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    path = copy / FOLDERS["export"] / "exact.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    rows[0] |= {"exact": 199, "first_mismatch": "model.norm.weight"}
    _write(path, rows)
    text = render(copy).markdown.read_text(encoding="utf-8")
    assert "student.gguf: 1 of 200 tensors are not bitwise exact; the first is model.norm.weight" in text
    assert "199/200 bitwise" in text.replace("\\", "")


def test_unlike_runs_give_no_ratio(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    path = copy / FOLDERS["benchmark"] / "results.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    for m in data["measurements"]:
        if m["metric"] == "decode" and m["where"]["artifact"] == "student.gguf":
            m["where"]["threads"] = 4
    _write(path, data)
    made = render(copy)
    text = made.markdown.read_text(encoding="utf-8")
    assert (
        "Not compared: decode: cannot compare teacher-f32.gguf with student.gguf because of threads (2 and 4)"
        in text.replace("\\", "")
        or "Not compared: decode: cannot compare student.gguf" in text.replace("\\", "")
    )
    metrics = [
        c["metric"] for c in json.loads(made.json.read_text(encoding="utf-8"))["comparisons"] if "gguf" in c["student"]
    ]
    assert "decode" not in metrics and "prefill" in metrics


def test_same_folder_same_bytes_wherever_it_lies(run: Path, files: ReportFiles, tmp_path: Path) -> None:
    before = [p.read_bytes() for p in (files.html, files.markdown, files.json)]
    assert [p.read_bytes() for p in vars(render(run)).values()] == before
    assert all(str(run).encode() not in content and str(run.parent).encode() not in content for content in before)


def originals(run: Path) -> list[Path]:
    made = {"report.html", "report.md"}
    return [p.relative_to(run) for p in sorted(run.rglob("*")) if p.is_file() and p.name not in made
            and p != run / "results.json"]  # fmt: skip


def test_any_one_file_or_stage_may_be_missing(run: Path, tmp_path: Path) -> None:
    names = originals(run)
    assert len(names) == 18
    for index, name in enumerate([*names, *(Path(f) for f in FOLDERS.values())]):
        copy = Path(shutil.copytree(run, tmp_path / str(index)))
        victim = copy / name
        shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
        made = render(copy)
        Page(made.html.read_text(encoding="utf-8"))
        json.loads(made.json.read_text(encoding="utf-8"))
        text = made.markdown.read_text(encoding="utf-8")
        assert "cannot be shown" not in text, name
        unimportant = {"answers.json": "Answers: not measured", "exact.json": "Exact tensors of"}
        if name.name in unimportant:
            assert unimportant[name.name] in text.replace("\\", "")
        if name.name == "results.json":
            assert "not measured: the stage" in text.replace("\\", "")
        if name.name == "done.json":
            assert "has not finished" in text


def test_an_empty_folder_has_a_report_without_a_single_zero(tmp_path: Path) -> None:
    made = render(tmp_path)
    text = made.markdown.read_text(encoding="utf-8")
    assert text.count("not measured: ") >= 8
    assert not re.search(r"(?<![\w.])0(?![\w.])", text)
    assert not json.loads(made.json.read_text(encoding="utf-8"))["measurements"]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        render(tmp_path / "nowhere")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [at] + [p for key, child in inner for p in _paths(child, (*at, key))]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_values_never_stop_the_report(run: Path, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    name = data.draw(st.sampled_from([p for p in originals(run) if p.suffix == ".json" and p.name != "done.json"]))
    document = json.loads((run / name).read_text(encoding="utf-8"))
    where = data.draw(st.sampled_from(_paths(document)))
    junk = data.draw(JUNK)
    copy = Path(shutil.copytree(run, tmp_path_factory.mktemp("junk") / "run"))
    if where:
        target = document
        for key in where[:-1]:
            target = target[key]
        target[where[-1]] = junk
    _write(copy / name, document if where else junk)
    made = render(copy)
    Page(made.html.read_text(encoding="utf-8"))
    json.loads(made.json.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    shutil.rmtree(copy)


def test_a_cut_off_file_is_named(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    path = copy / FOLDERS["benchmark"] / "results.json"
    path.write_bytes(path.read_bytes()[:1000])
    text = render(copy).markdown.read_text(encoding="utf-8").replace("\\", "")
    assert f"{FOLDERS['benchmark']}/results.json is damaged" in text
    assert "Decode: not measured: the stage 'benchmark' left no such figure" in text


def test_a_killed_run_s_last_log_line_is_skipped(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    log = copy / FOLDERS["distill"] / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    assert len(read(copy).steps) == 599


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
def test_ticks_lie_inside_and_are_few(low: float, span: float) -> None:
    ticks = round_ticks(low, low + span)
    assert 1 <= len(ticks) <= 7
    assert all(low - span * 1e-6 <= t <= low + span * (1 + 1e-6) for t in ticks)


def test_log_ticks() -> None:
    assert log_ticks(0.2, 5) == [0.2, 0.5, 1.0, 2.0, 5.0]
    assert log_ticks(1e-4, 10) == [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]


def test_tables_are_rectangular(run: Path) -> None:
    for section in build(read(run)):
        for block in section.blocks:
            table = block.table if isinstance(block, Chart) else block
            if isinstance(table, Table):
                assert {len(row) for row in table.rows} == {len(table.columns)}, table.caption


def test_the_report_needs_no_torch() -> None:
    code = "import sys, edgeslm.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_curve_was_judged_on_is_said_and_when_it_is_not_what_files_were_judged_on(tmp_path):
    run = make_run(tmp_path)
    summary = run / FOLDERS["distill"] / "summary.json"
    then = {"files": ["a.txt", "b.txt"], "windows": 8, "context": 512, "digest": "aaaa"}
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "judged": then}), encoding="utf-8")
    judged = run / FOLDERS["evaluate"] / "judged.json"
    for now, differs in (({**then}, False), ({**then, "files": ["c.txt"], "digest": "bbbb"}, True), ({}, False)):
        _write(judged, now)
        said = render(run).markdown.read_text(encoding="utf-8")
        assert "judged on 8 windows of 512 tokens of a.txt, b.txt." in said
        assert ("other text, 8 windows of 512 tokens of c.txt" in said) == differs


def test_what_each_process_of_a_training_took_is_told(tmp_path):
    run = make_run(tmp_path)
    summary = run / FOLDERS["distill"] / "summary.json"
    plain = json.loads(summary.read_text())
    assert "Processes" not in render(run).markdown.read_text(encoding="utf-8")
    told = {"ranks": 2, "parallel": {"kind": "fsdp2"}, "peak_memory_bytes": [2_000_000_000, None], "held_bytes": [5e6]}
    _write(summary, plain | {"processes": told})
    said = render(run).markdown.read_text(encoding="utf-8")
    assert re.search(r"\| Processes +\| +2, fsdp2 \|", said) and f"| {byte_count(2e9)}, not measured |" in said
    assert f"| {byte_count(5e6)} |" in said
    for damaged in (7, [], {"ranks": "x", "parallel": 3, "held_bytes": 4}):
        _write(summary, plain | {"processes": damaged})
        assert "Processes" not in render(run).markdown.read_text(encoding="utf-8")
