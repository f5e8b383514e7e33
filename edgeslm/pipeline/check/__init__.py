"""What is looked at before any compute: everything that is wrong at once, and what will be done."""

from edgeslm.pipeline.check.whole import Findings, check

__all__ = ["Findings", "check"]
