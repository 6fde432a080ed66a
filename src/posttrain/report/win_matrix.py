"""Who beats whom: a square table of win rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_STRONGEST = 46
"""Percent of colour in a cell at 0% and 100%; text stays readable on it in light and dark."""


@dataclass(frozen=True, slots=True)
class WinMatrix:
    """Shapes: ``M`` models, in this order on both sides."""

    models: tuple[str, ...]
    rates_MM: tuple[tuple[float | None, ...], ...]
    """Share of wins of the row's model against the column's, ties half; None where the two never met."""
    counts_MM: tuple[tuple[float, ...], ...]
    """Comparisons of the two."""

    @property
    def never_met(self) -> int:
        """Pairs of models that were never compared."""
        return sum(row[other] == 0 for place, row in enumerate(self.counts_MM) for other in range(place))


def matrix_of_wins(models: Sequence[str], wins_MM: Sequence[Sequence[float]]) -> WinMatrix:
    """Return the rates of ``wins[i][j]``, wins of model i over model j with ties half."""
    counts = [[own + wins_MM[j][i] for j, own in enumerate(row)] for i, row in enumerate(wins_MM)]
    rates = [
        [own / count if count else None for own, count in zip(row, counted, strict=True)]
        for row, counted in zip(wins_MM, counts, strict=True)
    ]
    return WinMatrix(tuple(models), tuple(map(tuple, rates)), tuple(map(tuple, counts)))


def cell_style(rate: float | None) -> str:
    """Return the background of a cell: stronger the further from one half, one colour for each side."""
    if rate is None:
        return ""
    color = "--s1" if rate >= 0.5 else "--s2"
    return f"background: color-mix(in srgb, var({color}) {abs(rate - 0.5) * 2 * _STRONGEST:.0f}%, var(--surface))"
