"""A second mix of data in the decay phase (MiniCPM): what is read when, and what a recipe may say of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import recipe as made_recipe

from edgeslm import recipe as recipes
from edgeslm.data.order import order, order_of_phases
from edgeslm.data.rows import Rows, pack
from edgeslm.errors import RecipeError
from edgeslm.pipeline.check import check
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress


def rows() -> Rows:
    """40 rows of a first source, 20 of a second."""
    return Rows.join([pack([[i] * 8 for i in range(n)], 8, 0, name) for n, name in ((40, "a"), (20, "b"))])


def test_each_phase_has_its_mix_and_reads_new_rows_first() -> None:
    made = rows()
    source = made.source.numpy()
    count = {name: int((source == i).sum()) for i, name in enumerate("ab")}
    found = order_of_phases(made, [(24, [1.0, 0.0]), (16, [0.5, 0.5])], seed=3)
    first, second = found[:24], found[24:]
    assert set(source[first]) == {0} and np.bincount(source[second]).tolist() == [8, 8]
    assert len(set(first)) == 24 and count["a"] >= 32
    assert not set(first) & set(second), "rows were read again while others had not been read"
    assert np.array_equal(order_of_phases(made, [(24, [1.0, 0.0]), (16, [0.5, 0.5])], seed=3), found)
    assert np.array_equal(order_of_phases(made, [(30, [2.0, 1.0])], seed=3), order(made, [2.0, 1.0], 30, 3))
    longer = order_of_phases(made, [(24, [1.0, 0.0]), (4 * count["b"], [0.0, 1.0])], seed=3)
    assert np.bincount(longer[24:], minlength=len(source))[source == 1].tolist() == [4] * count["b"]


DECAY = (
    "data.sources=[{kind: text, paths: [learn.txt], share: 1}, "
    "{kind: chat, paths: [chat.jsonl], share: 0, decay_share: 1}]"
)


def test_training_reads_the_second_mix_at_the_end_alone(tmp_path: Path) -> None:
    path = made_recipe(tmp_path)
    loaded = recipes.load(path, [DECAY, "distill.train.decay=0.5"])
    assert loaded.data.decay_shares == [1.0, 1.0] and loaded.decay_steps == 4
    context = Context(loaded, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True))
    assert not check(context).problems
    run(loaded, tmp_path, tmp_path / "runs", Progress(quiet=True), "data")
    from edgeslm.pipeline.guides import read_order

    folder = next((tmp_path / "runs" / "tiny").glob("data-*"))
    made = Rows.load(folder / "rows.safetensors")
    read = torch.as_tensor(read_order(context, made))
    assert len(read) == 8 * 4 and set(made.source[read[:16]].tolist()) == {0}
    assert set(made.source[read[16:]].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([DECAY, "distill.train.schedule=cosine"], "is for the decay phase of schedule: wsd"),
        ([DECAY, "distill.train.decay=0"], "is for the decay phase"),
        (["data.sources=[{kind: text, paths: [learn.txt], share: 0}]"], "every share is 0"),
        (
            ["data.sources=[{kind: text, paths: [learn.txt]}, {kind: chat, paths: [x], share: 0}]"],
            "leave the source out",
        ),
        ([DECAY, "distill.scheme={kind: codistill}"], "not for codistillation"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path: Path, overrides: list[str], says: str) -> None:
    path = made_recipe(tmp_path)
    with pytest.raises(RecipeError, match=says):
        recipes.load(path, overrides)
