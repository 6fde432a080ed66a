"""Rules about learning from replies that are compared or judged."""

from __future__ import annotations

import math

from posttrain.doctor.course import course_of
from posttrain.doctor.evidence import TrainEvidence
from posttrain.doctor.findings import Cause, Finding, Outcome, Unknown
from posttrain.stats.intervals import wilson

NEAR_START = 0.01
"""A loss this near to that of an untrained policy, as a share of it, is called unchanged. Ours."""
CHOSEN_FALL = 1.0
"""A fall of the chosen replies' log-probability is named from here on, in nats a reply. Ours."""
FALLING_WITH = 0.5
"""The chosen reply falls too fast from this share of the rejected one's fall on (Razin et al., arXiv:2410.08847: likelihood displacement)."""
NLL_RISE = 0.1
"""... or when its negative log-likelihood has grown by this share."""


def of_pairs(seen: TrainEvidence) -> bool:
    """It learns from pairs."""
    return seen.training.objective.row_kind == "pairs"


def starts_somewhere(seen: TrainEvidence) -> bool:
    """Its untrained loss is known."""
    return seen.training.objective.untrained_loss is not None


def loss_at_start(seen: TrainEvidence) -> Outcome:
    """The loss is still that of an untrained policy: ln 2 for DPO."""
    start, course = seen.training.objective.untrained_loss, course_of(seen.training)
    assert start is not None
    if course is None or (ends := course.ends("loss")) is None:
        return Unknown("steps")
    if abs(ends[1] - start) > NEAR_START * start:
        return None
    numbers = {"loss": ends[1], "start": start, "margin": course.last.get("rewards/margins", 0.0)}
    rate = seen.training.learning_rate
    causes = [
        Cause("rate_low", () if rate is None else (seen.setting("learning_rate", rate * 10),)),
        Cause("few_steps"),
    ]
    if any(record.grad_norm == 0 for record in seen.training.steps):
        causes.insert(0, Cause("nothing_trained"))
    return Finding("alarm", (*causes, Cause("alike_pairs")), numbers)


def accuracy_chance(seen: TrainEvidence) -> Outcome:
    """The accuracy on held-out pairs is not shown to be above a coin's."""
    course = course_of(seen.training)
    ends = course.ends("rewards/accuracies") if course is not None else None
    if course is None or ends is None or not course.held_out or not course.rows:
        return Unknown("held_out_pairs")
    share = wilson(ends[1] * course.rows, course.rows)
    if share.low > 0.5 or ends[1] - ends[0] > 1 / math.sqrt(course.rows):
        return None  # without a reference the start may lie well below one half
    numbers = {"accuracy": share.estimate, "low": share.low, "high": share.high, "rows": course.rows}
    if share.high < 0.5 and seen.training.objective.needs_reference:
        return Finding("alarm", (Cause("labels_swapped"), Cause("other_distribution")), numbers)
    return Finding("remark", (Cause("few_rows"), Cause("few_steps"), Cause("labels_noisy")), numbers)


def chosen_falls(seen: TrainEvidence) -> Outcome:
    """The chosen replies become less likely while the margin grows."""
    course = course_of(seen.training)
    if course is None or (chosen := course.ends("logps/chosen")) is None or not course.held_out:
        return Unknown("held_out_pairs")
    rejected, margins = course.ends("logps/rejected"), course.ends("rewards/margins")
    fall = chosen[0] - chosen[1]
    if rejected is None or margins is None or fall < CHOSEN_FALL or margins[1] <= margins[0]:
        return None
    other, rise = rejected[0] - rejected[1], fall / abs(chosen[0])
    alarm = fall > FALLING_WITH * other or rise > NLL_RISE
    numbers = {"before": chosen[0], "after": chosen[1], "fall": fall, "other": other, "rise": rise, "rows": course.rows}
    rate, causes = seen.training.learning_rate, []
    if rate is not None:
        causes.append(Cause("rate_high", (seen.setting("learning_rate", rate / 3),)))
    if hasattr(seen.training.objective, "sft_weight"):
        causes.insert(0 if alarm else len(causes), Cause("no_anchor", (seen.setting("objective.sft_weight", 1.0),)))
    return Finding("alarm" if alarm else "remark", (*causes, Cause("alike_pairs")), numbers)
