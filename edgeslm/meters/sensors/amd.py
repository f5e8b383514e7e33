"""AMD graphics processors through AMD's own library (package amdsmi, the extra `energy-amd`, over ROCm's libamd_smi).

A small program reads it, once a sample; the counter is the accelerator's energy accumulator (MI200 and later), else
the power of the moment is taken. Only on the machine this runs on: the library talks to a local driver.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgeslm.meters.sensors.base import Sensor
from edgeslm.meters.sensors.nvml import MOST_W, NOTE, reader
from edgeslm.meters.sensors.probe import radeon

PROBE = (sys.executable, "-P", str(Path(__file__).with_name("probe.py")), "amd")


def look(root: Path) -> tuple[list[Sensor], str]:
    if root != Path("/"):
        return [], "AMD graphics processors are read on this machine only"
    try:
        cards = radeon()
    except ImportError:
        return [], "AMD's counters need the package amdsmi; install the extra 'energy-amd'"
    except RuntimeError as error:
        return [], f"no AMD graphics processor can be read ({error})"
    if not cards:
        return [], "no AMD graphics processor is here"
    return [
        Sensor(
            name=f"amd {index}",
            covers=f"graphics processor {index} ({card['name']})",
            read=reader(index),
            commands=(PROBE,),
            most_w=MOST_W,
            held=True,
            note=NOTE,
        )
        for index, card in enumerate(cards)
    ], ""
