"""Our evaluation beside lm-eval's transformers backend and beside llama.cpp's perplexity tool.

    python -m benchmarks.evaluation --data DIR       DIR holds arc_easy.jsonl, piqa.jsonl, ... as for `edgeslm eval`

Three questions, one record. Do items of the float32 teacher get the same answer from lm-eval's own `hf` backend and
through our adapter, in torch and as a float32 GGUF in llama.cpp? Is our KL that of llama.cpp's `--kl-divergence` on the
same files, windows and rule? How many multiple-choice items a minute does a Q4_0 file answer?
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.llama_tools import tool

NAME = "evaluation"
TASKS = ("arc_easy", "piqa", "winogrande", "openbookqa", "lambada_openai")
CHOICES = TASKS[:4]
GRIDS = ("q4_0", "q8_0")
MEAN_KL = re.compile(r"Mean\s+KLD:\s+(\S+)")
SAME_TOP = re.compile(r"Same top p:\s+(\S+)")
RMS = re.compile(r"RMS Δp\s*:\s+(\S+)")
Row = dict[str, Any]


def run(arguments: argparse.Namespace) -> Row:
    import torch

    from edgeslm.export.gguf import export
    from edgeslm.models.load import load, write_tokenizer
    from edgeslm.models.source import DEFAULT_TEACHER, resolve
    from edgeslm.progress import Progress
    from edgeslm.quantize.freeze import freeze_floats

    if arguments.data is None:
        raise SystemExit("--data names a folder of <task>.jsonl files; give one")
    torch.set_num_threads(arguments.threads)
    loaded = load(resolve(arguments.model or DEFAULT_TEACHER, Path.cwd()), torch.float32)
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        folder = root / "teacher"
        loaded.model.save_pretrained(folder)
        write_tokenizer(loaded.tokenizer, folder)
        weights, config = dict(loaded.model.named_parameters()), loaded.model.config.to_dict()
        frozen = freeze_floats(weights, "f32", loaded.arch.name, config, folder, "teacher", {})
        files = {"f32": export(frozen, root / "teacher.gguf")}
        files |= {grid: export(_rounded(loaded, grid, folder), root / f"{grid}.gguf") for grid in GRIDS}
        found: Row = {
            "model": loaded.source.path.name,
            "threads": arguments.threads,
            "versions": record.versions("edgeslm", "torch", "transformers", "lm_eval", "llama-cpp-python"),
        }
        progress = Progress()
        progress.say("items: ours beside lm-eval's hf backend")
        found["items"] = _items(arguments, loaded, folder, files["f32"], root)
        progress.say("kl: ours beside llama.cpp's perplexity tool")
        found["kl"] = _kl(arguments, loaded.tokenizer, files, root)
        progress.say("speed: nothing else should run now")
        found["speed"] = _speed(arguments, loaded.tokenizer, files["q4_0"], root)
    return found


def _rounded(loaded: Any, grid: str, tokenizer: Path) -> Any:
    """The teacher's weights on a grid, nearest codes, as export takes them."""
    import torch

    from edgeslm.quantize.freeze import freeze
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan

    shapes = {name: tuple(p.shape) for name, p in loaded.model.named_parameters()}
    masters = attach(loaded.model, Plan.uniform(grid).assign(shapes), torch.float32)
    return freeze(masters, loaded.arch.name, loaded.model.config.to_dict(), tokenizer, grid, {})


def _items(arguments: argparse.Namespace, loaded: Any, folder: Path, gguf: Any, root: Path) -> Row:
    """Ours in torch and in llama.cpp, item by item, beside lm-eval's hf backend."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from edgeslm.artifact import Artifact, path_bytes, path_sha256
    from edgeslm.devices.local import LocalDevice
    from edgeslm.evaluate.harness.run import Tasks, quiet
    from edgeslm.evaluate.store import Store

    tasks = Tasks(TASKS, arguments.data, limit=arguments.limit)
    limit = int(loaded.model.config.max_position_embeddings)
    with quiet():
        start = time.perf_counter()
        theirs = simple_evaluate(
            HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, max_length=limit, batch_size=8),
            tasks=list(tasks.tasks.values()), limit=arguments.limit, bootstrap_iters=0, num_fewshot=0,
            task_manager=tasks.manager,
        )  # fmt: skip
        seconds = {"hf": time.perf_counter() - start}
    assert theirs is not None
    torch_folder = Artifact("teacher", folder, "torch", path_sha256(folder), path_bytes(folder), 1, 1, "f32")
    sides: Row = {}
    for side, artifact in (("torch", torch_folder), ("llama.cpp", gguf)):
        start = time.perf_counter()
        scores = tasks.judge(
            artifact, loaded.tokenizer, limit,
            threads=arguments.threads, device=LocalDevice(), workdir=root, store=Store(None, artifact.sha256),
        )  # fmt: skip
        seconds[side] = time.perf_counter() - start
        same, total, largest = 0, 0, 0.0
        rows: Row = {}
        for score in scores:
            samples = sorted(theirs["samples"][score.task], key=lambda s: s["doc_id"])
            equal = [i.value == float(s[score.metric]) for i, s in zip(score.items, samples, strict=True)]
            nats = [abs(a - b[0]) for i, s in zip(score.items, samples, strict=True) if i.nats
                    for a, b in zip(i.nats, s["filtered_resps"], strict=True)]  # fmt: skip
            rows[score.task] = {"items": len(equal), "equal": sum(equal), "score": score.values[score.metric]}
            same, total, largest = same + sum(equal), total + len(equal), max([largest, *nats])
        sides[side] = {"items": total, "agreement": same / total, "largest_difference_nats": largest, "tasks": rows}
    return {"sides": sides, "seconds": seconds, "sources": tasks.sources, "limit": arguments.limit}


def _kl(arguments: argparse.Namespace, tokenizer: Any, files: Row, root: Path) -> Row:
    """Both on the same text, windows of the same ids, the second half of each scored, cache and attention float32."""
    from edgeslm.data.text import documents
    from edgeslm.devices.local import LocalDevice
    from edgeslm.evaluate.closeness import evaluate, windows
    from edgeslm.models.stop import begin_id
    from edgeslm.recipe import expand

    (text,) = expand([arguments.text], Path.cwd())
    chosen = windows(documents([text], tokenizer)[0], arguments.context, arguments.windows)
    measured, problems = evaluate(
        files["f32"], [files[grid] for grid in GRIDS], chosen, bos_id=begin_id(tokenizer), threads=arguments.threads,
        device=LocalDevice(), workdir=root,
    )  # fmt: skip
    if problems:
        raise SystemExit(f"{problems[0]['artifact']}: {problems[0]['what']}")
    ours = {(m.where.artifact, m.metric): m.median for m in measured}
    base = root / "base.dat"
    shared = ["-c", str(arguments.context), "-t", str(arguments.threads), "-fa", "off", "-ctk", "f32", "-ctv", "f32",
              "--kl-divergence-base", str(base)]  # fmt: skip
    _tool(["-m", str(files["f32"].path), "-f", str(text), "--chunks", str(len(chosen)), *shared])
    rows: Row = {"text": text.name, "windows": len(chosen), "context": arguments.context}
    for grid in GRIDS:
        said = _tool(["-m", str(files[grid].path), "--kl-divergence", *shared])
        name = files[grid].name
        rows[grid] = {
            "ours": {k: ours[name, k] for k in ("kl", "top1_agreement", "rms_delta_p")},
            "llama.cpp": {
                "kl": float(MEAN_KL.findall(said)[0]),
                "top1_agreement": float(SAME_TOP.findall(said)[0]) / 100,
                "rms_delta_p": float(RMS.findall(said)[0]) / 100,
            },
        }
    return rows


def _tool(arguments: list[str]) -> str:
    done = subprocess.run([str(tool("llama-perplexity")), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"llama-perplexity failed: {words}")
    return done.stdout + done.stderr


def _speed(arguments: argparse.Namespace, tokenizer: Any, artifact: Any, root: Path) -> Row:
    """Multiple-choice items a minute, whole: lm-eval's prompts and metrics, our worker's load and answers."""
    from edgeslm.devices.local import LocalDevice
    from edgeslm.evaluate.harness.run import Tasks
    from edgeslm.evaluate.store import Store

    tasks = Tasks(CHOICES, arguments.data, limit=arguments.items // len(CHOICES))
    seconds = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        scores = tasks.judge(
            artifact, tokenizer, 2048,
            threads=arguments.threads, device=LocalDevice(), workdir=root, store=Store(None, artifact.sha256),
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
    return {"items": sum(len(s.items) for s in scores), "seconds": seconds, "file": "q4_0"}


def headline(entry: Row) -> Row:
    """`item_agreement`: the lesser of torch and llama.cpp; `kl_ratio`: ours over llama.cpp's on Q4_0."""
    sides = entry["items"]["sides"]
    return {
        "item_agreement": min(side["agreement"] for side in sides.values()),
        "kl_ratio": entry["kl"]["q4_0"]["ours"]["kl"] / entry["kl"]["q4_0"]["llama.cpp"]["kl"],
        "items_per_minute": 60 * entry["speed"]["items"] / min(entry["speed"]["seconds"]),
    }


def show(records: list[Row]) -> Row:
    entry = records[-1]
    for side, row in entry["items"]["sides"].items():
        tasks = ", ".join(f"{task} {t['equal']}/{t['items']}" for task, t in row["tasks"].items())
        print(f"{side}: {row['agreement']:.4%} of {row['items']} items as lm-eval's hf ({tasks}); "
              f"largest difference {row['largest_difference_nats']:.2g} nats")  # fmt: skip
    for grid in GRIDS:
        for metric, value in entry["kl"][grid]["ours"].items():
            print(f"{grid} {metric}: ours {value:.6f}, llama.cpp {entry['kl'][grid]['llama.cpp'][metric]:.6f}")
    print(f"{entry['speed']['items']} multiple-choice items in {min(entry['speed']['seconds']):.0f} s")
    return headline(entry)


def sentence(entry: Row) -> str:
    """For the README."""
    head, sides, kl = headline(entry), entry["items"]["sides"], entry["kl"]
    low, high = kl["q8_0"], kl["q4_0"]
    machine = entry["machine"]
    return (
        f"On {sides['torch']['items']:,} items of {len(sides['torch']['tasks'])} tasks the float32 teacher gets the "
        f"same answer as through lm-eval's own transformers backend on {sides['torch']['agreement']:.2%} in torch and "
        f"{sides['llama.cpp']['agreement']:.2%} as a GGUF in llama.cpp (largest difference of a choice "
        f"{sides['llama.cpp']['largest_difference_nats']:.1g} nats). KL beside llama.cpp's perplexity tool on the same "
        f"{kl['windows']} windows: Q4_0 {high['ours']['kl']:.4f} and {high['llama.cpp']['kl']:.4f} (ratio "
        f"{head['kl_ratio']:.4f}), Q8_0 {low['ours']['kl']:.5f} and {low['llama.cpp']['kl']:.5f}. "
        f"{entry['speed']['items']:,} multiple-choice items on a Q4_0 file of 135M weights take "
        f"{min(entry['speed']['seconds']):.0f} s on {entry['threads']} threads ({machine['cpu']}), "
        f"{head['items_per_minute']:.0f} a minute."
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of <task>.jsonl files")
    parser.add_argument("--model", help="the teacher (default: the embedded one)")
    parser.add_argument("--text", default="package:text/judge/austen-persuasion.txt")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--limit", type=int, default=200, help="items of each task for the agreement")
    parser.add_argument("--items", type=int, default=1000, help="items of the speed")
    parser.add_argument("--repeats", type=int, default=2, help="of the speed")
    parser.add_argument("--threads", type=int, default=2)


if __name__ == "__main__":
    record.main(NAME, run, show, options)
