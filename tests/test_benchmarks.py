"""Records and the README: every table comes from a record, and every record can be shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import record

ROOT = Path(__file__).parent.parent
MODULES = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if "record.main(" in p.read_text(encoding="utf-8"))
HEADLINE = {
    "train_step": {"tokens_per_s", "tokens_per_s_ratio", "peak_memory_ratio", "share_of_bound"},
    "load_gguf": {"seconds", "ratio"},
    "quickstart_controls": {"kl", "best_control_kl", "margin", "spread", "beats_by_more_than_spread"},
    "quickstart": {"gguf_bytes", "size_ratio", "decode_ratio", "kl", "top1_agreement", "exact_tensors"},
}


def test_every_benchmark_is_listed_here():
    assert set(MODULES) == set(HEADLINE)


@pytest.mark.parametrize("name", sorted(HEADLINE))
def test_show_ends_with_the_headline_as_json(name):
    assert record.read(name), f"no record: run python -m benchmarks.{name}"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--show"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.strip().splitlines()[-1])
    assert HEADLINE[name] <= set(last)


def test_readme_tables_are_what_the_records_say():
    command = [sys.executable, "-m", "benchmarks.readme", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")), ids=lambda p: p.name)
def test_records_name_no_place(path):
    text = path.read_text(encoding="utf-8")
    assert "/root/" not in text and "/work/" not in text and "/home/" not in text and "/tmp/" not in text
