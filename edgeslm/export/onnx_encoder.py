"""ONNX folder of an encoder: the graph that torch.onnx traces, its planned weights swapped for the frozen integers by
the same swapper as a language model's (onnx_traced, onnx_weights.Filler).

OUT/model.onnx  OUT/model.onnx.data  OUT/encoder.json (task, inputs)  and the tokenizer files
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from edgeslm import __version__
from edgeslm.artifact import Artifact, path_bytes
from edgeslm.errors import ExportError
from edgeslm.export.describe import describe, is_planned
from edgeslm.export.onnx import refuses
from edgeslm.export.onnx_traced import open_holes
from edgeslm.export.place import put_in_place
from edgeslm.quantize.frozen import Frozen

if TYPE_CHECKING:
    from edgeslm.export.verify import Stored

OPSET = 17
GRAPH_BYTES = 4 << 20
FREE = ("batch", "tokens")  # dimensions that a caller may choose


def export(
    frozen: Frozen, module: nn.Module, example: dict[str, Tensor], out: Path, accuracy_level: int, about: dict[str, Any]
) -> Artifact:
    """`module` computes, on inputs such as `example` (in the order of its arguments), what is shipped; its own weights
    are lost, the frozen ones are written. `about` goes into encoder.json. Raises ExportError."""
    try:
        import onnx

        from edgeslm.export.onnx_weights import CONTRIB, DataFile, Filler, metadata
    except ImportError as error:
        raise ExportError(f"an ONNX export needs {error.name}; install the extra 'onnx' of edgeslm") from error
    for name, tensor in frozen.tensors.items():
        if reason := refuses(tensor.format):
            raise ExportError(f"{name}: {reason}")
    with put_in_place(out, GRAPH_BYTES + 2 * frozen.weight_bytes + path_bytes(frozen.tokenizer)) as part:
        shutil.copytree(frozen.tokenizer, part)
        model = onnx.load_from_string(_trace(module, example))
        floats = open_holes(model.graph, frozen)
        with (part / "model.onnx.data").open("wb") as file:
            data = DataFile(file, "model.onnx.data")
            filler = Filler(frozen, data, accuracy_level, rename=str)
            filler.used |= floats
            filler.fill(model.graph)
            data.weight_bytes += sum(4 * frozen.tensors[name].codes.numel() for name in floats)
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
        model.producer_name, model.producer_version = "edgeslm", __version__
        onnx.helper.set_model_props(model, metadata(frozen))
        (part / "model.onnx").write_bytes(model.SerializeToString())
        facts = {**about, "inputs": list(example)}
        (part / "encoder.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    planned = any(map(is_planned, frozen.tensors.values()))
    note = f"accuracy_level {accuracy_level}" if planned else ""
    return describe(frozen, out, "onnx", data.weight_bytes, note)


def _trace(module: nn.Module, example: dict[str, Tensor]) -> bytes:
    """torch's own exporter. Folding stays off: it would turn weights and take their names away. Weights are made
    different from each other first, for it keeps only one of two that are equal."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    made = io.BytesIO()
    axes = {name: dict(enumerate(FREE[: value.dim()])) for name, value in example.items()}
    if "pixels" in example:
        axes["pixels"] = {0: FREE[0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every constant, and the old exporter of itself
        torch.onnx.export(
            module,
            tuple(example.values()),
            made,  # type: ignore[arg-type]  # a buffer is written to like a file
            input_names=list(example),
            output_names=["out"],
            dynamic_axes={**axes, "out": {0: FREE[0]}},
            opset_version=OPSET,
            do_constant_folding=False,
            dynamo=False,
        )
    return made.getvalue()


def stored(folder: Path, frozen: Frozen) -> Iterator[Stored]:
    """For `verify`: every use of a weight in the file, named by its node's place in the model; the gates of an LSTM,
    which nodes cut into pieces, by their own names."""
    import onnx

    from edgeslm.export.verify import Graph, Stored, place_of

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    graph = Graph(folder, model.graph)

    def floats(name: str, array: np.ndarray) -> Stored:
        return Stored(name, array.shape, "float32", False, lambda start, end: array[start:end])

    for node in model.graph.node:
        place = node.name.removeprefix("/").rpartition("/")[0].replace("/", ".")
        if node.op_type in ("LayerNormalization", "Gemm"):
            for kind, name in zip(("weight", "bias"), node.input[1:], strict=False):
                if (array := graph.constant(name)) is not None:
                    yield floats(f"{place}.{kind}", array)
        elif node.op_type == "Slice" and (array := graph.constant(node.input[0])) is not None:
            if node.input[0] in frozen.tensors:
                yield floats(node.input[0], array)
        elif (found := graph.weight(node)) is not None and found[0]:
            name = place_of(node)
            if name in frozen.tensors:
                yield Stored(name, *found)
