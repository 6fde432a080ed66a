"""What the page and the Markdown say of held-out feedback: tables as text, and a sentence."""

from __future__ import annotations

from posttrain.report import numbers
from posttrain.report.feedback import EvalFeedback
from posttrain.report.numbers import NOTHING
from posttrain.report.preference_tables import Table, margin_cell, share_cell
from posttrain.report.records import Estimate
from posttrain.report.verdicts import Verdict, gain_verdict


def feedback_table(feedback: EvalFeedback) -> Table:
    """Return one row a model: separation, margin and mean rewards with intervals, distance from the reference."""
    header = ["Model", "Separation", "Reward margin (nats)", "Reward of good replies", "Reward of bad replies", "KL"]
    rows = []
    for name, model in feedback.models.items():
        fixed = name == feedback.found.reference
        rows.append(
            [
                f"{name} (reference)" if fixed else name,
                "50.0% by definition" if fixed else _share(model.separation),
                *(
                    "0 by definition" if fixed else _nats(one)
                    for one in (model.reward_margin, model.reward_desirable, model.reward_undesirable)
                ),
                numbers.fixed(model.kl, 4),
            ]
        )
    return header, rows


def feedback_differences(feedback: EvalFeedback) -> list[tuple[list[str], Verdict]]:
    """Return for each comparison: comparison, measure, difference, interval; and the verdict."""
    rows = []
    for one in feedback.found.differences:
        for label, interval, shares in (
            ("separation", one.separation, True),
            ("reward margin, nats", one.reward_margin, False),
        ):
            if interval is not None:
                told = f"{numbers.points(interval.estimate)} points" if shares else numbers.signed(interval.estimate)
                bounds = numbers.points_interval if shares else numbers.interval
                cells = [f"{one.b} minus {one.a}", label, told, bounds(interval.low, interval.high)]
                rows.append((cells, gain_verdict(interval.low, interval.high)))
    return rows


def feedback_sentence(feedback: EvalFeedback) -> str:
    """Return what came of it, for the paragraph at the top."""
    headline = feedback.headline
    if headline is None:
        return ""
    _, last, interval, verdict = headline
    own = feedback.models[last].separation
    if own is None:
        return ""
    ends = numbers.points_interval(interval.low, interval.high)
    shown = "" if verdict != "not shown" else ", so no difference is shown"
    return (
        f"On {feedback.found.rows:,} held-out judged replies {last} rewards a good reply more than a bad one in "
        f"{numbers.percent(own.estimate)} of all pairs of them ({numbers.points(interval.estimate)} points, {ends}{shown})."
    )


def _share(interval: Estimate | None) -> str:
    return NOTHING if interval is None else share_cell(interval)


def _nats(interval: Estimate | None) -> str:
    return NOTHING if interval is None else margin_cell(interval)
