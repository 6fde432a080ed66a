from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import RunDir, write_text
from posttrain.report import wording
from posttrain.report.facts import read_run
from posttrain.report.preference_comparison import preference_stages
from posttrain.report.preference_wording import Remark, comparison_note, remarks
from posttrain.report.words import Finding

Edit = Callable[[Path, Callable[[Any], None]], None]
Add = Callable[..., None]


def finding(run: RunDir, topic: str) -> Finding:
    return next(f for f in wording.findings(read_run(run)) if f.topic == topic)


def remarks_of(run: RunDir, stage: str) -> tuple[Remark, ...]:
    return remarks(next(t for t in read_run(run).training if t.stage.name == stage))


def set_difference(run: RunDir, edit_json: Edit, measure: str, estimate: float, low: float, high: float) -> None:
    value = {"estimate": estimate, "low": low, "high": high}
    edit_json(run.path / "prefer/preferences.json", lambda v: v["differences"][0].update({measure: value}))


def set_split(run: RunDir, edit_json: Edit, better: int) -> None:
    """Rewrite the rows so that ``better`` of 30 pairs gained, and the tables to agree."""
    rows = []
    for index in range(30):
        gain = 1.0 if index < better else -1.0
        for model, shift in (("sft", 0.0), ("dpo", gain)):
            row = {"model": model, "row_id": str(index), "chosen": -10.0 + shift, "rejected": -10.0}
            rows.append({**row, "chosen_tokens": 10, "rejected_tokens": 10})
    write_text(run.path / "prefer/preference_rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    share = {"estimate": better / 30, "low": better / 30 - 0.15, "high": better / 30 + 0.15}
    edit_json(run.path / "prefer/preferences.json", lambda v: v["models"]["dpo"].update(reward_accuracy=share))
    gain = {key: value - 0.5 for key, value in share.items()}
    edit_json(run.path / "prefer/preferences.json", lambda v: v["differences"][0].update(reward_accuracy=gain))


def rewrite(run: RunDir, stage: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    path = run.path / stage / "metrics.jsonl"
    records = [change(json.loads(line)) for line in path.read_text().splitlines()]
    write_text(path, "".join(json.dumps(record) + "\n" for record in records if record is not None))


# ---- what was done -------------------------------------------------------------------------------------------------


def test_the_paragraph_says_what_was_done_and_what_came_of_it(preference_run: RunDir) -> None:
    text = wording.paragraph(read_run(preference_run))
    for part in (
        "300 rows were read from dpo_en_demo",
        "Stage sft trained smollm2-135m-instruct by SFT with LoRA of rank 16",
        "Stage dpo trained the weights of stage sft by DPO (beta 0.1) in the same way on 265 pairs, with its starting "
        "weights (sft) as the reference, for 17 steps (16 pairs each",
        "the loss fell from",
        "On 30 held-out pairs dpo favours the chosen reply in 86.7%, sft in 50.0% (by definition, as it is the "
        "reference): preference accuracy rose (+36.7 points, 95% interval",
    ):
        assert part in text


def test_other_adapters_and_references_are_named(run: RunDir, preference_stage: Add) -> None:
    kto = {"name": "kto", "beta": 0.1, "reference": "base"}
    preference_stage(run, "kto", kto, adapter={"name": "full"})
    preference_stage(run, "simpo", {"name": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.5}, start="base")
    text = wording.paragraph(read_run(run))
    assert (
        "by KTO (beta 0.1) of all weights (4.88 million of 139.4 million parameters, 3.5%) on 535 judged replies"
        in text
    )
    assert "with the base model as the reference, for 17 steps (16 judged replies each" in text
    assert "trained smollm2-135m-instruct by SimPO (beta 2, gamma/beta 0.5) with LoRA" in text
    assert "on 265 pairs, without a reference, for" in text


def test_every_stage_of_a_comparison_is_in_the_paragraph(two_objectives: RunDir) -> None:
    text = wording.paragraph(read_run(two_objectives))
    assert "dpo favours the chosen reply in 86.7%" in text
    assert "; simpo in 73.3%: preference accuracy rose" in text
    labels = [tile.label for tile in wording.tiles(read_run(two_objectives))]
    assert "Preference accuracy of simpo" in labels
    assert {"Held-out loss", "Checked answers"} <= set(labels), "of each measure the last evaluation that has it"


# ---- honesty at the edges ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("better", "verdict"), [(24, "improved"), (15, "not shown"), (5, "worse")])
def test_accuracy_is_claimed_only_where_it_is_shown(
    preference_run: RunDir, edit_json: Edit, better: int, verdict: str
) -> None:
    set_split(preference_run, edit_json, better)
    found, text = finding(preference_run, "Preference accuracy"), wording.paragraph(read_run(preference_run))
    assert found.verdict == verdict
    said = {
        "improved": "preference accuracy rose",
        "worse": "preference accuracy fell",
        "not shown": "no difference of preference accuracy is shown",
    }
    assert said[verdict] in text
    assert not any(other in text for key, other in said.items() if key != verdict)
    assert f"{better} pairs better and {30 - better} worse" in found.text


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.3), (-0.1, 0.3), (-0.3, 0.0)])
def test_an_interval_that_touches_zero_shows_nothing(
    preference_run: RunDir, edit_json: Edit, low: float, high: float
) -> None:
    for measure in ("reward_accuracy", "reward_margin"):
        set_difference(preference_run, edit_json, measure, (low + high) / 2, low, high)
    for topic in ("Preference accuracy", "Preference margin"):
        found = finding(preference_run, topic)
        assert found.verdict == "not shown"
        assert "no difference shown" in found.text
        assert "which includes zero" in found.text
        assert "gained on the rejected" not in found.text


def test_interval_and_test_that_disagree_make_no_claim(preference_run: RunDir, edit_json: Edit) -> None:
    set_split(preference_run, edit_json, 20)  # exact p = 0.099
    set_difference(preference_run, edit_json, "reward_accuracy", 20 / 30 - 0.5, 0.01, 0.32)
    found = finding(preference_run, "Preference accuracy")
    assert found.verdict == "not shown"
    assert "interval and exact test disagree" in found.text
    assert "no difference of preference accuracy is shown" in wording.paragraph(read_run(preference_run))


def test_few_pairs_are_called_rough(preference_run: RunDir, edit_json: Edit) -> None:
    assert "rough" not in finding(preference_run, "Preference margin").text
    (preference_run.path / "prefer/preference_rows.jsonl").unlink()
    edit_json(preference_run.path / "prefer/preferences.json", lambda v: v.update(pairs=12))
    assert "With only 12 pairs the intervals are rough." in finding(preference_run, "Preference margin").text


def test_a_model_alone_is_described_and_not_judged(run: RunDir, preference_eval: Add) -> None:
    preference_eval(run, {"sft": 0.0})
    assert "whose chosen reply is the likelier one a token: sft" in wording.paragraph(read_run(run))
    assert not any(tile.label.startswith("Preference") for tile in wording.tiles(read_run(run)))


# ---- remarks -------------------------------------------------------------------------------------------------------


def test_a_falling_chosen_reply_is_a_fact_and_no_warning(preference_run: RunDir) -> None:
    (remark,) = remarks_of(preference_run, "dpo")
    assert remark.kind == "fact"
    logged = [json.loads(line) for line in (preference_run.path / "dpo/metrics.jsonl").read_text().splitlines()]
    held_out = [r for r in logged if r["split"] == "held_out"]
    first, last = (f"{abs(held_out[i]['logps/chosen']):.1f}" for i in (0, -1))
    assert f"from −{first} to −{last} nats" in remark.text
    assert "known effect, not an error" in remark.text
    assert all(f.topic != "Warning" for f in wording.findings(read_run(preference_run)))
    rewrite(preference_run, "dpo", lambda r: {**r, "logps/chosen": -214.2 + (r["step"] > 0) * -0.9})
    assert remarks_of(preference_run, "dpo") == ()


def test_nothing_learned_is_warned_of(preference_run: RunDir) -> None:
    rewrite(
        preference_run,
        "dpo",
        lambda r: {**r, "loss": 0.69, "rewards/accuracies": 0.533, "rewards/margins": 0.001, "logps/chosen": -214.0},
    )
    loss, accuracy = remarks_of(preference_run, "dpo")
    assert loss.kind == accuracy.kind == "warning"
    assert "held-out loss of dpo stayed at 0.690" in loss.text
    assert "ln 2 = 0.693 is that of an untrained policy" in loss.text
    assert "ended at 53.3% of 30 pairs" in accuracy.text
    assert [f.text for f in wording.findings(read_run(preference_run)) if f.topic == "Warning"] == [
        loss.text,
        accuracy.text,
    ]


def test_an_accuracy_that_rose_to_one_half_is_not_stuck(preference_run: RunDir) -> None:
    rewrite(preference_run, "dpo", lambda r: {**r, "rewards/accuracies": 0.4 if r["step"] == 0 else 0.5})
    assert not any("coin" in remark.text for remark in remarks_of(preference_run, "dpo"))
    rewrite(preference_run, "dpo", lambda r: {**r, "rewards/accuracies": 0.6 if r["step"] == 0 else 0.5})
    assert any("coin" in remark.text for remark in remarks_of(preference_run, "dpo"))


def test_many_dropped_pairs_are_warned_of(preference_run: RunDir, edit_json: Edit) -> None:
    def drop(ledger: dict[str, Any]) -> None:
        for part in (ledger, ledger["steps"][0]):
            part["dropped"] = {"too_long": 60, "equal_tokens": 8}
        ledger["steps"][0]["rows_out"] = ledger["rows_kept"] = 202

    edit_json(preference_run.path / "dpo/ledger.json", drop)
    first = remarks_of(preference_run, "dpo")[0]
    assert first.kind == "warning"
    assert "25% of the 270 pairs were dropped before training dpo (too_long 60 and equal_tokens 8)" in first.text
    assert "max_length" in first.text


def test_without_held_out_rows_the_steps_speak(preference_run: RunDir) -> None:
    rewrite(
        preference_run,
        "dpo",
        lambda r: {**r, "loss": math.log(2), "rewards/accuracies": 0.5} if r["split"] == "train" else None,
    )
    texts = [remark.text for remark in remarks_of(preference_run, "dpo")]
    assert any("The training loss of dpo stayed at 0.693" in text for text in texts)
    assert any("The training reward accuracy of dpo ended at 50.0%, about" in text for text in texts)


def test_a_loss_that_is_not_finite_is_not_called_unchanged(preference_run: RunDir) -> None:
    rewrite(preference_run, "dpo", lambda r: {**r, "loss": math.nan, "rewards/accuracies": math.nan})
    assert not any("stayed" in remark.text or "coin" in remark.text for remark in remarks_of(preference_run, "dpo"))


def test_which_curves_can_be_compared(two_objectives: RunDir) -> None:
    found = preference_stages(read_run(two_objectives))
    assert found is not None
    note = comparison_note(found)
    assert "Losses of different objectives are different quantities" in note
    assert "likelier where there is none" in note
    assert "measured alike" in note
    for name in ("dpo", "simpo"):
        path = two_objectives.path / name / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["config"]["objective"] = {"name": "dpo", "beta": 0.1 if name == "dpo" else 0.5}
        write_text(path, json.dumps(manifest))
    found = preference_stages(read_run(two_objectives))
    assert found is not None
    assert "one objective with different settings" in comparison_note(found)
