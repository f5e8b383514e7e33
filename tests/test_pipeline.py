"""The main path on a tiny teacher through the command line: same again, killed and resumed, bad input, a whole run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

from edgeslm import recipe as recipes
from edgeslm.artifact import Artifact
from edgeslm.pipeline.check import check
from edgeslm.pipeline.follow import worse_than_start
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress
from edgeslm.quantize.frozen import Frozen

needs_llama_cpp = pytest.mark.skipif(
    not list(Path(sys.prefix).glob("lib/python*/site-packages/llama_cpp")),
    reason="needs llama-cpp-python: python -m edgeslm.runtimes.native",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    tiny.recipe(made)
    return made


def edgeslm(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeslm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def distilled(folder: Path, runs: Path, *overrides: str) -> Path:
    loaded = recipes.load(folder / "tiny.yaml", overrides)
    root = run(loaded, folder, runs, Progress(quiet=True), until="distill")
    return root / json.loads((root / "run.json").read_text())["stages"]["distill"]


def same_weights(a: Path, b: Path) -> bool:
    left, right = Frozen.load(a / "frozen"), Frozen.load(b / "frozen")
    assert left.tensors.keys() == right.tensors.keys() and len(left.tensors) > 10
    return all(
        torch.equal(t.codes, right.tensors[n].codes)
        and all(torch.equal(t.scales[k], right.tensors[n].scales[k]) for k in t.scales)
        for n, t in left.tensors.items()
    )


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    return distilled(folder, tmp_path_factory.mktemp("whole"))


def test_same_seed_same_weights_other_seed_other_weights(folder, whole, tmp_path):
    assert same_weights(whole, distilled(folder, tmp_path / "again"))
    assert not same_weights(whole, distilled(folder, tmp_path / "other", "seed=1"))


def test_what_trained_is_what_is_frozen_and_on_its_grid(whole):
    frozen = Frozen.load(whole / "frozen")
    assert {t.format for t in frozen.tensors.values()} == {"q4_0", "f32"}
    assert frozen.tensors["model.embed_tokens.weight"].format == "q4_0"
    assert all(t.format == "f32" for n, t in frozen.tensors.items() if "norm" in n)
    assert frozen.config["num_hidden_layers"] == 3


def test_log_and_summary_hold_what_the_report_reads(whole):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["grid"] for line in lines] == [False, True, True, True, True, True, True, True]
    assert lines[-1]["tokens"] == 8 * 128
    summary = json.loads((whole / "summary.json").read_text())
    assert [p["tokens"] for p in summary["heldout"]] == [0, 256, 512, 768, 1024]
    assert 0 < summary["share_of_bound"] < 1
    assert not (whole / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("lines", [1, 3, 6])
def test_killed_and_resumed_equals_never_killed(folder, whole, tmp_path, lines):
    """SIGKILL, which no handler sees, once the log holds some lines; then the same command again."""
    command = [sys.executable, "-m", "edgeslm", "run", folder / "tiny.yaml", "--runs", tmp_path, "--until", "distill"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        logs = list(tmp_path.glob("tiny/distill-*/log.jsonl"))
        if logs and len(logs[0].read_text().splitlines()) >= lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL  # else nothing was resumed
    done = edgeslm("run", folder / "tiny.yaml", "--runs", tmp_path, "--until", "distill")
    assert done.returncode == 0, done.stderr
    (resumed,) = tmp_path.glob("tiny/distill-*")
    assert same_weights(whole, resumed)
    assert [json.loads(x)["step"] for x in (resumed / "log.jsonl").read_text().splitlines()] == list(range(1, 9))


def test_a_finished_stage_is_not_done_again(folder, whole):
    before = (whole / "frozen" / "frozen.safetensors").stat().st_mtime_ns
    distilled(folder, whole.parent.parent)
    assert (whole / "frozen" / "frozen.safetensors").stat().st_mtime_ns == before


def test_a_stage_depends_on_the_content_of_what_it_reads(folder, tmp_path):
    """Other text to judge by gives another evaluation and student stage, and trains nothing anew."""
    import shutil

    from edgeslm.pipeline.ship import EVALUATE
    from edgeslm.pipeline.stage import stage_hash

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "judge.txt").write_text("Quite another text about a garden and its snails. " * 20, encoding="utf-8")
    hashes = []
    for base in (folder, other):
        root = distilled(base, tmp_path / "runs").parent
        stages = json.loads((root / "run.json").read_text())["stages"]
        context = Context(recipes.load(base / "tiny.yaml"), base, root, Progress(quiet=True))
        context.folders = {name: root / place for name, place in stages.items()} | {"export": root / "export-x"}
        hashes.append((stages, stage_hash(EVALUATE, context)))
    (first, first_evaluate), (second, second_evaluate) = hashes
    assert first["distill"] == second["distill"] and first["data"] == second["data"]
    assert first["student"] != second["student"] and first_evaluate != second_evaluate


def test_two_runs_of_one_folder_do_not_meet(folder, whole, tmp_path):
    from filelock import FileLock

    root = tmp_path / "tiny"
    root.mkdir()
    with FileLock(root / ".lock"):
        done = edgeslm("run", folder / "tiny.yaml", "--runs", tmp_path, "--until", "teacher")
    assert done.returncode == 2 and "another run is working here" in done.stderr


def test_zero_steps_is_the_student_as_built(folder, tmp_path):
    untrained = distilled(folder, tmp_path, "distill.train.steps=0")
    frozen = Frozen.load(untrained / "frozen")
    kept = json.loads(next(tmp_path.glob("tiny/student-*/importance.json")).read_text())["kept"]
    source = dict(tiny.llama().named_parameters())
    name = "layers.2.mlp.up_proj.weight"
    close = (frozen.tensors[f"model.{name}"].decode() - source[f"model.layers.{kept[2]}.mlp.up_proj.weight"]).abs()
    assert close.max() < 0.1 and len(kept) == 3


@needs_llama_cpp
def test_a_whole_run_through_the_command_line(folder, tmp_path):
    both = ["export.kinds=[gguf, onnx]", "export.teacher=[gguf-f32, gguf-f16, onnx-f32]"]
    done = edgeslm("run", folder / "tiny.yaml", *both, "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    root = Path(done.stdout.strip())
    record = json.loads((root / "run.json").read_text())
    assert list(record["stages"]) == ["teacher", "data", "student", "distill", "export", "evaluate", "benchmark"]
    assert record["problems"] == []
    exact = json.loads((root / record["stages"]["export"] / "exact.json").read_text())
    files = ["student.gguf", "student-onnx", "teacher-f32.gguf", "teacher-f16.gguf", "teacher-f32-onnx"]
    assert [e["artifact"] for e in exact] == files
    assert all(e["exact"] == e["tensors"] > 20 for e in exact)
    assert all(e["planned_exact"] == e["planned"] > 20 for e in exact[:2])
    results = json.loads((root / "results.json").read_text())
    metrics = {(m["metric"], m["where"]["artifact"]) for m in results["measurements"]}
    assert {("kl", f) for f in files[:2]} | {("decode", f) for f in files} <= metrics
    assert ("perplexity", "teacher-f32.gguf") in metrics
    assert str(tmp_path) not in (root / "report.html").read_text() + (root / "results.json").read_text()
    assert "student.gguf" in (root / "report.md").read_text()
    assert (root / "report.html").stat().st_size > 10_000
    again = edgeslm("run", folder / "tiny.yaml", *both, "--runs", tmp_path)
    assert again.returncode == 0 and again.stderr.count("done before") == 7
    exported = edgeslm("export", root, "--out", tmp_path / "again.gguf", "--json")
    assert json.loads(exported.stdout)["exact"] == exact[0]["tensors"], exported.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.train.stepz=3", "did you mean 'steps'"),
        ("distill.objective=[{loss: forward_lk}]", "did you mean 'forward_kl'"),
        ("distill.objective=[{loss: forward_kl, temprature: 2}]", "has no option 'temprature'"),
        ("student.layers=9", "the teacher has 4 layers"),
        ("quantize.plan=[{pattern: '*', format: q4_2}]", "unknown format 'q4_2'"),
        ("quantize.plan=[{pattern: '*', format: q4_k}]", "rows of 64 are no multiple of the 256-weight blocks"),
        ("quantize.plan=[{pattern: 'nothing', format: q4_0}]", "no rule of the plan matches"),
        ("teacher.model=nowhere.gguf", "nowhere.gguf"),
        ("data.sources.0.paths=[none.txt]", "no file matches 'none.txt'"),
        ("evaluate.paths=[learn.txt]", "both trained on and judged by"),
    ],
)
def test_bad_recipes_are_one_sentence_and_exit_2_before_any_compute(folder, tmp_path, override, words):
    done = edgeslm("run", folder / "tiny.yaml", override, "--runs", tmp_path)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "tiny").exists()


def test_check_tells_all_problems_and_writes_nothing(folder, tmp_path):
    overrides = ["student.layers=9", "distill.objective=[{loss: nope}]", "teacher.sha256=00"]
    loaded = recipes.load(folder / "tiny.yaml", overrides[:2])
    found = check(Context(loaded, folder, tmp_path / "none", Progress(quiet=True)))
    assert len(found.problems) == 2 and not (tmp_path / "none").exists()


def test_the_quickstart_recipe_checks_out():
    """Fetches the teacher where it is not in the cache."""
    done = edgeslm("check", Path(__file__).parent.parent / "recipes" / "quickstart.yaml", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert plan["student's weights"].startswith("63.8 MB") and "24 layers" in plan["student"]


def test_check_shows_the_plan(folder):
    done = edgeslm("check", folder / "tiny.yaml", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert "4.61 bits" in plan["student's weights"] and "8 steps of 128 tokens" in plan["training"]


def test_text_that_is_not_utf8_is_refused_before_any_compute(folder, tmp_path):
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    done = edgeslm("run", folder / "tiny.yaml", "data.sources.0.paths=[latin.txt]", "--runs", tmp_path)
    assert done.returncode == 2 and "byte 3 is not UTF-8" in done.stderr


def test_a_teacher_with_another_vocabulary_is_refused(folder, tmp_path):
    """Tokenizer and embedding that do not belong together."""
    broken = tiny.teacher_folder(tmp_path / "broken")
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(64)])
    tokenizer.save_pretrained(broken)
    done = edgeslm("run", folder / "tiny.yaml", f"teacher.model={broken}", "--runs", tmp_path)
    assert done.returncode == 2 and "do not belong together" in done.stderr, done.stderr


def test_ctrl_c_leaves_with_a_sentence_and_the_run_goes_on(folder, whole, tmp_path):
    command = [sys.executable, "-m", "edgeslm", "run", folder / "tiny.yaml", "--runs", tmp_path]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not list(tmp_path.glob("tiny/data-*")):
        time.sleep(0.002)  # early: training, export and evaluation are still to come
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on from there" in stderr and "Traceback" not in stderr, stderr
    assert edgeslm("run", folder / "tiny.yaml", "--runs", tmp_path, "--until", "distill").returncode == 0
    (resumed,) = tmp_path.glob("tiny/distill-*")
    assert same_weights(whole, resumed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs root and the right to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_too_little_disk_is_refused_before_any_compute(folder, small_disk):
    (small_disk / "filler").write_bytes(bytes(63 << 20))
    done = edgeslm("run", folder / "tiny.yaml", "--runs", small_disk)
    assert done.returncode == 2 and "GB free" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_disk_that_fills_up_is_one_sentence_and_the_run_goes_on(folder, whole, small_disk):
    command = [sys.executable, "-m", "edgeslm", "run", folder / "tiny.yaml", "--runs", small_disk, "--until", "distill"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not list(small_disk.glob("tiny/data-*/data.json")):
        time.sleep(0.001)
    filler = small_disk / "filler"
    try:
        with filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
    except OSError:
        pass
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in stderr and "what was finished is kept" in stderr, stderr
    filler.unlink()
    assert edgeslm("run", folder / "tiny.yaml", "--runs", small_disk, "--until", "distill").returncode == 0
    (resumed,) = small_disk.glob("tiny/distill-*")
    assert same_weights(whole, resumed)


def bare_context(folder: Path, root: Path) -> Context:
    return Context(recipes.load(folder / "tiny.yaml"), folder, root, Progress(quiet=True))


def test_a_retry_that_is_stopped_while_it_clears_does_not_look_finished(folder, tmp_path, monkeypatch):
    from edgeslm.pipeline import run as run_module
    from edgeslm.pipeline.stage import Stage, write_json

    done: list[str] = []

    def work(context: Context, place: Path) -> None:
        done.append("once more")
        if len(done) == 1:
            write_json(place / "problems.json", [{"artifact": "a.gguf", "what": "crashed"}])

    def stopped(place: Path) -> None:
        (place / "problems.json").unlink()
        raise KeyboardInterrupt

    stage, context = Stage("evaluate", (), lambda context: "slice", work), bare_context(folder, tmp_path)
    run_module._run_stage(context, stage)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.shutil, "rmtree", stopped)
        run_module._run_stage(context, stage)
    run_module._run_stage(context, stage)
    assert len(done) == 2


@pytest.mark.parametrize("name", ["_evaluate", "_benchmark"])
def test_kept_memory_is_given_back_before_workers_run(folder, tmp_path, monkeypatch, name):
    from edgeslm import compute
    from edgeslm.pipeline import ship

    said: list[str] = []

    def look(*_: object) -> None:
        said.append("looked at the files")
        raise InterruptedError

    monkeypatch.setattr(compute, "return_freed_memory", lambda: said.append("gave memory back"))
    monkeypatch.setattr(ship, "artifacts_of", look)
    monkeypatch.setattr(ship, "heldout_windows", look)
    with pytest.raises(InterruptedError):
        getattr(ship, name)(bare_context(folder, tmp_path), tmp_path)
    assert said == ["gave memory back", "looked at the files"]


def test_every_family_of_teachers_gives_a_student(folder, tmp_path):
    """The Llama is in all other tests; Qwen2's config lists a type for every layer, which must be cut with them."""
    assert list(tiny.FAMILIES) == ["llama", "qwen2"]
    teacher = tiny.teacher_folder(tmp_path / "teacher", "qwen2")
    frozen = Frozen.load(distilled(folder, tmp_path / "runs", f"teacher.model={teacher}") / "frozen")
    assert frozen.arch == "qwen2" and frozen.config["num_hidden_layers"] == len(frozen.config["layer_types"]) == 3
    too_many = recipes.load(folder / "tiny.yaml", [f"teacher.model={teacher}", "student.layers=9"])
    found = check(Context(too_many, folder, tmp_path / "none", Progress(quiet=True)))
    assert found.problems == ["student.layers is 9 but the teacher has 4 layers"]


DECIDES_NOTHING = {
    "__init__.py", "__main__.py", "doctor.py", "errors.py", "progress.py", "pipeline/encoder/check.py",
    "pipeline/encoder/__init__.py", "device_record.py", "fleet.py", "privacy.py", "statistics.py", "training_memory.py",
    "units.py", "pipeline/__init__.py", "pipeline/learned.py", "pipeline/run.py", "pipeline/serve.py",
}  # fmt: skip
SHOWS = ("recipe/", "report/", "cli/", "insight/", "profiles/", "training_cost/", "pipeline/check")
SHOWS += tuple(f"design/{name}" for name in ("__init__", "device", "grids", "propose", "shapes", "teacher"))


def test_a_stage_depends_on_the_code_that_decides_its_result(folder, whole, tmp_path, monkeypatch):
    import shutil

    from edgeslm.pipeline import stage as stage_module
    from edgeslm.pipeline.run import STAGES

    package = stage_module.PACKAGE
    context = bare_context(folder, whole.parent)
    absent = ("sft", "equalise", "plan", "round", "record")  # of this recipe
    stages = [s for s in STAGES if s.name not in absent]
    context.folders = {s.name: whole.parent / f"{s.name}-x" for s in stages} | {
        "student": next(whole.parent.glob("student-*"))
    }

    def hashes(changed: str = "") -> dict[str, str]:
        copied = tmp_path / f"code-{changed.replace('/', '-')}"
        shutil.copytree(package, copied, ignore=lambda _, names: [n for n in names if n in ("assets", "__pycache__")])
        if changed:
            (copied / changed).write_text((copied / changed).read_text() + "# mended\n")
        monkeypatch.setattr(stage_module, "PACKAGE", copied)
        return {s.name: stage_module.stage_hash(s, context) for s in stages}

    before = hashes()
    training = {"teacher", "data", "student", "distill"}
    for changed, wanted in {
        "formats/legacy.py": training,
        "pipeline/distill.py": training,
        "export/gguf.py": {"export"},
        "evaluate/closeness.py": {"evaluate", "benchmark"},
        "runtimes/workers/scoring.py": {"evaluate", "benchmark"},
        "benchmark/run.py": {"benchmark"},
        "benchmark/doubts.py": {"benchmark"},
        "report/page.py": set(),
    }.items():
        after = hashes(changed)
        assert {name for name in before if before[name] != after[name]} == wanted, changed
    monkeypatch.setattr(stage_module, "version", lambda name: "another" if name == "transformers" else "same")
    first = stage_module.stage_hash(stages[0], context)
    monkeypatch.setattr(stage_module, "version", lambda name: "same")
    assert first != stage_module.stage_hash(stages[0], context)


def test_every_file_of_the_package_is_said_to_decide_a_result_or_not_to():
    """A new file must be given to the stages whose results it decides."""
    from edgeslm.pipeline.encoder import ENCODER_STAGES
    from edgeslm.pipeline.run import STAGES
    from edgeslm.pipeline.stage import PACKAGE

    rooms = {room for stage in (*STAGES, *ENCODER_STAGES) for room in stage.rooms}
    assert all((PACKAGE / room).exists() for room in rooms)
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        decides = name in rooms or name.split("/")[0] in rooms
        told = name in DECIDES_NOTHING or name.startswith(SHOWS)
        assert decides != told, name


def problems(folder: Path, root: Path, *overrides: str) -> list[str]:
    loaded = recipes.load(folder / "tiny.yaml", overrides)
    return check(Context(loaded, folder, root, Progress(quiet=True))).problems


@pytest.mark.parametrize("missing", ["onnx-ir", "onnx", "onnxruntime", "onnxruntime-genai", "llama_cpp_python"])
def test_check_asks_for_what_every_container_needs_of_students_and_of_teachers(folder, tmp_path, monkeypatch, missing):
    from importlib.metadata import PackageNotFoundError

    from edgeslm.pipeline.check import files as check_files

    def version(package: str) -> str:
        if package == missing:
            raise PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(check_files, "version", version)
    other, file = ("gguf", "gguf-f32") if "llama" not in missing else ("onnx", "onnx-f32")
    asked = ("onnx", "onnx-f32") if other == "gguf" else ("gguf", "gguf-f32")
    assert not problems(folder, tmp_path, f"export.kinds=[{other}]", f"export.teacher=[{file}]")
    of_teacher = problems(folder, tmp_path, f"export.kinds=[{other}]", f"export.teacher=[{file}, {asked[1]}]")
    of_student = problems(folder, tmp_path, f"export.kinds=[{asked[0]}]", f"export.teacher=[{file}]")
    for key, found in (("export.teacher", of_teacher), ("export.kinds", of_student)):
        assert [key in p and missing in p and "edgeslm doctor" in p for p in found] == [True]


def test_what_gguf_cannot_say_matters_only_where_gguf_is_written(folder, tmp_path, monkeypatch):
    from edgeslm.errors import ModelError

    def refuse(*_: object) -> None:
        raise ModelError("llama.cpp cannot mimic this tokenizer")

    monkeypatch.setattr("edgeslm.models.gguf_vocab.metadata_from_tokenizer", refuse)
    assert not problems(folder, tmp_path, "export.kinds=[onnx]", "export.teacher=[onnx-f32]")
    assert "cannot mimic" in problems(folder, tmp_path, "export.kinds=[onnx]", "export.teacher=[gguf-f32]")[0]
    assert "cannot mimic" in problems(folder, tmp_path, "export.kinds=[gguf]", "export.teacher=[onnx-f32]")[0]


def test_disk_is_asked_for_what_is_still_to_be_written(folder, whole, tmp_path, monkeypatch):
    """A finished run renders on a full disk; one that trained asks for what comes after training only."""
    import shutil
    from collections import namedtuple

    from edgeslm.pipeline.check import files as check_files
    from edgeslm.pipeline.run import stages
    from edgeslm.pipeline.stage import place

    usage, free = namedtuple("usage", "free"), 0
    monkeypatch.setattr(check_files.shutil, "disk_usage", lambda _: usage(free))
    root = tmp_path / "tiny"
    shutil.copytree(whole.parent, root)
    context = bare_context(folder, root)
    parameters = sum(p.numel() for p in tiny.llama().parameters())
    assert "GB free" in problems(folder, tmp_path / "new")[0] and "GB free" in problems(folder, root)[0]
    free = 10 * parameters
    assert "GB free" in problems(folder, tmp_path / "new")[0] and not problems(folder, root)
    for stage in stages(context.recipe):
        context.folders[stage.name] = place(stage, context)
        context.folders[stage.name].mkdir(exist_ok=True)
        (context.folders[stage.name] / "done.json").touch()
    free = 0
    assert not problems(folder, root)
    (context.folders["evaluate"] / "problems.json").touch()
    assert "GB free" in problems(folder, root)[0]


def test_a_checkpoint_that_is_there_needs_no_room_again(folder, whole, tmp_path):
    import shutil

    from edgeslm.pipeline.check.files import unfinished

    root = tmp_path / "tiny"
    shutil.copytree(whole.parent, root)
    assert list(unfinished(bare_context(folder, root))) == ["export", "evaluate", "benchmark"]
    (distill,) = root.glob("distill-*")
    shutil.rmtree(distill)
    distill.mkdir()
    (distill / "checkpoint.safetensors").write_bytes(bytes(12345))
    assert unfinished(bare_context(folder, root))["distill"] == 12345


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.objective=[{loss: forward_kl, temperature: true}]", "temperature: True is not valid"),
        ("distill.objective=[{loss: forward_kl, temperature: .inf}]", "temperature: inf is not valid"),
        ("distill.objective=[{loss: forward_kl, temperature: 0}]", "should be greater than 0"),
        ("distill.objective=[{loss: forward_kl, temperature: '2'}]", "should be a valid number"),
        ("distill.objective=[{loss: forward_kl, temperature: 2e-1}]", "YAML reads this as text; write 0.2"),
        ("distill.objective=[{loss: cross_entropy, label_smoothing: 1.5}]", "less than or equal to 1"),
        ("teacher.tokenizer=judge.txt", "brings its own tokenizer"),
        ("data.sources.2.max_new=250", "data.sources.2.max_new asks for 250 tokens after a seed of"),
        ("evaluate.answer_tokens=250", "evaluate.answer_tokens asks for 250 tokens after a prompt of"),
    ],
)
def test_check_looks_at_values(folder, tmp_path, override, words):
    (found,) = problems(folder, tmp_path, override)
    assert words in found


def test_values_that_mean_something_pass(folder, tmp_path):
    terms = "[{loss: forward_kl, temperature: 2}, {loss: cross_entropy, label_smoothing: 0.1}]"
    assert not problems(folder, tmp_path, f"distill.objective={terms}")


def test_both_forwards_are_of_what_was_frozen(folder, tmp_path):
    """Trained on the grid, the last point of the curve is one of them; trained in float, neither."""
    bf16 = "distill.train.precision=bf16"
    for overrides, same in ((["quantize.start=0.25"], True), (["quantize.start=1.0"], False)):
        made = distilled(folder, tmp_path / str(same), bf16, "distill.train.steps=4", *overrides)
        summary = json.loads((made / "summary.json").read_text())
        kl = summary["kl_by_forward"]
        assert list(kl) == ["bfloat16", "float32"] and kl["float32"] != kl["bfloat16"]
        assert (kl["bfloat16"] == summary["heldout"][-1]["kl"]) == same, summary
        assert same or kl["bfloat16"] > summary["heldout"][-1]["kl"] + 1e-3


def test_points_judged_on_other_text_are_not_kept(folder, whole, tmp_path):
    import shutil

    from edgeslm.pipeline.follow import Points

    kept = tmp_path / "distill"
    kept.mkdir()
    shutil.copy(whole / "heldout.json", kept)
    context = bare_context(folder, whole.parent)
    points = Points(context, None, None, kept)
    assert [p["tokens"] for p in points.points] == [0, 256, 512, 768, 1024]
    assert points.judged["files"] == ["judge.txt"] and (points.judged["windows"], points.judged["context"]) == (4, 32)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "judge.txt").write_text("Quite another text about a garden and its snails. " * 20, encoding="utf-8")
    assert Points(bare_context(other, whole.parent), None, None, kept).points == []


def test_a_shipped_file_tells_nothing_of_this_machine(folder, tmp_path):
    """Its recipe names the teacher and the texts, not where they lie."""
    from edgeslm.export.gguf import export

    where = tmp_path / "machine"
    tiny.recipe(where / "home")
    absolute = [f"teacher.model={where / 'home' / 'teacher'}", f"data.sources.0.paths=[{where / 'home' / 'learn.txt'}]"]
    made = distilled(where / "home", tmp_path / "runs", *absolute, "distill.train.steps=0")
    shipped = export(Frozen.load(made / "frozen"), tmp_path / "student.gguf").path.read_bytes()
    assert b"model: teacher" in shipped and b"- learn.txt" in shipped and b"edgeslm.recipe_hash" in shipped
    assert str(where).encode() not in shipped


def with_begin_token(folder: Path) -> Path:
    """The tiny teacher with a tokenizer that begins every text, as Llama's does."""
    from tokenizers import processors

    made = tiny.teacher_folder(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.save_pretrained(made)
    return made


def test_a_model_that_begins_its_texts_is_trained_and_judged_so(folder, tmp_path, monkeypatch):
    from edgeslm.data.rows import Rows
    from edgeslm.pipeline import ship
    from edgeslm.pipeline.heldout import heldout_ids, heldout_windows

    teacher = with_begin_token(tmp_path / "teacher")
    loaded = recipes.load(folder / "tiny.yaml", [f"teacher.model={teacher}"])
    root = run(loaded, folder, tmp_path / "runs", Progress(quiet=True), until="data")
    rows = Rows.load(next(root.glob("data-*")) / "rows.safetensors")
    assert [int(rows.ids[rows.source == source][0, 0]) for source in range(3)] == [0, 0, 0]
    context = Context(loaded, folder, root, Progress(quiet=True))
    plain = bare_context(folder, root)
    assert set(heldout_ids(context)[:, 0].tolist()) == {0}
    assert heldout_ids(plain).tolist() == heldout_windows(plain) and 0 not in heldout_ids(plain)

    given: list[int | None] = []

    def look(*_: object, bos_id: int | None, **__: object) -> None:
        given.append(bos_id)
        raise InterruptedError

    monkeypatch.setattr("edgeslm.evaluate.closeness.evaluate", look)
    monkeypatch.setattr(
        ship, "artifacts_of", lambda _: [Artifact("teacher-f32.gguf", tmp_path, "gguf", "", 1, 1, 1, "f32")]
    )
    for each in (context, plain):
        with pytest.raises(InterruptedError):
            ship._evaluate(each, tmp_path)
    assert given == [0, None]


def test_a_student_that_began_as_its_teacher_is_not_called_worse():
    assert worse_than_start([{"kl": 1e-6}, {"kl": 0.1}]) == ""
    assert "0.0500 before it and is 0.1000 now" in worse_than_start([{"kl": 0.05}, {"kl": 0.1}])


def test_training_that_makes_a_student_worse_says_so(folder, tmp_path):
    done = edgeslm("run", folder / "tiny.yaml", "distill.train.lr=0.5", "--runs", tmp_path, "--until", "distill")
    assert done.returncode == 0 and "WARNING: training made the student worse" in done.stderr
    well = edgeslm("run", folder / "tiny.yaml", "quantize.start=1", "--runs", tmp_path / "well", "--until", "distill")
    assert well.returncode == 0 and "WARNING" not in well.stderr, well.stderr
