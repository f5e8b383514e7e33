"""Building llama.cpp and the worker: what is built for whom, the cache, and what is said when something is missing."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgeslm.errors import RuntimeFailure
from edgeslm.runtimes import build
from edgeslm.runtimes.build import TARGETS

ARM = [name for name, target in TARGETS.items() if target.march]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """An empty cache, and commands that are noted and leave programs behind as cmake would."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_source", lambda part, say: part / "llama.cpp")
    monkeypatch.setattr(build, "_check_programs", lambda targets: None)
    ran: list[list[str]] = []

    def run(command: list[str], sentence: str, hear: Any = None) -> None:
        ran.append(command)
        if command[1] == "--build":
            out = Path(command[2]) / "bin"
            out.mkdir(parents=True, exist_ok=True)
            for name in command[command.index("--target") :]:
                (out / name).write_text(f"{name} of {ran[-2]}")
            for percent in (3, 9, 12, 100):
                hear(f"[{percent:3}%] Building\n")

    monkeypatch.setattr(build, "_run", run)
    return ran


def test_what_is_built_is_kept_and_built_once(compiler: list[list[str]]) -> None:
    lines: list[str] = []
    made = build.build(["native", "aarch64"], lines.append)
    assert list(made) == ["native", "aarch64"] and len(set(made.values())) == 2
    assert {p.name for p in made["native"].iterdir()} == {
        "edgeslm-worker",
        "llama-bench",
        "llama-perplexity",
        build.SUMS,
    }
    assert {p.name for p in made["aarch64"].iterdir()} == {"edgeslm-worker", "llama-bench", build.SUMS}
    assert lines == [
        "native: 3 %", "native: 100 %", "aarch64: 3 %", "aarch64: 100 %", "native: built", "aarch64: built",
    ]  # fmt: skip
    count = len(compiler)
    assert build.build(["native", "aarch64"], lines.append) == made and len(compiler) == count
    assert lines[-2:] == ["native: from the cache", "aarch64: from the cache"]
    assert set(made["native"].parent.iterdir()) == set(made.values())  # nothing else is left behind


@pytest.mark.parametrize("harm", ["changed", "gone", "unsigned"])
def test_what_is_damaged_is_built_again(compiler: list[list[str]], harm: str) -> None:
    place = build.build(["native"])["native"]
    worker = place / build.WORKER
    before = worker.read_bytes()
    if harm == "changed":
        worker.write_bytes(before + b"x")
    else:
        (worker if harm == "gone" else place / build.SUMS).unlink()
    assert not build.sound(TARGETS["native"])
    count = len(compiler)
    assert build.tool("llama-bench").is_file() and len(compiler) == count + 2 and build.sound(TARGETS["native"])


def test_variants_for_arm_share_a_tree_and_differ_in_one_flag(compiler: list[list[str]]) -> None:
    build.build(ARM)
    configured = [command for command in compiler if command[1] == "-S"]
    assert len({command[command.index("-B") + 1] for command in configured}) == 1
    varying = [{word for word in command if not all(word in other for other in configured)} for command in configured]
    assert varying == [{f"-DGGML_CPU_ARM_ARCH={TARGETS[name].march}", f"-DEDGESLM_TARGET={name}"} for name in ARM]
    assert all("-DCMAKE_EXE_LINKER_FLAGS=-static" in command for command in configured)


def test_a_build_that_fails_leaves_nothing(compiler: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeFailure("native: llama.cpp did not build (error: no room)")

    monkeypatch.setattr(build, "_run", fail)
    with pytest.raises(RuntimeFailure, match="no room"):
        build.build(["native"])
    root = build.cache_root() / "llama-tools"
    assert not list(root.iterdir())
    for name, age in (("part-old", build.STALE_S + 60), ("part-new", 60)):  # of builds that were killed, or still run
        (root / name).mkdir()
        os.utime(root / name, (0, time.time() - age))
    with pytest.raises(RuntimeFailure):
        build.build(["native"])
    assert [path.name for path in root.iterdir()] == ["part-new"]


def test_the_key_covers_sources_flags_and_this_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native, arm = TARGETS["native"], TARGETS["aarch64"]
    before = build.folder(native), build.folder(arm)
    assert len({build.folder(target) for target in TARGETS.values()}) == len(TARGETS)
    monkeypatch.setattr(build, "cpu_key", lambda: "another")
    assert build.folder(native) != before[0] and build.folder(arm) == before[1]
    for path in build.SOURCES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.folder(arm) == before[1]
    (tmp_path / "main.cpp").write_text("int main() {}")
    assert build.folder(arm) != before[1]


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"machine": "aarch64"}, "aarch64"),
        ({"machine": "aarch64", "simd": ["asimd"]}, "aarch64"),  # Pi 4
        ({"machine": "aarch64", "simd": ["asimd", "asimddp"]}, "aarch64"),
        ({"machine": "aarch64", "simd": ["asimd", "asimddp", "asimdhp"]}, "aarch64-dotprod"),  # Pi 5
        ({"machine": "aarch64", "simd": ["asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve"]}, "aarch64-i8mm"),
    ],
)
def test_the_fastest_that_a_device_can_run(facts: dict[str, Any], name: str) -> None:
    assert build.target_for(facts).name == name


def test_this_machines_own_build_goes_where_its_instructions_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build, "_own_simd", lambda: {"avx2", "avx512_vnni"})
    more = {"machine": "x86_64", "simd": ["avx2", "avx512_vnni", "avx512_fp16"]}
    assert build.target_for(more).name == "native"
    with pytest.raises(RuntimeFailure, match="wrong ABI: the worker built here uses avx512_vnni, which"):
        build.target_for({"machine": "x86_64", "simd": ["avx2"]})


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ("armv7l", r"wrong ABI: the device runs 32-bit programs \(armv7l\)"),
        ("armv8l", "32-bit"),
        ("arm64", "no native worker for 'arm64'"),
        ("riscv64", "wrong ABI: there is no native worker for 'riscv64'"),
        ("", "a processor that does not say its name"),
    ],
)
def test_what_cannot_be_run(machine: str, words: str) -> None:
    with pytest.raises(RuntimeFailure, match=words):
        build.program({"machine": machine})


def test_a_program_that_is_not_built_is_asked_for(compiler: list[list[str]]) -> None:
    pi4 = {"machine": "aarch64", "simd": ["asimd"]}
    with pytest.raises(RuntimeFailure, match=r"run: edgeslm devices build-runtime aarch64$"):
        build.program(pi4)
    assert not compiler  # minutes of compiling are never a side effect
    place = build.build(["aarch64"])["aarch64"]
    assert build.program(pi4) == place / build.WORKER


def test_missing_programs_are_named_with_their_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    found = {"cmake": "/bin/cmake", "make": "/bin/make"}
    monkeypatch.setattr(build.shutil, "which", lambda name: found.get(name))
    with pytest.raises(RuntimeFailure, match=r"c\+\+ is missing.*apt install g\+\+$"):
        build.build(["native"])
    with pytest.raises(RuntimeFailure, match=r"linux-gnu-g\+\+ is missing.*apt install g\+\+-aarch64-linux-gnu$"):
        build.build(["aarch64-i8mm"])
    found.clear()
    with pytest.raises(RuntimeFailure, match=r"cmake is missing.*apt install cmake$"):
        build.build(ARM)
    with pytest.raises(RuntimeFailure, match=r"no target 'pdp11'.*native, aarch64, aarch64-dotprod, aarch64-i8mm"):
        build.build(["pdp11"])
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RuntimeFailure, match="under Linux only"):
        build.build(["native"])


def test_a_failing_command_says_its_error() -> None:
    code = "print('[ 10%] fine'); print('x.cpp:1: error: no such thing'); print('make: stop'); raise SystemExit(2)"
    heard: list[str] = []
    with pytest.raises(RuntimeFailure, match=r"^it did not build \(x\.cpp:1: error: no such thing\)$"):
        build._run([sys.executable, "-c", code], "it did not build", heard.append)
    assert heard[0] == "[ 10%] fine\n"
    killed = (
        "print('[ 9%] fine'); print('make[3]: *** [a.o] Killed'); print('make: *** [all] Error 2'); raise SystemExit(2)"
    )
    with pytest.raises(RuntimeFailure, match=r"\(make\[3\]: \*\*\* \[a.o\] Killed\)"):
        build._run([sys.executable, "-c", killed], "it did not build")
    with pytest.raises(RuntimeFailure, match=r"\(no message\)"):
        build._run([sys.executable, "-c", "raise SystemExit(1)"], "it did not build")


def test_the_sources_are_shipped_and_all_compiled() -> None:
    data = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "runtimes/native_worker/*" in data["tool"]["setuptools"]["package-data"]["edgeslm"]
    listed = (build.SOURCES / "CMakeLists.txt").read_text(encoding="utf-8")
    sources = {path.name for path in build.SOURCES.glob("*.cpp")}
    assert sources and set(re.findall(r"\b\w+\.cpp\b", listed)) - {"llama.cpp"} == sources
