"""Token lengths of the rows of a train stage (lengths.json, docs/run-folder.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """Token lengths of one kind of text; the quantiles are lengths that occur."""

    values: tuple[int, ...]
    count: int
    p50: float
    p90: float
    p95: float
    max: float
    share_over_limit: float
    """A share of ``count``."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """lengths.json of a train stage, in tokens, before over-length rows are dropped."""

    limit: int
    conversation: LengthStatistics
    assistant: LengthStatistics
    chosen: LengthStatistics | None = None
    rejected: LengthStatistics | None = None
    desirable: LengthStatistics | None = None
    undesirable: LengthStatistics | None = None

    @property
    def sides(self) -> tuple[tuple[str, LengthStatistics], ...]:
        """The replies of pairs or of feedback by kind, the better kind first; empty for conversations."""
        kinds = ("chosen", "rejected", "desirable", "undesirable")
        return tuple((name, found) for name in kinds if (found := getattr(self, name)) is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form, without the kinds of replies that there are none of."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def length_statistics(lengths: NDArray[np.int64], limit: int) -> LengthStatistics:
    """Return values, quantiles and the share over the limit of some lengths."""
    quantiles = np.quantile(lengths, [0.5, 0.9, 0.95, 1.0], method="inverted_cdf") if len(lengths) else np.zeros(4)
    p50, p90, p95, largest = (int(q) for q in quantiles)
    share = float(np.mean(lengths > limit)) if len(lengths) else 0.0
    return LengthStatistics(tuple(lengths.tolist()), len(lengths), p50, p90, p95, largest, share)
