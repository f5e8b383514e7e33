"""Bring a runtime's job to a device and the result back: the one place where the two meet.

Every way a worker can fail becomes one RuntimeFailure with one sentence.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.devices.base import Completed, Device
from edgeslm.errors import DeviceError, EdgeSLMError, RuntimeFailure
from edgeslm.measurement import Where
from edgeslm.runtimes import RUNTIMES
from edgeslm.runtimes.base import Job, Runtime

Progress = Callable[[int, int], None]
HOSTS = {"python": "Python with its packages", "native": "a shell", "page": "a browser"}
# options of llama.cpp where a file is judged: nothing but its own grids may round
EXACT: dict[str, Any] = {"kv": "f32", "flash_attention": "off"}


@dataclass(frozen=True)
class Outcome:
    """A parsed result, the job that gave it, its arrays as local files; `note` says what was out of the ordinary."""

    runtime: Runtime
    job: Job
    result: dict[str, Any]
    arrays: dict[str, Path] = field(default_factory=dict)
    note: str = ""

    def where(self, artifact: Artifact, device: Device, temperature_c: float | None = None) -> Where:
        engine = self.result["engine"]
        return Where(
            device=dict(device.facts),
            runtime=str(engine.get("runtime", self.runtime.title)),
            runtime_version=str(engine.get("version", "unknown")),
            artifact=artifact.name,
            artifact_sha256=artifact.sha256,
            artifact_format=artifact.format,
            job=self.job.described(),
            threads=int(self.job.spec["threads"]),
            temperature_c=temperature_c,
        )


def runtime_for(artifact: Artifact, hosts: tuple[str, ...] = ("python",)) -> Runtime:
    """The first one for the artifact's format that a device with these hosts can run. Raises RuntimeFailure."""
    able = [runtime for runtime in RUNTIMES.values() if artifact.format in runtime.formats]
    for host in hosts:
        for runtime in able:
            if runtime.host == host:
                return runtime
    if able:
        needs = " or ".join(sorted({HOSTS[runtime.host] for runtime in able}))
        raise RuntimeFailure(f"{artifact.name}: files of the format '{artifact.format}' need {needs} on the device")
    known = sorted({name for runtime in RUNTIMES.values() for name in runtime.formats})
    raise RuntimeFailure(f"{artifact.name}: no runtime runs the format '{artifact.format}'; known are {known}")


def execute(
    device: Device,
    artifact: Artifact,
    task: dict[str, Any],
    workdir: Path,
    *,
    timeout_s: float,
    on_progress: Progress | None = None,
    on_line: Callable[[str], None] | None = None,
    stdin: Iterable[str] | None = None,
) -> Outcome:
    """Run one task in a fresh process; arrays land in `workdir`. After a signal for which the runtime knows a fallback
    it is tried once more with that. Raises RuntimeFailure, DeviceError."""
    runtime = runtime_for(artifact, device.hosts)
    model = device.push(artifact.path)
    workdir.mkdir(parents=True, exist_ok=True)

    def hear(line: str) -> None:
        progress = parse_line(line).get("progress")
        if on_progress is not None and isinstance(progress, list) and len(progress) == 2:
            on_progress(*progress)
        if on_line is not None:
            on_line(line)

    job, note = runtime.job(artifact.name, model, task, device.facts), ""
    done, remote = _once(device, runtime, job, workdir, timeout_s, hear, stdin)
    fallback = runtime.fallback.get(done.signal or 0, {})
    if not done.timed_out and stdin is None and any(job.spec.get(k) != v for k, v in fallback.items()):
        options = ", ".join(f"{key} = {value}" for key, value in fallback.items())
        note = f"the first run died of {_signal_name(done.signal)}; this is a second one with {options}"
        job = runtime.job(artifact.name, model, {**task, **fallback}, device.facts)
        done, remote = _once(device, runtime, job, workdir, timeout_s, hear, None)
    if not done.ok:
        raise RuntimeFailure(failure_sentence(runtime, artifact.name, task["task"], done, timeout_s))
    result, arrays = _collect(device, runtime, artifact.name, task["task"], done, remote, workdir)
    return Outcome(runtime, job, result, arrays, note)


def execute_keeping(
    device: Device, artifact: Artifact, task: dict[str, Any], workdir: Path, found: Sized, total: int, **options: Any
) -> None:
    """`execute` in a scratch folder, for a task whose answers its `on_line` keeps in `found`: a failure says how many
    of `total` there are. Raises RuntimeFailure, DeviceError."""
    try:
        with scratch(workdir) as folder:
            execute(device, artifact, task, folder, **options)
    except EdgeSLMError as error:
        kept = f"; {len(found)} of {total} answers are kept, the same command goes on from there" if len(found) else ""
        raise type(error)(f"{error}{kept}") from error


def _once(
    device: Device,
    runtime: Runtime,
    job: Job,
    workdir: Path,
    timeout_s: float,
    hear: Callable[[str], None],
    stdin: Iterable[str] | None,
) -> tuple[Completed, Path]:
    """One process -> how it ended, and the folder on the device that holds its files."""
    for stale in ("result.json", "job.json"):
        (workdir / stale).unlink(missing_ok=True)
    (workdir / "job.json").write_text(json.dumps(job.spec), encoding="utf-8")
    if job.folder is None:
        worker = device.push(job.worker)
    else:
        worker = f"{device.push(job.folder)}/{job.worker.relative_to(job.folder).as_posix()}"
    spec = device.push(workdir / "job.json")
    argv = [device.python] if runtime.host == "python" else []
    return device.run([*argv, worker, spec], timeout_s, hear, stdin), Path(spec).parent


def _collect(
    device: Device, runtime: Runtime, artifact: str, task: str, done: Completed, remote: Path, workdir: Path
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Pull and check the result and its arrays. Raises RuntimeFailure when they are not what a worker writes."""
    if last_document(done).get("ok") is not True:
        raise RuntimeFailure(
            f"{runtime.title} on {artifact} ({task}) ended without saying so, its result is not to be trusted; "
            f"last words: {without_paths(done.last_error_line) or 'none'}"
        )
    try:
        device.pull(str(remote / "result.json"), workdir / "result.json")
        result = json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    except (ValueError, DeviceError):
        result = None
    result = runtime.parse(result, task)
    arrays = {}
    for name, file in result.get("arrays", {}).items():
        local = workdir / Path(file).name  # a plain name: a result cannot point outside the folder
        device.pull(str(remote / local.name), local)
        arrays[name] = local
    return result, arrays


def last_document(done: Completed) -> dict[str, Any]:
    """What the last non-empty stdout line says."""
    return parse_line(next((line for line in reversed(done.stdout_tail.splitlines()) if line.strip()), ""))


def parse_line(line: str) -> dict[str, Any]:
    """A worker's stdout line; empty when it is not a JSON object."""
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def without_paths(text: str) -> str:
    """Folders are left out: a report may be shared, and where a file lay on one machine helps nobody else."""
    return re.sub(r"(?:[A-Za-z]:)?(?:[/\\\\][^\s/\\\\'\":]+)+[/\\\\](?=[^\s/\\\\'\":]+)", "", text)


def failure_sentence(runtime: Runtime, artifact: str, task: str, done: Completed, timeout_s: float) -> str:
    """One sentence: what failed, on what, why as far as known, and what to do."""
    what = f"{runtime.title} on {artifact} ({task})"
    words = without_paths(done.last_error_line)
    tail = f"; last words: {words}" if words else ""
    if done.timed_out:
        return f"{what} gave no result within {timeout_s:.0f} s and was stopped; allow more time or a shorter job{tail}"
    if done.oom:
        return f"{what} was killed (SIGKILL), most likely out of memory; use a smaller model or context{tail}"
    if done.signal:
        return f"{what} crashed with {_signal_name(done.signal)}; try another build or version of it{tail}"
    said = last_document(done)
    if said.get("error"):
        return f"{what} failed: {said['error']}"
    return f"{what} ended with exit code {done.returncode}{tail or '; it said nothing'}"


def _signal_name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A folder for one job, gone afterwards (reference log-probabilities are large)."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="job-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
