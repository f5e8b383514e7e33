"""A fleet: documents as the real benchmark writes them, then rows, fronts, the page, its JSON and its CSV agree."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_documents as docs
import pytest
from test_report import Page, make_run

from edgeslm import fleet
from edgeslm.errors import DataError
from edgeslm.fleet import Fleet, front, gather
from edgeslm.report import fleet as page
from edgeslm.report.blocks import ABSENT, Chart, Table
from edgeslm.report.fleet_ceilings import BUDGETS, room
from edgeslm.report.fleet_choices import axes, points
from edgeslm.report.fleet_deltas import label
from edgeslm.report.fleet_figures import COLUMNS, as_csv, safe
from edgeslm.report.fleet_tables import DAGGER, figure

EVIL = "<script>alert('x')</script> & |"
LASTING = replace(docs.SETTINGS, sustained_s=120.0)


def energy(document: dict[str, Any], files: tuple[docs.File, ...], kind: str, covers: str) -> None:
    rng = random.Random(2)
    for f in files:
        for phase in ("decode", "prefill"):
            values = [3 / f.decode * rng.uniform(0.97, 1.03) for _ in range(6)]
            note = "by hand" if kind == "estimated" else ""
            extra = {"phase": phase, "processes": 3}
            docs.more(document, f.name, "energy_per_token", "J/token", values, kind=kind, covers=covers, note=note,
                      extra=extra)  # fmt: skip
        covered = covers.removesuffix(", above idle")
        docs.more(document, f.name, "idle_power", "W", [2.7, 2.8], kind=kind, covers=covered, extra={"processes": 2})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three devices, a stand-in, and a report with the files' quality."""
    work = tmp_path_factory.mktemp("fleet")
    laptop = docs.document(work / "w", docs.LAPTOP, speed=4.1, seed=1, settings=LASTING)
    energy(laptop, docs.FILES, "estimated", "CPU cores")
    pi = docs.document(work / "w", docs.PI, speed=0.6, seed=2, settings=LASTING)
    energy(pi, docs.FILES, "measured", "sum of the rails, above idle")
    phone = docs.document(work / "w", {**docs.PHONE, "soc": EVIL}, docs.FILES[1:], speed=1.7, seed=3, others=1.4)
    teacher = docs.FILES[0].artifact.to_json()
    phone["artifacts"].append({k: v for k, v in teacher.items() if k != "path"})
    phone["problems"].append({"artifact": teacher["name"], "what": "does not fit: it needs 1.2 GB, there is 0.9 GB"})
    emulated = docs.document(work / "w", docs.EMULATED, docs.FILES, speed=0.03, seed=4)
    energy(emulated, docs.FILES, "measured", "sum of the rails, above idle")
    for name, data in (("laptop", laptop), ("pi", pi), ("phone", phone), ("emulated", emulated)):
        docs.write(work / f"{name}.json", data)
    docs.write(work / "quality.json", docs.report())
    return work


def gathered(written: Path, *names: str) -> Fleet:
    every = names or ("laptop", "pi", "phone", "emulated", "quality")
    return gather([source for name in every for source in fleet.read(written / f"{name}.json")])


@pytest.fixture(scope="module")
def whole(written: Path) -> Fleet:
    return gathered(written)


@pytest.fixture(scope="module")
def files(whole: Fleet, tmp_path_factory: pytest.TempPathFactory) -> page.FleetFiles:
    return page.render(whole, tmp_path_factory.mktemp("page") / "fleet")


@pytest.fixture(scope="module")
def data(files: page.FleetFiles) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files.json.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    return found


@pytest.fixture(scope="module")
def html(files: page.FleetFiles) -> Page:
    return Page(files.html.read_text(encoding="utf-8"))


def on_front(points: list[tuple[float, float]], higher: tuple[bool, bool]) -> set[int]:
    """By the definition, every point against every other."""

    def good(p: tuple[float, float]) -> tuple[float, float]:
        return (p[0] if higher[0] else -p[0]), (p[1] if higher[1] else -p[1])

    best = set()
    for i, p in enumerate(points):
        (x, y) = good(p)
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in map(good, points))
        best |= set() if beaten else {i}
    return best


def test_the_front_is_that_of_the_definition() -> None:
    rng = random.Random(0)
    sizes = []
    for _ in range(400):
        found = [(rng.randint(0, 6), rng.randint(0, 6)) for _ in range(rng.randint(0, 12))]  # many ties
        for higher in ((False, False), (True, False), (False, True), (True, True)):
            expected = on_front(found, higher)
            assert front(found, higher) == expected, (found, higher)
            sizes.append(len(expected))
    assert max(sizes) > 3 and front([(1.0, 1.0), (1.0, 1.0)]) == {0, 1}


def test_rows_are_files_on_devices(whole: Fleet) -> None:
    assert list(whole.devices) == [docs.LAPTOP["id"], docs.PI["id"], docs.PHONE["id"]]
    assert [len(whole.of(d)) for d in whole.devices] == [5, 5, 5] and len(whole.stand_ins) == 5
    row = whole.of(docs.PI["id"])[2]
    assert row.artifact == "student-q4_0.gguf" and row.bits == pytest.approx(8 * row.file["weight_bytes"] / 106_196_352)
    assert row.quality["kl"].median == 0.287 and row.quality["perplexity"].median == 24.31
    decode = row.get("decode", 128)
    assert decode is not None and decode.extra["depth"] == 128 and row.get("decode", 64) is None


def test_choices_mark_each_device_s_own_front(whole: Fleet, data: dict[str, Any]) -> None:
    seen = 0
    for axis in axes(whole):
        found = points(whole, axis)
        for rivals in {p.rivals for p in found}:
            mine = [p for p in found if p.rivals == rivals]
            expected = on_front([(p.value, p.quality) for p in mine], (axis.better == "higher", False))
            assert {i for i, p in enumerate(mine) if p.on_front} == expected
            seen += 1
    assert seen >= 12  # size, and three devices in decode, prefill, memory, and two kinds of energy
    sizes = [c for c in data["choices"] if c["axis"] == "size"]
    assert len(sizes) == len({c["sha256"] for c in sizes}) == 5  # a file counts once, whatever ran it
    kinds = {(c["device"], c["kind"], c["covers"]) for c in data["choices"] if c["axis"] == "energy"}
    assert {kind for _, kind, _ in kinds} == {"estimated", "measured"}


def test_files_judged_on_another_text_stay_out_of_the_pictures(written: Path) -> None:
    other = json.loads((written / "quality.json").read_text(encoding="utf-8"))
    for m in other["measurements"]:
        if m["where"]["artifact"] == "student-q2_k.gguf":
            m["where"]["job"] = {"text": "another", "windows": 8}
    sources = [*fleet.read(written / "pi.json"), fleet.document(other, "quality")]
    found = gather(sources)
    assert "student-q2_k.gguf" not in {p.row.artifact for axis in axes(found) for p in points(found, axis)}
    said = [b.text for b in next(s for s in page.sections(found, []) if s.key == "choices").blocks
            if not isinstance(b, Chart)]  # fmt: skip
    assert said == ["student-q2_k.gguf is in none of these pictures: it was judged on another text"]


def test_the_page_holds_every_figure_of_the_json(whole: Fleet, data: dict[str, Any], html: Page) -> None:
    rows = {tuple(row) for table in html.tables for row in table}
    assert len(data["figures"]) > 250
    for f in [*data["figures"], *data["quality"], *data["stand_ins"]]:
        shown = [figure(f[k], f["unit"]) for k in ("median", "p10", "p90")]
        between = "none" if f["low"] is None else f"{figure(f['low'], f['unit'])} to {figure(f['high'], f['unit'])}"
        row = (f["artifact"], f["runtime"], str(f["threads"]), label(f["metric"], f["at"]), shown[0], between,
               *shown[1:], f"{f['n']:,}", str(f["processes"] or "unknown"), f["kind"], f["covers"])  # fmt: skip
        assert row in rows, row
    cells = {cell for row in rows for cell in row}
    beside = [d for *_, found in page.compared(whole) for d in found.deltas]
    assert [d.to_json() for d in beside] == data["teacher_beside_student"]
    assert all({d.words, figure(d.left_value, d.unit)} <= cells for d in beside if d.metric in page.ORDER)
    for b in data["bounds"]:
        assert f"{100 * b['share']:.0f} %" in cells and figure(b["modelled"], b["unit"]) in cells
    for p in data["predictions"]:
        assert f"{100 * p['error']:+.0f} %" in cells
    assert data["bounds"] and data["predictions"] and data["fits"]


def test_the_csv_comes_back_as_it_was(files: page.FleetFiles, data: dict[str, Any]) -> None:
    lines = list(csv.DictReader(io.StringIO(files.csv.read_text(encoding="utf-8"))))
    every = [*data["figures"], *data["quality"], *data["stand_ins"]]
    assert len(lines) == len(every) > 300 and tuple(lines[0]) == COLUMNS
    for line, f in zip(lines, every, strict=True):
        for key in COLUMNS:
            value = f[key]
            if isinstance(value, bool) or value is None or isinstance(value, str):
                assert line[key] == ("" if value is None else str(safe(value)))
            else:
                assert float(line[key]) == value, key  # to the last digit


def test_a_spreadsheet_gets_no_formula() -> None:
    line = dict.fromkeys(COLUMNS, "") | {"artifact": "=cmd()", "note": 'a "quoted", one\nand more', "device": "-"}
    (back,) = csv.DictReader(io.StringIO(as_csv([line])))
    assert back["artifact"] == "'=cmd()" and back["note"] == line["note"] and back["device"] == "-"


def test_stand_ins_are_apart_and_never_compared(whole: Fleet, data: dict[str, Any], html: Page) -> None:
    emulated = docs.EMULATED["id"]
    for key in ("figures", "choices", "bounds", "predictions", "fits", "missing"):
        assert data[key] and emulated not in {row.get("device_id", row.get("device")) for row in data[key]}
    assert {d["device"] for d in data["teacher_beside_student"]} == {docs.LAPTOP["name"], docs.PI["name"]}
    assert emulated not in {d["id"] for d in data["devices"]}
    assert {f["device_id"] for f in data["stand_ins"]} == {emulated} and all(f["stand_in"] for f in data["stand_ins"])
    for section in page.sections(whole, page.compared(whole)):
        text = json.dumps([b.__dict__ for b in section.blocks], default=str)
        assert (docs.EMULATED["name"] in text) == (section.key == "stand-ins"), section.key


def test_a_fleet_of_stand_ins_alone_has_no_speed(written: Path, tmp_path: Path) -> None:
    found = gathered(written, "emulated")
    made = page.render(found, tmp_path)
    data = json.loads(made.json.read_text(encoding="utf-8"))
    assert not data["figures"] and not data["devices"] and data["stand_ins"]
    assert "Decode: not measured" in made.html.read_text(encoding="utf-8")


def test_teacher_and_student_are_set_side_by_side_with_intervals(data: dict[str, Any]) -> None:
    found = [d for d in data["teacher_beside_student"] if (d["metric"], d["at"]) == ("decode", 128)]
    assert len(found) == 8  # four students on two devices; the phone has no teacher
    for d in found:
        assert d["left"] == "teacher-f32.gguf" and d["paired"] and d["processes"] == [3, 3]
        assert d["low"] < d["factor"] < d["high"] and d["verdict"] == "better"
        file = next(f for f in docs.FILES if f.name == d["right"])
        assert d["low"] * 0.98 < file.decode / docs.FILES[0].decode < d["high"] * 1.02
    same = {d["verdict"] for d in data["teacher_beside_student"] if d["metric"] == "kv_cache"}
    assert same == {"no difference"}


def test_what_is_no_measurement_is_marked_wherever_it_stands(whole: Fleet) -> None:
    shown = {s.key: s for s in page.sections(whole, page.compared(whole))}
    captions = [b.caption for b in shown["energy"].blocks if isinstance(b, Table)]
    assert len(captions) == len(set(captions)) == 2
    assert [("estimated" in c, "measured" in c) for c in captions] == [(True, False), (False, True)]
    for key in ("bounds", "predictions"):
        heads = [h for b in shown[key].blocks if isinstance(b, Table) for h in b.columns]
        assert any("(modelled)" in h for h in heads)
    assert all("(modelled)" in b.caption for b in shown["fits"].blocks if isinstance(b, Table))
    beside = [row for b in shown["teacher"].blocks if isinstance(b, Table) for row in b.rows]
    assert any("(estimated)" in row[0] for row in beside)
    memory = [b for b in shown["memory"].blocks if isinstance(b, Table) and b.caption.startswith("Peak")]
    assert memory and all(b.columns[-1] == "KV cache, modelled" for b in memory)


def test_a_column_never_mixes_kinds_unmarked(written: Path) -> None:
    pi = json.loads((written / "pi.json").read_text(encoding="utf-8"))
    for m in pi["measurements"]:
        if m["metric"] == "decode" and m["where"]["artifact"] == "student-q4_0.gguf":
            m["kind"] = "estimated"
    found = gather([fleet.document(pi, "pi")])
    (table,) = [b for s in page.sections(found, []) if s.key == "speed" for b in s.blocks
                if isinstance(b, Table) and b.caption.startswith("Speed")]  # fmt: skip
    column = table.columns.index("Decode at 128, tokens/s")
    marks = {row[0]: "(estimated)" in row[column] for row in table.rows}
    assert marks == {f.name: f.name == "student-q4_0.gguf" for f in docs.FILES}


def test_a_file_that_does_not_fit_says_so_in_its_row(whole: Fleet, html: Page, data: dict[str, Any]) -> None:
    (row,) = [r for r in whole.of(docs.PHONE["id"]) if r.why]
    assert row.artifact == "teacher-f32.gguf" and "does not fit" in row.why
    (table,) = [t for t in html.tables if t[0][0] == "File" and any(r[0] == row.artifact and ABSENT in r for r in t)]
    assert set(next(r for r in table if r[0] == row.artifact)[1:]) == {ABSENT}
    said = "".join(html.words)
    assert "teacher-f32.gguf: not measured: does not fit: it needs 1.2 GB" in said
    assert "phone.json: teacher-f32.gguf: does not fit" in data["problems"][0]


def test_a_disturbed_run_is_marked(data: dict[str, Any], html: Page) -> None:
    marked = {f["device_id"] for f in data["figures"] if f["disturbed"]}
    assert marked == {docs.PHONE["id"]}
    assert f"{DAGGER} on Example Phone 9: others kept up to 1.4 cores busy" in "".join(html.words)
    names = {row[0] for table in html.tables for row in table}
    assert f"student-q4_0.gguf {DAGGER}" in names


def test_what_fits_follows_from_what_was_measured(whole: Fleet) -> None:
    for row in whole.of(docs.PI["id"]):
        found = room(row)
        assert [place["budget_bytes"] for place in found] == list(BUDGETS)
        resident, cache = row.get("vm_hwm"), row.get("kv_cache")
        assert resident is not None and cache is not None
        for place in found:
            needs = place["weights_bytes"] + place["buffers_bytes"]
            assert needs == pytest.approx(resident.median - cache.median)
            assert place["fits"] == (needs + place["kv_bytes_per_token"] <= place["budget_bytes"])
            if place["fits"]:
                assert needs + place["longest_context"] * place["kv_bytes_per_token"] <= place["budget_bytes"]
                assert needs + (place["longest_context"] + 1) * place["kv_bytes_per_token"] > place["budget_bytes"]
    assert not room(next(r for r in whole.rows if r.why))


def test_predictions_stand_beside_what_was_measured(whole: Fleet, data: dict[str, Any]) -> None:
    for b in (*data["bounds"], *data["predictions"]):
        row = next(r for r in whole.of(b["device"]) if r.artifact == b["artifact"])
        measured, model = row.get(b["metric"], b["at"]), row.get(b["model"], b["at"])
        assert measured is not None and model is not None and model.kind == "modelled" and measured.kind == "measured"
        assert (b["measured"], b["modelled"]) == (measured.median, model.median)
    assert all(p["error"] == pytest.approx(p["modelled"] / p["measured"] - 1) for p in data["predictions"])


def test_sustained_curves_show_the_fall(whole: Fleet) -> None:
    drawn = [b for s in page.sections(whole, []) if s.key == "sustained" for b in s.blocks if isinstance(b, Chart)]
    assert [c.title for c in drawn] == [f"Sustained decode on {docs.LAPTOP['name']}",
                                        f"Sustained decode on {docs.PI['name']}"]  # fmt: skip
    for chart in drawn:
        changes = [int(row[5].removesuffix(" %")) for row in chart.table.rows]
        assert all(-36 <= change <= -25 for change in changes)  # the fake falls to 68 %
        assert all(re.fullmatch(r"\d+ to \d+ °C", row[-1]) for row in chart.table.rows)


def test_the_page_opens_offline_and_keeps_text_text(files: page.FleetFiles, html: Page) -> None:
    source = files.html.read_text(encoding="utf-8")
    assert "default-src 'none'" in source and "prefers-color-scheme: dark" in source
    assert not re.search(r"https?:|@import|url\(|//[a-z]", source)
    for tag, attributes in html.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "onload", "onclick", "style"} & set(attributes)
    assert EVIL in "".join(html.words) and "<script" not in source


def test_drawings_are_accessible_and_inside_their_frame(whole: Fleet) -> None:
    drawn = [b for s in page.sections(whole, page.compared(whole)) for b in s.blocks if isinstance(b, Chart)]
    assert len(drawn) >= 13 and len({c.title for c in drawn}) == len(drawn)
    keys = set()
    for chart in drawn:
        root = ET.fromstring(chart.svg)
        assert root.get("role") == "img" and root[0].tag == "title" and root[1].tag == "desc"
        keys.add(root[0].get("id"))
        assert "nan" not in chart.svg and chart.table.rows
        height = float(root.get("viewBox", "").split()[3])
        for mark in root.iter():
            for axis, limit in (("x", 440), ("x1", 440), ("x2", 440), ("cx", 440), ("y", height), ("cy", height)):
                assert -0.1 <= float(mark.get(axis, "0")) <= limit + 0.1, (chart.title, mark.attrib)
    assert len(keys) == len(drawn)


def test_tables_are_rectangular(whole: Fleet) -> None:
    for section in page.sections(whole, page.compared(whole)):
        for block in section.blocks:
            table = block.table if isinstance(block, Chart) else block
            if isinstance(table, Table):
                assert {len(row) for row in table.rows} == {len(table.columns)}, table.caption


def test_the_same_fleet_gives_the_same_bytes(whole: Fleet, files: page.FleetFiles, tmp_path: Path) -> None:
    again = page.render(whole, tmp_path / "elsewhere")
    for one, other in ((files.html, again.html), (files.json, again.json), (files.csv, again.csv)):
        assert one.read_bytes() == other.read_bytes() and str(tmp_path).encode() not in other.read_bytes()


def test_a_run_folder_is_a_source(tmp_path: Path) -> None:
    found = gather(fleet.read(make_run(tmp_path)))
    assert {r.artifact for r in found.rows} >= {"student.gguf", "teacher-f32.gguf", "student-onnx"}
    assert any(r.quality for r in found.rows) and any("browser" in line for line in found.problems)
    made = page.render(found, tmp_path / "out")
    assert "student.gguf" in made.html.read_text(encoding="utf-8")
    report = docs.write(tmp_path / "results.json", {"schema": 1, "measurements": [], "artifacts": []})
    assert fleet.read(report)[0].measurements == ()


def test_a_source_given_twice_counts_once(written: Path) -> None:
    found = gathered(written, "pi", "pi")
    assert len(found.rows) == 5 and "counts once" in found.problems[0]


def test_two_documents_of_one_name_share_no_round(tmp_path: Path) -> None:
    def one(file: docs.File, seed: int) -> fleet.Source:
        return fleet.document(docs.document(tmp_path, docs.PI, (file,), seed=seed), "bench.json")

    found = gather([one(docs.FILES[0], 1), one(docs.FILES[2], 2)])
    assert found.sources == ("bench.json", "bench.json #2")
    ((_, _, deltas),) = page.compared(found)
    assert {d.metric for d in deltas.deltas} >= {"decode", "prefill"} and not any(
        d.factor.paired for d in deltas.deltas if d.factor
    )


def test_two_devices_of_one_name_are_told_apart(written: Path) -> None:
    pi = json.loads((written / "pi.json").read_text(encoding="utf-8"))
    other = deepcopy(pi)
    for m in other["measurements"]:
        m["where"]["device"]["id"] = "77aa00000000"
        m["values"] = [v * 1.01 for v in m["values"]]
    names = gather([fleet.document(pi, "a"), fleet.document(other, "b")]).names()
    assert list(names.values()) == [f"{docs.PI['name']} (91bd)", f"{docs.PI['name']} (77aa)"]


def test_more_devices_than_colours_get_a_further_picture(written: Path, tmp_path: Path) -> None:
    sources = fleet.read(written / "quality.json")
    pi = json.loads((written / "pi.json").read_text(encoding="utf-8"))
    for number in range(8):
        one = deepcopy(pi)
        for m in one["measurements"]:
            m["where"]["device"] |= {"id": f"{number}" * 12, "name": f"Board {number}"}
            m["values"] = [v * (1 + number / 100) for v in m["values"]]
        sources.append(fleet.document(one, f"{number}"))
    found = gather(sources)
    drawn = [b for s in page.sections(found, []) if s.key == "choices" for b in s.blocks if isinstance(b, Chart)]
    assert [len(c.legend) for c in drawn if "decode at" in c.title] == [6, 2]
    page.render(found, tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: d | {"schema": 3}, "schema 3"),
        (lambda d: {"schema": 2}, "holds no measurements"),
        (lambda d: [], "holds no measurements"),
        (lambda d: d | {"measurements": [{"metric": "decode"}]}, "measurement 0 is damaged"),
        (lambda d: d | {"measurements": [d["measurements"][0] | {"kind": "guessed"}]}, "of no known kind"),
        (lambda d: d | {"measurements": [d["measurements"][0] | {"values": []}]}, "without a value"),
    ],
)
def test_what_is_no_document_is_refused(written: Path, tmp_path: Path, damage: Any, said: str) -> None:
    data = json.loads((written / "pi.json").read_text(encoding="utf-8"))
    with pytest.raises(DataError, match=said):
        fleet.read(docs.write(tmp_path / "x.json", damage(data)))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    for content, said in ((b'{"schema": 2', "no sound JSON"), (b'{"a": NaN}', "NaN"), (b"\xff", "cannot be read")):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(DataError, match=said):
            fleet.read(tmp_path / "x.json")
    with pytest.raises(DataError, match="cannot be read"):
        fleet.read(tmp_path / "nowhere.json")


def test_a_record_is_read_line_by_line(written: Path, tmp_path: Path) -> None:
    lines = [json.loads((written / f"{name}.json").read_text(encoding="utf-8")) for name in ("pi", "laptop")]
    record = tmp_path / "devices.jsonl"
    record.write_text("".join(json.dumps({"date": "2025-01-01", **line}) + "\n" for line in lines), encoding="utf-8")
    assert [s.name for s in fleet.read(record)] == ["devices.jsonl:1", "devices.jsonl:2"]
    assert len(gather(fleet.read(record)).devices) == 2


def test_no_torch() -> None:
    code = (
        "import sys, edgeslm.report.fleet, edgeslm.cli.report, edgeslm.device_record; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
