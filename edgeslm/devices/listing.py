"""What `edgeslm devices` prints: each device in reach, what it can measure, what is missing there and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeslm import units
from edgeslm.devices import probe, state
from edgeslm.meters.sensors import SENSORS

RUNS = {
    "native": "GGUF files (native worker)",
    "python": "ONNX files (Python worker)",
    "page": "GGUF and ONNX in a page",
}
RUNS_HERE = RUNS | {"python": "GGUF, ONNX and torch (Python workers)"}


@dataclass(frozen=True)
class Entry:
    """One device. `why_not` is the sentence of one that cannot be reached; then the rest is empty."""

    spec: str
    name: str = ""
    why_not: str = ""
    stand_in: bool = False
    about: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def entry(spec: str, facts: dict[str, Any], root: Path | None, hosts: tuple[str, ...]) -> Entry:
    """From a device's facts and the tree of its small files."""
    kind = spec.partition(":")[0]
    measures: list[str] = []
    missing: list[str] = []
    if hosts:
        measures.append("load, time to first token, prefill, decode, latency of each token")
    if facts.get("kernel"):
        whole = "memory: PSS of all the browser's processes"
        measures.append(whole if kind == "browser" else "memory: RssAnon, RssFile, PSS, swap, peak")
    if root is not None:
        for measured, what, why in (_clocks(root), _warmth(facts), *_sensors(root, kind, facts)):
            (measures if measured else missing).append(what if measured else why)
    if kind in ("ssh", "adb"):
        missing += _of_another_machine(facts, root, kind)
    runs = RUNS_HERE if kind == "local" else RUNS
    return Entry(
        spec=spec,
        name=str(facts.get("name", "")),
        stand_in=bool(facts.get("stand_in")),
        about=tuple(about(facts)),
        runs=tuple(runs[host] for host in hosts),
        measures=tuple(measures),
        missing=tuple(missing),
    )


def about(facts: dict[str, Any]) -> list[str]:
    """Its profile, a line a subject."""
    memory = units.byte_count(facts["memory_bytes"]) if facts.get("memory_bytes") else ""
    free = f"{units.byte_count(facts['free_bytes'])} of storage free" if facts.get("free_bytes") else ""
    system = [facts.get("os"), facts.get("kernel") and f"kernel {facts['kernel']}", facts.get("machine")]
    parts = [
        [f"{facts['cores']} cores" if facts.get("cores") else "", memory and f"{memory} of memory", free],
        [str(part) for part in system if part],
        [cluster_text(cluster) for cluster in facts.get("clusters", [])],
        [f"governor {facts['governor']}" if facts.get("governor") else "", _warm(facts), throttled_text(facts)],
        [battery_text(facts.get("battery", {}))],
    ]
    return [line for part in parts if (line := ", ".join(text for text in part if text))]


def cluster_text(cluster: dict[str, Any]) -> str:
    cpus = cluster["cpus"]
    which = f"{cpus[0]}-{cpus[-1]}" if cpus == list(range(cpus[0], cpus[-1] + 1)) and len(cpus) > 1 else ""
    clock = f" at up to {cluster['max_khz'] / 1e6:.2f} GHz" if cluster.get("max_khz") else ""
    return f"{len(cpus)}x {cluster.get('core', 'core')}{clock} (CPU {which or ','.join(map(str, cpus))})"


def throttled_text(facts: dict[str, Any]) -> str:
    told = facts.get("throttled")
    if not told:
        return ""
    if "status" in told:
        return "not throttled" if told["status"] == "none" else f"THROTTLED: {told['status']}"
    if told["now"]:
        return f"THROTTLED NOW: {', '.join(told['now'])}"
    return f"throttled since its start: {', '.join(told['since_boot'])}" if told["since_boot"] else "not throttled"


def battery_text(battery: dict[str, Any]) -> str:
    if not battery:
        return ""
    percent = f" {battery['percent']} %" if "percent" in battery else ""
    status = f", {battery['status'].lower()}" if battery.get("status") else ""
    warm = f", {battery['temperature_c']:.1f} °C" if "temperature_c" in battery else ""
    return f"battery{percent}{status}{warm}"


def _warm(facts: dict[str, Any]) -> str:
    return f"{facts['temperature_c']:.1f} °C" if facts.get("temperature_c") else ""


def _clocks(root: Path) -> tuple[bool, str, str]:
    there = any((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return there, "clock of each core while it runs", "clocks: it does not tell them, so a clock that moves goes unseen"


def _warmth(facts: dict[str, Any]) -> tuple[bool, str, str]:
    why = "temperature: no sensor can be read, so cooling down between runs is not checked"
    return bool(facts.get("temperature_c")), "temperature while it runs", why


def _sensors(root: Path, kind: str, facts: dict[str, Any]) -> Iterable[tuple[bool, str, str]]:
    """Energy: every sensor there is, and why there is none of those that such a device may have."""
    looked = {name: look(root) for name, look in SENSORS.items()}
    found = [sensor for sensors, _ in looked.values() for sensor in sensors]
    for sensor in found:
        yield True, f"energy: {sensor.covers}", ""
    whys = [why for name, (_, why) in looked.items() if why and _likely(name, root, kind, facts)]
    for why in whys:
        yield False, "", f"energy: {why}"
    if not found:
        yield False, "", "energy: an external meter's CSV can be given" + (" instead" if whys else ", it has no sensor")


def _likely(sensor: str, root: Path, kind: str, facts: dict[str, Any]) -> bool:
    """Whether devices like this one can have such a sensor at all."""
    return {
        "rapl": state.family_of(str(facts.get("machine", ""))) == "x86",
        "pi5_pmic": "Raspberry" in str(facts.get("cpu", "")),
        "android_battery": kind == "adb",
        "pixel_rails": kind == "adb" and "Pixel" in str(facts.get("cpu", "")),
        "nvml": kind == "local" and (root / "proc/driver/nvidia").exists(),
        "amd": kind == "local" and (root / "sys/module/amdgpu").exists(),
        "apple": kind == "local" and facts.get("machine") == "arm64",
    }.get(sensor, False)


def _of_another_machine(facts: dict[str, Any], root: Path | None, kind: str) -> list[str]:
    found = []
    if root is not None and kind == "ssh":
        interpreter = probe.interpreter(root)
        if interpreter.why_not:
            found.append(f"ONNX files: {interpreter.why_not}")
        elif interpreter.missing:
            found.append(f"{', '.join(interpreter.missing)} for Python: put there for each session, nothing is built")
    if root is not None and state.asleep(root):
        found.append("it is asleep: wake it and keep its screen on before anything is measured")
    if facts.get("clock_ahead_s"):
        found.append(
            f"its clock is {facts['clock_ahead_s']:+d} s off this machine's: an external meter's times will not fit"
        )
    return found


def text(entries: Iterable[Entry]) -> str:
    """For a terminal."""
    lines: list[str] = []
    for one in entries:
        if one.why_not:
            lines.append(f"{one.spec}\n  not reached: {one.why_not}")
            continue
        mark = "  [stand-in: emulated, its figures never enter a comparison]" if one.stand_in else ""
        lines.append(f"{one.spec}  {one.name}{mark}")
        lines += [f"  {line}" for line in one.about]
        for title, found in (("runs", one.runs), ("measures", one.measures), ("missing", one.missing)):
            lines += [f"  {title + ':' if at == 0 else '':9} {line}" for at, line in enumerate(found)]
    return "\n".join(lines)
