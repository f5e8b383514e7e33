"""A program in a browser's place: it starts as one, opens the page's address, and then behaves as MODE says.

It starts a child and writes into its profile, as a browser does, so that tests see whether both are gone afterwards.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

PROGRAM = """#!{python}
import json, os, subprocess, sys, time, urllib.request
if "--version" in sys.argv:
    print("Substitute 1.2.3"); sys.exit()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
profile = next(a.partition("=")[2] for a in sys.argv if a.startswith("--user-data-dir="))
notes = {notes!r}
open(os.path.join(profile, "Cookies"), "w").write("x")
json.dump({{"pid": os.getpid(), "child": child.pid, "profile": profile, "home": os.environ["HOME"],
           "args": sys.argv[1:]}}, open(notes, "w"))
site = sys.argv[-1].rsplit("/", 3)[0]
def post(verb, document):
    body = (json.dumps(document) + "\\n").encode()
    urllib.request.urlopen(urllib.request.Request(site + "/" + verb, body)).read()
def get(verb):
    return json.load(urllib.request.urlopen(site + "/" + verb))
{mode}
os.read(3, 1)  # the end of whoever started it
"""
MODES = {
    "done": 'post("say", {"progress": [1, 1]})\npost("result", {"look": get("look"), "memory": get("memory")})\n'
    'post("say", {"ok": True, "result": "result.json"})',
    "refuses": 'post("say", {"ok": False, "error": "the model is too large; use a smaller one"})',
    "ends": 'post("say", {"progress": [1, 9]})\nprint("a murmur", file=sys.stderr)\nchild.kill()\nsys.exit(7)',
    "no sandbox": 'print("FATAL: No usable sandbox! Update your kernel", file=sys.stderr)\nchild.kill()\nsys.exit(1)',
    "never opens": "",
    "falls silent": 'post("say", {"progress": [1, 9]})',
    "goes on": 'while True:\n    post("say", {"alive": True})\n    time.sleep(0.05)',
    "garbage": 'post("say", "no object")\npost("result", {"neither": 1})\npost("say", {"ok": True})',
}


def write(folder: Path, mode: str) -> Path:
    """An executable; what it finds when it runs is in `notes` below the same folder."""
    path = folder / "browser"
    text = PROGRAM.replace("{mode}", MODES[mode].replace("{", "{{").replace("}", "}}"))
    path.write_text(text.format(python=sys.executable, notes=str(folder / "notes.json")), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def left_behind(folder: Path) -> list[str]:
    """What of a run's browser is still there."""
    notes = json.loads((folder / "notes.json").read_text(encoding="utf-8"))
    left = [f"process {notes[key]}" for key in ("pid", "child") if _runs(notes[key])]
    return left + [notes["profile"]] * os.path.exists(notes["profile"])


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
