"""The model card of a student, in the layout of model hubs: front matter for machines, then what a person must know.

It says only what the run's records say; a figure that was not measured is not there.
"""

from __future__ import annotations

from typing import Any

from edgeslm import units
from edgeslm.export.terms import UNKNOWN, Terms

RUNTIME_BYTES = 80 << 20  # code, buffers and tokenizer of a runtime, generously
KV_BYTES = {"gguf": 2, "onnx": 4}  # of a key's or value's number: float16 in llama.cpp, float32 in our graphs


def card(manifest: dict[str, Any], terms: Terms, recipe: str = "", files: str = "", library: str = "") -> str:
    """README.md of a hub folder, MODEL_CARD.md of a bundle. `files`: what lies beside it, where that needs a word;
    `library`: what runs it, where the format does not say."""
    model, origin = manifest["model"], manifest["origin"]
    lines = [
        *_front(manifest, terms, library),
        f"# {manifest['name']}",
        "",
        f"A student of {units.count(model['parameters'])} parameters, distilled with EdgeSLM "
        f"from `{origin['base_model']}` on the number grid it ships on "
        f"({model['grid']}, {model['bits_per_weight']:.2f} bits a weight, {units.byte_count(model['bytes'])}).",
        "",
        *([terms.credit + ".", ""] if terms.credit else []),
        "## How good it is",
        "",
        *_results(origin["results"]),
        "## Where it runs",
        "",
        f"It needs about {units.byte_count(needed_bytes(manifest))} of memory at a context of "
        f"{manifest['generation']['context']} tokens (an estimate: weights, keys and values in "
        f"float{8 * KV_BYTES[model['format']]}, {units.byte_count(RUNTIME_BYTES)} for the runtime).",
        "",
        *_devices(origin["devices"]),
        "## What it learned from",
        "",
        *([f"- {item}" for item in origin["learned_from"]] or ["The run folder does not say."]),
        "",
        "## What it is not",
        "",
        "A small model is wrong often and with confidence. It inherits its teacher's faults and biases, was not made "
        "safe for any use in particular, and was judged only by what stands above.",
        *(f"\n{note}" for note in origin["notes"]),
        "",
        *(["## Files", "", files, ""] if files else []),
        "## Licence",
        "",
        _licence(terms, origin["base_model"]),
        "",
    ]
    if recipe:
        lines += ["## Recipe", "", "```yaml", recipe.strip(), "```", ""]
    return "\n".join(lines)


def needed_bytes(manifest: dict[str, Any]) -> int:
    """Weights, cache of the default context, and the runtime: what a device must have free."""
    model = manifest["model"]
    each = KV_BYTES[model["format"]]
    cache = 2 * each * model["layers"] * model["kv_heads"] * model["head_dim"] * manifest["generation"]["context"]
    return int(model["bytes"] + cache + RUNTIME_BYTES)


def _front(manifest: dict[str, Any], terms: Terms, library: str) -> list[str]:
    base, model = manifest["origin"]["base_model"], manifest["model"]
    hub = f"base_model: {base}" if "/" in base and ":" not in base and base.count("/") == 1 else f"# teacher: {base}"
    return [
        "---",
        f"license: {terms.id if terms is not UNKNOWN else 'other'}",
        hub,
        "pipeline_tag: text-generation",
        f"library_name: {library or ('gguf' if model['format'] == 'gguf' else 'onnxruntime-genai')}",
        "tags: [edgeslm, distillation, " + f"{model['format']}, {model['grid']}]",
        "---",
        "",
    ]


def _results(results: list[dict[str, Any]]) -> list[str]:
    if not results:
        return ["Not measured in its run.", ""]
    rows = [f"| {r['text']} | {units.number(r['value'], r['unit'])} |" for r in results]
    return ["| figure | value |", "|---|---|", *rows, ""]


def _devices(devices: list[dict[str, Any]]) -> list[str]:
    if not devices:
        return ["No device was timed in its run.", ""]
    rows = [
        f"| {d['name']} | {d['runtime']}, {d['threads']} threads | {d['metric'].replace('_', ' ')} | "
        f"{units.number(d['value'], d['unit'])} |"
        for d in devices
    ]
    return ["| device | runtime | figure | value |", "|---|---|---|---|", *rows, ""]


def _licence(terms: Terms, base_model: str) -> str:
    if terms is UNKNOWN:
        return f"Not recorded: that of `{base_model}` decides. Find it before you pass this model on."
    link = f"[{terms.name}]({terms.url})" if terms.url else terms.name
    naming = f" Names of models derived from it begin with “{terms.prefix}”." if terms.prefix else ""
    return f"That of `{base_model}`, which the weights come from: {link}.{naming}"
