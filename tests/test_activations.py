"""Rounding of activations against ggml's and onnxruntime's own kernels."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from edgeslm.errors import FormatError
from edgeslm.formats import FORMATS
from edgeslm.quantize import activations
from edgeslm.quantize.activations import install, int8_blocks, q8_0, q8_k, rounding
from edgeslm.quantize.plan import FLOATS

TRAINED = [n for n, f in FORMATS.items() if f.fit is not None]
IN_GGML = [n for n in TRAINED if FORMATS[n].ggml_type is not None]
ON_GRIDS = [n for n in TRAINED if n not in FLOATS]
Q8_0, Q8_1, Q8_K = 8, 9, 15


def test_there_are_grids_of_both_runtimes():
    assert set(IN_GGML) >= {"f16", "q4_0", "q2_k", "iq4_nl", "tq2_0"} and set(ON_GRIDS) - set(IN_GGML)


class CpuTraits(ctypes.Structure):
    """struct ggml_type_traits_cpu"""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


@pytest.fixture(scope="module")
def ggml_cpu():
    """{ggml type: its CPU kernels}: what llama.cpp calls on activations on this machine."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("needs llama-cpp-python: python -m edgeslm.runtimes.native")
    library = ctypes.CDLL(str(next((Path(spec.origin).parent / "lib").glob("libggml-cpu.*"))))
    traits = library.ggml_get_type_traits_cpu
    traits.restype, traits.argtypes = ctypes.POINTER(CpuTraits), [ctypes.c_int]
    return lambda number: traits(number).contents


def hard_inputs(columns: int) -> torch.Tensor:
    """Random rows over many magnitudes, a row of zeros, one spike, one of equal values, ties."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(512, columns, generator=g) * torch.logspace(-4, 3, 512)[:, None]
    x[0], x[1], x[2] = 0, 0.3, torch.eye(columns)[3] * 7
    x[3] = (torch.arange(columns) % 255 - 127).float() / 2
    x[4, :32] = 0
    return x


@pytest.mark.parametrize(
    ("number", "layout", "ours"),
    [
        (Q8_0, [("d", "<f2"), ("qs", "i1", 32)], q8_0),
        (Q8_K, [("d", "<f4"), ("qs", "i1", 256), ("bsums", "<i2", 16)], q8_k),
    ],
)
def test_blocks_are_bit_equal_to_what_llama_cpp_multiplies_with(number, layout, ours, ggml_cpu):
    x = hard_inputs(512)
    packed = np.zeros(x.numel() // np.dtype(layout)["qs"].shape[0], np.dtype(layout))
    array = np.ascontiguousarray(x.numpy())
    ggml_cpu(number).from_float(array.ctypes.data, packed.ctypes.data, x.numel())
    theirs = packed["qs"].astype(np.float32) * packed["d"].astype(np.float32)[:, None]
    assert np.array_equal(ours(x).numpy().reshape(theirs.shape), theirs)
    assert (theirs != array.reshape(theirs.shape)).mean() > 0.9


def test_q8_0_differs_from_ggmls_file_format_in_ties_alone():
    """Weights in Q8_0 files are rounded half away from zero, activations half to even."""
    x = hard_inputs(512)
    form = FORMATS["q8_0"]
    file = form.dequantize(form.reference(x.reshape(-1, 32)), tuple(x.shape))
    assert (q8_0(x) == file).float().mean() > 0.999
    step = x.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
    assert ((q8_0(x) - file).unflatten(-1, (-1, 32)).abs() <= step * 1.01).all()


@pytest.mark.parametrize("name", IN_GGML)
def test_llama_cpp_picks_the_same_blocks_by_the_weights_type(name, ggml_cpu):
    theirs = ggml_cpu(FORMATS[name].ggml_type).vec_dot_type
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    wanted = {0: x, 1: x.half().float(), 30: x.bfloat16().float(), Q8_0: q8_0(x), Q8_1: q8_0(x), Q8_K: q8_k(x)}
    change = rounding(name, "llama.cpp")
    assert torch.equal(x if change is None else change(x), wanted[theirs])


def onnx_inputs_as_seen(x: np.ndarray, bits: int, block: int) -> np.ndarray:
    """x [r, K] times the identity in onnxruntime's n-bit product with int8 activations: what it made of x."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    columns, middle = x.shape[1], 1 << (bits - 1)
    codes = np.full((columns, columns), middle, np.uint8)
    np.fill_diagonal(codes, middle + 1)
    per_byte = 8 // bits
    packed = sum(codes[:, i::per_byte] << (bits * i) for i in range(per_byte)).astype(np.uint8)
    tensors = [
        onnx.numpy_helper.from_array(packed.reshape(columns, columns // block, -1), "B"),
        onnx.numpy_helper.from_array(np.ones(columns * columns // block, np.float32), "scales"),
    ]
    sizes = {"K": columns, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
    node = onnx.helper.make_node("MatMulNBits", ["A", "B", "scales"], ["Y"], domain="com.microsoft", **sizes)
    value = onnx.helper.make_tensor_value_info
    ends = [value(n, onnx.TensorProto.FLOAT, list(x.shape)) for n in ("A", "Y")]
    graph = onnx.helper.make_graph([node], "identity", ends[:1], ends[1:], tensors)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"A": x})[0]


@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (4, 128), (8, 32), (8, 64), (2, 32), (2, 64)])
def test_int8_blocks_are_what_onnxruntime_makes_of_activations(bits, block):
    x = hard_inputs(256)[4:200:7].numpy()
    seen = onnx_inputs_as_seen(x, bits, block)
    ours = int8_blocks(torch.from_numpy(x), block).numpy()
    # the product's zero point is taken off the sum over all blocks, so the last bits are those of the largest
    tolerance = 2.5e-6 * (1 << (bits - 1)) * np.abs(x).max(1, keepdims=True)
    assert (np.abs(seen - ours) <= tolerance).all()
    assert (np.abs(seen - x) > tolerance).mean() > 0.7


def test_onnxruntime_rounds_by_the_products_block():
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(2))
    for name, block in (("q4_0", 32), ("q6_k", 16), ("q8_0", 32)):
        assert torch.equal(rounding(name, "onnxruntime")(x), int8_blocks(x, block))
    assert rounding("f16", "onnxruntime") is None
    assert rounding("tq2_0", "onnxruntime") is None  # 2 bits in blocks of 256: computed in float32


@pytest.mark.parametrize("name", ON_GRIDS)
@pytest.mark.parametrize("runtime", ["llama.cpp", "onnxruntime"])
def test_every_grid_has_a_small_rounding_and_a_straight_gradient(name, runtime):
    change = rounding(name, runtime)
    if change is None:
        return
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(3), requires_grad=True)
    out = change(x)
    assert 0 < (out - x).square().mean() < 1e-3
    weight = torch.randn(3, 512, generator=torch.Generator().manual_seed(4))
    (out * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    assert change(x.detach().bfloat16()).dtype == torch.bfloat16


def assigned(model, format_name: str) -> dict[str, str]:
    return {n: format_name if p.dim() == 2 else "f32" for n, p in model.named_parameters()}


def test_hooks_change_every_product_and_go_away():
    model = tiny.llama(layers=2)
    ids = torch.randint(0, 288, (2, 16), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        handles = install(model, assigned(model, "q4_0"), "llama.cpp")
        during = model(input_ids=ids).logits
        handles.remove()
        after = model(input_ids=ids).logits
    assert len(handles) == 2 * 7 + 1
    assert torch.equal(before, after) and not torch.equal(before, during)
    assert 0 < (during - before).abs().mean() < 0.05 * before.abs().mean()
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not install(model, assigned(model, "f32"), "llama.cpp").hooks


def test_a_layer_sees_rounded_inputs_and_the_head_is_rounded_by_hand():
    model = tiny.llama(layers=1)
    ids = torch.randint(0, 288, (2, 16), generator=torch.Generator().manual_seed(6))
    layer = model.model.layers[0].self_attn.q_proj
    seen = []
    layer.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    handles = install(model, assigned(model, "q5_0"), "llama.cpp")
    logits = model(input_ids=ids).logits
    hidden = model.model(input_ids=ids).last_hidden_state
    inputs, out = seen[0]
    assert torch.equal(inputs, q8_0(inputs)) and torch.equal(out, inputs @ layer.weight.T)
    assert torch.equal(logits, rounding("q5_0", "llama.cpp")(hidden) @ model.lm_head.weight.T)
    handles.remove()


def test_weights_of_one_input_share_its_rounding_and_never_a_stale_one(monkeypatch):
    calls = []

    def counted(x):
        calls.append(tuple(x.shape))
        return q8_0(x)

    monkeypatch.setattr(activations, "q8_0", counted)
    model = tiny.llama(layers=1)
    handles = install(model, assigned(model, "q4_0"), "llama.cpp")
    ids = torch.randint(0, 288, (1, 8), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        first = model(input_ids=ids).logits
    assert len(calls) == 5  # attention, its output, gate and up, down, head
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, first)
    x = torch.randn(1, 64)
    q, k = model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj
    q(x)
    x.mul_(3)
    assert torch.equal(k(x), q8_0(x) @ k.weight.T)
    with torch.no_grad():
        q(x)
    assert k(x.requires_grad_()).requires_grad
    with torch.inference_mode():
        y = torch.randn(1, 64)
        assert torch.equal(q(y), q8_0(y) @ q.weight.T)
    handles.remove()


def test_inputs_no_block_divides_are_refused_by_torch_before_any_number_is_made():
    with pytest.raises((RuntimeError, FormatError)):
        q8_k(torch.zeros(2, 64))
