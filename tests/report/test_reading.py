from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import RunDir
from posttrain.errors import RunError
from posttrain.report.verdicts import gain_verdict
from posttrain.stages import KINDS
from posttrain.stages.page import Run
from posttrain.stages.page import read_run as read_kinds
from posttrain.train.section import Training, read_training

Edit = Callable[[Path, Callable[[Any], None]], None]


def read_run(run: RunDir, title: str | None = None) -> Run:
    return read_kinds(run, KINDS, title)


def training(run: RunDir) -> Training:
    return read_training(next(stage for stage in read_run(run).stages if stage.kind == "train"), [])


def test_a_verdict_needs_an_interval_without_zero() -> None:
    assert gain_verdict(0.1, 0.3) == "improved"
    assert gain_verdict(-0.3, -0.1) == "worse"
    assert gain_verdict(-0.1, 0.1) == "not shown"
    assert gain_verdict(0.0, 0.1) == "not shown"
    assert gain_verdict(0.0, 0.0) == "not shown"
    assert gain_verdict(0.2, 0.2) == "not shown"


def test_a_complete_run_has_no_gaps(run: RunDir) -> None:
    facts = read_run(run)
    assert facts.status == "complete"
    assert facts.gaps == ()
    assert [stage.name for stage in facts.stages] == ["prepare", "sft", "evaluate"]
    assert (facts.name, facts.model, facts.seed) == ("quickstart", "smollm2-135m-instruct", 7)
    assert facts.seconds == pytest.approx(2.4 + 402.0 + 96.0)
    assert len(training(run).steps) == 118
    assert read_run(run, "Another title").title == "Another title"


def test_the_time_of_a_stage_counts_sessions_that_were_killed(run: RunDir, edit_json: Edit) -> None:
    # The manifest knows of the last session only; a step's seconds count from the start of training.
    edit_json(run.path / "sft/manifest.json", lambda m: m.update(seconds=3.0))
    records = map(json.loads, (run.path / "sft/metrics.jsonl").read_text().splitlines())
    last = max(record["seconds"] for record in records if record["split"] == "train")
    facts = read_run(run)
    assert training(run).stage.seconds == last > 3
    assert facts.seconds == pytest.approx(2.4 + last + 96.0)


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
    assert (train.step_count, train.stage.seconds) == (last["step"], last["seconds"])


@pytest.mark.parametrize(
    "name",
    [
        "prepare/ledger.json",
        "sft/metrics.jsonl",
        "sft/lengths.json",
        "evaluate/likelihood.json",
        "evaluate/likelihood.rows.jsonl",
        "evaluate/prompts.json",
        "evaluate/prompts.rows.jsonl",
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
    edit_json(run.path / "evaluate/likelihood.json", lambda v: v["differences"][0].pop("prompts"))
    (gap,) = read_run(run).gaps
    assert "differences.0.prompts" in gap.text
    edit_json(run.path / "sft/manifest.json", lambda m: m["result"].update(steps="many"))
    assert "steps" in read_run(run).gaps[0].text


def test_a_ledger_that_does_not_sum_up_is_refused(run: RunDir, edit_json: Edit) -> None:
    edit_json(run.path / "prepare/ledger.json", lambda v: v["steps"][0].update(rows_out=1999))
    (gap,) = read_run(run).gaps
    assert "does not sum up" in gap.text


def test_the_report_stage_itself_is_left_out(run: RunDir) -> None:
    run.stage("report").write_manifest({"kind": "report", "status": "running"})
    assert read_run(run).status == "complete"


def test_a_stage_of_another_kind_is_listed(run: RunDir) -> None:
    run.stage("merge").write_manifest(
        {"kind": "sweep_of_later", "status": "complete", "started": 1.8e9, "result": {"files": 2}}
    )
    facts = read_run(run)
    assert [stage.kind for stage in facts.stages] == ["data", "train", "eval", "sweep_of_later"]
    assert facts.status == "complete"
