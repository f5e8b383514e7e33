"""Tasks of lm-eval on one shipped file -> what it scored, item by item."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact, file_sha256
from edgeslm.devices.base import Device
from edgeslm.errors import DataError, EdgeSLMError, RuntimeFailure, instead
from edgeslm.evaluate.harness.local import OWN, TRAIN, file_of, rows_of
from edgeslm.evaluate.store import Store

# the figure of an item that retention is taken of: the first of these that a task has
PRIMARY = ("acc", "exact_match", "prompt_level_strict_acc", "f1", "em")


@dataclass(frozen=True)
class Item:
    """One item's answer. `value` is its score (0 or 1 for most metrics); `nats` of each choice where there are choices.
    `digest` names the item whatever file answers it."""

    digest: str
    value: float
    nats: tuple[float, ...] = ()


@dataclass(frozen=True)
class TaskScore:
    """`values` holds every metric of the task as lm-eval aggregates it (its filter in the name where it has one);
    `items` the primary metric, one by one, empty where a task's metric is no number for each item of which more is
    better. `cut`: requests whose context was cut on the left to fit the model."""

    task: str
    metric: str
    version: str
    shots: int
    source: str  # the file's name and sha256, or the hub's data set
    values: dict[str, float]
    items: tuple[Item, ...]
    cut: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TaskScore:
        items = tuple(Item(**{**i, "nats": tuple(i["nats"])}) for i in data["items"])
        return cls(**{**data, "items": items})


def lm_eval_version() -> str:
    """Raises DataError when lm-eval is not installed: the one sentence that says how to get it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lm_eval")
    except PackageNotFoundError as error:
        raise DataError("tasks need lm-eval, which is not installed; pip install 'edgeslm[eval]'") from error


class Tasks:
    """Definitions and data of the tasks asked for, checked whole before the first second of compute; then judged on as
    many files as one likes. `folder`: see harness.local; without it, or for tasks it has no file of, the hub.

    Raises DataError for unknown tasks, damaged or empty files, data that cannot be had here.
    """

    def __init__(self, names: Sequence[str], folder: Path | None, shots: int | None = None, limit: int | None = None):
        """`shots` None: as many examples as each task's own definition says."""
        lm_eval_version()
        if folder is not None and not folder.is_dir():
            raise DataError(f"--data {folder}: no such folder; it holds files such as arc_easy.jsonl")
        self.shots, self.limit = shots, limit
        self.sources: dict[str, str] = {}
        with quiet():
            self.manager = definitions()
            unknown = [n for n in names if n not in self.manager.task_index and not n.endswith(".yaml")]
            if unknown:
                raise DataError(_unknown(unknown[0], self.manager.all_subtasks))
            specs = [self._spec(name, folder) for name in dict.fromkeys(names)]
            self.tasks: dict[str, Any] = {}
            for name, spec in zip(dict.fromkeys(names), specs, strict=True):
                loaded = self._load(name, spec, folder)
                if not isinstance(spec, str):
                    sound(loaded[name], self.sources[name].split()[0])
                self.tasks |= loaded

    def _spec(self, name: str, folder: Path | None) -> Any:
        path = file_of(name, folder)
        if path is None:
            return name
        splits: dict[str, list[dict[str, Any]]] = {"test": rows_of(name, path)}
        train = path.with_name(path.name.removesuffix(".jsonl") + TRAIN)
        if train.is_file():
            splits["train"] = rows_of(name, train)
        self.sources[name] = f"{path.name} {file_sha256(path)[:16]}"
        return {
            "task": name,
            "custom_dataset": lambda **_: _datasets(splits),
            "dataset_kwargs": None,
            "test_split": "test",
            "validation_split": None,
            "training_split": "train" if "train" in splits else None,
            "fewshot_split": "train" if "train" in splits else None,
        }

    def _check_shots(self, name: str, task: Any, local: bool) -> None:
        """A task's own number counts where none is asked for; lm-eval ignores what is asked of a task that says 0."""
        own = task.config.num_fewshot
        if self.shots and own == 0:
            raise DataError(f"--shots {self.shots}: {name} is defined without examples; leave --shots out")
        wanted = self.shots if self.shots is not None else own or 0
        if wanted and local and task.config.training_split is None:
            raise DataError(
                f"{name}: {wanted} examples stand before each item; put them into {name}{TRAIN} beside its items, "
                "or say --shots 0"
            )

    def _load(self, name: str, spec: Any, folder: Path | None) -> dict[str, Any]:
        try:
            # a task inside a group is the registered one with some settings replaced
            loaded = self.manager.load([spec if isinstance(spec, str) else {"group": "here", "task": [spec]}])["tasks"]
        except EdgeSLMError:
            raise
        except Exception as error:  # jinja, datasets, the hub: whatever a task's definition may meet in its data
            where = self.sources.get(name)
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            if where is None:
                hint = (
                    f"put {name}.jsonl into a folder and name it with --data"
                    if folder is None
                    else (f"--data {folder} holds no {name}.jsonl")
                )
                raise DataError(f"the data of {name} cannot be had from the hub ({said}); {hint}") from error
            raise DataError(f"{where}: does not fit lm-eval's definition of {name} ({said})") from error
        for task in loaded:
            self.sources.setdefault(task, f"hub: {loaded[task].config.dataset_path}")
            self._check_shots(task, loaded[task], not isinstance(spec, str))
        return dict(loaded)

    def judge(
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
        chat: bool = False,
    ) -> list[TaskScore]:
        """All tasks on one file; `limit` is its longest context. Raises RuntimeFailure, DeviceError."""
        with quiet():
            from lm_eval.evaluator import simple_evaluate

            from edgeslm.evaluate.harness.adapter import ShippedLM

            lm = ShippedLM(
                artifact, tokenizer, limit,
                threads=threads, device=device, workdir=workdir, store=store, on_progress=on_progress,
            )  # fmt: skip
            try:
                found = simple_evaluate(
                    lm, tasks=list(self.tasks.values()), num_fewshot=self.shots, limit=self.limit, bootstrap_iters=0,
                    apply_chat_template=chat, task_manager=self.manager,
                )  # fmt: skip
            except EdgeSLMError:
                raise
            except Exception as error:  # a task's own functions may stumble over any item or answer
                said = (str(error).strip().splitlines() or [""])[0][:200]
                raise DataError(
                    f"{', '.join(self.tasks)}: lm-eval could not judge {artifact.name} ({type(error).__name__}: "
                    f"{said}); leave out the task whose items it is"
                ) from error
        if found is None:
            raise RuntimeFailure(f"lm-eval gave no result for {artifact.name}; run the same again")
        return [self._score(name, found, lm.cut[name]) for name in self.tasks]

    def _score(self, name: str, found: Any, cut: int) -> TaskScore:
        results = {
            key: float(value)
            for key, value in found["results"][name].items()
            if isinstance(value, int | float) and "stderr" not in key and "," in key
        }
        better = self.tasks[name].higher_is_better()
        metric, _, chosen = _primary(list(results), better).partition(",")
        samples = [s for s in found["samples"][name] if s["filter"] == chosen]  # one a document and filter
        samples.sort(key=lambda s: s["doc_id"])
        values = {key.removesuffix(",none"): value for key, value in results.items()}
        return TaskScore(
            task=name,
            metric=metric,
            version=str(found["versions"].get(name, "")),
            shots=int(found["n-shot"].get(name) or 0),
            source=self.sources[name],
            values=values,
            items=_items(samples, metric, better.get(metric, False)),
            cut=cut,
        )


def _primary(names: Sequence[str], better: dict[str, bool]) -> str:
    """Of lm-eval's "metric,filter" names the one that retention is taken of; a metric of which less is better never."""
    more = [name for name in names if better.get(name.split(",")[0], False)]
    ranked = [name for metric in PRIMARY for name in more if name.split(",")[0] == metric]
    return next(iter([*ranked, *more, *names]), ",")


def _items(samples: Sequence[dict[str, Any]], metric: str, more_is_better: bool) -> tuple[Item, ...]:
    values = [sample.get(metric) for sample in samples]
    plain = all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    if not plain or not more_is_better:
        return ()
    return tuple(_item(sample, float(value)) for sample, value in zip(samples, values, strict=True))  # type: ignore[arg-type]


def _item(sample: dict[str, Any], value: float) -> Item:
    answers = sample["filtered_resps"]
    several = len(answers) > 1 and all(isinstance(a, list | tuple) and len(a) == 2 for a in answers)
    return Item(str(sample["doc_hash"]), value, tuple(float(a[0]) for a in answers) if several else ())


def sound(task: Any, where: str) -> None:
    """Reads every item as the task's definition will. Raises DataError with the item's number for one that it cannot
    read, whose text is empty, or whose right answer is none of its choices: lm-eval would score it as wrong."""
    choices = task.config.output_type == "multiple_choice"
    for number, doc in enumerate(task.eval_docs, start=1):
        try:
            text, target = task.doc_to_text(doc), task.doc_to_target(doc)
            options = task.doc_to_choice(doc) if choices else []
        except Exception as error:  # jinja, a lookup, a conversion: whatever a definition does with its fields
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DataError(f"{where}: item {number} does not fit the task's definition ({said})") from error
        if isinstance(text, str) and not text.strip() and task.config.output_type != "loglikelihood_rolling":
            raise DataError(f"{where}: item {number} has no text to ask")
        if not choices and isinstance(target, str) and not target.strip():
            raise DataError(f"{where}: item {number} has no answer to compare with")
        right = text if isinstance(text, int) else target  # some tasks choose among beginnings
        if choices and isinstance(right, int) and not 0 <= right < len(options):
            raise DataError(f"{where}: item {number} says that choice {right} is right, and has {len(options)} choices")


def _datasets(splits: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    from datasets import Dataset

    return {name: Dataset.from_list(rows) for name, rows in splits.items()}


def _unknown(name: str, known: Sequence[str]) -> str:
    return f"--tasks {name}: lm-eval has no such task; {instead(name, known, 'lm-eval ls tasks lists them')}"


@cache
def definitions() -> Any:
    """lm-eval's index of all its tasks and ours, read once a process (some seconds)."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(OWN))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval and datasets say much that is about their own insides; bars of ours tell how far the work is."""
    names = ("lm_eval", "lm-eval", "datasets", "absl", "fsspec")
    before = {name: logging.getLogger(name).level for name in names}
    import lm_eval.api.task as contexts

    bar, contexts.tqdm = contexts.tqdm, lambda rows, **_: rows
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        yield
    finally:
        contexts.tqdm = bar
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
