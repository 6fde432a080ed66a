"""What the report claims, and what it does not: a claim needs its verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from posttrain import objectives
from posttrain.artifacts import RunDir, write_text
from posttrain.objectives.base import BaseObjective, Curve
from posttrain.report.evidence import bounded, evidence
from posttrain.report.values import Finding, Section
from posttrain.stages import KINDS
from posttrain.stages.page import Run
from posttrain.stages.page import read_run as read_kinds

LOSS = "Held-out loss and perplexity"
Edit = Callable[[Path, Callable[[Any], None]], None]
Add = Callable[..., None]


def read_run(run: RunDir) -> Run:
    return read_kinds(run, KINDS)


def paragraph(run: RunDir) -> str:
    return read_run(run).summary


def finding(run: RunDir, topic: str) -> Finding:
    return next(f for f in read_run(run).findings if f.topic == topic)


def section(run: RunDir, title: str) -> Section:
    return next(one for one in read_run(run).sections if one.title == title)


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
    assert "flatters" in repr(section(run, LOSS))
    edit_json(run.path / "sft/manifest.json", lambda m: m["config"].update(keep="last"))
    assert "flatters" not in repr(section(run, LOSS))


def test_the_paragraph_names_model_rows_steps_time_device_and_result(run: RunDir) -> None:
    text = paragraph(run)
    for part in (
        "1,999 rows were read from alpaca_en_demo and alpaca_zh_demo; 18 were dropped",
        "the base model by SFT with LoRA of rank 16 (4.88 million of 139.4 million parameters, 3.5%)",
        "for 118 steps (16 examples each, 1 epoch, 241,380 tokens, 149,655 supervised)",
        "in 6.7 minutes on a CPU (2 cores, bf16)",
        "On 13 prompts, right answers: sft 84.6%, base 53.8%: no difference shown (+30.8 points, 95% interval",
    ):
        assert part in text


def test_an_unfinished_run_says_so(run: RunDir, edit_json: Edit) -> None:
    edit_json(run.path / "evaluate/manifest.json", lambda m: m.update(status="running"))
    assert paragraph(run).endswith("The run is not complete: evaluate did not finish.")


def test_tiles_come_with_quality_first(run: RunDir) -> None:
    tiles = read_run(run).headlines
    assert [tile.label for tile in tiles] == [
        "Held-out loss",
        "Checked answers",
        "Training time",
        "Speed",
        "Peak memory",
    ]
    assert [tile.quality for tile in tiles] == [True] * 2 + [False] * 3
    assert tiles[1].value == "54% → 85%"


# ---- preferences ---------------------------------------------------------------------------------------------------


def rewrite(run: RunDir, stage: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    path = run.path / stage / "metrics.jsonl"
    records = [change(json.loads(line)) for line in path.read_text().splitlines()]
    write_text(path, "".join(json.dumps(record) + "\n" for record in records if record is not None))


# ---- what was done -------------------------------------------------------------------------------------------------


def test_the_paragraph_says_what_was_done_and_what_came_of_it(preference_run: RunDir) -> None:
    text = paragraph(preference_run)
    for part in (
        "300 rows were read from dpo_en_demo",
        "Stage sft trained the base model by SFT with LoRA of rank 16",
        "Stage dpo trained the weights of stage sft by DPO (beta 0.1) in the same way on 265 pairs, with its starting "
        "weights (sft) as the reference, for 17 steps (16 pairs each",
        "On 30 held-out pairs, reward accuracy: dpo 86.7%, sft 50.0%: better (+36.7 points, 95% interval",
    ):
        assert part in text


def test_other_adapters_and_references_are_named(run: RunDir, preference_stage: Add) -> None:
    kto = {"name": "kto", "beta": 0.1, "reference": "base"}
    preference_stage(run, "kto", kto, adapter={"name": "full"})
    preference_stage(run, "simpo", {"name": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.5}, start="base")
    text = paragraph(run)
    assert (
        "by KTO (beta 0.1) of all weights (4.88 million of 139.4 million parameters, 3.5%) on 535 judged replies"
        in text
    )
    assert "with the base model as the reference, for 17 steps (16 judged replies each" in text
    assert "trained the base model by SimPO (beta 2, gamma/beta 0.5) with LoRA" in text
    assert "on 265 pairs, without a reference, for" in text


# ---- honesty at the edges ------------------------------------------------------------------------------------------


# ---- too few rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "low", "high", "said"),
    [
        (2, -1.0, 1.0, ["2 rows: too few for an interval"]),
        (2, -1.0, -1.0, ["2 rows: too few for an interval"]),
        (2, -1.0, -0.5, ["95% interval −1.000 to −0.500", "of 2 rows only"]),
        (3, -1.0, 1.0, ["95% interval −1.000 to +1.000"]),
    ],
)
def test_an_interval_of_one_or_two_rows_is_given_only_where_it_shows_something(
    rows: int, low: float, high: float, said: list[str]
) -> None:
    number = bounded(-0.75, low, high, "number", rows)
    assert evidence(number, 0.95) == ", ".join([number.text, *said])


# ---- an objective of one's own -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Distance(BaseObjective):
    """An objective that no other file knows of."""

    row_kind = "pairs"
    title = "Distance learning"
    explanation = "The loss is how far apart the replies are not."
    curves = (Curve("apart", "How far apart", "metres", ("apart",)),)

    name: Literal["distance"] = "distance"
    strength: float = 0.5

    @property
    def untrained_loss(self) -> float | None:
        return 3.0


def test_an_objective_shows_its_name_explanation_and_curves(
    run: RunDir, preference_stage: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    preference_stage(run, "far", {"name": "distance", "strength": 0.25})
    rewrite(run, "far", lambda r: {**r, "apart": 7.0, "loss": 3.0})
    monkeypatch.setattr(objectives, "Objective", Distance)
    found = section(run, "Training: far")
    said = repr(found)
    for words in ("Distance learning (strength 0.25)", "how far apart the replies are not", "far-apart", "metres"):
        assert words in said
    assert "by Distance learning (strength 0.25)" in paragraph(run)
    assert "loss_at_start" in {one.rule for one, _ in read_run(run).diagnosis.findings}
