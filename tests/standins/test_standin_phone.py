"""A phone that is none: Debian's adbd with Android's shell (mksh) and tools (toybox), as Android's user `shell`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from standins import Phone, waited

from edgeslm.devices.links import ConnectionLost
from edgeslm.errors import DeviceError
from edgeslm.meters.sensors.base import Sample
from edgeslm.meters.sensors.look import found, missing

pytestmark = pytest.mark.standin
BATTERY = "sys/class/power_supply/battery"
GAUGE = {"type": "Battery", "status": "Discharging", "voltage_now": "4000000", "capacity": "80", "temp": "281"}
DUMPSYS = """Current Battery Service state:
  USB powered: false
  status: {status}
  level: 80
  voltage: 4000
  temperature: 281
  charge counter: 3200000"""


@pytest.fixture
def battery(phone: Phone):
    """Sets the gauge's files and what dumpsys and cmd answer; nothing of it stays."""

    def put(dumpsys: str | None = None, current: str | None = None, **values: str) -> None:
        folder = phone.root / BATTERY
        for name in ("type", "status", "current_now", "voltage_now", "capacity", "temp", "charge_counter"):
            phone.write(**{f"{BATTERY}/{name}": values.get(name)})
        folder.chmod(0o755)
        phone.write(**{"data/fixtures/dumpsys-battery": dumpsys, "data/fixtures/current_now": current})

    yield put
    put()


def sampled(phone: Phone) -> Sample | None:
    """One reading by the sensor that the phone's tree shows, of what the phone itself says then."""
    with phone.device() as device:
        sensors = [one for one in found(device.tree) if one.name == "android_battery"]
        assert len(sensors) == 1, missing(device.tree)["android_battery"]
        sensor = sensors[0]
        texts = [device.run(["cat", path], 60).stdout_tail.strip() or None for path in sensor.files]
        texts += [device.run(list(argv), 60).stdout_tail.strip() or None for argv in sensor.commands]
        return sensor.read(texts)


def test_what_it_is_and_that_it_is_a_stand_in(phone: Phone, battery) -> None:
    battery(**GAUGE, current_now="-500000")
    with phone.device() as device:
        facts = device.facts
        assert facts["cpu"] == "Google Pixel 8, Google Tensor G3, 2x Cortex-A76" and facts["machine"] == "aarch64"
        assert facts["os"] == "Android 15 (API 35)" and facts["stand_in"] is True and device.hosts == ("native",)
        assert facts["battery"] == {"percent": 80, "status": "Discharging", "temperature_c": 28.1}
        assert "SECRET" not in (device.tree / "edgeslm/getprop").read_text()  # no serial number leaves the phone
        assert {one.name for one in found(device.tree)} == {"android_battery", "pixel_rails"}
    assert phone.left() == []


@pytest.mark.parametrize("current", ["-500000", "500000"])
def test_a_gauge_of_either_sign(phone: Phone, battery, current: str) -> None:
    battery(**GAUGE, current_now=current)
    sample = sampled(phone)
    assert sample is not None and sample.watts == pytest.approx(2.0) and sample.raw["current_now"] == current


def test_permission_denied_and_the_service_answers(phone: Phone, battery) -> None:
    battery(DUMPSYS.format(status=3), "-750000", **GAUGE, current_now="-500000")
    (phone.root / BATTERY).chmod(0o700)  # of root: the phone's user `shell` may not look inside
    sample = sampled(phone)
    assert sample is not None and sample.watts == pytest.approx(3.0)


def test_charging_is_refused(phone: Phone, battery) -> None:
    battery(**GAUGE | {"status": "Charging"}, current_now="900000")
    sample = sampled(phone)
    assert sample is not None and "the phone is charging" in sample.refused


def test_missing_gives_no_sensor_and_says_why(phone: Phone, battery) -> None:
    battery()
    with phone.device() as device:
        assert "no battery" in missing(device.tree)["android_battery"] and "battery" not in device.facts
    battery(**GAUGE)
    with phone.device() as device:
        assert "does not tell its current_now" in missing(device.tree)["android_battery"]


def test_push_run_pull_and_nothing_is_left(phone: Phone, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(os.urandom(4 << 20))
    with phone.device() as device:
        remote = device.push(model)
        assert remote.startswith("/data/local/tmp/edgeslm/")
        assert device.push(model) == remote
        device.pull(remote, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == model.read_bytes()
        done = device.run(["sh", "-c", "cat; echo why >&2; exit 5"], 60, stdin=["one", "two"])
        assert (done.returncode, done.stdout_tail, done.last_error_line) == (5, "one\ntwo\n", "why")
        assert device.run(["sh", "-c", "kill -9 $$"], 60).oom
        assert device.run(["sleep", "300"], 1.5).timed_out
        with pytest.raises(DeviceError, match="in use by another session"):
            phone.device().begin()
    assert phone.left() == []
    waited(lambda: not phone.inside())


def test_out_of_reach_during_a_run(phone: Phone, tmp_path: Path) -> None:
    with phone.device() as device:
        device.grace_s = 0
        device.begin()
        with pytest.raises(ConnectionLost, match="was cut while sh ran there"):
            device.run(["sh", "-c", "echo up; sleep 300"], 60, lambda line: phone.cut())
        waited(lambda: phone.left() == [] and not phone.inside())
        with pytest.raises(DeviceError, match=r"no device adb:127\.0\.0\.1:5601 is connected"):
            device.run(["true"], 60)
    with phone.device() as device:  # called again over Wi-Fi
        assert device.run(["true"], 60).ok
    assert phone.left() == []


def test_asleep_is_refused(phone: Phone) -> None:
    phone.write(**{"data/fixtures/dumpsys-power": "  mWakefulness=Dozing"})
    try:
        with phone.device() as device, pytest.raises(DeviceError, match="is asleep, which slows it down"):
            device.begin()
    finally:
        phone.write(**{"data/fixtures/dumpsys-power": None})
