"""What state a device is in: throttled, on battery, asleep; and whether it is a real device at all.

From its tree alone; what it does not tell is left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgeslm.devices.tree import number, read_text, said

# bits of `vcgencmd get_throttled`; 16 higher: it has happened since the Pi was started
THROTTLED = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")  # Android's, 0 to 6
MARK = "etc/edgeslm-stand-in"  # a root that only stands in for a device says so with this file
SUPPLIES = "sys/class/power_supply"
DUMPSYS_STATUS = {"1": "Unknown", "2": "Charging", "3": "Discharging", "4": "Not charging", "5": "Full"}


def throttled(root: Path) -> dict[str, Any]:
    """Raspberry Pi: {"raw": "0x50004", "now": [...], "since_boot": [...]}. Android: {"status": "light"}. Else empty."""
    answer = said(root, "vcgencmd", "get_throttled").partition("throttled=")[2]
    raw = answer or read_text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    try:
        bits = int(raw, 16)
    except ValueError:
        status = re.search(r"Thermal Status: (\d+)", said(root, "dumpsys", "thermalservice"))
        level = int(status[1]) if status else len(THERMAL_STATUS)
        return {"status": THERMAL_STATUS[level]} if level < len(THERMAL_STATUS) else {}
    return {
        "raw": hex(bits),
        "now": [name for bit, name in THROTTLED.items() if bits >> bit & 1],
        "since_boot": [name for bit, name in THROTTLED.items() if bits >> bit + 16 & 1],
    }


def battery(root: Path) -> dict[str, Any]:
    """{"percent": 80, "status": "Discharging", "temperature_c": 28.1}, as far as it is told; empty without one."""
    dump = {
        key.strip().lower(): value.strip()
        for key, _, value in (line.partition(":") for line in said(root, "dumpsys", "battery").splitlines())
    }
    folder = next((f for f in sorted((root / SUPPLIES).glob("*")) if _is_battery(f)), root / SUPPLIES / "battery")
    percent = number(read_text(folder / "capacity") or dump.get("level", ""))
    tenths = number(read_text(folder / "temp") or dump.get("temperature", ""))
    known = {
        "percent": percent if percent is None or 0 <= percent <= 100 else None,
        "status": read_text(folder / "status") or DUMPSYS_STATUS.get(dump.get("status", "")),
        "temperature_c": None if tenths is None else tenths / 10,
    }
    return {key: value for key, value in known.items() if value is not None}


def _is_battery(folder: Path) -> bool:
    """The device's own, not a mouse's."""
    return read_text(folder / "type") == "Battery" and read_text(folder / "scope") != "Device"


def asleep(root: Path) -> bool:
    """An Android device whose screen is off or that dozes; False where nothing is said."""
    found = re.search(r"mWakefulness=(\w+)", said(root, "dumpsys", "power"))
    return found is not None and found[1] in ("Asleep", "Dozing")


def property_of(root: Path, name: str) -> str:
    """An Android system property, from the answer of `getprop`."""
    found = re.search(rf"^\[{re.escape(name)}\]: \[(.*)\]$", said(root, "getprop"), re.M)
    return found[1] if found else ""


def stand_in(root: Path, machine: str, cpuinfo: str) -> bool:
    """Whether this is an emulated device, whose times mean nothing. Told by any of: the file that our stand-ins carry;
    an emulator's variables in the environment of commands; a kernel of another family of processors than programs
    see (qemu's user emulation passes /proc through); Android's own mark."""
    kernel = read_text(root / "proc/sys/kernel/arch")
    family = family_of(machine)
    x86_cpuinfo = bool(re.search(r"^vendor_id\s*:", cpuinfo, re.M)) and family == "arm"
    return (
        (root / MARK).exists()
        or bool(said(root, "emulator"))
        or (bool(kernel) and bool(machine) and family_of(kernel) != family)
        or x86_cpuinfo
        or property_of(root, "ro.kernel.qemu") == "1"
        or property_of(root, "ro.boot.qemu") == "1"
        or property_of(root, "ro.hardware") in ("ranchu", "goldfish")
    )


def family_of(machine: str) -> str:
    """`aarch64`, `armv7l` -> "arm"; `x86_64`, `i686` -> "x86"; others are their own."""
    if machine.startswith(("arm", "aarch64")):
        return "arm"
    return "x86" if machine in ("x86_64", "amd64", "i386", "i486", "i586", "i686") else machine
