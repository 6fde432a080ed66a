"""Rules about learning from replies that are compared or judged."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from posttrain.doctor.course import Course, Floats, course_of, logged, share_right, trace
from posttrain.doctor.evidence import TrainEvidence
from posttrain.doctor.findings import Cause, Finding, Outcome, Unknown
from posttrain.doctor.online import change_between
from posttrain.doctor.training import loose, still, too_fast

AT_START = 1e-3 / math.log(2)
"""A loss this near to the untrained one, as a share of it, has not moved: 0.001 around ln 2."""
NEAR_START = 0.01
"""... and this near it has hardly moved. Ours."""
RIGHT, SATURATED = 0.99, 0.9
"""Of the pairs of the last steps, the share that is right and the share that teaches nothing any more."""
CHOSEN_FALL = 1.0
"""A fall of the chosen replies' log-probability is named from here on, in nats a reply. Ours."""
FALLING_WITH, NLL_RISE = 0.5, 0.1
"""It is an alarm where they lose more than this share of what the rejected ones lose, or this share of where they began."""
KL_FAR = 10.0
"""Nats a reply: the policy is so far from its reference. Ours; Gao et al. (arXiv:2210.10760) see true reward peak at a few units of sqrt(KL)."""
KL_GROWS = 1.2
"""... and went on from half-way to the end by this factor, while the accuracy did not rise by a standard error. Ours."""
LENGTH_SHOWN, LENGTH_STRONG = 0.2, 0.5
"""Rank correlation of margin and length difference that is named where its interval excludes zero, and that is an alarm. Ours."""
ONE_SIDE = 0.8
"""Share of pairs in which the same side is the longer one, from which on no number tells a preference from a length. Ours."""
FEWEST_PAIRS = 20
"""Fewer pairs have no rank correlation worth telling. Ours."""
FEW_EQUAL, MANY_EQUAL, MANY_ALIKE = 0.01, 0.2, 0.5
"""Share of pairs whose replies are the same tokens that is named, that is an alarm; and of those that share 90% of them. Ours."""


def compares(seen: TrainEvidence) -> bool:
    """It learns from replies that are compared or judged."""
    return seen.training.compares


def of_pairs(seen: TrainEvidence) -> bool:
    """It learns from pairs."""
    return seen.training.objective.row_kind == "pairs"


def of_text(seen: TrainEvidence) -> bool:
    """It learns from pairs to write, not to score."""
    return of_pairs(seen) and seen.training.objective.head == "tokens"


def starts_somewhere(seen: TrainEvidence) -> bool:
    """Its untrained loss is known."""
    return seen.training.objective.untrained_loss is not None


def has_reference(seen: TrainEvidence) -> bool:
    """It starts at the reference it is measured from."""
    return starts_somewhere(seen) and seen.training.reference == seen.training.start


def saturates(seen: TrainEvidence) -> bool:
    """It logs which pairs teach nothing any more."""
    return any("rewards/saturated" in record.metrics for record in seen.training.steps)


def drifts(seen: TrainEvidence) -> bool:
    """It logs how far it is from its reference."""
    return seen.own or (of_pairs(seen) and seen.training.objective.needs_reference)


# ---- the loss --------------------------------------------------------------------------------------------------------


def loss_at_start(seen: TrainEvidence) -> Outcome:
    """The loss is still that of an untrained policy: ln 2 for DPO."""
    start, course = seen.training.objective.untrained_loss, course_of(seen.training)
    assert start is not None
    if course is None or (ends := course.ends("loss")) is None:
        return Unknown("steps")
    trained = [record.loss for record in seen.training.steps[-max(1, len(seen.training.steps) // 10) :]]
    distance = max(abs(ends[1] - start), abs(float(np.mean(trained)) - start) / 10 if trained else 0.0) / start
    if not distance <= NEAR_START:  # one that learned its rows and no others is not still
        return None
    causes = still(seen)
    if seen.examples is not None and seen.examples.alike > MANY_ALIKE * seen.examples.pairs_compared:
        causes.insert(0, Cause("alike_pairs"))
    numbers = {"loss": ends[1], "start": start, "margin": course.last.get("rewards/margins", 0.0)}
    return Finding("alarm" if distance <= AT_START else "remark", tuple(causes), numbers)


def reference_mismatch(seen: TrainEvidence) -> Outcome:
    """Before the first step the policy is not its reference."""
    start, first = seen.training.objective.untrained_loss, seen.training.held_out[:1]
    if start is None or not first or first[0].step != 0:
        return Unknown("held_out_pairs")
    if abs(first[0].loss - start) <= NEAR_START * start:
        return None
    return Finding("alarm", (Cause("other_reference"),), {"loss": first[0].loss, "start": start})


def margin_saturated(seen: TrainEvidence) -> Outcome:
    """Nearly every pair is right with so wide a margin that its gradient is gone."""
    steps = seen.training.steps[-max(3, len(seen.training.steps) // 10) :]
    known = [one.metrics for one in steps if {"rewards/saturated", "rewards/accuracies"} <= one.metrics.keys()]
    if not known:
        return Unknown("steps")
    right, gone = (float(np.mean([one[key] for one in known])) for key in ("rewards/accuracies", "rewards/saturated"))
    if right < RIGHT or gone < SATURATED:
        return None
    course = course_of(seen.training)
    held_out = course.last.get("rewards/accuracies") if course is not None and course.held_out else None
    shorter = Cause("overfitting", (seen.setting("epochs", seen.epochs / 2),))
    easy = (
        [Cause("easy_pairs"), shorter] if held_out is not None and held_out >= RIGHT else [shorter, Cause("easy_pairs")]
    )
    return Finding("alarm", (*easy, too_fast(seen)), {"right": right, "gone": gone, "steps": len(known)})


# ---- what the policy becomes -----------------------------------------------------------------------------------------


def chosen_falls(seen: TrainEvidence) -> Outcome:
    """The chosen replies become less likely while the margin grows."""
    course = course_of(seen.training)
    if course is None or not course.held_out or (chosen := course.ends("logps/chosen")) is None:
        return Unknown("held_out_pairs")
    rejected, margins = course.ends("logps/rejected"), course.ends("rewards/margins")
    fall = chosen[0] - chosen[1]
    if rejected is None or margins is None or fall < CHOSEN_FALL or margins[1] <= margins[0]:
        return None
    other, rise = rejected[0] - rejected[1], fall / max(abs(chosen[0]), 1e-9)
    alarm = fall > FALLING_WITH * other or rise > NLL_RISE
    causes = [too_fast(seen)]
    if getattr(seen.training.objective, "sft_weight", None) == 0:
        causes.insert(1 if alarm else 0, Cause("no_anchor", (seen.setting("objective.sft_weight", 1.0),)))
    numbers = {"before": chosen[0], "after": chosen[1], "rise": rise, "other": other, "rows": course.rows or 0}
    return Finding("alarm" if alarm else "remark", (*causes, Cause("alike_pairs")), numbers)


class Away(NamedTuple):
    """How far a policy is from its reference, and what that bought since half-way."""

    far: float
    """Nats a reply."""
    grows: float
    """Times that of half-way."""
    half: int
    last: int
    """The steps."""
    gain: float
    """In accuracy, or in reward."""
    error: float
    """Its standard error."""


def kl_runaway(seen: TrainEvidence) -> Outcome:
    """The policy goes on moving away from its reference without becoming better."""
    away = _away_from_own_replies(seen) if seen.own else _away_from_pairs(seen)
    if away is None:
        return Unknown("steps" if seen.own and not seen.relative else "evaluations")
    if away.far < KL_FAR or away.grows < KL_GROWS or away.gain > away.error:
        return None
    noisy = () if seen.own else (Cause("labels_noisy"),)
    return Finding("alarm", (too_fast(seen), *loose(seen), *noisy), away._asdict())


def _away_from_own_replies(seen: TrainEvidence) -> Away | None:
    """Of the replies of every step: the KL of a token times their length, and their reward or that of the held-out prompts."""
    far = trace(
        seen.training, lambda found: found["kl"] * found["length"] if {"kl", "length"} <= found.keys() else None
    )
    reward = logged(seen.training, "reward")
    if far is None or reward is None:
        return None
    middle = seen.answered[(len(seen.answered) - 1) // 2] if len(seen.answered) > 2 else None
    measured = change_between(middle, seen.answered[-1]) if middle is not None else None
    if measured is None and seen.relative:
        return None
    half = middle.step if middle and measured else far.step_at((len(far.means_T) - 1) // 2)
    gain, error = measured or (reward.last - reward.at(half), reward.error)
    return Away(far.last, far.last / max(far.at(half), 1e-12), half, far.steps[-1], gain, error)


def _away_from_pairs(seen: TrainEvidence) -> Away | None:
    """Of the held-out pairs at their evaluations."""
    keys = {"kl", "rewards/accuracies"}
    held_out = [record for record in seen.training.held_out if record.step and keys <= record.metrics.keys()]
    if len(held_out) < 3:
        return None
    half, last = held_out[(len(held_out) - 1) // 2], held_out[-1]
    reply = np.mean([last.metrics.get(f"lengths/{side}", 0.0) for side in ("chosen", "rejected")])
    gain = last.metrics["rewards/accuracies"] - half.metrics["rewards/accuracies"]
    far = float(last.metrics["kl"] * reply)
    grows = last.metrics["kl"] / max(half.metrics["kl"], 1e-12)
    return Away(far, grows, half.step, last.step, gain, 0.5 / math.sqrt(last.rows or 1))


def accuracy_chance(seen: TrainEvidence) -> Outcome:
    """The accuracy on held-out pairs is not shown to be above a coin's."""
    course = course_of(seen.training)
    ends = course.ends("rewards/accuracies") if course is not None else None
    if course is None or ends is None or not course.held_out or not course.rows:
        return Unknown("held_out_pairs")
    share = share_right(ends[1], course.rows)
    if share.low > 0.5 or (not seen.training.objective.needs_reference and ends[1] > ends[0]):
        return None  # without a reference the start may lie well below one half
    numbers = {"accuracy": share.estimate, "low": share.low, "high": share.high, "rows": course.rows}
    if share.high < 0.5:
        return Finding("alarm", (Cause("labels_swapped"), Cause("other_distribution")), numbers)
    return Finding("remark", (*_why_chance(seen, course), Cause("few_rows")), numbers)


def _why_chance(seen: TrainEvidence, course: Course) -> list[Cause]:
    """Random labels where the pairs of the training were learned all the same, else too little training."""
    own = [record.metrics.get("rewards/accuracies", 0.5) for record in seen.training.steps[-5:]]
    return (
        [Cause("labels_noisy"), *still(seen)] if own and np.mean(own) > 0.75 else [*still(seen), Cause("labels_noisy")]
    )


def length_bias(seen: TrainEvidence) -> Outcome:
    """What it has learned follows the length of the replies."""
    known = [one for one in seen.by_row if one.margins]
    if len(known) < 2 or len(known[-1].longer) < FEWEST_PAIRS:
        return Unknown("held_out_pairs")
    first, last = known[0].margins, known[-1]
    rows = [row for row in last.margins if row in first and row in last.longer]
    longer_R = np.array([last.longer[row] for row in rows], float)
    gained_R = np.array([last.margins[row] - first[row] for row in rows])
    if np.ptp(longer_R) == 0 or np.ptp(gained_R) < 1e-6:
        return None
    rho, low, high = rank_correlation(longer_R, gained_R)
    one_side = max(float(np.mean(longer_R > 0)), float(np.mean(longer_R < 0)))
    related = max(low, -high) > 0 and abs(rho) >= LENGTH_SHOWN
    if not related and one_side < ONE_SIDE:
        return None
    numbers = {"rho": rho, "low": low, "high": high, "rows": len(rows), "longer": float(np.mean(longer_R > 0))}
    causes = (Cause("lengths_of_rows"), Cause("sums_over_tokens"))
    alarm = related and abs(rho) >= LENGTH_STRONG
    return Finding("alarm" if alarm else "remark", causes if one_side >= ONE_SIDE else causes[::-1], numbers)


def rank_correlation(a_R: Floats, b_R: Floats) -> tuple[float, float, float]:
    """Spearman's rank correlation with its 95% interval (Fieller, Hartley and Pearson 1957: atanh rho +- 1.96 * sqrt(1.06 / (n - 3)))."""
    rho = float(np.corrcoef(_ranks(a_R), _ranks(b_R))[0, 1])
    half = 1.96 * math.sqrt(1.06 / (len(a_R) - 3))
    middle = math.atanh(max(-0.9999, min(0.9999, rho)))
    return rho, math.tanh(middle - half), math.tanh(middle + half)


def _ranks(values_R: Floats) -> Floats:
    """Ranks, equal values at their mean rank."""
    _, level_R, counts_L = np.unique(values_R, return_inverse=True, return_counts=True)
    middle_L: Floats = np.cumsum(counts_L) - (counts_L - 1) / 2
    return middle_L[level_R]


def identical_pairs(seen: TrainEvidence) -> Outcome:
    """Chosen and rejected replies are the same, or nearly."""
    step, facts = seen.encoded, seen.examples
    if step is None or not step.rows_in or facts is None:
        return Unknown("examples")
    equal = step.dropped.get("equal_tokens", 0) / step.rows_in
    alike = facts.alike / facts.pairs_compared if facts.pairs_compared else 0.0
    if equal < FEW_EQUAL and alike < MANY_ALIKE:
        return None
    numbers = {"equal": step.dropped.get("equal_tokens", 0), "rows": step.rows_in, "alike": alike}
    numbers |= {"compared": facts.pairs_compared, "similarity": facts.similarity or 0.0}
    alarm = equal >= MANY_EQUAL or alike >= MANY_ALIKE
    return Finding("alarm" if alarm else "remark", (Cause("source_pairs"),), numbers)
