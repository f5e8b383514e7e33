"""Run folder in, report.html, report.md and results.json out. The door: `render(run) -> ReportFiles`."""

from edgeslm.report.page import ReportFiles, render

__all__ = ["ReportFiles", "render"]
