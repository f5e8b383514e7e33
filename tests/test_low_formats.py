"""Ternary, table, one- and two-bit and codebook grids against libggml, and the laws of base.py on them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from edgeslm.errors import FormatError, RuntimeFailure
from edgeslm.formats import FORMATS, codebooks
from edgeslm.formats.base import BlockFormat
from edgeslm.formats.minifloats import from_e4m3_half, from_e8m0_half, to_e4m3_half, to_e8m0_half
from edgeslm.runtimes import libggml

SCALAR = ["iq4_nl", "iq4_xs", "mxfp4", "nvfp4", "q2_0", "tq2_0", "tq1_0", "q1_0"]
BOOKS = ["iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs"]  # a code stands for eight weights
READ = ["iq1_m", "iq1_s"]
TRAINED = SCALAR + BOOKS
CODE_COUNT = {"iq4_nl": 16, "iq4_xs": 16, "mxfp4": 16, "nvfp4": 16, "q2_0": 4, "tq2_0": 3, "tq1_0": 3, "q1_0": 2}
UNIT = {"iq3_s": 1.0, "iq3_xxs": 1 / 4, "iq2_s": 1 / 8, "iq2_xs": 1 / 8, "iq2_xxs": 1 / 8}
BLOCKS = 4096


@pytest.fixture(scope="module")
def ggml() -> ModuleType:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: python -m edgeslm.runtimes.native")
    return libggml


def random_bytes(grid: BlockFormat, seed: int, blocks: int = BLOCKS) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (blocks, grid.bytes), dtype=np.uint8))


def weights(kind: str, grid: BlockFormat, weights: int = 1 << 17) -> torch.Tensor:
    """[n, k] of the size trained matrices have; "heavy" has Student's t tails with three degrees of freedom."""
    g = torch.Generator().manual_seed(7)
    w = torch.randn(weights, generator=g) * 0.05
    if kind == "heavy":
        chi = torch.randn(3, weights, generator=g).square_().mean(0)
        w /= chi.sqrt_()
    return w.reshape(-1, grid.block)


def channels(kind: str, grid: BlockFormat) -> torch.Tensor | None:
    """Importance [k]: none, smooth, or spiky as activations are."""
    u = torch.randn(grid.block, generator=torch.Generator().manual_seed(8))
    return {"none": None, "smooth": u.abs() + 0.1, "spiky": (2 * u).exp()}[kind]


def same_bits(a: torch.Tensor, b: np.ndarray) -> bool:
    """Bitwise equal floats; NaN payloads are not compared, NaN places are."""
    mine, nan = a.numpy(), np.isnan(b)
    return bool((nan == np.isnan(mine)).all() and (mine.view(np.int32)[~nan] == b.view(np.int32)[~nan]).all())


def rounded(grid: BlockFormat, w: torch.Tensor, scales: dict[str, torch.Tensor]) -> torch.Tensor:
    return grid.decode(grid.encode(w, scales), scales)  # type: ignore[misc]


def weighed(grid: BlockFormat, w: torch.Tensor, u: torch.Tensor | None) -> torch.Tensor:
    """As a weight of importance u [n, k] ships."""
    scales = grid.fit(w, u)  # type: ignore[misc]
    return grid.decode(grid.nearest(w, scales, u), scales)


def test_the_table_holds_them_and_their_verbs_are_whole(ggml):
    assert [n for n in FORMATS if n in SCALAR] == SCALAR and set(BOOKS + READ) < set(FORMATS)
    for name in TRAINED + READ:
        grid = FORMATS[name]
        assert ggml.type_facts(grid.ggml_type) == (name, grid.block, grid.bytes)
        assert grid.per_code == (1 if name in SCALAR else 8)
        verbs = (grid.fit, grid.encode, grid.levels, grid.spread, grid.gather)
        assert all(verbs) if name in TRAINED else not any(verbs)


@pytest.mark.parametrize("name", TRAINED + READ)
def test_decode_of_any_bytes_is_bit_equal_to_libggml(name, ggml):
    grid, raw = FORMATS[name], random_bytes(FORMATS[name], 1)
    codes, scales = grid.unpack(raw)
    assert same_bits(grid.decode(codes, scales), ggml.dequantize(grid.ggml_type, raw.numpy(), grid.block))
    assert same_bits(grid.dequantize(raw, (8, -1)).reshape(BLOCKS, -1), grid.decode(codes, scales).numpy())
    assert {s.shape[0] for s in scales.values()} == {BLOCKS}


@pytest.mark.parametrize("name", [n for n in TRAINED + READ if n not in ("mxfp4", "nvfp4", "iq1_m")])
def test_every_float16_scale_decodes_as_in_libggml(name, ggml):
    grid, raw = FORMATS[name], random_bytes(FORMATS[name], 2, 1 << 16)
    at = {"tq1_0": 52, "tq2_0": 64}.get(name, 0)
    raw[:, at : at + 2] = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.uint8).reshape(-1, 2)
    raw = raw[:: 1 if grid.block < 256 else 7]
    assert same_bits(grid.dequantize(raw, (len(raw), -1)), ggml.dequantize(grid.ggml_type, raw.numpy(), grid.block))


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_every_byte_scale_decodes_every_code_as_in_libggml(name, ggml):
    grid = FORMATS[name]
    scales, per = torch.arange(256, dtype=torch.uint8)[:, None], 1 if name == "mxfp4" else 4
    every = torch.arange(grid.bytes - per, dtype=torch.uint8) % 16
    raw = torch.cat([scales.expand(-1, per), (every | (every.flip(0) << 4)).expand(256, -1)], dim=1).contiguous()
    codes, _ = grid.unpack(raw)
    assert len(codes.unique()) == 16
    assert same_bits(grid.dequantize(raw, (256, -1)), ggml.dequantize(grid.ggml_type, raw.numpy(), grid.block))


@pytest.mark.parametrize("name", BOOKS + READ)
def test_one_block_alone_unpacks_as_among_others(name):
    raw = random_bytes(FORMATS[name], 6, 3)
    alone, many = FORMATS[name].unpack(raw[:1].clone()), FORMATS[name].unpack(raw)
    assert torch.equal(alone[0], many[0][:1])
    assert all(same_bits(alone[1][key].float(), value[:1].float().numpy()) for key, value in many[1].items())


@pytest.mark.parametrize("name", BOOKS + READ)
def test_random_bytes_name_every_entry_of_the_codebook(name):
    """The oracle tests above look at all of it only if this holds."""
    codes, _ = FORMATS[name].unpack(random_bytes(FORMATS[name], 1))
    entries = {"iq1": 12, "iq2_xxs": 8, "iq2_xs": 9, "iq2_s": 10, "iq3_xxs": 8, "iq3_s": 9}
    bits = entries[name[:3] if name[:3] == "iq1" else name]
    assert len((codes & ((1 << bits) - 1)).unique()) == 1 << bits
    if name[:3] != "iq1":
        assert len((codes >> codebooks.SIGNS).unique()) == (256 if name.endswith("_s") else 128)
    if name[:3] == "iq3":
        assert len(((codes >> codebooks.SECOND) & ((1 << bits) - 1)).unique()) == 1 << bits


@pytest.mark.parametrize("name", [n for n in TRAINED + READ if n != "tq1_0"])
def test_pack_undoes_unpack(name):
    raw = random_bytes(FORMATS[name], 3)
    assert torch.equal(FORMATS[name].pack(*FORMATS[name].unpack(raw)), raw)


def test_tq1_0_packs_every_five_digits_as_ggml_writes_them(ggml):
    """Every byte ggml can write comes back as it was; the 13 (in qh 175) others read as one of those."""
    grid = FORMATS["tq1_0"]
    digits = torch.cartesian_prod(*[torch.arange(-1, 2)] * 5).T.float()  # [5, 243]
    w = torch.zeros(243, 256)
    w[:, :160].view(243, 5, 32)[:] = digits.T[:, :, None]
    w[:, 160:240].view(243, 5, 16)[:] = digits.T[:, :, None]
    w[:, 240:].view(243, 4, 4)[:] = digits.T[:, :4, None]
    w[0, 0] = 1  # a block of minus ones alone is fine too, but let every block have both signs
    packed = torch.from_numpy(ggml.quantize(grid.ggml_type, w.numpy()))
    assert len(packed[:, 5].unique()) == 243 and len(packed[:, 50].unique()) == 81
    assert torch.equal(grid.pack(*grid.unpack(packed)), packed)
    raw = random_bytes(grid, 4)
    again = grid.pack(*grid.unpack(raw))
    assert not torch.equal(again, raw)
    assert same_bits(grid.dequantize(again, (BLOCKS, -1)), grid.dequantize(raw, (BLOCKS, -1)).numpy())


@pytest.mark.parametrize("name", SCALAR)
def test_encode_takes_the_nearest_level(name):
    grid, w = FORMATS[name], weights("heavy", FORMATS[name], 1 << 14)
    scales = grid.fit(w)
    every = [grid.decode(torch.full(w.shape, c, dtype=torch.uint8), scales) for c in range(CODE_COUNT[name])]
    least = torch.stack([(w - level).abs() for level in every]).amin(0)
    codes = grid.encode(w, scales)
    assert codes.dtype == torch.uint8 and codes.max() < CODE_COUNT[name]
    slack = 1e-6 * w.abs().amax(1, keepdim=True)
    assert ((w - grid.decode(codes, scales)).abs() <= least + slack).all()


@pytest.mark.parametrize("name", TRAINED)
def test_decode_is_levels_times_step_bit_for_bit(name):
    grid = FORMATS[name]
    codes, scales = grid.unpack(random_bytes(grid, 5))
    step, minimum = grid.spread(scales)
    assert minimum is None and step.dtype == torch.float32
    product = grid.levels(codes).reshape(*step.shape, -1) * step[:, :, None]
    assert same_bits(grid.decode(codes, scales), product.reshape(-1, grid.block).numpy())


@pytest.mark.parametrize("name", TRAINED)
def test_gather_keeps_steps_that_are_on_the_grid(name):
    grid, w = FORMATS[name], weights("gauss", FORMATS[name])
    scales = grid.fit(w)
    step, _ = grid.spread(scales)
    again = grid.gather(step, None, scales)
    assert again.keys() == scales.keys()
    assert all(again[key].dtype == value.dtype for key, value in scales.items())
    assert torch.equal(grid.spread(again)[0], step)


@pytest.mark.parametrize("name", TRAINED)
def test_gather_takes_the_nearest_step_the_file_can_store(name):
    grid, w = FORMATS[name], weights("gauss", FORMATS[name], 1 << 14)
    scales = grid.fit(w)
    step = grid.spread(scales)[0]
    moved = step * (0.7 + 0.6 * torch.rand(step.shape, generator=torch.Generator().manual_seed(9)))
    stored = grid.spread(grid.gather(moved, None, scales))[0]
    if name == "mxfp4":  # nearest by ratio
        assert ((stored / moved).log2().abs() <= 0.5 + 1e-6).all()
    elif name == "nvfp4":
        every = from_e4m3_half(torch.arange(127, dtype=torch.uint8))
        assert torch.equal((stored - moved).abs(), (every - moved[:, :, None]).abs().amin(2))
    elif name == "iq4_xs":
        every = scales["d"].float()[:, :, None] * torch.arange(-32, 32)
        slack = 1e-6 * moved.abs()
        assert ((stored - moved).abs() <= (every - moved[:, :, None]).abs().amin(2) + slack).all()
    elif name in BOOKS:
        every = scales["d"].float()[:, :, None] * (2 * torch.arange(16) + 1) * UNIT[name]
        slack = 1e-6 * moved.abs()
        assert ((stored - moved).abs() <= (every - moved[:, :, None]).abs().amin(2) + slack).all()
    else:
        assert torch.equal(stored, moved.to(torch.float16).float())


def test_byte_scales_come_back_and_refuse_no_step():
    bytes_ = torch.arange(255, dtype=torch.uint8)
    assert torch.equal(to_e8m0_half(from_e8m0_half(bytes_)), bytes_)
    assert torch.equal(to_e4m3_half(from_e4m3_half(bytes_[:127])), bytes_[:127])
    odd = torch.tensor([0.0, -1.0, 1e38, torch.finfo(torch.float32).max])
    assert to_e8m0_half(odd).tolist() == [0, 0, 254, 254]
    assert to_e4m3_half(odd).tolist() == [0, 0, 126, 126]


@pytest.mark.parametrize("importance", ["none", "smooth", "spiky"])
@pytest.mark.parametrize("kind", ["gauss", "heavy"])
@pytest.mark.parametrize("name", TRAINED)
def test_fit_is_closer_than_ggml(name, kind, importance, ggml):
    count = 1 << (17 if name in SCALAR else 16)
    grid, w, u = FORMATS[name], weights(kind, FORMATS[name], count), channels(importance, FORMATS[name])
    per_weight = None if u is None else u.expand(w.shape)
    ours = weighed(grid, w, per_weight)
    even = None if name in SCALAR else np.ones(grid.block, np.float32)  # what ggml's search for codebooks is best at
    packed = ggml.quantize(grid.ggml_type, w.numpy(), even if u is None else u.numpy())
    theirs = torch.from_numpy(ggml.dequantize(grid.ggml_type, packed, grid.block))
    error, their_error = (((w - x).square_() * (1.0 if u is None else u)).sum(1) for x in (ours, theirs))
    ratio = float(error.sum() / their_error.sum())
    print(f"{name} {kind} {importance}: {ratio:.4f} of ggml's squared error")
    if name == "q1_0":  # ggml's is the best scale there is where no importance is given
        assert ratio < 1 + 1e-4 if u is None else ratio < 0.998
    else:
        assert ratio < 0.97
    # candidates are finite, so ggml's may be the luckier one in a few blocks
    assert (error <= their_error * 1.001).float().mean() > 0.97
    assert (error <= their_error * (1.2 if name in SCALAR else 1.5)).all()


@pytest.mark.parametrize("name, slack", [("q2_0", 1.0005), ("tq2_0", 1.0005), ("q1_0", 1.0005), ("iq4_nl", 1.02)])
def test_fit_is_near_the_best_of_a_thousand_scales(name, slack):
    grid, w = FORMATS[name], weights("heavy", FORMATS[name], 1 << 13)
    u = channels("spiky", grid)
    least = torch.full((len(w),), torch.inf)
    largest = grid.levels(torch.arange(CODE_COUNT[name], dtype=torch.uint8)[None]).abs().max()
    for factor in torch.logspace(-2, 0.4, 500).tolist():
        for side in (-1, 1):
            d = (side * factor / largest * w.abs().amax(1, keepdim=True)).to(torch.float16)
            least = torch.minimum(least, ((w - rounded(grid, w, {"d": d})).square() * u).sum(1))
    ours = ((w - rounded(grid, w, grid.fit(w, u.expand(w.shape)))).square() * u).sum(1)
    assert ours.sum() < slack * least.sum()


@pytest.mark.parametrize("name", TRAINED)
def test_fit_with_importance_lowers_the_weighted_error(name):
    grid, w = FORMATS[name], weights("heavy", FORMATS[name])
    u = channels("spiky", grid).expand(w.shape)
    important, plain = (((w - weighed(grid, w, x)).square_() * u).sum() for x in (u, None))
    assert important < 0.99 * plain


@pytest.mark.parametrize("name", TRAINED)
def test_fit_sees_one_block_at_a_time(name):
    """Masters are fitted slice by slice; where a slice ends must not matter."""
    grid, w = FORMATS[name], weights("heavy", FORMATS[name], 3 << 16)
    u = torch.rand(w.shape, generator=torch.Generator().manual_seed(10))
    u[3] = 0
    whole, cut = grid.fit(w, u), 2 * (len(w) // 3) + 1
    parts = [grid.fit(w[:cut], u[:cut]), grid.fit(w[cut:], u[cut:])]
    assert all(torch.equal(torch.cat([p[key] for p in parts]), value) for key, value in whole.items())
    assert rounded(grid, w, whole)[3].abs().max() > 0  # a block that nothing depends on still gets a scale


@pytest.mark.parametrize("name", TRAINED)
def test_hard_blocks_are_finite_survive_the_file_and_do_not_drift(name):
    grid, g = FORMATS[name], torch.Generator().manual_seed(11)
    some = torch.randn(grid.block, generator=g)
    edge = torch.zeros(grid.block)
    edge[-1] = -2.5
    blocks = [some * 0, some * 1e-42, some * 1e-30, some * 1e-6, some * 1e4, some * 1e30, some.abs(), -some.abs(), edge]
    w = torch.stack([*blocks, torch.full_like(some, 0.3), torch.full_like(some, -0.3)])
    scales = grid.fit(w)
    decoded = rounded(grid, w, scales)
    assert torch.isfinite(decoded).all()
    again = grid.unpack(grid.pack(grid.encode(w, scales), scales))
    assert same_bits(grid.decode(*again), decoded.numpy())
    assert torch.equal(rounded(grid, decoded, scales), decoded)


@pytest.mark.parametrize("name", TRAINED)
def test_a_diverged_weight_is_no_wild_index(name):
    grid, w = FORMATS[name], weights("gauss", FORMATS[name], 1 << 12)
    scales = grid.fit(w)
    w[0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38])
    assert grid.encode(w, scales).shape == (len(w), grid.block // grid.per_code)


def test_learned_negative_scales_turn_the_signs():
    """A scale of either sign is legal in these files, and training may carry one through 0."""
    for name in ("q1_0", "q2_0", "tq2_0", "iq4_nl"):
        grid, w = FORMATS[name], weights("gauss", FORMATS[name], 1 << 12)
        scales = grid.fit(w)
        turned = rounded(grid, w, {"d": -scales["d"]})
        assert (w - turned).square().sum() < 0.7 * w.square().sum()


def test_oracle_refuses_what_would_end_the_process(ggml):
    w = np.ones((2, 256), np.float32)
    with pytest.raises(FormatError, match="no type number 4"):
        ggml.quantize(4, w)
    with pytest.raises(FormatError, match="no type number 99"):
        ggml.type_facts(99)
    with pytest.raises(FormatError, match="iq2_xxs only with importance"):
        ggml.quantize(16, w)
    with pytest.raises(FormatError, match="cannot quantise to q8_K"):
        ggml.quantize(15, w)
    with pytest.raises(FormatError, match="rows of 48 weights"):
        ggml.quantize(2, np.ones((1, 48), np.float32))
    with pytest.raises(FormatError, match="must be float32 rows"):
        ggml.quantize(2, np.ones((1, 64)))
    with pytest.raises(FormatError, match="NaN or infinite weights"):
        ggml.quantize(2, w * np.float32(np.inf))
    with pytest.raises(FormatError, match=r"one weight for each of the 256 columns"):
        ggml.quantize(2, w, np.ones(255, np.float32))
    with pytest.raises(FormatError, match="negative"):
        ggml.quantize(2, w, -np.ones(256, np.float32))
    with pytest.raises(FormatError, match="hold 64 weights, not 32"):
        ggml.dequantize(2, np.zeros((1, 36), np.uint8), 32)


@pytest.mark.parametrize("ggml_type", [0, 1, 2, 8, 14, 23, 30])
def test_oracle_reads_back_what_it_wrote(ggml_type, ggml):
    w = np.random.default_rng(12).normal(size=(3, 512)).astype(np.float32)
    data = ggml.quantize(ggml_type, w[:, ::-1], np.ones(512, np.float32))  # rows need not lie in order
    back = ggml.dequantize(ggml_type, data, 512)
    assert back.shape == w.shape
    assert np.abs(back - w[:, ::-1]).max() < (0 if ggml_type == 0 else 0.3) + 1e-9


def test_oracle_says_how_to_get_the_library(monkeypatch):
    monkeypatch.setattr(libggml.importlib.util, "find_spec", lambda name: None)
    libggml._library.cache_clear()
    with pytest.raises(RuntimeFailure, match=r"edgeslm\.runtimes\.native"):
        libggml.quantize(2, np.ones((1, 32), np.float32))
    libggml._library.cache_clear()
