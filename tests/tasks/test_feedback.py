"""The record of held-out feedback: areas and means worked by hand, scipy's U statistic, stratified intervals, one kind of label only."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.encode.preferences import FeedbackTokens
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.held_out import feedback
from posttrain.tasks.held_out.feedback import feedback_record, feedback_rows
from posttrain.tasks.records import TaskRecord
from posttrain.types import Tokens

LABELS = [True, False, True, True, False]
BASE = [-4.0, -3.0, -2.0, -6.0, -5.0]


def replies(logps: Sequence[float], tokens: int = 2) -> list[np.ndarray[Any, Any]]:
    """One reply a value, its log-probability spread evenly over some tokens."""
    return [np.full(tokens, value / tokens, np.float32) for value in logps]


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


def record(
    scores: dict[str, Sequence[float]], labels: Sequence[bool] = LABELS, reference: str = "base", **options: Any
) -> dict[str, Any]:
    settings = IntervalSettings(**{"confidence": 0.9, "resamples": 300, **options})
    found = {name: replies(logps) for name, logps in scores.items()}
    return view(feedback_record(found, labels, reference, settings=settings))


def gained(*rewards: float) -> list[float]:
    return [start + reward for start, reward in zip(BASE, rewards, strict=True)]


def test_measures_by_hand() -> None:
    # Desirable rewards 2, 0, 1; undesirable 1, -1. Of 6 comparisons: 2 > 1, 2 > -1, 0 > -1, 1 > -1 won, 1 = 1 half, 0 < 1 lost.
    found = record({"base": BASE, "kto": gained(2, 1, 0, 1, -1)})
    kto = found["models"]["kto"]
    assert kto["roc_area"]["estimate"] == pytest.approx(4.5 / 6)
    assert kto["reward_desirable"]["estimate"] == pytest.approx(1.0)
    assert kto["reward_undesirable"]["estimate"] == pytest.approx(0.0)
    assert kto["reward_margin"]["estimate"] == pytest.approx(1.0)
    assert kto["logps_desirable"] == pytest.approx((-2 - 2 - 5) / 3)
    assert kto["logps_undesirable"] == pytest.approx((-2 - 6) / 2)
    # two tokens of each row share its reward: half of 2 (1 + 0.25 + 0 + 0.25 + 0.25) over 10
    assert kto["kl"] == pytest.approx(0.5 * 2 * 1.75 / 10)
    (difference,) = found["differences"]
    assert (difference["a"], difference["b"]) == ("base", "kto")
    assert difference["roc_area"]["estimate"] == pytest.approx(0.25)
    assert difference["reward_margin"] == kto["reward_margin"]  # base rewards nothing


def test_the_reference_can_not_tell_them_apart() -> None:
    exactly = {"estimate": 0.5, "low": 0.5, "high": 0.5}
    nothing = dict.fromkeys(("estimate", "low", "high"), 0.0)
    rounding = [2e-5, -2e-5, 1e-5, 0.0, -1e-5]  # two tokens a reply: as much as 2e-5 is nothing
    small = [-0.01, -0.02, -0.01, -0.02, -0.01]  # float32 holds the difference
    noisy = [start + by * 0.99 for start, by in zip(small, rounding, strict=True)]
    found = record({"base": small, "same": noisy})
    for name in ("base", "same"):
        assert found["models"][name]["roc_area"] == exactly
        assert found["models"][name]["reward_margin"] == nothing
    assert found["differences"][0]["roc_area"] == nothing


def test_perfect_and_inverted_models_have_no_width() -> None:
    found = record({"base": BASE, "good": gained(1, -1, 2, 3, -2), "bad": gained(-1, 1, -2, -3, 2)})["models"]
    assert found["good"]["roc_area"] == {"estimate": 1.0, "low": 1.0, "high": 1.0}
    assert found["bad"]["roc_area"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}


REWARDS = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


@settings(max_examples=30)
@given(REWARDS, REWARDS)
def test_separation_is_the_mann_whitney_u(desirable: list[float], undesirable: list[float]) -> None:
    rewards, labels = [*desirable, *undesirable], [True] * len(desirable) + [False] * len(undesirable)
    scores = {"base": [-8.0] * len(labels), "m": [reward - 8.0 for reward in rewards]}
    found = record(scores, labels, resamples=100)["models"]["m"]["roc_area"]
    u = scipy.stats.mannwhitneyu(desirable, undesirable).statistic
    assert found["estimate"] == pytest.approx(u / (len(desirable) * len(undesirable)), abs=1e-6)
    flipped = record(scores, [not label for label in labels], resamples=100)["models"]["m"]["roc_area"]
    assert flipped["estimate"] == pytest.approx(1 - found["estimate"], abs=1e-6)


def test_every_stratified_resample_of_two_and_two_rows() -> None:
    """All 16 equally likely resamples against the quantiles of many drawn ones."""
    desirable, undesirable = (3.0, 0.0), (1.0, -1.0)
    areas, margins = [], []
    for d in itertools.product(desirable, repeat=2):
        for u in itertools.product(undesirable, repeat=2):
            areas.append(np.mean([a > b for a in d for b in u]))
            margins.append(np.mean(d) - np.mean(u))
    scores = {"base": [-8.0] * 4, "m": [reward - 8.0 for reward in (*desirable, *undesirable)]}
    for confidence in (0.4, 0.6, 0.9):
        found = record(scores, [True, True, False, False], confidence=confidence, resamples=40_000)["models"]["m"]
        tails = ((1 - confidence) / 2, (1 + confidence) / 2)
        for name, values in (("roc_area", areas), ("reward_margin", margins)):
            expected = np.quantile(values, tails, method="inverted_cdf")
            assert (found[name]["low"], found[name]["high"]) == pytest.approx(tuple(expected)), (name, confidence)


def test_the_interval_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(5)
    desirable, undesirable = rng.normal(0.6, 1, 40), rng.normal(0, 1, 25)
    scores = {"base": [-8.0] * 65, "m": [float(value) - 8 for value in (*desirable, *undesirable)]}
    found = record(scores, [True] * 40 + [False] * 25, confidence=0.95, resamples=10_000)["models"]["m"]["roc_area"]

    def area(d: Any, u: Any, axis: int) -> Any:
        return (d[..., :, None] > u[..., None, :]).mean(axis=(-1, -2))

    theirs = scipy.stats.bootstrap(
        (desirable, undesirable),
        area,
        vectorized=True,
        method="percentile",
        n_resamples=4_000,
        batch=500,
        rng=np.random.default_rng(6),
    ).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_what_is_drawn_does_not_depend_on_how_much_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"base": BASE, "kto": gained(2, 1, 0, 1, -1)}
    whole = record(scores)
    monkeypatch.setattr(feedback, "_WEIGHTS_AT_ONCE", 37)
    assert record(scores) == whole
    assert record(scores, seed=1) != whole


def test_a_model_has_the_same_numbers_whatever_stands_beside_it() -> None:
    kto, other = gained(2, 1, 0, 1, -1), gained(0, 1, -3, 1, 2)
    alone, beside = record({"base": BASE, "kto": kto}), record({"base": BASE, "other": other, "kto": kto})
    assert alone["models"]["kto"] == beside["models"]["kto"]
    assert alone["differences"][0] == beside["differences"][1]
    turned = record({"kto": kto, "base": BASE})  # the reference need not come first
    assert turned["models"] == alone["models"]
    assert turned["differences"][0]["roc_area"]["estimate"] == -alone["differences"][0]["roc_area"]["estimate"]


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_of_label_leaves_out_what_needs_both(kind: bool) -> None:
    found = record({"base": BASE, "kto": gained(2, 1, 0, 1, -1)}, [kind] * 5)
    there, missing = ("desirable", "undesirable") if kind else ("undesirable", "desirable")
    assert found["differences"] == []
    for entry in (found["models"]["kto"],):
        assert entry[f"reward_{there}"]["estimate"] == pytest.approx(0.6)
        assert entry["roc_area"] is None
        assert entry["reward_margin"] is None
        assert entry[f"reward_{missing}"] is None
    assert found["models"]["kto"][f"logps_{missing}"] is None


def test_rows_sum_up_to_the_record() -> None:
    units = [
        FeedbackTokens(Tokens(np.arange(3, dtype=np.int32), np.array([0, 1, 1], np.float32), f"row-{n}"), label)
        for n, label in enumerate(LABELS)
    ]
    scores = {"base": replies(BASE), "kto": replies(gained(2, 1, 0, 1, -1))}
    lines = list(feedback_rows(scores, units))
    assert [(row.model, row.prompt_id) for row in lines] == [
        (name, f"row-{n}") for name in ("base", "kto") for n in range(5)
    ]
    found = feedback_record(scores, LABELS, "base", settings=IntervalSettings(0.9, 100))
    good = [row.values["logp"] for row in lines if row.model == "kto" and row.values["desirable"]]
    assert np.mean(good) == view(found)["models"]["kto"]["logps_desirable"]
    fixed = {one.measure for one in found.results if one.model == "base" and one.by_definition}
    assert "roc_area" in fixed
    assert {one.test for one in found.differences} == {None}  # by the interval alone
