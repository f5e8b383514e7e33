"""Raspberry Pi 5: currents and voltages of its power-management chip, `vcgencmd pmic_read_adc`.

26 lines such as

       VDD_CORE_A current(7)=0.56259000A
       VDD_CORE_V volt(15)=0.76798460V

Power is the sum of volts x amperes over the rails that have both. What runs on 5 V (USB devices, HATs, the fan) and
the losses of the converters are not in it. Other models answer `error=1 error_msg="Command not registered"`.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgeslm.meters.sensors.base import Sample, Sensor, Texts, number, said, text

COMMAND = ("vcgencmd", "pmic_read_adc")
LINE = re.compile(r"^\s*(\w+)_([AV])\s+(current|volt)\(\d+\)=(\S+?)([AV])\s*$")
BOARDS = ("Raspberry Pi 5", "Raspberry Pi Compute Module 5")  # the first also begins "Raspberry Pi 500"
COVERS = "PMIC rails (5 V loads and converter losses left out)"
MOST_W = 40.0  # the official supply gives 27 W


def look(root: Path) -> tuple[list[Sensor], str]:
    answer = said(root, *COMMAND)
    if answer:
        there = read([answer]) is not None
    else:  # on the Pi itself nothing is asked beforehand: its model and the program are enough
        model = text(root / "proc/device-tree/model") or text(root / "sys/firmware/devicetree/base/model")
        there = model.startswith(BOARDS) and (root / "usr/bin/vcgencmd").exists()
    if there:
        return [Sensor("pi5_pmic", COVERS, read, commands=(COMMAND,), most_w=MOST_W)], ""
    if "not registered" in answer:
        return [], "this Raspberry Pi has no readable power chip (vcgencmd pmic_read_adc is not registered); a Pi 5 has"
    return [], "no Raspberry Pi 5 power chip (vcgencmd pmic_read_adc gave no rails)"


def read(texts: Texts) -> Sample | None:
    """None unless every rail with a current has a voltage, the core's among them."""
    values: dict[tuple[str, str], float] = {}
    raw: dict[str, str] = {}
    for line in (texts[0] or "").splitlines():
        found = LINE.match(line)
        if found is None or (found[3] == "current") != (found[2] == "A") or found[5] != found[2]:
            continue
        value = number(found[4])
        if value is None or (found[1], found[2]) in values:
            return None
        values[found[1], found[2]] = value
        raw[f"{found[1]}_{found[2]}"] = found[4]
    rails = [rail for rail, kind in values if kind == "A"]
    if "VDD_CORE" not in rails or any((rail, "V") not in values for rail in rails):
        return None
    return Sample(watts=sum(values[rail, "A"] * values[rail, "V"] for rail in rails), raw=raw)
