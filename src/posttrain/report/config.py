"""The configuration of a report stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ReportStage:
    """Write report/index.html, report/report.md and summary.json from the artefacts of the run."""

    kind: Literal["report"]
    title: str | None = None
    """Heading of the page; default: the recipe's name."""
