"""The one family of errors a user can meet: each is a single sentence that says what, where and what to do."""

from collections.abc import Iterable


def instead(name: str, known: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """What to do about a name that is none: the nearest known one, or what is said where none is near."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else otherwise


class EdgeSLMError(Exception):
    """Something the user can mend. The command line prints the sentence and leaves with `exit_code`."""

    exit_code = 2


class RecipeError(EdgeSLMError):
    """A recipe that cannot be run as written; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("; ".join(problems))


class ModelError(EdgeSLMError):
    """A model file or folder that is missing, damaged or of a kind that is not supported."""


class DataError(EdgeSLMError):
    """A text file or data set that cannot be read or is too small for what the recipe asks."""


class FormatError(EdgeSLMError):
    """A tensor that a number format cannot hold, or bytes that are not of the format they claim."""


class ExportError(EdgeSLMError):
    """A frozen student that a container cannot hold exactly."""


class RuntimeFailure(EdgeSLMError):
    """A worker process that crashed, hung or was killed. Stages record it and go on."""


class DeviceError(EdgeSLMError):
    """A device that does not answer or lacks what a job needs."""
