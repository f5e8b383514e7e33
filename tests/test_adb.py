"""adb: several phones, by cable and by Wi-Fi, and what keeps one from answering."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from far import Far, until

from edgeslm.devices.adb import AdbDevice, AdbLink, listed
from edgeslm.devices.links import ConnectionLost
from edgeslm.devices.open import entries, in_reach, only_phone, opened
from edgeslm.errors import DeviceError
from edgeslm.meters.sensors.look import found

MB = 1 << 20
GETPROP = """[ro.product.manufacturer]: [Fairphone]
[ro.product.model]: [FP5]
[ro.build.version.release]: [14]
[ro.serialno]: [0000SECRET]"""
DUMPSYS = "  status: 3\n  level: 80\n  voltage: 4000\n  temperature: 281\n  charge counter: 3200000"


@pytest.fixture
def far(tmp_path: Path) -> Far:
    far = Far(tmp_path)
    far.set(phones={"SERIAL": "device"})
    return far


def phone(far: Far, serial: str = "SERIAL") -> AdbDevice:
    return AdbDevice("", grace_s=0, link=far.adb(serial))


def test_push_run_pull_and_nothing_is_left(far: Far, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(os.urandom(2 * MB) + b"\r\n\x00\xff")
    with phone(far) as device:
        remote = device.push(model)
        assert Path(remote).read_bytes() == model.read_bytes()
        device.pull(remote, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == model.read_bytes()
        done = device.run(["sh", "-c", "cat; echo why >&2; exit 5"], 20, stdin=["it's", "$HOME"])
        assert (done.returncode, done.stdout_tail, done.last_error_line) == (5, "it's\n$HOME\n", "why")
        assert device.run(["sh", "-c", "kill -9 $$"], 20).oom
        assert device.name == "adb:SERIAL" and device.python == ""
    assert not far.root.exists()


def test_a_cable_pulled_during_a_push_and_a_run(far: Far, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(os.urandom(3 * MB))
    far.set(cut=str(2 * MB))
    with AdbDevice("", grace_s=600, link=far.adb()) as device:
        device.pauses = (0.0, 0.1)
        assert Path(device.push(model)).read_bytes() == model.read_bytes()
        assert max(far.received()) == MB

        def pull(line: str) -> None:
            far.set(phones={}, epoch="7")

        with pytest.raises(ConnectionLost, match="connection to adb:SERIAL was cut while sh ran there"):
            device.run(["sh", "-c", "echo up; sleep 61.7"], 30, pull)
        assert until(lambda: not far.processes("sleep\x0061."))
        with pytest.raises(DeviceError, match="no device adb:SERIAL is connected; see `adb devices`"):
            device.push(model)
        far.set(phones={"SERIAL": "device"})
        assert device.run(["true"], 20).ok
    assert until(lambda: not far.root.exists() and not far.processes("edgeslm"))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("unauthorized", "does not trust this machine yet; unlock it and accept"),
        ("offline", r"is asleep or stuck \(offline\); wake it"),
        ("no permissions", "this user may not use it; add a udev rule"),
    ],
)
def test_phones_that_do_not_answer(far: Far, state: str, words: str) -> None:
    far.set(phones={"SERIAL": state})
    with pytest.raises(DeviceError, match=words):
        phone(far).begin()


# what adb prints (platform-tools 29 to 35), and a piece of the sentence that is made of it
@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set", "does not trust this machine"),
        ("error: device offline", "asleep or stuck"),
        ("error: device 'SERIAL' not found", "no device adb:SERIAL is connected"),
        ("adb: device 'SERIAL' not found", "no device adb:SERIAL is connected"),
        ("error: no devices/emulators found", "no device adb:SERIAL is connected"),
        ("error: insufficient permissions for device: no permissions (user not in plugdev)", "udev rule"),
        ("error: target doesn't support PTY args -Tt", "older than Android 7"),
        ("error: cannot connect to daemon at tcp:5037: Connection refused", "adb's own server does not start"),
        ("error: closed", ""),
    ],
)
def test_what_adb_says_becomes_a_sentence(said: str, sentence: str) -> None:
    why = AdbLink("SERIAL").why(1, said)
    assert sentence in why and bool(why) == bool(sentence) and "\n" not in why


def test_over_wifi_it_is_called_first(far: Far) -> None:
    far.set(phones={}, reachable="10.0.0.7:5555")
    with phone(far, "10.0.0.7:5555") as device:
        assert device.run(["true"], 20).ok
    with pytest.raises(
        DeviceError, match=r"adb:10\.0\.0\.8:5555 does not answer \(failed to connect.*wireless debugging"
    ):
        phone(far, "10.0.0.8:5555")


def test_several_phones(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{far.state}:{os.environ['PATH']}")
    assert only_phone() == "SERIAL"
    far.set(phones={"SERIAL": "device", "10.0.0.7:5555": "offline"})
    assert listed() == {"10.0.0.7:5555": "offline", "SERIAL": "device"}
    with pytest.raises(DeviceError, match=r"say which: adb:10\.0\.0\.7:5555, adb:SERIAL"), opened("adb:"):
        pass
    assert {"local", "adb:SERIAL", "adb:10.0.0.7:5555", "ssh:x"} <= set(in_reach(["ssh:x"]))
    silent = next(entries(["adb:10.0.0.7:5555"]))
    assert "asleep or stuck" in silent.why_not and silent.measures == ()
    far.set(phones={})
    with pytest.raises(DeviceError, match="no phone is connected"), opened("adb"):
        pass


def test_serials_that_are_none() -> None:
    for serial in ("", "-x", "a b"):
        with pytest.raises(DeviceError, match="names no phone"):
            AdbLink(serial)


def test_without_adb(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot start adb: No such file or directory; install it"):
        listed(str(tmp_path / "adb"))


def test_what_a_phone_tells(far: Far) -> None:
    far.program("getprop", f"cat <<'END'\n{GETPROP}\nEND")
    far.program(
        "dumpsys", f'[ "$1" = battery ] && printf "{DUMPSYS}\\n"; [ "$1" != power ] || echo "  mWakefulness=Awake"'
    )
    far.program("cmd", "echo -500000")
    with phone(far) as device:
        assert device.facts["os"].startswith("Debian") or device.facts["os"]  # this machine's, it has an os-release
        assert device.facts["name"].startswith("Fairphone FP5")
        assert device.facts["battery"] == {"percent": 80, "status": "Discharging", "temperature_c": 28.1}
        assert "SECRET" not in (device.tree / "edgeslm" / "getprop").read_text()
        sensor = next(one for one in found(device.tree) if one.name == "android_battery")
        sample = sensor.read(["-500000\n", DUMPSYS])
        assert sample is not None and sample.watts == pytest.approx(2.0)
        device.begin()


def test_asleep_is_refused_before_anything(far: Far) -> None:
    far.program("dumpsys", 'echo "  mWakefulness=Dozing"')
    with phone(far) as device, pytest.raises(DeviceError, match="adb:SERIAL is asleep, which slows it down; wake it"):
        device.begin()
    assert not far.root.exists()
