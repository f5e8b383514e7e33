"""The shapes of `benchmarks.training_cost`: Llama-like, one vocabulary, heads of 64, tied embedding. Names are their
parameters with the embedding, within a twentieth."""

from __future__ import annotations

from typing import Any

VOCABULARY, HEAD, POSITIONS, THETA = 16384, 64, 4096, 10000.0
# name -> (hidden channels, layers)
SHAPES = {
    "20M": (384, 8),
    "60M": (640, 10),
    "125M": (768, 16),
    "350M": (1024, 26),
    "1B": (2048, 19),
    "2B": (2560, 25),
}
SMALL = ("20M", "60M", "125M")  # what two cores train in minutes


def config_of(name: str) -> dict[str, Any]:
    """A transformers config as plain data."""
    from edgeslm.design import families

    hidden, layers = SHAPES[name]
    special = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    wanted = families.Wanted(hidden, layers, hidden // HEAD, "llama", head_dim=HEAD)
    return families.config_of(wanted, special, True, POSITIONS, THETA)
