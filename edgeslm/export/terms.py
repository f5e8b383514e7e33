"""Under which terms a student may be passed on: those of its teacher, which its weights come from.

A file's own statement (`general.license`, the front matter of a model card) comes first, then what is known of the
family, then nothing: an unknown licence is called unknown and never guessed.
The table is a convenience: what binds is the teacher's own model card, so read that before a student is passed on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Terms:
    """`id` as model hubs spell it. `prefix` is what the name of a derived model must begin with; `credit` a line that
    must be shown with it; `notice` a line that every copy must come with."""

    id: str
    name: str
    url: str = ""
    prefix: str = ""
    credit: str = ""
    notice: str = ""

    def title(self, name: str) -> str:
        """The model's name as the terms want it."""
        return name if name.lower().startswith(self.prefix.lower()) else f"{self.prefix}-{name}"


APACHE = Terms("apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0")
MIT = Terms("mit", "MIT License", "https://opensource.org/license/mit")
QWEN_RESEARCH = Terms(
    "qwen-research",
    "Qwen Research License (no commercial use)",
    "https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE",
    credit="Improved using Qwen",
)
LLAMA = "Llama {} Community License"
GEMMA = Terms(
    "gemma",
    "Gemma Terms of Use",
    "https://ai.google.dev/gemma/terms",
    credit="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
)
UNKNOWN = Terms("unknown", "unknown: nothing here says it")


def _llama(version: str) -> Terms:
    url = f"https://www.llama.com/llama{version.replace('.', '_')}/license"
    # the first of these licences asks for its number in names and for its maker in what is shown
    maker, own = ("Meta ", "Llama 3") if version == "3" else ("", "Llama")
    name = maker + LLAMA.format(version)
    notice = (
        f"{maker}Llama {version} is licensed under the {name}, Copyright © Meta Platforms, Inc. All Rights Reserved."
    )
    return Terms(f"llama{version}", name, url, own, f"Built with {maker}{own}", notice)


FAMILIES: tuple[tuple[str, Terms], ...] = (
    (r"tinyllama", APACHE),
    (r"smollm", APACHE),
    (r"qwen2\.5(-coder)?-3b", QWEN_RESEARCH),
    (r"qwen2\.5(-coder)?-(0\.5|1\.5|7|14|32)b", APACHE),
    (r"qwen3", APACHE),
    (r"stories(260k|15m|42m|110m)", MIT),
    (r"llama-?3\.3", _llama("3.3")),
    (r"llama-?3\.2", _llama("3.2")),
    (r"llama-?3\.1", _llama("3.1")),
    (r"llama-?3", _llama("3")),
    (r"gemma", GEMMA),
)


def terms_of(base_model: str, stated: str = "") -> Terms:
    """`stated`: a licence that the model, or the user, names."""
    for pattern, terms in FAMILIES:
        if re.search(pattern, base_model.lower()) and stated.lower() in ("", terms.id):
            return terms
    known = {terms.id: terms for terms in (APACHE, MIT, GEMMA, QWEN_RESEARCH)}
    if stated:
        return known.get(stated.lower(), Terms(stated, stated))
    return UNKNOWN


def text(terms: Terms, base_model: str) -> str:
    """LICENCE.md: what applies, where its words stand, and for Apache-2.0 the words themselves."""
    lines = ["# Licence", ""]
    if terms is UNKNOWN:
        lines += [
            f"This model was distilled from `{base_model}`. The licence of that model was not recorded, and it decides",
            "what may be done with this one: find it before you pass this on (`edgeslm export ... --licence ID`).",
        ]
    else:
        lines += [f"This model was distilled from `{base_model}` and comes under that model's licence: {terms.name}."]
        lines += ["", terms.url] if terms.url else []
        lines += ["", f"Shown with it: “{terms.credit}”."] if terms.credit else []
        lines += ["", f"Names of models derived from it begin with “{terms.prefix}”."] if terms.prefix else []
        lines += ["", f"Notice: {terms.notice}"] if terms.notice else []
        if terms.id == "apache-2.0":
            lines += ["", files("edgeslm").joinpath("assets/licences/apache-2.0.txt").read_text(encoding="utf-8")]
    return "\n".join(lines).rstrip() + "\n"
