"""Grids against ggml: through the gguf package and through libggml itself."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.errors import FormatError
from edgeslm.formats import FORMATS, by_ggml_type
from edgeslm.formats.base import BlockFormat

# floats, legacy and K; the other families have files of their own: test_low_formats.py, test_nbits.py
NAMES = [n for n, f in FORMATS.items() if f.ggml_type in {*range(15), 30}]
TRAINED = [n for n in NAMES if FORMATS[n].encode is not None]
WITH_REFERENCE = [n for n, f in FORMATS.items() if f.reference is not None]
BLOCKS = 512


def random_bytes(grid: BlockFormat, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (BLOCKS, grid.bytes), dtype=np.uint8)


def hard_blocks(grid: BlockFormat, huge: float = 1e4) -> torch.Tensor:
    """Random, constant, zero, tiny, huge, one-sided, single-spike and tied-extreme blocks, float32 [n, k]."""
    g = torch.Generator().manual_seed(1)
    k = grid.block
    w = torch.randn(256, k, generator=g) * 0.05
    special = torch.stack(
        [
            torch.zeros(k),
            torch.full((k,), 0.3),
            torch.full((k,), -0.3),
            torch.randn(k, generator=g) * 1e-30,
            torch.randn(k, generator=g) * 1e-6,
            torch.randn(k, generator=g) * huge,
            torch.rand(k, generator=g),
            -torch.rand(k, generator=g),
            torch.eye(k)[0] * 2.5,
            -torch.eye(k)[-1],
            torch.where(torch.arange(k) % 2 == 0, 1.0, -1.0),
        ]
    )
    return torch.cat([w, special])


@pytest.fixture(scope="module")
def libggml() -> ctypes.CDLL:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: python -m edgeslm.runtimes.native")
    folder = Path(llama_cpp.__file__).parent / "lib"
    return ctypes.CDLL(str(next(folder.glob("libggml-base.so*"))))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Bitwise equal floats; NaN payloads are not compared, NaN places are."""
    nan = np.isnan(a)
    return bool((nan == np.isnan(b)).all() and (a.view(np.int32)[~nan] == b.view(np.int32)[~nan]).all())


def test_table_is_not_empty_and_names_agree():
    whole = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_0_portable", "q4_1", "q5_0", "q5_1"}
    assert set(TRAINED) == whole | {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k"}
    assert all(name == grid.name for name, grid in FORMATS.items())
    sizes = {n: gguf.GGML_QUANT_SIZES[GGMLQuantizationType(f.ggml_type)] for n, f in FORMATS.items() if n in NAMES}
    assert {n: (FORMATS[n].block, FORMATS[n].bytes) for n in NAMES} == sizes
    assert by_ggml_type(2) is FORMATS["q4_0"] and by_ggml_type(999) is None


@pytest.mark.parametrize("name", NAMES)
def test_decode_is_bit_equal_to_gguf(name):
    grid, raw = FORMATS[name], random_bytes(FORMATS[name])
    codes, scales = grid.unpack(torch.from_numpy(raw))
    with np.errstate(all="ignore"):
        theirs = raw.view(np.float32) if name == "f32" else quants.dequantize(raw, GGMLQuantizationType(grid.ggml_type))
    assert same_bits(grid.decode(codes, scales).numpy(), theirs.reshape(BLOCKS, grid.block).astype(np.float32))


@pytest.mark.parametrize("name", [n for n in NAMES if FORMATS[n].block > 1])
def test_decode_is_bit_equal_to_libggml(name, libggml):
    grid, raw = FORMATS[name], random_bytes(FORMATS[name], seed=2)
    symbol = f"dequantize_row_{'q4_0' if name == 'q4_0_portable' else name.replace('_k', '_K')}"
    row = getattr(libggml, symbol)
    out = np.empty((BLOCKS, grid.block), np.float32)
    row(raw.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(out.size))
    codes, scales = grid.unpack(torch.from_numpy(raw))
    assert same_bits(grid.decode(codes, scales).numpy(), out)


@pytest.mark.parametrize("name", NAMES)
def test_pack_undoes_unpack(name):
    raw = torch.from_numpy(random_bytes(FORMATS[name], seed=3))
    assert torch.equal(FORMATS[name].pack(*FORMATS[name].unpack(raw)), raw)


@pytest.mark.parametrize("name", [n for n in WITH_REFERENCE if FORMATS[n].block > 1])
def test_reference_is_byte_equal_to_gguf_and_libggml(name, libggml):
    grid = FORMATS[name]
    w = hard_blocks(grid, huge=1e30)
    with np.errstate(all="ignore"):
        theirs = quants.quantize(w.numpy(), GGMLQuantizationType(grid.ggml_type)).reshape(len(w), grid.bytes)
    ours = grid.reference(w).numpy()
    out = np.empty((len(w), grid.bytes), np.uint8)
    row = getattr(libggml, f"quantize_row_{name}_ref")
    array = np.ascontiguousarray(w.numpy())
    row(array.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(w.numel()))
    assert (ours == out).all()
    assert (ours == theirs).all()


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_encoded_survives_the_file(name):
    grid = FORMATS[name]
    w = hard_blocks(grid)
    scales = grid.fit(w)
    codes = grid.encode(w, scales)
    decoded = grid.decode(codes, scales)
    assert torch.isfinite(decoded).all()
    again_codes, again_scales = grid.unpack(grid.pack(codes, scales))
    assert same_bits(grid.decode(again_codes, again_scales).numpy(), decoded.numpy())


@pytest.mark.parametrize("name", [n for n in TRAINED if FORMATS[n].block > 1])
def test_encode_is_idempotent_on_its_own_grid(name):
    """Training decodes and encodes again each step: a weight that did not move must not drift."""
    grid = FORMATS[name]
    w = hard_blocks(grid, huge=10.0)
    scales = grid.fit(w)
    decoded = grid.decode(grid.encode(w, scales), scales)
    assert torch.equal(grid.decode(grid.encode(decoded, scales), scales), decoded)


@pytest.mark.parametrize("name", ["q4_0", "q5_0"])
def test_fit_is_at_least_as_close_as_ggml_block_by_block(name):
    grid = FORMATS[name]
    w = torch.randn(4096, grid.block, generator=torch.Generator().manual_seed(5)) * 0.1
    scales = grid.fit(w)
    ours = (grid.decode(grid.encode(w, scales), scales) - w).square().sum(1)
    theirs = (grid.dequantize(grid.reference(w), tuple(w.shape)) - w).square().sum(1)
    assert (ours <= theirs * (1 + 1e-5)).all()
    assert ours.sum() < 0.95 * theirs.sum()


def test_importance_moves_the_error_to_where_it_matters_less():
    grid = FORMATS["q4_0"]
    g = torch.Generator().manual_seed(6)
    w, importance = torch.randn(2048, 32, generator=g), torch.rand(2048, 32, generator=g) ** 4

    def error(scales):
        return ((grid.decode(grid.encode(w, scales), scales) - w).square() * importance).sum()

    assert error(grid.fit(w, importance)) < error(grid.fit(w))


@settings(max_examples=60, deadline=None)
@given(st.floats(min_value=-30, max_value=5), st.integers(0, 2**31))
def test_portable_scales_are_exact_in_bfloat16(exponent, seed):
    grid = FORMATS["q4_0_portable"]
    w = torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    d = grid.fit(w)["d"]
    assert (d >= 0).all() and torch.isfinite(d).all()
    assert torch.equal(d.to(torch.bfloat16).to(torch.float16), d)


def test_non_finite_weights_are_refused_by_name():
    with pytest.raises(FormatError, match=r"layers\.0\.weight.*NaN or infinite"):
        FORMATS["q4_0"].to_blocks(torch.tensor([[1.0, float("nan")] * 16]), "layers.0.weight")


def test_rows_that_no_block_divides_are_refused():
    with pytest.raises(FormatError, match="rows of 48"):
        FORMATS["q4_0"].to_blocks(torch.zeros(2, 48), "w")
