"""A Raspberry Pi 5 that is none: a real sshd in an aarch64 Debian. Paths, protocols and faults; never a figure."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from standins import Pi, waited

from edgeslm.devices.links import ConnectionLost
from edgeslm.devices.listing import entry, text
from edgeslm.devices.payload import Payload
from edgeslm.errors import DeviceError
from edgeslm.meters.sensors.look import found

pytestmark = pytest.mark.standin
MB = 1 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(8 * MB))
    return path


def test_what_it_is_and_that_it_is_a_stand_in(pi: Pi) -> None:
    with pi.device() as device:
        facts = device.facts
        assert facts["cpu"] == "Raspberry Pi 5 Model B Rev 1.0, 2x Cortex-A76" and facts["machine"] == "aarch64"
        assert facts["soc"] == "bcm2712"
        assert facts["clusters"] == [{"cpus": [0, 1], "max_khz": 2400000, "core": "Cortex-A76"}]
        assert facts["governor"] == "ondemand" and facts["temperature_c"] == 48.3 and facts["page_bytes"] == 4096
        assert facts["throttled"]["since_boot"] == ["under-voltage", "throttled"]
        assert facts["python"].startswith("3.11") and device.hosts == ("native", "python")
        assert facts["stand_in"] is True
        sensor = found(device.tree)[0]
        assert sensor.name == "pi5_pmic"
        answer = device.run(list(sensor.commands[0]), 30).stdout_tail
        sample = sensor.read([answer])
        assert sample is not None and sample.watts is not None and sample.watts > 0
        assert "[stand-in: emulated" in text([entry(device.name, facts, device.root, device.hosts)])
    assert pi.left() == []


def test_it_is_told_from_a_real_one_without_its_mark(pi: Pi) -> None:
    mark = pi.root / "etc/edgeslm-stand-in"
    words = mark.read_text()
    mark.unlink()
    try:
        with pi.device() as device:
            device.refresh()
            (device.tree / "edgeslm" / "emulator").unlink()  # nor by the emulator's own variables
            assert device.facts["stand_in"] is True  # the kernel below is of another family
    finally:
        mark.write_text(words)


def test_a_push_goes_on_after_the_connection_was_cut(pi: Pi, model: Path) -> None:
    sent: list[int] = []

    def hear(name: str, now: int, size: int) -> None:
        if now > 3 * MB and not any(n > 3 * MB for n in sent):
            pi.cut()
        sent.append(now)

    with pi.device() as device:
        device.on_push = hear
        remote = device.push(model)
        device.pull(remote, model.with_name("back"))
        assert model.with_name("back").read_bytes() == model.read_bytes()
        assert device._cut and len(sent) < 32 + 12  # 8 MB in chunks of a quarter: it did not begin anew
    assert pi.left() == []


def test_a_connection_that_is_cut_during_a_run(pi: Pi, model: Path) -> None:
    with pi.device(grace_s=0) as device:
        device.push(model)
        with pytest.raises(ConnectionLost, match=r"was cut while sleep|was cut while sh"):
            device.run(["sh", "-c", "echo up; sleep 300"], 60, lambda line: pi.cut())
        waited(lambda: pi.left() == [] and not pi.inside())  # the device ends and removes everything by itself
        assert device.run(["true"], 60).ok
    assert pi.left() == []


def test_two_sessions_at_once(pi: Pi) -> None:
    with pi.device() as first:
        first.begin()
        with pytest.raises(DeviceError, match="in use by another session"):
            pi.device().begin()
    assert pi.left() == []


def test_a_full_device(pi: Pi, model: Path) -> None:
    place = pi.home / ".edgeslm-device"
    place.mkdir()
    inside = ["nsenter", "-t", str(pi.init), "--mount", "--"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", "size=12m,uid=1000", "tmpfs", str(place)], check=True)
    try:
        with pi.device() as device, pytest.raises(DeviceError, match=r"no room for model.gguf: it needs 25.2 MB, 12"):
            device.push(model)
    finally:
        subprocess.run([*inside, "umount", str(place)], check=True)
        place.rmdir()
    assert pi.left() == []


def test_programs_that_do_not_fit(pi: Pi, tmp_path: Path) -> None:
    with pi.device() as device:
        with pytest.raises(DeviceError, match=r"true is built for x86_64, but ssh:pi@127.0.0.1:22022 is aarch64"):
            device.run([device.push(Path(shutil.which("true") or ""))], 60)
        library = next(pi.root.glob("**/aarch64-linux-gnu/libexpat.so.1"))
        library.rename(tmp_path / "libexpat.so.1")
        try:
            with pytest.raises(DeviceError, match=r"python3 cannot start on .*: it needs the library libexpat.so.1"):
                device.run(["python3", "-c", "pass"], 60)
        finally:
            shutil.move(tmp_path / "libexpat.so.1", library)
        killed = device.run(["python3", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], 60)
        assert killed.oom and killed.signal == 9
    assert pi.left() == []


def test_wrong_and_unknown_host_keys(pi: Pi, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    for keys, words in (((tmp_path / "other.pub").read_text(), "shows another host key"), ("", "is not known yet")):
        known.write_text(f"[127.0.0.1]:{pi.port} {keys}" if keys else "")
        device = pi.device()
        device.link = pi.link(known)
        with pytest.raises(DeviceError, match=words):
            device.begin()


def test_kept_models_are_checked_and_not_sent_again(pi: Pi, model: Path) -> None:
    with pi.device(keep=True) as device:
        device.push(model)
    assert (pi.home / ".edgeslm-device" / Payload(model).key / "model.gguf").exists()
    sent: list[int] = []
    with pi.device() as device:
        device.on_push = lambda name, now, size: sent.append(now)
        device.push(model)
    assert sent == [] and pi.left() == []
