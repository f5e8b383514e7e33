"""AMD graphics processors through AMD's own library (package amdsmi, the extra `energy-amd`, over ROCm's libamd_smi).

A small program reads it, once a sample; the counter is the accelerator's energy accumulator (MI200 and later), else
the power of the moment is taken. Only on the machine this runs on: the library talks to a local driver.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgeslm.meters.sensors.base import Sensor
from edgeslm.meters.sensors.nvml import of_cards
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
    return (of_cards("amd", cards, PROBE), "") if cards else ([], "no AMD graphics processor is here")
