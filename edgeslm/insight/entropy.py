"""How much of every input token a layer keeps: the entropy of all inputs that the layer cannot tell from this one.

Cheng, Rao, Chen, Zhang, "Explaining Knowledge Distillation by Quantifying the Knowledge" (arXiv:2003.03622), with the
loss of Guan et al. 2019 (PMLR 97): noise of its own standard deviation sigma_i is put on every input unit, as large as
the layer bears, and H_i = log sigma_i + 1/2 log(2 pi e). Low entropy: the layer keeps that unit; high: it discards it.
The sigmas are found by descent on

    loss = - sum_i log sigma_i + T / (2 tolerance) * E ||f(x + noise) - f(x)||^2 / var f

What is ours, because the input is text:

- the unit is a token, and the noise goes on its embedding (one sigma for all D values of it, as the paper takes one for
  a patch of pixels): a token itself cannot be moved a little;
- embeddings of different models have different norms, where pixels have one scale: sigma is given as a share of the
  root mean square of the text's own embeddings about their mean, model by model, and H is per value of the embedding;
- f is the state after a layer divided by its root mean square at each position, which is what the next layer's norm
  reads; without it the few positions with huge states (the first token's) would be all that counts;
- var f is the variance of f over the positions of the window, so that `tolerance` is the share of it that may be lost.
  The paper divides by what an infinitesimal noise does, which takes the layer's own sensitivity out of the figure;
- the weight of the second term is fixed (the authors' code takes the sigmas whose mean entropy is a given value), so
  layers and models are compared at an equal loss: where f is linear in each token, every token takes tolerance / T of
  it and sigma_i^2 = tolerance * var f / ||df/dx_i||^2 (the tests' oracle);
- sigma / scale is held between e^-FLOOR and e^CEILING: what a layer does not read at all has no largest noise.

Shapes: B windows, T tokens, D values of an embedding, F of a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeslm.models.blocks import reading

Features = Callable[[Tensor], Tensor]  # [B, T, D] -> [B, T, F]
GAUSS = 0.5 * math.log(2 * math.pi * math.e)  # entropy of a standard normal value, nats
FLOOR, CEILING = 7.0, 3.0  # nats
LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Descent:
    """`tolerance`: share of a state's variance that noise may cost. `lr` falls to a tenth of itself over `steps`; the
    second half of the steps is averaged."""

    tolerance: float = 0.03
    steps: int = 40
    lr: float = 0.25
    seed: int = 0


def token_entropies(
    f: Features, x: Tensor, scale: float, how: Descent, tick: Callable[[], None] | None = None
) -> Tensor:
    """H [B, T] in nats for every value of an embedding, relative to `scale`, for windows x [B, T, D]. The noise depends
    on the seed and the shape alone, so models of one width meet the same. `tick` is called after each step."""
    noise = torch.Generator(x.device).manual_seed(how.seed)
    with torch.no_grad():
        clean = f(x)
        variance = (clean - clean.mean(1, keepdim=True)).square().mean((1, 2)).clamp_min(LEAST_VARIANCE)  # [B]
    start = 0.5 * math.log(how.tolerance)  # what a layer that copies its input would end with
    log_sigma = torch.full(x.shape[:2], start, device=x.device, requires_grad=True)  # relative to scale
    optimiser = torch.optim.Adam([log_sigma], lr=how.lr, betas=(0.8, 0.95))
    weight = x.shape[1] / (2 * how.tolerance)
    kept = torch.zeros_like(log_sigma)
    for step in range(how.steps):
        optimiser.param_groups[0]["lr"] = how.lr * (1 - 0.9 * step / how.steps)
        sigma = scale * log_sigma.exp()
        moved = f(x + sigma[..., None] * torch.randn(x.shape, generator=noise, device=x.device))
        lost = (moved - clean).square().mean((1, 2)) / variance  # [B]
        (weight * lost.sum() - log_sigma.sum()).backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            log_sigma.clamp_(-FLOOR, CEILING)
            if 2 * step >= how.steps:
                kept += log_sigma
        if tick is not None:
            tick()
    return kept / (how.steps - (how.steps + 1) // 2) + GAUSS


def model_entropies(
    model: Any, ids: Tensor, layer: int, how: Descent, tick: Callable[[], None] | None = None
) -> Tensor:
    """H [B, T] of a causal language model whose parameters need no gradient, after `layer` (0: the embedding itself).
    The first position is not moved: whatever it says, others attend to it as a place to rest. Its H is no figure."""
    with torch.no_grad():
        x = model.get_input_embeddings()(ids)
        scale = float((x - x.mean((0, 1))).square().mean().sqrt())

    def f(moved: Tensor) -> Tensor:
        with reading(model, {layer: frozenset({"hidden"})}) as found:
            model.base_model(inputs_embeds=torch.cat([x[:, :1], moved[:, 1:]], 1), use_cache=False)
        hidden = found[layer].hidden
        assert hidden is not None  # asked for above
        return hidden * (hidden.square().mean(-1, keepdim=True) + LEAST_VARIANCE).rsqrt()

    return token_entropies(f, x, scale, how, tick)
