"""onnxruntime's n-bit grids: laws of every width, block and kind of zero. Bitwise agreement with the operators
themselves is in test_containers.py."""

from __future__ import annotations

import pytest
import torch
from test_formats import hard_blocks

from edgeslm.formats import FORMATS
from edgeslm.formats.nbits import BITS, BLOCKS, NBITS

SYMMETRIC = [n for n in NBITS if "a" not in n]


def samples(block: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    normal = torch.randn(1 << 14, generator=g)
    heavy = normal * torch.randn(1 << 14, generator=g).abs() ** 1.5
    return {"normal": normal.reshape(-1, block), "heavy": heavy.reshape(-1, block)}


def round_to_nearest(w: torch.Tensor, bits: int, asymmetric: bool) -> torch.Tensor:
    """What onnxruntime's own quantiser does: the range of the block, no search."""
    most, middle = (1 << bits) - 1, 1 << (bits - 1)
    if asymmetric:
        low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
        d = (high - low) / most
        zero = torch.round(-low / d)
        return ((torch.round(w / d) + zero).clamp(0, most) - zero) * d
    d = w.gather(1, w.abs().argmax(1, keepdim=True)) / -middle
    return torch.round(w / d).clamp(-middle, middle - 1) * d


def test_the_table_has_every_width_block_and_kind():
    assert list(NBITS) == [f"n{b}{a}_b{k}" for a in ("", "a") for b in BITS for k in BLOCKS]
    assert all(FORMATS[n] is f and f.name == n and f.ggml_type is None for n, f in NBITS.items())
    assert (NBITS["n4_b32"].bits, NBITS["n4a_b32"].bytes, NBITS["n2_b256"].bits) == (5.0, 21, 2.125)


@pytest.mark.parametrize("name", NBITS)
def test_fit_beats_the_range_of_the_block(name: str) -> None:
    grid = NBITS[name]
    for kind, w in samples(grid.block).items():
        scales = grid.fit(w)
        ours = (grid.decode(grid.encode(w, scales), scales) - w).square().sum()
        theirs = (round_to_nearest(w, int(name[1]), "a" in name) - w).square().sum()
        assert ours < theirs, (kind, float(ours / theirs))


@pytest.mark.parametrize("name", NBITS)
def test_importance_counts(name: str) -> None:
    grid = NBITS[name]
    w = samples(grid.block)["heavy"]
    importance = torch.rand(w.shape, generator=torch.Generator().manual_seed(3)) ** 4

    def error(scales):
        return ((grid.decode(grid.encode(w, scales), scales) - w).square() * importance).sum()

    assert error(grid.fit(w, importance)) < error(grid.fit(w))


@pytest.mark.parametrize("name", NBITS)
def test_hard_blocks_survive_the_file_and_do_not_drift(name: str) -> None:
    grid = NBITS[name]
    w = hard_blocks(grid, huge=1e30)
    scales = grid.fit(w)
    codes = grid.encode(w, scales)
    decoded = grid.decode(codes, scales)
    assert torch.isfinite(decoded).all()
    again, kept = grid.unpack(grid.pack(codes, scales))
    assert torch.equal(again, codes) and all(torch.equal(kept[k], v) for k, v in scales.items())
    assert torch.equal(grid.decode(grid.encode(decoded, scales), scales), decoded)


@pytest.mark.parametrize("name", NBITS)
def test_every_byte_is_a_code_and_comes_back(name: str) -> None:
    grid = NBITS[name]
    raw = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, grid.bytes).contiguous()
    codes, scales = grid.unpack(raw)
    assert set(codes.unique().tolist()) == set(range(1 << int(name[1])))
    assert torch.equal(grid.pack(codes, scales), raw)


@pytest.mark.parametrize("name", NBITS)
def test_scales_can_be_taken_apart_and_put_back(name: str) -> None:
    grid = NBITS[name]
    w = samples(grid.block)["normal"]
    scales = grid.fit(w)
    step, minimum = grid.spread(scales)
    again = grid.gather(step, minimum, scales)
    assert all(torch.equal(again[k], v) for k, v in scales.items())
    codes = grid.encode(w, scales)
    parts = grid.levels(codes) * step - (0 if minimum is None else minimum)
    decoded = grid.decode(codes, scales)
    if name in SYMMETRIC:
        assert minimum is None and torch.equal(parts, decoded)
    else:  # the operator multiplies once, (q - z) d; the parts are rounded apart
        assert torch.allclose(parts, decoded, rtol=0, atol=float(step.max()) * 2.0**-14)


def test_scales_too_small_to_divide_by_are_zero():
    grid = NBITS["n4_b16"]
    w = torch.full((1, 16), 2.0**-130)
    assert grid.fit(w)["d"] == 0 and grid.encode(w, grid.fit(w)).unique().tolist() == [8]
