"""Meters: parsers on recorded text, counters that wrap or may not be read, estimates that say so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from edgeslm.meters import METERS, energy, latency, memory

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
    run = {
        "prefill_s": 0.5,
        "time_to_first_token_s": 0.6,
        "decode_s": 2.0,
        "token_latency_s": [0.5] * 4,
        "decode_cpu_s": 3.0,
        "rails": [[1_000_000], [5_000_000]],
    }
    return {
        "load_s": 0.1,
        "prompt_tokens": 10,
        "new_tokens": 4,
        "warmups": [{**run, "decode_s": 4.0}],
        "runs": [run, {**run, "decode_s": 1.0}],
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
    assert [(r.metric, r.values) for r in readings] == [("rss_anon_peak", (30.0, 30.0))]
    assert readings[0].extra == {"before_load_bytes": [5, 5], "swap_peak_bytes": 0}


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
    run = result()["runs"][0]
    runs = [run, {**run, "rails": [[5_000_000], [1_000_000]]}]
    (reading,) = energy.read([result(runs=runs)], {"sysfs": tmp_path, "watts_per_core": 9.0})
    assert reading.values == (1.0, 0.5) and reading.kind == "measured" and reading.covers == "package-0 rail"


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
    run = result()["runs"][0]
    for rails in ([[None], [None]], [[5], [5]], [[], []]):
        assert energy.read([result(runs=[{**run, "rails": rails}])], {"sysfs": tmp_path}) == []


def test_no_rail_and_no_power_is_no_number_and_an_estimate_says_its_formula() -> None:
    assert energy.read([result()], {"sysfs": None, "watts_per_core": None}) == []
    (reading,) = energy.read([result()], {"sysfs": None, "watts_per_core": 2.0})
    assert reading.values == (1.5, 1.5)  # 3 CPU seconds x 2 W / 4 tokens
    assert reading.kind == "estimated" and "2 W per busy core" in reading.note
