"""The grids. A new one is a file (or a line in its family's file) and a line here."""

from edgeslm.formats.base import BlockFormat
from edgeslm.formats.codebooks import IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS
from edgeslm.formats.floats import BF16, F16, F32
from edgeslm.formats.kquants import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from edgeslm.formats.legacy import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from edgeslm.formats.lowest import Q1_0, Q2_0
from edgeslm.formats.nbits import NBITS
from edgeslm.formats.portable import Q4_0_PORTABLE
from edgeslm.formats.tables import IQ4_NL, IQ4_XS, MXFP4, NVFP4
from edgeslm.formats.ternary import TQ1_0, TQ2_0

FORMATS: dict[str, BlockFormat] = {
    "f32": F32,
    "f16": F16,
    "bf16": BF16,
    "q8_0": Q8_0,
    "q4_0": Q4_0,
    "q4_0_portable": Q4_0_PORTABLE,
    "q4_1": Q4_1,
    "q5_0": Q5_0,
    "q5_1": Q5_1,
    "q2_k": Q2_K,
    "q3_k": Q3_K,
    "q4_k": Q4_K,
    "q5_k": Q5_K,
    "q6_k": Q6_K,
    "iq4_nl": IQ4_NL,
    "iq4_xs": IQ4_XS,
    "mxfp4": MXFP4,
    "nvfp4": NVFP4,
    "q2_0": Q2_0,
    "tq2_0": TQ2_0,
    "tq1_0": TQ1_0,
    "q1_0": Q1_0,
    "iq3_s": IQ3_S,
    "iq3_xxs": IQ3_XXS,
    "iq2_s": IQ2_S,
    "iq2_xs": IQ2_XS,
    "iq2_xxs": IQ2_XXS,
    "iq1_m": IQ1_M,
    "iq1_s": IQ1_S,
    **NBITS,
}


def by_ggml_type(number: int) -> BlockFormat | None:
    """The format a GGUF file names by number; None when it is not one of ours."""
    return next((f for f in FORMATS.values() if f.ggml_type == number), None)
