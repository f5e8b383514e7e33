"""The frozen student: per tensor codes, scales and format. The only thing export reads.

On disk: `frozen.safetensors` (integer codes and scales; nothing decoded), `frozen.json`, and `tokenizer/`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgeslm.errors import ModelError
from edgeslm.formats import FORMATS


@dataclass(frozen=True)
class FrozenTensor:
    """One tensor as it ships: `codes` [n, k / per_code] and `scales` {name: [n, ...]}, in transformers' row order."""

    format: str
    shape: tuple[int, ...]
    codes: Tensor
    scales: dict[str, Tensor]

    def decode(self) -> Tensor:
        """float32 of `shape`: the number every shipped file must hold, bit for bit."""
        return FORMATS[self.format].decode(self.codes, self.scales).reshape(self.shape)

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.codes.shape[0] * FORMATS[self.format].bytes


@dataclass(frozen=True)
class Frozen:
    """`arch` names the architecture map, `config` is transformers' config as a dict, `tensors` are keyed by
    transformers' parameter names (a tied head is absent), `tokenizer` is a folder in transformers' layout."""

    arch: str
    config: dict[str, Any]
    tensors: dict[str, FrozenTensor]
    tokenizer: Path
    name: str
    metadata: dict[str, str]

    @property
    def parameters(self) -> int:
        return sum(t.weights for t in self.tensors.values())

    @property
    def weight_bytes(self) -> int:
        return sum(t.bytes for t in self.tensors.values())

    def save(self, folder: Path) -> None:
        """Written beside and moved into place, so a folder that exists is whole."""
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        flat: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            flat[f"{name}|codes"] = tensor.codes.contiguous()
            for key, value in tensor.scales.items():
                flat[f"{name}|{key}"] = value.contiguous()
        save_file(flat, part / "frozen.safetensors")
        head = {
            "arch": self.arch,
            "config": self.config,
            "name": self.name,
            "metadata": self.metadata,
            "tensors": {n: {"format": t.format, "shape": list(t.shape)} for n, t in self.tensors.items()},
        }
        (part / "frozen.json").write_text(json.dumps(head, indent=1), encoding="utf-8")
        shutil.copytree(self.tokenizer, part / "tokenizer")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)

    @classmethod
    def load(cls, folder: Path) -> Frozen:
        """Raises ModelError when the folder is no frozen student."""
        try:
            head = json.loads((folder / "frozen.json").read_text(encoding="utf-8"))
            flat = load_file(folder / "frozen.safetensors")
        except FileNotFoundError as error:
            raise ModelError(f"{folder} holds no frozen student: {Path(error.filename).name} is missing") from error
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ModelError(f"{folder}: the frozen student is damaged ({error}); run its recipe again") from error
        tensors = {}
        for name, entry in head["tensors"].items():
            prefix = f"{name}|"
            scales = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
            codes = scales.pop("codes")
            tensors[name] = FrozenTensor(entry["format"], tuple(entry["shape"]), codes, scales)
        return cls(head["arch"], head["config"], tensors, folder / "tokenizer", head["name"], head["metadata"])
