"""Graphs that torch's tracer made, for language models through optimum and for encoders: every planned weight becomes a
hole of the shape that onnx_weights.Filler expects, every other one the student's own numbers.

The tracer keeps parameter names and turns a linear layer into Transpose, MatMul, Add, or into Gemm:

    x [.., K] · Transpose(w [N, K]) + b    ->    MatMulNBits(x, codes, scales) + b
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeslm.errors import ExportError
from edgeslm.export.describe import EMBEDDING, HEAD, is_planned
from edgeslm.quantize.frozen import Frozen

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto


def open_holes(graph: GraphProto, frozen: Frozen) -> set[str]:
    """Makes every planned weight a hole and writes the others; returns these. A tied head's product gets a hole of its
    own, named as the head is: the lookup wants the same matrix the other way round. Raises ExportError where a planned
    weight is used in another way."""
    from onnx import numpy_helper

    planned = {name for name, tensor in frozen.tensors.items() if is_planned(tensor)}
    there = {t.name for t in graph.initializer}
    if missing := sorted(frozen.tensors.keys() - there):
        raise ExportError(f"{missing[0]} is in the student and not in the traced graph; it would not be shipped")
    turned = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] in planned}
    looked_up = {n.input[0] for n in graph.node if n.op_type == "Gather" and n.input[0] == EMBEDDING} & planned
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Transpose" and node.output[0] in turned:
            continue
        nodes += _plain(node, turned, planned)
    products = set()
    for node in nodes:
        if node.op_type == "MatMul":
            node.input[:] = [HEAD if name in looked_up else name for name in node.input]
            products |= {name for name in node.input if name in planned or (name == HEAD and looked_up)}
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        if tensor.name in planned:
            shape = frozen.tensors[tensor.name].shape
            tensor.CopyFrom(_hole(tensor.name, tuple(reversed(shape)) if tensor.name in products else shape))
        elif tensor.name in frozen.tensors:
            tensor.CopyFrom(numpy_helper.from_array(frozen.tensors[tensor.name].decode().numpy(), tensor.name))
    if HEAD in products and HEAD not in there:
        graph.initializer.append(_hole(HEAD, tuple(reversed(frozen.tensors[EMBEDDING].shape))))
    return set(frozen.tensors) - planned


def _hole(name: str, shape: tuple[int, ...]) -> TensorProto:
    from onnx import TensorProto

    hole = TensorProto(name=name, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    hole.dims.extend(shape)
    return hole


def _plain(node: NodeProto, turned: dict[str, str], planned: set[str]) -> Iterator[NodeProto]:
    """A product reads the weight itself; Gemm becomes a product and a sum."""
    from onnx import helper

    inputs = [turned.get(name, name) for name in node.input]
    if node.op_type != "Gemm" or inputs[1] not in planned:
        del node.input[:]
        node.input.extend(inputs)
        yield node
        return
    if {a.name: helper.get_attribute_value(a) for a in node.attribute} != {"alpha": 1.0, "beta": 1.0, "transB": 1}:
        raise ExportError(f"{inputs[1]}: node {node.name} is a Gemm that is no linear layer; it has no ONNX export yet")
    place = node.name.removesuffix("/Gemm")
    product = f"{place}/MatMul_output_0"
    yield helper.make_node("MatMul", inputs[:2], [product], name=f"{place}/MatMul")
    yield helper.make_node("Add", [product, inputs[2]], list(node.output), name=f"{place}/Add")
