"""Text the teacher itself writes from short seeds (LLM-QAT, arXiv:2305.17888; sequence-level distillation,
Kim & Rush, arXiv:1606.07947). Needs no corpus; seed and sampling settings are recorded by the stage that calls it.

Shape letters: B sequences written together, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from edgeslm.data.chat import json_lines, template_ids
from edgeslm.errors import DataError
from edgeslm.models.forward import hidden_states
from edgeslm.models.stop import begun

Mix = Callable[[Sequence[Tensor]], Tensor]  # logits [B, V] of each author -> logits [B, V]


@dataclass(frozen=True)
class WriteSettings:
    rows: int
    max_new: int
    batch: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


def prompts_from(paths: list[Path], tokenizer) -> list[list[int]]:
    """Seed lines -> token ids. `{"prompt": ...}` becomes a chat turn that waits for its answer, `{"text": ...}` a start
    to go on from."""
    prompts: list[list[int]] = []
    for path in paths:
        for number, row in enumerate(json_lines(path), start=1):
            if isinstance(row.get("prompt"), str):
                message = [{"role": "user", "content": row["prompt"]}]
                prompts.append(template_ids(tokenizer, message, answer=True))
            elif isinstance(row.get("text"), str) and row["text"]:
                prompts.append(begun(tokenizer(row["text"], add_special_tokens=False)["input_ids"], tokenizer))
            else:
                raise DataError(f"{path}:{number}: a seed holds 'prompt' (chat) or 'text' (a start to go on from)")
    if not prompts:
        raise DataError(f"{', '.join(map(str, paths))}: no seed to start writing from; give at least one line")
    return prompts


def write(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    settings: WriteSettings,
    stop_ids: Sequence[int],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Prompts with what the model wrote after them; prompts are used in turn until `rows` are written.

    Prompts of equal length are not needed: shorter ones are padded on the left and masked.
    """
    wanted = [list(prompts[i % len(prompts)]) for i in range(settings.rows)]
    by_length = sorted(range(len(wanted)), key=lambda i: len(wanted[i]))  # little padding inside a batch
    written: dict[int, list[int]] = {}
    for at in range(0, len(wanted), settings.batch):
        chosen = by_length[at : at + settings.batch]
        generator = torch.Generator(device="cpu").manual_seed(settings.seed + at)
        texts = write_batch([model], None, [wanted[i] for i in chosen], settings, set(stop_ids), generator)
        written.update(zip(chosen, texts, strict=True))
        if on_progress:
            on_progress(len(written), len(wanted))
    return [written[i] for i in range(len(wanted))]


@torch.no_grad()
def write_batch(
    authors: Sequence[nn.Module],
    mix: Mix | None,
    prompts: list[list[int]],
    settings: WriteSettings,
    stop: set[int],
    generator: torch.Generator,
) -> list[list[int]]:
    """Prompts with what the authors wrote after them, at most `max_new` tokens and no further than a stop token.
    Several authors write each token together, from what `mix` makes of their logits."""
    device = next(authors[0].parameters()).device
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)  # [B, T]
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    caches = [DynamicCache() for _ in authors]
    texts, open_rows = [list(p) for p in prompts], list(range(len(prompts)))
    for _ in range(settings.max_new):
        given = [_next_logits(a, ids, seen, positions, c) for a, c in zip(authors, caches, strict=True)]  # [B, V] each
        logits = given[0] if mix is None else mix(given)
        chosen = sample(logits.cpu(), settings.temperature, settings.top_k, settings.top_p, generator)
        for row, token in zip(open_rows, chosen.tolist(), strict=True):
            texts[row].append(token)
        alive = [i for i, token in enumerate(chosen.tolist()) if token not in stop]
        if not alive:
            break
        if len(alive) < len(open_rows):  # finished rows leave the batch
            keep = torch.tensor(alive, device=device)
            for cache in caches:
                cache.batch_select_indices(keep)
            seen, positions, chosen = seen[keep], positions[keep], chosen[alive]
            open_rows = [open_rows[i] for i in alive]
        ids = chosen[:, None].to(device)
        seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return texts


def _next_logits(model: Any, ids: Tensor, seen: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    how = {"attention_mask": seen, "position_ids": positions, "past_key_values": cache, "use_cache": True}
    return model.get_output_embeddings()(hidden_states(model, ids, **how)[:, -1]).float()


def sample(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    """logits [B, V] -> ids [B]. Temperature 0 is greedy; top-k, then nucleus (Holtzman et al., arXiv:1904.09751)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    kept, ids = torch.topk(logits / temperature, min(top_k or logits.shape[1], logits.shape[1]), dim=-1)
    probabilities = torch.softmax(kept, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    choice = torch.multinomial(probabilities, 1, generator=generator)
    return ids.gather(1, choice)[:, 0]
