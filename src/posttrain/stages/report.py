"""``kind: report``: the page, the same as Markdown, and summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from posttrain.stages.base import Context, StageKind


@dataclass(frozen=True, kw_only=True)
class ReportStage(StageKind):
    """Write report/index.html, report/report.md and summary.json from the artefacts of the run."""

    kind: Literal["report"]
    title: str | None = None
    """Heading of the page; default: the recipe's name."""

    reads_all: ClassVar[bool] = True

    def run(self, context: Context) -> Mapping[str, Any]:
        """Write the report."""
        from posttrain.stages.page import write_report

        kinds = dict.fromkeys(type(stage) for stage in context.stages.values())
        return {"page": str(write_report(context.run, tuple(kinds), self.title))}
