"""The record that people share: bench documents one a line, each checked before it is added.

A foreign document may be wrong by accident (a hand, another version, a broken sensor) or say more than its maker meant
(a host's name, a serial number, a path). So everything is checked against the models below, numbers must be numbers of
their unit, the statistics must be those of the raw values, and no text may look like something personal. All that is
wrong is said at once. `schema()` is the same as JSON Schema.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edgeslm import privacy
from edgeslm.errors import DataError
from edgeslm.fleet import BENCH_SCHEMA, NO_FILE, parsed
from edgeslm.measurement import Measurement

MAX_BYTES = 64 << 20
MAX_VALUES = 200_000  # of one figure
MAX_TEXT = 4000
DEEPEST = 12  # levels of a document
MOST_SAID = 8
SIGNED = ("J", "J/token", "W", "percent/h")  # less what a device takes anyway, a value may fall below zero
CLOSE = 1e-9
Text = Annotated[str, Field(min_length=1, max_length=400)]
Note = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]{1,200}$")]  # of a file, without a folder
Values = Annotated[list[float], Field(max_length=MAX_VALUES)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Where(Part):
    device: dict[str, Any]
    runtime: Text
    runtime_version: Text
    artifact: Name
    artifact_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64}|-)$")]
    artifact_format: Text
    job: dict[str, Any]
    threads: Annotated[int, Field(ge=1, le=4096)]
    temperature_c: Annotated[float, Field(gt=-60, lt=160)] | None = None

    @field_validator("device")
    @classmethod
    def _device(cls, facts: dict[str, Any]) -> dict[str, Any]:
        if not all(isinstance(facts.get(key), str) and facts[key] for key in ("id", "name")):
            raise ValueError("a device needs an id and a name")
        if facts.get("stand_in"):
            raise ValueError("it was taken on a stand-in; only figures of real devices are recorded")
        return facts


class Statistics(Part):
    n: Annotated[int, Field(ge=1)]
    median: float
    p10: float
    p90: float


class Figure(Part):
    metric: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,60}$")]
    unit: Annotated[str, Field(pattern=r"^[A-Za-z0-9/%]{1,24}$")]
    values: Annotated[Values, Field(min_length=1)]
    where: Where
    warmups: Values = []
    kind: Literal["measured", "modelled", "estimated"]
    covers: Text
    better: Literal["higher", "lower"]
    note: Note = ""
    extra: dict[str, Any] = {}
    statistics: Statistics | None = None

    @model_validator(mode="after")
    def _numbers(self) -> Figure:
        if self.unit not in SIGNED and min(self.values + self.warmups) < 0:
            raise ValueError(f"{self.metric}: a value in {self.unit} is negative")
        if self.metric in ("decode", "prefill", "load", "time_to_first_token") and min(self.values) == 0:
            raise ValueError(f"{self.metric}: a value is 0, which nothing measures")
        if self.statistics is not None:
            fields = {k: getattr(self, k) for k in ("metric", "unit", "values", "kind", "covers")}
            own = Measurement(**fields, where=None)  # type: ignore[arg-type]
            said = (self.statistics.n, self.statistics.median, self.statistics.p10, self.statistics.p90)
            found = (own.n, own.median, own.p10, own.p90)
            if not all(math.isclose(a, b, rel_tol=CLOSE, abs_tol=1e-300) for a, b in zip(said, found, strict=True)):
                raise ValueError(f"{self.metric}: the statistics are not those of its values")
        return self


class File(Part):
    name: Name
    format: Text
    sha256: Sha256
    bytes: Annotated[int, Field(gt=0)]
    weight_bytes: Annotated[int, Field(gt=0)]
    parameters: Annotated[int, Field(gt=0)]
    grid: Text
    recipe_hash: Annotated[str, Field(max_length=64)] = ""
    note: Note = ""
    shape: dict[str, int | float | str | bool] = {}
    unread_bytes: Annotated[int, Field(ge=0)] = 0


class Problem(Part):
    artifact: Annotated[str, Field(max_length=200)]
    what: Note
    device: Annotated[str, Field(max_length=200)] = ""


class Document(Part):
    """What `edgeslm bench --out` writes."""

    schema_: Annotated[Literal[2], Field(alias="schema")]
    measurements: Annotated[list[Figure], Field(min_length=1)]
    problems: list[Problem] = []
    artifacts: list[File]

    @model_validator(mode="after")
    def _whole(self) -> Document:
        known = {(f.name, f.sha256) for f in self.artifacts}
        places = {(m.where.artifact, m.where.artifact_sha256) for m in self.measurements if m.where.artifact != NO_FILE}
        if strange := sorted({name for name, sha in places - known}):
            raise ValueError(f"artifacts does not list {', '.join(strange)}, of which there are figures")
        return self


def schema() -> dict[str, Any]:
    """JSON Schema of a document; a line of the record has a `date` besides, and a `machine` where it was made here."""
    return Document.model_json_schema(by_alias=True)


def checked(data: Any, name: str, owner: Sequence[str] = ()) -> dict[str, Any]:
    """The document as it is recorded: sound, and without the statistics (they follow from the values). `owner`: names
    that must not be in it, such as this machine's. Raises DataError with everything that is wrong."""
    given = data.get("schema") if isinstance(data, dict) else None
    if given != BENCH_SCHEMA or isinstance(given, bool):
        what = f"is of schema {given!r}" if given is not None else "is no bench document"
        raise DataError(f"{name}: {what}, a record takes schema {BENCH_SCHEMA}; measure with `edgeslm bench --out`")
    wrong: list[str] = []
    try:
        Document.model_validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        wrong += dict.fromkeys(_sentence(e["loc"], e["msg"]) for e in error.errors())
    except (ValueError, RecursionError) as error:
        wrong.append(str(error))
    if _depth(data) > DEEPEST:
        wrong.append(f"it is nested deeper than {DEEPEST} levels")
    else:
        wrong += privacy.found(data, owner)
    if wrong:
        more = f"; and {len(wrong) - MOST_SAID} more" if len(wrong) > MOST_SAID else ""
        raise DataError(f"{name}: is refused: {'; '.join(wrong[:MOST_SAID])}{more}; correct the file or measure again")
    plain = [{k: v for k, v in m.items() if k != "statistics"} for m in data["measurements"]]
    return {"schema": BENCH_SCHEMA, "measurements": plain, "problems": data.get("problems", []),
            "artifacts": data["artifacts"]}  # fmt: skip


def _sentence(place: tuple[int | str, ...], what: str) -> str:
    """Without the number of the measurement: what is wrong with one is mostly wrong with all."""
    spot = ".".join(str(part) for part in place if isinstance(part, str)) or "document"
    return f"{spot}: {what.removeprefix('Value error, ')}"


def _depth(value: Any, at: int = 0) -> int:
    if at > DEEPEST:
        return at
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((_depth(v, at + 1) for v in inner if isinstance(v, dict | list)), default=at)


def fingerprints(document: dict[str, Any]) -> set[str]:
    """One a sampled figure: two runs never give the same times to the last digit. What follows from a device's facts
    or a file's size (bounds, bytes) may well be the same again."""
    return {
        hashlib.sha256(json.dumps([m["metric"], m["values"], m["where"]["device"].get("id")]).encode()).hexdigest()
        for m in document["measurements"]
        if m["kind"] == "measured" and m["unit"] in ("s", "tokens/s") and m["where"]["artifact"] != NO_FILE
    }


def read(path: Path) -> list[dict[str, Any]]:
    """All lines. Raises DataError for a damaged one."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [parsed(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def load(path: Path) -> Any:
    """A file to be added. Raises DataError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than {MAX_BYTES >> 20} MiB, which no bench document is")
        return parsed(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no UTF-8 text"
        raise DataError(f"{path}: cannot be read ({why}); give what `edgeslm bench --out` wrote") from error


def add(files: Sequence[Path], to: Path, owner: Sequence[str] = (), today: datetime.date | None = None) -> list[str]:
    """Append documents to the record, all or none, and say what was added. Raises DataError: not sound, or known."""
    known = set[str]().union(*(fingerprints(line) for line in read(to)))
    lines, said = [], []
    for file in files:
        document = checked(load(file), file.name, owner)
        new = fingerprints(document)
        if not new:
            raise DataError(f"{file.name}: is refused: nothing in it was timed; measure with `edgeslm bench --out`")
        if again := len(new & known):
            raise DataError(
                f"{file.name}: is refused: {again} of its {len(new)} timed figures are recorded already in {to.name}"
            )
        known |= new
        day = (today or datetime.datetime.now(datetime.UTC).date()).isoformat()
        lines.append(json.dumps({"date": day, **document}, ensure_ascii=False) + "\n")
        devices = dict.fromkeys(str(m["where"]["device"]["name"]) for m in document["measurements"])
        said.append(f"{file.name}: {len(document['measurements'])} figures of {', '.join(devices)} added to {to.name}")
    broken = to.is_file() and to.stat().st_size and not to.read_bytes().endswith(b"\n")
    try:
        with to.open("a", encoding="utf-8") as out:
            out.write(("\n" if broken else "") + "".join(lines))
    except OSError as error:
        raise DataError(f"{to}: cannot be written ({error.strerror}); give --to another place") from error
    return said
