"""Which cores of a device are alike and which are fast, where it tells.

ARM: cores of one kind and one highest clock are a cluster (a phone has two to four); the kernel's `cpu_capacity`, then
the clock, says which is faster. Intel's hybrids list their kinds under /sys/devices/cpu_core and cpu_atom. Other x86
processors are one cluster: their highest clocks differ a little from core to core, which makes no kinds of cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.devices.tree import cpu_list, number, read_text

# ARM's /proc/cpuinfo gives numbers only: (implementer, part) -> core, from the Linux tool lscpu's public table
ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd48"): "Cortex-X2",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4d"): "Cortex-A715",
    ("0x41", "0xd4e"): "Cortex-X3",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd80"): "Cortex-A520",
    ("0x41", "0xd81"): "Cortex-A720",
    ("0x41", "0xd82"): "Cortex-X4",
}
CPUS = "sys/devices/system/cpu"
KINDS = ("cpu_core", "cpu_atom")  # Intel's fast and slow cores


def arm_core(implementer: str, part: str) -> str:
    return ARM_CORES.get((implementer, part), f"ARM core {implementer}/{part}")


def clusters(root: Path, cpuinfo: str) -> list[dict[str, Any]]:
    """[{"cpus": [...], "max_khz": n, "core": "Cortex-A76"}], fastest first. `max_khz` and `core` are left out where
    the device does not tell them; empty where it tells neither."""
    names = core_names(cpuinfo)
    cpus = cpu_list(read_text(root / CPUS / "online")) or sorted(names)
    groups: dict[tuple[int, int, str], list[int]] = {}
    for cpu in cpus:
        khz, capacity = (_of_cpu(root, cpu, name) for name in ("cpufreq/cpuinfo_max_freq", "cpu_capacity"))
        groups.setdefault((capacity, khz, names.get(cpu, "")), []).append(cpu)
    if not any(names.values()):
        groups = _without_names(root, cpus, groups)
    found = []
    for (_, khz, name), members in sorted(groups.items(), key=lambda item: item[0][:2], reverse=True):
        known = {"cpus": members, "max_khz": khz, "core": name}
        found.append({key: value for key, value in known.items() if value})
    return found if any(len(cluster) > 1 for cluster in found) else []


def core_names(cpuinfo: str) -> dict[int, str]:
    """CPU -> its core, of processors that name theirs by ARM's numbers; x86 gives an empty name."""
    names: dict[int, str] = {}
    cpu, implementer = 0, ""
    for line in cpuinfo.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor" and value.isdecimal():
            cpu = int(value)
            names[cpu] = ""
        elif key == "CPU implementer":
            implementer = value
        elif key == "CPU part" and implementer:
            names[cpu] = arm_core(implementer, value)
    return names


def _of_cpu(root: Path, cpu: int, name: str) -> int:
    return number(read_text(root / CPUS / f"cpu{cpu}" / name)) or 0


def _without_names(
    root: Path, cpus: list[int], groups: dict[tuple[int, int, str], list[int]]
) -> dict[tuple[int, int, str], list[int]]:
    """x86: the kinds of cores, or all in one."""
    khz = {cpu: key[1] for key, members in groups.items() for cpu in members}
    kinds = [[cpu for cpu in cpu_list(read_text(root / "sys/devices" / kind / "cpus")) if cpu in khz] for kind in KINDS]
    parts = kinds if all(kinds) else [cpus]
    return {(0, max((khz[cpu] for cpu in part), default=0), ""): part for part in parts if part}
