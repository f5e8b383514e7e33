"""What the build takes from elsewhere, pinned by hash and cached under ${XDG_CACHE_HOME:-~/.cache}/edgeslm/android.

    android.jar   Debian's libandroid-23-java: the framework's public classes, which sources are compiled against
    dx            Debian's dalvik-exchange: class files to dex
    llama.cpp     npm's llama.rn: prebuilt for Android with the NDK, 16 KiB aligned, MIT; later releases lack it

Nothing of it is installed or committed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import RuntimeFailure
from edgeslm.runtimes import npm
from edgeslm.runtimes.native import cache_root

APT = ("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
TIMEOUT_S = 120
CPP = "cpp"
LIBS = "android/src/main/jniLibs"


@dataclass(frozen=True)
class Deb:
    """A Debian package and the one file of it that is wanted."""

    name: str
    path: str
    sha256: str
    file: str


ANDROID_JAR = Deb(
    "libandroid-23-java_6.0.1+r72-6",
    "pool/main/a/android-framework-23/libandroid-23-java_6.0.1+r72-6_all.deb",
    "8af1b6df556971dda0a6da3536ea526a838e0c363afcdd454213d8bce94793e3",
    "usr/lib/android-sdk/platforms/android-23/android.jar",
)
DX_JAR = Deb(
    "dalvik-exchange_10.0.0+r36-1",
    "pool/main/a/android-platform-dalvik/dalvik-exchange_10.0.0+r36-1_all.deb",
    "8fc128db7c27253d963eb9b33de79b197162a4749d2ba69019b2fd0664cbd7fe",
    "usr/share/java/com.android.dx.jar",
)
ARM64 = ("v8", "v8_2_dotprod", "v8_2_dotprod_i8mm")
X86_64 = ("x86_64",)
HEADERS = tuple(
    f"{CPP}/{name}" for name in ("llama.h", "ggml.h", "ggml-cpu.h", "ggml-backend.h", "ggml-alloc.h", "ggml-opt.h")
)
LLAMA_RN = npm.Package(
    "llama.rn",
    "0.11.5",
    "sha512-ON4ThybtiPnNEfJHbQcBk5zkm/YyFgjpGzykgEeqOLFZMTVaZqsSQyZ6TOTyvDfKrIQzukIKKglBtCyPLbbBsw==",
    (
        *HEADERS,
        f"{CPP}/LICENSE",
        *(f"{LIBS}/arm64-v8a/librnllama_{v}.so" for v in ARM64),
        *(f"{LIBS}/x86_64/librnllama_{v}.so" for v in X86_64),
    ),
    "MIT",
)
LLAMA_BUILD = "b8189"  # of llama.cpp, as llama.rn's src/version.ts says


def cache() -> Path:
    folder = cache_root() / "android"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def deb(package: Deb) -> Path:
    """The wanted file of a Debian package. Raises RuntimeFailure when it cannot be had or is another one."""
    home = cache() / package.name
    kept = home / Path(package.file).name
    if kept.is_file():
        return kept
    if shutil.which("dpkg-deb") is None:
        raise RuntimeFailure(f"{package.name} is a Debian package and dpkg-deb is missing; install dpkg")
    with tempfile.TemporaryDirectory(dir=cache(), prefix="part-") as part:
        archive = Path(part) / "package.deb"
        archive.write_bytes(_download(package))
        subprocess.run(["dpkg-deb", "-x", str(archive), f"{part}/x"], check=True)
        found = Path(part) / "x" / package.file
        if not found.resolve().is_file():
            raise RuntimeFailure(f"{package.name}: holds no {package.file}; the pin needs mending")
        home.mkdir(exist_ok=True)
        shutil.copyfile(found.resolve(), Path(part) / "wanted")
        os.replace(Path(part) / "wanted", kept)
    return kept


def mirrors() -> list[str]:
    """Where this machine's own apt gets packages from; a pool keeps those of releases apt was not set up for."""
    try:
        said = subprocess.run(APT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeFailure("apt does not say where Debian's packages are; run this on Debian") from error
    return list(dict.fromkeys(line.rstrip("/") + "/" for line in said.split() if line.startswith("http")))


def _download(package: Deb) -> bytes:
    why = "apt names no mirror"
    for mirror in mirrors():
        try:
            with urllib.request.urlopen(mirror + package.path, timeout=TIMEOUT_S) as answer:
                data: bytes = answer.read()
        except (urllib.error.URLError, OSError) as error:
            why = str(error)
            continue
        if hashlib.sha256(data).hexdigest() == package.sha256:
            return data
        why = "its sha256 is not the pinned one"
    raise RuntimeFailure(f"{package.name} could not be fetched from Debian ({why}); check the network and try again")


def llama() -> Path:
    """The folder with include/, arm64-v8a/, x86_64/ and LICENSE of the prebuilt llama.cpp. Raises RuntimeFailure."""
    folder = cache() / f"llama.rn-{LLAMA_RN.version}"
    if folder.is_dir():
        return folder
    tarball = npm.tarball(LLAMA_RN, cache())
    with tempfile.TemporaryDirectory(dir=cache(), prefix="part-") as part:
        whole = Path(part) / "whole"
        with tarfile.open(tarball, "r:gz") as tar:
            for name in LLAMA_RN.files:
                place = "include" if name.endswith(".h") else Path(name).parent.name if name.endswith(".so") else "."
                _take(tar, name, whole / place)
        try:
            os.rename(whole, folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def _take(tar: tarfile.TarFile, name: str, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(f"package/{name}")
    if source is None:
        raise RuntimeFailure(f"{LLAMA_RN.name} {LLAMA_RN.version}: holds no usable {name}; the pin needs mending")
    with source, (place / Path(name).name).open("wb") as target:
        shutil.copyfileobj(source, target)
