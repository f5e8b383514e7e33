"""A bundle in a Python program, with llama-cpp-python alone: `python embed.py BUNDLE "Tell me about the sea."`

The chat template is flat, so no template engine is needed; the ids are those of `edgeslm chat`.
"""

import json
import sys
from pathlib import Path

from llama_cpp import Llama

folder, question = Path(sys.argv[1]), sys.argv[2]
bundle = json.loads((folder / "edgeslm-bundle.json").read_text(encoding="utf-8"))
model = Llama(str(folder / bundle["model"]["file"]), n_ctx=bundle["generation"]["context"], n_threads=1, verbose=False)


def prompt(text: str) -> str:
    """Fixed texts around what was said; a model without a template goes on with the text itself."""
    template = bundle["template"]
    if template is None:
        return text
    said = (text.strip() if s.get("content") == "trimmed" else s.get("text", text) for s in template["roles"]["user"])
    return template["start"] + template["default_system"] + "".join(said) + template["generation"]


ids = model.tokenize(prompt(question).encode(), add_bos=False, special=True)
begin = bundle["tokenizer"]["begin_id"]
if begin is not None and ids[:1] != [begin]:
    ids.insert(0, begin)
answer: list[int] = []
for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
    if token in bundle["stop_ids"] or len(answer) == bundle["generation"]["max_new"]:
        break
    answer.append(token)
sys.stdout.write(model.detokenize(answer).decode("utf-8", "replace") + "\n")
