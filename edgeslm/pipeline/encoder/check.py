"""Refuse first, for an encoder's recipe: everything that is wrong with it, and what it will do, before any compute."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from edgeslm.errors import ModelError, RecipeError, instead
from edgeslm.pipeline.check import Findings
from edgeslm.pipeline.check.files import installed
from edgeslm.pipeline.check.losses import mistake, options_of
from edgeslm.pipeline.encoder.making import items_of, recipe_of, sources, tokenizer
from edgeslm.pipeline.stage import Context, read_json

NEEDED = ("onnx", "onnxruntime")
TRUTHS = ("cross_entropy",)  # losses on the truth that leave rows without a label alone
# losses that mean something on one vector a row
ON_SENTENCES = (
    "hidden", "cosine", "similarity", "probabilistic", "rkd_distance", "rkd_angle", "correlation_congruence",
)  # fmt: skip
SENTENCE_ONLY = ("bilstm", "pixels")  # students whose blocks have nothing in common with a teacher's


def check(context: Context) -> Findings:
    """Files are read, teachers fetched and their vocabularies compared; no model in memory."""
    found = Findings()
    if found.attempt(lambda: context.compute) is None:
        return found
    for package in NEEDED:
        if not installed(package):
            found.problems.append(f"export: {package} is not installed; 'edgeslm doctor' says how to get it")
    for index, phase in enumerate(recipe_of(context).distill.phases):
        for at, term in enumerate(phase.objective):
            where = f"distill.phases.{index}.objective.{at}"
            found.problems += [f"{where}: {problem}" for problem in _term(context, phase, term)]
    located = found.attempt(lambda: sources(context))
    if located is not None:
        found.attempt(partial(_teachers, context, located, found))
    items = found.attempt(lambda: items_of(context))
    if items is not None:
        _rows(context, items, found)
    return found


def _term(context: Context, phase: Any, term: Any) -> list[str]:
    """What is wrong with one loss of a phase."""
    from edgeslm.encoders.objective import SENTENCE
    from edgeslm.knowledge import LOSSES
    from edgeslm.knowledge.base import Feature

    recipe, loss = recipe_of(context), LOSSES.get(term.loss)
    if loss is None:
        return [f"unknown loss '{term.loss}'; {instead(term.loss, LOSSES, ', '.join(LOSSES))}"]
    problems, options = [], options_of(loss.fn)
    for key, value in (term.model_extra or {}).items():
        if key not in options:
            problems.append(f"'{term.loss}' has no option '{key}'; it takes {', '.join(options) or 'none'}")
        elif wrong := mistake(value, options[key]):
            problems.append(f"{key}: {value!r} is not valid: {wrong}")
    if not isinstance(loss, Feature):
        if term.layers is not None:
            problems.append(f"'{term.loss}' looks at the output, not at layers; leave layers out")
        if recipe.task == "similarity":
            problems.append(f"'{term.loss}' compares distributions, and vectors have none; use a loss on layers")
        if not loss.needs_teacher and term.loss not in TRUTHS:
            problems.append(f"'{term.loss}' wants the truth of every row; use {' or '.join(TRUTHS)}")
        if not loss.needs_teacher and phase.rows == "transfer":
            problems.append(f"'{term.loss}' wants the truth, and transfer rows have none; use rows: train, or all")
        return problems
    if term.teacher >= len(recipe.teachers):
        problems.append(f"teacher {term.teacher} is asked for, but there are {len(recipe.teachers)}, from 0 on")
    if any(len(recipe.served(at)) < len(recipe.tasks) for at in range(len(recipe.teachers))):
        problems.append(f"'{term.loss}' looks at layers, which teachers of single tasks do not share; use the output")
    whole = term.layers == SENTENCE
    if whole and term.loss not in ON_SENTENCES:
        problems.append(f"'{term.loss}' means nothing on one vector a row; use {', '.join(ON_SENTENCES)}")
    elif whole and (term.model_extra or {}).get("over", default(loss.fn, "over")) not in ("rows", None):
        problems.append(f"'{term.loss}' looks at a row's tokens, and a sentence vector is one; set over: rows")
    if recipe.student.kind in SENTENCE_ONLY and not whole:
        problems.append(f"a student of kind '{recipe.student.kind}' shares no layers; say layers: {SENTENCE}")
    if "attention" in loss.reads and recipe.distill.train.attention != "eager":
        problems.append(f"'{term.loss}' reads attention maps; set distill.train.attention: eager")
    if options.get("causal") is not None and (term.model_extra or {}).get("causal", True):
        problems.append(f"'{term.loss}' looks back only by default, and encoders see both ways; set causal: false")
    return problems


def default(fn: Any, name: str) -> Any:
    """Of a keyword argument; None where there is no such."""
    found = inspect.signature(fn).parameters.get(name)
    return None if found is None else found.default


def _teachers(context: Context, located: list[Any], found: Findings) -> None:
    """Kinds, layers, one vocabulary; and the student's plan."""
    from transformers import AutoTokenizer

    recipe = recipe_of(context)
    configs = [read_json(source.path / "config.json") for source in located]
    for source, config in zip(located, configs, strict=True):
        if config.get("model_type") != "bert":
            raise ModelError(f"{source.spec}: is a '{config.get('model_type')}'; encoders of the type bert are known")
    own = tokenizer(context).get_vocab()
    for at, source in enumerate(located[1:], start=1):
        if AutoTokenizer.from_pretrained(source.path, local_files_only=True).get_vocab() != own:
            found.problems.append(f"teachers.{at}: {source.spec} has another vocabulary than the first teacher")
    if recipe.length > configs[0]["max_position_embeddings"]:
        found.problems.append(f"length: the teacher has {configs[0]['max_position_embeddings']} positions")
    found.plan += [
        (f"teacher {at}", f"{s.spec}: {c['num_hidden_layers']} layers of {c['hidden_size']}")
        for at, (s, c) in enumerate(zip(located, configs, strict=True))
    ]
    if not found.problems:
        _student(context, configs, found)


def _student(context: Context, configs: list[dict[str, Any]], found: Findings) -> None:
    """Its shape, layer maps and formats, of models without memory."""
    import torch

    from edgeslm import units
    from edgeslm.encoders.model import Encoder
    from edgeslm.encoders.objective import bound
    from edgeslm.encoders.students import shape
    from edgeslm.export.onnx import refuses
    from edgeslm.formats import FORMATS
    from edgeslm.formats.names import unknown_format
    from edgeslm.pipeline.encoder.train import outputs
    from edgeslm.quantize.plan import Plan, Rule, planned_bytes

    recipe = recipe_of(context)
    every = range(len(recipe.tasks))
    with torch.device("meta"):
        teachers = [
            Encoder(
                {"body": "bert", "config": config, "pool": part.pool, "task": recipe.task,
                 "outputs": outputs(recipe, recipe.served(at))}
            )
            for at, (part, config) in enumerate(zip(recipe.teachers, configs, strict=True))
        ]  # fmt: skip
        student = Encoder(shape(recipe.student, teachers[0], outputs(recipe, every)))
    for index, phase in enumerate(recipe.distill.phases):
        try:
            terms = [t.model_dump() for t in phase.objective]
            bound(terms, student, teachers, torch.Generator(), 2, torch.device("cpu"))
        except RecipeError as error:
            found.problems += [f"distill.phases.{index}: {problem}" for problem in error.problems]
    shapes = {name: tuple(p.shape) for name, p in student.named_parameters()}
    for rule in recipe.quantize.rules:
        for name in (rule.format, rule.otherwise):
            if name is not None and name not in FORMATS:
                raise RecipeError([f"quantize.plan: {unknown_format(name)}"])
    assigned = Plan(tuple(Rule(r.pattern, r.format, r.otherwise) for r in recipe.quantize.rules)).assign(shapes)
    for name, format_name in assigned.items():
        if ".lstm." in name and format_name != "f32":
            found.problems.append(
                f"quantize.plan: {name}: onnxruntime's LSTM holds float weights alone; give '*_lstm.*' the format f32"
            )
    for name in sorted(set(assigned.values())):
        if reason := refuses(name):
            found.problems.append(f"quantize.plan: {reason}")
    parameters, size = sum(p.numel() for p in student.parameters()), planned_bytes(assigned, shapes)
    train = recipe.distill.train
    found.plan += [
        ("student", f"{recipe.student.kind}, {student.depth} blocks, {units.count(parameters)} parameters"),
        ("student's weights", f"{units.byte_count(size)}, {8 * size / parameters:.2f} bits each"),
        ("training", f"{train.steps} steps of {train.batch_rows} rows of {recipe.length} tokens"),
        ("device", f"{context.compute.device}, {context.compute.dtype}, {context.compute.threads} threads"),
    ]


def _rows(context: Context, items: dict[tuple[int, str], list[Any]], found: Findings) -> None:
    """Labels that are classes, labels where they are needed, and no judged text among what is trained on."""
    recipe = recipe_of(context)
    for at, task in enumerate(recipe.tasks):
        where = f"tasks.{task.name}"
        train, transfer, judge = (items[at, part] for part in ("train", "transfer", "judge"))
        for name, rows in (("train", train), ("judge", judge)):
            found.problems += [f"{where}.{name}: {p}" for p in _truths(recipe.task, task.classes, rows)]
        tuned = any(t.tune and t.tune.steps for t in recipe.teachers)
        if tuned and not train:
            found.problems.append(f"{where}.train: has no rows, and its teacher must learn from some")
        wanted = {phase.rows for phase in recipe.distill.phases}
        if "transfer" in wanted and not transfer:
            found.problems.append(f"{where}.transfer: has no rows, and a phase reads only such; add some")
        if "train" in wanted and not train:
            found.problems.append(f"{where}.train: has no rows, and a phase reads only such; add some")
        seen = {(i.text, i.pair) for i in [*train, *transfer]}
        if both := sum((i.text, i.pair) in seen for i in judge):
            found.problems.append(f"{where}.judge: {both} of its {len(judge)} rows are trained on too; judge by others")
        found.plan.append((f"task {task.name}", f"{len(train)} train, {len(transfer)} transfer, {len(judge)} judged"))


def _truths(task: str, classes: int | None, rows: list[Any]) -> list[str]:
    if task == "classify":
        wrong = sorted({i.label for i in rows if not 0 <= i.label < (classes or 0)})
        return [f"labels must be 0 to {(classes or 0) - 1}; there are {wrong[:3]}"] if wrong else []
    if task == "span" and any(i.span is None for i in rows):
        return ["rows of a span task are {question, context, start, end}"]
    if task == "similarity" and any(i.pair is not None for i in rows):
        return ["a row of a similarity task is one text; pairs are made of rows when it is judged"]
    return []
