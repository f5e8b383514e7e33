"""What `edgeslm export RUN --bundle DIR` and `--to DESTINATION` do, apart from how they print it."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeslm import units
from edgeslm.artifact import Artifact, path_sha256
from edgeslm.cli.actions import export_again, frozen_folder
from edgeslm.errors import DataError, ExportError

if TYPE_CHECKING:
    from edgeslm.export.bundle import Origin

SHIPPED = {"gguf": "student.gguf", "onnx": "student-onnx"}
# what a card quotes of a run's evaluation, in this order
QUALITY = {
    "kl": "KL from the teacher, nats a token",
    "top1_agreement": "tokens on which it agrees with the teacher",
    "perplexity": "perplexity of held-out text",
}
SPEED = ("decode", "prefill", "time_to_first_token", "pss_peak")


def bundle(run: Path, out: Path, kind: str, part_size: str | None, licence: str, name: str) -> dict[str, Any]:
    """A run's student as a bundle, opened again and checked. `out` ending in .zip makes one file of it.

    Raises ExportError, ModelError, DataError."""
    from edgeslm.export import bundle as bundles
    from edgeslm.export.bundle_read import opened

    try:
        part_bytes = units.parse_bytes(part_size)
    except ValueError as error:
        raise DataError(f"--part-size {part_size}: {error}") from error
    artifact, frozen, origin = student_of(run, kind)
    options: dict[str, Any] = {"part_bytes": part_bytes, "licence": licence, "name": name}
    if out.suffix != ".zip":
        bundles.write(artifact, frozen, origin, out, **options)
        manifest = opened(out).manifest
    else:
        if part_bytes is not None:
            raise ExportError("--part-size cuts the files of a folder; leave it out for a .zip")
        with tempfile.TemporaryDirectory(prefix="edgeslm-") as work:
            folder = Path(work) / out.stem
            bundles.write(artifact, frozen, origin, folder, **options)
            manifest = opened(folder).manifest
            zipped(folder, out)
    return {"path": str(out), "name": manifest["name"], "bytes": manifest["bytes"], "files": len(manifest["files"]),
            "licence": manifest["licence"]["id"], "template": manifest["template"] is not None}  # fmt: skip


def zipped(folder: Path, out: Path) -> None:
    """One archive, files stored as they are (weights do not shrink), the manifest first. Atomic."""
    from edgeslm.export.bundle_files import MANIFEST, SEAL
    from edgeslm.export.place import put_in_place

    files = sorted(p for p in folder.rglob("*") if p.is_file())
    files.sort(key=lambda p: p.name not in (MANIFEST, SEAL))
    with (
        put_in_place(out, sum(p.stat().st_size for p in files)) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive,
    ):
        for path in files:
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())  # 1980: the same student, the same bytes
            with archive.open(entry, "w") as target:
                target.write(path.read_bytes())


def deliver(
    run: Path, destination: str, out: Path | None, licence: str, name: str, kind: str | None = None,
    accuracy_level: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`--to`: the folder for ollama, onnxruntime-genai, a model hub or optimum. Raises ExportError, ModelError."""
    from edgeslm.export import destinations

    if destination not in destinations.DESTINATIONS:
        raise ExportError(f"--to {destination}: no such destination; known are {', '.join(destinations.DESTINATIONS)}")
    container = destinations.DESTINATIONS[destination][2]
    if kind is not None and container not in ("any", kind):
        raise ExportError(f"--to {destination} takes {container} and --kind says {kind}; leave --kind away")
    target = out or run / destination
    if destination == "optimum":
        return _for_optimum(run, target, licence, name, accuracy_level)
    if accuracy_level is not None:
        raise ExportError(f"--accuracy-level does not go with --to {destination}; it goes with --to optimum")
    artifact, frozen, origin = student_of(run, kind or ("gguf" if container == "any" else container))
    destinations.write(destination, artifact, frozen, origin, target, licence, name)
    return {"path": str(target), "to": destination, "bytes": artifact.bytes}


def _for_optimum(run: Path, target: Path, licence: str, name: str, accuracy_level: int | None) -> dict[str, Any]:
    """A graph of its own, made and verified before its folder is."""
    from edgeslm.export import destinations, optimum
    from edgeslm.export.bundle import refuse_other_folder
    from edgeslm.export.verify import verify
    from edgeslm.quantize.frozen import Frozen

    frozen = Frozen.load(frozen_folder(run))
    level = 4 if accuracy_level is None else accuracy_level
    if level not in (0, 4):
        raise ExportError("--accuracy-level is 0 or 4")
    refuse_other_folder(target, destinations.DESTINATIONS["optimum"][1])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".edgeslm-", dir=target.parent) as work:
        artifact = optimum.export(frozen, Path(work) / "onnx", accuracy_level=level)
        found = verify(artifact, frozen, optimum.stored)
        if found["exact"] != found["tensors"]:
            raise ExportError(f"{target}: {found['first_mismatch']} differs from what was trained; it was not written")
        destinations.write("optimum", artifact, frozen, origin_of(run, frozen, artifact), target, licence, name)
    counts = {key: found[key] for key in ("tensors", "exact", "planned", "planned_exact")}
    return {"path": str(target), "to": "optimum", "bytes": artifact.bytes, **counts}


def student_of(run: Path, kind: str) -> tuple[Artifact, Any, Origin]:
    """The shipped file of a run (exported and verified again where it is not there or not as it was), the frozen
    student behind it, and where it comes from. Raises ExportError, ModelError."""
    from edgeslm.quantize.frozen import Frozen

    if kind not in SHIPPED:
        raise ExportError(f"--kind {kind}: no such container; known are {', '.join(SHIPPED)}")
    frozen = Frozen.load(frozen_folder(run))
    artifact = _shipped(run, kind)
    if artifact is None:
        found = export_again(run, kind, None, None)
        artifact = Artifact.from_json({k: v for k, v in found.items() if k in Artifact.__dataclass_fields__})
    return artifact, frozen, origin_of(run, frozen, artifact)


def _shipped(run: Path, kind: str) -> Artifact | None:
    record = run / "run.json"
    stages = json.loads(record.read_text(encoding="utf-8"))["stages"] if record.exists() else {}
    folder = run / stages.get("export", "")
    if "export" not in stages or not (folder / "artifacts.json").is_file():
        return None
    for row in json.loads((folder / "artifacts.json").read_text(encoding="utf-8")):
        path = folder / row["name"]
        if row["name"] == SHIPPED[kind] and path.exists() and path_sha256(path) == row["sha256"]:
            return Artifact.from_json({**row, "path": path})
    return None


def origin_of(run: Path, frozen: Any, artifact: Artifact) -> Origin:
    """From the run folder's records; a frozen student alone knows only its teacher and recipe."""
    from edgeslm.export.bundle import Origin

    base, recipe = frozen.metadata.get("base_model", "an unrecorded teacher"), frozen.metadata.get("recipe", "")
    notes = tuple(filter(None, (frozen.metadata.get("note", ""),)))
    if not (run / "run.json").exists():
        return Origin(base, recipe=recipe, learned_from=_sources(recipe), notes=notes)
    from edgeslm.report.folder import read

    content = read(run)
    quality = {m.metric: m for m in content.quality if m.where.artifact == artifact.name}
    results = [
        {"metric": metric, "value": quality[metric].median, "unit": quality[metric].unit, "text": words}
        for metric, words in QUALITY.items()
        if metric in quality
    ]
    devices = [
        {
            "name": str(m.where.device.get("name") or m.where.device.get("cpu") or "an unnamed machine"),
            "runtime": m.where.runtime, "threads": m.where.threads,
            "metric": m.metric, "value": m.median, "unit": m.unit,
        }
        for metric in SPEED
        for m in content.speed
        if m.metric == metric and m.where.artifact == artifact.name and m.kind == "measured"
    ]  # fmt: skip
    if judged := content.judged.get("files"):
        notes += (f"Held-out text: {', '.join(map(str, judged))}.",)
    return Origin(base, content.name, recipe, _sources(recipe), tuple(results), tuple(devices), notes)


def _sources(recipe: str) -> tuple[str, ...]:
    """What the student read, from the recipe that made it."""
    import yaml

    try:
        data = (yaml.safe_load(recipe) or {}).get("data") or {}
        sources = [s for s in data.get("sources", []) if isinstance(s, dict)]
    except (yaml.YAMLError, AttributeError):
        return ()
    told = []
    for source in sources:
        where = ", ".join(map(str, source.get("paths") or source.get("seeds") or [])) or str(source.get("name", ""))
        share = f", share {source['share']}" if source.get("share") is not None else ""
        told.append(f"{source.get('kind', 'text')}{f' ({where})' if where else ''}{share}")
    return tuple(told)


def export(
    run: Path, into: Path | None, to: str | None, kind: str | None, out: Path | None, part_size: str | None,
    licence: str, name: str, as_json: bool, accuracy_level: int | None = None,
) -> str:  # fmt: skip
    """What `edgeslm export` prints for `--bundle` or `--to`. Raises DataError for options that do not go together."""
    if into is not None and to is not None:
        raise DataError("--bundle and --to write different things; give one of them")
    if into is not None:
        if out is not None:
            raise DataError("--bundle names the place itself; leave --out away")
        if accuracy_level is not None:
            raise DataError("--accuracy-level goes with --kind onnx alone; a bundle takes the run's own file")
        made = bundle(run, into, kind or "gguf", part_size, licence, name)
        size = units.byte_count(made["bytes"])
        line = f"{made['path']}: {made['name']}, {made['files']} files, {size}, every one checked; {made['licence']}"
    else:
        if part_size is not None:
            raise DataError("--part-size goes with --bundle")
        made = deliver(run, str(to), out, licence, name, kind, accuracy_level)
        exact = f", {made['exact']} of {made['tensors']} tensors bitwise exact" if "exact" in made else ""
        line = f"{made['path']}: ready for {made['to']}{exact}"
    return json.dumps(made, indent=1) if as_json else line
