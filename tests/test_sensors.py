"""Energy sensors on trees of files as devices have them, and what their text means."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.benchmark.energy import Recorder
from edgeslm.devices.fake import FakeDevice
from edgeslm.errors import DataError
from edgeslm.meters.sensors import SENSORS, amd, android_battery, external_csv, nvml, pi5_pmic, pixel_rails, rapl
from edgeslm.meters.sensors.base import Sensor, number
from edgeslm.meters.sensors.look import found, missing, of_sensor, plan
from edgeslm.meters.sensors.protobuf import fields

RAILS = ["3V7_WL_SW", "3V3_SYS", "1V8_SYS", "DDR_VDD2", "DDR_VDDQ", "1V1_SYS"]
RAILS += ["0V8_SW", "VDD_CORE", "3V3_DAC", "3V3_ADC", "0V8_AON", "HDMI"]
PMIC = "".join(f"{rail + '_A':>16} current({k})=0.50000000A\n" for k, rail in enumerate(RAILS))
PMIC += "".join(f"{rail + '_V':>16} volt({k + 12})=2.00000000V\n" for k, rail in enumerate(RAILS))
PMIC += "         EXT5V_V volt(24)=5.05500000V\n          BATT_V volt(25)=0.00000000V"
DUMPSYS = """Current Battery Service state:
  AC powered: false
  USB powered: false
  Wireless powered: false
  status: 3
  health: 2
  present: true
  level: 80
  scale: 100
  voltage: 4000
  temperature: 281
  charge counter: 3200000
"""


def tree(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def battery(root: Path, **values: str) -> Path:
    fine = {"status": "Discharging", "current_now": "-500000", "voltage_now": "4000000"} | values
    return tree(root, **{f"{android_battery.FOLDER}/{name}": value for name, value in fine.items()})


def only(root: Path, kind: str) -> Sensor:
    sensors, why = SENSORS[kind](root)
    assert len(sensors) == 1 and why == ""
    return sensors[0]


def test_table_and_an_empty_tree(tmp_path: Path) -> None:
    assert list(SENSORS) == [
        "rapl",
        "pi5_pmic",
        "android_battery",
        "pixel_rails",
        "nvml",
        "amd",
        "apple",
        "external_csv",
    ]
    assert found(tmp_path) == []
    assert set(missing(tmp_path)) == set(SENSORS) and all(missing(tmp_path).values())


@pytest.mark.parametrize("raw", ["", "text", "nan", "inf", "-inf", "1_000", "0x10", "1,5", None])
def test_what_is_no_number(raw: str | None) -> None:
    assert number(raw) is None


def test_several_zones_each_for_itself(tmp_path: Path) -> None:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1"}
    for zone, name in zones.items():
        folder = f"sys/class/powercap/{zone}"
        limit = {f"{folder}/max_energy_range_uj": "262143328850"}
        tree(tmp_path, **{f"{folder}/name": name, f"{folder}/energy_uj": "5000000"}, **limit)
    sensors, _ = rapl.look(tmp_path)
    assert [s.covers for s in sensors] == ["package-0 rail", "package-0/core rail", "package-1 rail"]
    assert sensors[0].files == ("/sys/class/powercap/intel-rapl:0/energy_uj",)  # as the device knows it
    assert sensors[0].wraps_j == pytest.approx(262143.32885)
    sample = sensors[0].read(["5000000"])
    assert sample is not None and sample.joules == 5.0 and sample.raw == {"energy_uj": "5000000"}
    assert [sensors[0].read([raw]) for raw in ("", None, "-5", "5.0", "nan", "²", "9" * 5000)] == [None] * 7


def test_zones_that_may_not_be_read_are_told_apart_from_none(tmp_path: Path) -> None:
    tree(tmp_path, **{"sys/class/powercap/intel-rapl:0/name": "package-0"})
    assert "may not be read" in rapl.look(tmp_path)[1]


def test_the_power_chip_of_a_pi_5(tmp_path: Path) -> None:
    assert len(PMIC.splitlines()) == 26
    sensor = only(tree(tmp_path, **{"edgeslm/vcgencmd-pmic_read_adc": PMIC}), "pi5_pmic")
    assert sensor.commands == (("vcgencmd", "pmic_read_adc"),) and "5 V loads" in sensor.covers
    sample = sensor.read([PMIC])
    assert sample is not None and sample.watts == pytest.approx(12 * 0.5 * 2.0)  # EXT5V and BATT have no current
    assert sample.raw["VDD_CORE_A"] == "0.50000000A".rstrip("A") and len(sample.raw) == 26


def test_on_the_pi_itself_its_model_is_enough(tmp_path: Path) -> None:
    tree(tmp_path, **{"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0", "usr/bin/vcgencmd": ""})
    assert only(tmp_path, "pi5_pmic").name == "pi5_pmic"


def test_other_pis_have_no_power_chip(tmp_path: Path) -> None:
    tree(tmp_path, **{"edgeslm/vcgencmd-pmic_read_adc": 'error=1 error_msg="Command not registered"'})
    assert "not registered" in pi5_pmic.look(tmp_path)[1] and pi5_pmic.look(tmp_path)[0] == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("VDD_CORE_V", "VDD_CARE_V"),  # a current without its voltage
        lambda text: text.replace("0.50000000A", "nanA", 1),
        lambda text: text + "\n       VDD_CORE_A current(7)=9.0A",  # twice
        lambda text: "\n".join(line for line in text.splitlines() if "VDD_CORE" not in line),
        lambda text: text[: len(text) // 2],
        lambda text: "",
    ],
)
def test_half_an_answer_is_no_reading(damage: Any) -> None:
    assert pi5_pmic.read([damage(PMIC)]) is None and pi5_pmic.read([None]) is None


@pytest.mark.parametrize("current", ["-500000", "500000", "-500", "500"])
def test_both_signs_and_both_units_of_a_battery(tmp_path: Path, current: str) -> None:
    sensor = only(battery(tmp_path, current_now=current), "android_battery")
    assert sensor.covers == "whole device, from its battery" and sensor.held
    sample = sensor.read(["Discharging", current, "4000000"])
    assert sample is not None and sample.watts == pytest.approx(2.0) and sample.raw["current_now"] == current


def test_the_unit_is_told_by_the_whole_run(tmp_path: Path) -> None:
    """8000 microamperes while it sleeps look like 8 A; the 400 mA of work beside them say what is meant."""
    sensor = only(battery(tmp_path), "android_battery")
    raws = ["-8000", "-400000", "-9000"]
    timed = [(float(k), sensor.read(["Discharging", raw, "4000000"])) for k, raw in enumerate(raws)]
    settled, note, why = android_battery.settle(timed)  # type: ignore[arg-type]
    assert why == "" and [one.watts for _, one in settled] == pytest.approx([0.032, 1.6, 0.036])
    assert "negative" in note and "uA" in note and "-400000" in note


def test_a_current_that_turns_around_is_refused(tmp_path: Path) -> None:
    sensor = only(battery(tmp_path), "android_battery")
    timed = [(float(k), sensor.read(["Discharging", raw, "4000000"])) for k, raw in enumerate(["-500000", "300000"])]
    assert "changed its sign" in android_battery.settle(timed)[2]  # type: ignore[arg-type]


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_a_phone_that_does_not_discharge_is_refused_with_a_sentence(tmp_path: Path, status: str) -> None:
    sensor = only(battery(tmp_path, status=status), "android_battery")
    sample = sensor.read([status, "-500000", "4000000"])
    assert sample is not None and sample.watts is None and "Wi-Fi" in sample.refused
    assert ("charger's" in sample.refused) == (status == "Charging")


def test_a_phone_with_a_cable_is_refused_whatever_its_status(tmp_path: Path) -> None:
    battery(tmp_path)
    sensor = only(tree(tmp_path, **{"sys/class/power_supply/usb/online": "1"}), "android_battery")
    assert sensor.files[-1] == "/sys/class/power_supply/usb/online"
    refused = sensor.read(["Discharging", "-500000", "4000000", "1"])
    assert refused is not None and "usb" in refused.refused
    fine = sensor.read(["Discharging", "-500000", "4000000", "0"])
    assert fine is not None and fine.watts == pytest.approx(2.0)


def test_permission_denied_asks_the_battery_service(tmp_path: Path) -> None:
    (tmp_path / android_battery.FOLDER / "current_now").mkdir(parents=True)  # as unreadable as a denied file
    assert "does not tell its" in android_battery.look(tmp_path)[1]
    tree(tmp_path, **{"edgeslm/dumpsys-battery": DUMPSYS, "edgeslm/cmd-battery-current": "-500000"})
    sensor = only(tmp_path, "android_battery")
    assert sensor.files == () and sensor.commands == (android_battery.CURRENT, android_battery.DUMPSYS)
    sample = sensor.read(["-500000", DUMPSYS])
    assert sample is not None and sample.watts == pytest.approx(2.0)
    assert sample.full_coulombs == pytest.approx(3_200_000 / 0.8 * 3.6e-3)
    assert sensor.read([None, "Can't find service: battery"]) is None
    charging = sensor.read(["-500000", DUMPSYS.replace("status: 3", "status: 2")])
    assert charging is not None and "charging" in charging.refused
    plugged = sensor.read(["-500000", DUMPSYS.replace("USB powered: false", "USB powered: true")])
    assert plugged is not None and "usb" in plugged.refused
    made_up = sensor.read(["-500000", "  (UPDATES STOPPED -- use 'reset' to restart)\n" + DUMPSYS])
    assert made_up is not None and "made-up" in made_up.refused


def test_without_any_current_the_charge_counter_is_taken(tmp_path: Path) -> None:
    sensor = only(tree(tmp_path, **{"edgeslm/dumpsys-battery": DUMPSYS}), "android_battery")
    sample = sensor.read([DUMPSYS])
    assert sample is not None and sample.watts is None and sample.coulombs == pytest.approx(11_520.0)
    assert sample.volts == 4.0


@pytest.mark.parametrize(
    "texts",
    [
        ["Discharging", "text", "4000000"],
        ["Discharging", "nan", "4000000"],
        ["Discharging", "-500000", "0"],
        ["Discharging", None, "4000000"],
        [None, "-500000", "4000000"],
    ],
)
def test_garbage_of_a_battery_is_no_reading(tmp_path: Path, texts: list[str | None]) -> None:
    assert only(battery(tmp_path), "android_battery").read(texts) is None


# made with perfetto 0.59.1's own published messages (perfetto_trace_pb2): a clock snapshot (realtime, monotonic 500 s,
# boot time 507 s, one incremental clock), then two rails at 508.0 s and 508.1 s of boot time
TRACE = bytes.fromhex(
    "0a3632310a0c0801108080a8b1e39fe7cb170a090803108090cad2c60e0a09080610809cb8dce00e0a090840100c180120e807100640e807"
    "0a5840d00f5009c202500a1a0800120e53324d5f5644445f435055434c321a0343505520e8070a1c0801121053394d5f5644445f43505543"
    "4c305f4d1a0343505520e807120a080010e0801f18c0843d1208080110e0801f18280a1c40b817c20216120a080010c4811f18a0ac4f1208"
    "080110c4811f1828"
)


def test_power_rails_of_a_trace() -> None:
    (big, samples), (little, _) = pixel_rails.opened(TRACE)
    assert (big.covers, little.name) == ("S2M_VDD_CPUCL2 rail (CPU)", "pixel_rails S9M_VDD_CPUCL0_M")
    assert samples == [[501.0, ["1000000"]], [pytest.approx(501.1), ["1300000"]]]  # boot time less 7 s
    first = big.read(samples[0][1])  # type: ignore[arg-type]
    assert first is not None and first.joules == 1.0


def test_a_damaged_trace_is_a_sentence() -> None:
    for length in range(len(TRACE)):
        try:
            pixel_rails.opened(TRACE[:length])
        except DataError as error:
            assert str(error).endswith(("again", "short"))
    with pytest.raises(DataError, match="no power rails"):
        pixel_rails.opened(b"")
    with pytest.raises(DataError, match="without an end"):
        list(fields(b"\xff" * 12, "it"))
    with pytest.raises(DataError, match="middle of a field"):
        list(fields(b"\x0a\xff\xff\x03abc", "it"))
    without_clocks = TRACE[56:]
    with pytest.raises(DataError, match="no clock snapshot"):
        pixel_rails.opened(without_clocks)


@given(data=st.binary(max_size=200), at=st.integers(0, len(TRACE)))
def test_no_bytes_are_trusted(data: bytes, at: int) -> None:
    for trace in (data, TRACE[:at] + data, TRACE[:at] + data + TRACE[at:]):
        with contextlib.suppress(DataError):
            pixel_rails.opened(trace)


@given(text=st.text(max_size=200))
def test_no_text_is_trusted(text: str) -> None:
    reads = (rapl.reader(), pi5_pmic.read, external_csv.read_watts, android_battery.reader([], True), pixel_rails.read)
    for read in (*reads, nvml.reader(0)):
        sample = read([text])
        assert sample is None or sample.refused or math.isfinite(sample.watts or sample.joules or 0.0)


@pytest.mark.parametrize(
    ("model", "there"), [("Pixel 8 Pro", True), ("Pixel 6", True), ("Pixel 5", False), ("X", False)]
)
def test_which_phones_have_rails(tmp_path: Path, model: str, there: bool) -> None:
    tree(tmp_path, **{"edgeslm/getprop": f"[ro.product.brand]: [google]\n[ro.product.model]: [{model}]"})
    sensors, why = pixel_rails.look(tmp_path)
    assert bool(sensors) == there and bool(why) != there
    if there:
        assert sensors[0].recording is not None and "collect_power_rails: true" in sensors[0].recording.stdin
        assert sensors[0].recording.argv[0] == "perfetto" and sensors[0].recording.output in sensors[0].recording.argv


CSV = "timestamp,watts\n1000,2.5\n1001,2.6\n1002,nan\n"


def test_an_external_meter_is_placed_on_the_devices_clock(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(CSV)
    sensor, samples = external_csv.opened(path, wall_minus_monotonic_s=900.0)
    assert [at for at, _ in samples] == [100.0, 101.0, 102.0] and "external meter" in sensor.covers
    ahead = external_csv.opened(path, 900.0, meter_ahead_s=5.0)[1]
    assert [at for at, _ in ahead] == [95.0, 96.0, 97.0]
    assert [sensor.read(texts) is None for _, texts in samples] == [False, False, True]  # type: ignore[arg-type]


def test_iso_times_and_volts_times_amps(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    path.write_text("Time;Voltage;Current\n2026-01-01T00:00:00Z;5.0;0.5\n2026-01-01T01:00:01.5+01:00;5.0;0.6\n")
    sensor, samples = external_csv.opened(path, 1_767_225_600.0)
    assert [at for at, _ in samples] == [0.0, 1.5]
    first = sensor.read(samples[0][1])  # type: ignore[arg-type]
    assert first is not None and first.watts == 2.5 and first.raw == {"volts": "5.0", "amps": "0.5"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "first line must name"),
        ("time,volts\n1,2\n", "first line must name"),
        ("time,watts,power\n1,2,3\n", "2 columns could be"),
        ("time,watts\n2026-01-01T00:00:00,2\n", "without a time zone"),
        ("time,watts\nyesterday,2\n", "row 2 has the time 'yesterday'"),
        ("time,watts\n2,2\n1,2\n", "row 3 is not later"),
        ("time,watts\n2,2\n", "at least two rows"),
    ],
)
def test_a_csv_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        external_csv.opened(path, 0.0)
    with pytest.raises(DataError, match="cannot be read"):
        external_csv.opened(tmp_path / "none.csv", 0.0)


FAKE_PYNVML = """
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(card): return f"card {card}"
def nvmlDeviceGetPowerUsage(card): return 70_000
def nvmlDeviceGetTotalEnergyConsumption(card):
    if card: raise NVMLError("Not Supported")
    return 1_234_500
"""


def test_graphics_processors_through_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe as it runs, a process of its own, over a stand-in for the library."""
    (tmp_path / "pynvml.py").write_text(FAKE_PYNVML)
    run = subprocess.run(
        nvml.PROBE, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    new, old = nvml.look(Path("/"))[0]
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    assert new.covers == "graphics processor 0 (card 0)" and new.commands == old.commands
    first, second = new.read([run.stdout]), old.read([run.stdout])
    assert first is not None and (first.joules, first.watts) == (1234.5, None)
    assert second is not None and (second.joules, second.watts) == (None, 70.0)
    garbage = ("", "[]", "{}", '[{"name": "x"}]', '[{"name": "x", "joules": null, "watts": null}]', "Traceback", None)
    assert [new.read([text]) for text in garbage] == [None] * 7
    assert new.read(['[{"name": "x", "joules": NaN, "watts": null}]']) is None


FAKE_AMDSMI = """
class AmdSmiException(Exception): pass
def amdsmi_init(): pass
def amdsmi_get_processor_handles(): return [0, 1, 2]
def amdsmi_get_gpu_asic_info(card):
    if card == 2: raise AmdSmiException("Not Supported")
    return {"market_name": f"card {card}"}
def amdsmi_get_energy_count(card):
    if card == 2: raise AmdSmiException("Not Supported")
    key = "energy_accumulator" if card == 0 else "power"
    return {key: 2_000_000, "counter_resolution": 15.5, "timestamp": 1}
def amdsmi_get_power_info(card): return {"average_socket_power": "N/A", "current_socket_power": 90}
"""


def test_amds_counters_through_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ROCm names the counter now, as it did before 6.2, and a card that has none."""
    (tmp_path / "amdsmi.py").write_text(FAKE_AMDSMI)
    run = subprocess.run(
        amd.PROBE, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    new, old, bare = amd.look(Path("/"))[0]
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    assert (new.covers, bare.covers) == ("graphics processor 0 (card 0)", "graphics processor 2 (AMD)")
    samples = [sensor.read([run.stdout]) for sensor in (new, old, bare)]
    assert [(s.joules, s.watts) for s in samples if s] == [(31.0, None), (31.0, None), (None, 90.0)]


def test_amds_library_without_rocm_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "amdsmi.py").write_text("raise OSError('libamd_smi.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    assert "libamd_smi.so" in SENSORS["amd"](Path("/"))[1]


def test_libraries_that_are_not_there_are_no_sensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", None)
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert "extra 'energy-amd'" in SENSORS["amd"](Path("/"))[1]
    assert "extra 'energy'" in SENSORS["nvml"](Path("/"))[1]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "extra 'energy'" in SENSORS["apple"](Path("/"))[1]


def test_a_driver_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def init() -> None:
        raise NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError, nvmlInit=init))
    assert "Driver Not Loaded" in SENSORS["nvml"](Path("/"))[1]


def test_an_apple_chip_is_the_sum_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = SimpleNamespace(cpu_total_mj=1000, gpu_mj=500, ane_mj=0, dram_mj=None)
    monitor = SimpleNamespace(get_cumulative_energy=lambda: energy)
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", SimpleNamespace(AppleEnergyMonitor=lambda: monitor))
    monkeypatch.setattr(sys, "platform", "darwin")
    (sensor,), _ = SENSORS["apple"](Path("/"))
    assert "processor, graphics, neural engine (" in sensor.covers  # memory is not told, so it is not claimed
    sample = sensor.read(['[{"name": "x", "joules": 1.5, "watts": null}]'])
    assert sample is not None and sample.joules == 1.5


def test_several_sensors_at_once_share_what_they_sample() -> None:
    a = Sensor("a", "", pi5_pmic.read, files=("/f", "/g"), commands=(("c",),))
    b = Sensor("b", "", pi5_pmic.read, files=("/g",), commands=(("d",), ("c",)))
    planned = plan([a, b])
    assert planned == {"interval_s": 0.1, "files": ["/f", "/g"], "commands": [["c"], ["d"]]}
    samples = [[0.0, ["f", "g", "c", "d"]], [1.0, ["f"]]]
    assert of_sensor(b, planned, samples) == [[0.0, ["g", "d", "c"]], [1.0, [None, None, None]]]
    assert of_sensor(a, planned, samples)[0] == [0.0, ["f", "g", "c"]]


def test_a_recording_that_left_nothing_costs_no_other_sensor_its_figure(tmp_path: Path) -> None:
    rails = Sensor("pixel_rails", "rails", pixel_rails.read, recording=pixel_rails.recording(1.0))
    recorder = Recorder(FakeDevice(), [rails], tmp_path, seconds=1.0)  # its transcript knows no such program
    with recorder:
        pass
    traces, lost = recorder.traces()
    assert traces == [] and len(lost) == 1 and "did not finish" in lost[0]
