"""Rules about how the loss, the gradients and the learning rate of a training went."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from posttrain.doctor.course import FEWEST_STEPS, course_of, finite, noise, smoothed
from posttrain.doctor.evidence import TrainEvidence
from posttrain.doctor.findings import Cause, Finding, Outcome, Unknown
from posttrain.stats.intervals import MeanDifference, mean_difference
from posttrain.train.records import HeldOutLosses, Record

FLAT = 0.01
"""A loss that fell by less than this share has not fallen. Ours."""
FLAT_STEPS = 0.05
"""... or by less than this share where only the steps, with their noise, tell of it. Ours."""
RISE = 0.2
"""The training loss rises when it climbs by this share of where it began. Ours."""
RISE_NOISE = 4.0
"""... and by this many standard errors of the two means that are compared. Ours."""
NEAR_GUESSING = 0.6
"""A first loss above this share of ln(vocabulary) is nearer to guessing than to a language model. Ours."""
ERRORS = 2.0
"""Standard errors, paired over the held-out rows, by which an evaluation must lie above the lowest."""
PASSED = 2
"""Evaluations that must lie above it."""
BY_HEART = 0.5
"""Rows whose loss fell below this share when they came again are learned by heart. Ours."""
SIGMAS, WINDOW, FEWEST_BEFORE = 6.0, 128, 64
"""A spike: so many standard deviations above the mean of so many steps before it, of which there must be so many (OLMo-core)."""
MANY_SPIKES = 3
"""From so many on they are an alarm. Ours."""
FAR = 5.0
"""Times the highest published rate; beyond it runs fall apart. Ours."""
NOT_FINITE = ("non-finite", "NaN or infinity")
"""What errors say of numbers that are none."""
FIRST_BETA = 0.05
"""RLOO's published beta (arXiv:2402.14740), where none held the policy."""
SHORT = 50
"""Steps below which a run is short. Ours."""


# ---- causes ----------------------------------------------------------------------------------------------------------


def too_fast(seen: TrainEvidence) -> Cause:
    """The rate is too high: the published one, or a third where it is no higher than that."""
    rate, advice = seen.rate, seen.advice
    if rate is None:
        return Cause("rate_high")
    lower = advice.value if advice is not None and rate > advice.high else rate / 3
    return Cause("rate_high", (seen.setting("learning_rate", lower),))


def too_slow(seen: TrainEvidence) -> Cause:
    """The rate is too low: the published one, or three times as much where it is no lower than that."""
    rate, advice = seen.rate, seen.advice
    if rate is None:
        return Cause("rate_low")
    higher = advice.value if advice is not None and rate < advice.low else rate * 3
    return Cause("rate_low", (seen.setting("learning_rate", higher),))


def loose(seen: TrainEvidence) -> tuple[Cause, ...]:
    """Too little holds the policy to its reference: three times the beta, or one where there is none; nothing where the method has none."""
    method, key = seen.training.objective, "method" if seen.own else "objective"
    beta = getattr(method, "beta", None)
    if beta is None:
        return ()
    if beta:
        return (Cause("beta_low", (seen.setting(f"{key}.beta", float(beta) * 3),)),)
    changes = [seen.setting(f"{key}.beta", FIRST_BETA)]
    if (
        getattr(method, "kl_in", "reward") != "reward"
    ):  # beside the group's deviation a small beta in the loss has no optimum
        changes += [seen.setting(f"{key}.kl_in", "reward"), seen.setting(f"{key}.kl", "k1")]
    return (Cause("beta_low", tuple(changes)),)


def still(seen: TrainEvidence) -> list[Cause]:
    """Why nothing was learned, the likeliest first."""
    norms = finite(record.grad_norm for record in seen.training.steps)
    if len(norms) and float(np.median(norms)) < 1e-7:
        return [Cause("no_gradient"), too_slow(seen)]
    slow, advice = too_slow(seen), seen.advice
    short = len(seen.training.steps) < SHORT and (seen.rate is None or advice is None or seen.rate >= advice.low)
    steps = Cause("few_steps", (seen.setting("epochs", seen.epochs * 3),))
    return [steps, slow] if short else [slow, steps]


# ---- rules -----------------------------------------------------------------------------------------------------------


def failed(seen: TrainEvidence) -> Outcome:
    """The stage ended with an error, or numbers that are none."""
    manifest = seen.training.stage.manifest
    records: tuple[Record, ...] = (*seen.training.steps, *seen.training.held_out)
    lost = next((record.step for record in records if not math.isfinite(record.loss)), None)
    error = manifest.error if manifest is not None and manifest.status == "failed" else None
    if lost is None and error is None:
        return None
    text = (error or f"the loss of step {lost} is not finite").partition("\n")[0]
    if lost is None and not any(sign in text for sign in NOT_FINITE):
        return Finding("alarm", (Cause("error_says"),), {"error": text})
    return Finding(
        "alarm",
        (too_fast(seen), Cause("half_precision", (seen.setting("dtype", "fp32"),)), Cause("bad_rows")),
        {"error": text},
    )


def loss_flat(seen: TrainEvidence) -> Outcome:
    """The loss does not fall: that of the held-out rows or, without them, that of the steps beyond their noise."""
    values, course = finite(record.loss for record in seen.training.steps), course_of(seen.training)
    if len(values) < FEWEST_STEPS or course is None or (ends := course.ends("loss")) is None:
        return Unknown("steps")
    limit, error, slight = FLAT, 0.0, False
    if course.held_out:
        ends_of_rows = [] if len(seen.by_row) < 2 else changes([seen.by_row[0], seen.by_row[-1]])
        slight = any(one.estimate < -ERRORS * one.error for one in ends_of_rows)  # little, and yet shown
    else:
        fifth = max(3, len(values) // 5)
        ends, limit = (float(values[:fifth].mean()), float(values[-fifth:].mean())), FLAT_STEPS
        error = noise(values) * math.sqrt(2 / fifth) / max(abs(ends[0]), 1e-9)
    fall = (ends[0] - ends[1]) / max(abs(ends[0]), 1e-9)
    if fall - ERRORS * error < limit <= fall + ERRORS * error and error:
        return Unknown("held_out")
    if fall >= limit or fall < -limit:  # one that rises is another rule's
        return None
    where = "held-out" if course.held_out else "training"
    numbers = {"first": ends[0], "last": ends[1], "steps": len(values), "where": where}
    return Finding("remark" if slight else "alarm", (*still(seen), Cause("template_or_mask")), numbers)


def loss_rises(seen: TrainEvidence) -> Outcome:
    """The training loss falls and then rises, or rises from the start."""
    values = finite(record.loss for record in seen.training.steps)
    if len(values) < FEWEST_STEPS:
        return Unknown("steps")
    window = max(3, len(values) // 10)
    means = smoothed(values, window)
    climbs = means - np.minimum.accumulate(means)
    top = int(np.argmax(climbs))
    low = int(np.argmin(means[: top + 1]))
    error = noise(values) * math.sqrt(2 / window)
    if climbs[top] <= max(RISE * abs(means[0]), RISE_NOISE * error):
        return None
    causes = [too_fast(seen)]
    if seen.config.get("max_grad_norm", 1.0) is None:
        causes.append(Cause("no_clipping", (seen.setting("max_grad_norm", 1.0),)))
    if not seen.config.get("warmup", 0.05):
        causes.append(Cause("no_warmup", (seen.setting("warmup", 0.05),)))
    ends = {"low": means[low], "low_step": low + window, "high": means[top], "high_step": top + window}
    return Finding("alarm", (*causes, Cause("bad_rows")), {**ends, "error": error})


def loss_high_at_start(seen: TrainEvidence) -> Outcome:
    """Before training the loss is near that of guessing."""
    facts, training = seen.examples, seen.training
    records = training.held_out[:1] if training.held_out and training.held_out[0].step == 0 else training.steps[:3]
    values = finite(record.loss for record in records)
    if facts is None or facts.vocabulary < 2 or not len(values):
        return Unknown("examples")
    guessing = math.log(facts.vocabulary)
    if values.mean() <= NEAR_GUESSING * guessing:
        return None
    numbers = {"loss": float(values.mean()), "guessing": guessing, "vocabulary": facts.vocabulary}
    return Finding("alarm", (Cause("wrong_tokenizer"), Cause("template_or_mask"), Cause("no_weights")), numbers)


def changes(evaluations: Sequence[HeldOutLosses]) -> list[MeanDifference]:
    """How far each later evaluation lies above the first of them, over the rows that all have; nothing of fewer than two rows."""
    rows = sorted(set.intersection(*(set(one.losses) for one in evaluations)))
    if len(rows) < 2:
        return []
    first_R, *later_ER = ([one.losses[row] for row in rows] for one in evaluations)
    return [mean_difference(first_R, later_R) for later_R in later_ER]


def held_out_rises(seen: TrainEvidence) -> Outcome:
    """The held-out loss has passed its minimum."""
    evaluations = seen.by_row
    if not seen.training.held_out:
        return Unknown("held_out")
    if not seen.training.steps or len(evaluations) < PASSED + 1:
        return Unknown("evaluations")
    low = min(range(len(evaluations)), key=lambda place: sum(evaluations[place].losses.values()))
    later, step = changes(evaluations[low:]), evaluations[low].step
    above = [one for one in later if one.estimate > ERRORS * one.error]
    if len(above) < PASSED or later[-1] is not above[-1]:
        return None
    last, rows = later[-1], len(evaluations[0].losses)
    kept_best = seen.config.get("keep", "best") == "best" and step > 0
    numbers = {"low_step": step, "last_step": evaluations[-1].step, "difference": last.estimate, "error": last.error}
    return Finding("remark" if kept_best else "alarm", _overfit(seen, step), {**numbers, "rows": rows})


def _overfit(seen: TrainEvidence, step: int) -> tuple[Cause, ...]:
    """Why the held-out loss rises, the likeliest first: rows were learned by heart, the rate is too high, or they are of another kind."""
    steps, advice, rate = seen.training.steps, seen.advice, seen.rate
    losses = finite(record.loss for record in steps)
    first, last = (float(part.mean()) for part in (losses[:3], losses[-max(1, len(losses) // 5) :]))
    epoch = next((record.epoch for record in steps if record.step == step and record.epoch), 1.0)
    overfitting = Cause("overfitting", (seen.setting("epochs", float(epoch)), seen.setting("keep", "best")))
    again = steps[-1].epoch is None or steps[-1].epoch > 1  # rows that were seen once are not learned by heart
    if again and (last < BY_HEART * first or (step and last < first)):
        return overfitting, too_fast(seen), Cause("other_distribution")
    if rate is not None and advice is not None and rate > advice.high:
        return too_fast(seen), Cause("other_distribution"), overfitting
    return Cause("other_distribution"), too_fast(seen), overfitting


def spikes(values: Sequence[float | None]) -> list[int]:
    """Places of the values that stand out from those before them."""
    places = [place for place, value in enumerate(values) if value is not None and math.isfinite(value)]
    known_T = np.array([values[place] for place in places], np.float64)
    if len(known_T) <= FEWEST_BEFORE:
        return []
    centred_T = known_T - known_T.mean()
    sums_T, squares_T = (np.concatenate(([0.0], np.cumsum(part))) for part in (centred_T, centred_T**2))
    ends_T = np.arange(FEWEST_BEFORE, len(known_T))
    starts_T = np.maximum(0, ends_T - WINDOW)
    means_T = (sums_T[ends_T] - sums_T[starts_T]) / (ends_T - starts_T)
    variances_T = (squares_T[ends_T] - squares_T[starts_T]) / (ends_T - starts_T) - means_T**2
    limits_T = means_T + SIGMAS * np.sqrt(np.maximum(variances_T, 0)) + 1e-6 * np.abs(known_T).max()  # against rounding
    return [places[int(end)] for end in ends_T[centred_T[ends_T] > limits_T]]


def gradient_spikes(seen: TrainEvidence) -> Outcome:
    """Loss or gradient norm jump far out of what the steps before had."""
    steps = seen.training.steps
    if len(steps) <= FEWEST_BEFORE:
        return Unknown("many_steps")
    norms = spikes([record.grad_norm for record in steps])
    losses = [] if seen.own else spikes([record.loss for record in steps])  # there a loss is near 0 whatever is learned
    places = sorted({*norms, *losses})
    if not places:
        return None
    worst = max(places, key=lambda place: steps[place].grad_norm or 0.0)
    numbers: dict[str, float] = {"spikes": len(places), "steps": len(steps) - FEWEST_BEFORE, "at": steps[worst].step}
    numbers |= {"norm": steps[worst].grad_norm or math.nan, "loss": steps[worst].loss}
    unclipped = seen.config.get("max_grad_norm", 1.0) is None
    clip = (Cause("no_clipping", (seen.setting("max_grad_norm", 1.0),)),) if unclipped else ()
    return Finding(
        "alarm" if len(places) >= MANY_SPIKES or unclipped else "remark",
        (Cause("bad_rows"), *clip, too_fast(seen)),
        numbers,
    )


def rate_range(seen: TrainEvidence) -> Outcome:
    """The learning rate lies outside what published work has used for the method."""
    rate, advice = seen.rate, seen.advice
    if rate is None or advice is None:
        return Unknown("rate")
    if advice.holds(rate):
        return None
    numbers = {"rate": rate, "low": advice.low, "high": advice.high, "published": advice.source}
    far = rate > FAR * advice.high and not seen.own  # there reward and KL say whether it fell apart
    return Finding("alarm" if far else "remark", (too_fast(seen) if rate > advice.high else too_slow(seen),), numbers)


def no_held_out(seen: TrainEvidence) -> Outcome:
    """Nothing was held out, so nothing says whether it got better."""
    if seen.training.held_out:
        return None
    if not seen.training.steps:
        return Unknown("steps")
    data = seen.config.get("data")
    task = next((place for place, one in enumerate(seen.scores) if one.get("name") == "task"), None)
    change = f"{data}.held_out=0.1" if data is not None or task is None else f"{seen.name}.scores.{task}.held_out=0.2"
    return Finding("remark", (Cause("nothing_held_out", (change,)),), {"steps": len(seen.training.steps)})
