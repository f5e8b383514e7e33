"""The whole path on stand-ins: a small model goes there, is run by the worker of that device, and comes back as marked
figures. ONNX by the Python worker with wheels put there, GGUF by the native worker."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
from standins import Phone, Pi

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
