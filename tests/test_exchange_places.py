"""Where groups of a codistillation meet: what a folder and a bucket promise, what fails on the way to a bucket, and
whole runs that meet in one."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import fsspec
import pytest
import tiny
from fsspec.registry import _registry
from places import File, Flaky, Lost, Whole, bucket
from test_codistill import apart, part, taken, train, written
from test_codistill_recipes import lines, load, made, scheme, with_recipe
from test_codistill_sharing import desk, until
from test_pipeline import same_weights
from test_scheme_kinds import STEPS, equal, weights
from test_scheme_kinds import lines as log_of

from edgeslm.errors import DataError, RecipeError
from edgeslm.pipeline import serve
from edgeslm.pipeline.check import Findings, check
from edgeslm.pipeline.groups import SERVERS, VARIABLE
from edgeslm.pipeline.origin import shared_recipe
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress
from edgeslm.schemes import codistill, exchange_server
from edgeslm.schemes.exchange_places import Bucket, Folder, Patient, Place

KINDS = ("folder", "memory", "whole")


class Remembers(Whole):
    """A client that keeps listings, as those of stores do."""

    protocol = "remembers"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def ls(self, path, detail=True, **more):
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True)
        found = self.dircache[path]
        return found if detail else [entry["name"] for entry in found]

    def invalidate_cache(self, path=None):
        self.dircache.clear()


class Denies(Whole):
    """What may be read and not written, or not even that."""

    protocol = "denies"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    def pipe_file(self, path, value, **more):
        raise PermissionError("Access Denied")


for filesystem in (Remembers, Denies):
    fsspec.register_implementation(filesystem.protocol, filesystem, clobber=True)


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    monkeypatch.setattr(Bucket, "rest_s", 0.005)
    monkeypatch.setattr(codistill, "POLL_S", 0.005)
    monkeypatch.setattr(exchange_server, "LOOK_S", 0.01)
    monkeypatch.setattr(Flaky, "share", 0.0)


@pytest.fixture(scope="module", autouse=True)
def no_timing():
    yield from tiny.no_timing()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return with_recipe(tmp_path_factory.mktemp("recipes"))


def place_of(kind: str, at: Path) -> Place:
    return Folder(at) if kind == "folder" else bucket(kind, at)


# What a place promises ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_there_is_there_whole_and_each_groups_own(kind, tmp_path):
    place = place_of(kind, tmp_path / "x")
    assert place.steps(0) == [] and str(place).endswith(f"{tmp_path}/x")
    place.remove(0, [3])
    for group, step in ((0, 9), (0, 100_000_000), (0, 10), (1, 2)):
        place.put(group, step, lambda path, step=step: path.write_bytes(b"%d" % step))
    place.put(0, 9, lambda path: path.write_bytes(b"new"))
    assert place.steps(0) == [100_000_000, 10, 9] and place.steps(1) == [2] and place.steps(2) == []
    assert [File(place, 0, step).read_bytes() for step in (9, 10)] == [b"new", b"10"]
    place.remove(0, [10, 11])
    assert place.steps(0) == [100_000_000, 9] and place.steps(1) == [2]
    with pytest.raises(FileNotFoundError):
        place.copy(0, 10, tmp_path / "copy")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finished_is_not_there(kind, tmp_path):
    place = place_of(kind, tmp_path / "x")
    place.put(0, 1, lambda path: path.write_bytes(b"old"))

    def full(path: Path) -> None:
        path.write_bytes(b"ne")
        raise OSError("the disk is full")

    for step in (1, 2):
        with pytest.raises(OSError, match="full"):
            place.put(0, step, full)
    assert place.steps(0) == [1] and File(place, 0, 1).read_bytes() == b"old"
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.parametrize("kind", KINDS)
def test_other_names_are_no_steps(kind, tmp_path):
    place = place_of(kind, tmp_path)
    place.put(0, 1, lambda path: path.write_bytes(b"x"))
    names = ("step-2.safetensors.part-7", "step-x.safetensors", "note.txt", "astep-00000003.safetensors")
    for name in names:
        if kind == "folder":
            (tmp_path / "group-0" / name).touch()
        else:
            place.fs.pipe_file(f"{place.root}/group-0/{name}", b"")
    assert place.steps(0) == [1]


def test_a_listing_is_never_one_that_the_client_remembers(tmp_path):
    ours, theirs = bucket("remembers", tmp_path), bucket("remembers", tmp_path)
    theirs.put(1, 1, lambda path: path.write_bytes(b"x"))
    assert ours.steps(1) == [1]
    Remembers.store[f"{theirs.root}/group-1/step-00000002.safetensors"] = Remembers.store[
        f"{theirs.root}/group-1/step-00000001.safetensors"
    ]  # by another process
    assert ours.steps(1) == [2, 1]


@pytest.mark.parametrize(
    ("error", "said"),
    [(Lost("no route"), "Lost: no route"), (TimeoutError(), "TimeoutError"), (PermissionError("denied"), "denied")],
)
def test_every_error_of_a_client_is_one_of_the_place(error, said, tmp_path, monkeypatch):
    place = bucket("whole", tmp_path)

    def fails(*_, **__):
        raise error

    for name in ("ls", "put_file", "get_file", "rm_file"):
        monkeypatch.setattr(Whole, name, fails)
    for do in (
        lambda: place.steps(0), lambda: place.put(0, 1, lambda path: path.touch()), lambda: place.remove(0, [1]),
        lambda: place.copy(0, 1, tmp_path / "copy"),
    ):  # fmt: skip
        with pytest.raises(OSError, match=said):
            do()


def test_a_group_that_waits_for_its_bucket_says_so_once_and_in_the_end_gives_up(tmp_path, monkeypatch):
    said, inner = [], bucket("flaky", tmp_path)
    place = Patient(inner, 0.05, said.append)
    monkeypatch.setattr(Flaky, "share", 1.0)
    with pytest.raises(DataError, match=r"could not be used for 0.05 s \(.*start this group again"):
        place.steps(0)
    assert len(said) == 1 and said[0].startswith(f"flaky:/{tmp_path}: waits for it")
    monkeypatch.setattr(Flaky, "share", 0.6)
    place.patience_s = 30.0
    place.put(0, 1, lambda path: path.write_bytes(b"x"))
    assert place.steps(0) == [1]
    place.remove(0, iter([1]))
    assert place.steps(0) == []
    with pytest.raises(FileNotFoundError):
        place.copy(0, 1, tmp_path / "copy")


# A bucket that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_bucket_that_fails_at_random_stops_nobody(seed, tmp_path, monkeypatch):
    """Newest: every step is done, the log says what went wrong, and what taught was whole."""
    monkeypatch.setattr(Flaky, "share", 0.4)
    monkeypatch.setattr(Flaky, "dice", random.Random(seed))
    before, place = Flaky.failed, bucket("flaky", tmp_path / "x")
    train((0, 1), tmp_path / "run", place, part(exchange_every=1))
    log = log_of(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(1, STEPS + 1)) and Flaky.failed > before
    problems = [p for line in log for p in line.get("exchange_problems", ())]
    assert problems and all("could not" in p or "cannot be read" in p for p in problems)
    assert any(line["used"] for line in log) and not list(tmp_path.rglob("*.part*"))


def test_scheduled_groups_whose_bucket_fails_at_random_are_as_in_a_folder(tmp_path, monkeypatch):
    how = part(exchange="scheduled", lag=2)
    calm = train((0, 1), tmp_path / "calm", tmp_path / "x", how)
    monkeypatch.setattr(Flaky, "share", 0.4)
    before, place = Flaky.failed, Patient(bucket("flaky", tmp_path / "x"), 60.0)
    found = apart(tmp_path, how, "apart", 5, place)
    assert Flaky.failed > before and all(equal(weights(found[g]), weights(calm[g])) for g in (0, 1))


def test_what_an_earlier_training_left_goes_when_the_bucket_lets_it(tmp_path, monkeypatch):
    place = bucket("flaky", tmp_path / "x")
    written(place, 0, 500)
    monkeypatch.setattr(Flaky, "share", 1.0)

    def mended() -> None:
        monkeypatch.setattr(Flaky, "share", 0.0)

    train((0,), tmp_path / "run", place, part(), keep={3: mended})
    assert place.steps(0) == [8, 6, 4]
    first = log_of(tmp_path / "run")[2]["exchange_problems"]
    assert any("group 0 could not remove what it left before" in p for p in first)
    assert any("group 0 could not write step 2" in p for p in first)


def test_an_object_that_goes_while_it_is_read_is_passed_over(tmp_path, monkeypatch):
    place = bucket("whole", tmp_path / "x")
    written(place, 1, 2)
    ls = Whole.ls

    def late(self, path, detail=True, **more):
        found = ls(self, path, detail, **more)
        if str(path).endswith("group-1"):
            Whole.store.pop(f"{place.root}/group-1/step-00000002.safetensors", None)
        return found

    monkeypatch.setattr(Whole, "ls", late)
    train((0,), tmp_path / "run", place, part())
    log = log_of(tmp_path / "run")
    assert "group 1: its checkpoints cannot be read" in log[2]["exchange_problems"][0] and len(log) == STEPS
    assert {step for *_, step in taken(tmp_path / "run")} == {None}


def test_a_server_looks_again_when_its_bucket_failed(tmp_path, monkeypatch):
    place = bucket("flaky", tmp_path / "x")
    written(place, 1, 2)
    one = desk(place)
    monkeypatch.setattr(Flaky, "share", 1.0)
    assert any("group 1: its checkpoints cannot be read" in what for what in one.look())
    monkeypatch.setattr(Flaky, "share", 0.5)
    until(lambda: one.look() is not None and 1 in one.marks)
    assert one.marks[1].step == 2


# Recipes ------------------------------------------------------------------------------------------------------------


def looked(folder: Path, root: Path, *overrides: str, until: str | None = None) -> Findings:
    return check(Context(load(folder, *overrides), folder, root, Progress(quiet=True)), until)


def test_a_run_through_a_bucket_is_as_through_a_folder_bit_for_bit(folder, tmp_path, monkeypatch):
    """Whole recipes with a scheduled exchange, both groups in one process, and a folder beside the recipe."""

    def go(name: str, where: str) -> dict[str, Path]:
        return made(
            folder, tmp_path, f"name={name}", scheme("{kind: weights}", exchange="scheduled", folder=f"'{where}'")
        )

    url = f"memory:/{tmp_path}/b"
    beside, there = go("beside", "met"), go("there", url)
    assert same_weights(beside["distill"], there["distill"])
    assert [x["used"] for x in lines(beside)] == [x["used"] for x in lines(there)] and lines(there)[-1]["used"]
    place = Bucket(url)
    assert place.steps(0) == Folder(folder / "met").steps(0) == [6, 5, 4, 3] and place.steps(1) == [6, 5, 4, 3]
    for group in (0, 1):
        assert File(place, group, 6).read()[0] == File(Folder(folder / "met"), group, 6).read()[0]
    assert not [p for p in folder.rglob("*") if "memory" in p.name] and not (folder / url).exists()
    context = Context(
        load(folder, scheme("{kind: weights}", folder=f"'{url}'")), folder, tmp_path, Progress(quiet=True)
    )
    context.folders = there
    assert "folder: b\n" in shared_recipe(context) and "memory:" not in shared_recipe(context)


def test_a_server_of_a_recipe_reads_its_bucket(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    url = f"memory:/{tmp_path}/b"
    how = scheme("{kind: served, k: 8, timeout_s: 20, address: '127.0.0.1:9'}", folder=f"'{url}'", groups=2)
    made(folder, tmp_path, "name=asked", how)
    assert Bucket(url).steps(0) == [6, 5, 4, 3]
    monkeypatch.delenv(VARIABLE)
    recipe = load(folder, "name=asked", how)
    with serve.server(recipe, folder, tmp_path, Progress(quiet=True), ("127.0.0.1", 0)) as server:
        assert str(server.desk.folder) == url
        until(lambda: 0 in server.desk.marks)
        monkeypatch.setenv(VARIABLE, "1")
        monkeypatch.setenv(SERVERS, f"127.0.0.1:{server.server_address[1]}")
        log = lines(made(folder, tmp_path, "name=asked", how))
    assert [[(u["peer"], u["step"]) for u in line["used"]] for line in log] == [[]] + [[(0, 6)]] * 5
    assert Bucket(url).steps(1) == [6, 5, 4, 3]


def test_a_server_whose_bucket_cannot_be_read_says_so_first(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Flaky, "share", 1.0)
    how = scheme("{kind: served, address: '127.0.0.1:9'}", folder=f"'flaky:/{tmp_path}'")
    with pytest.raises(DataError, match=r"flaky:/.*: cannot be read \("):
        serve.server(load(folder, how), folder, tmp_path, Progress(quiet=True), ("127.0.0.1", 0))
    assert not list(tmp_path.iterdir())


def test_check_writes_to_where_groups_meet_and_leaves_nothing(folder, tmp_path):
    shared = scheme("{kind: weights}", folder=f"'whole:/{tmp_path}/b'")
    before = dict(Whole.store)
    assert not looked(folder, tmp_path / "none", shared).problems and before == Whole.store
    assert not looked(folder, tmp_path / "none", scheme("{kind: weights}", folder="new/place")).problems
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("denies:/{}/x", "distill.scheme.folder: denies:/{}/x cannot be written to (Access Denied); let this process"),
        ("{}/file/x", "distill.scheme.folder: {}/file/x cannot be written to ([Errno 20] Not a directory: '{}/file')"),
        ("nowhere://b/x", "distill.scheme.folder: nowhere://b/x: cannot be used (ValueError: Protocol not known: nowh"),
        (
            "gs://b/x",
            "gs://b/x: its filesystem is no part of this Python (Please install gcsfs to access Google Storage)",
        ),
        (
            "s3://b/x",
            "s3://b/x: its filesystem is no part of this Python (Install s3fs to access S3); install that pack",
        ),
    ],
)
def test_a_place_that_is_none_is_one_sentence_before_any_compute(where, said, folder, tmp_path, monkeypatch):
    for package, protocol in (("s3fs", "s3"), ("gcsfs", "gs")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(_registry, protocol, raising=False)  # as in a process that has not asked for it yet
    (tmp_path / "file").touch()
    how = scheme("{kind: weights}", folder=f"'{where.format(tmp_path)}'")
    found = looked(folder, tmp_path / "none", how).problems
    assert len(found) == 1 and said.replace("{}", str(tmp_path)) in found[0]
    with pytest.raises(RecipeError):
        made(folder, tmp_path / "runs", how)
    assert not list((tmp_path / "runs").rglob("distill-*"))


def test_what_does_not_train_needs_no_place(folder, tmp_path):
    how = scheme("{kind: weights}", folder=f"'denies:/{tmp_path}'")
    assert not looked(folder, tmp_path / "none", how, until="student").problems
    assert "data" in made(folder, tmp_path, how, until="data")


def test_a_group_that_has_begun_goes_on_while_its_bucket_is_away(folder, tmp_path, monkeypatch):
    how = ("name=away", scheme("{kind: weights}", folder=f"'flaky:/{tmp_path}/b'"))
    done = made(folder, tmp_path, *how)
    whole = [line["loss"] for line in lines(done)]
    (done["distill"] / "done.json").unlink()
    monkeypatch.setattr(Flaky, "share", 1.0)
    found = looked(folder, tmp_path / "away", *how)
    assert not found.problems
    assert "the run that has begun goes on" in dict(found.plan)["codistillation, where groups meet"]
    again = made(folder, tmp_path, *how)
    assert again["distill"] == done["distill"] and len(lines(again)) == len(whole)
    assert json.loads((again["distill"] / "done.json").read_text())["resumed"]
