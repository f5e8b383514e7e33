"""Counters that only a library can read, as one line of JSON: `python probe.py nvml`, `amd` or `apple`.

    [{"name": "...", "joules": cumulative or null, "watts": now or null}, ...]

Run once a sample by whoever samples, so it imports nothing but the library; also imported for its parser.
"""

from __future__ import annotations

import json
import sys
from typing import Any

PARTS = {"cpu_total_mj": "processor", "gpu_mj": "graphics", "ane_mj": "neural engine", "dram_mj": "memory"}


def graphics() -> list[dict[str, Any]]:
    """Every NVIDIA card. Raises ImportError without the library, RuntimeError without a driver or a card."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise RuntimeError(str(error)) from error
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(card)
        one = {"name": name.decode() if isinstance(name, bytes) else name, "joules": None, "watts": None}
        try:
            one["joules"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3
        except pynvml.NVMLError:  # before Volta there is no counter
            one["watts"] = pynvml.nvmlDeviceGetPowerUsage(card) / 1e3
        found.append(one)
    return found


def radeon() -> list[dict[str, Any]]:
    """Every AMD card. Raises ImportError without the package, RuntimeError without ROCm's library or a driver."""
    try:
        import amdsmi
    except (OSError, KeyError) as error:  # the package is there, the library it wraps is not
        raise RuntimeError(str(error)) from error
    try:
        amdsmi.amdsmi_init()
        cards = amdsmi.amdsmi_get_processor_handles()
    except amdsmi.AmdSmiException as error:
        raise RuntimeError(str(error)) from error
    return [{"name": _name(amdsmi, card)} | _energy(amdsmi, card) for card in cards]


def _name(amdsmi: Any, card: Any) -> str:
    try:
        return str(amdsmi.amdsmi_get_gpu_asic_info(card)["market_name"])
    except amdsmi.AmdSmiException:
        return "AMD"


def _energy(amdsmi: Any, card: Any) -> dict[str, float | None]:
    """Counts of `counter_resolution` microjoules; without such a counter the watts, of which one key has a number."""
    try:
        told = amdsmi.amdsmi_get_energy_count(card)
        counts = told["energy_accumulator"] if "energy_accumulator" in told else told["power"]  # as before ROCm 6.2
        return {"joules": counts * told["counter_resolution"] / 1e6, "watts": None}
    except amdsmi.AmdSmiException:
        told = amdsmi.amdsmi_get_power_info(card)
        watts = (told.get(key) for key in ("average_socket_power", "current_socket_power"))
        return {"joules": None, "watts": next((float(w) for w in watts if isinstance(w, int | float)), None)}


def apple() -> list[dict[str, Any]]:
    """The chip as one entry; its name lists the parts that are in the sum."""
    import zeus_apple_silicon

    energy = zeus_apple_silicon.AppleEnergyMonitor().get_cumulative_energy()
    parts = {said: getattr(energy, key) for key, said in PARTS.items() if getattr(energy, key) is not None}
    return [{"name": ", ".join(parts), "joules": sum(parts.values()) / 1e3, "watts": None}]


READERS = {"nvml": graphics, "amd": radeon, "apple": apple}


def answer(line: str | None, index: int) -> Any:
    """The Sample of one entry of such a line, None when it holds no number."""
    from edgeslm.meters.sensors.base import Sample

    try:
        one = json.loads(line or "")[index]
        name, numbers = str(one["name"]), {key: one[key] for key in ("joules", "watts")}
    except (ValueError, LookupError, TypeError):
        return None
    given = {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}
    if not given or any(value != value or abs(value) == float("inf") for value in given.values()):
        return None
    return Sample(
        joules=given.get("joules"),
        watts=given.get("watts"),
        raw={"name": name} | {key: repr(value) for key, value in given.items()},
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(READERS[sys.argv[1]]()) + "\n")
