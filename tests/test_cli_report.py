"""`edgeslm report`: deltas that refuse the unlike, a record that takes only what is sound, and the README's table."""

from __future__ import annotations

import datetime
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_documents as docs
import pytest

from benchmarks import devices, devices_picture
from edgeslm import device_record, fleet, privacy
from edgeslm.cli import report as cli_report
from edgeslm.errors import DataError
from edgeslm.measurement import UnlikeRuns
from edgeslm.report.blocks import Table
from edgeslm.report.fleet import sections

PAIR = docs.FILES[:1] + docs.FILES[2:3]  # the float32 teacher and the Q4_0 student
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("w")


@pytest.fixture(scope="module")
def good(work: Path) -> dict[str, Any]:
    return docs.document(work, docs.PI, PAIR, seed=1)


@pytest.fixture(scope="module")
def faster(work: Path) -> dict[str, Any]:
    """The same machine another day, its student a fifth faster."""
    return docs.document(work, docs.PI, PAIR, seed=2, factor={"student-q4_0.gguf": 1.2})


def report(*paths: Path, compare: bool = False, add: bool = False, page: bool = False, **rest: Any) -> str:
    options = {"to": None, "out": None, "as_json": False} | rest
    return cli_report.report(paths, compare, page, add, options["to"], options["out"], options["as_json"])


def both(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> tuple[Path, Path]:
    return docs.write(tmp_path / "a.json", a), docs.write(tmp_path / "b.json", b)


def test_deltas_say_what_changed_and_what_did_not(tmp_path: Path, good: dict[str, Any], faster: dict[str, Any]) -> None:
    text = report(*both(tmp_path, good, faster), compare=True)
    blocks = {b.splitlines()[0].split(" ")[0]: b for b in text.split("\n\n")}
    student, teacher = blocks["student-q4_0.gguf"], blocks["teacher-f32.gguf"]
    for line in (line for line in student.splitlines() if line.startswith(("  decode", "  prefill"))):
        assert re.search(r"1\.[12]\d× faster \(1\.\d\d× to 1\.\d\d×\)$", line), line
    for metric in ("load", "decode at 128", "prefill of 128", "memory (PSS peak)", "KV cache"):
        (line,) = [line for line in teacher.splitlines() if line.startswith(f"  {metric} ")]
        assert "no difference" in line
    found = json.loads(report(*both(tmp_path, good, faster), compare=True, as_json=True))
    decode = [d for d in found["deltas"] if d["metric"] == "decode" and d["left"].startswith("student")]
    assert len(decode) == 2 and all(d["verdict"] == "better" and d["low"] < 1.2 < d["high"] for d in decode)
    assert not any(d["paired"] for d in found["deltas"])  # two documents share no round


def test_a_report_beside_itself_is_no_difference(tmp_path: Path, good: dict[str, Any]) -> None:
    found = json.loads(report(*both(tmp_path, good, good), compare=True, as_json=True))
    assert len(found["deltas"]) > 20 and {d["verdict"] for d in found["deltas"]} == {"no difference"}
    assert found["not_compared"] == []


def everywhere(change: Callable[[dict[str, Any]], None]) -> Change:
    def apply(document: dict[str, Any]) -> None:
        for m in document["measurements"]:
            change(m)

    return apply


UNLIKE: dict[str, Change] = {
    "device (": everywhere(lambda m: m["where"]["device"].update(id="000000000000")),
    "runtime (": everywhere(lambda m: m["where"].update(runtime_version="0.6.0")),
    "threads (": everywhere(lambda m: m["where"].update(threads=1)),
    "job's context (": everywhere(lambda m: m["where"]["job"].update(context=4096)),
    "kind (": everywhere(lambda m: m.update(kind="estimated")),
    "coverage (": everywhere(lambda m: m.update(covers="another rail")),
    "a stand-in": everywhere(lambda m: m["where"]["device"].update(stand_in=True)),
}


@pytest.mark.parametrize("reason", sorted(UNLIKE))
def test_unlike_runs_are_refused_with_the_reason(tmp_path: Path, good: dict[str, Any], reason: str) -> None:
    other = deepcopy(good)
    UNLIKE[reason](other)
    for paths in (both(tmp_path, good, other), both(tmp_path, other, good)):
        with pytest.raises(UnlikeRuns, match=re.escape(reason)):
            report(*paths, compare=True)


def test_what_is_alike_is_compared_and_the_rest_named(tmp_path: Path, good: dict[str, Any]) -> None:
    other = deepcopy(good)
    for m in other["measurements"]:
        if m["where"]["artifact"].startswith("student"):
            m["where"]["threads"] = 1
    other["measurements"] = [m for m in other["measurements"] if m["metric"] != "load"]
    found = json.loads(report(*both(tmp_path, good, other), compare=True, as_json=True))
    compared = {(d["left"], d["metric"]) for d in found["deltas"]}
    assert {metric for file, metric in compared if file.startswith("student")} == {"size"}
    assert ("teacher-f32.gguf", "decode") in compared and ("teacher-f32.gguf", "load") not in compared
    (said,) = found["not_compared"]
    assert said.startswith("student-q4_0.gguf, because of threads (4 and 1): ") and "decode at 128" in said


def test_files_in_one_only_are_named_and_single_files_go_together(
    tmp_path: Path, work: Path, good: dict[str, Any]
) -> None:
    more = docs.document(work, docs.PI, docs.FILES[:3], seed=1)
    assert "not compared: student-q8_0.gguf: only in the second" in report(*both(tmp_path, good, more), compare=True)
    one = docs.document(work, docs.PI, docs.FILES[1:2])
    other = docs.document(work, docs.PI, docs.FILES[2:3])
    assert report(*both(tmp_path, one, other), compare=True).startswith("student-q8_0.gguf -> student-q4_0.gguf on")
    with pytest.raises(DataError, match="no figure of one file in common"):
        report(*both(tmp_path, docs.document(work, docs.PI, docs.FILES[3:]), good), compare=True)


def test_quality_is_compared_where_it_was_judged_alike(tmp_path: Path) -> None:
    one, other = docs.report(), docs.report()
    for m in other["measurements"]:
        m["values"] = [m["values"][0] * 1.5]
        m["extra"]["standard_error"] = 0.001
    for m in one["measurements"]:
        m["extra"]["standard_error"] = 0.001
    text = report(*both(tmp_path, one, other), compare=True)
    assert len(re.findall(r"KL from the teacher .* 1\.50× farther", text)) == 4
    for m in other["measurements"]:
        m["where"]["job"] = {"text": "another"}
    with pytest.raises(UnlikeRuns, match="job's text"):
        report(*both(tmp_path, one, other), compare=True)


def test_one_process_is_not_enough_to_tell(tmp_path: Path, work: Path) -> None:
    single = replace(docs.SETTINGS, processes=1)
    a, b = (docs.document(work, docs.PI, PAIR, seed=s, settings=single) for s in (1, 2))
    found = json.loads(report(*both(tmp_path, a, b), compare=True, as_json=True))
    assert {d["verdict"] for d in found["deltas"] if d["metric"] == "decode"} == {"undecided"}


def test_the_verbs_do_not_mix(tmp_path: Path) -> None:
    for options in ({"compare": True, "add": True}, {"to": tmp_path}, {"out": tmp_path}, {"compare": True}):
        with pytest.raises(DataError):
            report(tmp_path, **options)


def test_the_page_of_a_fleet_is_written(tmp_path: Path, good: dict[str, Any], faster: dict[str, Any]) -> None:
    names = report(*both(tmp_path, good, faster), page=True, out=tmp_path / "out").splitlines()
    assert [Path(n).name for n in names] == ["fleet.html", "fleet.json", "fleet.csv"] and all(
        map(Path.is_file, map(Path, names))
    )
    empty = docs.write(tmp_path / "e.json", {"schema": 2, "measurements": []})
    with pytest.raises(DataError, match="no figure of any device"):
        report(empty, page=True, out=tmp_path / "out")


def test_a_sound_document_is_added_without_its_statistics(tmp_path: Path, good: dict[str, Any]) -> None:
    record = tmp_path / "devices.jsonl"
    record.write_text("")
    said = report(docs.write(tmp_path / "mine.json", good), add=True, to=record)
    assert said.startswith("mine.json: ") and "Raspberry Pi 5" in said
    (line,) = device_record.read(record)
    assert line["date"] == datetime.datetime.now(datetime.UTC).date().isoformat()
    assert [{k: v for k, v in m.items() if k != "statistics"} for m in good["measurements"]] == line["measurements"]
    assert line["artifacts"] == good["artifacts"]
    (source,) = fleet.read(record)
    assert source.measurements == fleet.document(good, "").measurements


def test_what_is_there_already_is_refused(tmp_path: Path, good: dict[str, Any], faster: dict[str, Any]) -> None:
    record, mine = tmp_path / "devices.jsonl", docs.write(tmp_path / "mine.json", good)
    record.write_text("")
    report(mine, add=True, to=record)
    partly = deepcopy(faster)
    timed = [m for m in good["measurements"] if m["metric"] == "decode"]
    partly["measurements"].append(timed[0])
    for again in (mine, docs.write(tmp_path / "partly.json", partly)):
        with pytest.raises(DataError, match="recorded already"):
            report(again, add=True, to=record)
    fresh = docs.write(tmp_path / "fresh.json", faster)
    with pytest.raises(DataError, match="recorded already"):  # twice in one go: none of them goes in
        report(fresh, fresh, add=True, to=record)
    record.write_bytes(record.read_bytes().rstrip(b"\n"))
    report(fresh, add=True, to=record)
    assert len(device_record.read(record)) == 2


def test_where_there_is_no_record_one_must_be_named(
    tmp_path: Path, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = docs.write(tmp_path / "mine.json", good)
    with pytest.raises(DataError, match="--to"):
        report(mine, add=True)
    cli_report.RECORD.parent.mkdir(parents=True)
    cli_report.RECORD.write_text("")
    report(mine, add=True)
    assert len(device_record.read(cli_report.RECORD)) == 1


def decode(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in document["measurements"] if m["metric"] == "decode")
    return found


WRONG: dict[str, tuple[Change, str]] = {
    "stand-in": (UNLIKE["a stand-in"], "stand-in"),
    "another schema": (lambda d: d.update(schema=3), "schema 3"),
    "no schema": (lambda d: d.pop("schema"), "no bench document"),
    "schema as text": (lambda d: d.update(schema="2"), "schema '2'"),
    "schema true": (lambda d: d.update(schema=True), "schema True"),
    "a number as text": (lambda d: decode(d).update(values=["61.2"]), "values"),
    "a truth for a number": (lambda d: decode(d).update(values=[True]), "values"),
    "no value": (lambda d: decode(d).update(values=[]), "values"),
    "a negative speed": (lambda d: decode(d).update(values=[-1.0], statistics=None), "negative"),
    "a speed of zero": (lambda d: decode(d).update(values=[0.0], statistics=None), "is 0"),
    "statistics of others": (lambda d: decode(d)["statistics"].update(median=1e9), "statistics are not those"),
    "an unknown kind": (lambda d: decode(d).update(kind="guessed"), "kind"),
    "an unknown key": (lambda d: d.update(owner="me"), "owner"),
    "a key in a figure": (lambda d: decode(d).update(colour="red"), "colour"),
    "threads of none": (lambda d: decode(d)["where"].update(threads=0), "threads"),
    "a hot start": (lambda d: decode(d)["where"].update(temperature_c=900.0), "temperature"),
    "a file unheard of": (lambda d: d.update(artifacts=[]), "artifacts does not list student-q4_0.gguf"),
    "a file in a folder": (lambda d: decode(d)["where"].update(artifact="models/a.gguf"), "artifact"),
    "an artifact's path": (lambda d: d["artifacts"][0].update(path="x"), "path"),
    "a hash that is none": (lambda d: d["artifacts"][0].update(sha256="xyz"), "sha256"),
    "a device without a name": (lambda d: decode(d)["where"]["device"].pop("name"), "id and a name"),
    "nothing timed": (
        lambda d: d.update(measurements=[m for m in d["measurements"] if m["unit"] == "bytes"]),
        "nothing in it was timed",
    ),
    "a measurement that is none": (lambda d: d["measurements"].append(7), "measurements"),
    "nested without end": (lambda d: decode(d)["extra"].update(a=nested(60)), "nested deeper"),
}  # fmt: skip


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 0


@pytest.mark.parametrize("what", sorted(WRONG))
def test_what_is_not_sound_is_refused(tmp_path: Path, good: dict[str, Any], what: str) -> None:
    change, said = WRONG[what]
    document, record = deepcopy(good), tmp_path / "devices.jsonl"
    change(document)
    record.write_text("")
    with pytest.raises(DataError, match=said):
        report(docs.write(tmp_path / "x.json", document), add=True, to=record)
    assert record.read_text() == ""


def test_numbers_that_are_none_are_refused(tmp_path: Path, good: dict[str, Any]) -> None:
    text = json.dumps(good)
    first = repr(decode(good)["values"][0])
    for bad in ("NaN", "Infinity", "-Infinity", "1e999"):
        (tmp_path / "x.json").write_text(text.replace(first, bad, 1))
        with pytest.raises(DataError, match=r"NaN|Infinity|finite|inf|statistics|compliant"):
            report(tmp_path / "x.json", add=True, to=tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


PERSONAL: dict[str, tuple[Change, str]] = {
    "a host's name by key": (lambda d: decode(d)["where"]["device"].update(hostname="kitchen"), "by its key"),
    "a serial by key": (lambda d: decode(d)["where"]["device"].update(serial="x"), "by its key"),
    "a user by key": (lambda d: decode(d)["extra"].update(user_name="x"), "by its key"),
    "a serial by look": (lambda d: decode(d)["where"]["device"].update(board="R5CT1234ABC"), "serial number"),
    "a board's serial": (lambda d: decode(d)["where"]["device"].update(board="10000000abcdef12"), "serial number"),
    "an emulator's": (lambda d: decode(d)["where"]["device"].update(board="emulator-5554"), "serial number"),
    "a path": (lambda d: decode(d).update(note="read from /home/kim/models/a.gguf"), "path of some machine"),
    "a path of Windows": (lambda d: decode(d).update(note="read from C:\\Users\\kim"), "path of some machine"),
    "a path in a list": (lambda d: decode(d)["where"]["job"].update(files=["/sys/class/power/x"]), "path of some"),
    "a home": (lambda d: d["problems"].append({"artifact": "a", "what": "in ~/models"}), "path of some machine"),
    "an account": (lambda d: decode(d).update(covers="ssh:kim@10.0.0.7"), "account or mail"),
    "an address": (lambda d: decode(d).update(note="asked 192.168.1.17 first"), "network address"),
    "a card's address": (lambda d: decode(d).update(note="by b8:27:eb:12:34:56"), "network address"),
    "a local name": (lambda d: decode(d)["where"]["device"].update(name="kitchen.local"), "host's name"),
    "a page": (lambda d: decode(d).update(note="see https://example.org/me"), "address in the web"),
    "a name of here": (lambda d: decode(d).update(note="on quokkabox, as always"), "name of this machine"),
    "in a key": (lambda d: decode(d)["extra"].update({"/home/kim/x": 1}), "path of some machine"),
}


@pytest.mark.parametrize("what", sorted(PERSONAL))
def test_what_looks_personal_is_refused_and_not_repeated(
    tmp_path: Path, good: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = PERSONAL[what]
    document = deepcopy(good)
    change(document)
    monkeypatch.setattr(privacy, "names_here", lambda: ["quokkabox", "pi", "root"])
    with pytest.raises(DataError, match=said) as refused:
        report(docs.write(tmp_path / "x.json", document), add=True, to=tmp_path / "r.jsonl")
    for secret in ("kitchen", "kim", "R5CT1234ABC", "192.168", "b8:27", "quokkabox", "10000000abcdef12"):
        if what != "in a key":
            assert secret not in str(refused.value)


def test_what_devices_really_say_is_not_personal() -> None:
    """Versions with four numbers, kernels, hashes, SoC names, units with a slash."""
    facts = {"browser": "Chromium 141.0.7390.54", "kernel": "6.18.44-fc-v669", "id": "5f3a9c2110ab", "soc": "SM8750AB",
             "os": "Debian GNU/Linux 12 (bookworm)", "cpu": "Intel(R) Core(TM) i7-1165G7 @ 2.80GHz",
             "name": "Raspberry Pi 5 Model B Rev 1.0, 4x Cortex-A76"}  # fmt: skip
    document = {"measurements": [{"unit": "tokens/s", "where": {"device": facts, "artifact_sha256": "0" * 64}}]}
    assert privacy.found(document, ["pi", "root"]) == []


def test_the_schema_that_is_published_is_the_one_that_is_checked() -> None:
    written = json.loads(devices.SCHEMA.read_text(encoding="utf-8"))
    assert written == device_record.schema(), "run python -m benchmarks.devices --schema"
    assert set(device_record.schema()["required"]) == {"schema", "measurements", "artifacts"}


def test_the_table_and_the_headline_come_from_the_record(
    good: dict[str, Any], faster: dict[str, Any], work: Path
) -> None:
    phone = docs.document(work, docs.PHONE, docs.FILES[1:3], seed=3, others=1.4)
    docs.more(faster, "student-q4_0.gguf", "energy_per_token", "J/token", [0.1, 0.11, 0.1],
              extra={"phase": "decode", "processes": 3}, covers="sum of the rails")  # fmt: skip
    records = [good, faster, phone]
    lines = devices.table(records).splitlines()
    rows = [line for line in lines if line.startswith("|")][2:]
    assert len(rows) == 4  # two files on the Pi (its newest document) and two on the phone
    student = next(r for r in rows if "Raspberry" in r and "student-q4_0" in r)
    assert "**`student-q4_0.gguf`**" in student and "mJ/token" in student and "128: " in student
    assert all("†" in r for r in rows if "Phone" in r) and not any("†" in r for r in rows if "Raspberry" in r)
    assert "`student-q4_0.gguf` beside `teacher-f32.gguf` on Raspberry Pi 5" in lines[-1]
    head = devices.show(records)
    assert head["devices"] == 2 and head["decode_ratio"] == pytest.approx(1.2 * 61.2 / 15.4, rel=0.03)
    assert {"size_ratio", "load_ratio", "first_token_ratio", "prefill_ratio", "memory_ratio"} < set(head)


def test_the_picture_shows_both_and_says_what_is_not_measured(good: dict[str, Any], work: Path) -> None:
    drawn = devices_picture.draw([good, docs.document(work, docs.PHONE, docs.FILES[1:2])])
    root = ET.fromstring(drawn)
    words = [t.text or "" for t in root.iter() if t.tag.endswith("text")]
    assert sum(w == "teacher" for w in words) == sum(w == "student" for w in words) == 6
    assert any("no power sensor" in w for w in words) and any(w.endswith("smaller") for w in words)
    assert any("3 fresh processes" in w for w in words) and any("Raspberry Pi 5" in w for w in words)
    width, height = (float(v) for v in root.get("viewBox", "").split()[2:])
    for mark in root.iter():
        for axis, limit in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height)):
            assert 0 <= float(mark.get(axis, "0")) <= limit
    with pytest.raises(SystemExit):
        devices_picture.draw([docs.document(work, docs.PHONE, docs.FILES[1:2])])


def test_a_record_of_stand_ins_has_no_pair(work: Path) -> None:
    emulated = docs.document(work, docs.EMULATED, PAIR)
    assert devices.newest_pair([emulated]) is None and devices.show([emulated]) == {"devices": 0}
    found = fleet.gather(devices.sources([emulated]))
    tables = [b for s in sections(found, []) for b in s.blocks if isinstance(b, Table)]
    assert {s.key for s in sections(found, []) if any(isinstance(b, Table) for b in s.blocks)} >= {"stand-ins"}
    assert tables
