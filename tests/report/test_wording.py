from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import RunDir
from posttrain.report import wording
from posttrain.report.facts import read_run

Edit = Callable[[Path, Callable[[Any], None]], None]


def loss_pair(run: RunDir, edit_json: Edit, difference: float, low: float, high: float) -> None:
    edit_json(
        run.path / "evaluate/likelihood.json",
        lambda v: v["pairs"][0].update(difference=difference, low=low, high=high),
    )


def accuracy_pair(run: RunDir, edit_json: Edit, **fields: float) -> None:
    edit_json(run.path / "evaluate/accuracy.json", lambda v: v["pairs"][0].update(fields))


def finding(run: RunDir, topic: str) -> wording.Finding:
    return next(f for f in wording.findings(read_run(run)) if f.topic == topic)


def test_improved_loss(run: RunDir, edit_json: Edit) -> None:
    loss_pair(run, edit_json, -0.25, -0.30, -0.20)
    found = finding(run, "Held-out loss")
    assert found.verdict == "improved"
    assert "sft is lower than that of base" in found.text
    assert "−0.250 nats per token, 95% interval −0.300 to −0.200; perplexity −22.1%" in found.text
    assert "the loss fell from" in wording.paragraph(read_run(run))


def test_an_interval_from_a_handful_of_rows_is_called_rough(run: RunDir) -> None:
    assert "rough" not in finding(run, "Held-out loss").text
    path = run.path / "evaluate/likelihood_rows.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: 2 * 10]))
    assert "With only 10 rows the interval is rough." in finding(run, "Held-out loss").text


def test_worse_loss(run: RunDir, edit_json: Edit) -> None:
    loss_pair(run, edit_json, 0.25, 0.20, 0.30)
    found = finding(run, "Held-out loss")
    assert found.verdict == "worse"
    assert "sft is higher than that of base" in found.text
    assert "the loss rose from" in wording.paragraph(read_run(run))


@pytest.mark.parametrize("difference", [-0.05, 0.05])
def test_loss_whose_interval_includes_zero_claims_nothing(run: RunDir, edit_json: Edit, difference: float) -> None:
    loss_pair(run, edit_json, difference, -0.12, 0.12)
    found = finding(run, "Held-out loss")
    assert found.verdict == "not shown"
    assert "no difference shown" in found.text
    assert "includes zero" in found.text
    assert "lower" not in found.text
    assert "higher" not in found.text
    assert "did not change demonstrably" in wording.paragraph(read_run(run))


def test_few_gained_prompts_are_not_called_an_improvement(run: RunDir) -> None:
    found = finding(run, "Checked answers")
    assert found.verdict == "not shown"
    assert found.text == (
        "sft answered 11 of 13 checked prompts correctly, base 7 (5 gained, 1 lost): no difference shown. "
        "+30.8 points, 95% interval 0.0 to +61.5; McNemar's exact test p = 0.22, n = 13."
    )


def test_disagreeing_instruments_are_named(run: RunDir, edit_json: Edit) -> None:
    accuracy_pair(run, edit_json, low=0.05)
    found = finding(run, "Checked answers")
    assert found.verdict == "not shown"
    assert "Interval and exact test disagree" in found.text


def test_shown_accuracy_differences(run: RunDir, edit_json: Edit) -> None:
    accuracy_pair(run, edit_json, low=0.05, p_value=0.004)
    assert finding(run, "Checked answers").verdict == "improved"
    assert ": more than base." in finding(run, "Checked answers").text
    accuracy_pair(run, edit_json, difference=-0.3, low=-0.5, high=-0.1, only_a=5, only_b=1)
    assert finding(run, "Checked answers").verdict == "worse"
    assert ": fewer than base." in finding(run, "Checked answers").text


def test_equal_answers_and_no_answers(run: RunDir, edit_json: Edit) -> None:
    accuracy_pair(run, edit_json, difference=0, low=0, high=0, only_a=0, only_b=0, p_value=1)
    assert "exactly the same prompts" in finding(run, "Checked answers").text
    accuracy_pair(run, edit_json, both_right=0, both_wrong=0)
    assert (
        finding(run, "Checked answers").text == "No prompt with a checkable answer was answered by both base and sft."
    )


def test_training_that_never_helped_is_said(run: RunDir) -> None:
    path = run.path / "sft/metrics.jsonl"
    path.write_text(
        "".join(f'{{"split": "held_out", "step": {s}, "loss": {loss}}}\n' for s, loss in [(0, 2.0), (5, 2.1), (9, 2.3)])
    )
    assert "training did not help on these rows" in finding(run, "Training").text


def test_over_fitting_is_said_and_which_weights_were_kept(run: RunDir, edit_json: Edit) -> None:
    assert "It rose again after its lowest point" in finding(run, "Training").text
    assert "The weights of the lowest point were handed on." in finding(run, "Training").text
    edit_json(run.path / "sft/manifest.json", lambda m: m["config"].update(keep="last"))
    assert "The final weights were handed on." in finding(run, "Training").text
    edit_json(run.path / "sft/manifest.json", lambda m: m.update(status="failed"))
    assert "handed on" not in finding(run, "Training").text


def test_loss_that_is_not_finite_is_said(run: RunDir) -> None:
    path = run.path / "sft/metrics.jsonl"
    path.write_text('{"split": "train", "step": 1, "loss": 2.0}\n{"split": "train", "step": 2, "loss": NaN}\n')
    assert finding(run, "Training").text == "The training loss of sft was not finite at step 2."


def test_weights_chosen_on_the_judging_rows_are_cautioned(run: RunDir, edit_json: Edit) -> None:
    facts = read_run(run)
    (note,) = wording.selection_notes(facts.evaluations[0], facts)
    assert "flatters" in note
    edit_json(run.path / "sft/manifest.json", lambda m: m["config"].update(keep="last"))
    facts = read_run(run)
    assert wording.selection_notes(facts.evaluations[0], facts) == []


def test_the_paragraph_names_model_rows_steps_time_device_and_result(run: RunDir) -> None:
    text = wording.paragraph(read_run(run))
    for part in (
        "1,999 rows were read from alpaca_en_demo and alpaca_zh_demo; 18 were dropped",
        "smollm2-135m-instruct by SFT with LoRA of rank 16 (4.88 million of 139.4 million parameters, 3.5%)",
        "for 118 steps (16 examples each, 1 epoch, 241,380 tokens, 149,655 supervised)",
        "in 6.7 minutes on a CPU (2 cores, bf16)",
        "base got 7 right and sft 11: no difference is shown (McNemar's exact test p = 0.22)",
    ):
        assert part in text


def test_an_unfinished_run_says_so(run: RunDir, edit_json: Edit) -> None:
    edit_json(run.path / "evaluate/manifest.json", lambda m: m.update(status="running"))
    assert wording.paragraph(read_run(run)).endswith("The run is not complete: evaluate did not finish.")


def test_tiles_come_with_quality_first(run: RunDir) -> None:
    tiles = wording.tiles(read_run(run))
    assert [tile.label for tile in tiles] == [
        "Held-out loss",
        "Perplexity",
        "Checked answers",
        "Training time",
        "Speed",
        "Peak memory",
    ]
    assert [tile.quality for tile in tiles] == [True] * 3 + [False] * 3
    assert tiles[2].value == "7 → 11 of 13"
