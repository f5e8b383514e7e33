"""ONNX folder for onnxruntime and onnxruntime-genai, holding the student's own integer codes.

OUT/model.onnx         graph (opset and operators from onnxruntime-genai's model builder, see onnx_graph.py)
OUT/model.onnx.data    every weight, in one file that can be mapped
OUT/genai_config.json  and the tokenizer files
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from edgeslm import __version__
from edgeslm.artifact import Artifact, path_bytes
from edgeslm.errors import ExportError
from edgeslm.export.describe import describe, grid, is_planned, shape, tokenizer_folder
from edgeslm.export.layout import laid_out
from edgeslm.export.onnx_grids import Box, box, need_box
from edgeslm.export.place import put_in_place
from edgeslm.models.arch import ARCHS
from edgeslm.models.arch.base import head_dim
from edgeslm.quantize.frozen import Frozen

MODEL = "model.onnx"
NOTE = "edgeslm.json"  # sizes that cannot be read off the graph; `edgeslm bench` and `chat` look here
BUILDER_TIMEOUT_S = 900
GRAPH_BYTES = 2 << 20  # nodes, generously
FLOATS = ("f32", "f16", "bf16")

Holding = Literal["exact", "larger", "refused"]


def holds(format: str) -> Holding:
    """How the container keeps a format: "exact" in as few code bits, "larger" with the same values, or "refused"."""
    if format in FLOATS:
        return "exact" if format == "f32" else "larger"
    held = box(format)
    if not isinstance(held, Box):
        return "refused"
    return "larger" if held.bits > held.needed else "exact"


def stored_bits(format: str) -> float | None:
    """Bits per weight in the file, scales included; None for a format that is refused."""
    if format in FLOATS:
        return 32.0
    held = box(format)
    return held.stored_bits if isinstance(held, Box) else None


def refuses(format: str) -> str | None:
    """Why a tensor of this format cannot ship as ONNX, or None when it can."""
    held = None if format in FLOATS else box(format)
    if not isinstance(held, str):
        return None
    return (
        f"onnxruntime's block product is (q - zero) * scale, which cannot hold {format} exactly: {held}; "
        "use q8_0, q5_0, q4_0 or another format that `edgeslm formats` shows for ONNX, or export to gguf"
    )


def refuses_arch(name: str, config: Mapping[str, Any]) -> str | None:
    """Why no model of this family and config can ship as ONNX, or None when it can."""
    arch = ARCHS.get(name)
    reason = arch.onnx if arch is not None else ""
    if not reason and (config.get("rope_parameters") or {}).get("rope_type") == "longrope":
        reason = "onnxruntime-genai's model builder cannot read LongRoPE from transformers 5"
    if not reason and (turned := _turned(config)) % 16:
        reason = f"onnxruntime turns a multiple of 16 dimensions of a head, not {turned}"
    return f"{reason}; export to gguf" if reason else None


def _turned(config: Mapping[str, Any]) -> int:
    """Dimensions of a head that rotary positions turn; 0 where there are none."""
    rope = config.get("rope_parameters")
    return int(head_dim(config) * (rope.get("partial_rotary_factor") or 1.0)) if rope else 0


def export(
    frozen: Frozen, out: Path, *, on_progress: Callable[[str], None] | None = None, accuracy_level: int = 0
) -> Artifact:
    """Writes the folder `out`. `accuracy_level` goes to every MatMulNBits: 0 keeps activations in float32, 4 lets
    the kernel quantise them to int8 (faster where the processor has integer dot products, less close to training).

    Raises ExportError when a format cannot be held exactly, when the builder fails, or when the disk is full.
    """
    say = on_progress or (lambda text: None)
    _refuse(frozen, accuracy_level)
    frozen = laid_out(frozen, "onnx")
    try:
        import onnx

        from edgeslm.export import onnx_graph
        from edgeslm.export.onnx_weights import DataFile, Filler, metadata, unread_bytes
    except ImportError as error:
        raise ExportError(f"an ONNX export needs {error.name}; install the extra 'onnx' of edgeslm") from error
    with put_in_place(out, _bytes(frozen)) as part:
        part.mkdir()
        say("building the graph")
        _build_graph(frozen, part)
        graph_file = part / onnx_graph.GRAPH
        model = onnx.load(graph_file, load_external_data=False)
        graph_file.unlink()
        say("writing weights")
        with (part / f"{MODEL}.data").open("wb") as file:
            data = DataFile(file, f"{MODEL}.data")
            Filler(frozen, data, accuracy_level).fill(model.graph)
        model.producer_name, model.producer_version = "edgeslm", __version__
        onnx.helper.set_model_props(model, metadata(frozen))
        (part / MODEL).write_bytes(model.SerializeToString())
        facts = {"parameters": frozen.parameters, "weight_bytes": data.weight_bytes, "grid": grid(frozen)}
        unread = unread_bytes(frozen, model.graph)
        facts |= {"unread_bytes": unread, "shape": shape(frozen.config)}
        (part / NOTE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    say(f"wrote {out.name}")
    return describe(frozen, out, "onnx", data.weight_bytes, _note(frozen, accuracy_level), unread)


def _note(frozen: Frozen, accuracy_level: int) -> str:
    return f"accuracy_level {accuracy_level}" if any(map(is_planned, frozen.tensors.values())) else ""


def _refuse(frozen: Frozen, accuracy_level: int) -> None:
    if accuracy_level not in (0, 1, 4):
        raise ExportError(f"accuracy_level {accuracy_level} is none of 0 and 1 (float32) and 4 (int8 activations)")
    if reason := refuses_arch(frozen.arch, frozen.config):
        raise ExportError(f"{frozen.name}: {reason}")
    for name, tensor in frozen.tensors.items():
        reason = refuses(tensor.format)
        if reason:
            raise ExportError(f"{name}: {reason}")
        if is_planned(tensor) and len(tensor.shape) != 2:
            raise ExportError(f"{name}: {tensor.format} needs a matrix, this tensor has {len(tensor.shape)} dimension")


def _bytes(frozen: Frozen) -> int:
    """What the folder will take: codes and float32 scales, cosine and sine tables, tokenizer files, graph."""
    heads, positions = frozen.config["num_attention_heads"], frozen.config["max_position_embeddings"]
    total = GRAPH_BYTES + path_bytes(frozen.tokenizer) + 4 * positions * (frozen.config["hidden_size"] // heads)
    for tensor in frozen.tensors.values():
        weights = tensor.codes.numel()
        total += int(weights * need_box(tensor.format).stored_bits) // 8 if is_planned(tensor) else 4 * weights
    return total


def _build_graph(frozen: Frozen, out: Path) -> None:
    """Runs onnx_graph.py in a process of its own: the builder prints, edits sys.path and imports much."""
    with tempfile.TemporaryDirectory(prefix="edgeslm-") as folder:
        source = Path(folder) / "model"
        shutil.copytree(tokenizer_folder(frozen), source)
        (source / "config.json").write_text(json.dumps(_config(frozen)), encoding="utf-8")
        script = Path(__file__).with_name("onnx_graph.py")
        # a fixed hash seed: the builder walks sets, and the same student must give the same bytes
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
        # -P: this folder must not be on the program's path, where onnx.py would hide the onnx package
        command = [sys.executable, "-P", str(script), str(source), str(out.resolve())]
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, text=True, timeout=BUILDER_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"onnxruntime-genai's model builder took over {BUILDER_TIMEOUT_S} s") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ExportError(f"onnxruntime-genai's model builder failed for {frozen.arch}: {last}")


def _config(frozen: Frozen) -> dict[str, Any]:
    """config.json for the builder; what says how the teacher was stored must not steer it."""
    drop = ("_name_or_path", "quantization_config", "transformers_version")
    config = {k: v for k, v in frozen.config.items() if k not in drop}
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]
    return config | {"architectures": [architecture], "dtype": "float32"}
