"""Which tokens of a dialogue are the assistant's: what the model itself would have to write, the token that ends its
turn included, so that a loss on answers alone also teaches where to stop.

A template with `{% generation %}` marks says it itself. Every other one is asked by rendering: an answer begins where
the rendering of the messages before it, made ready for an answer as a chat application makes it, ends, and it ends
where the rendering that includes it does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.data.chat import Messages, json_lines, messages_of, rendered, template_ids
from edgeslm.errors import DataError
from edgeslm.models.stop import stop_ids

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Dialogue:
    """`answers[i]` is 1 where `ids[i]` is the assistant's own."""

    ids: list[int]
    answers: list[int]

    @property
    def prompt(self) -> list[int]:
        """What stands before the first answer."""
        return self.ids[: self.answers.index(1)] if 1 in self.answers else self.ids

    @classmethod
    def plain(cls, ids: list[int]) -> Dialogue:
        """Text that nobody answers in."""
        return cls(ids, [0] * len(ids))


def dialogues(paths: list[Path], tokenizer: Any) -> list[Dialogue]:
    """One a line; `ids` are those of edgeslm.data.chat.documents. Raises DataError."""
    found = []
    for path in paths:
        for number, row in enumerate(json_lines(path), start=1):
            where = f"{path}:{number}"
            found.append(marked(tokenizer, messages_of(row, where), where))
    return found


def marked(tokenizer: Any, messages: Messages, where: str) -> Dialogue:
    """Raises DataError for a dialogue whose answers the template does not let be told from what is asked."""
    ids = template_ids(tokenizer, messages)
    by_marks = MARKS.search(str(tokenizer.get_chat_template()))
    spans = _marked_spans(tokenizer, messages, ids) if by_marks else _rendered_spans(tokenizer, messages, ids, where)
    stop, answers = set(stop_ids(tokenizer)), [0] * len(ids)
    for start, end in spans:
        end = _turn_end(tokenizer, ids, start, end, stop)
        answers[start:end] = [1] * (end - start)
    return Dialogue(ids, answers)


def _marked_spans(tokenizer: Any, messages: Messages, ids: list[int]) -> list[tuple[int, int]]:
    """transformers' own reading of the marks, which stops at the first token of a last character of several."""
    given = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, verbose=False
    )
    mask, places = list(given["assistant_masks"]), _places(tokenizer, rendered(tokenizer, messages))
    shift, spans = len(ids) - len(mask), []  # 1 where texts begin with a token that the template leaves out
    for start in (i for i, here in enumerate(mask) if here and not (i and mask[i - 1])):
        end = next((i for i in range(start, len(mask)) if not mask[i]), len(mask))
        while end < len(mask) and places[end][0] < places[end - 1][1]:
            end += 1
        spans.append((start + shift, end + shift))
    return spans


def _places(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """The characters of the text that each token stands for."""
    return list(tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"])


def _rendered_spans(tokenizer: Any, messages: Messages, ids: list[int], where: str) -> list[tuple[int, int]]:
    whole, stop, spans = rendered(tokenizer, messages), set(stop_ids(tokenizer)), []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if index == 0:
            raise DataError(f"{where}: begins with an answer that nothing asks for; begin it with a user's message")
        before, after = messages[:index], messages[: index + 1]
        asked = rendered(tokenizer, before, answer=True)
        if not whole.startswith(asked):
            raise DataError(
                f"{where}: the chat template writes what comes before an answer otherwise than in the whole dialogue, "
                "so that answers cannot be told from prompts; give the template {% generation %} marks"
            )
        start = _begin(tokenizer, ids, template_ids(tokenizer, before, answer=True), whole, len(asked))
        if whole.startswith(rendered(tokenizer, after)):
            end = _common(ids, template_ids(tokenizer, after))
        else:  # a template that writes the last turn otherwise than those before it
            end = next((i + 1 for i in range(start, len(ids)) if ids[i] in stop), -1)
        if end < start:
            raise DataError(
                f"{where}: where the chat template ends an answer cannot be told; give it {{% generation %}} marks"
            )
        spans.append((start, end))
    return spans


def _begin(tokenizer: Any, ids: list[int], asked: list[int], whole: str, characters: int) -> int:
    """The first token of an answer that begins after so many characters. A token that reaches from the prompt into the
    answer is none that a model asked with the prompt could write; it counts as the prompt's."""
    common = _common(ids, asked)
    if common == len(asked):
        return common
    places = _places(tokenizer, whole)
    placed = enumerate(places, start=len(ids) - len(places))
    return next((i for i, (begin, end) in placed if i >= common and end > begin >= characters), len(ids))


def _turn_end(tokenizer: Any, ids: list[int], start: int, end: int, stop: set[int]) -> int:
    """With the token that ends the turn, without the blanks that templates write after it."""
    last = next((i for i in range(end - 1, start - 1, -1) if ids[i] in stop), None)
    if last is not None and not tokenizer.decode(ids[last + 1 : end]).strip():
        return last + 1
    return end + 1 if last is None and end < len(ids) and ids[end] in stop else end


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens they begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
