"""Apple silicon through the package zeus-apple-silicon (the extra `energy`), on a Mac.

The system's own "Energy Model" counters of processor, graphics, neural engine and memory, cumulative, in millijoules.
They are separate parts of the chip, so they are added up; a part the chip does not tell is left out and named.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgeslm.meters.sensors.base import Sample, Sensor, Texts
from edgeslm.meters.sensors.probe import answer, apple

PROBE = (sys.executable, "-P", str(Path(__file__).with_name("probe.py")), "apple")
MOST_W = 500.0


def look(root: Path) -> tuple[list[Sensor], str]:
    if root != Path("/") or sys.platform != "darwin":
        return [], "no Apple silicon (its counters are read on a Mac, by a program running there)"
    try:
        found = apple()[0]
    except ImportError:
        return [], "Apple's counters need the package zeus-apple-silicon; install the extra 'energy'"
    except RuntimeError as error:
        return [], f"Apple's counters cannot be read ({error})"
    covers = f"chip: {found['name']} (display, storage and power supply left out)"
    return [Sensor("apple", covers, read, commands=(PROBE,), most_w=MOST_W, held=True)], ""


def read(texts: Texts) -> Sample | None:
    return answer(texts[0], 0)
