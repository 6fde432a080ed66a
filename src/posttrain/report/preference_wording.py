"""What the report says of preferences in sentences. As in ``wording``, a claim needs a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from posttrain.report import numbers
from posttrain.report.facts import TrainFacts
from posttrain.report.preference_comparison import PreferenceStages
from posttrain.report.preferences import EvalPreferences, Measure, PreferenceComparison, PreferenceTraining
from posttrain.report.records import Estimate, PreferenceRecord
from posttrain.report.words import FEW_ROWS, Finding, Tile, join, plural

CHOSEN_FALL = 1.0
"""A fall of the chosen replies' mean log-probability is named from here on, in nats a reply."""
NEAR_CHANCE = 0.05
"""A final accuracy this near to one half is called stuck."""
NEAR_START = 0.01
"""A final loss this near to that of an untrained policy, as a share of it, is called unchanged."""
MANY_DROPPED = 0.2
"""A share of dropped rows above this is named."""

LOSSES = {
    "dpo": "The loss is the negative log-sigmoid of beta times the margin; while the policy still equals its reference it is ln 2 = 0.693.",
    "ipo": "The loss is the squared distance of the margin from its target 1 / (2 beta).",
    "hinge": "The loss is 1 less beta times the margin, and 0 from there on; while the policy still equals its reference it is 1.",
    "simpo": "The loss is the negative log-sigmoid of the margin less gamma.",
    "orpo": "The loss is the chosen reply's negative log-likelihood plus a penalty where its odds are not above those of the rejected one.",
    "kto": "The loss of a reply lies between 0 and its weight (1 unless set): how far from certain it is that a desirable reply counts as a gain, and an undesirable one as a loss, measured from the reference point.",
    "reward": "The loss is the negative log-sigmoid of the difference of both scores: ln 2 = 0.693 where they are equal.",
}
REWARDS = {
    "dpo": "The reward of a reply is beta times the log-probability it gained against the reference.",
    "ipo": "The reward of a reply is beta times the log-probability it gained against the reference, a token or as a sum (see the settings).",
    "hinge": "The reward of a reply is beta times the log-probability it gained against the reference.",
    "simpo": "The reward of a reply is beta times its mean log-probability a token.",
    "orpo": "The reward of a reply is the weight times its mean log-probability a token.",
    "kto": "The reward of a reply is beta times the log-probability it gained against the reference. The rows are single replies and no pairs, so there is no margin and no accuracy.",
    "reward": "The reward of a reply is the model's score.",
}


@dataclass(frozen=True, slots=True)
class Remark:
    """Something a reader should look at: a known effect is a ``fact``, what looks wrong a ``warning``."""

    kind: Literal["fact", "warning"]
    text: str


# ---- training ------------------------------------------------------------------------------------------------------


def objective_text(training: PreferenceTraining) -> str:
    """``DPO (beta 0.1)``."""
    settings = training.settings_text
    return f"{training.name} ({settings})" if settings else training.name


def units(training: PreferenceTraining, number: int) -> str:
    """``270 pairs`` or ``540 judged replies``."""
    return plural(number, "pair") if training.paired else plural(number, "judged reply", "judged replies")


def reference_text(train: TrainFacts, training: PreferenceTraining) -> str:
    """Return what the policy is compared with: ``with its starting weights (sft) as the reference``."""
    if training.reference is None:
        return "without a reference"
    name = "the base model" if training.reference == "base" else training.reference
    if training.reference == train.config.get("start_from", "base"):
        return f"with its starting weights ({name}) as the reference"
    return f"with {name} as the reference"


def explanation(training: PreferenceTraining) -> str:
    """Return what loss and rewards of the stage mean."""
    margin = " The margin is the chosen reply's reward less the rejected one's; accuracy is the share of pairs with a margin above 0, where a margin within rounding counts half."
    words = f"{LOSSES[training.objective]} {REWARDS[training.objective]}" + (margin if training.paired else "")
    if training.reference is not None:
        words += (
            " The reference point is how far the policy has drifted from the reference in general, never below 0."
            if training.objective == "kto"
            else " KL estimates how far the policy has moved from the reference, in nats a reply token."
        )
    return words


def training_findings(train: TrainFacts) -> list[Finding]:
    """Return the course of the held-out rewards, and what looks wrong."""
    training = train.preferences
    if training is None:
        return []
    name, found = train.stage.name, []
    if len(training.held_out) > 1 and (text := _course(name, training)):
        found.append(Finding(name, "Training", None, text))
    warnings = [remark.text for remark in remarks(train) if remark.kind == "warning"]
    return found + [Finding(name, "Warning", None, text) for text in warnings]


def _course(name: str, training: PreferenceTraining) -> str:
    first, last = training.held_out[0], training.held_out[-1]
    parts = []
    for label, before, after, text in (
        ("accuracy", first.rewards_accuracies, last.rewards_accuracies, numbers.percent),
        ("margin", first.rewards_margins, last.rewards_margins, numbers.fixed),
    ):
        if before is not None and after is not None:
            parts.append(f"{label} {text(before)} to {text(after)}")
    if not parts:
        better, worse = training.sides
        for label, before, after in (
            (better, first.rewards_chosen, last.rewards_chosen),
            (worse, first.rewards_rejected, last.rewards_rejected),
        ):
            if before is not None and after is not None:
                parts.append(f"{label} {numbers.fixed(before)} to {numbers.fixed(after)}")
    if not parts:
        return ""
    rows = f" on {units(training, last.rows)}" if last.rows else ""
    return f"Held-out rewards while training {name}{rows}, step {first.step:,} to step {last.step:,}: {join(parts)}."


def remarks(train: TrainFacts) -> tuple[Remark, ...]:
    """Return what a reader of a preference stage should look at."""
    training = train.preferences
    if training is None:
        return ()
    found = [_dropped(train, training), *(check(train, training) for check in (_unchanged, _chance, _falling))]
    return tuple(remark for remark in found if remark is not None)


def _dropped(train: TrainFacts, training: PreferenceTraining) -> Remark | None:
    ledger = train.stage.ledger
    step = next((s for s in ledger.steps if s.name == "encode"), None) if ledger else None
    if step is None or not step.rows_in or sum(step.dropped.values()) <= MANY_DROPPED * step.rows_in:
        return None
    lost = sum(step.dropped.values())
    reasons = join([f"{reason} {number:,}" for reason, number in step.dropped.items()])
    advice = " A higher max_length keeps more." if step.dropped.get("too_long", 0) > lost / 2 else ""
    return Remark(
        "warning",
        f"{numbers.percent(lost / step.rows_in, 0)} of the {units(training, step.rows_in)} were dropped before training "
        f"{train.stage.name} ({reasons}), so it learned from a selection.{advice}",
    )


def _unchanged(train: TrainFacts, training: PreferenceTraining) -> Remark | None:
    start, last = training.untrained_loss, _end(training)
    if start is None or last is None or last.step == 0 or not abs(last.loss - start) <= NEAR_START * start:
        return None
    value = "ln 2 = 0.693" if math.isclose(start, math.log(2)) else f"{start:.3g}"
    untrained = "a model that scores both replies alike" if training.objective == "reward" else "an untrained policy"
    return Remark(
        "warning",
        f"The {_where(training)} loss of {train.stage.name} stayed at {numbers.fixed(last.loss)}; {value} is that of "
        f"{untrained}. It has hardly learned from the pairs: too low a learning rate and too few steps are the usual reasons.",
    )


def _chance(train: TrainFacts, training: PreferenceTraining) -> Remark | None:
    first, last = _start(training), _end(training)
    accuracy = last.rewards_accuracies if last else None
    if last is None or last.step == 0 or accuracy is None or not abs(accuracy - 0.5) <= NEAR_CHANCE:
        return None
    before = first.rewards_accuracies if first else None
    if before is not None and accuracy - before > NEAR_CHANCE:
        return None  # without a reference the start may lie well below one half
    rows = f" of {units(training, last.rows)}" if last.rows else ""
    return Remark(
        "warning",
        f"The {_where(training)} reward accuracy of {train.stage.name} ended at {numbers.percent(accuracy)}{rows}, "
        "about what tossing a coin gives.",
    )


def _falling(train: TrainFacts, training: PreferenceTraining) -> Remark | None:
    records = training.measured
    if not training.paired or len(records) < 2:
        return None
    first, last = _start(training), _end(training)
    if first is None or last is None or None in (first.logps_chosen, last.logps_chosen):
        return None
    before, after = first.logps_chosen or 0.0, last.logps_chosen or 0.0
    margins = first.rewards_margins, last.rewards_margins
    if before - after < CHOSEN_FALL or margins[0] is None or margins[1] is None or margins[1] <= margins[0]:
        return None
    hold = " A positive sft_weight holds them." if training.objective in ("dpo", "simpo") else ""
    return Remark(
        "fact",
        f"While the {_where(training)} margin of {train.stage.name} grew from {numbers.fixed(margins[0])} to "
        f"{numbers.fixed(margins[1])}, the chosen replies became less likely themselves: their mean log-probability went "
        f"from {numbers.fixed(before, 1)} to {numbers.fixed(after, 1)} nats. That is a known effect, not an error: the "
        f"objective asks for distance between both replies, and the rejected ones fell further.{hold}",
    )


def _where(training: PreferenceTraining) -> str:
    return "held-out" if training.measured is training.held_out else "training"


def _start(training: PreferenceTraining) -> PreferenceRecord | None:
    return _mean(training.measured[: _window(training)])


def _end(training: PreferenceTraining) -> PreferenceRecord | None:
    return _mean(training.measured[-_window(training) :])


def _window(training: PreferenceTraining) -> int:
    """Return how many records make one point: held-out measurements speak alone, steps as a tenth of all."""
    return 1 if training.measured is training.held_out else max(1, len(training.steps) // 10)


def _mean(records: tuple[PreferenceRecord, ...]) -> PreferenceRecord | None:
    """Return the last of the records with the means of all of them."""
    if not records:
        return None

    def mean(name: str) -> float | None:
        values = [getattr(record, name) for record in records]
        return None if None in values else sum(values) / len(values)

    last = records[-1]
    return PreferenceRecord(
        step=last.step,
        loss=sum(record.loss for record in records) / len(records),
        rows=last.rows,
        rewards_margins=mean("rewards_margins"),
        rewards_accuracies=mean("rewards_accuracies"),
        logps_chosen=mean("logps_chosen"),
    )


def comparison_note(found: PreferenceStages) -> str:
    """Return which of the curves of several stages can be compared, and how."""
    if found.one_loss:
        return "All stages have the same objective with the same settings, so their losses, rewards and margins have one scale."
    if found.one_objective:
        return (
            "The stages have one objective with different settings. The height of loss, reward and margin depends on the "
            "settings, so of these curves compare the course only; accuracies and KL have one scale."
        )
    text = (
        "Losses of different objectives are different quantities: compare their course, not their height. Rewards and "
        "margins have different units as well."
    )
    if len({s.training.reference is None for s in found.stages if s.training and s.training.paired}) > 1:
        text += (
            " Accuracy counts which reply gained more where there is a reference, and which one is likelier where there "
            "is none, so their levels differ too."
        )
    return f"{text} The held-out numbers in the table are measured alike for all." if found.pairs else text


# ---- evaluation ----------------------------------------------------------------------------------------------------

MORE = {"improved": "more", "worse": "fewer"}


def headline_sentence(found: EvalPreferences) -> str:
    """Return what the held-out pairs say, for the paragraph."""
    if found.headline is None:
        shares = [f"{name} {numbers.percent(m.ranking_accuracy.estimate)}" for name, m in found.models.items()]
        return f"Share of {plural(found.pairs, 'held-out pair')} whose chosen reply is the likelier one a token: {join(shares)}."
    outcomes = {
        "improved": "preference accuracy rose",
        "worse": "preference accuracy fell",
        "not shown": "no difference of preference accuracy is shown",
    }
    parts: list[str] = []
    for c in found.against_reference or (found.headline,):
        last = found.models.get(c.difference.b)
        share = _shares(found, c, "reward_accuracy")
        if parts and last:
            share = f"{c.difference.b} in {numbers.percent(last.reward_accuracy.estimate)}"
        parts.append(f"{share}: {outcomes[c.verdict('reward_accuracy')]} ({_evidence(found, c, 'reward_accuracy')})")
    return "; ".join(parts) + "."


def accuracy_sentence(found: EvalPreferences, comparison: PreferenceComparison) -> str:
    """Return the comparison of both accuracies in words, with intervals and tests."""
    verdict = comparison.verdict("reward_accuracy")
    text = f"{_shares(found, comparison, 'reward_accuracy')}: {MORE.get(verdict, 'no difference shown')}. "
    text += f"{_evidence(found, comparison, 'reward_accuracy')}. "
    ranking = comparison.verdict("ranking_accuracy")
    text += f"By log-probability a token, without any reference: {_shares(found, comparison, 'ranking_accuracy', brief=True)}, "
    text += f"{MORE.get(ranking, 'no difference shown')} ({_evidence(found, comparison, 'ranking_accuracy')})."
    return text + _few(found)


def margin_sentence(found: EvalPreferences, comparison: PreferenceComparison) -> str:
    """Return the comparison of the mean margins in words."""
    difference = comparison.difference
    interval, verdict = difference.reward_margin, comparison.verdict("reward_margin")
    gained = {
        "improved": f"the chosen replies gained on the rejected ones from {difference.a} to {difference.b}",
        "worse": f"the chosen replies lost against the rejected ones from {difference.a} to {difference.b}",
        "not shown": "no difference shown",
    }[verdict]
    values = [
        f"{name} {numbers.signed(model.reward_margin.estimate)}"
        + (" (by definition)" if found.at_chance_by_definition(name) else "")
        for name in (difference.a, difference.b)
        if (model := found.models.get(name))
    ]
    return (
        f"Mean reward margin against {found.reference}, in nats: {join(values)}. The difference is "
        f"{numbers.signed(interval.estimate)}, {_interval(found, interval, numbers.interval)}: {gained}." + _few(found)
    )


def evaluation_findings(stage: str, found: EvalPreferences) -> list[Finding]:
    """Return one finding for the accuracies and one for the margin of each comparison."""
    return [
        finding
        for c in found.comparisons
        for finding in (
            Finding(stage, "Preference accuracy", c.verdict("reward_accuracy"), accuracy_sentence(found, c)),
            Finding(stage, "Preference margin", c.verdict("reward_margin"), margin_sentence(found, c)),
        )
    ]


def tiles(found: EvalPreferences) -> list[Tile]:
    """Return the headline numbers of held-out preferences."""
    comparison = found.headline
    if comparison is None:
        return []
    difference = comparison.difference
    first, last = found.models.get(difference.a), found.models.get(difference.b)
    level = numbers.confidence(found.confidence)
    whose = f" of {difference.b}" if len(found.comparisons) > 1 else ""
    row = []
    if first and last:
        row.append(
            Tile(
                f"Preference accuracy{whose}",
                f"{numbers.percent(first.reward_accuracy.estimate, 0)} \N{RIGHTWARDS ARROW} "
                f"{numbers.percent(last.reward_accuracy.estimate, 0)}",
                f"{plural(found.pairs, 'held-out pair')}; {_points(found, difference.reward_accuracy)}",
                comparison.verdict("reward_accuracy"),
                quality=True,
            )
        )
    margin = difference.reward_margin
    row.append(
        Tile(
            f"Preference margin{whose}",
            numbers.signed(margin.estimate),
            f"nats against {difference.a}, {level} interval {numbers.interval(margin.low, margin.high)}",
            comparison.verdict("reward_margin"),
            quality=True,
        )
    )
    return row


def _shares(found: EvalPreferences, comparison: PreferenceComparison, measure: Measure, *, brief: bool = False) -> str:
    """Return the shares of both models: ``On 30 held-out pairs dpo favours the chosen reply in 73.3%, sft in 50.0% ...``."""
    difference = comparison.difference
    first, last = found.models.get(difference.a), found.models.get(difference.b)
    if first is None or last is None:
        return f"{difference.b} against {difference.a} on {plural(found.pairs, 'held-out pair')}"
    before, after = (getattr(model, measure).estimate for model in (first, last))
    if brief:
        return f"{difference.b} {numbers.percent(after)}, {difference.a} {numbers.percent(before)}"
    text = (
        f"On {plural(found.pairs, 'held-out pair')} {difference.b} favours the chosen reply in {numbers.percent(after)}, "
        f"{difference.a} in {numbers.percent(before)}"
    )
    if found.at_chance_by_definition(difference.a):
        return f"{text} (by definition, as it is the reference)"
    return f"{text} (measured against {found.reference})"


def _evidence(found: EvalPreferences, comparison: PreferenceComparison, measure: Measure) -> str:
    interval: Estimate = getattr(comparison.difference, measure)
    text, test = _points(found, interval), comparison.tests.get(measure)
    if test is None:
        return text
    text += f"; sign test {numbers.p_value(test.p_value)}, {test.better} pairs better and {test.worse} worse"
    excludes_zero, rejects = interval.low > 0 or interval.high < 0, test.p_value < 1 - comparison.confidence
    if excludes_zero != rejects:
        text += "; interval and exact test disagree, which happens with few pairs, so no claim is made"
    return text


def _points(found: EvalPreferences, interval: Estimate) -> str:
    return f"{numbers.points(interval.estimate)} points, {_interval(found, interval, numbers.points_interval)}"


def _interval(found: EvalPreferences, interval: Estimate, text: Callable[[float, float], str]) -> str:
    shown = f"{numbers.confidence(found.confidence)} interval {text(interval.low, interval.high)}"
    return f"{shown}, which includes zero" if interval.low <= 0 <= interval.high else shown


def _few(found: EvalPreferences) -> str:
    return f" With only {plural(found.pairs, 'pair')} the intervals are rough." if found.pairs < FEW_ROWS else ""
