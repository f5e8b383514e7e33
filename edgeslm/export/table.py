"""The table of grids that `edgeslm formats` prints, worked out from the formats and the containers' own rules.

What runs a format fast in llama.cpp is read from the source of the pinned llama-cpp-python 0.3.36: `repack.cpp`
(ggml_repack_get_optimal_repack_type; matrices whose rows number a multiple of 8, or of 4 on ARM), `amx/common.h`
(qtype_has_amx_kernels), `arch/x86/quants.c` and `arch/arm/quants.c` (ggml_vec_dot_*). Where onnxruntime computes with
8-bit activations was tried on its x86 kernels, see onnx_grids.py.
"""

from __future__ import annotations

from typing import Any

from edgeslm.export import gguf, onnx
from edgeslm.export.onnx_grids import Box, box
from edgeslm.formats import FORMATS
from edgeslm.formats.base import BlockFormat

AMX = {"q4_0", "q4_1", "q8_0", "q4_k", "q5_k", "q6_k", "iq4_xs"}
AVX2_REPACK = {"q4_0", "q4_k", "iq4_nl", "mxfp4"}
AVX512_REPACK = {"q2_k"}
I8MM_REPACK = {"q4_0", "q4_k", "q5_k", "q6_k", "q8_0", "q1_0"}
DOTPROD_REPACK = I8MM_REPACK | {"iq4_nl", "mxfp4"}
NO_X86_KERNEL = {"q2_0"}
NOTES = (
    "exact: the container holds every number with as few code bits; larger: every number, in wider codes",
    "llama.cpp: kernels of llama-cpp-python 0.3.36 (repack.cpp, amx/common.h, arch/*/quants.c); onnxruntime: on x86",
)
HEADINGS = {
    "name": "format",
    "bits": "bits",
    "block": "block",
    "bytes": "bytes",
    "verbs": "here",
    "gguf": "gguf",
    "onnx": "onnx",
    "llama_cpp": "in llama.cpp",
    "onnxruntime": "in onnxruntime",
    "source": "source",
}


def rows() -> list[dict[str, Any]]:
    """One per grid. `gguf` and `onnx` are "exact", "larger" or "refused" (of a format that is only read: "read" or
    "refused"), with the reason in `*_why` and the stored bits a weight in `onnx_bits`."""
    return [_row(form) for form in FORMATS.values()]


def _row(form: BlockFormat) -> dict[str, Any]:
    trained, ggml_why = form.encode is not None, gguf.refuses(form.name)
    held = "refused" if ggml_why else "exact"
    return {
        "name": form.name,
        "bits": form.bits,
        "block": form.block,
        "bytes": form.bytes,
        "verbs": "train and write" if trained else "read",
        "gguf": held if trained or ggml_why else "read",
        "gguf_why": ggml_why,
        "onnx": onnx.holds(form.name),
        "onnx_why": onnx.refuses(form.name),
        "onnx_bits": onnx.stored_bits(form.name),
        "llama_cpp": _llama_cpp(form),
        "onnxruntime": _onnxruntime(form.name),
        "source": form.source,
    }


def _llama_cpp(form: BlockFormat) -> str:
    if form.ggml_type is None or form.block == 1:
        return "" if form.ggml_type is None else "float kernels"
    name = form.name.removesuffix("_portable")
    x86 = ["AMX"] if name in AMX else []
    x86 += ["AVX2 repacked"] if name in AVX2_REPACK else ["AVX-512 repacked"] if name in AVX512_REPACK else []
    arm = "i8mm, dotprod repacked" if name in I8MM_REPACK else "dotprod repacked" if name in DOTPROD_REPACK else "SIMD"
    return f"x86 {', '.join(x86) or ('plain C' if name in NO_X86_KERNEL else 'SIMD')}; ARM {arm}"


def _onnxruntime(name: str) -> str:
    if FORMATS[name].block == 1:
        return "float32"
    held = box(name)
    if not isinstance(held, Box):
        return ""
    return f"{held.bits}-bit product, {'int8 or float32' if held.int8 else 'float32'} activations"


def text(table: list[dict[str, Any]], width: int) -> list[str]:
    """Lines for a terminal: one a format where they fit, otherwise the containers on lines of their own."""
    shown = [HEADINGS, *(_words(row) for row in table)]
    widths = {key: max(len(row[key]) for row in shown) for key in HEADINGS}
    if sum(widths.values()) + 2 * len(widths) <= width:
        lines = ["  ".join(row[key].ljust(widths[key]) for key in HEADINGS).rstrip() for row in shown]
        return [*lines, "", *NOTES]
    lines = []
    for row in shown[1:]:
        lines.append(f"{row['name']:{widths['name']}}  {row['bits']:>6} bits  block {row['block']:>3}  {row['verbs']}")
        lines += [f"    {key}: {row[column]}" for key, column in _below(row)]
    return [*lines, "", *NOTES]


def _below(row: dict[str, str]) -> list[tuple[str, str]]:
    wanted = {"gguf": "gguf", "onnx": "onnx", "llama.cpp": "llama_cpp", "onnxruntime": "onnxruntime"}
    return [(label, column) for label, column in wanted.items() if row[column]]


def _words(row: dict[str, Any]) -> dict[str, str]:
    """A row as a person reads it."""
    held = row["onnx"]
    onnx_words = f"{held}, {row['onnx_bits']:.4g} bits" if row["onnx_bits"] else f"refused: {_short(row['name'])}"
    return {
        "name": row["name"],
        "bits": f"{row['bits']:.4g}",
        "block": str(row["block"]),
        "bytes": str(row["bytes"]),
        "verbs": row["verbs"],
        "gguf": "refused: no such type" if row["gguf"] == "refused" else row["gguf"],
        "onnx": onnx_words,
        "llama_cpp": row["llama_cpp"],
        "onnxruntime": row["onnxruntime"],
        "source": row["source"],
    }


def _short(name: str) -> str:
    reason = box(name)
    return reason if isinstance(reason, str) else ""
