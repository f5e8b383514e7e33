"""Stages before training: teacher, data, student."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeslm.artifact import file_sha256
from edgeslm.pipeline.stage import Context, Stage, computing, digest, files, read_json, write_json
from edgeslm.pipeline.vocabulary import origin_source
from edgeslm.recipe import expand


def _teacher_slice(context: Context) -> Any:
    source = context.source
    read = source.sha256, file_sha256(source.tokenizer) if source.tokenizer else None
    return read if context.kept is None else (*read, digest(context.kept), _removed(context))


def _teacher(context: Context, folder: Path) -> None:
    """Resolves, checks and describes the teacher; its tokenizer is written out for everything that follows."""
    from edgeslm.models.load import describe, write_tokenizer
    from edgeslm.pipeline import vocabulary

    summary = vocabulary.cut_summary(context, describe(context.source))
    write_tokenizer(context.tokenizer, folder / "tokenizer")
    source = {"spec": context.source.spec, "kind": context.source.kind, "sha256": context.source.sha256}
    told = {"source": source, **asdict(summary), "dequantised": summary.dequantised}
    if context.kept is not None:
        told["vocabulary"] = vocabulary.facts(context)
        write_json(folder / "vocabulary.json", context.kept)
    write_json(folder / "teacher.json", told)


def _removed(context: Context) -> str | None:
    """What becomes of the teacher's mass on tokens that the recipe does not keep."""
    part = context.recipe.student.vocabulary
    return part.removed if part else None


def _data_slice(context: Context) -> Any:
    part = context.recipe.data
    writes = any(s.kind == "written" for s in part.sources)
    told = part.model_dump(mode="json"), hashes_of(context, part.sources)
    asked = ["answers"] * _marks(context) + ["dialogues"] * _fine_tunes(context)
    return (*told, (context.recipe.seed, computing(context)) if writes else None, *asked)


def hashes_of(context: Context, sources: Any) -> list[Any]:
    """Content of the files that sources of text name."""
    return [files(s.seeds if s.kind == "written" else s.paths, context.base) for s in sources]


def _marks(context: Context) -> bool:
    """Whether rows have to say which tokens are answers."""
    return any(getattr(term, "learn", "all") == "answers" for term in context.recipe.distill.objective)


def _fine_tunes(context: Context) -> bool:
    """Whether the supervised stage learns from the dialogues of `data`, which are then left beside the rows: what a
    teacher writes is written once."""
    return context.recipe.sft is not None and context.recipe.sft.sources is None


def _data(context: Context, folder: Path) -> None:
    """Every source becomes rows; `data.json` records what each gave."""
    from edgeslm.data.rows import Rows, pack

    parts, dialogues = [], []
    for index, source in enumerate(context.recipe.data.sources):
        name, marks = f"{index}:{source.kind}", None
        if _marks(context) or (_fine_tunes(context) and source.kind != "text"):
            found = marked(context, source, index)
            documents, marks = [d.ids for d in found], [d.answers for d in found] if _marks(context) else None
            dialogues += [[[d.ids, d.answers] for d in found]] if source.kind != "text" else []
        else:
            documents = _documents(context, source, index)
        parts.append(pack(documents, context.recipe.data.sequence, separator(context), name, marks))
        context.progress.say(f"  data: {name} gives {len(parts[-1])} rows of {context.recipe.data.sequence} tokens")
    rows = Rows.join(parts)
    rows.save(folder / "rows.safetensors")
    if _fine_tunes(context):
        write_json(folder / "dialogues.json", dialogues)
    facts = {
        "rows": len(rows),
        "tokens": int(rows.mask.sum()),
        "sources": [
            {**source.model_dump(mode="json"), "rows": len(part), "tokens": int(part.mask.sum())}
            for source, part in zip(context.recipe.data.sources, parts, strict=True)
        ],
        **({} if rows.answers is None else {"answer_tokens": int(rows.answers.sum())}),
        "seed": context.recipe.seed if any(s.kind == "written" for s in context.recipe.data.sources) else None,
    }
    write_json(folder / "data.json", facts)


def _documents(context: Context, source: Any, index: int) -> list[list[int]]:
    if source.kind == "written":
        return [d.ids for d in _written(context, source, index)]
    from edgeslm.data import DOCUMENTS

    return DOCUMENTS[source.kind](expand(source.paths, context.base), context.tokenizer)


def marked(context: Context, source: Any, index: int) -> list[Any]:
    """Documents of a source that say which of their tokens are answers (edgeslm.data.answers.Dialogue). Raises
    DataError."""
    from edgeslm.data.answers import Dialogue, dialogues

    if source.kind == "written":
        return _written(context, source, index)
    if source.kind == "chat":
        return dialogues(expand(source.paths, context.base), context.tokenizer)
    return [Dialogue.plain(ids) for ids in _documents(context, source, index)]


def _written(context: Context, source: Any, index: int) -> list[Any]:
    """Prompts in turn, with what the teacher wrote after each as its answer."""
    from edgeslm.data.answers import Dialogue
    from edgeslm.data.written import WriteSettings, prompts_from, write
    from edgeslm.models.stop import stop_ids

    prompts = prompts_from(expand(source.seeds, context.base), context.tokenizer)
    sampling = source.sampling.model_dump()
    settings = WriteSettings(source.rows, source.max_new, source.batch, seed=context.recipe.seed + index, **sampling)
    teacher = context.load_teacher(context.compute.dtype)
    with context.progress.task("teacher writes", source.rows, "texts") as bar:
        texts = write(teacher.model, prompts, settings, stop_ids(context.tokenizer), bar.reach)
    asked = [len(prompts[index % len(prompts)]) for index in range(len(texts))]
    return [Dialogue(ids, [0] * n + [1] * (len(ids) - n)) for ids, n in zip(texts, asked, strict=True)]


def separator(context: Context) -> int:
    """Between documents: the end-of-text token of the vocabulary, which need not be the end of a chat turn."""
    return separator_of(context.tokenizer)


def separator_of(tokenizer: Any) -> int:
    end = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)
    return int(end if end is not None else 0)


def _student_slice(context: Context) -> Any:
    judged = context.recipe.evaluate
    text = files(judged.paths, context.base), judged.context, judged.windows
    part = context.recipe.student
    seeded = part.kind in ("depth", "width", "scratch")  # the seed chooses text to measure importance on, or weights
    origin = origin_source(context)
    source = origin.sha256 if origin else None
    return part.model_dump(mode="json"), text, context.recipe.seed if seeded else None, source, computing(context)


def _student(context: Context, folder: Path) -> None:
    """Measures what decides the student's shape, and what is lost before any training."""
    import torch

    from edgeslm.data.rows import Rows
    from edgeslm.models.turned import save
    from edgeslm.pipeline.heldout import heldout_ids
    from edgeslm.schemes.measure import closeness
    from edgeslm.students import BUILDERS
    from edgeslm.students.build import Built

    rows = Rows.load(context.folders["data"] / "rows.safetensors")
    generator = torch.Generator().manual_seed(context.recipe.seed)
    # new weights are computed from the teacher's, which must not have been rounded to the type of training
    part, source, cut = context.recipe.student, origin_source(context), context.kept is not None
    exact = part.kind in ("width", "existing", "scratch") or source is not None or cut
    context = context.exact if exact else context
    ids = rows.ids[torch.randperm(len(rows), generator=generator)].long().to(context.compute.device)
    teacher = context.load_teacher(torch.float32 if exact else context.compute.dtype).model
    origin = context.load(source, torch.float32).model if source else teacher
    if part.kind == "existing":
        built = Built(origin, {"method": "existing", "source": source.sha256})
    else:
        torch.manual_seed(context.recipe.seed)
        built = BUILDERS[part.kind](part, origin, ids, context.progress)
    judged = heldout_ids(context)
    before, after = closeness(teacher, teacher, judged), closeness(built.model, teacher, judged)
    facts = {
        **built.facts,
        "loss_before": before.loss,
        "loss_after": after.loss,
        "kl_after": after.kl,
        "top1_after": after.top1,
        "judged_tokens": after.tokens,
        "parameters_before": sum(p.numel() for p in teacher.parameters()),
        "parameters_after": sum(p.numel() for p in built.model.parameters()),
    }
    if built.rivals:
        facts["choices"] = _choices(built, after, origin, teacher, judged)
    if cut:
        facts["vocabulary"] = _vocabulary(context, built.model)
    if built.new_weights or (part.kind != "existing" and (source or cut)):
        save(built.model, folder / "model")
        facts["weights"] = file_sha256(folder / "model" / "model.safetensors")
    write_json(folder / "importance.json", facts)
    context.progress.say(
        f"  student: {facts['parameters_after']:,} of {facts['parameters_before']:,} parameters; before training "
        f"its KL to the teacher is {after.kl:.3f} nats a token"
    )


def _choices(built: Any, chosen: Any, origin: Any, teacher: Any, judged: Any) -> list[dict[str, Any]]:
    """The choice of layers that was made and its rivals, by what each loses before any training."""
    from edgeslm.schemes.measure import closeness
    from edgeslm.students import depth

    rows = [("chosen", built.facts["kept"], chosen)]
    for name, kept in built.rivals.items():
        rows.append((name, kept, closeness(depth.prune(origin, kept, share=True), teacher, judged)))
    return [{"choice": name, "kept": kept, "loss": found.loss, "kl": found.kl} for name, kept, found in rows]


def _vocabulary(context: Context, student: Any) -> dict[str, Any]:
    """What fewer tokens cost before any training: the whole teacher, the teacher of these tokens, the student."""
    import torch

    from edgeslm.pipeline.vocabulary import measured

    told = dict(read_json(context.folders["teacher"] / "teacher.json")["vocabulary"])
    told["whole_teacher"] = measured(context, context.load(context.source, torch.float32, whole=True).model, whole=True)
    told["teacher"] = measured(context, context.load_teacher(torch.float32).model)
    return told | {"student": measured(context, student)}


def student_model(context: Context) -> Any:
    """The student before distillation, in float32: as fine-tuned, or as built, its channels equalised where the recipe
    wants it."""
    from edgeslm.pipeline.equalising import moved

    return moved(context, made_student(context))


def made_student(context: Context) -> Any:
    """As fine-tuned, or as built."""
    tuned = context.folders.get("sft")
    return kept_model(context, tuned) if tuned else built_student(context)


def cast(model: Any, dtype: Any) -> Any:
    """In place: its weights alone, buffers keep their type."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def kept_model(context: Context, folder: Path) -> Any:
    """The student that a stage has left in its folder, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from edgeslm.models.turned import straighten

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, local_files_only=True)
    model = straighten(model)
    model.set_attn_implementation(context.recipe.distill.train.attention)
    model.to(context.compute.device)  # type: ignore[arg-type]  # its wrapper hides nn.Module's signature
    return model.eval()


def built_student(context: Context) -> Any:
    """New weights as kept, or the teacher without the layers that were dropped."""
    import torch

    from edgeslm.students import depth

    folder = context.folders["student"]
    facts = read_json(folder / "importance.json")
    if "weights" in facts:
        return kept_model(context, folder)
    if "source" in facts:
        return context.load(origin_source(context), torch.float32).model
    teacher = context.load_teacher(torch.float32).model
    return depth.prune(teacher, facts["kept"]) if "kept" in facts else teacher


def built_how(context: Context) -> tuple[Any, Any]:
    """What the student stage decided; its measurements (and the text they were taken on) do not matter to training."""
    facts = read_json(context.folders["student"] / "importance.json")
    return facts["method"], facts.get("source", facts.get("weights", facts.get("kept")))


def made_how(context: Context) -> tuple[Any, ...]:
    """How it was built and what fine-tuning made of it."""
    tuned = context.folders.get("sft")
    return (*built_how(context), *([read_json(tuned / "sft.json")["weights"]] if tuned else []))


TEACHER = Stage("teacher", (), _teacher_slice, _teacher)
DATA = Stage("data", ("teacher",), _data_slice, _data)
STUDENT = Stage("student", ("teacher", "data"), _student_slice, _student)
