"""Held-out feedback in the report: how well models tell replies found good from replies found bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.artifacts import StageDir
from posttrain.report.reading import Gap, Stage, json_value, optional, parse
from posttrain.report.records import Estimate, FeedbackFile, ModelFeedback
from posttrain.report.verdicts import Verdict, gain_verdict


@dataclass(frozen=True, slots=True)
class EvalFeedback:
    """feedback.json, models in the order of the stage."""

    found: FeedbackFile
    models: Mapping[str, ModelFeedback]

    @property
    def headline(self) -> tuple[str, str, Estimate, Verdict] | None:
        """(first model, last model, difference of separation, verdict); None where nothing is compared."""
        for one in reversed(self.found.differences):
            if one.separation is not None:
                return one.a, one.b, one.separation, gain_verdict(one.separation.low, one.separation.high)
        return None


def holds_feedback(folder: StageDir, stage: Stage) -> bool:
    """Whether the held-out rows of an eval stage are single labelled replies, as far as its files tell."""
    measured = (stage.manifest.result or {}) if stage.manifest else {}
    return folder.file("feedback.json").exists() or "separation" in measured


def read_feedback(folder: StageDir, stage: Stage, gaps: list[Gap]) -> EvalFeedback | None:
    """Return the held-out feedback of an eval stage; None where it scored none, or it can't be read."""
    if not holds_feedback(folder, stage):
        return None
    found = optional(
        gaps,
        stage,
        folder.file("feedback.json"),
        "held-out feedback is not known",
        lambda path: parse(FeedbackFile, json_value(path), path),
    )
    if found is None:
        return None
    declared = stage.manifest.config.get("models") if stage.manifest else None
    order = dict.fromkeys([*(name for name in declared or () if name in found.models), *found.models])
    return EvalFeedback(found, {name: found.models[name] for name in order})
