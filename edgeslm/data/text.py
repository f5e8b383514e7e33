"""Plain text files."""

from __future__ import annotations

from pathlib import Path

from edgeslm.errors import DataError
from edgeslm.models.stop import begun


def read(path: Path) -> str:
    """A UTF-8 file as text. Raises DataError that says where the bytes stop being UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8; convert the file first (for example: iconv -t UTF-8)"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def documents(paths: list[Path], tokenizer) -> list[list[int]]:
    """One list of token ids per file, begun as the model's texts begin; no other special tokens are added."""
    texts = [tokenizer(read(path), add_special_tokens=False, verbose=False)["input_ids"] for path in paths]
    return [begun(ids, tokenizer) for ids in texts]
