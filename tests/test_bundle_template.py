"""Chat templates made flat, against transformers; those that cannot be are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edgeslm.errors import ExportError
from edgeslm.export.bundle_template import WHITE, Flat, conversations, flatten

# chat templates as they stand in the GGUF files of SmolLM2-135M-Instruct and Qwen2.5-Coder-0.5B-Instruct (Apache-2.0)
TEMPLATES = Path(__file__).parent / "templates"
SYSTEM_IN_TURN = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if messages[0].role == 'system' and loop.index0 == 1 %}"
    "{{ messages[0].content }}\n\n{% endif %}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def renderer(source: str) -> Any:
    def render(messages: list[dict[str, str]], answer: bool) -> str:
        text, _ = render_jinja_template(
            conversations=[messages], chat_template=source, add_generation_prompt=answer, bos_token="<s>"
        )
        return str(text[0])

    return render


@pytest.mark.parametrize("name", sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
def test_flat_templates_say_what_transformers_says(name: str):
    """200 conversations that `flatten` did not see, for each real template."""
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    render = renderer(source)
    flat = Flat.from_json(json.loads(json.dumps(flatten(render, source).to_json())))
    asked = list(conversations(seed=1, system=True))
    assert len(asked) == 200 and {m["role"] for messages, _ in asked for m in messages} == set(flat.roles)
    for messages, answer in asked:
        assert flat.apply(messages, answer) == render(messages, answer)


def test_both_real_templates_are_there():
    assert {p.stem for p in TEMPLATES.glob("*.jinja")} == {"smollm2", "qwen2.5"}


def test_a_template_that_trims_and_knows_no_system_text():
    flat = flatten(renderer(GEMMA), GEMMA)
    assert flat.start == "<bos>" and "system" not in flat.roles
    assert {"content": "trimmed"} in flat.roles["user"]
    with pytest.raises(ExportError, match="no role 'system'"):
        flat.apply([{"role": "system", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        SYSTEM_IN_TURN,
        "{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1].split('Hello')[-1] }}\n{% endfor %}",
        "{{ messages[0].content }}",
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_does_more_is_refused(source: str):
    with pytest.raises(ExportError, match="template") as said:
        flatten(renderer(source), source)
    assert "\n" not in str(said.value)


def test_white_space_is_what_python_strips():
    assert set(WHITE) == {chr(i) for i in range(0x110000) if chr(i).isspace()}
