from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import RunDir
from posttrain.report.facts import read_run
from posttrain.report.preference_comparison import preference_stages
from posttrain.report.preferences import (
    EvalPreferences,
    PreferenceTraining,
    SignTest,
    preference_training,
    row_wins,
    sign_tests,
)
from posttrain.report.records import PreferenceRow
from posttrain.report.verdicts import gain_verdict, paired_gain_verdict

Edit = Callable[[Path, Callable[[Any], None]], None]
Add = Callable[..., None]


def artefact(run: RunDir, name: str) -> Any:
    return json.loads((run.path / name).read_text(encoding="utf-8"))


def lines(run: RunDir, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / name).read_text(encoding="utf-8").splitlines()]


def preferences(run: RunDir) -> EvalPreferences:
    found = read_run(run).evaluations[-1].preferences
    assert found is not None
    return found


def training(objective: dict[str, Any], **config: Any) -> PreferenceTraining:
    found = preference_training({"objective": objective, **config}, (), Path("metrics.jsonl"))
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


# ---- training ------------------------------------------------------------------------------------------------------


def test_settings_show_what_is_switched_on() -> None:
    dpo = {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0, "robust": False, "sft_weight": 0.0, "reference": None}
    assert training(dpo).settings_text == "beta 0.1"
    changed = {**dpo, "label_smoothing": 0.1, "robust": True, "sft_weight": 1.0}
    assert training(changed).settings_text == "beta 0.1, label smoothing 0.1, robust, SFT weight 1"
    simpo = {"name": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.0, "sft_weight": 0.0}
    assert training(simpo).settings_text == "beta 2, gamma/beta 0"
    kto = {"name": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.5, "reference": None}
    assert training(kto).settings_text == "beta 0.1, undesirable weight 1.5"
    assert training({"name": "orpo", "weight": 0.1, "nll": "reply"}).settings_text == "weight 0.1, NLL of the reply"


def test_reference_is_the_named_one_else_the_start() -> None:
    dpo = {"name": "dpo", "beta": 0.1, "reference": None}
    assert training(dpo, start_from="sft").reference == "sft"
    assert training({**dpo, "reference": "base"}, start_from="sft").reference == "base"
    assert training(dpo).reference == "base"
    assert training({"name": "simpo", "beta": 2.0}, start_from="sft").reference is None


def test_the_loss_of_an_untrained_policy() -> None:
    assert training({"name": "dpo", "beta": 0.5}).untrained_loss == math.log(2)
    assert training({"name": "dpo", "beta": 0.5, "sft_weight": 1.0}).untrained_loss is None
    assert training({"name": "hinge", "beta": 0.5}).untrained_loss == 1.0
    assert training({"name": "ipo", "beta": 0.1}).untrained_loss == pytest.approx(25.0)
    assert training({"name": "simpo", "beta": 2.0}).untrained_loss is None


def test_other_objectives_have_no_preferences() -> None:
    assert preference_training({"objective": {"name": "sft"}}, (), Path("m")) is None
    assert preference_training({}, (), Path("m")) is None


def test_records_are_those_of_the_file(preference_run: RunDir) -> None:
    sft, dpo = read_run(preference_run).training
    assert sft.preferences is None
    found = dpo.preferences
    assert found is not None
    logged = lines(preference_run, "dpo/metrics.jsonl")
    assert [r.rewards_margins for r in found.steps] == [r["rewards/margins"] for r in logged if r["split"] == "train"]
    assert [r.logps_chosen for r in found.held_out] == [r["logps/chosen"] for r in logged if r["split"] == "held_out"]
    assert (found.sides, found.reference, len(found.steps), len(found.held_out)) == (
        ("chosen", "rejected"),
        "sft",
        17,
        10,
    )


# ---- evaluation ----------------------------------------------------------------------------------------------------


def test_a_whole_run_has_no_gaps(preference_run: RunDir) -> None:
    facts = read_run(preference_run)
    assert (facts.status, facts.gaps) == ("complete", ())
    assert [e.models for e in facts.evaluations] == [("base", "sft"), ("sft", "dpo")]
    assert [e.preferences is None for e in facts.evaluations] == [True, False]
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


# ---- side by side --------------------------------------------------------------------------------------------------


def test_one_preference_stage_is_no_comparison(preference_run: RunDir) -> None:
    assert preference_stages(read_run(preference_run)) is None


def test_two_objectives_side_by_side(two_objectives: RunDir) -> None:
    found = preference_stages(read_run(two_objectives))
    assert found is not None
    record = artefact(two_objectives, "prefer/preferences.json")
    assert [column.name for column in found.columns] == ["sft", "dpo", "simpo"]
    assert (found.one_objective, found.one_loss, found.reference, found.pairs) == (False, False, "sft", 30)
    assert [column.kl for column in found.columns] == [record["models"][m]["kl"] for m in ("sft", "dpo", "simpo")]
    replies = lines(two_objectives, "prefer/replies.jsonl")
    tokens = [reply["tokens"] for reply in replies if reply["model"] == "simpo"]
    last = found.columns[-1].replies
    assert last is not None
    assert (last.mean_tokens, last.prompts, last.cut) == (sum(tokens) / len(tokens), 4, 1)


def test_settings_make_losses_differ_in_height(run: RunDir, preference_stage: Add) -> None:
    for name, beta in (("low", 0.05), ("high", 0.5)):
        preference_stage(run, name, {"name": "dpo", "beta": beta, "sft_weight": 0.0, "reference": None})
    found = preference_stages(read_run(run))
    assert found is not None
    assert (found.one_objective, found.one_loss, found.pairs) == (True, False, None)
    assert all(column.held_out is None for column in found.columns)
    # without an eval stage the last held-out KL of the training stands in: the reference is the start model
    assert found.stages[0].kl == lines(run, "low/metrics.jsonl")[-1]["kl"]


def test_kl_from_another_reference_is_not_the_distance_from_the_start(run: RunDir, preference_stage: Add) -> None:
    for name in ("one", "two"):
        preference_stage(run, name, {"name": "dpo", "beta": 0.1, "sft_weight": 0.0, "reference": "base"})
    found = preference_stages(read_run(run))
    assert found is not None
    assert found.one_loss
    assert [column.kl for column in found.stages] == [None, None]
