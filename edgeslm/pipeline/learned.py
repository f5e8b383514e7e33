"""What students learned: runs whose training kept points -> one document (see edgeslm.insight for what is measured)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeslm.errors import DataError, EdgeSLMError, ModelError
from edgeslm.pipeline.stage import Context, digest, read_json
from edgeslm.progress import Progress

if TYPE_CHECKING:
    import torch

    from edgeslm.insight.entropy import Descent

SCHEMA = 1
ROWS = 16  # windows that are measured together
OTHER_SEED = 1  # how far from the seed the noise of the second measurement lies
MOST_RUNS = 6


@dataclass(frozen=True)
class Question:
    """`layers`: none takes a third, two thirds and all of the layers. `margin`: nats below the background."""

    files: tuple[Path, ...]
    length: int = 64
    windows: int = 8
    layers: tuple[int, ...] = ()
    margin: float = 0.2
    descent: Descent | None = None


@dataclass(frozen=True)
class Point:
    """One student on the way: the updates before it, and how to have it in float32."""

    label: str
    step: int
    load: Callable[[], Any]


@dataclass(frozen=True)
class Route:
    """A training that kept points: the student as built, the points, the student as shipped."""

    name: str
    objective: tuple[str, ...]
    taught: bool  # by a teacher, not by text alone
    depth: int  # layers of the student
    points: tuple[Point, ...]
    tokenizer: Any


def route(run: Path, progress: Progress) -> Route:
    """Raises ModelError for a folder that is no run, has not finished its training or kept no points of it."""
    import torch

    from edgeslm import recipe as recipes
    from edgeslm.knowledge import LOSSES
    from edgeslm.models.load import describe
    from edgeslm.models.source import resolve
    from edgeslm.models.tokenizer import load_tokenizer

    if not (run / "run.json").is_file():
        raise ModelError(f"{run}: is no run folder (no run.json); give the folder that edgeslm run printed")
    recipe = recipes.load(run / "recipe.yaml")
    if getattr(recipe, "family", "causal") != "causal":
        raise ModelError(f"{run}: its student is no causal language model; only those can be asked what they learned")
    stages = read_json(run / "run.json")["stages"]
    trained = run / stages.get("distill", "distill")
    if not (trained / "done.json").is_file():
        raise ModelError(f"{run}: has not finished its training; run its recipe again to go on")
    kept = sorted(int(f.name) for f in (trained / "route").glob("*") if f.name.isdigit())
    if not kept:
        raise ModelError(
            f"{run}: its training kept no points on the way; run its recipe again with distill.train.keep=4"
        )
    folders = {name: run / folder for name, folder in stages.items()}
    here = {"device": "cpu", "threads": torch.get_num_threads()}  # noise differs between kinds of device
    context = Context(recipe.model_copy(update=here), Path.cwd(), run, progress, folders)
    train = recipe.distill.train
    places = {point: trained / "route" / str(point) for point in kept}
    middle = [Point(str(k), round(train.steps * k / (train.keep + 1)), _kept(place)) for k, place in places.items()]
    start = Point("start", 0, lambda: _start(context))
    end = Point("end", train.steps, lambda: _end(trained / "frozen", places[kept[0]]))
    source = resolve(str(places[kept[0]]), Path.cwd())
    terms = recipe.distill.objective
    taught = any(getattr(LOSSES.get(term.loss), "needs_teacher", True) for term in terms)
    return Route(
        recipe.name,
        tuple(term.loss for term in terms),
        taught,
        describe(source).config["num_hidden_layers"],
        (start, *middle, end),
        load_tokenizer(source),
    )


def _kept(folder: Path) -> Callable[[], Any]:
    def load_it() -> Any:
        import torch

        from edgeslm.models.load import load
        from edgeslm.models.source import resolve

        return load(resolve(str(folder), Path.cwd()), torch.float32).model

    return load_it


def _start(context: Context) -> Any:
    """The student as built. One without weights of its own is the teacher less some layers: then the teacher must be
    found from here, and be the one that it was. Raises ModelError."""
    from edgeslm.pipeline.prepare import student_model

    if "weights" not in read_json(context.folders["student"] / "importance.json"):
        was = read_json(context.folders["teacher"] / "teacher.json")["source"]
        try:
            same = context.source.sha256 == was["sha256"]
        except EdgeSLMError as error:
            raise ModelError(
                f"{context.root}: its student starts from its teacher, which is not found from here ({error}); "
                "give this command in the folder of its recipe"
            ) from error
        if not same:
            raise ModelError(f"{context.root}: the teacher {was['spec']} has changed since; put the old one back")
    return student_model(context)


def _end(frozen: Path, like: Path) -> Any:
    """The student as shipped: decoded integers in the modules of a kept point."""
    from edgeslm.quantize.frozen import Frozen

    model, tensors = _kept(like)(), Frozen.load(frozen).tensors
    for name, parameter in model.named_parameters():
        parameter.data = tensors[name].decode()
    return model


def study(runs: Sequence[Path], question: Question, progress: Progress) -> dict[str, Any]:
    """The document that `edgeslm learned` writes. What can be refused is refused first. Raises EdgeSLMError."""
    import numpy as np

    from edgeslm.insight.entropy import Descent

    how = question.descent or Descent()
    if len(runs) > MOST_RUNS:
        raise DataError(f"{len(runs)} runs are too many for one page; give {MOST_RUNS} at most")
    routes = [route(run, progress) for run in runs]
    _refuse(routes, question)
    windows, content, counted, texts = _text(routes[0].tokenizer, question)
    layers = [question.layers or thirds(r.depth) for r in routes]
    work = sum((len(r.points) + 1) * len(chosen) for r, chosen in zip(routes, layers, strict=True))
    with progress.task("learned", work * how.steps * -(-len(windows) // ROWS), "steps") as bar:
        told = [
            _told(r, chosen, windows, (np.array(content), np.array(counted)), question.margin, how, bar)
            for r, chosen in zip(routes, layers, strict=True)
        ]
    return {
        "schema": SCHEMA,
        "asked": {
            "files": [p.name for p in question.files], "windows": len(windows), "length": question.length,
            "margin": question.margin, **asdict(how), "digest": digest(windows),
        },
        "text": {"tokens": texts, "content": content, "counted": counted},
        "runs": told,
        "claims": _claims(told, np.array(content), np.array(counted), question.margin),
    }  # fmt: skip


def thirds(depth: int) -> tuple[int, ...]:
    return tuple(sorted({-(-depth * third // 3) for third in (1, 2, 3)}))


def _refuse(routes: Sequence[Route], question: Question) -> None:
    from edgeslm.models.agreement import vocabulary_difference

    names = [r.name for r in routes]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise ModelError(f"two of the runs are named {twice}; give runs of different names")
    for r in routes:
        if difference := vocabulary_difference(routes[0].tokenizer, r.tokenizer):
            raise ModelError(f"{names[0]} and {r.name} cannot be compared: {difference}")
        if len(r.points) != len(routes[0].points):
            raise ModelError(
                f"{names[0]} and {r.name} kept {len(routes[0].points) - 2} and {len(r.points) - 2} points; "
                "what is held at any of them can be compared at equal numbers only: give both one distill.train.keep"
            )
        if wrong := [layer for layer in question.layers if not 1 <= layer <= r.depth]:
            raise ModelError(f"--layers {wrong[0]}: {r.name} has layers 1 to {r.depth}")


def _text(tokenizer: Any, question: Question) -> tuple[list[list[int]], list[list[bool]], list[list[bool]], Any]:
    """(windows, which tokens are content, which count, how each reads). Only windows with both kinds of token; the
    first position counts as neither. Raises DataError."""
    from edgeslm.data.text import documents
    from edgeslm.evaluate.closeness import even_windows, with_begin
    from edgeslm.insight import words
    from edgeslm.models.stop import begin_id

    texts = documents(list(question.files), tokenizer)
    found = with_begin(even_windows(texts, question.length, question.windows), begin_id(tokenizer))
    spelt = words.spelling([i for ids in (*texts, *found) for i in ids], tokenizer)
    background = words.frequent(texts, spelt)
    kept = []
    for ids in found:
        content = words.content(ids, spelt, background)
        counted = [at > 0 and spelt.classes[i] is not None for at, i in enumerate(ids)]
        kinds = {c for c, counts in zip(content, counted, strict=True) if counts}
        if len(kinds) == 2:
            kept.append((ids, content, counted, words.read(ids, tokenizer)))
    if not kept:
        raise DataError("no window of the text holds both content words and background; give more or other text")
    windows, contents, counts, read = map(list, zip(*kept, strict=True))
    return windows, contents, counts, read


def _told(
    r: Route, layers: tuple[int, ...], windows: Any, marks: Any, margin: float, how: Descent, bar: Any
) -> dict[str, Any]:
    """One run's part of the document."""
    from dataclasses import replace

    import numpy as np
    import torch

    from edgeslm.insight import points

    ids, (content, counted) = torch.tensor(windows), marks
    entropies, distances, norm = [], [], 0.0
    before: dict[str, torch.Tensor] = {}
    for point in r.points:
        model = point.load().requires_grad_(False)
        weights = {name: p.detach().double() for name, p in model.named_parameters()}
        if before:
            distances.append(_norm({name: w - before[name] for name, w in weights.items()}))
        else:
            norm = _norm(weights)
        before = weights
        entropies.append([_entropies(model, ids, layer, how, bar) for layer in layers])
    other = replace(how, seed=how.seed + OTHER_SEED)
    repeated = np.array([_entropies(model, ids, layer, other, bar) for layer in layers])
    every, path = np.array(entropies), points.walked(np.array(distances), norm)
    held = points.held(every, content, counted, margin)
    return {
        "name": r.name,
        "objective": list(r.objective),
        "taught": r.taught,
        "depth": r.depth,
        "layers": list(layers),
        "points": [{"label": p.label, "step": p.step, "walked": float(d)} for p, d in zip(r.points, path, strict=True)],
        "counts": {kind: found.tolist() for kind, found in points.counts(held, content).items()},
        "figures": {
            **points.figures(held, content, path),
            "again": points.again(held[-1], points.held(repeated, content, counted, margin), content),
        },
        "entropies": every.round(4).tolist(),  # [points][layers][windows][tokens]
    }


def _norm(tensors: dict[str, torch.Tensor]) -> float:
    return float(sum(float(t.square().sum()) for t in tensors.values()) ** 0.5)


def _entropies(model: Any, ids: torch.Tensor, layer: int, how: Descent, bar: Any) -> list[list[float]]:
    from edgeslm.insight.entropy import model_entropies

    found: list[list[float]] = []
    for at in range(0, len(ids), ROWS):
        found += model_entropies(model, ids[at : at + ROWS], layer, how, lambda: bar.advance(1)).tolist()
    return found


def _claims(told: list[dict[str, Any]], content: Any, counted: Any, margin: float) -> list[dict[str, Any]]:
    """For every run taught by a teacher beside every run that was not: the figures that the paper's hypotheses are
    about, as differences over windows."""
    import numpy as np

    from edgeslm.insight import points

    def of(run: dict[str, Any]) -> tuple[Any, Any]:
        held = points.held(np.array(run["entropies"]), content, counted, margin)
        return held, np.array([p["walked"] for p in run["points"]])

    found = []
    for left in (r for r in told if r["taught"]):
        for right in (r for r in told if not r["taught"]):
            (ours, path), (theirs, other) = of(left), of(right)
            for name in ("content", "content_share", "d_mean", "d_std", "d_std_of_way", "rho"):
                mean, error = points.difference(ours, theirs, content, (path, other), name)
                found.append({"taught": left["name"], "text": right["name"], "figure": name, "difference": mean,
                              "standard_error": error})  # fmt: skip
    return found
