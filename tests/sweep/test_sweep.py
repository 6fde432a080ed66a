"""The stage: shared work once, killed = whole, what fails is told, what can't be compared is refused."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Outcome, posttrain
from forking import ForkServer
from posttrain.artifacts import StageDir
from posttrain.lab.recipe import load_recipe
from posttrain.lab.variations import reseeded
from posttrain.model import hardware
from posttrain.sweep.records import SweepRecord, read_record
from posttrain.train.records import read_losses

pytestmark = [pytest.mark.demo_model, pytest.mark.filterwarnings("always")]

ROWS = "".join(
    json.dumps({"prompt": f"What is {k} and {k}?", "completion": f"It is {2 * k}."}) + "\n" for k in range(24)
)
SFT: dict[str, Any] = {
    "kind": "train",
    "data": "prepare",
    "max_length": 64,
    "batch_size": 4,
    "max_steps": 4,
    "evaluate_every": 1,
    "dtype": "fp32",
}
SFT |= {
    "learning_rate": 1e-2,
    "adapter": {"name": "lora", "rank": 4, "alpha": 8},
    "keep": "last",
    "schedule": "constant",
}


def recipe(folder: Path, model: Path, sweep: dict[str, Any], **more: Any) -> Path:
    (folder / "rows.jsonl").write_text(ROWS)
    prepare = {"kind": "data", "sources": [{"path": "rows.jsonl"}], "held_out": 8, "profile": False}
    stages = {"prepare": prepare, "sft": SFT, **more, "sweep": {"kind": "sweep", "stage": "sft", **sweep}}
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"name": "r", "model": str(model), "stages": stages}, sort_keys=False)
    )
    return folder / "recipe.yaml"


def run(path: Path) -> Outcome:
    return posttrain("run", path, "--runs", path.parent / "runs")


def record_of(path: Path) -> SweepRecord:
    return read_record(path.parent / "runs" / "r" / "sweep" / "sweep.json")


GRID = {"over": {"sft.learning_rate": [1e-2, 3e-2]}, "seeds": [0, 1]}


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "matmul_flops", lambda *_: 1e9)


def test_a_grid(tiny_model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model, GRID, report={"kind": "report"})
    done = run(path)
    assert done.code == 0, done.err
    found = record_of(path)
    assert [one.as_written for one in found.settings] == [True, False]
    assert {run.status for one in found.settings for run in one.runs} == {"complete"}
    assert found.rows == 8
    runs = tmp_path / "runs" / "r"
    # the recipe's own run is the first of the first setting; everything else stands once below the sweep
    assert found.settings[0].runs[0].folder == "sft"
    assert len(list((runs / "sweep").glob("*/manifest.json"))) == 3
    assert not list((runs / "sweep").glob("prepare*")), "rows are shared"
    for one in found.settings:
        assert one.value is not None
        assert one.value.estimate == pytest.approx(sum(run.value or 0 for run in one.runs) / 2)
        for each in one.runs:
            losses = read_losses(StageDir(runs / each.folder))
            assert each.value == pytest.approx(losses[4] and sum(losses[4].values()) / 8)
            metrics = StageDir(runs / each.folder).metrics()
            held_out = {line["step"]: line["loss"] for line in metrics if line["split"] == "held_out"}
            assert dict(each.curve) == pytest.approx(held_out, rel=1e-6), "the mean of the rows is the loss"
    again = run(path)
    assert "running" not in again.out.replace("sweep (sweep) running", "").replace("report (report) running", "")
    assert record_of(path) == found
    # a larger grid runs what is new only
    wider = {**GRID, "over": {"sft.learning_rate": [1e-2, 2e-2, 3e-2]}}
    run(recipe(tmp_path, tiny_model, wider))
    assert len(list((runs / "sweep").glob("*/manifest.json"))) == 5


@pytest.mark.slow
def test_side_by_side_is_one_after_another(tiny_model: Path, tmp_path: Path) -> None:
    """Three settings: the recipe's own, and two that share other rows."""
    sweep = {"settings": [{"prepare.held_out": 12}, {"prepare.held_out": 12, "sft.learning_rate": 3e-2}]}
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, more in ((one, {}), (two, {"side_by_side": 2})):
        folder.mkdir()
        assert (done := run(recipe(folder, tiny_model, {**sweep, **more}))).code == 0, done.err
    a, b = (record_of(folder / "recipe.yaml") for folder in (one, two))
    assert [s.value for s in a.settings] == [s.value for s in b.settings]
    assert len(list((one / "runs" / "r" / "sweep").glob("prepare*"))) == 1, "fewer rows, for both rates"


def test_what_fails_is_told_and_the_rest_is_compared(tiny_model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model, {"over": {"sft.max_length": [64, 2]}}, report={"kind": "report"})
    done = run(path)
    assert done.code == 0, done.err
    found = record_of(path)
    failed = found.settings[-1]
    assert (failed.value, failed.runs[0].status) == (None, "failed")
    assert "nothing to train on" in failed.runs[0].error
    assert found.chosen == 0
    assert "1 run failed" in (tmp_path / "runs" / "r" / "report" / "report.md").read_text()


@pytest.mark.slow
def test_dominated_and_searched(tiny_model: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, tiny_model, {"over": {"sft.learning_rate": [1e-2, 1e-9]}, "end_dominated": True})
    assert (done := run(path)).code == 0, done.err
    found = record_of(path)
    assert [one.runs[0].status for one in found.settings] == ["complete", "ended"]
    assert [step for step, _ in found.settings[1].runs[0].curve] == [0, 1, 2, 3]
    search = {
        "over": {"sft.learning_rate": {"low": 1e-6, "high": 1e-1, "log": True}},
        "search": {"name": "asha", "trials": 6, "reduction": 2},
    }
    other = tmp_path / "search"
    other.mkdir()
    path = recipe(other, tiny_model, search)
    assert (done := run(path)).code == 0, done.err
    first = record_of(path)
    assert len(first.settings) == 7
    assert "ended" in {one.runs[0].status for one in first.settings}
    assert run(path).code == 0
    assert record_of(path) == first, "asked again, it decides the same"


@pytest.mark.slow
def test_killed_five_times_it_gives_the_same_table(tiny_model: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sweep = {"over": {"sft.learning_rate": [1e-2, 2e-2, 3e-2], "prepare.held_out": [8, 12]}}
    paths = []
    for folder in (whole, killed):
        folder.mkdir()
        paths.append(recipe(folder, tiny_model, sweep))
    assert run(paths[0]).code == 0
    draw = random.Random(0)
    with contextlib.closing(ForkServer(Path(__file__).with_name("sweep_server.py"), tiny_model)) as server:
        for _ in range(5):
            before, until = _metrics(killed), time.monotonic() + 120
            pid = server.start(killed, arguments=["run", str(paths[1]), "--runs", str(killed / "runs")])
            while _metrics(killed) == before and time.monotonic() < until:  # until it has begun to train
                time.sleep(0.005)
            time.sleep(draw.random() * 0.1)
            os.kill(pid, signal.SIGKILL)
            assert os.WTERMSIG(server.status()) == signal.SIGKILL, "it was not finished before it was killed"
    assert run(paths[1]).code == 0
    a, b = (read_record(folder / "runs" / "r" / "sweep" / "sweep.json") for folder in (whole, killed))
    assert [(s.changes, s.value, s.difference, [r.curve for r in s.runs]) for s in a.settings] == [
        (s.changes, s.value, s.difference, [r.curve for r in s.runs]) for s in b.settings
    ]
    assert (a.best, a.chosen, a.expected) == (b.best, b.chosen, b.expected)


def _metrics(folder: Path) -> int:
    """Bytes of the training curves; files that a process is just moving away are no error."""
    walked = os.walk(folder / "runs")
    return sum(Path(at, "metrics.jsonl").stat().st_size for at, _, files in walked if "metrics.jsonl" in files)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"over": {"sft.learning_rate": []}}, "no points"),
        ({"over": {"sft.lerning_rate": [1, 2]}}, "learning_rate"),
        ({"over": {"prepar.held_out": [1, 2]}}, "prepare"),
        ({"over": {"sft.adapter.rank": [4, 0]}}, "at least 1"),
        ({"over": {"sft.adapter.rank": [4, 4]}}, "twice"),
        ({"over": {"other.learning_rate": [1, 2]}}, "known: "),
        ({"settings": [{"sft.max_length": 64}, {"sft.learning_rate": 0.01}]}, "same work"),
        ({"over": {"sft.objective.name": ["sft"]}}, "different objectives"),
        ({}, "nothing is varied"),
        ({"seeds": [1, 1]}, "twice"),
        ({"over": {"seed": [1, 2]}}, "give seeds"),
        ({"seeds": [0, 1], "metric": "accuracy"}, "a train stage gives its held-out loss, not 'accuracy'"),
        ({"over": {"sft.learning_rate": {"low": 1, "high": 2}}}, "a grid needs a list"),
        ({"stage": "prepare", "over": {"prepare.held_out": [4, 8]}}, "train or an eval"),
        ({"stage": "sfd", "seeds": [0, 1]}, "did you mean 'sft'"),
        ({"seeds": [0, 1], "side_by_side": 2, "end_dominated": True}, "one after another"),
    ],
)
def test_bad_sweeps_are_refused_before_anything_runs(
    tiny_model: Path, tmp_path: Path, sweep: dict[str, Any], said: str
) -> None:
    done = run(recipe(tmp_path, tiny_model, sweep))
    assert said in done.refused()
    assert not (tmp_path / "runs" / "r" / "prepare" / "rows").exists()


def test_seeds_reach_what_is_varied_and_leave_rows_and_earlier_trainings_alone() -> None:
    found = load_recipe(Path(__file__).resolve().parents[2] / "recipes" / "experiments" / "alignment.small.yaml")
    assert set(reseeded(found, {"dpo"})) == {"dpo", "evaluate", "favoured", "beta", "report"}
    made = {"sft", "replies", "dpo", "simpo", "orpo", "ipo", "singles", "kto", "evaluate", "favoured", "beta", "report"}
    assert set(reseeded(found, {"sft"})) == set(reseeded(found, {"instructions"})) == made
    assert reseeded(found, {"prompts"}) == reseeded(found, {"replies"})
    assert "replies" not in reseeded(found, {"replies"}), "rows are those of the recipe's seed"
