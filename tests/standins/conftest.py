"""One of each for all tests here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # for tiny_models
from standins import Phone, Pi, built


@pytest.fixture(scope="session")
def pi() -> Iterator[Pi]:
    one = Pi(built())
    yield one
    one.stop()


@pytest.fixture(scope="session")
def phone() -> Iterator[Phone]:
    one = Phone(built())
    yield one
    one.stop()
