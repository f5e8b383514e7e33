"""The house's one direction: who may import whom, read from the source with ast."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "edgeslm"
TORCH_FREE = {"errors", "units", "measurement", "artifact", "recipe", "cost", "progress", "devices", "meters"}
TORCH_FREE |= {
    "runtimes",
    "evaluate",
    "benchmark",
    "report",
    "cli",
    "design",
    "device_record",
    "doctor",
    "fleet",
    "privacy",
    "profiles",
    "statistics",
    "training_cost",
    "training_memory",
}
HEAVY = {"torch", "transformers", "peft", "onnx", "onnxruntime", "llama_cpp"}
MAY_NOT = {
    "formats": lambda room: room not in ("formats", "errors"),
    "knowledge": lambda room: room != "knowledge",
    "export": lambda room: room in ("teachers", "knowledge", "schemes", "devices", "runtimes", "pipeline", "data"),
    "schemes": lambda room: room in ("export", "devices", "runtimes", "evaluate", "benchmark", "pipeline", "report"),
    "quantize": lambda room: (
        room in ("export", "devices", "runtimes", "evaluate", "benchmark", "pipeline", "teachers", "parallel")
    ),
    "parallel": lambda room: room not in ("parallel", "data", "models", "quantize", "compute", "errors"),
    "insight": lambda room: room not in ("insight", "models", "evaluate"),
    "encoders": lambda room: room in ("export", "devices", "runtimes", "evaluate", "benchmark", "pipeline", "report"),
    "students": lambda room: room in ("export", "devices", "runtimes", "evaluate", "benchmark", "pipeline"),
    "teachers": lambda room: room in ("export", "devices", "runtimes", "evaluate", "benchmark", "pipeline", "schemes"),
    "devices": lambda room: room in ("runtimes", "export", "schemes", "pipeline"),
    "runtimes": lambda room: room in ("devices", "export", "schemes", "pipeline"),
    "meters": lambda room: room in ("devices", "runtimes", "schemes", "export", "pipeline"),
    "report": lambda room: room in ("pipeline", "schemes", "export", "runtimes", "devices"),
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path, module_level: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if module_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names if node.module == "edgeslm"}
    return found


FILES = sorted(ROOT.rglob("*.py"))


def test_there_are_files_and_rooms_to_look_at():
    assert len(FILES) > 50
    assert {room_of(f) for f in FILES} >= set(MAY_NOT)


@pytest.mark.parametrize("path", [f for f in FILES if room_of(f) in TORCH_FREE and "workers" not in f.parts], ids=str)
def test_torch_free_rooms_import_nothing_heavy_at_module_level(path):
    assert not {name.split(".")[0] for name in imports(path, module_level=True)} & HEAVY


@pytest.mark.parametrize("room", list(MAY_NOT))
def test_rooms_import_in_one_direction(room):
    for path in (f for f in FILES if room_of(f) == room):
        for name in imports(path, module_level=False):
            parts = name.split(".")
            if parts[0] == "edgeslm" and len(parts) > 1:
                assert not MAY_NOT[room](parts[1]), f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 330


def test_help_answers_at_once_and_without_torch():
    code = "import sys; from edgeslm.cli.app import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy import'"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 0.5 * 3  # 0.5 s on a quiet machine; tests share theirs


def test_a_machine_without_torch_can_bench_and_report():
    """artifact_of, bench's settings, the report: nothing of it may reach for torch or transformers."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
        "from edgeslm.cli.actions import artifact_of\n"
        "import edgeslm.benchmark, edgeslm.report, edgeslm.evaluate.closeness, edgeslm.recipe, edgeslm.cost\n"
        "try: artifact_of('nothing.gguf')\n"
        "except Exception as error: assert 'neither' in str(error), error\n"
        "import edgeslm.models.gguf_file\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
