"""A shipped file as a model of lm-eval: its requests become ids, our worker answers them (arXiv:2405.14782).

Encoding, cutting of long contexts and rolling windows are lm-eval's own (`TemplateLM`, `lm_eval.utils`), so that an
item is asked here exactly as its transformers backend asks it. Imports lm-eval: reach it from functions only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from edgeslm.artifact import Artifact
from edgeslm.devices.base import Device
from edgeslm.errors import DataError, ModelError
from edgeslm.evaluate.generate import Request, generate
from edgeslm.evaluate.likelihood import likelihoods, truncated
from edgeslm.evaluate.store import Store
from edgeslm.models.stop import begin_id

MAX_NEW = 256  # ids, lm-eval's default


def sampling_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Of lm-eval's generation options, those that our workers sample by. Raises DataError for what they cannot do: an
    option that is left out silently would make other answers."""
    known = {"temperature": 1.0 if settings.get("do_sample") else 0.0, "top_p": 1.0, "top_k": 0}
    given = {key: value for key, value in settings.items() if key not in ("do_sample", "stream")}
    if settings.get("do_sample") is False:
        given["temperature"] = 0.0
    unknown = sorted(key for key in given if key not in known)
    if unknown:
        raise DataError(f"the task asks for generation options that no runtime here has: {', '.join(unknown)}")
    return known | given


class ShippedLM(TemplateLM):
    """`limit`: positions the model was trained for. `cut` counts by task the requests whose context did not fit."""

    def __init__(
        self,
        artifact: Artifact,
        tokenizer: Any,
        limit: int,
        *,
        threads: int,
        device: Device,
        workdir: Path,
        store: Store,
        on_progress: Callable[[int, int], None] | None = None,
    ):
        super().__init__()
        self.artifact, self.tokenizer, self.limit = artifact, tokenizer, limit
        self.where: dict[str, Any] = {"threads": threads, "device": device, "workdir": workdir, "store": store}
        self.on_progress = on_progress
        self.begins = begin_id(tokenizer) is not None
        self._asking: list[str] = []  # task of each request
        self.cut: Counter[str] = Counter()

    @property
    def eot_token_id(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(f"{self.artifact.name}: its tokenizer names no end token, which tasks need")
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: the begin token, else the end token, as lm-eval takes it."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return self.artifact.name

    @property
    def max_length(self) -> int:
        return self.limit

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As lm-eval's transformers backend: what the tokenizer puts before a text, but not twice."""
        begin = self.tokenizer.bos_token
        special = self.begins if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and begin and string.startswith(begin):
            special = False
        return list(self.tokenizer(string, add_special_tokens=special, verbose=False)["input_ids"])

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        self._asking = [request.task_name for request in requests]
        return super().loglikelihood(requests, disable_tqdm=True)  # our own bars tell how far the work is

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        pairs = []
        for name, (_, context, ids) in zip(self._asking, requests, strict=True):
            if not ids:
                raise DataError(f"{name}: a continuation has no token of its own; its text melts into the context")
            pairs.append(truncated((context, ids), self.limit))
            self.cut[name] += len(pairs[-1][0]) < len(context)
        found = likelihoods(self.artifact, pairs, on_progress=self.on_progress, **self.where)
        return [(one.nats, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for context, scored in map(
                make_disjoint_window,
                get_rolling_token_windows(ids, self.prefix_token_id, self.limit, context_len=1),
            ):
                windows.append((None, list(context), list(scored)))
                owners.append(number)
        self._asking = [requests[owner].task_name for owner in owners]
        sums = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += nats
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        end = self.tokenizer.decode([self.eot_token_id])
        asked = []
        for request in requests:
            context, options = request.args
            settings = normalize_gen_kwargs(options, MAX_NEW)
            until = handle_stop_sequences(settings.pop("until", None), eos=end)
            new = int(settings.pop("max_gen_toks"))
            sampling = sampling_of(settings)
            ids = self.tok_encode(context)
            room = self.limit - new
            if room < 1:
                raise DataError(
                    f"{request.task_name}: asks for {new} new tokens, which leaves no room in the {self.limit} "
                    f"positions of {self.artifact.name}"
                )
            if sampling["temperature"] and request.repeats > 1:
                raise DataError(f"{request.task_name}: samples an item {request.repeats} times, which is not done here")
            self.cut[request.task_name] += len(ids) > room
            asked.append(Request(ids[-room:], new, tuple(until), sampling))
        written = generate(self.artifact, self.tokenizer, asked, on_progress=self.on_progress, **self.where)
        return [one.text for one in written]
