"""Devices: what runs, what is heard, how an end is told; facts of machines on fixture trees."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from edgeslm.devices import DEVICES, facts
from edgeslm.devices.fake import FakeDevice, Turn
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import DeviceError

PI_CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0b

processor\t: 1
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""


@pytest.fixture
def device() -> LocalDevice:
    return LocalDevice(facts={"id": "test", "cores": 1})


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_every_device_has_the_protocols_verbs() -> None:
    assert set(DEVICES) == {"local", "fake", "ssh", "adb"}
    for kind in DEVICES.values():
        assert all(callable(getattr(kind, verb)) for verb in ("run", "push", "pull"))


def test_lines_and_exit_code(device: LocalDevice) -> None:
    heard: list[str] = []
    done = device.run(
        python("import sys; print('a'); print('b'); print('why', file=sys.stderr); sys.exit(4)"), 20, heard.append
    )
    assert heard == ["a", "b"] and done.stdout_tail == "a\nb\n"
    assert (done.returncode, done.ok, done.signal, done.last_error_line) == (4, False, None, "why")


def test_stdin_stays_open_without_lines_and_closes_after_them(device: LocalDevice) -> None:
    # with no lines the pipe is open: a read must not see the end before the time is over
    assert device.run(python("import sys; sys.stdin.read()"), 0.7).timed_out
    done = device.run(python("import sys; print(sys.stdin.read().upper())"), 20, stdin=["one", "two"])
    assert done.ok and done.stdout_tail == "ONE\nTWO\n\n"


def test_a_hang_is_ended_with_its_children(device: LocalDevice, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    start = time.monotonic()
    done = device.run(python(code), 2.0)
    assert done.timed_out and not done.oom and time.monotonic() - start < 15
    status = Path("/proc") / (tmp_path / "pid").read_text() / "status"
    for _ in range(100):  # the signal is sent; a busy machine delivers it when it gets to it
        if not status.exists() or "State:\tZ" in status.read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the hung command's child is still running")


def test_signals_are_told_apart(device: LocalDevice) -> None:
    crash = device.run(python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"), 20)
    assert crash.signal == signal.SIGSEGV and not crash.oom
    killed = device.run(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), 20)
    assert killed.signal == signal.SIGKILL and killed.oom


def test_a_listener_that_fails_leaves_no_process(device: LocalDevice, tmp_path: Path) -> None:
    def fail(line: str) -> None:
        raise KeyboardInterrupt

    code = (
        f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "print('here', flush=True); time.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        device.run(python(code), 30, fail)
    assert not (Path("/proc") / (tmp_path / "pid").read_text()).exists()


def test_local_refuses_what_is_not_there(device: LocalDevice, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not exist"):
        device.push(tmp_path / "nothing")
    with pytest.raises(DeviceError, match="not on the device"):
        device.pull(str(tmp_path / "nothing"), tmp_path / "here")
    with pytest.raises(DeviceError, match="cannot start"):
        device.run([str(tmp_path / "no-such-program")], 5)


def test_local_push_and_pull(device: LocalDevice, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    remote = device.push(tmp_path / "a")
    device.pull(remote, tmp_path / "a")
    device.pull(remote, tmp_path / "b")
    assert (tmp_path / "b").read_text() == "x"


def test_fake_plays_its_transcript(tmp_path: Path) -> None:
    fake = FakeDevice([Turn(lines=("one",), files={"r.json": {"a": 1}, "b.bin": b"12"}, expect="w.py")])
    heard: list[str] = []
    done = fake.run(["python3", "w.py", str(tmp_path / "job.json")], 1, heard.append, iter(["in"]))
    assert done.ok and heard == ["one"] and fake.heard == ["in"]
    assert (tmp_path / "r.json").read_text() == '{"a": 1}' and (tmp_path / "b.bin").read_bytes() == b"12"
    with pytest.raises(DeviceError, match="no turn left"):
        fake.run(["x"], 1)
    with pytest.raises(DeviceError, match="expected a command"):
        FakeDevice([Turn(expect="other")]).run(["x"], 1)


def test_facts_of_a_raspberry_pi(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": PI_CPUINFO,
            "proc/meminfo": "MemTotal:        8245120 kB\nMemFree: 1 kB\n",
            "proc/sys/kernel/osrelease": "6.6.31+rpt-rpi-2712\n",
            "sys/firmware/devicetree/base/model": "Raspberry Pi 5 Model B Rev 1.0\x00",
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
            "sys/devices/system/cpu/cpu0/cache/index3/level": "3\n",
            "sys/devices/system/cpu/cpu0/cache/index3/size": "2048K\n",
            "sys/class/thermal/thermal_zone0/temp": "48300\n",
            "sys/class/thermal/thermal_zone1/temp": "51000\n",
            "proc/loadavg": "0.42 0.10 0.05 1/100 1234\n",
        },
    )
    found = facts.facts(root)
    assert found["cpu"] == "Raspberry Pi 5 Model B Rev 1.0, 2x Cortex-A76"
    assert found["cores"] == 2 and found["memory_bytes"] == 8245120 * 1024
    assert found["simd"] == ["asimd", "asimddp", "asimdhp"]
    assert found["os"] == "Debian GNU/Linux 12 (bookworm)" and found["kernel"] == "6.6.31+rpt-rpi-2712"
    assert found["governor"] == "ondemand" and found["last_level_cache_bytes"] == 2 << 20
    assert facts.temperature_c(root) == 51.0
    again = facts.facts(root)
    assert again["id"] == found["id"] and len(found["id"]) == 12
    (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").write_text("performance")
    assert facts.facts(root)["id"] == found["id"]  # the clock's policy is not the machine
    (root / "proc/meminfo").write_text("MemTotal: 4000000 kB\n")
    assert facts.facts(root)["id"] != found["id"]


def test_facts_of_an_empty_tree_are_left_out(tmp_path: Path) -> None:
    found = facts.facts(tmp_path)
    assert set(found) == {"name", "id"}
    assert facts.temperature_c(tmp_path) is None and facts.busy_cores(tmp_path, 0) is None


def test_facts_of_this_machine_hold_no_host_name() -> None:
    import socket

    found = facts.facts()
    assert found["cores"] >= 1 and found["memory_bytes"] > 1 << 28
    assert socket.gethostname() not in [str(value) for value in found.values()]


def test_cpu_lists() -> None:
    assert facts.cpu_list_count("0-3,6") == 5
    assert facts.cpu_list_count("") == 0


def test_busy_cores_are_what_is_not_idle(tmp_path: Path) -> None:
    stat = tmp_path / "proc" / "stat"
    stat.parent.mkdir()
    stat.write_text("cpu  100 0 0 900 0 0 0 0 0 0\ncpu0 1 0 0 1\ncpu1 1 0 0 1\n", encoding="ascii")

    def later(seconds: float) -> None:
        stat.write_text("cpu  150 0 0 1050 0 0 0 0 0 0\ncpu0 1 0 0 1\ncpu1 1 0 0 1\n", encoding="ascii")

    assert facts.busy_cores(tmp_path, 0.1, later) == pytest.approx(0.5)  # 50 of 200 ticks on two cores
