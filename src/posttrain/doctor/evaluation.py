"""Rules about what an evaluation and its judges can show."""

from __future__ import annotations

import math

from posttrain.doctor.evidence import EvalEvidence, JudgeEvidence
from posttrain.doctor.findings import Cause, Finding, Outcome, Unknown
from posttrain.judge.calibrate import JudgeCalibration
from posttrain.report.numbers import fixed
from posttrain.report.words import FEW_ROWS
from posttrain.tasks.facts import Compared

COARSE = 0.1
"""A comparison that would only have shown a difference of more than this share of the scale is too small. Ours."""
POWER = 2.8 / 1.96
"""Half an interval of 95% times this is the difference that is found four times of five."""
WIDE = 0.4
"""An interval of an accuracy this wide is first of all one of too few labels. Ours."""


def compares_models(seen: EvalEvidence) -> bool:
    """It compares several models."""
    return len(seen.facts.record.models) > 1


def evaluation_small(seen: EvalEvidence) -> Outcome:
    """Too few rows or prompts for what is claimed, or to show anything but a large difference."""
    headlines = {measure.key for measure in seen.facts.headlines}
    compared = [one for one in seen.facts.differences if one.measure.key in headlines]
    if not compared:
        return Unknown("differences")
    few = [one for one in compared if one.record.prompts < FEW_ROWS]
    claimed = [one for one in few if one.verdict != "not shown"]
    coarse = [one for one in compared if one.verdict == "not shown" and _coarse(one)]
    found = next(iter((*claimed, *few, *coarse)), None)
    if found is None:
        return None
    one, difference = found.record, abs(found.record.difference)
    detectable = one.detectable
    if detectable is None and one.low is not None and one.high is not None:
        detectable = (one.high - one.low) / 2 * POWER
    needed = math.ceil(one.prompts * (detectable / difference) ** 2) if detectable and difference else FEW_ROWS
    numbers: dict[str, float | str] = {
        "names": found.names,
        "measure": found.measure.label,
        "difference": one.difference,
    }
    numbers |= {"prompts": one.prompts, "detectable": fixed(detectable or None), "needed": max(FEW_ROWS, needed)}
    return Finding("alarm" if claimed else "remark", (Cause("few_prompts"),), numbers)


def _coarse(one: Compared) -> bool:
    low, high = one.measure.scale or (0.0, 1.0)
    bounded = one.measure.unit == "share" or one.measure.scale is not None
    return bounded and one.record.detectable is not None and one.record.detectable > COARSE * (high - low)


def judge_coin(seen: JudgeEvidence) -> Outcome:
    """The judge is not shown to know better than a coin."""
    measured = seen.calibration
    orders = seen.bias.overall.orders if seen.bias is not None else None
    if isinstance(measured, JudgeCalibration) and measured.measured.both_orders is not None:
        share, chance, number, what = measured.measured.both_orders, measured.chance, measured.pairs, "labels"
    elif measured is not None and not isinstance(measured, JudgeCalibration) and measured.spearman is not None:
        share, chance, number, what = measured.spearman, 0.0, measured.rated, "ratings"
    elif seen.held_out is not None:
        share, chance, number, what = seen.held_out, 0.5, seen.pairs, "pairs"
    elif orders is not None and orders.consistent is not None and orders.consistent.low <= 0.5:
        share, chance, number, what = orders.consistent, 0.5, orders.judged, "orders"
    else:
        return Unknown("labels")
    if share.low > chance:
        return None
    numbers = {"share": share.estimate, "low": share.low, "high": share.high, "chance": chance, "rows": number}
    weak = {
        "labels": Cause("weak_judge"),
        "ratings": Cause("weak_judge"),
        "pairs": Cause("weak_reward"),
        "orders": Cause("place_decides"),
    }[what]
    causes = (weak,) if share.high - share.low < WIDE else (Cause("few_labels"), weak)
    return Finding("alarm", causes, {**numbers, "what": what})
