"""Device profiles: every figure has a source, unknown keys are refused, bounds hold what was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeslm import cost
from edgeslm.errors import DataError
from edgeslm.profiles import load as profiles

TINY_LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
BITS = {"q8_0": 8.5, "f16": 16.0}


def test_the_folder_is_the_list() -> None:
    assert profiles.names() == ["pi4", "pi5"]
    assert [profiles.load(name).name for name in profiles.names()] == profiles.names()


@pytest.mark.parametrize("name", profiles.names())
def test_every_ceiling_names_where_it_comes_from(name: str) -> None:
    profile = profiles.load(name)
    given = {rate for rate in profiles.RATES if getattr(profile.ceilings(), rate) is not None}
    assert given and set(profile.grounds()) == given
    assert all("http" in words for words in profile.grounds().values())
    assert all(one.source.publication and one.source.address for one in (*profile.figures, *profile.published))


@pytest.mark.parametrize("name", profiles.names())
def test_no_published_speed_exceeds_its_bound(name: str) -> None:
    """TinyLlama 1.1B as llama.cpp ran it, against memory alone; they are rounded to whole tokens."""
    profile = profiles.load(name)
    decodes = [one for one in profile.published if one.metric == "decode"]
    assert decodes and all(one.model == "TinyLlama 1.1B" for one in decodes)
    for one in decodes:
        bits = BITS[one.format]
        table = cost.counts(TINY_LLAMA).embedding * bits / 8
        load = cost.Load(TINY_LLAMA, cost.weight_bytes(TINY_LLAMA, bits, bits), table, int8=one.format == "q8_0")
        (bound,) = cost.predict(profile.ceilings(), load, depths=[0])
        assert one.tokens_per_s - 0.5 <= bound.value <= 4 * one.tokens_per_s


def test_boards_are_told_apart() -> None:
    found = [profiles.of_board(model) for model in ("Raspberry Pi 5 Model B Rev 1.0", "Raspberry Pi 4 Model B Rev 1.4")]
    assert [one.name if one else None for one in found] == ["pi5", "pi4"]
    assert profiles.of_board("Raspberry Pi 500 Rev 1.0") is None and profiles.of_board("") is None


def test_all_cores_come_before_the_peak_and_the_peak_before_one_core() -> None:
    profile = profiles.load("pi5")
    assert profile.ground("read_bytes_per_s").kind == "peak"  # type: ignore[union-attr]
    measured = profile.figures[1].model_copy(update={"threads": 4, "value": 12e9})
    better = profile.model_copy(update={"figures": [*profile.figures, measured]})
    assert better.ceilings().read_bytes_per_s == 12e9
    assert better.ceilings().flops_f32_per_s is None  # double precision is not float32


def good() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((profiles.FOLDER / "pi4.yaml").read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(bandwidth=1.0), "bandwidth: Extra inputs"),
        (lambda d: d["figures"][0].update(note="x"), "figures.0.note: Extra inputs"),
        (lambda d: d["figures"][0].pop("source"), "figures.0.source: Field required"),
        (lambda d: d["figures"][0]["source"].update(address="a book"), "figures.0.source.address"),
        (lambda d: d["figures"][0].update(value=-1.0), "figures.0.value"),
        (lambda d: d["figures"][0].update(value=float("nan")), "figures.0.value"),
        (lambda d: d["figures"][0].update(value="fast"), "figures.0.value"),
        (lambda d: d["figures"][0].pop("threads"), "names its threads"),
        (lambda d: d["figures"][0].update(kind="peak"), "names its threads"),
        (lambda d: d["figures"][0].update(what="bandwidth"), "figures.0.what"),
        (lambda d: d.update(figures=[]), "figures"),
        (lambda d: d.update(name="pi9"), "name the file pi9.yaml"),
    ],
)
def test_a_profile_with_anything_wrong_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    data = good()
    path = tmp_path / "pi4.yaml"
    path.write_text(yaml.safe_dump(data))
    assert profiles.read(path) == profiles.load("pi4")
    change(data)
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(DataError, match=says):
        profiles.read(path)


def test_no_such_profile() -> None:
    with pytest.raises(DataError, match="no profile 'pixel'; there are pi4, pi5"):
        profiles.load("pixel")
    with pytest.raises(DataError, match="cannot be read as a profile"):
        profiles.read(Path("none.yaml"))
