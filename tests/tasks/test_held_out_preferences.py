"""The record of held-out preferences: accuracy with ties, margins against the reference, rows that give the same numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.stats.intervals import IntervalSettings, mcnemar
from posttrain.tasks.held_out.preferences import PairScores, preference_record, preference_rows, row_measures
from posttrain.tasks.records import TaskRecord
from posttrain.types import LOGP_ROUNDING, resolved


def side(*replies: Sequence[float]) -> list[np.ndarray[Any, Any]]:
    return [np.array(reply, np.float32) for reply in replies]


def view(record: TaskRecord) -> dict[str, Any]:
    """The numbers by model and measure: an interval, or a bare number where there is none; None where a measure is not there."""
    models: dict[str, Any] = {name: defaultdict(lambda: None) for name in record.models}
    for one in record.results:
        ends = {"estimate": one.estimate, "low": one.low, "high": one.high}
        models[one.model][one.measure] = one.estimate if one.low is None else ends
    differences: dict[str, Any] = {}
    for change in record.differences:
        own = differences.setdefault(change.b, defaultdict(lambda: None, a=change.a, b=change.b))
        own[change.measure] = {"estimate": change.difference, "low": change.low, "high": change.high}
    return {"models": models, "differences": list(differences.values())}


def record(scores: dict[str, PairScores], reference: str = "base") -> dict[str, Any]:
    return view(preference_record(scores, reference, settings=IntervalSettings(confidence=0.9, resamples=500, seed=0)))


BASE = PairScores(side([-2, -2], [-1], [-3, -1]), side([-4], [-2, -2], [-1, -1, -1, -1]))


def test_measures_by_hand() -> None:
    # Log-ratios: chosen +1, -0.5, +2; rejected -1, 0, +2. Margins 2, -0.5, 0: right, wrong, neither.
    tuned = PairScores(side([-1.5, -1.5], [-1.5], [-1, -1]), side([-5], [-2, -2], [-0.5, -0.5, -0.5, -0.5]))
    found = record({"base": BASE, "dpo": tuned})
    assert found["models"]["base"]["reward_accuracy"] == {"estimate": 0.5, "low": 0.5, "high": 0.5}
    assert found["models"]["base"]["reward_margin"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    dpo = found["models"]["dpo"]
    assert dpo["reward_accuracy"]["estimate"] == 0.5
    assert dpo["reward_margin"]["estimate"] == pytest.approx(0.5)
    # means of a token: chosen -1.5, -1.5, -1; rejected -5, -2, -0.5
    assert dpo["ranking_accuracy"]["estimate"] == pytest.approx(2 / 3)
    assert (dpo["logps_chosen"], dpo["logps_rejected"]) == pytest.approx((-6.5 / 3, -11 / 3))
    # squared log-ratios of the 12 tokens: 2 of 0.25, 1 of 0.25, 4 and 0; then 1, 0, 0 and 4 of 0.25
    assert dpo["kl"] == pytest.approx(0.5 * (0.75 + 4 + 1 + 1) / 12)
    (difference,) = found["differences"]
    assert (difference["a"], difference["b"]) == ("base", "dpo")
    assert difference["reward_margin"]["estimate"] == pytest.approx(0.5)
    # of a token, base ranks the pairs right, right, wrong, and so does the other model
    assert difference["ranking_accuracy"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize(
    ("tokens", "gain", "half"), [(40, 3e-4, True), (40, 5e-4, False), (4, 3e-5, True), (4, 5e-5, False)]
)
def test_a_margin_within_rounding_is_half_right(tokens: int, gain: float, half: bool) -> None:
    """The bound is 1e-5 nats for every token of both replies: 4e-4 for 40 tokens, 4e-5 for 4."""
    assert LOGP_ROUNDING == 1e-5
    part = np.full(tokens // 2, -0.01, np.float32)  # small numbers: float32 holds the gain
    moved = part.copy()
    moved[0] += gain
    base = PairScores([part], [part])
    for scores, right in ((PairScores([moved], [part]), 1.0), (PairScores([part], [moved]), 0.0)):
        found = record({"base": base, "other": scores})["models"]["other"]
        assert found["reward_accuracy"]["estimate"] == (0.5 if half else right)
        assert abs(found["reward_margin"]["estimate"]) == pytest.approx(
            gain, rel=1e-3
        )  # the margin itself is told as it is


@given(st.floats(-1e6, 1e6), st.floats(0, 1e3))
def test_resolved_keeps_a_number_or_makes_it_nothing(difference: float, rounding: float) -> None:
    kept = resolved(difference, rounding)
    assert kept == (difference if abs(difference) > rounding else 0.0)
    assert resolved(-difference, rounding) == -kept
    assert resolved(difference, 0.0) == difference
    assert resolved(np.array([difference]), np.array([rounding])).tolist() == [kept]


def test_rows_sum_up_to_the_record() -> None:
    pairs = [SimpleNamespace(row_id=name) for name in "abc"]
    lines = list(preference_rows({"base": BASE}, pairs))  # type: ignore[arg-type]
    assert [row.prompt_id for row in lines] == ["a", "b", "c"]
    assert [(row.values["chosen"], row.values["chosen_tokens"]) for row in lines] == [(-4.0, 2), (-1.0, 1), (-4.0, 2)]
    assert (
        sum(row.values["rejected"] for row in lines) / 3 == record({"base": BASE})["models"]["base"]["logps_rejected"]
    )


def test_the_measures_of_a_row_are_those_of_the_record() -> None:
    tuned = PairScores(side([-1, -1], [-1.5], [-1, -1]), BASE.rejected)
    scores, pairs = {"base": BASE, "dpo": tuned}, [SimpleNamespace(row_id=name) for name in "abc"]
    found = preference_record(scores, "base", settings=IntervalSettings(resamples=100))
    by_row = row_measures(found, list(preference_rows(scores, pairs)), "dpo")  # type: ignore[arg-type]
    written = {one.measure: one.estimate for one in found.results if one.model == "dpo" and one.measure in by_row}
    assert {key: sum(values.values()) / 3 for key, values in by_row.items()} == pytest.approx(written)
    assert list(by_row["reward_accuracy"]) == ["a", "b", "c"]


def test_shares_of_pairs_are_tested_by_sign_and_margins_are_not() -> None:
    tuned = PairScores(side([-1, -1], [-1.5], [-1, -1]), BASE.rejected)
    found = preference_record({"base": BASE, "dpo": tuned}, "base", settings=IntervalSettings(resamples=100))
    tested = {one.measure: (one.test, one.higher, one.lower, one.p_value) for one in found.differences}
    # against base's halves: gained, lost, gained
    assert tested["reward_accuracy"] == ("sign", 2, 1, mcnemar(1, 2))
    assert tested["reward_margin"][0] is None
    fixed = {one.measure for one in found.results if one.model == "base" and one.by_definition}
    assert fixed == {"reward_accuracy", "reward_margin"}
