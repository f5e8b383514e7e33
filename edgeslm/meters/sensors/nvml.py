"""NVIDIA graphics processors through NVIDIA's own library (package nvidia-ml-py, the extra `energy`).

A small program reads it, once a sample; the counter is millijoules since the driver was loaded (Volta and later),
otherwise the power of the moment is taken. Only on the machine this runs on: the library talks to a local driver.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeslm.meters.sensors.base import Sample, Sensor, Texts
from edgeslm.meters.sensors.probe import answer, graphics

PROBE = (sys.executable, "-P", str(Path(__file__).with_name("probe.py")), "nvml")
MOST_W = 2000.0
NOTE = "other programs on the graphics processor are included"


def look(root: Path) -> tuple[list[Sensor], str]:
    if root != Path("/"):
        return [], "NVIDIA graphics processors are read on this machine only"
    try:
        cards = graphics()
    except ImportError:
        return [], "NVIDIA's counters need the package nvidia-ml-py; install the extra 'energy'"
    except RuntimeError as error:
        return [], f"no NVIDIA graphics processor can be read ({error})"
    return of_cards("nvml", cards, PROBE), ""


def of_cards(kind: str, cards: list[dict[str, Any]], probe: tuple[str, ...]) -> list[Sensor]:
    """One sensor a card, all read by one program."""
    return [
        Sensor(
            name=f"{kind} {index}",
            covers=f"graphics processor {index} ({card['name']})",
            read=reader(index),
            commands=(probe,),
            most_w=MOST_W,
            held=True,
            note=NOTE,
        )
        for index, card in enumerate(cards)
    ]


def reader(index: int) -> Callable[[Texts], Sample | None]:
    def read(texts: Texts) -> Sample | None:
        return answer(texts[0], index)

    return read
