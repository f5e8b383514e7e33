"""What is read of a device in one round trip: its state, its cores, its Python, and what it can measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeslm.devices import clusters, facts, listing, probe, state, wheels
from edgeslm.devices.endings import without_shells_words
from edgeslm.devices.payload import Payload
from edgeslm.devices.probe import Interpreter
from edgeslm.errors import DeviceError
from edgeslm.meters.sensors.look import found

CORE = "Cortex-A76"
NOW = (1_700_000_000.0, 1_700_000_001.0)
PI = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\x00",
    "proc/device-tree/compatible": "raspberrypi,5-model-b\x00brcm,bcm2712\x00",
    "proc/cpuinfo": "".join(f"processor\t: {n}\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n" for n in range(4)),
    "proc/sys/kernel/osrelease": "6.6.31+rpt-rpi-2712",
    "edgeslm/uname--m": "aarch64",
    "sys/class/thermal/thermal_zone0/temp": "48300",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000",
    "edgeslm/vcgencmd-get_throttled": "throttled=0x50004",
    "edgeslm/vcgencmd-pmic_read_adc": "  VDD_CORE_A current(7)=0.5A\n  VDD_CORE_V volt(15)=0.8V",
}
PYTHON = {"version": "3.11.2", "platform": "linux-aarch64", "libc": ["glibc", "2.36"], "there": ["numpy"]}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def stream(files: dict[str, str]) -> bytes:
    parts = "".join(f"\nedgeslm-file /{name}\n{text}\n" for name, text in files.items())
    return f"{parts}\nedgeslm-file /edgeslm/end\n".encode()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_script_reads_this_machine_as_it_is(shell: str, tmp_path: Path) -> None:
    env = {**os.environ, "root": f"{tmp_path}/not there yet"}
    done = subprocess.run([shell], input=probe.SCRIPT.encode(), capture_output=True, check=True, env=env)
    assert done.stderr == b""
    now = time.time()
    probe.write_tree(done.stdout, tmp_path, "here", (now - 1, now))
    copied, here = facts.facts(tmp_path), facts.facts()
    for key in ("cpu", "machine", "memory_bytes", "page_bytes", "os", "kernel", "simd", "last_level_cache_bytes"):
        assert copied.get(key) == here.get(key), key
    assert probe.facts(tmp_path)["free_bytes"] > 0 and "clock_ahead_s" not in probe.facts(tmp_path)
    assert probe.interpreter(tmp_path).version.startswith("3.")


def test_the_stream_becomes_a_tree_that_sensors_read(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("of the last look")
    probe.write_tree(stream(PI), tmp_path, "pi", NOW)
    assert not (tmp_path / "old").exists()
    known = facts.facts(tmp_path)
    assert known["cpu"] == "Raspberry Pi 5 Model B Rev 1.0, 4x Cortex-A76" and known["machine"] == "aarch64"
    assert known["soc"] == "bcm2712"
    assert known["temperature_c"] == 48.3 and known["clusters"][0] == {"cpus": [0], "max_khz": 2400000, "core": CORE}
    assert known["throttled"] == {"raw": "0x50004", "now": ["throttled"], "since_boot": ["under-voltage", "throttled"]}
    assert [one.name for one in found(tmp_path)] == ["pi5_pmic"] and "stand_in" not in known


def test_a_stream_that_ended_early_is_no_tree(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("kept")
    for damaged in (b"", b"no such command\n", stream(PI)[:-30]):
        with pytest.raises(DeviceError, match="pi does not tell what it is"):
            probe.write_tree(damaged, tmp_path, "pi", NOW)
    assert (tmp_path / "old").exists()


def test_a_stream_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    probe.write_tree(stream({"../../x": "1", "a/../../../y": "1", "/etc/z": "1"}), inside, "far", NOW)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["z"]
    assert (inside / "etc" / "z").exists()


@pytest.mark.parametrize(("date", "ahead"), [(NOW[0] + 0, None), (NOW[0] + 3600, 3600), (0, -1_700_000_000)])
def test_a_clock_that_was_stepped_is_told(tmp_path: Path, date: float, ahead: int | None) -> None:
    probe.write_tree(stream({"edgeslm/date": f"{date:.0f}"}), tmp_path, "far", NOW)
    assert probe.facts(tmp_path).get("clock_ahead_s") == (None if ahead is None else pytest.approx(ahead, abs=1))


@pytest.mark.parametrize("garbage", ["", "no", "0x", "throttled=", "throttled=xyz", 'error=1 error_msg="no"'])
def test_what_is_no_throttling_state(tmp_path: Path, garbage: str) -> None:
    assert state.throttled(tree(tmp_path, {"edgeslm/vcgencmd-get_throttled": garbage})) == {}


def test_android_tells_how_hot_it_is(tmp_path: Path) -> None:
    answer = "edgeslm/dumpsys-thermalservice"
    assert state.throttled(tree(tmp_path, {answer: "Thermal Status: 3"})) == {"status": "severe"}
    assert state.throttled(tree(tmp_path, {answer: "Thermal Status: 99"})) == {}


def test_batteries(tmp_path: Path) -> None:
    assert state.battery(tmp_path) == {}
    dumped = tree(tmp_path / "a", {"edgeslm/dumpsys-battery": "  level: 55\n  status: 2\n  temperature: 305\n"})
    assert state.battery(dumped) == {"percent": 55, "status": "Charging", "temperature_c": 30.5}
    laptop = {"type": "Battery", "capacity": "70", "status": "Discharging"}
    mouse = {"type": "Battery", "scope": "Device", "capacity": "5"}
    both = {f"sys/class/power_supply/BAT0/{k}": v for k, v in laptop.items()}
    both |= {f"sys/class/power_supply/A-mouse/{k}": v for k, v in mouse.items()}
    assert state.battery(tree(tmp_path / "b", both)) == {"percent": 70, "status": "Discharging"}
    garbage = {"sys/class/power_supply/battery/capacity": "lots", "sys/class/power_supply/battery/type": "Battery"}
    assert state.battery(tree(tmp_path / "c", garbage)) == {}


@pytest.mark.parametrize(
    "files",
    [
        {"etc/edgeslm-stand-in": "yes"},
        {"edgeslm/emulator": "qemu"},
        {"proc/sys/kernel/arch": "x86_64"},  # passed through by an emulator that answers `uname` itself
        {"proc/cpuinfo": "vendor_id\t: GenuineIntel\n"},
        {"edgeslm/getprop": "[ro.kernel.qemu]: [1]"},
        {"edgeslm/getprop": "[ro.hardware]: [ranchu]"},
    ],
)
def test_emulated_devices_are_told_from_real_ones(tmp_path: Path, files: dict[str, str]) -> None:
    real = {"edgeslm/uname--m": "aarch64", "proc/sys/kernel/arch": "aarch64", "proc/cpuinfo": PI["proc/cpuinfo"]}
    assert "stand_in" not in facts.facts(tree(tmp_path / "real", real))
    assert facts.facts(tree(tmp_path / "other", real | files))["stand_in"] is True


def test_a_32_bit_system_on_a_64_bit_kernel_is_real(tmp_path: Path) -> None:
    both = {"edgeslm/uname--m": "armv7l", "proc/sys/kernel/arch": "aarch64"}
    assert "stand_in" not in facts.facts(tree(tmp_path, both))


def cpus(parts: list[str], khz: list[int], capacity: list[int] | None = None) -> dict[str, str]:
    folder = "sys/devices/system/cpu"
    files = {f"{folder}/online": f"0-{len(khz) - 1}"}
    files["proc/cpuinfo"] = "".join(
        f"processor\t: {n}\n"
        + (f"CPU implementer\t: 0x41\nCPU part\t: {part}\n" if part else "vendor_id\t: X\n")
        + "\n"
        for n, part in enumerate(parts)
    )
    files |= {f"{folder}/cpu{n}/cpufreq/cpuinfo_max_freq": str(one) for n, one in enumerate(khz)}
    return files | {f"{folder}/cpu{n}/cpu_capacity": str(one) for n, one in enumerate(capacity or [])}


def seen(root: Path) -> list[dict[str, object]]:
    return clusters.clusters(root, (root / "proc/cpuinfo").read_text())


def test_clusters_of_a_phone_fastest_first(tmp_path: Path) -> None:
    parts = ["0xd05"] * 4 + ["0xd41"] * 2 + ["0xd44"] * 2
    root = tree(tmp_path, cpus(parts, [1803000] * 4 + [2348000] * 2 + [2850000] * 2))
    assert seen(root) == [
        {"cpus": [6, 7], "max_khz": 2850000, "core": "Cortex-X1"},
        {"cpus": [4, 5], "max_khz": 2348000, "core": "Cortex-A78"},
        {"cpus": [0, 1, 2, 3], "max_khz": 1803000, "core": "Cortex-A55"},
    ]


def test_a_cores_capacity_says_more_than_its_clock(tmp_path: Path) -> None:
    root = tree(tmp_path, cpus(["0xd05", "0xd05", "0xd0b"], [2000000, 2000000, 1800000], [300, 300, 1024]))
    assert [one["cpus"] for one in seen(root)] == [[2], [0, 1]]


def test_x86_is_one_cluster_unless_it_has_two_kinds(tmp_path: Path) -> None:
    files = cpus([""] * 4, [5200000, 5100000, 3900000, 3900000])
    assert seen(tree(tmp_path / "a", files)) == [{"cpus": [0, 1, 2, 3], "max_khz": 5200000}]
    kinds = {"sys/devices/cpu_core/cpus": "0-1", "sys/devices/cpu_atom/cpus": "2-3"}
    assert [one["cpus"] for one in seen(tree(tmp_path / "b", files | kinds))] == [[0, 1], [2, 3]]
    assert seen(tree(tmp_path / "c", {"proc/cpuinfo": "processor\t: 0\nvendor_id\t: X\n"})) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"there": list(probe.NEEDED), "platform": "linux-riscv64"}, ""),
        ({"version": "3.9.2"}, "its python3 is 3.9.2, at least 3.10 is needed"),
        ({"platform": "linux-armv7l"}, "no wheels for it (linux-armv7l)"),
        ({"libc": ["musl", "1.2"]}, "no wheels for it"),
        ({"libc": ["glibc", "2.24"]}, "no wheels for it"),
        ({"version": "garbage"}, "there is no python3"),
        ({"libc": 7}, "there is no python3"),
    ],
)
def test_whether_workers_in_python_can_run_there(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    python = probe.interpreter(tree(tmp_path, {"edgeslm/python3": json.dumps(PYTHON | changes)}))
    assert why in python.why_not and python.usable == (not why)


def test_wheels_are_asked_for_by_the_devices_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = Interpreter("3.13.1", "linux-aarch64", (2, 31), ("numpy",))
    tags = wheels.platform_tags(python)
    assert tags[0] == "manylinux_2_31_aarch64" and tags[-1] == "manylinux2014_aarch64"
    ran: list[list[str]] = []

    def pip(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(argv)
        if any("==" in word for word in argv):
            return subprocess.CompletedProcess(argv, 1, "", "ERROR: No matching distribution\n")
        target = Path(argv[argv.index("--target") + 1])
        target.mkdir()
        (target / "numpy.py").write_text("")
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", pip)
    monkeypatch.setattr(wheels, "installed", lambda name: "9.9" if name in wheels.PINNED else "")
    folder = wheels.site(python, "pi", tmp_path)
    assert folder.parent.parent == tmp_path / "wheels-linux-aarch64" and (folder / "numpy.py").exists()
    pinned, free = ran
    assert "onnxruntime==9.9" in pinned and "onnxruntime" in free  # this machine's version first
    assert pinned[:4] == [sys.executable, "-m", "pip", "install"] and "--only-binary=:all:" in pinned
    assert free[free.index("--python-version") + 1] == "3.13" and free.count("--platform") == len(tags)
    assert wheels.site(python, "pi", tmp_path) == folder and len(ran) == 3  # the newest ones were in the cache
    assert [path.name for path in folder.parent.parent.iterdir()] == [folder.parent.name]  # nothing half done


def test_wheels_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: Could not find a version\nnoise\n")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *a, **k: failed)
    python = Interpreter("3.11.2", "linux-aarch64", (2, 36))
    with pytest.raises(
        DeviceError, match=r"for pi \(Python 3.11.2, linux-aarch64\) cannot be fetched \(ERROR: Could not"
    ):
        wheels.site(python, "pi", tmp_path)


def test_a_listing_says_what_is_there_and_what_is_missing(tmp_path: Path) -> None:
    root = tree(tmp_path, PI | {"edgeslm/python3": json.dumps(PYTHON)})
    known = facts.facts(root) | {"clock_ahead_s": -7200, "free_bytes": 8_000_000_000}
    one = listing.entry("ssh:pi", known, root, ("native", "python"))
    assert one.runs == ("GGUF files (native worker)", "ONNX files (Python worker)")
    assert any("PMIC rails" in line for line in one.measures) and "temperature while it runs" in one.measures
    assert any("onnxruntime, onnxruntime_genai for Python: put there" in line for line in one.missing)
    assert any("-7200 s off" in line for line in one.missing)
    assert not any("RAPL" in line or "battery" in line for line in one.missing)  # no Pi could have them
    text = listing.text([one, listing.Entry("adb:X", why_not="it is asleep")])
    assert "THROTTLED NOW: throttled" in text and "8.0 GB of storage free" in text
    assert text.endswith("adb:X\n  not reached: it is asleep") and "stand-in" not in text
    emulated = listing.entry("ssh:pi", known | {"stand_in": True}, root, ("native",))
    assert "[stand-in: emulated, its figures never enter a comparison]" in listing.text([emulated])
    assert json.loads(json.dumps(emulated.to_json()))["stand_in"] is True


def test_a_bare_device_is_told_what_it_lacks(tmp_path: Path) -> None:
    one = listing.entry("ssh:box", facts.facts(tmp_path), tmp_path, ())
    assert one.measures == () and one.runs == ()
    assert [line.partition(":")[0] for line in one.missing] == ["clocks", "temperature", "energy", "ONNX files"]


def test_a_payload_is_the_same_stream_from_any_place(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"1" * 700)
    (folder / "sub" / "b").write_bytes(b"")
    payload = Payload(folder)
    whole = b"".join(payload.chunks())
    assert len(whole) == payload.size and len(whole) % 512 == 0
    for start in (0, 1, 511, 512, 513, 1211, 1212, 1600, len(whole) - 1, len(whole)):
        assert b"".join(payload.chunks(start)) == whole[start:]
    before = payload.signature
    assert Payload(folder).sha256 == payload.sha256 and payload.prefix_sha256(payload.size) == payload.sha256
    os.utime(folder / "a", (1, 1))
    assert Payload(folder).sha256 == payload.sha256  # times are no content
    assert Payload(folder).signature != before
    (folder / "a").write_bytes(b"2" * 700)
    assert Payload(folder).sha256 != payload.sha256


def test_a_file_that_shrinks_while_it_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1" * 100)
    payload = Payload(path)
    assert payload.size == 100
    path.write_bytes(b"1" * 50)
    with pytest.raises(DeviceError, match="became shorter while it was sent"):
        list(payload.chunks())


def test_the_shells_remark_is_left_out() -> None:
    assert without_shells_words("loading\nKilled\n") == "loading\n"
    assert without_shells_words('loading\nsh: line 5: 12 Killed   "$@"\n') == "loading\n"
    assert without_shells_words("loading\n") == "loading\n" and without_shells_words("") == ""
