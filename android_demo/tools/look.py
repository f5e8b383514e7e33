"""An HTML twin of the screens, for a picture of them: `python -m android_demo.tools.look`.

No layout engine of Android runs here, so the structure is drawn again; texts, colours, sizes and icons are read from
the app's own resources, so that they cannot drift. What the model says and the figures are recorded in look/said.json,
from the app's logic on a JVM.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from edgeslm.errors import RuntimeFailure

ROOT = Path(__file__).parents[1]
RES, LOOK = ROOT / "app/src/main/res", ROOT / "look"
ANDROID = "{http://schemas.android.com/apk/res/android}"
PICTURE = LOOK / "screens.png"
SIZE = (1570, 792)
SCALE = 1.25
COLOURS = 192
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def values(name: str, *folders: str) -> dict[str, str]:
    """Resources of one file; later folders win, as qualifiers do."""
    found: dict[str, str] = {}
    for folder in folders:
        path = RES / folder / f"{name}.xml"
        if path.is_file():
            found |= {item.attrib["name"]: item.text or "" for item in ElementTree.parse(path).getroot()}
    return found


class Screen:
    """One phone: language and theme choose the resources."""

    def __init__(self, chinese: bool = False, night: bool = False):
        self.strings = values("strings", "values", *(["values-zh"] if chinese else []))
        self.colours = values("colors", "values", *(["values-night"] if night else []))

    def text(self, name: str, *filled: str) -> str:
        """A string with its places filled, as Android fills them."""
        text = re.sub(r"%(\d)\$[sd]", lambda m: filled[int(m[1]) - 1], self.strings[name]).replace("\\n", "\n")
        return html.escape(text)

    def style(self) -> str:
        sizes = {name: re.sub(r"(dp|sp)$", "px", size) for name, size in values("dimens", "values").items()}
        colours = {name: f"#{value[3:]}" for name, value in self.colours.items()}
        return ";".join(f"--{name}:{value}" for name, value in (sizes | colours).items())

    def icon(self, name: str, size: int = 24) -> str:
        """A vector drawable as SVG."""
        root = ElementTree.parse(RES / f"drawable/ic_{name}.xml").getroot()
        paths = []
        for path in root.iter("path"):
            fill = path.attrib[f"{ANDROID}fillColor"]
            colour = f"var(--{fill[7:]})" if fill.startswith("@color/") else f"#{fill[3:]}"
            paths.append(f'<path fill="{colour}" d="{path.attrib[f"{ANDROID}pathData"]}"/>')
        box = root.attrib[f"{ANDROID}viewportWidth"]
        return f'<svg width="{size}" height="{size}" viewBox="0 0 {box} {box}">{"".join(paths)}</svg>'

    def button(self, name: str) -> str:
        return f'<span class="icon">{self.icon(name)}</span>'

    def phone(self, inside: str) -> str:
        clock = '<div class="clock"><span>9:41</span><span>100%</span></div>'
        return f'<div class="phone" style="{self.style()}">{clock}{inside}<div class="home"></div></div>'

    def bar(self, title: str, status: str) -> str:
        names = f'<div class="grow"><h1>{html.escape(title)}</h1><p>{status}</p></div>'
        return f'<div class="bar">{names}{self.button("new")}{self.button("bench")}{self.button("more")}</div>'

    def input(self, icon: str) -> str:
        send = f'<span class="icon send">{self.icon(icon)}</span>'
        return f'<div class="input"><div class="field">{self.text("hint")}</div>{send}</div>'


def chat(said: dict[str, object]) -> str:
    """In the middle of an answer."""
    screen, bubbles = Screen(), []
    for role, words in said["messages"]:  # type: ignore[attr-defined]
        bubbles.append(f'<div class="bubble {role}">{html.escape(words)}</div>')
    status = screen.text("status_speed", str(said["tokens_per_second"]), str(said["megabytes"]))
    talk = f'<div class="talk">{"".join(bubbles)}</div>'
    return screen.phone(screen.bar(str(said["name"]), status) + talk + screen.input("stop"))


def welcome(said: dict[str, object]) -> str:
    screen = Screen(chinese=True, night=True)
    tries = "".join(f'<div class="try">{screen.text(f"try_{i}")}</div>' for i in (1, 2, 3))
    inside = f"{screen.icon('app', 64)}<h2>{screen.text('welcome_title')}</h2><p>{screen.text('welcome_text')}</p>"
    status = screen.text("status_idle", str(said["idle_megabytes"]))
    body = f'<div class="empty">{inside}<div class="tries">{tries}</div></div>'
    return screen.phone(screen.bar(str(said["name"]), status) + body + screen.input("send"))


def benchmark(said: dict[str, object]) -> str:
    screen, rows = Screen(), []
    for metric, unit, value in said["figures"]:  # type: ignore[attr-defined]
        names = f"{screen.text(f'metric_{metric}')}<small>{metric}</small>"
        rows.append(
            f'<div class="row"><span class="grow">{names}</span><b>{screen.text(f"unit_{unit}", value)}</b></div>'
        )
    title = f'<div class="grow"><h1>{screen.text("bench_title")}</h1></div>'
    top = f'<div class="bar plain">{screen.button("back")}&nbsp;{title}</div>'
    acts = f'<div class="act main">{screen.text("bench_again")}</div>'
    acts += "".join(f'<div class="act">{screen.text(name)}</div>' for name in ("share", "save"))
    sheet = f'<div class="sheet"><p>{screen.text("bench_text")}</p><div class="card">{"".join(rows)}</div></div>'
    return screen.phone(f'{top}{sheet}<div class="acts">{acts}</div>')


def unpacking(said: dict[str, object]) -> str:
    screen = Screen(night=True)
    done, total = (int(str(n)) for n in said["unpacked"])  # type: ignore[attr-defined]
    inside = f"{screen.icon('app', 64)}<h2>{screen.text('unpacking')}</h2>"
    inside += f"<p>{screen.text('unpacking_share', str(done), str(total))}</p>"
    inside += f'<div class="track"><i style="width:{100 * done / total:.0f}%"></i></div>'
    bar = screen.bar(screen.strings["app_name"], screen.text("status_none"))
    return screen.phone(f'{bar}<div class="empty">{inside}</div>')


def page() -> str:
    said = json.loads((LOOK / "said.json").read_text(encoding="utf-8"))
    style = (LOOK / "page.css").read_text(encoding="utf-8")
    phones = "".join(draw(said) for draw in (chat, benchmark, welcome, unpacking))
    return f'<!doctype html><meta charset="utf-8"><style>{style}</style><body>{phones}</body>'


def render(out: Path) -> None:
    """Raises RuntimeFailure without a browser or when it draws nothing."""
    from PIL import Image

    browser = next((name for name in BROWSERS if shutil.which(name)), None)
    if browser is None:
        raise RuntimeFailure("a browser is needed to draw the screens; apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="edgeslm-look-") as work:
        source, shot = Path(work) / "page.html", Path(work) / "shot.png"
        source.write_text(page(), encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--window-size={SIZE[0]},{SIZE[1]}", f"--force-device-scale-factor={SCALE}",
                   f"--screenshot={shot}", source.as_uri()]  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=120, check=False)
        if not shot.is_file():
            raise RuntimeFailure(f"{browser} drew nothing; run it by hand: {' '.join(command)}")
        with Image.open(shot) as picture:
            few = picture.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            few.save(out, optimize=True)


if __name__ == "__main__":
    render(PICTURE)
    sys.stdout.write(f"{PICTURE}: {PICTURE.stat().st_size} bytes\n")
