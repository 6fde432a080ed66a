"""The tables of preference training as text, one cell a string: the page and the Markdown show the same."""

from __future__ import annotations

from collections.abc import Callable

from posttrain.report import numbers, preference_wording
from posttrain.report.facts import TrainFacts
from posttrain.report.numbers import NOTHING
from posttrain.report.preference_comparison import PreferenceStage, PreferenceStages
from posttrain.report.preferences import EvalPreferences, Measure, PreferenceTraining
from posttrain.report.records import Estimate, PreferenceRecord
from posttrain.report.verdicts import Verdict

Table = tuple[list[str], list[list[str]]]
"""Header, and rows whose first cell names them."""

MEASURES: tuple[tuple[Measure, str], ...] = (
    ("reward_accuracy", "reward accuracy"),
    ("reward_margin", "reward margin, nats"),
    ("ranking_accuracy", "ranking accuracy"),
)


def models_table(found: EvalPreferences) -> Table:
    """Return one row a model: the three measures with intervals, log-probabilities, distance from the reference."""
    header = ["Model", "Reward accuracy", "Reward margin (nats)", "Ranking accuracy"]
    header += ["Log p of chosen", "Log p of rejected", "KL (nats a token)"]
    rows = []
    for name, model in found.models.items():
        fixed = found.at_chance_by_definition(name)
        rows.append(
            [
                f"{name} (reference)" if fixed else name,
                "50.0% by definition" if fixed else share_cell(model.reward_accuracy),
                "0 by definition" if fixed else margin_cell(model.reward_margin),
                share_cell(model.ranking_accuracy),
                numbers.fixed(model.logps_chosen, 1),
                numbers.fixed(model.logps_rejected, 1),
                numbers.fixed(model.kl, 4),
            ]
        )
    return header, rows


def differences_table(found: EvalPreferences) -> list[tuple[list[str], Verdict]]:
    """Return for each comparison and measure: comparison, measure, difference, interval, pairs, test; and the verdict."""
    rows = []
    for c in found.comparisons:
        for measure, label in MEASURES:
            interval: Estimate = getattr(c.difference, measure)
            test = c.tests.get(measure)
            margin = measure == "reward_margin"
            difference = numbers.signed(interval.estimate) if margin else f"{numbers.points(interval.estimate)} points"
            bounds = numbers.interval if margin else numbers.points_interval
            cells = [
                f"{c.difference.b} minus {c.difference.a}",
                label,
                difference,
                bounds(interval.low, interval.high),
                f"{test.better} better, {test.worse} worse" if test else NOTHING,
                numbers.p_value(test.p_value) if test else NOTHING,
            ]
            rows.append((cells, c.verdict(measure)))
    return rows


def course_table(training: PreferenceTraining) -> Table:
    """Return the held-out measurements of a stage, with the columns for which there are numbers."""
    better, worse = training.sides
    columns: list[tuple[str, Callable[[PreferenceRecord], str]]] = [
        ("Step", lambda r: numbers.count(r.step)),
        ("Loss", lambda r: numbers.fixed(r.loss, 4)),
        ("Accuracy", lambda r: numbers.percent(r.rewards_accuracies)),
        ("Margin", lambda r: numbers.fixed(r.rewards_margins)),
        (f"Reward {better}", lambda r: numbers.fixed(r.rewards_chosen)),
        (f"Reward {worse}", lambda r: numbers.fixed(r.rewards_rejected)),
        (f"Log p {better}", lambda r: numbers.fixed(r.logps_chosen, 1)),
        (f"Log p {worse}", lambda r: numbers.fixed(r.logps_rejected, 1)),
        ("KL" if training.paired else "Reference point", lambda r: numbers.fixed(r.kl, 4)),
    ]
    cells = [(name, [text(record) for record in training.held_out]) for name, text in columns]
    known = [(name, texts) for name, texts in cells if any(text != NOTHING for text in texts)]
    rows = [[texts[index] for _, texts in known] for index in range(len(training.held_out))]
    return [name for name, _ in known], rows


def length_rows(train: TrainFacts) -> list[list[str]]:
    """Return the rows of the table of token lengths."""
    lengths = train.lengths
    if lengths is None:
        return []
    replies = "All replies" if lengths.sides else "Assistant replies"
    kinds = [("Whole conversations", lengths.conversation), (replies, lengths.assistant)]
    kinds += [(f"{name.capitalize()} replies", statistics) for name, statistics in lengths.sides]
    return [
        [name, *map(numbers.count, (s.count, s.p50, s.p90, s.p95, s.max)), numbers.percent(s.share_over_limit)]
        for name, s in kinds
    ]


def comparison_table(found: PreferenceStages) -> Table:
    """Return the preference stages as columns, the start model first; rows without any number are left out."""
    margin = f"Held-out reward margin against {found.reference}, nats" if found.reference else "Held-out reward margin"
    lines: list[tuple[str, Callable[[PreferenceStage], str]]] = [
        ("Objective", lambda s: s.training.name if s.training else "start model"),
        ("Settings", lambda s: (s.training.settings_text if s.training else "") or NOTHING),
        ("Highest learning rate", lambda s: numbers.scientific(s.learning_rate)),
        ("Trained on", _trained_on),
        ("Steps", lambda s: numbers.count(s.train.step_count if s.train else None)),
        ("Held-out reward accuracy", lambda s: _measured(found, s, "reward_accuracy")),
        (margin, lambda s: _measured(found, s, "reward_margin")),
        ("Held-out ranking accuracy", lambda s: _measured(found, s, "ranking_accuracy")),
        ("KL from the start model, nats a token", lambda s: numbers.fixed(s.kl, 4)),
        ("Mean reply to the prompts, tokens", _reply_length),
        ("Time of the stage", lambda s: numbers.duration(s.train.seconds if s.train else None)),
        ("Of it training steps", lambda s: numbers.duration(s.train.result.training_seconds if s.train else None)),
        ("Tokens per second", lambda s: numbers.count(s.train.result.tokens_per_second if s.train else None)),
        ("Peak memory", lambda s: numbers.memory(s.train.peak_memory_bytes if s.train else None)),
    ]
    rows = [[name, *(text(stage) for stage in found.columns)] for name, text in lines]
    return ["", *(stage.name for stage in found.columns)], [
        row for row in rows if set(row[-len(found.stages) :]) != {NOTHING}
    ]


def _measured(found: PreferenceStages, stage: PreferenceStage, measure: Measure) -> str:
    if stage.held_out is None:
        return NOTHING
    if stage.name == found.reference and measure != "ranking_accuracy":
        return "50.0% by definition" if measure == "reward_accuracy" else "0 by definition"
    interval: Estimate = getattr(stage.held_out, measure)
    return margin_cell(interval) if measure == "reward_margin" else share_cell(interval)


def _trained_on(stage: PreferenceStage) -> str:
    ledger = stage.train.stage.ledger if stage.train else None
    return preference_wording.units(stage.training, ledger.rows_kept) if ledger and stage.training else NOTHING


def _reply_length(stage: PreferenceStage) -> str:
    if stage.replies is None:
        return NOTHING
    cut = f", {stage.replies.cut} cut" if stage.replies.cut else ""
    return f"{numbers.fixed(stage.replies.mean_tokens, 1)} ({stage.replies.prompts} prompts{cut})"


def share_cell(interval: Estimate) -> str:
    """``62.5% (55.0% to 70.1%)``."""
    low, high = numbers.percent(interval.low), numbers.percent(interval.high)
    return f"{numbers.percent(interval.estimate)} ({low} to {high})"


def margin_cell(interval: Estimate) -> str:
    """``+0.450 (+0.180 to +0.740)``."""
    return f"{numbers.signed(interval.estimate)} ({numbers.interval(interval.low, interval.high)})"
