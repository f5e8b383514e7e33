"""A 7B teacher and a 1.5B student in hub layout for `benchmarks.memory_plan`: Qwen2.5's shapes with random weights,
which take the memory that the real ones take."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

QWEN = {"max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6}
SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064, "tie_word_embeddings": False, **QWEN,
    },
    "1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936, "tie_word_embeddings": True, **QWEN,
    },
}  # fmt: skip
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def made(folder: Path, tokenizer: Path) -> dict[str, Path]:
    """{"7b", "1.5b": its folder}, bfloat16, with the tokenizer of another folder in hub layout. 18 GB."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    found = {}
    for name, shape in SHAPES.items():
        found[name] = folder / f"qwen2.5-{name}-random"
        torch.manual_seed(0)
        with torch.device("cuda"):
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **shape, dtype="bfloat16"))
        model.to(torch.bfloat16).save_pretrained(found[name])
        del model
        torch.cuda.empty_cache()
        for file in TOKENIZER:
            if (tokenizer / file).exists():
                shutil.copy(tokenizer / file, found[name])
    return found
