"""The grids. A new one is a file (or a line in its family's file) and a line here."""

from edgeslm.formats.base import BlockFormat
from edgeslm.formats.floats import BF16, F16, F32
from edgeslm.formats.kquants import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from edgeslm.formats.legacy import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from edgeslm.formats.portable import Q4_0_PORTABLE

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
}


def by_ggml_type(number: int) -> BlockFormat | None:
    """The format a GGUF file names by number; None when it is not one of ours."""
    return next((f for f in FORMATS.values() if f.ggml_type == number), None)
