"""transformers keeps GPT-2's matrices turned, [inputs, outputs]. Grids, files and everything else here want rows of
inputs, so a model is given plain linear layers when it is made, and hub folders get the turned matrices back.

Legend: N outputs, K inputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def straighten(model: Any) -> Any:
    """Every Conv1D becomes a Linear [N, K] of the same name and function, in place; the model itself is returned."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, Conv1D):
            continue
        inputs, outputs = module.weight.shape
        with torch.device("meta"):
            linear = nn.Linear(inputs, outputs)
        linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), module.weight.requires_grad)
        linear.bias = module.bias
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, linear)
    return model


def save(model: Any, folder: Path) -> None:
    """A folder in hub layout, whichever way the model was made."""
    turned = turned_names(model)
    state: dict[str, Tensor] | None = None
    if turned:
        state = {n: w.T.contiguous() if n in turned else w for n, w in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)


def turned_names(model: Any) -> set[str]:
    """Weights that transformers' own class of this model holds turned."""
    with torch.device("meta"):
        own = type(model)(model.config)
    return {f"{name}.weight" for name, module in own.named_modules() if isinstance(module, Conv1D)}
