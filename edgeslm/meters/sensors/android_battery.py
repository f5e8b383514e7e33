"""Android: the battery's own gauge. It covers the whole phone, and only while nothing else feeds it.

    /sys/class/power_supply/battery/{current_now,voltage_now,status,charge_counter,charge_full,capacity}
    cmd battery get -f current_now      where sysfs says "Permission denied" (as it mostly does without root)
    dumpsys battery                     status (2 charging, 3 discharging), voltage in mV, charge counter in uAh

The kernel asks for microamperes, positive while charging; vendors write either sign, and some write milliamperes. While
the status is "discharging" the battery gives, so the amount counts whatever its sign. The unit is told by
size over a whole run: 10000 of the smaller unit would be 10 mA (less than a phone at work takes), of the larger
10 A (more than one can). What was read stays beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgeslm.meters.sensors.base import Sample, Sensor, Texts, Timed, number, on_device, said, text

FOLDER = "sys/class/power_supply/battery"
FIELDS = ("status", "current_now", "voltage_now", "charge_counter", "charge_full", "capacity")
SUPPLIES = ("usb", "ac", "wireless", "dc")
DUMPSYS = ("dumpsys", "battery")
CURRENT = ("cmd", "battery", "get", "-f", "current_now")
CURRENT_FILE = ("cmd", "battery", "current")  # what a copied tree calls the answer of CURRENT
STATUS = {"1": "Unknown", "2": "Charging", "3": "Discharging", "4": "Not charging", "5": "Full"}
DUMPSYS_FIELDS = {
    "status": "status",
    "voltage": "voltage_now",
    "charge counter": "charge_counter",
    "level": "capacity",
    "current now": "current_now",
}
LARGEST_MA = 10_000.0
COVERS = "whole device, from its battery"
MOST_W = 40.0
MICROAMPERE_HOUR_C = 3.6e-3
WIFI = "unplug it, reach it over Wi-Fi (adb tcpip) and run again"


def look(root: Path) -> tuple[list[Sensor], str]:
    folder, dump = root / FOLDER, dumpsys(said(root, *DUMPSYS))
    if not folder.is_dir() and not dump:
        return [], "no battery (neither sysfs nor dumpsys shows one)"
    files = [(name, folder / name) for name in FIELDS if text(folder / name)]
    files += [
        (f"{name} online", folder.parent / name / "online")
        for name in SUPPLIES
        if text(folder.parent / name / "online")
    ]
    names = [name for name, _ in files]
    commands: list[tuple[str, ...]] = []
    if "current_now" not in names and number(said(root, *CURRENT_FILE)) is not None:
        names.append("current_now")
        commands.append(CURRENT)
    have = set(names)
    if dump and not {"status", "voltage_now", "current_now"} <= have:
        commands.append(DUMPSYS)
        have |= set(dump)
    if not {"status", "voltage_now"} <= have or not {"current_now", "charge_counter"} & have:
        lacks = " and ".join(name for name in ("status", "voltage_now", "current_now") if name not in have)
        return [], f"the battery does not tell its {lacks} (permission denied, or this phone has no gauge)"
    sensor = Sensor(
        name="android_battery",
        covers=COVERS,
        read=reader(names, DUMPSYS in commands),
        files=tuple(on_device(path, root) for _, path in files),
        commands=tuple(commands),
        most_w=MOST_W,
        held=True,
        settle=settle,
    )
    return [sensor], ""


def reader(names: list[str], with_dumpsys: bool) -> Callable[[Texts], Sample | None]:
    """Texts in the order of `names`, then dumpsys' answer. What both tell is taken from the former."""

    def read(texts: Texts) -> Sample | None:
        fields = dumpsys(texts[len(names)]) if with_dumpsys else {}
        return sample(fields | {name: raw.strip() for name, raw in zip(names, texts, strict=False) if raw})

    return read


def dumpsys(answer: str | None) -> dict[str, str]:
    """The lines of `dumpsys battery` that matter, by the names of sysfs, and "<supply> online" -> 1 for those it says
    are connected."""
    found: dict[str, str] = {}
    for line in (answer or "").splitlines():
        key, _, value = line.strip().partition(":")
        key, value = key.strip().lower(), value.strip()
        if key in DUMPSYS_FIELDS:
            found[DUMPSYS_FIELDS[key]] = STATUS.get(value, value) if key == "status" else value
        elif key.endswith(" powered") and value == "true":
            found[f"{key.removesuffix(' powered')} online"] = "1"
        elif "updates stopped" in line.lower():
            found["stopped"] = "1"
    return found


def sample(fields: dict[str, str]) -> Sample | None:
    """One reading; its unit is guessed from this reading alone until `settle` has seen the run."""
    if refused := refusal(fields):
        return Sample(refused=refused, raw=fields)
    current, volts = number(fields.get("current_now")), _volts(number(fields.get("voltage_now")))
    charge, full = number(fields.get("charge_counter")), number(fields.get("charge_full"))
    percent = number(fields.get("capacity"))
    if volts is None or (current is None and charge is None) or "status" not in fields:
        return None
    if not full and charge and percent:
        full = charge / percent * 100
    amps = None if current is None else abs(current) * _unit(abs(current))
    return Sample(
        watts=None if amps is None else amps * volts,
        coulombs=None if charge is None else charge * MICROAMPERE_HOUR_C,
        volts=volts,
        amps=amps,
        full_coulombs=full * MICROAMPERE_HOUR_C if full and full > 0 else None,
        raw=fields,
    )


def refusal(fields: dict[str, str]) -> str:
    """Why the battery's figure would not be the phone's, or nothing."""
    status = fields.get("status", "")
    if fields.get("stopped"):
        return "the battery service has been told to report made-up values; `dumpsys battery reset` ends that"
    if status.lower() == "charging":
        return f"the phone is charging: the figure would be the charger's; {WIFI}"
    plugged = [key.removesuffix(" online") for key, value in fields.items() if key.endswith(" online") and value == "1"]
    if plugged:
        return f"the phone is fed by {plugged[0]} beside its battery, which then shows only a part; {WIFI}"
    if status and status.lower() != "discharging":
        return f"the battery's status is '{status}', not discharging, so it does not give what the phone takes; {WIFI}"
    return ""


def _unit(amount: float) -> float:
    """Amperes of one of the unit that a current of this size is in."""
    return 1e-3 if amount < LARGEST_MA else 1e-6


def _volts(raw: float | None) -> float | None:
    """From microvolts, millivolts or volts; None when it is no voltage of a battery."""
    if raw is None:
        return None
    volts = raw / 1e6 if raw > 1e5 else raw / 1e3 if raw > 100 else raw
    return volts if 2.0 <= volts <= 25.0 else None


def settle(samples: list[Timed]) -> tuple[list[Timed], str, str]:
    """One unit for the whole run, and one sign: a current that turns around while discharging was fed from outside."""
    raws = [value for _, one in samples if (value := number(one.raw.get("current_now"))) is not None]
    if not raws:
        return samples, "power from the charge counter's steps and the voltage", ""
    largest = max(abs(raw) for raw in raws)
    if min(raws) < -0.05 * largest and max(raws) > 0.05 * largest:
        return [], "", (
            f"the battery's current changed its sign while it was discharging ({min(raws):g} to {max(raws):g}), "
            f"so something else fed the phone at times; {WIFI}"
        )  # fmt: skip
    unit = _unit(largest)
    settled = []
    for at, one in samples:
        raw = number(one.raw.get("current_now"))
        if raw is not None and one.volts is not None:
            amps = abs(raw) * unit
            settled.append((at, replace(one, amps=amps, watts=amps * one.volts)))
    sign = "negative" if sum(raws) < 0 else "positive"
    name = "mA" if unit == 1e-3 else "uA"
    return settled, f"current_now is {sign} while discharging, in {name}: {min(raws):g} to {max(raws):g}", ""
