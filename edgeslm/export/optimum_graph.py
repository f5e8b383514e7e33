"""Lets optimum's exporter trace the graph of a model, run as a program in the environment of `optimum_venv`.

    python -P optimum_graph.py FOLDER OUT

FOLDER has config.json; OUT gets model.onnx (inputs, outputs and names are optimum's), whose weights are random numbers:
`optimum.py` puts the student's own in their places, so no trained number passes through a tracer or a tool.
Weights are made different from each other, for the tracer keeps only one of two that are equal. Constants are not
folded: folding would turn matrices and take their names away.
"""

from __future__ import annotations

import sys
from pathlib import Path


def build(folder: Path, out: Path) -> None:
    """Raises whatever the exporter raises; the caller reads it from the program's last line."""
    import torch
    from optimum.exporters.onnx import onnx_export_from_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # a tied head is the embedding and comes once
        parameter.data.normal_(generator=generator)
    onnx_export_from_model(
        model,
        out,
        task="text-generation-with-past",
        do_validation=False,
        do_constant_folding=False,
        no_post_process=True,
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
