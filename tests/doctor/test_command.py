"""``posttrain doctor``: what is said of folders that are no finished run, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.artifacts import MetricsLog, RunDir, write_text
from posttrain.cli import app
from posttrain.errors import RunError
from posttrain.report import plain
from posttrain.report.values import Notice
from posttrain.stages import KINDS
from posttrain.stages.page import read_run, run_page

RECIPE = "name: r\nstages:\n  prepare: {kind: data}\n  sft: {kind: train, data: prepare}\n"


def run_folder(path: Path, losses: list[float], status: str = "complete") -> RunDir:
    """A run whose train stage has logged these losses."""
    run = RunDir(path)
    write_text(path / "recipe.yaml", RECIPE)
    config = {
        "kind": "train",
        "data": "prepare",
        "objective": {"name": "sft"},
        "learning_rate": 2e-4,
        "adapter": {"name": "lora"},
    }
    run.stage("sft").write_manifest({"kind": "train", "status": status, "config": config})
    log = MetricsLog(run.stage("sft").file("metrics.jsonl"))
    for step, loss in enumerate(losses, 1):
        log.write(split="train", step=step, loss=loss)
    log.close()
    return run


def doctor(path: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["doctor", str(path), *more], catch_exceptions=True)
    if isinstance(done.exception, RunError):
        return 2, str(done.exception)
    return done.exit_code, done.output


RISING = [2.0 + 0.01 * (step % 3) for step in range(20)] + [6.0] * 10


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_alarm_is_exit_code_one_in_words_and_as_json(tmp_path: Path, language: str) -> None:
    run = run_folder(tmp_path / "r", RISING)
    code, text = doctor(run.path, "--lang", language)
    assert code == 1
    assert "sft.learning_rate=6.7e-05" in text
    code, text = doctor(run.path, "--lang", language, "--json")
    found = json.loads(text)
    assert (code, found["status"]) == (1, "alarm")
    assert found["findings"][0]["rule"] == "loss_rises"


def test_what_was_not_measured_is_never_among_what_is_well(tmp_path: Path) -> None:
    code, text = doctor(run_folder(tmp_path / "r", [2.0] * 5).path, "--json")
    found = json.loads(text)
    assert code == 0
    assert "loss_rises" in {one["rule"] for one in found["unknown"]}
    assert "loss_rises" not in {one["rule"] for one in found["nothing_found"]}


def test_a_run_that_trains_is_read_up_to_its_torn_last_line(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "r", RISING, "running")
    with run.stage("sft").file("metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "step": 31, "lo')
    code, text = doctor(run.path)
    assert code == 1
    assert "sft has not finished" in text


def test_the_report_tells_alarms_first_and_folds_the_box_where_nothing_is_found(tmp_path: Path) -> None:
    rising, falling = (
        run_folder(tmp_path / "a", RISING),
        run_folder(tmp_path / "b", [2.0 - 0.03 * n for n in range(30)]),
    )
    pages = [run_page(read_run(run, KINDS)) for run in (rising, falling)]
    boxes = [next(one for one in page.sections if one.anchor == "doctor") for page in pages]
    assert [box.folded for box in boxes] == [False, False], "that nothing was held out is a remark"
    first = [text for block in pages[0].opening if isinstance(block, Notice) for text in block.texts]
    assert any("training loss rises" in text for text in first)
    assert plain.page(pages[0])["records"]["doctor"][0]["findings"][0]["rule"] == "loss_rises"
    with falling.stage("sft").file("metrics.jsonl").open("a") as file:
        file.write('{"split": "held_out", "step": 0, "loss": 2.0}\n{"split": "held_out", "step": 30, "loss": 1.2}\n')
    assert next(one for one in run_page(read_run(falling, KINDS)).sections if one.anchor == "doctor").folded


def test_a_folder_that_is_no_run_is_named_with_what_to_give(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "r", RISING)
    assert doctor(tmp_path)[0] == 2
    assert doctor(tmp_path / "absent")[0] == 2
    code, text = doctor(run.path / "sft")
    assert code == 2
    assert f"fix: give the run: {run.path}" in text
    (tmp_path / "begun").mkdir()
    write_text(tmp_path / "begun/recipe.yaml", RECIPE)
    assert doctor(tmp_path / "begun")[0] == 2


def test_a_damaged_file_is_named_and_the_rest_is_told(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "r", RISING)
    run.stage("sft").file("metrics.jsonl").write_text('{"split": "train", "step": "x"}\n')
    code, text = doctor(run.path)
    assert code == 0
    assert "metrics.jsonl can't be read" in text
