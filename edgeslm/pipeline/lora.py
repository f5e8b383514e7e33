"""Adapters of low rank around a student while it is fine-tuned (the recipe's `sft.lora`): made by peft, trained by the
step like any other weight, written as peft lays them out, and merged as any adapter folder is (edgeslm.models.adapter).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeslm.errors import RecipeError

IN_BLOCK = re.compile(r"\.(layers|layer|h)\.\d+\.")
INSTALL = "sft.lora: peft is not installed; pip install 'edgeslm[lora]'"


def installed() -> bool:
    try:
        return bool(version("peft"))
    except PackageNotFoundError:
        return False


def targets(part: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Ends of the names of the linear layers that get an adapter, from a student's {parameter: shape}. Raises
    RecipeError for a target that no layer is called."""
    known = sorted({name.split(".")[-2] for name, shape in shapes.items() if len(shape) == 2 and IN_BLOCK.search(name)})
    if part.targets is None:
        return known
    found = {target: {target, f"{target}_proj"}.intersection(known) for target in part.targets}
    unknown = [target for target, names in found.items() if not names]
    if unknown:
        raise RecipeError([f"sft.lora.targets: no linear layer is called '{unknown[0]}'; there are {', '.join(known)}"])
    return sorted(set().union(*found.values()))


def parameters(part: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """(matrices that get an adapter, weights of the adapters)."""
    ends = targets(part, shapes)
    adapted = [s for n, s in shapes.items() if len(s) == 2 and IN_BLOCK.search(n) and n.split(".")[-2] in ends]
    return len(adapted), sum(part.rank * sum(shape) for shape in adapted)


def adapt(student: Any, part: Any) -> Any:
    """Puts adapters into `student`, in place, and freezes all else; what peft made is returned. They start from the
    seed that torch was given last, and change nothing yet."""
    from peft import LoraConfig, get_peft_model

    shapes = {name: tuple(p.shape) for name, p in student.named_parameters()}
    config = LoraConfig(
        r=part.rank,
        lora_alpha=part.alpha,
        lora_dropout=part.dropout,
        target_modules=targets(part, shapes),
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(student, config)
    for name, module in student.named_modules():
        module.training = "lora_dropout" in name  # the student itself is in evaluation mode, as in every training here
    return adapted


def write(adapted: Any, masters: Any, folder: Path, base: str) -> None:
    """The adapter in float32, in peft's layout; `base`: the model it belongs to, seen from the folder."""
    for master in masters.items:
        master.weight.data = master.value.data
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base, "target_modules": sorted(config["target_modules"])}  # a set in peft
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
