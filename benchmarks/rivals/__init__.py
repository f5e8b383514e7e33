"""The rivals. A new one is a file and a line here."""

from benchmarks.rivals import auto_round, genai, gptq, llama_cpp, torchao_qat
from benchmarks.rivals.base import Rival

RIVALS: dict[str, Rival] = {
    llama_cpp.NAME: llama_cpp.RIVAL,
    auto_round.NAME: auto_round.RIVAL,
    gptq.NAME: gptq.RIVAL,
    torchao_qat.NAME: torchao_qat.RIVAL,
    genai.NAME: genai.RIVAL,
}
