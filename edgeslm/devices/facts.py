"""What a machine is: processor, memory, system. Never its name in a network.

Everything is read below an injectable root, so a fixture tree stands in for a Raspberry Pi or a phone.
A fact that cannot be read is left out; nothing is guessed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeslm.devices import state
from edgeslm.devices.clusters import arm_core, clusters
from edgeslm.devices.tree import cpu_list, number, read_text, said

# the vector extensions that decide which kernels a runtime picks, as /proc/cpuinfo spells them: x86, then ARM
# fmt: off
SIMD = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512vbmi", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme",
)
# fmt: on
LEAST_C, MOST_C = -55.0, 150.0


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """The facts dict of `Where.device`. How fast its memory and arithmetic are is measured apart: benchmark.bounds."""
    cpuinfo = read_text(root / "proc/cpuinfo")
    machine = platform.machine() if root == Path("/") else said(root, "uname", "-m")
    machine = machine or read_text(root / "proc/sys/kernel/arch")
    page = number(said(root, "getconf", "PAGESIZE")) or (mmap.PAGESIZE if root == Path("/") else 0)
    known: dict[str, Any] = {
        "cpu": cpu_model(cpuinfo, root),
        "soc": soc(root),
        "machine": machine,
        "cores": cores(cpuinfo, root),
        "clusters": clusters(root, cpuinfo),
        "memory_bytes": memory_bytes(read_text(root / "proc/meminfo")),
        "page_bytes": page,
        "os": os_name(read_text(root / "etc/os-release")) or android_name(root),
        "kernel": read_text(root / "proc/sys/kernel/osrelease") or said(root, "uname", "-r"),
        "simd": simd(cpuinfo),
        "governor": read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "last_level_cache_bytes": last_level_cache_bytes(root),
        "temperature_c": temperature_c(root),
        "throttled": state.throttled(root),
        "battery": state.battery(root),
        "stand_in": state.stand_in(root, machine, cpuinfo),
    }
    found = {key: value for key, value in known.items() if value}
    found["name"] = found.get("cpu") or found.get("machine") or "an unnamed machine"
    found["id"] = stable_id(found)
    return found


def stable_id(found: dict[str, Any]) -> str:
    """The same for the same hardware and system, whatever its name, load or clock governor."""
    parts = {key: found.get(key) for key in ("cpu", "machine", "cores", "memory_bytes", "os", "kernel", "simd")}
    if parts["memory_bytes"]:  # the kernel reserves a little more or less at each boot
        parts["memory_bytes"] = round(parts["memory_bytes"] / 2**28)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def cpu_model(cpuinfo: str, root: Path) -> str:
    """Board (where a device tree names one) or phone and its chip, and processor."""
    fields: dict[str, list[str]] = {}
    for line in cpuinfo.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), []).append(value.strip())
    cpu = next((fields[key][0] for key in ("model name", "Hardware", "cpu model", "uarch") if fields.get(key)), "")
    if not cpu and fields.get("CPU implementer"):
        pairs = zip(fields["CPU implementer"], fields.get("CPU part", []), strict=False)
        names = [arm_core(*pair) for pair in pairs]
        cpu = " + ".join(f"{names.count(name)}x {name}" for name in dict.fromkeys(names))
    board = _device_tree(root, "model")
    phone = " ".join(state.property_of(root, f"ro.product.{part}") for part in ("manufacturer", "model")).strip()
    chip = " ".join(state.property_of(root, f"ro.soc.{part}") for part in ("manufacturer", "model")).strip()
    return ", ".join(part for part in (phone or board, chip, cpu) if part)


def soc(root: Path) -> str:
    """The chip that all is on, e.g. "bcm2712" (the last of the device tree's compatible names) or "Tensor G3"."""
    compatible = _device_tree(root, "compatible").split("\x00")[-1]
    return state.property_of(root, "ro.soc.model") or compatible.rpartition(",")[2]


def _device_tree(root: Path, name: str) -> str:
    tree = root / "proc/device-tree" / name
    return read_text(tree if tree.exists() else root / "sys/firmware/devicetree/base" / name)


def cores(cpuinfo: str, root: Path) -> int:
    """Cores this process may use; below a fixture root, those that /proc/cpuinfo or sysfs lists."""
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    listed = sum(line.startswith("processor") for line in cpuinfo.splitlines())
    return listed or cpu_list_count(read_text(root / "sys/devices/system/cpu/online"))


def cpu_list_count(text: str) -> int:
    """`0-3,6` -> 5."""
    return len(cpu_list(text))


def memory_bytes(meminfo: str) -> int:
    for line in meminfo.splitlines():
        parts = line.split()
        if len(parts) >= 2 and parts[0] == "MemTotal:" and parts[1].isdigit():
            return int(parts[1]) * 1024
    return 0


def os_name(os_release: str) -> str:
    for line in os_release.splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip().strip('"')
    return ""


def android_name(root: Path) -> str:
    """`Android 15 (API 35)`, empty elsewhere."""
    release, level = (state.property_of(root, f"ro.build.version.{part}") for part in ("release", "sdk"))
    return f"Android {release}" + (f" (API {level})" if level else "") if release else ""


def simd(cpuinfo: str) -> list[str]:
    """Those of SIMD that the first core has."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            return [name for name in SIMD if name in present]
    return []


def last_level_cache_bytes(root: Path) -> int:
    """Of the cache that core 0 sees; a model that fits into it is not held by the memory's bandwidth."""
    best = (0, 0)
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, size = read_text(index / "level"), read_text(index / "size")
        if level.isdigit() and size[:-1].isdigit() and size[-1] in "KM":
            best = max(best, (int(level), int(size[:-1]) * (1024 if size[-1] == "K" else 1 << 20)))
    return best[1]


def temperature_c(root: Path = Path("/")) -> float | None:
    """The warmest thermal zone in degrees Celsius, None where there is no sensor. What no chip survives is none."""
    degrees = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        with contextlib.suppress(ValueError):
            degrees.append(int(read_text(zone / "temp")) / 1000)
    return max((one for one in degrees if LEAST_C < one < MOST_C), default=None)


def busy_cores(
    root: Path = Path("/"), seconds: float = 0.3, sleep: Callable[[float], None] = time.sleep
) -> float | None:
    """How many cores others keep busy now, over a short look at /proc/stat; None where the kernel does not say."""
    before = _cpu_ticks(root)
    sleep(seconds)
    after = _cpu_ticks(root)
    if before is None or after is None or after[1] <= before[1]:
        return None
    online = len(re.findall(r"^cpu\d", read_text(root / "proc/stat"), re.M)) or 1
    return online * (1 - (after[0] - before[0]) / (after[1] - before[1]))


def _cpu_ticks(root: Path) -> tuple[int, int] | None:
    """(idle, all) ticks since the start, summed over cores: user nice system idle iowait irq softirq steal."""
    first = read_text(root / "proc/stat").split("\n", 1)[0].split()
    if len(first) < 6 or first[0] != "cpu" or not all(part.isdigit() for part in first[1:]):
        return None
    ticks = [int(part) for part in first[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
