"""What charts of points have in common: colours of series in light and in dark, and the page around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape


def style(colours: Iterable[tuple[str, str]], more: str) -> str:
    """`colours`: of each series s0, s1, ... in light and in dark; `more`: rules of this chart."""
    light, dark = (
        "".join(f".s{i}{{fill:{c};stroke:{c}}}" for i, c in enumerate(one)) for one in zip(*colours, strict=True)
    )
    return (
        "text{font:13px system-ui,sans-serif;fill:#333}.h{font-weight:600}.g{stroke:#ccc;stroke-width:.5}"
        f"{light}@media(prefers-color-scheme:dark){{text{{fill:#ddd}}.g{{stroke:#444}}{dark}}}{more}"
    )


def page(title: str, size: tuple[int, int], css: str, marks: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img">'
        f"<title>{escape(title)}</title><style>{css}</style>{''.join(marks)}</svg>\n"
    )
