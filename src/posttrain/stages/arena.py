"""``kind: arena``: models are rated from a file of judged pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt, Lt

from posttrain.artifacts import StageDir, plain, write_json
from posttrain.config import Problem
from posttrain.errors import DataError
from posttrain.references import NamesFile
from posttrain.stages.base import Context, StageKind

if TYPE_CHECKING:
    from posttrain.report.values import Section
    from posttrain.stats.ratings import Anchor, Comparisons, RatingTable
    from posttrain.stats.style_control import StyleCoefficient

ARENA_STYLE = ("tokens", "headers", "lists", "bold")
"""Chatbot Arena's style features: the columns ``tokens_a``, ``tokens_b``, ``headers_a``, ..."""


@dataclass(frozen=True, kw_only=True)
class ArenaStage(StageKind):
    """Rate models from judged pairs: Bradley-Terry or Elo with intervals, win matrix, style control."""

    kind: Literal["arena"]
    file: Annotated[str, NamesFile()]
    """Judged pairs, one row a comparison: JSON Lines, JSON, CSV or Parquet."""
    method: Literal["bt", "elo"] = "bt"
    """Bradley-Terry, or online Elo."""
    interval: Literal["sandwich", "bootstrap"] | None = None
    """Kind of interval; null = sandwich for Bradley-Terry, bootstrap for Elo."""
    anchor: str | None = None
    """A model whose rating is given, as ``gpt-4=1114``; without a number it is 1000."""
    style: bool = False
    """Rate at equal style, from the columns ``tokens_a``, ``tokens_b``, ``headers_a``, ..."""
    style_columns: tuple[str, ...] = ()
    """As ``style``, with these features instead of tokens, headers, lists and bold."""
    cluster: str | None = None
    """Column (the prompt, say) whose equal values are not independent."""
    model_a: str = "model_a"
    """Column of the first model."""
    model_b: str = "model_b"
    """Column of the second model."""
    winner: str = "winner"
    """Column of the winner: model_a, model_b, tie."""
    weight: str | None = None
    """Column of the rows' weights; null = every row weighs 1."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    """Of the intervals."""

    def problems(self, stages: Mapping[str, StageKind]) -> Iterable[Problem]:
        """Settings that the chosen method has no use for are refused rather than ignored."""
        if self.anchor is not None and parse_anchor(self.anchor) is None:
            yield Problem(("anchor",), f"{self.anchor!r} can't be read as an anchor: write MODEL=1000")
        if self.method == "elo":
            unused = {
                "interval": self.interval == "sandwich",
                "anchor": self.anchor is not None,
                "style": bool(self._style),
                "cluster": self.cluster is not None,
            }
            for key, given in unused.items():
                if given:
                    yield Problem((key,), "Elo has no use for this; leave it out, or use method: bt")
        elif self._style and self.interval == "bootstrap":
            yield Problem(("interval",), "ratings at equal style have sandwich intervals only; leave it out")

    @property
    def _anchor(self) -> Anchor | None:
        return None if self.anchor is None else parse_anchor(self.anchor)

    @property
    def _style(self) -> tuple[str, ...]:
        return self.style_columns or (ARENA_STYLE if self.style else ())

    def run(self, context: Context) -> Mapping[str, Any]:
        """Rate: writes ratings.json."""
        from posttrain.judge.arena import arena_ratings
        from posttrain.judge.votes import read_comparisons

        here = context.located(self)
        columns = {"model_a": self.model_a, "model_b": self.model_b, "winner": self.winner}
        comparisons = read_comparisons(here.file, **columns, weight=self.weight, cluster=self.cluster)
        try:
            table, style = here._rated(comparisons, context.seed)
        except DataError as error:
            raise DataError(error.problem, where=error.where or here.file, fix=error.fix) from error
        found = arena_ratings(self.file, self.cluster, self.confidence, self._anchor, comparisons, table, style)
        write_json(context.out.file("ratings.json"), plain(found))
        return {"models": len(found.models), "comparisons": found.comparisons, "missing": found.missing}

    def _rated(self, comparisons: Comparisons, seed: int) -> tuple[RatingTable, tuple[StyleCoefficient, ...]]:
        import numpy as np

        from posttrain.judge.votes import read_style_counts
        from posttrain.stats.elo import elo_table
        from posttrain.stats.ratings import bradley_terry
        from posttrain.stats.style_control import style_controlled, style_features

        anchor = self._anchor
        if self.method == "elo":
            return elo_table(comparisons, seed=seed, confidence=self.confidence), ()
        if not self._style:
            interval = self.interval or "sandwich"
            table = bradley_terry(comparisons, interval=interval, confidence=self.confidence, seed=seed, anchor=anchor)
            return table, ()
        counts_2NF = read_style_counts(self.file, self._style, winner=self.winner)
        features = []
        for place, name in enumerate(self._style):  # one by one, so that an error names the column
            try:
                features.append(style_features(*(counts_NF[:, [place]] for counts_NF in counts_2NF)))
            except DataError as error:
                raise DataError(
                    f"columns {name}_a and {name}_b: {error.problem}", where=self.file, fix=error.fix
                ) from error
        features_NF = np.hstack(features)
        return style_controlled(comparisons, features_NF, self._style, confidence=self.confidence, anchor=anchor)

    @staticmethod
    def section(out: StageDir) -> Section:
        """The ratings, who beats whom, and how it was done."""
        from posttrain.judge.arena import arena_section, read_ratings

        return arena_section(read_ratings(out.file("ratings.json")), out.path.name)


def parse_anchor(text: str) -> Anchor | None:
    """``gpt-4=1114`` as an anchor, without a number at 1000; None where it is neither."""
    from posttrain.stats.ratings import Anchor

    model, equals, value = text.rpartition("=")
    if not equals:
        return Anchor(text)
    try:
        rating = float(value)
    except ValueError:
        return None
    return Anchor(model, rating) if model and math.isfinite(rating) else None
