"""Meters: parsers on recorded text, counters that wrap or may not be read, estimates that say so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from edgeslm.meters import METERS, energy, fits, latency, memory

STATUS = """Name:\tpython
VmPeak:\t  500000 kB
VmHWM:\t  169580 kB
VmRSS:\t  169580 kB
RssAnon:\t   52476 kB
RssFile:\t  117104 kB
RssShmem:\t       0 kB
VmSwap:\t      12 kB
Threads:\t4
"""
SMAPS = """55f0-7ffd ---p 00000000 00:00 0    [rollup]
Rss:              169580 kB
Pss:              158440 kB
Pss_Dirty:         52480 kB
"""


def result(**change: Any) -> dict[str, Any]:
    prefill = {"seconds": 0.5, "first_s": 0.6, "cpu_s": 1.0, "rails": [[], []]}
    run = {"seconds": 2.0, "token_latency_s": [0.5] * 4, "cpu_s": 3.0, "rails": [[1_000_000], [5_000_000]]}
    decode = {"warmups": [{**run, "seconds": 4.0}], "runs": [run, {**run, "seconds": 1.0}]}
    return {
        "load_s": 0.1,
        "phases": [
            {"kind": "prefill", "tokens": 10, "depth": 0, "warmups": [prefill], "runs": [prefill, prefill]},
            {"kind": "decode", "tokens": 4, "depth": 10, **decode},
        ],
        "memory": {"before_load": {"rss_anon": 5}, "samples": [{"rss_anon": 10, "vm_swap": 0}, {"rss_anon": 30}]},
        **change,
    }


def zone(root: Path, name: str, label: str, counter: str, limit: str = "262143328850") -> Path:
    folder = root / "class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (folder / "energy_uj").write_text(counter + "\n")
    (folder / "max_energy_range_uj").write_text(limit + "\n")
    return folder


def test_table() -> None:
    assert {name: meter.name for name, meter in METERS.items()} == {n: n for n in ("latency", "memory", "energy")}


@pytest.mark.parametrize("name", sorted(METERS))
def test_a_meter_without_sensors_gives_no_zero(name: str) -> None:
    bare = result(memory={"before_load": {}, "samples": []})
    for reading in METERS[name].read([bare], {"sysfs": None, "watts_per_core": None}):
        assert reading.values and all(value > 0 for value in reading.values)


def test_status_and_smaps() -> None:
    kb = 1024
    assert memory.parse_status(STATUS) == {
        "vm_hwm": 169580 * kb,
        "rss_anon": 52476 * kb,
        "rss_file": 117104 * kb,
        "vm_swap": 12 * kb,
    }
    assert memory.parse_smaps_rollup(SMAPS) == {"pss": 158440 * kb}
    assert memory.parse_status("RssAnon:\t12\nVmHWM: x kB\n") == {}


def test_memory_is_the_peak_of_each_process_and_leaves_out_what_the_kernel_lacks() -> None:
    readings = memory.read([result(), result()], {})
    assert [(r.metric, r.values) for r in readings] == [("rss_anon_peak", (30.0, 30.0)), ("swap_peak", (0.0, 0.0))]
    assert readings[0].extra == {"before_load_bytes": [5, 5], "swap_peak_bytes": 0} and readings[0].note == ""


def test_memory_that_went_to_swap_is_said_beside_every_figure() -> None:
    samples = [{"rss_anon": 10, "vm_hwm": 12, "vm_swap": 0}, {"rss_anon": 7, "vm_hwm": 12, "vm_swap": 4096}]
    found = {r.metric: r for r in memory.read([result(memory={"before_load": {}, "samples": samples})], {})}
    assert found["swap_peak"].values == (4096.0,) and set(found) == {"rss_anon_peak", "vm_hwm", "swap_peak"}
    assert all("4096 bytes were in swap" in reading.note for reading in found.values())


def test_the_cache_is_seen_and_computed() -> None:
    engine = {"layers": 2, "kv_heads": 3, "head_dim": 4, "kv_element_bytes": 2, "context": 100}
    (reading,) = [r for r in memory.read([result(engine=engine, kv_cache_bytes=9600)], {}) if r.metric == "kv_cache"]
    assert reading.values == (9600.0,) and reading.extra == {"computed_bytes": 9600} and not reading.note
    (rounded,) = [r for r in memory.read([result(engine=engine, kv_cache_bytes=24576)], {}) if r.metric == "kv_cache"]
    assert "rounds the context up of 100: 2.56" in rounded.note
    (less,) = [r for r in memory.read([result(engine=engine, kv_cache_bytes=4800)], {}) if r.metric == "kv_cache"]
    assert "less than the whole context of 100: 0.50" in less.note
    (blind,) = [r for r in memory.read([result(kv_cache_bytes=4800)], {}) if r.metric == "kv_cache"]
    assert blind.extra == {"computed_bytes": None} and blind.note == ""


ENGINE = {"layers": 2, "kv_heads": 3, "head_dim": 4, "kv_element_bytes": 2, "context": 100}


def test_what_fits_into_a_budget() -> None:
    one = fits.Footprint("m", 1000.0, 10.0, 200.0)
    assert one.needs(30) == 1500.0
    fine, short = fits.fits(1500.0, one, 30), fits.fits(1499.0, one, 30)
    assert fine.fits and fine.spare_bytes == 0.0 and fine.longest_context == 30
    assert not short.fits and short.spare_bytes == -1.0 and short.longest_context == 29
    assert fits.fits(900.0, one, 1).longest_context == 0
    assert fits.fits(1e9, fits.Footprint("m", 1.0, 0.0, 0.0), 1).longest_context is None
    assert "1.5 kB" in fine.why and "does not fit into" in short.why


def test_buffers_are_what_the_peak_holds_besides_weights_and_cache() -> None:
    samples = [{"vm_hwm": 20_000, "vm_swap": 0}]
    one = result(engine=ENGINE, kv_cache_bytes=9600, memory={"before_load": {}, "samples": samples})
    assert fits.footprint("m", one, 5000) == fits.Footprint("m", 5000.0, 96.0, 5400.0)
    assert fits.footprint("m", one, 50_000) == fits.Footprint("m", 50_000.0, 96.0, 0.0)
    unseen = {**one, "kv_cache_bytes": None}
    assert fits.footprint("m", unseen, 5000) == fits.Footprint("m", 5000.0, 96.0, 5400.0)
    swapped = result(engine=ENGINE, memory={"before_load": {}, "samples": [{"vm_hwm": 20_000, "vm_swap": 5}]})
    assert fits.footprint("m", swapped, 5000) is None and fits.footprint("m", result(engine=ENGINE), 5000) is None
    assert fits.footprint("m", {**one, "engine": {}}, 5000) is None


def test_a_teacher_takes_the_most_exact_precision_that_fits() -> None:
    weights = {"float32": 400e6, "float16": 200e6}
    assert fits.teacher_plan(1e9, weights, 1000.0, 1000, 50e6).precision == "float32"
    half = fits.teacher_plan(300e6, weights, 1000.0, 1000, 50e6)
    assert half.precision == "float16" and "float32 does not fit into 300.0 MB: 400.0 MB of weights" in half.why
    none = fits.teacher_plan(100e6, weights, 1000.0, 1000, 50e6)
    assert none.precision == "" and none.why.count("does not fit into 100.0 MB") == 2 and "251.0 MB" in none.why


def test_every_length_and_depth_has_its_own_figure_and_a_curve_its_order() -> None:
    one = result()
    one["phases"].append({**one["phases"][1], "depth": 512})
    watch = {"millicelsius": [[40_000], [51_000, None]]}
    one["sustained"] = [{"at_s": 0.0, "seconds": 2.0, "tokens": 4, "watch": watch}]
    found = latency.read([one], {})
    assert [r.extra["depth"] for r in found if r.metric == "decode"] == [10, 512]
    (curve,) = [r for r in found if r.metric == "sustained_decode"]
    assert curve.values == (2.0,) and curve.extra == {"at_s": [0.0], "celsius": [51.0]}


def test_latency_keeps_warmups_apart() -> None:
    found = {r.metric: r for r in latency.read([result(), result(load_s=0.3)], {})}
    assert found["decode"].values == (2.0, 4.0, 2.0, 4.0) and found["decode"].warmups == (1.0, 1.0)
    assert found["prefill"].values == (20.0,) * 4 and found["load"].values == (0.1, 0.3)
    assert len(found["token_latency"].values) == 16
    assert {r.metric for r in found.values() if r.better == "higher"} == {"decode", "prefill"}


def test_rails_are_named_and_read(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "123")
    zone(tmp_path, "intel-rapl:0:0", "core", "50")
    zone(tmp_path, "intel-rapl:0:2", "dram", "77", "65712999613")
    assert [(r.name, r.range_uj) for r in energy.rails(tmp_path)] == [
        ("package-0", 262143328850),
        ("package-0/core", 262143328850),
        ("package-0/dram", 65712999613),
    ]
    asked = energy.ask({"sysfs": tmp_path})["rails"]
    assert [Path(path).read_text().strip() for path in asked] == ["123", "50", "77"]


def test_a_counter_that_wraps() -> None:
    assert energy.joules(1_000_000, 3_500_000, 10_000_000) == 2.5
    assert energy.joules(9_000_000, 1_000_000, 10_000_000) == 2.0


def test_energy_of_a_wrapping_rail(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "1", "6000000")
    one = result()
    one["phases"][1]["runs"][1]["rails"] = [[5_000_000], [1_000_000]]
    (reading,) = energy.read([one], {"sysfs": tmp_path, "watts_per_core": 9.0})
    assert reading.values == (1.0, 0.5) and reading.kind == "measured" and reading.covers == "package-0 rail"
    assert reading.extra == {"phase": "decode", "baseline": "not subtracted"} and "gross" in reading.note


def test_a_rail_that_may_not_be_read_is_no_rail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", "123")
    if os.geteuid() == 0:  # root reads everything: let the open fail as it does for others
        real = Path.read_text

        def refuse(self: Path, *args: Any, **kwargs: Any) -> str:
            if self.name == "energy_uj":
                raise PermissionError(13, "Permission denied")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Path, "read_text", refuse)
    else:
        (folder / "energy_uj").chmod(0)
    assert energy.rails(tmp_path) == []
    assert energy.ask({"sysfs": tmp_path}) == {}
    assert energy.read([result()], {"sysfs": tmp_path, "watts_per_core": None}) == []


def test_rails_that_vanish_or_stand_still_give_no_number(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "1")
    for rails in ([[None], [None]], [[5], [5]], [[], []]):
        one = result()
        for run in one["phases"][1]["runs"]:
            run["rails"] = rails
        assert energy.read([one], {"sysfs": tmp_path}) == []


def test_no_rail_and_no_power_is_no_number_and_an_estimate_says_its_formula() -> None:
    assert energy.read([result()], {"sysfs": None, "watts_per_core": None}) == []
    (reading,) = energy.read([result()], {"sysfs": None, "watts_per_core": 2.0})
    assert reading.values == (1.5, 1.5)  # 3 CPU seconds x 2 W / 4 tokens
    assert reading.kind == "estimated" and "2 W per busy core" in reading.note
