"""config.json and tokenizer files that transformers 4, transformers 5 and transformers.js all read alike.

transformers 5 keeps rotary positions in `rope_parameters` and names its tokenizers' classes anew; the older one, which
optimum stands on, reads `rope_theta`, `rope_scaling` and `PreTrainedTokenizerFast` (tokenizer.json as it is), and falls
back to its defaults where they are missing. transformers.js reads the chat template in tokenizer_config.json only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

DROPPED = ("_name_or_path", "quantization_config", "transformers_version", "id2label", "label2id")
ELSEWHERE = ("rope_theta", "partial_rotary_factor")  # keys of `rope_parameters` with places of their own
OWN_HEAD_SIZE = ("gemma3_text",)  # families whose `head_dim` ORTModelForCausalLM 0.1.0 reads
UNGROUPED = ("phi3",)  # families whose `num_key_value_heads` it does not read
FULL, SLIDING = "full_attention", "sliding_attention"


def config_for_all(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says, in the older words beside the newer ones."""
    kept = {k: v for k, v in config.items() if k not in DROPPED}
    kept |= {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]], "dtype": "float32"}
    rope = config.get("rope_parameters")
    if not rope:
        return kept
    if SLIDING in rope:  # Gemma: layers of two kinds
        kept["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
        rope = rope[FULL]
    kept["rope_theta"] = rope["rope_theta"]
    if rope.get("partial_rotary_factor") is not None:
        kept["partial_rotary_factor"] = rope["partial_rotary_factor"]
    scaling = {k: v for k, v in rope.items() if k not in ELSEWHERE}
    kept["rope_scaling"] = scaling if scaling.get("rope_type", "default") != "default" else None
    return kept


def tokenizer_for_all(source: Path, folder: Path) -> None:
    """Copies a tokenizer in transformers' layout, its config in words that all three read."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    told.pop("backend", None)
    told["tokenizer_class"] = "PreTrainedTokenizerFast"
    told["model_input_names"] = ["input_ids", "attention_mask"]  # the older one gives token types too, unasked
    if isinstance(more := told.pop("extra_special_tokens", None), list):
        told["additional_special_tokens"] = [*told.get("additional_special_tokens", []), *more]
    elif more:
        told["extra_special_tokens"] = more
    if template.is_file():
        told["chat_template"] = template.read_text(encoding="utf-8")
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def files_note(config: Mapping[str, Any]) -> str:
    """What a card says of the folder."""
    told = (
        "`onnx/model.onnx` with `onnx/model.onnx_data` is a graph of optimum's exporter that holds the trained codes; "
        "it computes in float32, and that is all its name says. `ORTModelForCausalLM.from_pretrained(FOLDER)` and "
        "transformers.js's `pipeline('text-generation', FOLDER)` find it there. In a browser without WebGPU let "
        "`env.backends.onnx.wasm.wasmPaths` name `ort-wasm-simd-threaded.mjs` and `.wasm` of onnxruntime-web: what "
        "transformers.js 4.3 takes by itself has no lookup in a low-bit table on the CPU."
    )
    reason = not_for_ort(config)
    return told + (f" `ORTModelForCausalLM` of optimum-onnx 0.1.0 cannot run it: {reason}." if reason else "")


def not_for_ort(config: Mapping[str, Any]) -> str | None:
    """Why ORTModelForCausalLM 0.1.0, which works the cache's shape out by itself, makes one that the graph refuses."""
    heads = config["num_attention_heads"]
    each, groups = config["hidden_size"] // heads, config.get("num_key_value_heads") or heads
    if config["model_type"] not in OWN_HEAD_SIZE and (config.get("head_dim") or each) != each:
        return f"that version takes a head for {each} wide, and these are {config['head_dim']}"
    if config["model_type"] in UNGROUPED and groups != heads:
        return f"that version takes {heads} heads for keys and values in this family, and there are {groups}"
    return None
