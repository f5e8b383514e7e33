"""LoRA adapters in peft's folder layout (adapter_config.json, adapter_model.safetensors); their model lies elsewhere.

Only what can be merged exactly is read: W + scale B A of linear layers (arXiv:2106.09685; rank-stabilised scale,
arXiv:2312.03732). An adapter that is more than that is refused: its maker's tool merges it. peft is not needed here,
and a test holds the merged model to peft's own.

Legend: N outputs, K inputs, r rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # before the names of the model's own modules
MERGE_IT = "merge it with peft (merge_and_unload) and give the merged folder"
# how adapters may have begun: every other start (pissa, olora, corda, loftq, ...) takes something away from the base
STARTS: tuple[object, ...] = (True, False, "gaussian", "eva", "orthogonal")
# options of peft's LoraConfig under which an adapter is more than a sum of matrices
BEYOND = ("use_dora", "use_qalora", "lora_bias", "layer_replication", "target_parameters", "alora_invocation_tokens")


@dataclass(frozen=True)
class Adapter:
    """`shapes` {module: (N, r, K)}, `scales` {module: what B A is multiplied with}. `base`: the model that it was
    trained on, as its config names it."""

    base: str | None
    shapes: Mapping[str, tuple[int, int, int]]
    scales: Mapping[str, float]

    @property
    def parameters(self) -> int:
        return sum(r * (n + k) for n, r, k in self.shapes.values())


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (path / CONFIG).is_file() and not any(path.glob("model*.safetensors"))


def config_of(path: Path) -> dict[str, Any]:
    """Raises ModelError."""
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {CONFIG} cannot be used ({error}); fetch the folder again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: {CONFIG} holds no JSON object; fetch the folder again")
    return config


def read(path: Path) -> Adapter:
    """From the config and the header of the weights. Raises ModelError for what cannot be merged."""
    from safetensors import SafetensorError, safe_open

    config = config_of(path)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: is an adapter of type {config.get('peft_type')}, not LORA; {MERGE_IT}")
    more = [key for key in BEYOND if config.get(key)] + ["bias"] * (config.get("bias", "none") != "none")
    if more:
        raise ModelError(f"{path}: has {more[0]}: {config[more[0]]}, so that it is no plain LoRA; {MERGE_IT}")
    if (start := config.get("init_lora_weights", True)) not in STARTS:
        raise ModelError(
            f"{path}: began with init_lora_weights: {start}, which changes the base too; save it again with peft's "
            "path_initial_model_for_weight_conversion, or merge it there and give the merged folder"
        )
    if not (path / WEIGHTS).is_file():
        pickled = (path / "adapter_model.bin").is_file()
        why = "its weights are pickled, which can run code; save them again as" if pickled else "it lacks"
        raise ModelError(f"{path}: {why} {WEIGHTS}")
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path / WEIGHTS}: is no complete safetensors file ({error}); fetch it again") from error
    pairs = _pairs(path, shapes)
    return Adapter(config.get("base_model_name_or_path"), pairs, _scales(path, config, pairs))


def _pairs(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    for name in shapes:
        module = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_[AB]\.weight", name)
        if module is None:
            raise ModelError(f"{path}: holds '{name}', which is more than LoRA on linear layers; {MERGE_IT}")
        a, b = (shapes.get(f"{PREFIX}{module[1]}.lora_{side}.weight", ()) for side in "AB")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise ModelError(f"{path}: the two matrices of '{module[1]}' do not fit ({a}, {b}); fetch the folder again")
        found[module[1]] = (b[0], a[0], a[1])
    if not found:
        raise ModelError(f"{path}: holds no adapter weights; fetch the folder again")
    return found


def _scales(path: Path, config: Mapping[str, Any], pairs: Mapping[str, tuple[int, int, int]]) -> dict[str, float]:
    """alpha / rank, or alpha / sqrt(rank); a module may have its own, by patterns of names as peft matches them."""
    own = config.get("alpha_pattern") or {}
    scales = {}
    for module, (_, rank, _) in pairs.items():
        key = next((p for p in own if re.match(rf"(.*\.)?({p})$", module)), None)
        alpha = config.get("lora_alpha") if key is None else own[key]
        if not isinstance(alpha, int | float):
            raise ModelError(f"{path}: {CONFIG} gives no lora_alpha; fetch the folder again")
        scales[module] = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return scales


def check(path: Path, shapes: Mapping[str, tuple[int, ...]], where: str) -> Adapter:
    """The adapter, against the {parameter: shape} of its base. Raises ModelError when it was made for another model."""
    adapter = read(path)
    for module, (outputs, _, inputs) in adapter.shapes.items():
        there = shapes.get(f"{module}.weight")
        if there != (outputs, inputs):
            what = "has no such matrix" if there is None else f"has {list(there)} there"
            raise ModelError(
                f"{path}: adapts '{module}' of shape [{outputs}, {inputs}], but its base {where} {what}; "
                "name the base it was trained on as BASE+ADAPTER"
            )
    return adapter


def merge(model: Any, path: Path) -> None:
    """Adds the adapter to the weights of its base, which are float32, in place. Raises ModelError."""
    import torch
    from safetensors import safe_open
    from torch import nn

    adapter = check(path, {name: tuple(p.shape) for name, p in model.named_parameters()}, type(model).__name__)
    with torch.no_grad(), safe_open(path / WEIGHTS, framework="pt") as file:
        for module, scale in adapter.scales.items():
            layer = model.get_submodule(module)
            if not isinstance(layer, nn.Linear):
                raise ModelError(f"{path}: adapts '{module}', which is no linear layer; {MERGE_IT}")
            if layer.weight is model.get_input_embeddings().weight:
                raise ModelError(f"{path}: adapts the head, which is the embedding itself here; {MERGE_IT}")
            a, b = (file.get_tensor(f"{PREFIX}{module}.lora_{side}.weight").to(layer.weight) for side in "AB")
            layer.weight += (b @ a) * scale  # [N, r] [r, K], in the order that peft computes it
