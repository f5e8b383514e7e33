"""The app as a signed debug APK, without the Android SDK: `python -m android_demo.tools.build [--bundle DIR-OR-ZIP]`.

aapt compiles resources, javac the sources against android.jar (so nothing that Android 6 lacks can slip in), dx makes
dex of the classes, shim.py the native side; package.py aligns, apksigner signs (v2 and v3) and everything is checked.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from android_demo.tools import elf, fetch, package, shim
from edgeslm.errors import EdgeSLMError, RuntimeFailure

ROOT = Path(__file__).parents[1]
APP, CORE = ROOT / "app/src/main", ROOT / "core/src/main/java"
OUT = ROOT / "build/edgeslm-demo.apk"
TOOLS = ("aapt", "apksigner", "javac", "java", "keytool")
PACKAGES = "aapt apksigner zipalign openjdk-17-jdk-headless clang lld"
PUBLIC = frozenset({"liblog.so", "libandroid.so", "libm.so", "libdl.so", "libc.so"})
KEY = ("-storepass", "android", "-keypass", "android", "-alias", "androiddebugkey")


def build(out: Path, bundle: Path | None = None) -> Path:
    """Raises RuntimeFailure with one sentence for whatever is missing or goes wrong."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise RuntimeFailure(f"{', '.join(missing)} missing; apt-get install {PACKAGES}")
    android_jar, dx = fetch.deb(fetch.ANDROID_JAR), fetch.deb(fetch.DX_JAR)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgeslm-apk-") as folder:
        work = Path(folder)
        resources(work, android_jar)
        classes(work, android_jar, dx)
        shim.android(work)
        if bundle is not None:
            assets(work, bundle)
        unsigned = work / "unsigned.apk"
        package.write(unsigned, _entries(work))
        part = out.with_name(out.name + ".part")
        sign(unsigned, part)
        check(part, work)
        os.replace(part, out)
    return out


def resources(work: Path, android_jar: Path) -> None:
    """work/base.apk (manifest, resources) and work/gen (R.java)."""
    (work / "gen").mkdir()
    run("aapt", "package", "-f", "-m", "-J", work / "gen", "-M", APP / "AndroidManifest.xml", "-S", APP / "res",
        "-I", android_jar, "-F", work / "base.apk")  # fmt: skip


def classes(work: Path, android_jar: Path, dx: Path) -> None:
    """work/classes.dex. Lambdas would need a desugarer, which dx is not; the sources have none."""
    sources = [*sorted(APP.rglob("*.java")), *sorted(CORE.rglob("*.java")), *sorted((work / "gen").rglob("*.java"))]
    (work / "classes").mkdir()
    run("javac", "-nowarn", "-encoding", "UTF-8", "-source", "8", "-target", "8", "-bootclasspath", android_jar,
        "-Xlint:-options", "-d", work / "classes", *sources)  # fmt: skip
    run("java", "-cp", dx, "com.android.dx.command.Main", "--dex", f"--min-sdk-version={shim.MIN_SDK}",
        f"--output={work / 'classes.dex'}", work / "classes")  # fmt: skip


def assets(work: Path, bundle: Path) -> None:
    """A checked bundle for first-run unpacking. Raises ModelError for a wrong one."""
    from edgeslm.export.bundle_read import opened, unpack

    if bundle.is_dir():
        opened(bundle)
        shutil.copytree(bundle, work / "assets/bundle")
    else:
        unpack(bundle, work / "assets/bundle")


def _entries(work: Path) -> Iterator[tuple[str, bytes]]:
    import zipfile

    with zipfile.ZipFile(work / "base.apk") as base:
        for name in sorted(base.namelist()):
            yield name, base.read(name)
    yield "classes.dex", (work / "classes.dex").read_bytes()
    for folder in ("lib", "assets"):
        for path in sorted(p for p in (work / folder).rglob("*") if p.is_file()):
            yield path.relative_to(work).as_posix(), path.read_bytes()
    yield "META-INF/llama.rn-LICENSE.txt", (fetch.llama() / "LICENSE").read_bytes()


def sign(unsigned: Path, out: Path) -> None:
    """With a debug key of this machine, made once."""
    key = fetch.cache() / "debug.keystore"
    if not key.exists():
        part = key.with_name(f"{key.name}.{os.getpid()}")
        run("keytool", "-genkeypair", "-keystore", part, *KEY, "-keyalg", "RSA", "-keysize", "2048", "-validity",
            "10000", "-dname", "CN=EdgeSLM debug")  # fmt: skip
        os.replace(part, key)
    run("apksigner", "sign", "--ks", key, "--ks-pass", "pass:android", "--v1-signing-enabled", "false",
        "--v2-signing-enabled", "true", "--v3-signing-enabled", "true", "--out", out, unsigned)  # fmt: skip
    out.with_name(out.name + ".idsig").unlink(missing_ok=True)


def check(apk: Path, work: Path) -> None:
    """Signature, alignment of zip and segments, and that the loader will find every symbol. Raises RuntimeFailure."""
    run("apksigner", "verify", "--min-sdk-version", str(shim.MIN_SDK), apk)
    run("aapt", "dump", "badging", apk)
    for name, (start, stored) in package.offsets(apk).items():
        align = package.LIBRARY_BYTES if name.endswith(".so") else package.PLAIN_BYTES
        if (name.endswith(".so") and not stored) or (stored and start % align):
            raise RuntimeFailure(f"{name} does not lie uncompressed at a multiple of {align} in the APK; report this")
    for path in sorted((work / "lib").rglob("*.so")):
        check_library(path)


def check_library(path: Path) -> None:
    """Raises RuntimeFailure for a library that a phone could not load."""
    library = elf.read(path)
    if library.machine != path.parent.name or min(library.alignments) < package.LIBRARY_BYTES:
        raise RuntimeFailure(f"{path.name} is not a {path.parent.name} library with segments aligned to 16 KiB")
    beside = {p.name: elf.read(p) for p in path.parent.glob("*.so")}
    unknown = set(library.needed) - PUBLIC - beside.keys()
    if unknown:
        raise RuntimeFailure(f"{path.name} needs {sorted(unknown)[0]}, which is neither packaged nor public on Android")
    if not PUBLIC & set(library.needed):  # it links to packaged libraries only, so everything must be there
        offered = frozenset().union(*(beside[name].exports for name in library.needed))
        if lacking := library.undefined - offered:
            raise RuntimeFailure(f"{path.name} lacks the symbol {sorted(lacking)[0]}, which no packaged library has")


def run(*command: str | Path) -> str:
    """Its output. Raises RuntimeFailure with the last line of what it complained of."""
    argv = [str(part) for part in command]
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        told = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
        raise RuntimeFailure(f"{command[0]}: {told.strip()}")
    return done.stdout


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build the Android demo as a signed debug APK.")
    parser.add_argument("--bundle", type=Path, help="a bundle to put into the app; without one it asks for a file")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--native", type=Path, help="write only lib/<ABI>/*.so there, for the Gradle project")
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        if arguments.native is not None:
            shim.android(arguments.native)
            return
        apk = build(arguments.out, arguments.bundle)
    except EdgeSLMError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{apk}: {apk.stat().st_size / 1e6:.1f} MB, {time.monotonic() - start:.0f} s\n")


if __name__ == "__main__":
    main()
