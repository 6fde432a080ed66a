from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import RunDir
from posttrain.report.facts import read_evaluation
from posttrain.report.preferences import (
    EvalPreferences,
    SignTest,
    row_wins,
    sign_tests,
)
from posttrain.report.records import PreferenceRow
from posttrain.report.verdicts import gain_verdict, paired_gain_verdict
from posttrain.stages import KINDS
from posttrain.stages.page import Run
from posttrain.stages.page import read_run as read_kinds

Edit = Callable[[Path, Callable[[Any], None]], None]
Add = Callable[..., None]


def artefact(run: RunDir, name: str) -> Any:
    return json.loads((run.path / name).read_text(encoding="utf-8"))


def read_run(run: RunDir) -> Run:
    return read_kinds(run, KINDS)


def preferences(run: RunDir) -> EvalPreferences:
    found = read_evaluation(read_run(run).stages[-1], []).preferences
    assert found is not None
    return found


# ---- verdicts ------------------------------------------------------------------------------------------------------


def test_a_gain_needs_an_interval_without_zero() -> None:
    assert gain_verdict(0.1, 0.3) == "improved"
    assert gain_verdict(-0.3, -0.1) == "worse"
    for low, high in [(-0.1, 0.3), (0.0, 0.3), (-0.3, 0.0), (0.0, 0.0), (0.2, 0.2)]:
        assert gain_verdict(low, high) == "not shown"


def test_a_share_of_pairs_needs_the_exact_test_as_well() -> None:
    assert paired_gain_verdict(0.1, 0.4, 0.04, 0.95) == "improved"
    assert paired_gain_verdict(-0.4, -0.1, 0.04, 0.95) == "worse"
    assert paired_gain_verdict(0.1, 0.4, 0.06, 0.95) == "not shown"
    assert paired_gain_verdict(0.1, 0.4, 0.04, 0.99) == "not shown"
    assert paired_gain_verdict(0.0, 0.4, 0.04, 0.95) == "not shown"
    # every pair gained: nothing to resample, and yet no chance
    assert paired_gain_verdict(0.5, 0.5, 2 * 0.5**30, 0.95) == "improved"
    assert paired_gain_verdict(0.5, 0.5, 2 * 0.5**4, 0.95) == "not shown"


def rows(model: str, *logps: tuple[float, float]) -> list[PreferenceRow]:
    return [PreferenceRow(model, str(i), chosen, rejected, 10, 20) for i, (chosen, rejected) in enumerate(logps)]


def test_sign_test_counts_pairs_by_hand() -> None:
    start = rows("sft", (-10, -10), (-10, -10), (-10, -40), (-10, -10))
    tuned = rows("dpo", (-9, -10), (-11, -10), (-12, -42), (-9, -20))
    wins = row_wins([*start, *tuned], "sft")
    assert wins["sft"]["reward_accuracy"] == [0.5, 0.5, 0.5, 0.5]
    assert wins["dpo"]["reward_accuracy"] == [1.0, 0.0, 0.5, 1.0]
    # per token: -1 against -0.5 and, of the third pair, -1 against -2
    assert wins["sft"]["ranking_accuracy"] == [0.0, 0.0, 1.0, 0.0]
    assert wins["dpo"]["ranking_accuracy"] == [0.0, 0.0, 1.0, 1.0]
    tests = sign_tests(wins, "sft", "dpo")
    assert tests == {"reward_accuracy": SignTest(2, 1), "ranking_accuracy": SignTest(1, 0)}
    assert SignTest(5, 0).p_value == pytest.approx(2 * 0.5**5)
    assert SignTest(0, 0).p_value == 1.0
    assert sign_tests(wins, "sft", "other") == {}


def test_rows_that_do_not_match_give_no_wins() -> None:
    assert row_wins(rows("dpo", (-1, -2)), "sft") == {}
    assert row_wins([*rows("sft", (-1, -2)), *rows("dpo", (-1, -2), (-1, -2))], "sft") == {}
    assert row_wins([], "sft") == {}


# ---- evaluation ----------------------------------------------------------------------------------------------------


def test_a_whole_run_has_no_gaps(preference_run: RunDir) -> None:
    facts = read_run(preference_run)
    assert (facts.status, facts.gaps) == ("complete", ())
    found = preferences(preference_run)
    record = artefact(preference_run, "prefer/preferences.json")
    assert list(found.models) == ["sft", "dpo"]
    assert found.models["dpo"].reward_accuracy.estimate == record["models"]["dpo"]["reward_accuracy"]["estimate"]
    comparison = found.headline
    assert comparison is not None
    assert comparison.verdict("reward_accuracy") == comparison.verdict("reward_margin") == "improved"
    test = comparison.tests["reward_accuracy"]
    assert (test.better - test.worse) / 60 + 0.5 == pytest.approx(found.models["dpo"].reward_accuracy.estimate)


@pytest.mark.parametrize("name", ["preferences.json", "preference_rows.jsonl"])
def test_each_missing_or_damaged_artefact_is_named_once(preference_run: RunDir, name: str) -> None:
    path = preference_run.path / "prefer" / name
    path.write_text('{"models": [}\n')
    assert [gap.kind for gap in read_run(preference_run).gaps] == ["damaged"]
    path.unlink()
    (gap,) = read_run(preference_run).gaps
    assert gap.kind == "missing"
    assert name in gap.text


def test_without_rows_intervals_decide_alone(preference_run: RunDir) -> None:
    (preference_run.path / "prefer/preference_rows.jsonl").unlink()
    comparison = preferences(preference_run).headline
    assert comparison is not None
    assert comparison.tests == {}
    assert comparison.verdict("reward_accuracy") == "improved"


def test_a_table_that_contradicts_its_rows_is_reported(preference_run: RunDir, edit_json: Edit) -> None:
    edit_json(
        preference_run.path / "prefer/preferences.json",
        lambda v: v["models"]["dpo"]["reward_accuracy"].update(estimate=0.123),
    )
    (gap,) = read_run(preference_run).gaps
    assert "dpo a reward accuracy of 12.3%, preference_rows.jsonl" in gap.text
    assert preferences(preference_run).comparisons[0].tests == {}


def test_a_count_of_pairs_that_contradicts_the_rows_is_reported(preference_run: RunDir, edit_json: Edit) -> None:
    edit_json(preference_run.path / "prefer/preferences.json", lambda v: v.update(pairs=29))
    (gap,) = read_run(preference_run).gaps
    assert "counts 29 pairs, preference_rows.jsonl holds 30" in gap.text


def test_the_headline_is_the_last_model_against_the_reference(run: RunDir, preference_eval: Add) -> None:
    preference_eval(run, {"sft": 0.0, "dpo": 5.0, "simpo": 2.0})
    found = preferences(run)
    assert found.headline is not None
    assert (found.headline.difference.a, found.headline.difference.b) == ("sft", "simpo")
    assert len(found.against_reference) == 2
