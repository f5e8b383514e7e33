"""A chat template as a flat list of segments that a small program can apply, found by asking the template itself.

A Jinja template is a program; a phone app has no Jinja. What most templates do is simpler: they put fixed texts before
and after each message, according to its role, and a fixed text where the assistant is to speak:

    start  [system: before content after]  (user: before content after  assistant: before content after)*  generation

`flatten` renders a few short conversations with marks for contents, reads the fixed texts off between the marks, and
then proves itself: on `PROOFS` seeded conversations the flat form must give the template's own text, character by
character. A template that does anything else (folds the system text into a turn, writes today's date, drops earlier
thoughts) is refused with one sentence. Standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeslm.errors import ExportError

Message = dict[str, str]
Render = Callable[[list[Message], bool], str]
Segment = dict[str, str]  # {"text": literal} or {"content": "as is" | "trimmed"}

PROOFS = 200
ROLES = ("system", "user", "assistant")
CLOCKS = ("strftime_now", "date_string", "now(")
# what Python's str.strip, which templates call, takes for white space; other programs need the list
WHITE = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_MARK = "\ue000{}\ue001"  # private use: in no template
_PIECES = (
    "Hello", "what is 2 + 2?", " ", "\n", "\n\n", "\t", "  two spaces  ", "{{ messages }}", "{% raw %}", "<|im_start|>",
    "<|im_end|>", "</s>", "[INST]", "你好，世界", "naïve café",
    "👩‍👩‍👧‍👦", "\u00a0", "\u3000", "'", '"', "\\n", "<b>&amp;</b>",
    "def f(x):\n    return x\n", "مرحبا", "\u200b", "0", "-", "#", "…", "a\r\nb", "null", "\ud7ff", "𝄞",
)  # fmt: skip


@dataclass(frozen=True)
class Flat:
    """`default_system` is what a conversation without a system message begins with, whole; `roles` holds the segments
    of every role that may appear."""

    start: str
    default_system: str
    roles: dict[str, tuple[Segment, ...]]
    generation: str

    def apply(self, messages: Sequence[Message], answer: bool = True) -> str:
        """The text of a conversation; with `answer` it ends where the assistant starts to speak. Raises ExportError for
        a role that the template does not know."""
        text = self.start
        if not messages or messages[0]["role"] != "system":
            text += self.default_system
        for message in messages:
            if message["role"] not in self.roles:
                raise ExportError(f"the template has no role '{message['role']}'; it has {', '.join(self.roles)}")
            text += "".join(_filled(segment, message["content"]) for segment in self.roles[message["role"]])
        return text + (self.generation if answer else "")

    def to_json(self) -> dict[str, Any]:
        roles = {role: list(segments) for role, segments in self.roles.items()}
        return {
            "start": self.start, "default_system": self.default_system, "roles": roles, "generation": self.generation
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Flat:
        roles = {role: tuple(segments) for role, segments in data["roles"].items()}
        return cls(data["start"], data["default_system"], roles, data["generation"])


def _filled(segment: Segment, content: str) -> str:
    if "text" in segment:
        return segment["text"]
    return content.strip(WHITE) if segment["content"] == "trimmed" else content


def flatten(render: Render, source: str = "", seed: int = 0) -> Flat:
    """`render(messages, answer)` is the template at work; `source` its text. Raises ExportError for one that cannot be
    flattened."""
    if clock := next((word for word in CLOCKS if word in source), None):
        raise ExportError(
            f"the chat template writes a date of its own ({clock}), which a flat one cannot; "
            "give the student's tokenizer a template without it, then export the bundle again"
        )
    try:
        flat = _read_off(render)
    except ExportError:
        raise
    except Exception as error:  # a template is a program and may raise anything
        raise ExportError(
            f"the chat template refuses a plain conversation of user and assistant ({error}); it cannot be flattened"
        ) from error
    for messages, answer in conversations(seed, "system" in flat.roles):
        wanted = render(messages, answer)
        given = flat.apply(messages, answer)
        if given != wanted:
            raise ExportError(
                "the chat template does more than put fixed texts around each message, so it cannot be flattened: "
                f"{_difference(given, wanted)}; give the student's tokenizer a plain template (ChatML, say)"
            )
    return flat


def _read_off(render: Render) -> Flat:
    """Fixed texts between marks. What stands between two contents is cut at what the first role writes at the end."""
    first, second, third = (_MARK.format(i) for i in range(3))
    user, reply = {"role": "user", "content": first}, {"role": "assistant", "content": second}
    begin, user_after = _parts(render([user], False), first)
    generation = render([user], True).removeprefix(render([user], False))
    _, between, reply_after = _parts(render([user, reply], False), first, second)
    reply_before = _cut(between, user_after)
    again = {"role": "user", "content": third}
    _, _, between, _ = _parts(render([user, reply, again], False), first, second, third)
    user_before = _cut(between, reply_after)
    if not begin.endswith(user_before):
        raise ExportError("the chat template writes a first question unlike later ones; it cannot be flattened")
    head = begin[: len(begin) - len(user_before)]
    start, default_system = head, ""
    roles = {
        "user": _segments(user_before, _trims(render, "user"), user_after),
        "assistant": _segments(reply_before, _trims(render, "assistant"), reply_after),
    }
    if system := _system(render, user_before, head):
        start, default_system, roles["system"] = system
    return Flat(start, default_system, {role: roles[role] for role in ROLES if role in roles}, generation)


def _system(render: Render, user_before: str, head: str) -> tuple[str, str, tuple[Segment, ...]] | None:
    """(start, default system, segments of the system message); None for a template that knows no system message."""
    first, second = _MARK.format(0), _MARK.format(1)
    messages = [{"role": "system", "content": first}, {"role": "user", "content": second}]
    try:
        text = render(messages, False)
    except Exception:  # Gemma's template, for one, raises; then there is no such role
        return None
    if first not in text:
        return None
    before, between, _ = _parts(text, first, second)
    after = _cut(between, user_before, at_end=True)
    common = 0
    while common < min(len(before), len(head)) and before[common] == head[common]:
        common += 1
    # with a default text, start and system mark cannot be told apart and need not be: both sides begin alike
    start = before[:common] if common == len(head) else ""
    return start, head[len(start) :], _segments(before[len(start) :], _trims(render, "system"), after)


def _trims(render: Render, role: str) -> bool:
    """Whether the template strips a message's content."""
    mark = _MARK.format(0)
    content = f" \n{mark}\t "
    messages = {
        "system": [{"role": "system", "content": content}, {"role": "user", "content": "x"}],
        "user": [{"role": "user", "content": content}],
        "assistant": [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}],
    }[role]
    return content not in render(messages, False)


def _parts(text: str, *marks: str) -> list[str]:
    """What stands before, between and after the marks. Raises ExportError when one is missing, doubled or moved."""
    found, rest = [], text
    for mark in marks:
        if rest.count(mark) != 1:
            raise ExportError("the chat template repeats, drops or moves what was said; it cannot be flattened")
        before, _, rest = rest.partition(mark)
        found.append(before)
    return [*found, rest]


def _cut(between: str, known: str, at_end: bool = False) -> str:
    if not (between.endswith(known) if at_end else between.startswith(known)):
        raise ExportError("the chat template ends a message otherwise when another follows; it cannot be flattened")
    return between[: len(between) - len(known)] if at_end else between[len(known) :]


def _segments(before: str, trims: bool, after: str) -> tuple[Segment, ...]:
    texts: list[Segment] = [{"text": before}, {"content": "trimmed" if trims else "as is"}, {"text": after}]
    return tuple(segment for segment in texts if segment.get("text") != "")


def conversations(seed: int, system: bool, count: int = PROOFS) -> Iterator[tuple[list[Message], bool]]:
    """Conversations as an app has them: perhaps a system text (never an empty one), then turns, the last one open or
    answered; contents are awkward on purpose."""
    rng = random.Random(seed)
    for number in range(count):
        messages = []
        if system and number % 2:
            messages.append({"role": "system", "content": f"Be brief.{_awkward(rng)}"})
        for turn in range(rng.randint(1, 7)):
            messages.append({"role": ROLES[1 + turn % 2], "content": _awkward(rng)})
        yield messages, messages[-1]["role"] == "user"


def _awkward(rng: random.Random) -> str:
    return "".join(rng.choice(_PIECES) for _ in range(rng.randint(0, 6)))


def _difference(given: str, wanted: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(given, wanted, strict=False)) if a != b), min(len(given), len(wanted)))
    return f"it writes {wanted[max(0, at - 12) : at + 24]!r} where {given[max(0, at - 12) : at + 24]!r} was expected"
