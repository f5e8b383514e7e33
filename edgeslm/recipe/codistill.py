"""The codistillation scheme of a recipe and what its groups share. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from edgeslm.recipe.parts import Fraction, Part, Positive


class ShareWeights(Part):
    """Checkpoints: a group runs its peers' models beside its own, on whatever it reads."""

    kind: Literal["weights"] = "weights"


class SharePredictions(Part):
    """Predictions on `rows` rows of the text that all groups read, beside what each reads alone: the `k` likeliest
    outcomes of a group and one bucket for the rest, written anew at every exchange. Peers teach where those rows are
    read. Of the rows that there are these come first by their ids, so all groups mean the same."""

    kind: Literal["predictions"]
    rows: Positive
    k: Positive = 24


class ShareServed(Part):
    """Predictions on every row of a batch, asked of `edgeslm serve-peers`, a process that runs the newest checkpoints
    it finds in its folder: the `k` likeliest outcomes and one bucket for the rest. `address`: HOST:PORT of one server,
    or one for each group (or EDGESLM_PEERS in the environment, with commas between). What has not come `timeout_s`
    after it was asked for is gone without; the server is asked again from the next exchange on."""

    kind: Literal["served"]
    address: str | tuple[str, ...] | None = None
    k: Positive = 24
    timeout_s: Annotated[float, Field(gt=0)] = 2.0


def is_address(folder: str) -> bool:
    """Whether groups meet in a bucket and not in a folder."""
    return "://" in folder


def _no_place(folder: str) -> str | None:
    """Why groups cannot meet there; None where they may."""
    kind, _, rest = folder.partition("://")
    if not is_address(folder):
        return None
    if ":" in rest.partition("/")[0].rpartition("@")[0]:
        return "holds a password; leave it to the environment, where the filesystem's package looks for it"
    if kind in ("file", "local"):
        return f"'{folder}' is a folder; name it without {kind}://, so that its files are moved into place"
    if "::" in folder:
        return f"'{folder}' is a chain of filesystems, of which one may remember what is old; name the bucket alone"
    if not kind or not rest.strip("/"):
        return f"'{folder}' names no bucket, such as s3://BUCKET/PREFIX"
    return None


Share = Annotated[ShareWeights | SharePredictions | ShareServed, Field(discriminator="kind")]


class CodistillScheme(Part):
    """`groups` copies that train on their own text and learn from each other's *stale* predictions (Anil et al.,
    arXiv:1804.03235); they share nothing but a `folder`, or a bucket by its URL (s3://BUCKET/PREFIX, gs://...: whatever
    fsspec has a filesystem for, whose package finds the credentials in the environment). `group`: which copy this
    process trains (or EDGESLM_GROUP in the environment); without either one process trains all in turn. Every
    `exchange_every` steps a copy writes what it gives and takes what its peers wrote: the `newest` that is whole, or,
    `scheduled`, that of its own step less `lag`, for which it waits `patience_s` at most. `share`: `{kind: weights}`, a
    checkpoint; `{kind: predictions, rows: ...}`, predictions on rows that all read; or `{kind: served}`, predictions
    from a process of their own, asked for batch by batch, so that no copy needs memory for its peers. `learn_from`: all
    peers, or so many, the next ones round the ring; those more than `max_age` steps behind do not teach. For `burn_in`
    of the steps a copy learns alone; then the `term` between it and the mean of its peers' predictions grows to its
    `weight` over `ramp` of the steps. `data`: `disjoint` shards of the rows, or the `same` rows, each copy in its own
    order. `after`: ship the first copy (one costs what a single model costs, and they are alike), or the average of
    all. `keep`: so many files of a copy stay in the folder."""

    kind: Literal["codistill"]
    groups: Annotated[int, Field(ge=2)] = 2
    group: Annotated[int, Field(ge=0)] | None = None
    folder: str | None = None
    share: Share = ShareWeights()
    exchange_every: Positive = 50
    exchange: Literal["newest", "scheduled"] = "newest"
    lag: Annotated[int, Field(ge=0)] = 0
    patience_s: Annotated[float, Field(gt=0)] = 600.0
    max_age: Positive | None = None
    learn_from: Literal["all"] | Positive = "all"
    burn_in: Fraction = 0.1
    ramp: Fraction = 0.1
    term: Literal["kl", "cross_entropy"] = "kl"
    weight: Annotated[float, Field(gt=0)] = 1.0
    data: Literal["disjoint", "same"] = "disjoint"
    after: Literal["pick", "average"] = "pick"
    keep: Positive = 4

    @model_validator(mode="after")
    def _places(self) -> CodistillScheme:
        if self.group is not None and self.group >= self.groups:
            raise ValueError(f"group: {self.group} is none of {self.groups} groups, which are counted from 0")
        if self.learn_from != "all" and self.learn_from >= self.groups:
            raise ValueError(f"learn_from: {self.learn_from} peers of {self.groups - 1}; say all")
        if self.lag % self.exchange_every or (self.lag and self.exchange != "scheduled"):
            raise ValueError("lag: a multiple of exchange_every, with exchange: scheduled; newest takes what there is")
        if self.folder is not None and (problem := _no_place(self.folder)):
            raise ValueError(f"folder: {problem}")
        return self

    @model_validator(mode="after")
    def _shared(self) -> CodistillScheme:
        if self.share.kind != "weights" and self.after == "average":
            raise ValueError(f"after: the average is of weights, and share: {self.share.kind} takes none; use pick")
        if self.share.kind == "served" and self.exchange == "scheduled":
            raise ValueError("exchange: a server answers with what is newest; use newest, or share: {kind: weights}")
        return self

    @model_serializer(mode="wrap")
    def _as_it_was(self, plain: Any) -> dict[str, Any]:
        """Recipes from before there was a choice keep their hash."""
        return {key: value for key, value in plain(self).items() if (key, value) != ("share", {"kind": "weights"})}
