"""Fills the holes of a weightless ONNX graph with a frozen student's own codes and scales.

onnxruntime's block operators hold w = (u - z) * s with u and z in `bits` bits, blocks of B along K, float32 scales:

    MatMulNBits           u uint8 [N, K/B, B*bits/8]   s float32 [N, K/B]      z uint8 [N, K/B*bits/8]
    GatherBlockQuantized  u uint8 [V, K/B, B*bits/8]   s float32 [V, K/B, 1]   z uint8 [V, K/B, 1]

    the product takes x [.., K] to [.., N], the lookup ids [..] to [.., K/B, B]

    4 bits: byte j of a block holds weight 2j in its low and weight 2j+1 in its high nibble; 2 bits: weight 4j lowest
    (ggml's q4_0 puts weights j and j+16 into one byte: the same codes in another order)

z is left out where it is 2^(bits-1) everywhere. The lookup wants one z a byte where the product packs a row of them,
so a tied tensor with zero points has them twice: one byte in every block.

Shape letters: N outputs, K inputs, V vocabulary, B weights of an operator's block, n and k blocks and weights of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper

from edgeslm.errors import ExportError
from edgeslm.export.describe import EMBEDDING, HEAD, is_planned
from edgeslm.export.onnx_grids import Box, need_box
from edgeslm.formats import FORMATS
from edgeslm.quantize.frozen import Frozen, FrozenTensor

SLICE_WEIGHTS = 1 << 22  # levels are float32 for a moment; so many at once
ALIGNMENT = 64  # bytes; a cache line, and enough for every vector load from a mapped file
INLINE_BYTES = 1024  # smaller initializers stay in the graph
CONTRIB = "com.microsoft"


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """[.., m] numbers of `bits` bits -> [.., m * bits / 8 rounded up], lowest bits first."""
    each = 8 // bits
    short = -values.shape[-1] % each
    if short:
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, short)])
    out = values[..., 0::each].copy()
    for place in range(1, each):
        out |= values[..., place::each] << (bits * place)
    return out


def operator_codes(tensor: FrozenTensor) -> NDArray[np.uint8]:
    """Codes [n, k] of a matrix [N, K] -> uint8 [N, K/B, B*bits/8]. Whole numbers are moved; nothing is rounded."""
    held, levels = need_box(tensor.format), FORMATS[tensor.format].levels
    assert levels is not None
    step = max(1, SLICE_WEIGHTS // tensor.codes.shape[1])
    parts = [
        _packed(levels(tensor.codes[at : at + step]).add_(held.shift).to(torch.uint8).numpy(), held.bits)
        for at in range(0, tensor.codes.shape[0], step)
    ]
    return np.concatenate(parts).reshape(tensor.shape[0], -1, held.block * held.bits // 8)


def operator_scales(tensor: FrozenTensor) -> NDArray[np.float32]:
    """Steps [n, g] -> float32 [N, K/B], multiplied out as `decode` does (K formats: d * sc)."""
    spread = FORMATS[tensor.format].spread
    assert spread is not None
    return spread(tensor.scales)[0].contiguous().numpy().astype(np.float32).reshape(tensor.shape[0], -1)


def operator_zeros(tensor: FrozenTensor) -> NDArray[np.uint8] | None:
    """uint8 [N, K/B], one number a byte; None where the operators' own middle is meant."""
    held = need_box(tensor.format)
    if held.zeros == "middle":
        return None
    shape = (tensor.shape[0], tensor.shape[1] // held.block)
    if held.zeros == "own":
        return tensor.scales["z"].numpy().reshape(shape)
    return np.full(shape, held.shift, np.uint8)


def transformers_name(name: str) -> str:
    """The model builder's initializer name -> transformers' parameter name.

    Raises ExportError for a name it does not know: a weight that is not understood must not be guessed.
    """
    if name == EMBEDDING:
        return name
    if name == "lm_head.MatMul.weight":
        return HEAD
    if re.fullmatch(r"model\.layers\.\d+\.final_norm_layernorm\.weight", name):
        return "model.norm.weight"
    layer = re.fullmatch(r"(model\.layers\.\d+\.)(.+)", name)
    if layer:
        rest = re.sub(r"\.(MatMul|Add)\.(weight|bias)$", r".\2", layer[2])
        rest = rest.replace("_norm.layernorm.", "_norm.")  # of heads
        return layer[1] + re.sub(r"^attn\.", "self_attn.", rest)
    raise ExportError(f"the model builder made an unknown weight '{name}'; this architecture has no ONNX export yet")


@dataclass
class DataFile:
    """The one external data file: appends arrays at aligned offsets and counts the bytes that are weights."""

    file: BinaryIO
    name: str
    weight_bytes: int = 0

    def add(self, name: str, array: NDArray, weight: bool = True) -> TensorProto:
        """The array's bytes at the file's end; returns the initializer that points to them."""
        array = np.ascontiguousarray(array)
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in (("location", self.name), ("offset", self.file.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.file.write(array.reshape(-1).view(np.uint8).data)
        self.weight_bytes += array.nbytes if weight else 0
        return tensor


@dataclass
class Filler:
    """One pass over a graph. `swapped` are the planned tensors that reached a block operator."""

    frozen: Frozen
    data: DataFile
    accuracy_level: int
    rename: Callable[[str], str] = transformers_name  # a graph's initializer name -> the student's tensor name
    initializers: list[TensorProto] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    swapped: set[str] = field(default_factory=set)

    def fill(self, graph: GraphProto) -> None:
        """Replaces the graph's initializers and nodes in place. Raises ExportError when a weight does not fit."""
        holes = {t.name for t in graph.initializer if t.data_location == TensorProto.EXTERNAL}
        shapes = {t.name: tuple(t.dims) for t in graph.initializer}
        for tensor in graph.initializer:
            if tensor.name not in holes:
                self._keep(tensor)
        for node in graph.node:
            weights = [name for name in node.input if name in holes]
            if not weights:
                self.nodes.append(node)
                continue
            if len(weights) > 1:
                raise ExportError(f"node {node.name} reads {len(weights)} weights; this graph has no ONNX export yet")
            self.nodes.extend(self._with_weight(node, weights[0], shapes[weights[0]]))
        self._check()
        del graph.initializer[:], graph.node[:]
        graph.initializer.extend(self.initializers)
        graph.node.extend(self.nodes)

    def _keep(self, tensor: TensorProto) -> None:
        """Tables the builder computed (rotary cosines and sines); large ones move to the data file."""
        array = onnx.numpy_helper.to_array(tensor)
        self.initializers.append(tensor if array.nbytes < INLINE_BYTES else self.data.add(tensor.name, array, False))

    def _with_weight(self, node: NodeProto, hole: str, shape: tuple[int, ...]) -> Iterator[NodeProto]:
        name = self.rename(hole)
        tied = name == HEAD and name not in self.frozen.tensors
        name = EMBEDDING if tied else name
        tensor = self.frozen.tensors.get(name)
        if tensor is None:
            raise ExportError(f"the graph needs '{name}', which {self.frozen.name} does not have; freeze it again")
        turned = node.op_type == "MatMul"
        expected = tuple(reversed(shape)) if turned else shape
        if tuple(tensor.shape) != expected:
            raise ExportError(f"{name}: shape {list(tensor.shape)}, but the graph of its config wants {list(expected)}")
        if is_planned(tensor):
            yield from self._block_operator(node, hole, name, tensor)
        else:
            yield from self._float_operator(node, hole, name, tensor, tied)
        self.used.add(name)

    def _block_operator(self, node: NodeProto, hole: str, name: str, tensor: FrozenTensor) -> Iterator[NodeProto]:
        rows, columns = tensor.shape
        held, zeros = need_box(tensor.format), operator_zeros(tensor)
        codes, scales = f"{name}.codes", f"{name}.scales"
        if name not in self.used:
            self.initializers.append(self.data.add(codes, operator_codes(tensor)))
            self.initializers.append(self.data.add(scales, operator_scales(tensor)))
        common: dict[str, Any] = {"name": node.name, "domain": CONTRIB, "bits": held.bits, "block_size": held.block}
        if node.op_type == "MatMul":
            inputs = [node.input[0], codes, scales]
            if zeros is not None:
                inputs.append(f"{name}.zeros")
                self.initializers.append(self.data.add(inputs[-1], _packed(zeros, held.bits)))
            sizes: dict[str, Any] = {"K": columns, "N": rows, "accuracy_level": self.accuracy_level}
            yield helper.make_node("MatMulNBits", inputs, list(node.output), **common, **sizes)
        elif node.op_type == "Gather":
            yield from self._lookup(node, name, held, zeros, common)
        else:
            raise ExportError(f"{name}: a weight in {tensor.format} feeds {node.op_type}, which has no block operator")
        self.swapped.add(name)

    def _lookup(
        self, node: NodeProto, name: str, held: Box, zeros: NDArray[np.uint8] | None, common: dict[str, Any]
    ) -> Iterator[NodeProto]:
        """ids -> [.., K/B, B] -> [.., K], reading the very initializers a tied head's MatMulNBits reads.

        Codes stay in the product's three-dimensional shape and the small scales are reshaped instead, which
        onnxruntime folds at load: reshaping the codes would cost a second copy of them in memory.
        """
        codes, scales = f"{name}.codes", f"{name}.scales"
        rows, columns = self.frozen.tensors[name].shape
        shapes = {"scales_shape": [rows, columns // held.block, 1], "row_shape": [0, 0, -1]}
        for key, value in shapes.items():
            self.initializers.append(helper.make_tensor(f"{name}.{key}", TensorProto.INT64, [3], value))
        blocks, column_scales = f"{node.output[0]}/blocks", f"{scales}/column"
        yield helper.make_node(
            "Reshape", [scales, f"{name}.scales_shape"], [column_scales], name=f"{node.name}/ReshapeScales"
        )
        inputs = [codes, node.input[1], column_scales]
        if zeros is not None:
            inputs.append(f"{name}.zeros_apart")
            self.initializers.append(self.data.add(inputs[-1], zeros[:, :, None]))
        axes: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 2}
        yield helper.make_node("GatherBlockQuantized", inputs, [blocks], **common, **axes)
        yield helper.make_node("Reshape", [blocks, f"{name}.row_shape"], list(node.output), name=f"{node.name}/Reshape")

    def _float_operator(
        self, node: NodeProto, hole: str, name: str, tensor: FrozenTensor, tied: bool
    ) -> Iterator[NodeProto]:
        """float32 initializer; a MatMul wants it [K, N]. A tied head reads the embedding through a Transpose."""
        if tied:
            turned = f"{name}/transposed"
            yield helper.make_node("Transpose", [name], [turned], name=f"{node.name}/Transpose", perm=[1, 0])
            inputs = [turned if i == hole else i for i in node.input]
        else:
            array = tensor.decode().numpy()
            self.initializers.append(self.data.add(name, array.T if node.op_type == "MatMul" else array))
            inputs = [name if i == hole else i for i in node.input]
        del node.input[:]
        node.input.extend(inputs)
        yield node

    def _check(self) -> None:
        unused = sorted(self.frozen.tensors.keys() - self.used)
        if unused:
            raise ExportError(
                f"the graph has no place for {unused[0]} and {len(unused) - 1} other tensors of the student"
            )
        floats = sorted(n for n, t in self.frozen.tensors.items() if is_planned(t) and n not in self.swapped)
        if floats:
            raise ExportError(f"{floats[0]} is planned on a grid but would ship as float; nothing was written")


def unread_bytes(frozen: Frozen, graph: GraphProto) -> int:
    """Weights of a filled graph that only the lookup reads, one row a token: the input table of an untied model, and
    of a tied one the zero points that are kept apart for it."""
    own = (EMBEDDING, f"{EMBEDDING}.") if HEAD in frozen.tensors else (f"{EMBEDDING}.zeros_apart",)
    kept = [t for t in graph.initializer if t.data_location == TensorProto.EXTERNAL and t.name.startswith(own)]
    return sum(int(entry.value) for t in kept for entry in t.external_data if entry.key == "length")


def metadata(frozen: Frozen) -> dict[str, str]:
    """Model properties: the name, the recipe and its hash, licence, base model."""
    return {"edgeslm.name": frozen.name} | {f"edgeslm.{key}": value for key, value in frozen.metadata.items()}
