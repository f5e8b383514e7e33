"""Compiles app/src/main/c/edgeslm_jni.c: once for each prebuilt llama.cpp of the app, and for this machine's own.

For Android it is built without NDK and C library, by clang and lld or a cross gcc: it calls only llama.h and the JNI
table. Each is linked against one library of one ABI, so the system's loader finds what it needs by its NEEDED entry.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

from android_demo.tools import fetch
from edgeslm.errors import RuntimeFailure

SOURCE = Path(__file__).parents[1] / "app/src/main/c"
PAGE_BYTES = 16384
ABIS = {"arm64-v8a": ("aarch64", fetch.ARM64), "x86_64": ("x86_64", fetch.X86_64)}
MIN_SDK = 26
FLAGS = (
    "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fPIC",
    "-fvisibility=hidden", "-nostdlib", "-shared",
)  # fmt: skip


def jdk() -> Path:
    """The JDK's home: where javac lies. Raises RuntimeFailure."""
    found = shutil.which("javac")
    home = Path(found).resolve().parents[1] if found else None
    if home is None or not (home / "include/jni.h").is_file():
        raise RuntimeFailure("a JDK with jni.h is needed to build the app; apt-get install openjdk-17-jdk-headless")
    return home


def compiler(machine: str) -> list[str]:
    """The first that can compile for `machine` ("aarch64", "x86_64"). Raises RuntimeFailure."""
    if shutil.which("clang") and shutil.which("ld.lld"):
        return ["clang", f"--target={machine}-linux-android{MIN_SDK}", "-nostdlibinc", "-fuse-ld=lld"]
    cross = f"{machine}-linux-gnu-gcc"
    if shutil.which(cross):
        return [cross]
    if platform.machine() == machine and shutil.which("gcc"):
        return ["gcc"]
    raise RuntimeFailure(f"no C compiler for {machine} is here; apt-get install clang lld, or gcc-aarch64-linux-gnu")


def _includes(headers: Path) -> list[str]:
    java = jdk() / "include"
    return [f"-I{SOURCE / 'freestanding'}", f"-I{headers}", f"-I{java}", f"-I{java / 'linux'}"]


def android(out: Path) -> list[Path]:
    """lib/<ABI>/ with every llama.cpp of the app and its shim. Raises RuntimeFailure."""
    llama, made = fetch.llama(), []
    for abi, (machine, variants) in ABIS.items():
        folder = out / "lib" / abi
        folder.mkdir(parents=True, exist_ok=True)
        for variant in variants:
            library = Path(
                shutil.copyfile(llama / abi / f"librnllama_{variant}.so", folder / f"librnllama_{variant}.so")
            )
            shim = folder / f"libedgeslm_{variant}.so"
            command = [*compiler(machine), *FLAGS, *_includes(llama / "include"), f"-Wl,-z,max-page-size={PAGE_BYTES}"]
            command += [
                "-Wl,-z,separate-code",
                "-Wl,--hash-style=both",
                "-Wl,--build-id=none",
                f"-Wl,-soname,{shim.name}",
            ]
            _run([*command, "-o", str(shim), str(SOURCE / "edgeslm_jni.c"), str(library)])
            made += [library, shim]
    return made


def host(out: Path) -> Path:
    """The same source for this machine's JVM, against the llama.cpp of the installed llama-cpp-python."""
    import importlib.util

    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise RuntimeFailure("llama-cpp-python is not installed; make setup builds it")
    package = Path(spec.origin).parent
    libraries, headers = package / "lib", package.parent / "include"
    cc = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if cc is None or not (headers / "llama.h").is_file():
        raise RuntimeFailure("a C compiler and llama.h beside llama-cpp-python are needed; make setup brings both")
    target = out / "libedgeslm_host.so"
    out.mkdir(parents=True, exist_ok=True)
    command = [cc, *FLAGS, *_includes(headers), f"-Wl,-rpath,{libraries}", "-o", str(target)]
    _run([*command, str(SOURCE / "edgeslm_jni.c"), str(libraries / "libllama.so")])
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise RuntimeFailure(
            f"{command[0]} could not compile the shim: {next((s for s in last if 'error' in s), last[-1])}"
        )
