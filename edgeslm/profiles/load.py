"""Reading a device's profile: published figures, each with its source, and the ceilings that follow from them.

A figure is a `peak` (what an interface or a chip is specified for) or `measured` (by a named program, with so many
threads). A profile is for planning before a device is at hand; figures taken on the device itself always come first.
Nothing is derived that nobody published: without a float32 rate there is no prediction that needs one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeslm.cost import Ceilings
from edgeslm.errors import DataError

FOLDER = Path(__file__).parent
RATES = ("read_bytes_per_s", "flops_f32_per_s", "ops_int8_per_s")  # those that make a ceiling
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Source(Part):
    publication: Text
    address: Annotated[str, Field(pattern=r"^https?://\S+$")]


class Figure(Part):
    """`read_and_copy_bytes_per_s` counts bytes read plus bytes written, as STREAM does."""

    what: Literal[
        "read_bytes_per_s", "read_and_copy_bytes_per_s", "flops_f64_per_s", "flops_f32_per_s", "ops_int8_per_s"
    ]
    value: Positive
    kind: Literal["peak", "measured"]
    threads: Annotated[int, Field(ge=1)] | None = None  # of a measured one
    how: Text
    source: Source

    @model_validator(mode="after")
    def _threads_of_measured(self) -> Figure:
        if (self.kind == "measured") != (self.threads is not None):
            raise ValueError("a measured figure names its threads, a peak has none")
        return self


class Published(Part):
    """Somebody's speed of a runtime on this device: what a prediction can be held against."""

    model: Text
    format: Text
    metric: Literal["decode", "prefill"]
    tokens_per_s: Positive
    runtime: Text
    how: Text
    source: Source


class Profile(Part):
    """`board` is how the device's own model string begins (/proc/device-tree/model)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    title: Text
    board: Text
    soc: Text
    cores: Annotated[int, Field(ge=1)]
    figures: Annotated[list[Figure], Field(min_length=1)]
    published: list[Published] = []

    def ground(self, rate: str) -> Figure | None:
        """The figure that a rate's ceiling stands on: measured with all cores, else the peak, else the largest measured
        one. A copy counts for reading, as bytes that the memory can move."""
        wanted = ("read_bytes_per_s", "read_and_copy_bytes_per_s") if rate == "read_bytes_per_s" else (rate,)
        of_rate = [figure for figure in self.figures if figure.what in wanted]
        return max(of_rate, key=lambda f: (f.threads == self.cores, f.kind == "peak", f.value), default=None)

    def ceilings(self) -> Ceilings:
        values = {rate: figure.value for rate in RATES if (figure := self.ground(rate)) is not None}
        return Ceilings(**values)

    def grounds(self) -> dict[str, str]:
        """Rate -> what its ceiling stands on, in words."""
        said = {}
        for rate in RATES:
            if (figure := self.ground(rate)) is not None:
                by = (
                    "specified peak"
                    if figure.kind == "peak"
                    else f"measured with {figure.threads} of {self.cores} cores"
                )
                said[rate] = f"{by}: {figure.how} ({figure.source.publication}, {figure.source.address})"
        return said


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load(name: str) -> Profile:
    """Raises DataError for a name that has no profile."""
    if name not in names():
        raise DataError(f"there is no profile '{name}'; there are {', '.join(names())}, or measure the device itself")
    return read(FOLDER / f"{name}.yaml")


def read(path: Path) -> Profile:
    """Any file of this form. Raises DataError with everything that is wrong with it."""
    try:
        profile = Profile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path.name} cannot be read as a profile ({error}); correct the file") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors())
        raise DataError(f"{path.name} is no valid profile ({wrong}); correct these keys") from error
    if profile.name != path.stem:
        raise DataError(f"{path.name} holds the profile '{profile.name}'; name the file {profile.name}.yaml")
    return profile


def of_board(model: str) -> Profile | None:
    """The profile for a device-tree model string such as "Raspberry Pi 5 Model B Rev 1.0"; None when there is none."""
    return next((profile for name in names() if model.startswith((profile := load(name)).board)), None)
