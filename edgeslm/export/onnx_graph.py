"""Builds the ONNX graph of a model without its weights; run as a program of its own by `onnx.py`.

onnxruntime-genai's model builder knows how each architecture maps to onnxruntime's operators. It is given a model on
torch's meta device, which has shapes and no numbers, so nothing in the builder can round, fuse or repack a weight:
every initializer that would come from a weight is left as a hole (external data that does not exist yet) and
`onnx.py` fills the holes with our codes. No weight is copied, and the builder's time is its imports.

    python -P onnx_graph.py FOLDER OUT

FOLDER has config.json and the tokenizer files; OUT gets graph.onnx, genai_config.json and the tokenizer files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HOLE = "hole"  # external-data location of an initializer that has no data yet
GRAPH = "graph.onnx"
# Every default that would fuse, share or drop something is named: one MatMul per transformers' Linear, an embedding
# and a head of their own (the tie is made where the codes are), logits of every position for scoring.
OPTIONS = ["fuse_qkv=false", "fuse_mlp_gate_up=false", "shared_embeddings=false", "prune_lm_head=false"]


def build(folder: Path, out: Path) -> None:
    """Raises whatever the builder raises; the caller reads it from the program's last line."""
    import onnx_ir as ir
    import torch
    from onnxruntime_genai.models import builder
    from onnxruntime_genai.models.builder import Model, SmolLM3Model
    from transformers import AutoModelForCausalLM

    keep = Model.make_initializer
    biases: list[torch.nn.Parameter] = []

    def load_weights(self: Any, input_path: str) -> Any:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for module in model.modules():
            if getattr(module, "bias", None) is not None:
                # the builder looks at biases, to leave out one that is all zeros; ones keep every bias in the graph
                module.bias = torch.nn.Parameter(torch.ones(module.bias.shape), requires_grad=False)
                biases.append(module.bias)
        return model

    def make_initializer(self: Any, tensor: Any, /, name: str, **options: Any) -> None:
        weightless = isinstance(tensor, torch.Tensor) and (tensor.is_meta or any(tensor is bias for bias in biases))
        if not weightless:
            return keep(self, tensor, name, **options)
        shape = ir.Shape(tensor.shape)
        value = self.make_value(name, ir.DataType.FLOAT, shape)
        value.const_value = ir.ExternalTensor(
            HOLE, 0, 4 * tensor.numel(), ir.DataType.FLOAT, shape=shape, name=name, base_dir=out
        )
        self.model.graph.register_initializer(value)

    def save_model(self: Any, out_dir: str) -> None:
        self.model.graph.sort()
        ir.save(self.model, Path(out_dir) / GRAPH)

    def make_attention(self: Any, layer_id: int, attention: Any, root_input: Any, **kwargs: Any) -> Any:
        # the builder turns queries and keys of such a layer outside of its attention instead of not at all
        self.attention_attrs["rope"] = bool(self.no_rope_layers[layer_id])
        return attend(self, layer_id, attention, root_input, **kwargs)

    attend = SmolLM3Model.make_attention
    SmolLM3Model.make_attention = make_attention
    # The builder's own loading and saving are the only two steps that touch numbers; both are replaced.
    for name, method in (
        ("load_weights", load_weights),
        ("make_initializer", make_initializer),
        ("save_model", save_model),
    ):
        setattr(Model, name, method)
    cache = str(folder / "cache")
    options = builder.parse_extra_options("", str(folder), str(out), "fp32", "cpu", cache, OPTIONS)
    config = options["hf_details"]["hf_config"]
    builder.create_model("", str(folder), str(out), "fp32", "cpu", cache, **options)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
