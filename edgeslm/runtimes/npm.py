"""The packages of the page: pinned npm tarballs, checked against the sha512 written here, a few files of each kept.

`npm pack` fetches a tarball and runs nothing of it. Only the files named in PACKAGES are taken out of it, under names
that are written here too, so an archive cannot choose where it writes. What the page needs then lies in one folder:

    ${XDG_CACHE_HOME:-~/.cache}/edgeslm/npm/page-<key>/{worker.html, page.html, ..., npm/<package>/<file>}

The key covers the pinned hashes and the page's own files, so an edited page is a new folder.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from edgeslm.errors import RuntimeFailure
from edgeslm.runtimes.native import cache_root

PAGES = Path(__file__).parent / "pages"
FETCH_TIMEOUT_S = 600
LARGEST_FILE_BYTES = 64 << 20
UNUSED_S = 7 * 86_400.0  # an older edition's page of that age goes when a new one is made


@dataclass(frozen=True)
class Package:
    """`integrity` is the registry's own, base64 of sha512; `files` are paths in the tarball below package/."""

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]
    license: str

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[2]


PACKAGES = {
    "wllama": Package(
        "@wllama/wllama",
        "3.8.1",
        "sha512-Pl7BEJhPU8OHnV/yhn3DFZYhLLOdSHh+4TND79WCftHnlUAdQPAsyc/CfIOY+4mVxvf5VW3Xw3Uf7BBfotS1gw==",
        ("esm/index.js", "esm/wasm/wllama.wasm", "LICENCE"),
        "MIT",
    ),
    "onnxruntime-web": Package(
        "onnxruntime-web",
        "1.30.0",
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
        "MIT",
    ),
    # text to ids and chat templates for ONNX folders; a GGUF's are in wllama
    "tokenizers": Package(
        "@huggingface/tokenizers",
        "0.2.0",
        "sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        ("dist/tokenizers.min.mjs", "LICENSE"),
        "Apache-2.0",
    ),
    "jinja": Package(
        "@huggingface/jinja",
        "0.5.11",
        "sha512-YzEzwM5oQf4r0vs7ifWQ+yuVR1YkAHrjERQ+a8WRsStHHp4NRBg+NesjiFc+X2AFUpRvvrIeHDS1xFy9jY/IjQ==",
        ("dist/index.js", "LICENSE"),
        "MIT",
    ),
}


def page_folder(cache: Path | None = None) -> Path:
    """The folder a browser is given, made when it is not there yet. Raises RuntimeFailure."""
    root = (cache or cache_root()) / "npm"
    folder = root / f"page-{_key()}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix="part-") as part:
        whole = Path(part) / "page"
        shutil.copytree(PAGES, whole)
        for package in PACKAGES.values():
            unpack(tarball(package, root), package, whole / "npm" / package.folder)
        try:
            os.rename(whole, folder)
        except OSError:  # another process was faster; folders of one key hold the same files
            if not folder.is_dir():
                raise
    for old in root.glob("page-*"):
        if old != folder and time.time() - old.stat().st_mtime > UNUSED_S:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def _key() -> str:
    digest = hashlib.sha256(repr(sorted(PACKAGES.items())).encode())
    for path in sorted(PAGES.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(PAGES).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def tarball(package: Package, root: Path) -> Path:
    """The package's tarball in the cache, fetched with the user's own npm when it is not there; its hash is checked
    each time. Raises RuntimeFailure."""
    kept = root / f"{package.folder}-{package.version}.tgz"
    if not kept.is_file():
        fetch(package, kept)
    found = integrity(kept)
    if found != package.integrity:
        kept.unlink()
        raise RuntimeFailure(
            f"{package.name} {package.version}: the tarball's sha512 is not the pinned one, so it was thrown away; "
            "run the command again, and if that does not help ask whoever keeps your npm registry"
        )
    return kept


def fetch(package: Package, target: Path) -> None:
    """`npm pack`: registry and proxy are those of the user's npm configuration. Raises RuntimeFailure."""
    what = f"{package.name}@{package.version}"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="part-") as part:
        command = ["npm", "pack", "--ignore-scripts", "--silent", "--pack-destination", part, what]
        try:
            done = subprocess.run(
                command, cwd=part, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
            )
        except FileNotFoundError as error:
            raise RuntimeFailure(
                f"{what} is needed to run models in a browser; install npm, which fetches it"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeFailure(f"{what} did not arrive within {FETCH_TIMEOUT_S} s; try again later") from error
        found = sorted(Path(part).glob("*.tgz"))
        if done.returncode or len(found) != 1:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            why = lines[0].removeprefix("npm error ").strip() if lines else "no reason given"
            raise RuntimeFailure(f"npm could not fetch {what} ({why}); check npm's registry and the network")
        os.replace(found[0], target)


def integrity(path: Path) -> str:
    """As package managers write it."""
    digest = hashlib.sha512()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return "sha512-" + base64.b64encode(digest.digest()).decode("ascii")


def unpack(archive: Path, package: Package, folder: Path) -> None:
    """The package's named files into `folder`, without their folders. Raises RuntimeFailure when one is not there."""
    folder.mkdir(parents=True)
    with tarfile.open(archive, "r:gz") as tar:
        for name in package.files:
            try:
                member = tar.getmember(f"package/{name}")
            except KeyError:
                member = None
            source = tar.extractfile(member) if member and member.isreg() else None
            if member is None or source is None or member.size > LARGEST_FILE_BYTES:
                raise RuntimeFailure(f"{package.name} {package.version}: holds no usable {name}; the pin needs mending")
            with source, (folder / Path(name).name).open("wb") as target:
                shutil.copyfileobj(source, target)
