"""likelihood.json: ratio of sums, paired against the first model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from posttrain.model.score import Scores
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.held_out.likelihood import likelihood_record, likelihood_rows
from posttrain.types import Tokens


def scores(nll: list[float], weight: list[float]) -> Scores:
    return Scores(np.array(nll), np.array(weight))


def test_means_are_ratios_of_sums_and_differences_are_later_minus_first() -> None:
    base = scores([8.0, 1.0], [4.0, 1.0])
    tuned = scores([4.0, 1.0], [4.0, 1.0])
    record = likelihood_record(
        {"base": base, "sft": tuned}, settings=IntervalSettings(confidence=0.95, resamples=500, seed=0)
    )
    found = {one.measure: one.estimate for one in record.results if one.model == "base"}
    assert found == {"loss": 1.8, "perplexity": math.exp(1.8), "tokens": 5.0}
    (one,) = record.differences
    assert (one.a, one.b, one.test, one.lower) == ("base", "sft", None, 1)
    assert one.difference == pytest.approx(-0.8)
    assert one.low <= one.difference <= one.high


def test_equal_models_differ_by_exactly_nothing() -> None:
    same = scores([3.0, 2.0, 5.0], [2.0, 2.0, 2.0])
    (one,) = likelihood_record(
        {"a": same, "b": same}, settings=IntervalSettings(confidence=0.9, resamples=200, seed=1)
    ).differences
    assert (one.difference, one.low, one.high, one.lower) == (0.0, 0.0, 0.0, 0)


def test_row_records_sum_up_to_the_model() -> None:
    examples = [
        Tokens(np.array([1, 2], np.int32), np.array([0, 1], np.float32), row_id) for row_id in ("first", "second")
    ]
    given = {"base": scores([1.5, 2.5], [1.0, 1.0])}
    rows = list(likelihood_rows(given, examples))
    assert [row.prompt_id for row in rows] == ["first", "second"]
    assert sum(row.values["nll"] for row in rows) / sum(row.values["tokens"] for row in rows) == given["base"].mean()
