"""K and legacy grids: the laws of base.py on them, code points and fits against libggml."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from edgeslm.formats import FORMATS
from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.runtimes import libggml

# levels, sub-block, largest sc, largest m
K = {"q2_k": (4, 16, 15, 15), "q3_k": (8, 16, 31, 0), "q4_k": (16, 32, 63, 63), "q5_k": (32, 32, 63, 63)}
K |= {"q6_k": (64, 16, 127, 0)}
LEGACY = ["q4_0", "q4_0_portable", "q4_1", "q5_0", "q5_1", "q8_0"]
ALL = [*K, *LEGACY]
LOWEST = {"q3_k": -32, "q6_k": -128}  # smallest sc, 0 elsewhere
# squared error of our fit over that of ggml's quantiser: (normal weights, heavy tails), then with importance
WORST = {
    "q2_k": (0.77, 0.71, 0.86, 0.80),
    "q3_k": (0.92, 0.92, 0.92, 0.90),
    "q4_k": (0.96, 0.95, 0.90, 0.86),
    "q5_k": (0.90, 0.90, 0.84, 0.80),
    "q6_k": (0.89, 0.90, 0.81, 0.83),
    "q4_0": (0.91, 0.94, 0.93, 0.90),
    "q4_0_portable": (1.03, 1.07, 1.03, 1.00),  # ggml's q4_0 may use scales that this format cannot hold
    "q4_1": (0.80, 0.81, 0.92, 0.91),
    "q5_0": (0.91, 0.95, 0.92, 0.90),
    "q5_1": (0.79, 0.81, 0.94, 0.93),
    "q8_0": (0.85, 0.89, 0.60, 0.70),
}


@pytest.fixture(scope="module")
def ggml() -> ModuleType:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: python -m edgeslm.runtimes.native")
    return libggml


def weights(kind: str, seed: int = 7, count: int = 1 << 17) -> torch.Tensor:
    """[rows, 1024]; "heavy" has Student's t tails with four degrees of freedom."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(count, generator=g) * 0.02
    if kind == "heavy":
        w /= torch.randn(4, count, generator=g).square_().mean(0).sqrt_()
    return w.reshape(-1, 1024)


def channels() -> torch.Tensor:
    """Importance of 1024 input channels, as spiky as squared activations are."""
    return torch.randn(1024, generator=torch.Generator().manual_seed(8)).mul_(1.5).exp_()


def hard_blocks(k: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(k, generator=g)
    one_loud_sub_block = torch.where(torch.arange(k) < 16, noise * 1e3, noise * 1e-3)
    blocks = [noise * size for size in (0.05, 1e-6, 2e-8, 1e-30, 1e-42, 10.0, 1e4, 1e7, 1e30, 3e37)]
    blocks += [torch.full((k,), value) for value in (0.0, 0.3, -0.3, 1e-7, -6e4)]
    blocks += [noise.abs(), -noise.abs(), noise.abs() + 5, -noise.abs() - 5, noise * 1e-6 - 1]
    blocks += [torch.eye(k)[0] * 2.5, -torch.eye(k)[-1], torch.where(torch.arange(k) % 2 == 0, 1.0, -1.0)]
    return torch.stack([*blocks, one_loud_sub_block])


def random_scales(grid: BlockFormat, seed: int = 2) -> tuple[torch.Tensor, Scales]:
    """Codes and finite scales from random bytes; a few scales of scales are 0."""
    raw = np.random.default_rng(seed).integers(0, 256, (2048, grid.bytes), dtype=np.uint8)
    codes, scales = grid.unpack(torch.from_numpy(raw))
    finite = torch.stack([torch.isfinite(x.float()).all(1) for x in scales.values()]).all(0)
    codes, scales = codes[finite], {key: x[finite].clone() for key, x in scales.items()}
    for key in scales.keys() & {"d", "dmin", "m"}:
        scales[key][:: 7 if key == "d" else 5] = 0
    return codes, scales


def rounded(grid: BlockFormat, w: torch.Tensor, scales: Scales) -> torch.Tensor:
    return grid.decode(grid.encode(w, scales), scales)


def same_scales(a: Scales, b: Scales) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def test_every_one_can_be_trained():
    for name in ALL:
        grid = FORMATS[name]
        assert all((grid.fit, grid.encode, grid.levels, grid.spread, grid.gather)), name
    assert {name for name in FORMATS if name.endswith("_k")} == set(K)
    assert set(WORST) == set(ALL)


@pytest.mark.parametrize("name", K)
def test_every_scale_minimum_and_code_decodes_as_in_libggml(name, ggml):
    """All (sc, m) with all codes, packed by us and read by ggml."""
    grid, (count, size, top, deepest) = FORMATS[name], K[name]
    pairs = torch.cartesian_prod(torch.arange(LOWEST.get(name, 0), top + 1), torch.arange(deepest + 1))
    turns = -(-count // size)
    sc, m = (pairs[:, i].repeat_interleave(turns).reshape(-1, 256 // size) for i in (0, 1))
    codes = (torch.arange(size) + size * torch.arange(turns)[:, None]).remainder(count)
    codes = codes.repeat(len(pairs), 1).reshape(-1, 256).to(torch.uint8)
    assert len(codes) == len(sc) and len(codes.unique()) == count
    d = torch.linspace(-0.02, 0.05, len(sc))[:, None].to(torch.float16)
    scales = {"d": d, "sc": sc.to(torch.int8 if name in LOWEST else torch.uint8)}
    if deepest:
        scales |= {"dmin": (d.flip(0) * 3).to(torch.float16), "m": m.to(torch.uint8)}
    theirs = ggml.dequantize(grid.ggml_type, grid.pack(codes, scales).numpy(), 256)
    assert (grid.decode(codes, scales).numpy().view(np.int32) == theirs.view(np.int32)).all()


@pytest.mark.parametrize("name", K)
def test_every_float16_scale_decodes_as_in_libggml(name, ggml):
    grid = FORMATS[name]
    every = torch.arange(0, 1 << 16, 5, dtype=torch.int32).to(torch.int16).view(torch.float16)[:, None]
    raw = np.random.default_rng(3).integers(0, 256, (len(every), grid.bytes), dtype=np.uint8)
    codes, scales = grid.unpack(torch.from_numpy(raw))
    scales |= {"d": every} | ({"dmin": every.roll(1, 0)} if "dmin" in scales else {})
    ours, theirs = (
        grid.decode(codes, scales).numpy(),
        ggml.dequantize(grid.ggml_type, grid.pack(codes, scales).numpy(), 256),
    )
    nan = np.isnan(theirs)
    assert (nan == np.isnan(ours)).all() and (ours.view(np.int32)[~nan] == theirs.view(np.int32)[~nan]).all()


@pytest.mark.parametrize("name", ALL)
def test_decode_is_levels_times_step_less_minimum(name):
    grid = FORMATS[name]
    codes, scales = random_scales(grid)
    step, minimum = grid.spread(scales)
    levels = grid.levels(codes).reshape(*step.shape, -1)
    assert levels.dtype == step.dtype == torch.float32
    decoded = levels * step[:, :, None]
    if minimum is not None:
        decoded = decoded - minimum[:, :, None]
    assert torch.equal(decoded.reshape(codes.shape).view(torch.int32), grid.decode(codes, scales).view(torch.int32))
    assert (minimum is not None) == (name in ("q2_k", "q4_k", "q5_k", "q4_1", "q5_1"))


@pytest.mark.parametrize("name", ALL)
def test_gather_undoes_spread(name):
    grid = FORMATS[name]
    fitted = grid.fit(weights("heavy").reshape(-1, grid.block))
    for scales in (fitted, *([] if name == "q4_0_portable" else [random_scales(grid)[1]])):
        assert same_scales(grid.gather(*grid.spread(scales), scales), scales)


@pytest.mark.parametrize("name", ALL)
def test_gather_rounds_to_the_nearest_that_the_file_can_hold(name):
    grid = FORMATS[name]
    scales = grid.fit(weights("normal").reshape(-1, grid.block))
    step, minimum = grid.spread(scales)
    wanted = step * 1.037, None if minimum is None else minimum * 0.963
    got = grid.gather(*wanted, scales)
    if name in K:
        assert torch.equal(got["d"], scales["d"])
    for want, have, unit, most in zip(wanted, grid.spread(got), ("d", "dmin"), K.get(name, (0,) * 4)[2:], strict=True):
        if want is None:
            continue
        per_unit = scales[unit].float().abs() if name in K else want.abs() * 2.0 ** (-7 if "portable" in name else -10)
        reach = scales[unit].float().abs() * most if name in K else torch.tensor(torch.inf)
        assert ((have - want).abs() <= per_unit * 0.5001)[want.abs() <= reach].all()
    assert not same_scales(got, scales)
    far = grid.gather(step * 1e6, None if minimum is None else minimum * 1e6, scales)
    assert all(torch.isfinite(x.float()).all() for x in far.values())
    if name in K:
        at_the_end = (far["sc"] == K[name][2]) | (far["sc"] == LOWEST.get(name, 0))
        assert (at_the_end | (step == 0)).all()


@pytest.mark.parametrize("name", ALL)
def test_encode_finds_the_nearest_level(name):
    grid = FORMATS[name]
    w = weights("heavy").reshape(-1, grid.block)[:128]
    scales = grid.fit(w)
    kind = torch.int8 if name == "q8_0" else torch.uint8
    count = {"q8_0": 255}.get(name) or (K[name][0] if name in K else 2 ** int(name[1]))
    start = -127 if name == "q8_0" else 0
    every = [torch.full(w.shape, code, dtype=kind) for code in range(start, start + count)]
    least = torch.stack([(grid.decode(codes, scales) - w).abs() for codes in every]).amin(0)
    assert ((rounded(grid, w, scales) - w).abs() <= least + 1e-7).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("matters", ["equally", "never", "here and there"])
def test_degenerate_blocks_stay_finite_and_are_no_worse_than_zeros(name, matters):
    grid = FORMATS[name]
    w = hard_blocks(grid.block)
    u = None if matters == "equally" else torch.zeros_like(w)
    if u is not None and matters != "never":
        u[:, grid.block // 2 :: 3] = 1e-12
    kept = w.clone(), None if u is None else u.clone()
    scales = grid.fit(w, u)
    decoded = rounded(grid, w, scales)
    assert torch.equal(w, kept[0]) and (u is None or torch.equal(u, kept[1])), "fit or encode wrote into its arguments"
    assert torch.isfinite(decoded).all() and all(torch.isfinite(x.float()).all() for x in scales.values())
    # weights that never matter count for a millionth of the average
    judge = torch.ones_like(w) if u is None or matters == "never" else (u / u.mean()).clamp_(min=1e-6)
    error, zeros = (((x - w).double().square() * judge).sum(1) for x in (decoded, torch.zeros_like(w)))
    assert not (error > zeros * (1 + 1e-6)).nonzero().reshape(-1).tolist()
    again = rounded(grid, decoded, scales)
    assert torch.equal(again, decoded)


@pytest.mark.parametrize("name", ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"])
def test_weights_below_what_float16_times_integers_can_tell_still_get_a_grid(name):
    """The step of such weights, divided by the largest integer, is 0 in float16."""
    grid = FORMATS[name]
    w = weights("normal").reshape(-1, 256)[:64] * (5e-6 if name in ("q2_k", "q3_k") else 5e-5)
    error = (rounded(grid, w, grid.fit(w)) - w).square().sum() / w.square().sum()
    assert 0.0 < error < 0.25


@pytest.mark.parametrize("name", K)
def test_the_fit_of_a_block_depends_on_that_block_alone_and_on_no_unit(name):
    grid, w = FORMATS[name], weights("heavy").reshape(-1, 256)[:192] * 50  # float16 keeps all bits of such `d`
    whole = grid.fit(w)
    halves = grid.fit(w[:64]), grid.fit(w[64:])
    assert same_scales(whole, {key: torch.cat([half[key] for half in halves]) for key in whole})
    larger, units = grid.fit(w * 16), {"d", "dmin"}
    assert all(torch.equal(larger[key], x * 16 if key in units else x) for key, x in whole.items())


@pytest.mark.parametrize("name", ALL)
def test_fit_is_closer_than_ggml(name, ggml):
    """Same importance for both; ggml bends it by the size of weights, so ours is judged by the plain product."""
    grid = FORMATS[name]
    ratios = []
    for u in (None, channels()):
        for kind in ("normal", "heavy"):
            w = weights(kind)
            judge = torch.ones_like(w) if u is None else u.expand_as(w)
            packed = ggml.quantize(grid.ggml_type, w.numpy(), None if u is None else u.numpy())
            theirs = torch.from_numpy(ggml.dequantize(grid.ggml_type, packed, 1024))
            blocks, own = w.reshape(-1, grid.block), None if u is None else judge.reshape(-1, grid.block)
            ours = rounded(grid, blocks, grid.fit(blocks, own)).reshape(w.shape)
            ratios.append((((ours - w).square() * judge).sum() / ((theirs - w).square() * judge).sum()).item())
    print(f"{name}: squared error over ggml's {[round(r, 3) for r in ratios]}")
    assert all(ratio <= most for ratio, most in zip(ratios, WORST[name], strict=True)), ratios


@pytest.mark.parametrize("name", ALL)
def test_importance_moves_the_error_to_where_it_matters_less(name):
    grid = FORMATS[name]
    w = weights("normal").reshape(-1, grid.block)[:128]
    u = channels().expand(128, -1).reshape(-1, grid.block)[: len(w)]

    def error(scales: Scales) -> torch.Tensor:
        return ((rounded(grid, w, scales) - w).square() * u).sum()

    assert error(grid.fit(w, u)) < 0.97 * error(grid.fit(w))
    assert torch.allclose(error(grid.fit(w, u)), error(grid.fit(w, u * 3e-9)), rtol=1e-3)


def test_minima_of_affine_blocks_may_lie_on_either_side():
    """K formats store no positive offset, q4_1 and q5_1 do."""
    w = weights("normal").reshape(-1, 32) + 1.0
    scales = FORMATS["q4_1"].fit(w)
    assert (scales["m"] > 0.5).all()
    assert (rounded(FORMATS["q4_1"], w, scales) - w).square().mean().sqrt() < 0.002
