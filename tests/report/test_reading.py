from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import RunDir, write_text
from posttrain.errors import RunError
from posttrain.report.facts import EvalFacts, accuracy_verdict, prompt_outcome, read_evaluation
from posttrain.report.records import AccuracyPair, Check, Reply
from posttrain.report.verdicts import loss_verdict
from posttrain.stages import KINDS
from posttrain.stages.page import Run
from posttrain.stages.page import read_run as read_kinds
from posttrain.train.section import Training, read_training

Edit = Callable[[Path, Callable[[Any], None]], None]


def read_run(run: RunDir, title: str | None = None) -> Run:
    return read_kinds(run, KINDS, title)


def training(run: RunDir) -> Training:
    return read_training(next(stage for stage in read_run(run).stages if stage.kind == "train"), [])


def evaluation(run: RunDir) -> EvalFacts:
    return read_evaluation(next(stage for stage in read_run(run).stages if stage.kind == "eval"), [])


def pair(low: float, high: float, p_value: float, difference: float = 0.1) -> AccuracyPair:
    return AccuracyPair("base", "sft", difference, low, high, 0.95, 5, 1, 4, 2, p_value)


def reply(model: str, passed: bool | None) -> Reply:
    check = None if passed is None else Check("contains", "x", passed)
    return Reply(model, "p", "knowledge", "en", "q", "a", check=check)


def test_loss_verdict_needs_an_interval_without_zero() -> None:
    assert loss_verdict(-0.3, -0.1) == "improved"
    assert loss_verdict(0.1, 0.3) == "worse"
    assert loss_verdict(-0.1, 0.1) == "not shown"
    assert loss_verdict(-0.1, 0.0) == "not shown"
    assert loss_verdict(0.0, 0.0) == "not shown"
    assert loss_verdict(-0.2, -0.2) == "not shown"


def test_accuracy_verdict_needs_interval_and_exact_test() -> None:
    assert accuracy_verdict(pair(0.05, 0.4, 0.01)).verdict == "improved"
    assert accuracy_verdict(pair(-0.4, -0.05, 0.01, -0.1)).verdict == "worse"
    # 4 gained and 0 lost of 24: the bootstrap interval starts at 1/24, but McNemar's p is 2 * 0.5**4 = 0.125.
    few = accuracy_verdict(pair(1 / 24, 8 / 24, 0.125, 4 / 24))
    assert (few.verdict, few.instruments_agree) == ("not shown", False)
    assert accuracy_verdict(pair(-0.1, 0.3, 0.5)).instruments_agree
    assert accuracy_verdict(pair(-0.1, 0.3, 0.5)).checked == 12


@pytest.mark.parametrize(
    ("first", "last", "outcome"),
    [
        (True, True, "both right"),
        (False, True, "gained"),
        (True, False, "lost"),
        (False, False, "both wrong"),
        (None, None, "not checked"),
    ],
)
def test_outcome_compares_first_and_last(first: bool | None, last: bool | None, outcome: str) -> None:
    replies = [reply("base", first), reply("middle", True), reply("sft", last)]
    assert prompt_outcome(replies, ["base", "middle", "sft"]) == outcome


def test_outcome_of_one_model_and_of_a_missing_reply() -> None:
    assert prompt_outcome([reply("base", True)], ["base"]) == "right"
    assert prompt_outcome([reply("base", False)], ["base"]) == "wrong"
    assert prompt_outcome([reply("base", True)], ["base", "sft"]) == "not checked"


def test_a_complete_run_has_no_gaps(run: RunDir) -> None:
    facts = read_run(run)
    assert facts.status == "complete"
    assert facts.gaps == ()
    assert [stage.name for stage in facts.stages] == ["prepare", "sft", "evaluate"]
    assert (facts.name, facts.model, facts.seed) == ("quickstart", "smollm2-135m-instruct", 7)
    assert facts.seconds == pytest.approx(2.4 + 402.0 + 96.0)
    assert len(training(run).steps) == 118
    assert evaluation(run).models == ("base", "sft")
    assert read_run(run, "Another title").title == "Another title"


def test_the_time_of_a_stage_counts_sessions_that_were_killed(run: RunDir, edit_json: Edit) -> None:
    # The manifest knows of the last session only; a step's seconds count from the start of training.
    edit_json(run.path / "sft/manifest.json", lambda m: m.update(seconds=3.0))
    records = map(json.loads, (run.path / "sft/metrics.jsonl").read_text().splitlines())
    last = max(record["seconds"] for record in records if record["split"] == "train")
    facts = read_run(run)
    assert training(run).seconds == last > 3
    assert facts.seconds == pytest.approx(2.4 + last + 96.0)


def test_derived_numbers_equal_what_the_rows_say(run: RunDir) -> None:
    comparison = evaluation(run).loss_comparisons[0]
    rows = [json.loads(line) for line in (run.path / "evaluate/likelihood_rows.jsonl").read_text().splitlines()]
    by_model = {name: {r["row_id"]: r for r in rows if r["model"] == name} for name in ("base", "sft")}
    better = sum(by_model["sft"][i]["nll"] < r["nll"] for i, r in by_model["base"].items())
    assert comparison.rows_better == better
    assert len(comparison.row_differences) == 98
    assert comparison.perplexity_change == pytest.approx(math.exp(comparison.pair.difference) - 1)
    first = rows[0]
    assert comparison.row_differences[0] == pytest.approx((rows[1]["nll"] - first["nll"]) / first["tokens"])


def test_a_row_that_was_expanded_into_two_examples_counts_once(run: RunDir) -> None:
    path = run.path / "evaluate/likelihood_rows.jsonl"
    extra = [
        {"model": "base", "row_id": "two", "nll": 10.0, "tokens": 4},
        {"model": "base", "row_id": "two", "nll": 2.0, "tokens": 2},
    ]
    extra += [
        {"model": "sft", "row_id": "two", "nll": 8.0, "tokens": 4},
        {"model": "sft", "row_id": "two", "nll": 1.0, "tokens": 2},
    ]
    write_text(path, "".join(json.dumps(row) + "\n" for row in extra))
    assert evaluation(run).loss_comparisons[0].row_differences == ((9.0 - 12.0) / 6,)


def test_prompts_are_grouped_by_class_in_order_of_appearance(run: RunDir) -> None:
    found = evaluation(run)
    assert found.classes == ("knowledge", "rewriting", "reasoning")
    assert found.languages == ("en", "zh")
    assert len(found.prompts) == 18
    assert all([r.model for r in prompt.replies] == ["base", "sft"] for prompt in found.prompts)
    assert found.cut_replies("base") == 2


# ---- runs that are not whole ---------------------------------------------------------------------------------------


def test_no_folder_and_no_stage_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        read_run(RunDir(tmp_path / "absent"))
    with pytest.raises(RunError, match="no stage has started"):
        read_run(RunDir(tmp_path))


def test_a_stage_that_never_started_is_known_from_the_recipe(run: RunDir) -> None:
    shutil.rmtree(run.path / "evaluate")
    facts = read_run(run)
    assert facts.status == "incomplete"
    assert [(gap.stage, gap.kind) for gap in facts.gaps] == [("evaluate", "not started")]
    assert not any("Held-out loss" in section.title for section in facts.sections)


def test_a_failed_stage_tells_its_error(run: RunDir, edit_json: Edit) -> None:
    edit_json(run.path / "sft/manifest.json", lambda m: m.update(status="failed", error="loss is nan", result=None))
    (run.path / "sft/lengths.json").unlink()
    facts = read_run(run)
    assert facts.status == "failed"
    assert [gap.text for gap in facts.gaps] == ["Stage sft failed: loss is nan"]
    assert training(run).step_count == 118
    assert training(run).lengths is None


def test_a_running_stage_shows_what_is_there(run: RunDir, edit_json: Edit) -> None:
    edit_json(
        run.path / "sft/manifest.json",
        lambda m: (
            [m.pop(key) for key in ("result", "seconds", "finished", "peak_memory_bytes")]
            and m.update(status="running")
        ),
    )
    metrics = run.path / "sft/metrics.jsonl"
    kept = metrics.read_text().splitlines()[:20]
    metrics.write_text("\n".join(kept) + '\n{"split": "train", "st')
    facts = read_run(run)
    assert [(gap.stage, gap.kind) for gap in facts.gaps] == [("sft", "running")]
    train = training(run)
    last = json.loads(kept[-1])
    assert (train.step_count, train.seconds) == (last["step"], last["seconds"])


@pytest.mark.parametrize(
    "name",
    [
        "prepare/ledger.json",
        "sft/metrics.jsonl",
        "sft/lengths.json",
        "evaluate/likelihood.json",
        "evaluate/likelihood_rows.jsonl",
        "evaluate/replies.jsonl",
        "evaluate/accuracy.json",
        "recipe.yaml",
    ],
)
def test_each_missing_or_damaged_artefact_is_named_once(run: RunDir, name: str) -> None:
    path = run.path / name
    path.write_text('{"models": [}\n')
    damaged = read_run(run).gaps
    assert [gap.kind for gap in damaged] == ["damaged"]
    assert path.name in damaged[0].text
    path.unlink()
    missing = read_run(run).gaps
    assert [gap.kind for gap in missing] == ["missing"]
    assert path.name in missing[0].text


def test_a_damaged_field_is_named(run: RunDir, edit_json: Edit) -> None:
    edit_json(run.path / "evaluate/likelihood.json", lambda v: v["pairs"][0].pop("low"))
    (gap,) = read_run(run).gaps
    assert "pairs.0.low" in gap.text
    edit_json(run.path / "sft/manifest.json", lambda m: m["result"].update(steps="many"))
    assert "steps" in read_run(run).gaps[0].text


def test_a_ledger_that_does_not_sum_up_is_refused(run: RunDir, edit_json: Edit) -> None:
    edit_json(run.path / "prepare/ledger.json", lambda v: v["steps"][0].update(rows_out=1999))
    (gap,) = read_run(run).gaps
    assert "does not sum up" in gap.text


def test_accuracy_that_contradicts_the_replies_is_reported(run: RunDir, edit_json: Edit) -> None:
    edit_json(run.path / "evaluate/accuracy.json", lambda v: v["models"]["sft"]["all"].update(passed=13))
    (gap,) = read_run(run).gaps
    assert gap.text == ("Stage evaluate: accuracy.json counts 13 of 13 for sft, replies.jsonl holds 11 of 13.")


def test_replies_that_were_not_asked_for_are_no_gap(run: RunDir, edit_json: Edit) -> None:
    edit_json(run.path / "evaluate/manifest.json", lambda m: m["config"].update(prompts=None))
    for name in ("replies.jsonl", "accuracy.json"):
        (run.path / "evaluate" / name).unlink()
    assert read_run(run).gaps == ()


def test_replies_without_any_check_need_no_accuracy(run: RunDir) -> None:
    path = run.path / "evaluate/replies.jsonl"
    records = [json.loads(line) | {"check": None} for line in path.read_text(encoding="utf-8").split("\n") if line]
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    (run.path / "evaluate/accuracy.json").unlink()
    facts = read_run(run)
    assert facts.gaps == ()
    assert evaluation(run).outcomes == ("not checked",)


def test_the_report_stage_itself_is_left_out(run: RunDir) -> None:
    run.stage("report").write_manifest({"kind": "report", "status": "running"})
    assert read_run(run).status == "complete"


def test_a_stage_of_another_kind_is_listed(run: RunDir) -> None:
    run.stage("merge").write_manifest(
        {"kind": "export", "status": "complete", "started": 1.8e9, "result": {"files": 2}}
    )
    facts = read_run(run)
    assert [stage.kind for stage in facts.stages] == ["data", "train", "eval", "export"]
    assert facts.status == "complete"
