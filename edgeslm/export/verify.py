"""Opens a shipped file again with readers that share nothing with the writers and compares every weight bit by bit.

GGUF is read with our own reader (the writer is the gguf package's) and decoded by verify_ggml.py; ONNX is read with the
onnx package and decoded here by the operators' written definition: MatMulNBits and GatherBlockQuantized hold
w = (u - zero) * scale, where zero is 2^(bits-1) unless the node reads zero points.
Which weight a graph node holds is read from the node's place in the model, not from the initializer's name.

Bitwise means the 32 bits of every float32: -0.0 (code 8 of q4_0 under a negative scale) differs from 0.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeslm.artifact import Artifact
from edgeslm.errors import ExportError, ModelError
from edgeslm.export import verify_ggml
from edgeslm.export.describe import EMBEDDING, HEAD, is_planned
from edgeslm.export.layout import laid_out
from edgeslm.formats import FORMATS
from edgeslm.models import gguf_file
from edgeslm.models.arch import ARCHS
from edgeslm.quantize.frozen import Frozen, FrozenTensor

if TYPE_CHECKING:
    import onnx
    from onnx import NodeProto, TensorProto

CHUNK_WEIGHTS = 1 << 23  # rows are compared in pieces of about this many weights
NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")

Rows = Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True)
class Stored:
    """One use of a weight in a file: transformers' name, shape, what it is stored as, and its rows a..b as float32."""

    name: str
    shape: tuple[int, ...]
    stored_as: str
    on_grid: bool
    rows: Rows


def verify(
    artifact: Artifact, frozen: Frozen, reader: Callable[[Path, Frozen], Iterator[Stored]] | None = None
) -> dict[str, Any]:
    """`{"artifact", "tensors", "exact", "planned", "planned_exact", "first_mismatch": None | str}`.

    A tensor is exact when every use of it in the file decodes to the same bits as `FrozenTensor.decode`; a planned one
    must also still be stored on a block grid. Tensors are those of the container (`layout`). `reader`: of a file laid
    out otherwise than its format's. Raises ExportError when the file cannot be read at all.
    """
    readers: dict[str, Callable[[Path, Frozen], Iterator[Stored]]] = {"gguf": _gguf, "onnx": _onnx}
    problems: dict[str, str] = {}
    seen: set[str] = set()
    frozen = laid_out(frozen, artifact.format) if reader is None else frozen
    try:
        for stored in (reader or readers[artifact.format])(artifact.path, frozen):
            seen.add(stored.name)
            problem = _compare(stored, frozen.tensors.get(stored.name))
            if problem:
                problems.setdefault(stored.name, f"{stored.name}: {problem}")
    except (
        OSError,
        ValueError,
        IndexError,
        KeyError,
        ModelError,
    ) as error:  # what damaged bytes make the two readers raise
        raise ExportError(f"{artifact.path} cannot be read back ({error}); export it again") from error
    for name in frozen.tensors.keys() - seen:
        problems[name] = f"{name}: is not in the file"
    planned = {name for name, tensor in frozen.tensors.items() if is_planned(tensor)}
    wrong = problems.keys() & frozen.tensors.keys()
    return {
        "artifact": artifact.name,
        "tensors": len(frozen.tensors),
        "exact": len(frozen.tensors) - len(wrong),
        "planned": len(planned),
        "planned_exact": len(planned - wrong),
        "first_mismatch": next((problems[n] for n in [*frozen.tensors, *problems] if n in problems), None),
    }


def _compare(stored: Stored, tensor: FrozenTensor | None) -> str | None:
    if tensor is None:
        return "is in the file and not in the student"
    if stored.shape != tuple(tensor.shape):
        return f"has shape {list(stored.shape)} in the file and {list(tensor.shape)} in the student"
    if is_planned(tensor) and not stored.on_grid:
        return f"is stored as {stored.stored_as} instead of {tensor.format}"
    rows, step = tensor.shape[0], max(1, CHUNK_WEIGHTS // max(1, int(np.prod(tensor.shape[1:]))))
    for start in range(0, rows, step):
        end = min(rows, start + step)
        ours, theirs = _decoded_rows(tensor, start, end), stored.rows(start, end).reshape(end - start, -1)
        differ = ours.view(np.int32) != np.ascontiguousarray(theirs).view(np.int32)
        if differ.any():
            row, column = np.argwhere(differ)[0]
            return (
                f"row {start + row}, column {column} is {theirs[row, column]!r} in the file and {ours[row, column]!r} "
                f"in the student ({int(differ.sum())} differ in these rows)"
            )
    return None


def _decoded_rows(tensor: FrozenTensor, start: int, end: int) -> NDArray[np.float32]:
    """float32 [end - start, K] of FrozenTensor.decode, without decoding the rest."""
    blocks = tensor.codes.shape[0] // tensor.shape[0]  # per row
    part = slice(start * blocks, end * blocks)
    scales = {key: value[part] for key, value in tensor.scales.items()}
    return FORMATS[tensor.format].decode(tensor.codes[part], scales).reshape(end - start, -1).contiguous().numpy()


def _gguf(path: Path, frozen: Frozen) -> Iterator[Stored]:
    """The file's rows are transformers' rows in another order: gguf_rows = rows[order]."""
    arch = ARCHS[frozen.arch]
    transformers_names = {theirs: ours for ours, theirs in arch.names(frozen.config).items()}
    file = gguf_file.read(path)
    for tensor in file.tensors.values():
        name = transformers_names.get(tensor.name, tensor.name)
        shape = tensor.shape
        order = arch.row_order(name, frozen.config) if name in frozen.tensors else None
        at = np.arange(shape[0]) if order is None else np.argsort(order.numpy())
        data = np.frombuffer(file.data, np.uint8, tensor.nbytes, tensor.offset).reshape(shape[0], -1)
        kind = tensor.ggml_type

        def rows(start: int, end: int, data: Any = data, at: Any = at, kind: int = kind) -> NDArray[np.float32]:
            return verify_ggml.decode(np.ascontiguousarray(data[at[start:end]]), kind)

        wanted = frozen.tensors.get(name)
        same = wanted is not None and kind == FORMATS[wanted.format].ggml_type
        yield Stored(name, shape, tensor.format, same, rows)


def _onnx(folder: Path, frozen: Frozen) -> Iterator[Stored]:
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    graph = Graph(folder, model.graph)
    for node in model.graph.node:
        found = graph.weight(node)
        if found is None:
            continue
        name = place_of(node)
        if name == HEAD and HEAD not in frozen.tensors:
            name = EMBEDDING
        yield Stored(name, *found)


def place_of(node: NodeProto) -> str:
    """`/model/layers.0/attn/q_proj/MatMul` -> `model.layers.0.self_attn.q_proj.weight`."""
    place = node.name.removeprefix("/").rpartition("/")[0].replace("/attn/", "/self_attn/").replace("/", ".")
    place = re.sub(r"^model\.layers\.\d+\.final_norm_layernorm$", "model.norm", place)
    return place + (".bias" if node.op_type == "Add" else ".weight")


def _fields(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """[rows, m] bytes -> [rows, m * 8 / bits] numbers, the lowest bits of a byte first."""
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(packed.shape[0], -1).astype(np.uint8)


class Graph:
    """Initializers of a graph, read lazily from the graph file or the data file beside it."""

    def __init__(self, folder: Path, graph: onnx.GraphProto):
        self.folder = folder
        self.initializers = {t.name: t for t in graph.initializer}
        self.producers = {output: node for node in graph.node for output in node.output}

    def weight(self, node: NodeProto) -> tuple[tuple[int, ...], str, bool, Rows] | None:
        """Shape, storage, whether it is on a grid, and rows of the weight a node reads; None when it reads none."""
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            return self._blocks(node)
        if node.op_type in ("MatMul", "Gather", "Add", *NORMS):
            for name in node.input:
                array = self.constant(name)
                if array is not None and array.dtype == np.float32:
                    array = array.T if node.op_type == "MatMul" else array
                    return array.shape, "float32", False, lambda start, end, array=array: array[start:end]
        return None

    def _blocks(self, node: NodeProto) -> tuple[tuple[int, ...], str, bool, Rows]:
        import onnx

        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        product = node.op_type == "MatMulNBits"
        data, scales = self.constant(node.input[1 if product else 0]), self.constant(node.input[2])
        zeros = self.constant(node.input[3]) if len(node.input) > 3 else None
        bits, block = attributes["bits"], attributes["block_size"]
        arrays = [a for a in (data, zeros) if a is not None]
        known = bits in (2, 4, 8) and len(arrays) == len(node.input) - 2 and all(a.dtype == np.uint8 for a in arrays)
        if data is None or scales is None or scales.dtype != np.float32 or not known:
            raise ValueError(f"node {node.name} is not of the kind that is written here")
        data = data.reshape(data.shape[0], -1)
        shape = (data.shape[0], data.shape[1] * 8 // bits)
        if product and shape != (attributes["N"], attributes["K"]):
            raise ValueError(f"node {node.name} says N, K = {attributes['N']}, {attributes['K']} and holds {shape}")

        def rows(start: int, end: int) -> NDArray[np.float32]:
            u = _fields(data[start:end], bits).reshape(end - start, -1, block).astype(np.float32)
            if zeros is None:
                u -= np.float32(1 << (bits - 1))
            else:  # the product packs the zero points of a row, the lookup has one in every byte
                z = zeros[start:end].reshape(end - start, -1)
                z = _fields(z, bits)[:, : u.shape[1]] if product else z
                u -= z.astype(np.float32)[:, :, None]
            return (u * scales[start:end].reshape(end - start, -1, 1)).reshape(end - start, -1)

        return shape, f"{node.op_type} of {bits} bits", True, rows

    def constant(self, name: str) -> NDArray[Any] | None:
        """An initializer, or one behind Reshape and Transpose; None when the value is computed at run time."""
        if name in self.initializers:
            return self._array(self.initializers[name])
        node = self.producers.get(name)
        if node is None or node.op_type not in ("Reshape", "Transpose"):
            return None
        source = self.constant(node.input[0])
        if source is None or node.op_type == "Transpose":
            return None if source is None else source.T
        shape = self.constant(node.input[1])
        return None if shape is None else source.reshape(shape)

    def _array(self, tensor: TensorProto) -> NDArray[Any]:
        import onnx
        from onnx import TensorProto

        if tensor.data_location != TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
        entry = {e.key: e.value for e in tensor.external_data}
        path = self.folder / entry["location"]
        if path.parent != self.folder or path.is_symlink():
            raise ValueError(f"{tensor.name} lies outside the folder, at {entry['location']}")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.memmap(path, dtype, "r", int(entry["offset"]), tuple(tensor.dims))
