"""ONNX for whatever reads optimum's layout: `ORTModelForCausalLM`, transformers.js.

OUT/model.onnx        traced by optimum's own exporter, with the student's codes in it: input_ids, attention_mask,
                      position_ids (not Gemma's), past_key_values.N.key|value -> logits, present.N.key|value
OUT/model.onnx_data   every weight

The graph is made of plain ONNX operators but for MatMulNBits and GatherBlockQuantized, which hold planned tensors. It
is traced from random weights (optimum_graph.py, in the environment of optimum_venv.py) whose places are then filled by
the swapper of the other ONNX exports. `stored` reads it back for `verify`.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeslm import __version__
from edgeslm.artifact import Artifact
from edgeslm.errors import ExportError
from edgeslm.export import optimum_venv
from edgeslm.export.describe import EMBEDDING, HEAD, describe, is_planned
from edgeslm.export.onnx import GRAPH_BYTES, refuses
from edgeslm.export.onnx_traced import open_holes
from edgeslm.export.optimum_config import config_for_all
from edgeslm.export.place import put_in_place
from edgeslm.quantize.frozen import Frozen

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

    from edgeslm.export.verify import Graph, Rows, Stored

FAMILIES = ("llama", "qwen2", "qwen3", "smollm3", "gemma3_text", "phi3")  # that are tested; optimum knows more
MODEL, DATA = "model.onnx", "model.onnx_data"  # the names by which both readers look for them
EXPORTER_TIMEOUT_S = 1800
COMPUTED = ".inv_freq"  # numbers of the graph that no parameter holds: rotary frequencies


def refuses_student(frozen: Frozen) -> str | None:
    """Why this student cannot ship in optimum's layout, or None when it can."""
    if frozen.arch not in FAMILIES:
        return f"optimum's layout is made of {', '.join(FAMILIES)}, not of {frozen.arch}; export to gguf"
    if (frozen.config.get("rope_parameters") or {}).get("rope_type") == "longrope":
        return "a traced graph cannot choose between LongRoPE's two sets of factors; export to gguf"
    return next((f"{name}: {why}" for name, t in frozen.tensors.items() if (why := refuses(t.format))), None)


def export(
    frozen: Frozen, out: Path, *, accuracy_level: int = 0, on_progress: Callable[[str], None] | None = None
) -> Artifact:
    """Writes the folder `out`. `accuracy_level` as in `onnx.export`. Raises ExportError."""
    say = on_progress or (lambda text: None)
    if reason := refuses_student(frozen):
        raise ExportError(f"{frozen.name}: {reason}")
    try:
        import onnx

        from edgeslm.export.onnx_weights import CONTRIB, DataFile, Filler, metadata
    except ImportError as error:
        raise ExportError(f"an ONNX export needs {error.name}; install the extra 'onnx' of edgeslm") from error
    program = optimum_venv.python(say)
    with (
        tempfile.TemporaryDirectory(prefix="edgeslm-") as work,
        put_in_place(out, GRAPH_BYTES + 2 * frozen.weight_bytes) as part,
    ):
        part.mkdir()
        say("tracing the graph")
        model = _traced(program, frozen, Path(work))
        floats = open_holes(model.graph, frozen)
        _refuse_strangers(model.graph, frozen)
        say("writing weights")
        with (part / DATA).open("wb") as file:
            data = DataFile(file, DATA)
            filler = Filler(frozen, data, accuracy_level, rename=str)
            filler.used |= floats
            filler.fill(model.graph)
            data.weight_bytes += sum(4 * frozen.tensors[name].codes.numel() for name in floats)
        del model.graph.value_info[:]  # shapes that were the float operators'
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
        model.producer_name, model.producer_version = "edgeslm", __version__
        onnx.helper.set_model_props(model, metadata(frozen))
        (part / MODEL).write_bytes(model.SerializeToString())
    planned = any(map(is_planned, frozen.tensors.values()))
    return describe(frozen, out, "onnx", data.weight_bytes, f"accuracy_level {accuracy_level}" if planned else "")


def _traced(program: Path, frozen: Frozen, work: Path) -> Any:
    """The exporter's graph. Raises ExportError with its last line."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    (work / "model").mkdir()
    (work / "model/config.json").write_text(json.dumps(config_for_all(frozen.config)), encoding="utf-8")
    script = Path(__file__).with_name("optimum_graph.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
    command = [str(program), "-P", str(script), str(work / "model"), str(work / "out")]
    try:
        done = subprocess.run(
            command, env=environment, cwd=work, capture_output=True, text=True, timeout=EXPORTER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"optimum's exporter took over {EXPORTER_TIMEOUT_S} s") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ExportError(f"optimum's exporter failed for {frozen.arch}: {last}")
    model = onnx.load(work / "out" / MODEL, load_external_data=False)
    for tensor in model.graph.initializer:  # a large model's numbers lie beside the graph; of the weights' none is kept
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name not in frozen.tensors:
            load_external_data_for_tensor(tensor, str(work / "out"))
            tensor.data_location = onnx.TensorProto.DEFAULT
    return model


def _refuse_strangers(graph: GraphProto, frozen: Frozen) -> None:
    """No random number of the tracer may ship: what is no tensor of the student must be one of the known constants."""
    from onnx import TensorProto

    for tensor in graph.initializer:
        known = tensor.name in frozen.tensors or tensor.name == HEAD or tensor.name.endswith(COMPUTED)
        if not known and tensor.data_type == TensorProto.FLOAT and tensor.dims:
            raise ExportError(f"optimum's graph holds '{tensor.name}', which {frozen.name} has not; it was not written")


def stored(folder: Path, frozen: Frozen) -> Iterator[Stored]:
    """For `verify`: every use of a weight in the file, named by its node's place in the model."""
    import onnx

    from edgeslm.export.verify import Graph, Stored

    model = onnx.load(folder / MODEL, load_external_data=False)
    graph = Graph(folder, model.graph)
    for node in model.graph.node:
        found = _scale(graph, node) if node.op_type in ("Mul", "Cast") else graph.weight(node)
        if found is None:
            continue
        place = node.name.removeprefix("/").rpartition("/")[0].replace("/", ".")
        bias = node.op_type == "Add" and f"{place}.bias" in frozen.tensors
        name = f"{place}.{'bias' if bias else 'weight'}"
        name = EMBEDDING if name == HEAD and HEAD not in frozen.tensors else name
        if name in frozen.tensors:
            yield Stored(name, *found)


def _scale(graph: Graph, node: NodeProto) -> tuple[tuple[int, ...], str, bool, Rows] | None:
    """The weight of a norm, a product by itself in a traced graph; Gemma's are cast to what they are first."""
    for array in map(graph.constant, node.input):
        if array is not None and array.dtype == np.float32 and array.ndim:
            return array.shape, "float32", False, lambda start, end, array=array: array[start:end]
    return None
