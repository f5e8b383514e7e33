"""The Android app as files: its native libraries read as ELF, its APK, its texts, colours and layouts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from jvm import DEMO, small_bundle

from android_demo.tools import build, elf, fetch, look, package, shim
from edgeslm.errors import RuntimeFailure

RES = DEMO / "app/src/main/res"
ANDROID = "{http://schemas.android.com/apk/res/android}"
PAIRS = (
    ("ink", "ground"), ("ink", "bubble_model"), ("ink_soft", "ground"), ("ink_soft", "surface"), ("accent", "surface"),
    ("on_bubble_user", "bubble_user"), ("on_accent", "accent"), ("warn", "warn_ground"),
)  # fmt: skip


@pytest.fixture(scope="module")
def natives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        out = tmp_path_factory.mktemp("natives")
        shim.android(out)
    except RuntimeFailure as error:
        pytest.skip(str(error))
    return out


def test_a_phone_finds_every_symbol_of_the_shims(natives: Path):
    """Each shim against the library it names, both aligned for pages of 16 KiB."""
    found = sorted((natives / "lib").rglob("libedgeslm_*.so"))
    assert len(found) == len(fetch.ARM64) + len(fetch.X86_64)
    for path in found:
        own = elf.read(path)
        llama = elf.read(path.with_name(path.name.replace("libedgeslm", "librnllama")))
        assert own.needed == (llama.soname,) and own.machine == llama.machine == path.parent.name
        assert own.undefined and own.undefined <= llama.exports
        assert {name for name in own.undefined if not name.startswith("llama_")} == set()
        assert min(own.alignments + llama.alignments) >= 16384 and set(llama.needed) <= build.PUBLIC
        methods = re.findall(
            r"static native \S+ (\w+)\(", (DEMO / "core/src/main/java/org/edgeslm/core/Native.java").read_text()
        )
        wanted = {"JNI_OnLoad", *(f"Java_org_edgeslm_core_Native_{m}" for m in methods)}
        assert len(methods) == 14 and wanted <= own.exports
        build.check_library(path)


def test_a_library_that_a_phone_could_not_load_is_refused(natives: Path, tmp_path: Path):
    lib = natives / "lib/arm64-v8a"
    (tmp_path / "arm64-v8a").mkdir()
    shutil.copyfile(lib / "libedgeslm_v8.so", tmp_path / "arm64-v8a/libedgeslm_v8.so")
    with pytest.raises(RuntimeFailure, match="neither packaged nor public"):
        build.check_library(tmp_path / "arm64-v8a/libedgeslm_v8.so")
    (tmp_path / "x86_64").mkdir()
    shutil.copyfile(lib / "libedgeslm_v8.so", tmp_path / "x86_64/libedgeslm_v8.so")
    with pytest.raises(RuntimeFailure, match="not a x86_64 library"):
        build.check_library(tmp_path / "x86_64/libedgeslm_v8.so")
    with pytest.raises(ValueError, match="no 64-bit little-endian ELF file"):
        elf.read(Path(__file__))


def test_the_apk_is_signed_aligned_and_asks_for_nothing(natives: Path, tmp_path: Path):
    try:
        apk = build.build(tmp_path / "demo.apk", small_bundle(tmp_path))
    except RuntimeFailure as error:
        if "missing; apt-get" in str(error):
            pytest.skip(str(error))
        raise
    badging = build.run("aapt", "dump", "badging", apk)
    assert "native-code: 'arm64-v8a' 'x86_64'" in badging and "sdkVersion:'26'" in badging
    assert "uses-permission" not in badging and "locales: '--_--' 'zh'" in badging
    verified = build.run("apksigner", "verify", "--verbose", "--min-sdk-version", "26", apk)
    assert "(APK Signature Scheme v2): true" in verified and "(APK Signature Scheme v3): true" in verified
    places = package.offsets(apk)
    libraries = [name for name in places if name.endswith(".so")]
    assert len(libraries) == 2 * (len(fetch.ARM64) + len(fetch.X86_64))
    assert all(places[name][1] and places[name][0] % 16384 == 0 for name in libraries)
    assert places["resources.arsc"][1] and places["assets/bundle/student.gguf"][1]
    with zipfile.ZipFile(apk) as archive:
        app = sum(i.compress_size for i in archive.infolist() if not i.filename.startswith("assets/bundle/"))
    assert 25e6 < app < 35e6, "the size that READMEs name, without the model"
    if shutil.which("dexdump"):
        code = build.run("dexdump", "-d", apk)
        assert "Host" in code and not re.search(r"invoke-(custom|polymorphic)", code), (
            "Android has no LambdaMetafactory"
        )


def test_a_clean_clone_builds_it_without_a_package():
    """`make apk` takes a bare Python, so nothing has to be installed or compiled first."""
    code = "import android_demo.tools.build, sys; assert not any('site-packages' in p for p in sys.path)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=DEMO.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k not in ("PYTHON", "VENV", "BUNDLE")}
    for bundle, program in ([], "python3 -m android_demo"), (["BUNDLE=b"], ".venv/bin/python -m android_demo"):
        command = ["make", "-n", "apk", *bundle]
        said = subprocess.run(command, cwd=DEMO.parent, env=plain, capture_output=True, text=True).stdout
        assert program in said and ("--bundle b" in said) == bool(bundle)


def strings(values: str) -> dict[str, str]:
    tree = ElementTree.parse(RES / values / "strings.xml")
    return {s.attrib["name"]: s.text or "" for s in tree.getroot().iter("string")}


def test_every_text_is_there_in_both_languages_with_the_same_places():
    english, chinese = strings("values"), strings("values-zh")
    assert set(english) == set(chinese) and len(english) > 60
    place = re.compile(r"%\d\$[sd]")
    for name, text in english.items():
        assert sorted(place.findall(text)) == sorted(place.findall(chinese[name])), name
        assert name in ("app_name", "error_engine", "unit_megabytes") or text != chinese[name], name
    sources = "".join(
        p.read_text(encoding="utf-8") for p in (DEMO / "app/src/main").rglob("*") if p.suffix in (".java", ".xml")
    )
    for name in english:
        assert re.search(rf"(R\.string\.|@string/){name}\b", sources), f"{name} is never shown"


def test_the_sentences_of_wrong_bundles_are_the_app_s():
    source = (DEMO / "core/src/main/java/org/edgeslm/core/BundleError.java").read_text(encoding="utf-8")
    kinds = dict(re.findall(r'^        ([A-Z_]+)\("(.*)"\)[,;]$', source, re.M))
    assert len(kinds) == 11
    english = strings("values")
    for kind, sentence in kinds.items():
        assert english[f"bundle_{kind.lower()}"].replace("’", "'") == sentence, kind


def test_no_permission_and_a_label_for_every_image_button():
    manifest = ElementTree.parse(DEMO / "app/src/main/AndroidManifest.xml").getroot()
    assert [child.tag for child in manifest] == ["uses-sdk", "application"]
    for path in (RES / "layout").glob("*.xml"):
        for view in ElementTree.parse(path).getroot().iter():
            if view.tag == "ImageButton":
                assert view.attrib[f"{ANDROID}contentDescription"].startswith("@string/"), path
            assert not view.attrib.get(f"{ANDROID}text", "@").strip("@?").startswith(" "), path
            assert view.attrib.get(f"{ANDROID}text", "@string/").startswith("@string/"), "a text outside resources"


def test_night_has_every_colour_and_texts_can_be_read():
    """Contrast of WCAG AA: 4.5 for text on what it stands on."""

    def colours(values: str) -> dict[str, str]:
        root = ElementTree.parse(RES / values / "colors.xml").getroot()
        return {c.attrib["name"]: (c.text or "")[3:] for c in root.iter("color")}

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    day, night = colours("values"), colours("values-night")
    assert set(day) == set(night)
    for theme in (day, night):
        for text, ground in PAIRS:
            a, b = sorted((light(theme[text]), light(theme[ground])), reverse=True)
            assert (a + 0.05) / (b + 0.05) >= 4.5, (text, ground, theme[text])


def test_gradle_builds_the_same_sources():
    assert "include ':core', ':app'" in (DEMO / "settings.gradle").read_text()
    app = (DEMO / "app/build.gradle").read_text()
    assert "minSdk 26" in app and "targetSdk 35" in app and "project(':core')" in app
    for source in (build.APP, build.CORE):
        assert source.is_relative_to(DEMO) and list(source.rglob("*.java")), "Gradle's standard places"


def test_the_twin_shows_the_app_s_own_resources():
    page = look.page()
    english, chinese = strings("values"), strings("values-zh")
    for text in (english["hint"], english["bench_text"], chinese["welcome_title"], chinese["try_1"]):
        assert text in page
    assert not re.search(r"%\d\$", page), "a place of a text was left open"
    assert page.count('class="phone"') == 4 and "--accent:#0B6E66" in page and "--accent:#6FD6CB" in page
    assert look.PICTURE.stat().st_size < 200_000
    assert "No phone was measured" in (look.LOOK / "said.json").read_text(encoding="utf-8")
