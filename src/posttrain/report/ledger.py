"""The account of rows as charts and tables."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.artifacts import LedgerStep
from posttrain.report import numbers
from posttrain.report.charts import Bars, Piece


def funnel(name: str, steps: Sequence[tuple[str, LedgerStep]], *, shares: bool = False) -> Bars:
    """Return one bar for each (name, step of a ledger), in order; with ``shares`` the kept share of what came in."""
    lanes = []
    for title, step in steps:
        came, dropped = step.rows_in + step.added, sum(step.dropped.values())
        text = f"{numbers.count(came)} \N{RIGHTWARDS ARROW} {numbers.count(step.rows_out)}"
        text += f" ({numbers.percent(step.rows_out / came)})" if shares and came else ""
        reasons = "; ".join(f"{reason}: {number:,}" for reason, number in step.dropped.items())
        lanes.append(
            (
                title,
                text,
                ((Piece(step.rows_out, "s1", f"{step.rows_out:,} rows kept"), Piece(dropped, "s2", reasons)),),
            )
        )
    return Bars(
        name=name,
        title="Rows, step by step",
        lanes=tuple(lanes),
        legend=(("kept", "s1"), ("dropped", "s2")),
        caption="Every bar starts with the rows that came into the step; hover over the dropped part for the reasons.",
    )
