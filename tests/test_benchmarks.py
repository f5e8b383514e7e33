"""Records and the README: every table comes from a record, and every record can be shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import record

ROOT = Path(__file__).parent.parent
ABSOLUTE = re.compile(r"(^|[\s'\"=])(/[\w.-]+){2,}")  # a path from the root of some machine
MODULES = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if "record.main(" in p.read_text(encoding="utf-8"))
HEADLINE = {
    "train_step": {"tokens_per_s", "tokens_per_s_ratio", "peak_memory_ratio", "share_of_bound"},
    "load_gguf": {"seconds", "ratio"},
    "quickstart_controls": {"kl", "best_control_kl", "margin", "spread", "beats_by_more_than_spread"},
    "grid_cost": {"slowest_decode_s", "slowest_pack_s", "largest_step_share", "k_formats_step_share"},
    "grid_options": {"kl"},
    "retention": {"retention"},
    "methods": {"rows", "forward_kl_over_text", "best_over_forward_kl", "trl_tokens_per_s_ratio"},
    "students": {"token_saving", "importance_over_even", "vocabulary_removed", "vocabulary_bits_per_byte_ratio"}
    | {"mup_lr_drift"},
    "mup": {"mup_lr_drift", "standard_lr_drift"},
    "codistillation_shares": {"over_alone", "spread"},
    "codistillation": {"steps_to_baseline", "churn_ratio", "disjoint_over_same"},
    "training_cost": {"attention_matters_more_for_small_models", "data_parallel_suffices", "tokens_per_s"},
    "devices": {"devices", "size_ratio", "first_token_ratio", "prefill_ratio", "decode_ratio", "memory_ratio"},
    "parity": {"decode_ratio", "prefill_ratio", "memory_ratio"},
    "encoders": {"encoders"},
    "memory_plan": {"estimate_over_measured", "largest_error", "within_bound"},
    "gkd_trainer": {"trl_tokens_per_s_ratio", "trl_peak_memory_ratio"},
    "evaluation": {"item_agreement", "kl_ratio", "items_per_minute"},
    "quality_ladder": {"exact_tensors", "one_bit_down"},
    "quickstart": {"gguf_bytes", "size_ratio", "decode_ratio", "kl", "top1_agreement", "exact_tensors"},
}


# written and tried, but not yet run in earnest: no figure of them stands anywhere
AWAITING: set[str] = set()


def test_every_benchmark_is_listed_here():
    assert set(MODULES) == set(HEADLINE) | AWAITING
    assert not any(record.read(name) for name in AWAITING)


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


def leaves(value):
    """Every plain value inside a JSON document."""
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")), ids=lambda p: p.name)
def test_records_name_no_place(path):
    text = path.read_text(encoding="utf-8")
    strings = [value for line in text.splitlines() for value in leaves(json.loads(line)) if isinstance(value, str)]
    assert strings and not [value for value in strings if ABSOLUTE.search(value)]


def test_a_rung_shows_the_seeds_of_its_last_series():
    """From the last row back to where a seed comes again or the recipe was another."""
    from benchmarks import quality_ladder

    same = {"model": "m", "key": "k", "exact_tensors": 1.0, "recipe": "a", "rung": "3.4"}
    rival = {"kind": "rival", "rival": "r", "name": "file", "bits": 4.5, "kl": 0.1, "model": "m", "key": "k"}

    def shown(*rows: tuple[int, float, str | None]) -> list[tuple[int, float]]:
        ours = [{"kind": "ours", "seed": s, "kl": kl, **same} | ({"recipe_hash": h} if h else {}) for s, kl, h in rows]
        (found,) = quality_ladder.latest([rival, *ours]).values()
        return [(r["seed"], r["kl"]) for r in found if r["kind"] == "ours"]

    assert shown((0, 0.3, None), (1, 0.3, None), (0, 0.2, None), (0, 0.1, None)) == [(0, 0.1)]
    assert shown((1, 0.5, None), (0, 0.3, None), (1, 0.2, None), (2, 0.1, None)) == [(0, 0.3), (1, 0.2), (2, 0.1)]
    assert shown((0, 0.3, "old"), (1, 0.2, "new"), (2, 0.1, "new")) == [(1, 0.2), (2, 0.1)]
    assert shown((0, 0.3, None), (1, 0.2, "new")) == [(1, 0.2)]
    ours = {"kind": "ours", "seed": 0, "kl": 0.1, **same}
    assert quality_ladder.figures([rival, ours])["one_bit_down"] == {"m": {"3.4": 1.0}}


def test_a_rung_has_the_figure_of_its_best_recipe():
    """Recipes of one rung stand beside each other, whatever their plans."""
    from benchmarks import quality_ladder

    same = {"model": "m", "key": "k", "exact_tensors": 1.0}
    rival = {"kind": "rival", "rival": "r", "name": "file", "bits": 4.5, "kl": 0.1, **same}
    ours = [
        {"kind": "ours", "rung": "3.4", "recipe": name, "seed": seed, "kl": kl, "types": {name: 1}, **same}
        for name, seed, kl in [("short", 1, 0.4), ("long", 0, 0.04), ("short", 0, 0.2), ("long", 1, 0.06)]
    ]
    found = quality_ladder.figures([rival, *ours])
    assert found["one_bit_down"]["m"]["3.4"] == pytest.approx(0.5)
    assert found["by_recipe"] == {"m: short": pytest.approx(3.0), "m: long": pytest.approx(0.5)}
    (rows,) = quality_ladder.latest([rival, *ours]).values()
    assert [r["seed"] for r in quality_ladder.by_recipe(rows, "3.4")["short"]] == [0, 1]
