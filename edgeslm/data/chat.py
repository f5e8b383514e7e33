"""Chat rows: JSON lines of dialogues, written out with the teacher's own chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from edgeslm.data.text import read
from edgeslm.errors import DataError
from edgeslm.models.stop import begun

Messages = list[dict[str, str]]


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Raises DataError with the line number for anything that is not one JSON object a line."""
    rows = []
    for number, line in enumerate(read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: each line must be a JSON object")
        rows.append(row)
    return rows


def messages_of(row: dict[str, Any], where: str) -> Messages:
    """`{"messages": [...]}` or `{"prompt", "response"}` -> a list of role and content."""
    if isinstance(row.get("messages"), list):
        messages = row["messages"]
    elif isinstance(row.get("prompt"), str) and isinstance(row.get("response"), str):
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    else:
        raise DataError(f"{where}: a chat row holds 'messages', or 'prompt' and 'response'")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise DataError(f"{where}: every message needs a 'role' and a 'content'")
    return messages


def rendered(tokenizer, messages: Messages, *, answer: bool = False) -> str:
    """A dialogue as the template writes it; with `answer` up to where the assistant starts to speak. Raises DataError
    when there is no template, or it refuses."""
    if not tokenizer.chat_template:
        raise DataError("the teacher's tokenizer has no chat template; use 'text' sources, or a chat model as teacher")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    except TemplateError as error:
        raise DataError(
            f"the teacher's chat template refuses a dialogue ({error}); look at its order of roles"
        ) from error


def template_ids(tokenizer, messages: Messages, *, answer: bool = False) -> list[int]:
    """Token ids of what is `rendered`. It begins as the model's texts begin, whether the template says so or leaves it
    to the tokenizer."""
    text = rendered(tokenizer, messages, answer=answer)
    return begun(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer)


def documents(paths: list[Path], tokenizer) -> list[list[int]]:
    """One list of token ids per dialogue."""
    found = []
    for path in paths:
        for number, row in enumerate(json_lines(path), start=1):
            found.append(template_ids(tokenizer, messages_of(row, f"{path}:{number}")))
    return found
