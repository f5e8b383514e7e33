"""A device's small files and the answers of its commands as a tree on this machine, fetched in one round trip.

facts.py and the sensors look at it as they would at "/". Only what they need is read: nothing that names the device's
owner or its place in a network.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.devices.tree import number, said
from edgeslm.errors import DeviceError

MARK = "edgeslm-file"
LEAST_PYTHON = (3, 10)
NEEDED = ("numpy", "onnxruntime", "onnxruntime_genai")
OLDEST_GLIBC = (2, 28)  # that wheels of all of them are built for
WHEELS = ("linux-aarch64", "linux-x86_64")  # platforms, as Python calls them, for which wheels are published
CLOCK_S = 2.0  # a clock that is off by more is told

# Builtins read the many files of one value: a process for each would take seconds on a slow device. They read byte by
# byte, and /proc makes a whole file anew for each. Commands get an empty stdin, since the script comes from there.
SCRIPT = r"""
LC_ALL=C; export LC_ALL
title() { printf '\nedgeslm-file %s\n' "$1"; }
show() {
  [ -f "$1" ] && [ -r "$1" ] || return 0
  title "$1"
  case $1 in
    /sys/[cd]*) while IFS= read -r line || [ -n "$line" ]; do printf '%s\n' "$line"; done <"$1" ;;
    *) cat "$1" ;;
  esac
}
have() { command -v "$1" >/dev/null; }
answer() { have "$2" || return 0; title "/edgeslm/$1"; shift; "$@" </dev/null; }
answer_lines() { have "$3" || return 0; title "/edgeslm/$1"; lines=$2; shift 2; "$@" </dev/null | grep -E "$lines"; }
{
for file in /proc/cpuinfo /proc/meminfo /proc/sys/kernel/arch /proc/sys/kernel/osrelease \
  /proc/device-tree/model /proc/device-tree/compatible /etc/os-release \
  /sys/firmware/devicetree/base/model /sys/firmware/devicetree/base/compatible /etc/edgeslm-stand-in \
  /sys/devices/system/cpu/online /sys/devices/cpu_core/cpus /sys/devices/cpu_atom/cpus \
  /sys/devices/system/cpu/cpu0/cache/index*/level /sys/devices/system/cpu/cpu0/cache/index*/size \
  /sys/devices/platform/soc/soc:firmware/get_throttled
do show "$file"; done
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
  for name in cpu_capacity cpufreq/cpuinfo_max_freq cpufreq/scaling_cur_freq cpufreq/scaling_governor
  do show "$cpu/$name"; done
done
for zone in /sys/class/thermal/thermal_zone*; do show "$zone/type"; show "$zone/temp"; done
for supply in /sys/class/power_supply/*; do
  for name in type scope status online capacity temp current_now voltage_now charge_counter charge_full
  do show "$supply/$name"; done
done
for zone in /sys/class/powercap/intel-rapl:*; do
  for name in name energy_uj max_energy_range_uj; do show "$zone/$name"; done
done
answer uname--m uname -m
answer uname--r uname -r
answer getconf-PAGESIZE getconf PAGESIZE
[ -z "$QEMU_CPU$QEMU_LD_PREFIX" ] || { title /edgeslm/emulator; echo qemu; }
[ -d "$root" ] || root=${root%/*}
answer df df -Pk "$root"
answer vcgencmd-pmic_read_adc vcgencmd pmic_read_adc
answer vcgencmd-get_throttled vcgencmd get_throttled
answer_lines getprop '^.ro.(product|soc|build.version|hardware|kernel.qemu|boot.qemu)' getprop
answer dumpsys-battery dumpsys battery
answer_lines dumpsys-power mWakefulness= dumpsys power
answer_lines dumpsys-thermalservice 'Thermal Status' dumpsys thermalservice
answer cmd-battery-current cmd battery get -f current_now
answer python3 python3 -c '
import importlib.util, json, platform, sysconfig
there = [name for name in ("numpy", "onnxruntime", "onnxruntime_genai") if importlib.util.find_spec(name)]
about = {"version": platform.python_version(), "platform": sysconfig.get_platform(), "libc": platform.libc_ver()}
print(json.dumps({**about, "there": there}))'
answer date date +%s
title /edgeslm/end
} 2>/dev/null
exit 0
"""


def write_tree(stream: bytes, folder: Path, name: str, asked: tuple[float, float]) -> None:
    """The files of the stream below `folder`, which is emptied before. `asked`: between which seconds since 1970, by
    this machine's clock, the device was asked. Raises DeviceError when the device's shell did not get through."""
    parts = re.split(rb"(?:^|\n)" + MARK.encode() + rb" (/\S+)\n", stream)
    if parts[-2:-1] != [b"/edgeslm/end"]:
        raise DeviceError(f"{name} does not tell what it is; its shell ended early, try `echo` and `cat` there by hand")
    for old in folder.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    for path, content in zip(parts[1::2], parts[2::2], strict=True):
        target = folder / path.decode("utf-8", "replace").lstrip("/")
        if ".." in target.parts or not content.strip(b"\x00\n "):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    device = number(said(folder, "date"))
    if device is not None and not asked[0] - CLOCK_S - 1 < device < asked[1] + CLOCK_S:
        (folder / "edgeslm" / "clock-ahead").write_text(str(round(device - sum(asked) / 2)), encoding="ascii")


@dataclass(frozen=True)
class Interpreter:
    """The device's python3: what wheels fit it, and which of NEEDED it finds. `version` is empty without one."""

    version: str = ""
    platform: str = ""  # "linux-aarch64"
    glibc: tuple[int, int] = (0, 0)  # zeros for another C library
    there: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in NEEDED if name not in self.there)

    @property
    def why_not(self) -> str:
        """Why workers in Python cannot run there; empty when they can, once what is missing is put there."""
        if not self.version:
            return "there is no python3"
        if tuple(int(part) for part in self.version.split(".")[:2]) < LEAST_PYTHON:
            return f"its python3 is {self.version}, at least {'.'.join(map(str, LEAST_PYTHON))} is needed"
        if self.missing and (self.platform not in WHEELS or self.glibc < OLDEST_GLIBC):
            return f"its python3 lacks {', '.join(self.missing)}, and there are no wheels for it ({self.platform})"
        return ""

    @property
    def usable(self) -> bool:
        return not self.why_not


def interpreter(root: Path) -> Interpreter:
    """As the tree tells it."""
    try:
        about = json.loads(said(root, "python3"))
        libc, version = about["libc"]
        numbers = [int(part) for part in version.split(".")[:2]] if libc == "glibc" else [0, 0]
        known = re.fullmatch(r"\d+\.\d+\S*", about["version"])
        return Interpreter(
            about["version"] if known else "", about["platform"], (numbers[0], numbers[1]), tuple(about["there"])
        )
    except (ValueError, LookupError, TypeError):
        return Interpreter()


def facts(root: Path) -> dict[str, Any]:
    """Those that only a look at another machine has: its interpreter, its clock, its free space."""
    free = said(root, "df").splitlines()[-1:]
    kib = number(free[0].split()[3]) if free and len(free[0].split()) > 3 else None
    known = {
        "python": interpreter(root).version,
        "clock_ahead_s": number(said(root, "clock-ahead")),
        "free_bytes": kib and kib * 1024,
    }
    return {key: value for key, value in known.items() if value}
