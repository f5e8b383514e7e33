"""The whole path on stand-ins: a small model goes there, is run by the worker of that device, and comes back as marked
figures. ONNX by the Python worker with wheels put there, GGUF by the native worker."""

from __future__ import annotations

import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from standins import Phone, Pi

from edgeslm.benchmark.energy import energy
from edgeslm.benchmark.run import bench
from edgeslm.benchmark.settings import Settings
from edgeslm.devices.remote import RemoteDevice
from edgeslm.runtimes import build

pytestmark = pytest.mark.standin
QUICK = Settings(
    prefill=(16,),
    depths=(8,),
    new_tokens=4,
    processes=1,
    repeats=1,
    warmups=1,
    most_warmups=1,
    threads=2,
    timeout_s=300,
)


def check(device: RemoteDevice, path: Path, kind: str, runtime: str) -> None:
    found, problems = bench([tiny_models.artifact(path, kind)], tiny_models.ids(16), QUICK, device=device)
    assert problems == []
    metrics = {one.metric for one in found}
    assert {"load", "prefill", "decode", "time_to_first_token", "rss_anon_peak"} <= metrics
    assert all(one.where.device["stand_in"] is True for one in found)
    assert next(one for one in found if one.metric == "decode").where.runtime == runtime


def test_onnx_on_a_pi(pi: Pi) -> None:
    with pi.device() as device:
        check(device, tiny_models.built() / "teacher-onnx", "onnx", "onnxruntime-genai")
    assert pi.left() == []


@pytest.fixture
def worker() -> None:
    if not build.sound(build.TARGETS["aarch64-dotprod"]):
        pytest.skip("the native worker is not built; `edgeslm devices build-runtime aarch64-dotprod` builds it")


def test_gguf_on_a_pi(pi: Pi, worker: None) -> None:
    with pi.device() as device:
        check(device, tiny_models.built() / "teacher.gguf", "gguf", "llama.cpp")
    assert pi.left() == []


def test_gguf_on_a_phone(phone: Phone, worker: None) -> None:
    with phone.device() as device:
        check(device, tiny_models.built() / "teacher.gguf", "gguf", "llama.cpp")
    assert phone.left() == []


def test_energy_from_the_power_chip_of_a_pi(pi: Pi, worker: None) -> None:
    with pi.device() as device:
        weigh(device, "pi5_pmic", "PMIC rails")
    assert pi.left() == []


def test_energy_from_the_battery_of_a_phone(phone: Phone, worker: None) -> None:
    folder = phone.root / "sys/class/power_supply/battery"
    for name, text in {"type": "Battery", "status": "Discharging", "voltage_now": "4000000"}.items():
        phone.write(**{f"sys/class/power_supply/battery/{name}": text})
    phone.write(**{"data/fixtures/model": "Pixel 4a"})  # one without power rails
    over = threading.Event()

    def discharge() -> None:
        while not over.wait(0.1):
            (folder / "current_now").write_text(f"{-500_000 - random.randrange(100_000)}\n")

    (folder / "current_now").write_text("-500000\n")
    thread = threading.Thread(target=discharge)
    thread.start()
    try:
        with phone.device() as device:
            weigh(device, "android_battery", "whole device, from its battery")
    finally:
        over.set()
        thread.join()
        shutil.rmtree(folder)
        phone.write(**{"data/fixtures/model": None})
    assert phone.left() == []


def weigh(device: RemoteDevice, sensor: str, covers: str) -> None:
    """The model is far too small for its answers to be told from waiting; waiting itself is measured."""
    settings = replace(QUICK, energy_s=4.0, idle_s=8.0)
    artifact = tiny_models.artifact(tiny_models.built() / "teacher.gguf", "gguf")
    found, problems = energy([artifact], tiny_models.ids(16), settings, device=device)
    idle = [one for one in found if one.metric == "idle_power"]
    assert len(idle) == 1 and covers in idle[0].covers and 0.5 < idle[0].median < 20, (found, problems)
    assert all(one.where.device["stand_in"] is True for one in found)
    assert all(sensor in one["what"] for one in problems), problems
