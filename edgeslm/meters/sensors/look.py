"""Looking for a device's energy sensors, and asking for several of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeslm.meters.sensors import SENSORS
from edgeslm.meters.sensors.base import Sensor

INTERVAL_S = 0.1


def found(root: Path) -> list[Sensor]:
    """Every sensor that a device's tree shows."""
    return [sensor for look in SENSORS.values() for sensor in look(root)[0]]


def missing(root: Path) -> dict[str, str]:
    """Kinds of sensors that are not there -> why, in words."""
    looked = {name: look(root) for name, look in SENSORS.items()}
    return {name: why for name, (sensors, why) in looked.items() if not sensors}


def plan(sensors: Iterable[Sensor], interval_s: float = INTERVAL_S) -> dict[str, Any]:
    """The `sample` of the job `energy`: each file and command once, whoever needs it."""
    listed = list(sensors)
    files = dict.fromkeys(path for sensor in listed for path in sensor.files)
    commands = dict.fromkeys(argv for sensor in listed for argv in sensor.commands)
    return {"interval_s": interval_s, "files": list(files), "commands": [list(argv) for argv in commands]}


def of_sensor(sensor: Sensor, planned: dict[str, Any], samples: list[list[Any]]) -> list[list[Any]]:
    """What one sensor asked for, out of the texts of all: [[s, [text ...]], ...]."""
    commands = [tuple(argv) for argv in planned["commands"]]
    places = [planned["files"].index(path) for path in sensor.files]
    places += [len(planned["files"]) + commands.index(argv) for argv in sensor.commands]
    return [[at, [texts[place] if place < len(texts) else None for place in places]] for at, texts in samples]
