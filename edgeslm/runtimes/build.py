"""Builds the native worker and llama.cpp's own tools from the sources inside the llama-cpp-python package.

One llama.cpp everywhere: the version of `native.py`, for this CPU and for 64-bit ARM, there linked statically so that a
Raspberry Pi and Android's shell run the same file. Kept under `${XDG_CACHE_HOME:-~/.cache}/edgeslm/llama-tools/<key>/`;
the key covers version, flags, the worker's sources and, for this CPU, the CPU; the sha256 of each program is checked
before it is used again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.errors import RuntimeFailure
from edgeslm.runtimes.native import HOOK, VERSION, cache_root, cpu_key

Say = Callable[[str], None]
SOURCES = Path(__file__).parent / "native_worker"
WORKER, BENCH, PERPLEXITY = "edgeslm-worker", "llama-bench", "llama-perplexity"
SUMS = "SHA256SUMS"
STALE_S = 24 * 3600
FLAGS = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF", "-DGGML_CCACHE=OFF")
CROSS = "aarch64-linux-gnu"
# without OpenMP ggml brings threads of its own, which is how llama.cpp is built for Android
STATIC = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_C_COMPILER={CROSS}-gcc",
    f"-DCMAKE_CXX_COMPILER={CROSS}-g++",
    "-DCMAKE_EXE_LINKER_FLAGS=-static",
    "-DGGML_OPENMP=OFF",
)
DEBIAN = {"cmake": "cmake", "make": "make", "c++": "g++", f"{CROSS}-g++": f"g++-{CROSS}"}  # program -> package
# what -march=native may use of an x86 CPU, as /proc/cpuinfo spells it
X86 = {"sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni"}
X86 |= {"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512vbmi", "avx512_bf16", "avx512_fp16"}


@dataclass(frozen=True)
class Target:
    """`march` is a 64-bit ARM processor's, empty for this CPU; `needs` are the instruction sets it takes for granted,
    as /proc/cpuinfo spells them."""

    name: str
    march: str = ""
    needs: frozenset[str] = frozenset()

    @property
    def programs(self) -> tuple[str, ...]:
        return (WORKER, BENCH) if self.march else (WORKER, BENCH, PERPLEXITY)

    @property
    def flags(self) -> tuple[str, ...]:
        own = (*STATIC, f"-DGGML_CPU_ARM_ARCH={self.march}") if self.march else ()
        return (*FLAGS, *own, f"-DEDGESLM_TARGET={self.name}", f"-DEDGESLM_SOURCE=llama-cpp-python {VERSION}")

    @property
    def compiler(self) -> str:
        return f"{CROSS}-g++" if self.march else "c++"


TARGETS = {
    target.name: target
    for target in (
        Target("native"),
        Target("aarch64", "armv8-a"),  # Raspberry Pi 3 and 4, old phones
        Target("aarch64-dotprod", "armv8.2-a+dotprod+fp16", frozenset({"asimddp", "asimdhp"})),  # Pi 5, most phones
        Target("aarch64-i8mm", "armv8.2-a+dotprod+fp16+i8mm", frozenset({"asimddp", "asimdhp", "i8mm"})),
    )
}  # of those that a device can run the last one is the fastest


def folder(target: Target) -> Path:
    """Where a target's programs are kept, whether they are built or not."""
    sources = [HOOK, *sorted(path for path in SOURCES.iterdir() if path.is_file())]
    worker = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sources]
    parts = (VERSION, target.flags, target.programs, worker, "" if target.march else cpu_key())
    return cache_root() / "llama-tools" / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def sound(target: Target, place: Path | None = None) -> bool:
    """Whether the target's programs are all there and as they were built."""
    place = place or folder(target)
    try:
        lines = (place / SUMS).read_text(encoding="ascii").splitlines()
        noted = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
        return all(noted.get(name) == _sha256(place / name) for name in target.programs)
    except (OSError, ValueError):
        return False


def tool(name: str, target: str = "native", say: Say | None = None) -> Path:
    """The path of one program, built when it is missing or damaged. Raises RuntimeFailure."""
    place = folder(TARGETS[target])
    return (place if sound(TARGETS[target]) else build([target], say)[target]) / name


def target_for(facts: dict[str, Any]) -> Target:
    """The fastest target that a device with these facts can run. Raises RuntimeFailure when there is none."""
    machine, simd = str(facts.get("machine", "")), set(facts.get("simd", ()))
    if machine == "aarch64":
        return [target for target in TARGETS.values() if target.march and target.needs <= simd][-1]
    if machine.startswith("arm") and machine != "arm64":  # which is what macOS says
        raise RuntimeFailure(
            f"wrong ABI: the device runs 32-bit programs ({machine}) and the worker is built for 64-bit ARM; install a "
            "64-bit system on it"
        )
    if machine != platform.machine() or sys.platform != "linux":
        raise RuntimeFailure(
            f"wrong ABI: there is no native worker for '{machine or 'a processor that does not say its name'}'; it is "
            "built for aarch64 and for this computer's own CPU under Linux"
        )
    if lacking := _own_simd() - simd:
        raise RuntimeFailure(
            f"wrong ABI: the worker built here uses {', '.join(sorted(lacking))}, which the device's CPU lacks; build "
            "it on that device"
        )
    return TARGETS["native"]


def program(facts: dict[str, Any]) -> Path:
    """The worker for a device with these facts. Raises RuntimeFailure when none fits or it is not built yet."""
    target = target_for(facts)
    if not sound(target):
        raise RuntimeFailure(
            f"the native worker for {target.name} is not built here; run: edgeslm devices build-runtime {target.name}"
        )
    return folder(target) / WORKER


def build(names: Iterable[str] = tuple(TARGETS), say: Say | None = None) -> dict[str, Path]:
    """{target: folder of its programs}; what is missing or damaged is built, some minutes each. `say` hears lines of
    progress. ARM's variants share one tree: they differ in ggml's kernels alone. Raises RuntimeFailure."""
    say = say or (lambda line: None)
    wanted = list(dict.fromkeys(names))
    if unknown := [name for name in wanted if name not in TARGETS]:
        raise RuntimeFailure(f"there is no target '{unknown[0]}' to build for; known are {', '.join(TARGETS)}")
    missing = [TARGETS[name] for name in wanted if not sound(TARGETS[name])]
    if missing:
        _check_programs(missing)
        root = cache_root() / "llama-tools"
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob("part-*"):  # half a gigabyte each, where a build was killed
            if time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=root, prefix="part-") as part:
            source = _source(Path(part), say)
            for target in missing:
                _build(target, source, Path(part), say)
    for name in wanted:
        say(f"{name}: {'built' if TARGETS[name] in missing else 'from the cache'}")
    return {name: folder(TARGETS[name]) for name in wanted}


def _check_programs(targets: list[Target]) -> None:
    if sys.platform != "linux":
        raise RuntimeFailure("the native worker is built under Linux only; here llama.cpp runs through Python")
    for name in ("cmake", "make", *(target.compiler for target in targets)):
        if shutil.which(name) is None:
            raise RuntimeFailure(f"{name} is missing, and llama.cpp is built with it; run: apt install {DEBIAN[name]}")


def _source(part: Path, say: Say) -> Path:
    """llama.cpp's tree out of the source package."""
    say(f"sources of llama-cpp-python {VERSION}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    _run(
        [*command, "-d", str(part), f"llama-cpp-python=={VERSION}"],
        f"the sources of llama-cpp-python {VERSION} could not be downloaded; it needs the package index",
    )
    archive = next(part.glob("*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(part, filter="data")
    archive.unlink()
    return next(part.glob("llama_cpp_python-*")) / "vendor" / "llama.cpp"


def _build(target: Target, source: Path, part: Path, say: Say) -> None:
    tree = part / ("cross" if target.march else "here")
    configure = ["cmake", "-S", str(SOURCES), "-B", str(tree), "-G", "Unix Makefiles", f"-DLLAMA_SOURCE={source}"]
    _run([*configure, *target.flags], f"{target.name}: cmake could not configure llama.cpp")
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
    wanted = [word for name in target.programs for word in ("--target", name)]
    heard = [-10]

    def hear(line: str) -> None:
        percent = re.match(r"\[ *(\d+)%\]", line)
        if percent and int(percent[1]) >= heard[0] + 10:
            heard[0] = int(percent[1])
            say(f"{target.name}: {heard[0]} %")

    sentence = f"{target.name}: llama.cpp did not build"
    _run(["cmake", "--build", str(tree), "--parallel", jobs, *wanted], sentence, hear)
    made = part / target.name
    made.mkdir()
    for name in target.programs:
        shutil.copy2(tree / "bin" / name, made / name)
    sums = "".join(f"{_sha256(made / name)}  {name}\n" for name in target.programs)
    (made / SUMS).write_text(sums, encoding="ascii")
    shutil.rmtree(folder(target), ignore_errors=True)
    os.replace(made, folder(target))


def _run(command: list[str], sentence: str, hear: Say | None = None) -> None:
    """Raises RuntimeFailure with the first line that speaks of an error (make's begin with ***), or the last one."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        if hear is not None:
            hear(line)
        lines.append(line.strip())
    if process.wait():
        spoken = [line for line in lines if line]
        words = next(
            (line for line in spoken if re.search(r"\berror\b|\*\*\*", line, re.I)), (spoken or ["no message"])[-1]
        )
        raise RuntimeFailure(f"{sentence} ({words})")


def _own_simd() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    flags = re.search(r"^flags\s*:(.*)$", text, re.M)
    return X86 & set(flags[1].split()) if flags else set()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
