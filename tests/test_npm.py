"""The pinned npm packages, and the pages that are made with them."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from test_browser_server import tree

from edgeslm.errors import RuntimeFailure
from edgeslm.runtimes import npm


def test_pins_are_whole() -> None:
    for package in npm.PACKAGES.values():
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", package.integrity), package
        assert re.fullmatch(r"\d+\.\d+\.\d+", package.version) and package.files and package.license
        assert all(".." not in name and not name.startswith("/") for name in package.files)
    engine = (npm.PAGES / "wllama_engine.js").read_text(encoding="utf-8")
    assert f'WLLAMA = "{npm.PACKAGES["wllama"].version}"' in engine  # what results say is what is fetched


def test_the_pages_name_only_what_is_there() -> None:
    """Imports and addresses of the page's files, and the places that its scripts look for."""
    there = {path.name for path in npm.PAGES.iterdir()}
    there |= {f"npm/{p.folder}/{name.rpartition('/')[2]}" for p in npm.PACKAGES.values() for name in p.files}
    scripts = {path.name: path.read_text(encoding="utf-8") for path in npm.PAGES.glob("*.js")}
    named = {name for text in scripts.values() for name in re.findall(r'"\./([\w./-]+\.m?js|[\w./-]+\.wasm)"', text)}
    page = (npm.PAGES / "page.html").read_text(encoding="utf-8")
    named |= set(re.findall(r'(?:src|href)="([\w.]+)"', page))
    assert len(named) > 8 and named <= there, named - there
    ids = set(re.findall(r' id="([\w-]+)"', page))
    asked = set(re.findall(r'\$\("([\w-]+)"\)', scripts["page.js"])) | set(
        re.findall(r'show\("([\w-]+)"', scripts["page_figures.js"])
    )
    assert len(asked) > 20 and asked <= ids, asked - ids
    assert not re.search(r"\bstyle=|\bonclick=|https?://(?!www\.w3\.org/2000/svg)", page)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_can_be_read_in_light_and_dark() -> None:
    """Contrast of text of at least 4.5 (WCAG 2.2, 1.4.3) on each ground it stands on."""
    text = (npm.PAGES / "page.css").read_text(encoding="utf-8")
    colours = {name: pair for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", text)}
    pairs = [(ink, ground) for ink in ("ink", "soft", "green") for ground in ("paper", "card", "side")]
    pairs += [("red", "paper"), ("ink", "mine"), ("green-ink", "green"), ("paper", "ink")]
    for ink, ground in pairs:
        for scheme in (0, 1):
            light, dark = sorted((luminance(colours[ink][scheme]), luminance(colours[ground][scheme])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground, scheme)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> npm.Package:
    """A package of one file, whose tarball also holds what nobody asked for; no npm to be found."""
    source = tree(tmp_path / "source", {"package/esm/index.js": "export {}", "evil": "x", "package/install.js": "x"})
    (tmp_path / "cache/npm").mkdir(parents=True)
    archive = tmp_path / "cache/npm/wllama-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("package/esm/index.js", "package/install.js"):
            tar.add(source / name, name)
        tar.add(source / "evil", "../../evil")
    made = npm.Package("@wllama/wllama", "1.0.0", npm.integrity(archive), ("esm/index.js",), "MIT")
    monkeypatch.setattr(npm, "PACKAGES", {"wllama": made})
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    return made


def test_a_page_is_made_of_what_the_pins_name(package: npm.Package, tmp_path: Path) -> None:
    folder = npm.page_folder(tmp_path / "cache")
    assert [p.relative_to(folder).as_posix() for p in (folder / "npm").rglob("*.js")] == ["npm/wllama/index.js"]
    assert (folder / "worker.html").is_file() and not (tmp_path / "evil").exists()
    assert npm.page_folder(tmp_path / "cache") == folder  # the second time nothing is made
    assert {p.name for p in (tmp_path / "cache/npm").iterdir()} == {folder.name, "wllama-1.0.0.tgz"}


def test_a_tarball_that_is_not_the_pinned_one_is_refused_and_thrown_away(package: npm.Package, tmp_path: Path) -> None:
    archive = tmp_path / "cache/npm/wllama-1.0.0.tgz"
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(RuntimeFailure, match="sha512 is not the pinned one, so it was thrown away"):
        npm.page_folder(tmp_path / "cache")
    assert not list((tmp_path / "cache/npm").iterdir())
    with pytest.raises(RuntimeFailure, match="install npm"):  # then it has to be fetched, and nothing can
        npm.page_folder(tmp_path / "cache")
    assert not list((tmp_path / "cache/npm").iterdir())


def test_a_registry_that_has_it_not_is_one_sentence(package: npm.Package, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "cache/npm/wllama-1.0.0.tgz").unlink()

    def refuse(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "npm error code E404\nnpm error 404 Not Found\n")

    monkeypatch.setattr(npm.subprocess, "run", refuse)
    with pytest.raises(RuntimeFailure, match=r"npm could not fetch @wllama/wllama@1.0.0 \(code E404\)"):
        npm.page_folder(tmp_path / "cache")


def test_a_pin_that_names_a_missing_file_is_refused(package: npm.Package, tmp_path: Path) -> None:
    wrong = npm.Package(package.name, package.version, package.integrity, ("esm/other.js",), "MIT")
    with pytest.raises(RuntimeFailure, match=r"holds no usable esm/other\.js"):
        npm.unpack(tmp_path / "cache/npm/wllama-1.0.0.tgz", wrong, tmp_path / "out")
