"""Who teaches in a recipe's training, and by what objective: models loaded, mixed and bound to the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgeslm.pipeline.grid import on_teachers_grid
from edgeslm.pipeline.stage import Context


def read_order(context: Context, rows: Any) -> Any:
    """Indices of rows in the order that training reads them."""
    from edgeslm.data.order import order, order_of_phases

    recipe, data = context.recipe, context.recipe.data
    count = recipe.distill.train.steps * recipe.batch_rows
    if data.decay_shares is None:
        return order(rows, data.shares, count, recipe.seed)
    last = recipe.decay_steps * recipe.batch_rows
    return order_of_phases(rows, [(count - last, data.shares), (last, data.decay_shares)], recipe.seed)


def more_sources(context: Context) -> list[Any]:
    """The other teachers' files. Raises ModelError."""
    return [context.resolve(m.model, m.sha256, m.tokenizer) for m in context.recipe.teacher.more]


class Guides:
    """The recipe's teachers as one. `models`: each by its place; `foreign` {place: tokenizers} speak other
    vocabularies."""

    def __init__(
        self,
        models: Sequence[Any],
        weights: Sequence[float],
        combine: str,
        foreign: dict[int, tuple[Any, Any]],
        folded: Any = None,
    ):
        """`folded`: the edgeslm.teachers.folded.Folding of these teachers, where they have more tokens."""
        from edgeslm.models.forward import head_weight
        from edgeslm.teachers.ensemble import Ensemble
        from edgeslm.teachers.foreign import ForeignTeacher
        from edgeslm.teachers.live import LiveTeacher

        self.models = list(models)
        here = [index for index in range(len(models)) if index not in foreign]
        made: Any = folded.teacher if folded else LiveTeacher
        each: list[Any] = [made(models[index], index=index) for index in here]
        self.call: Any = each[0] if len(each) == 1 else Ensemble(each, [weights[i] for i in here], combine)
        self.others = [ForeignTeacher(models[i], own, student, i) for i, (own, student) in foreign.items()]
        self.vocabulary = len(folded.kept) if folded else min(head_weight(models[index]).shape[0] for index in here)

    def __call__(self, batch: Any, need: Any) -> Any:
        given = self.call(batch, need)
        foreign = {index: found for other in self.others for index, found in other(batch, need).foreign.items()}
        return replace(given, foreign=foreign)


def teachers(context: Context, first: Any = None) -> Guides:
    """All teachers, frozen; `first` is the recipe's own when it is loaded already."""
    part, dtype, folded = context.recipe.teacher, context.compute.dtype, _folded(context)
    if folded:
        first = context.load(context.source, dtype, whole=True).model
    elif part.format is not None:
        first = on_teachers_grid(context, dtype)
    elif first is None:
        first = context.load_teacher(dtype).model
    sources = zip(part.more, more_sources(context), strict=True)
    others = [context.load(source, dtype, whole=bool(folded) or more.other_vocabulary) for more, source in sources]
    models = [m.eval().requires_grad_(False) for m in (first, *(o.model for o in others))]
    pairs = enumerate(zip(part.more, others, strict=True), start=1)
    foreign = {i: (loaded.tokenizer, context.tokenizer) for i, (more, loaded) in pairs if more.other_vocabulary}
    return Guides(models, [part.weight, *(m.weight for m in part.more)], part.combine, foreign, folded)


def _folded(context: Context) -> Any:
    """What becomes of each id of the teacher's, where the whole one teaches fewer."""
    import torch

    from edgeslm.models.subset import first_pieces
    from edgeslm.teachers.folded import Folding

    part, kept = context.recipe.student.vocabulary, context.kept
    if part is None or kept is None or not part.folds:
        return None
    into = first_pieces(context.whole_tokenizer, context.tokenizer, kept)
    both = (context.whole_tokenizer, context.tokenizer) if part.removed == "own_tokens" else None
    here, becomes = (torch.tensor(x, device=context.compute.device) for x in (kept, into))
    return Folding(here, becomes, both)


def another(context: Context) -> Any:
    """load(spec) -> a teacher, for schemes that change teachers in training."""
    from edgeslm.teachers.live import LiveTeacher

    def load(spec: str) -> Any:
        context.progress.say(f"  distil: the teacher is now {spec}")
        model = context.load(context.resolve(spec), context.compute.dtype).model
        return LiveTeacher(model.requires_grad_(False))

    return load


def objectives(context: Context, student: Any, guides: Guides | None) -> tuple[Any, list[Any]]:
    """(the recipe's objective, one objective a block for the block-wise scheme), bound to student and teachers."""
    import torch

    from edgeslm.models.blocks import sizes_of
    from edgeslm.schemes import blockwise
    from edgeslm.schemes.objective import Objective

    recipe = context.recipe
    generator = torch.Generator().manual_seed(recipe.seed)
    own = sizes_of(student.config)
    theirs = [sizes_of(m.config) for m in guides.models] if guides else []
    vocabulary = min(student.config.vocab_size, guides.vocabulary) if guides else student.config.vocab_size
    bind = {"vocabulary": vocabulary, "generator": generator, "device": context.compute.device}
    main = Objective.build([t.model_dump() for t in recipe.distill.objective]).bound(own, theirs, **bind)
    if recipe.distill.scheme.kind != "blockwise":
        return main, []
    blocks = blockwise.terms(recipe.distill.scheme, own[0], theirs[0][0])
    return main, [Objective.build(terms).bound(own, theirs, **bind) for terms in blocks]


def on_policy(context: Context, guides: Guides | None) -> Any:
    """The recipe's share of batches that the student writes; None when it has none."""
    from edgeslm.compute import uncompiled
    from edgeslm.data.on_policy import OnPolicy, contrasted, mixed, own_writer
    from edgeslm.data.written import WriteSettings
    from edgeslm.models.stop import stop_ids
    from edgeslm.pipeline.prepare import separator
    from edgeslm.schemes.measure import row_distance

    part = context.recipe.distill.on_policy
    if part is None:
        return None
    settings = WriteSettings(0, 0, 0, seed=context.recipe.seed, **part.sampling.model_dump())
    judge = guides.models[0] if guides else None
    mix = mixed(part.teacher_share) if part.teacher_share else contrasted(part.contrast) if part.contrast else None
    inner = own_writer(settings, set(stop_ids(context.tokenizer)), judge if mix else None, mix)

    def writer(*asked: Any) -> Any:
        with uncompiled():  # compiled layers would be made anew for each length of the text so far
            return inner(*asked)

    far = None if judge is None or part.candidates == 1 else lambda student, batch: row_distance(student, judge, batch)
    return OnPolicy(part.share, part.prompt, writer, separator(context), context.recipe.seed, part.candidates, far)
