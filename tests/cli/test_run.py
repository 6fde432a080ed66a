"""posttrain run and train: recipes, second runs, changes, kills, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forking import Command, Commands
from posttrain.assets import DATA
from posttrain.lab.recipe import load_recipe
from posttrain.stages.data import DataStage
from posttrain.stages.eval import EvalStage
from posttrain.stages.score import ScoreStage
from posttrain.stages.train import TrainStage

pytestmark = pytest.mark.demo_model

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
Cli = Callable[..., Any]


def manifest(run: Path, stage: str) -> dict[str, Any]:
    return json.loads((run / stage / "manifest.json").read_text())


def metrics(run: Path) -> list[dict[str, Any]]:
    path = run / "sft" / "metrics.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if path.exists()
        else []
    )


def made_small(path: Path, rows_file: Path, prompts_file: Path) -> list[str]:
    """Overrides that make a recipe run in seconds; rows of the hub or of the user become ones that are here."""
    overrides = []
    stages = load_recipe(path).stages
    for name, stage in stages.items():
        match stage:
            case DataStage() if stage.sources[0].path not in stages:
                overrides += [f"{name}.sources.{k}.max_rows=12" for k in range(len(stage.sources))]
                for k, source in enumerate(stage.sources):
                    if source.path not in DATA:
                        own = "dpo_en_demo" if stage.rows == "pairs" else rows_file
                        overrides.append(f"{name}.sources.{k}.path={own}")
                if not stage.splits:
                    overrides.append(f"{name}.held_out=4")
            case ScoreStage():
                overrides.append(f"{name}.max_length=300")
            case TrainStage():
                overrides += [f"{name}.max_steps=2", f"{name}.batch_size=2", f"{name}.max_length=300"]
            case EvalStage():
                overrides += [f"{name}.max_new_tokens=2", f"{name}.resamples=100", f"{name}.max_length=300"]
                for key in stage.benchmarks:
                    overrides += [f"{name}.benchmarks.{key}.max_prompts=4", f"{name}.benchmarks.{key}.max_tokens=2"]
                if stage.prompts is not None:
                    overrides.append(f"{name}.prompts={prompts_file}")
    return overrides


@pytest.mark.slow
def test_stages_with_one_reference_share_its_file(
    cli: Cli, tiny_model: Path, rows_file: Path, prompts_file: Path, tmp_path: Path
) -> None:
    """Three values of beta from one SFT model; and DPO against the base, which is another reference."""
    path = RECIPES[0].parent / "dpo_beta.yaml"
    common = ("train", path, f"model={tiny_model}", *made_small(path, rows_file, prompts_file), "--runs", tmp_path)
    assert cli(*common).code == 0
    kept = tmp_path / "dpo_beta" / ".reference"
    (shared,) = kept.iterdir()
    written = shared.stat().st_mtime_ns
    assert cli(*common, "dpo_0_5.objective.reference=base").code == 0
    assert len(list(kept.iterdir())) == 2
    assert shared.stat().st_mtime_ns == written
    first = [
        json.loads((tmp_path / "dpo_beta" / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("dpo_0_1", "dpo_0_5")
    ]
    assert first[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first[1]["kl"] > 0  # the SFT model is not the base


def test_a_run_says_what_it_does(finished_run: Path, cli: Cli, recipe: Path) -> None:
    page = (finished_run / "report" / "index.html").read_text()
    assert "A tiny run" in page
    assert (finished_run / "recipe.yaml").read_text().count("kind:") == 4
    ledger = json.loads((finished_run / "prepare" / "ledger.json").read_text())
    assert (ledger["rows_in"], ledger["rows_kept"]) == (20, 20)
    steps = [r for r in metrics(finished_run) if r["split"] == "train"]
    assert [r["step"] for r in steps] == [1, 2, 3]
    assert manifest(finished_run, "evaluate")["inputs"].keys() == {"data", "models.0", "models.1", "prompts"}


def test_the_second_time_everything_is_unchanged(finished_run: Path, cli: Cli, tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(finished_run, run)
    before = {
        p: p.stat().st_mtime_ns
        for p in run.rglob("*")
        if p.is_file() and p.parent.name in ("prepare", "sft", "evaluate")
    }
    done = cli("run", recipe, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    assert re.findall(r"^(\w+) \(\w+\) (\w+)", done.out, re.MULTILINE) == [
        ("prepare", "unchanged"),
        ("sft", "unchanged"),
        ("evaluate", "unchanged"),
        ("report", "running"),
    ]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert not (run / ".replaced").exists()


def test_a_change_reruns_that_stage_and_what_follows(
    finished_run: Path, cli: Cli, tmp_path: Path, recipe: Path
) -> None:
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(finished_run, run)
    old = (run / "sft" / "adapter" / "adapter_model.safetensors").read_bytes()
    done = cli("run", recipe, "sft.learning_rate=2e-3", "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    states = dict(re.findall(r"^(\w+) \(\w+\) (\w+)", done.out, re.MULTILINE))
    assert states == {"prepare": "unchanged", "sft": "running", "evaluate": "running", "report": "running"}
    kept = sorted(p.name.rsplit("-", 1)[0] for p in (run / ".replaced").iterdir())
    assert kept == ["evaluate", "sft"]
    (replaced,) = (run / ".replaced").glob("sft-*/adapter/adapter_model.safetensors")
    assert replaced.read_bytes() == old
    assert (run / "sft" / "adapter" / "adapter_model.safetensors").read_bytes() != old
    assert "the old results are in" in done.out


@pytest.mark.slow
def test_changed_rows_rerun_everything(
    finished_run: Path, cli: Cli, tmp_path: Path, recipe: Path, rows_file: Path
) -> None:
    mine = tmp_path / rows_file.name
    lines = rows_file.read_text().splitlines()
    mine.write_text("\n".join(lines) + "\n")
    arguments = ["run", recipe, f"prepare.sources.0.path={mine}", "--runs", tmp_path / "runs"]
    assert cli(*arguments).code == 0
    mine.write_text("\n".join(lines[:-1]) + "\n")
    states = dict(re.findall(r"^(\w+) \(\w+\) (\w+)", cli(*arguments).out, re.MULTILINE))
    assert set(states.values()) == {"running"}


def test_train_runs_only_training_and_what_it_reads(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    done = cli("train", recipe, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "tiny"
    assert sorted(p.parent.name for p in run.glob("*/manifest.json")) == ["prepare", "sft"]
    assert done.out.rstrip().endswith(f"Results are in {run}")
    # the report of what is there names what is not
    report = cli("report", run)
    assert report.code == 0, report.err
    assert "evaluate" in (run / "report" / "report.md").read_text()


def test_train_without_a_train_stage(cli: Cli, tmp_path: Path, rows_file: Path) -> None:
    path = tmp_path / "data_only.yaml"
    path.write_text(f"name: d\nmodel: m\nstages:\n  rows: {{kind: data, sources: [{{path: {rows_file}}}]}}\n")
    assert "no train stage" in cli("train", path, "--runs", tmp_path).refused()


@pytest.mark.slow
def test_a_second_stage_starts_from_the_first(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    text = recipe.read_text()
    second = "  more: {kind: train, data: prepare, start_from: sft, adapter: {name: lora, rank: 4, alpha: 8}, max_steps: 1, batch_size: 4, dtype: fp32}\n"
    recipe.write_text(text + second)
    done = cli("run", recipe, "'evaluate.models=[base, sft, more]'".strip("'"), "--runs", tmp_path)
    assert done.code == 0, done.err
    first, more = (metrics_of(tmp_path / "tiny", s) for s in ("sft", "more"))
    assert manifest(tmp_path / "tiny", "more")["inputs"].keys() == {"start_from", "data"}
    # before its first step the second stage scores held-out rows as the first did after its last
    assert more[0]["loss"] == pytest.approx(first[-1]["loss"], rel=1e-5)


def metrics_of(run: Path, stage: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if r["split"] == "held_out"]


# ---- kill -9 and Ctrl-C ----------------------------------------------------------------------------------------------

LONG = ["sft.max_steps=30", "sft.epochs=100", "sft.evaluate_every=1000"]


def wait_for_step(process: Command, run: Path, step: int) -> None:
    for _ in range(6000):
        if any(r["step"] >= step for r in metrics(run) if r["split"] == "train"):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    raise AssertionError("the run never came that far")


@pytest.mark.slow
def test_killed_and_interrupted_and_run_again_is_as_if_nothing_happened(
    cli: Cli, commands: Commands, tmp_path: Path, recipe: Path
) -> None:
    straight = cli("train", recipe, *LONG, "--runs", tmp_path / "straight")
    assert straight.code == 0, straight.err
    run = tmp_path / "runs" / "tiny"

    killed = commands.start("train", recipe, *LONG, "--runs", tmp_path / "runs")
    wait_for_step(killed, run, 5)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert manifest(run, "sft")["status"] == "running"
    # what a kill in the middle of a write leaves behind
    (run / "sft" / ".adapter.99999.tmp").mkdir()
    (run / "sft" / "checkpoints" / ".a.safetensors.99999.tmp").write_bytes(b"half")
    # and the unfinished run can be looked at
    report = cli("report", run)
    assert report.code == 0, report.err
    assert "A tiny run" in (run / "report" / "report.md").read_text()

    reached = max(r["step"] for r in metrics(run))
    interrupted = commands.start("train", recipe, *LONG, "--runs", tmp_path / "runs")
    wait_for_step(interrupted, run, reached + 4)
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate()
    assert interrupted.returncode == 130, err
    assert re.fullmatch(
        r"error: interrupted after step \d+\n  fix: run the same command again to go on from here\n", err
    )
    assert "stopping after this step; Ctrl-C again stops at once" in out
    assert "sft (train) resuming" in out
    assert not list(run.rglob(".*.tmp"))
    stopped_after = int(re.search(r"step (\d+)", err)[1])  # type: ignore[index]
    seconds = manifest(run, "sft")["seconds"]
    assert seconds > 0

    done = cli("train", recipe, *LONG, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    assert manifest(run, "sft")["seconds"] > seconds  # of this session and the one before
    assert f"step {stopped_after + 1}/30" in done.out
    adapters = [
        tmp_path / runs / "tiny" / "sft" / "adapter" / "adapter_model.safetensors" for runs in ("straight", "runs")
    ]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    records = [r for r in metrics(run) if r["split"] == "train"]
    assert [r["step"] for r in records] == list(range(1, 31))
    assert [r["loss"] for r in records] == [
        r["loss"] for r in metrics(tmp_path / "straight" / "tiny") if r["split"] == "train"
    ]


def test_ctrl_c_outside_training(cli: Cli, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.data import pipeline

    def press(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "prepare", press)
        done = cli("run", recipe, "--runs", tmp_path)
    assert done.code == 130
    where = tmp_path / "tiny"
    assert done.err == f"error: {where}: interrupted\n  fix: run the same command again: what is finished is kept\n"
    assert manifest(tmp_path / "tiny", "prepare")["status"] == "running"
    assert cli("train", recipe, "--runs", tmp_path).code == 0


@pytest.mark.slow
def test_an_evaluation_goes_on_with_the_models_it_had_not_finished(
    cli: Cli, tmp_path: Path, recipe: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.tasks import evaluation

    evaluate = evaluation._held_out_logps
    asked: list[str] = []

    def cut_before_sft(name: str, *rest: Any) -> Any:
        asked.append(name)
        if name == "sft" and len(asked) == 2:
            raise KeyboardInterrupt
        return evaluate(name, *rest)

    monkeypatch.setattr(evaluation, "_held_out_logps", cut_before_sft)
    assert cli("run", recipe, "--runs", tmp_path / "cut").code == 130
    assert cli("run", recipe, "--runs", tmp_path / "cut").code == 0
    assert asked == ["base", "sft", "sft"]
    for name in ("likelihood.json", "likelihood.rows.jsonl", "prompts.json", "prompts.rows.jsonl"):
        runs = (tmp_path / "cut" / "tiny", finished_run)
        texts = ((run / "evaluate" / name).read_text(encoding="utf-8") for run in runs)
        cut, whole = (re.sub(r'"seconds": [\d.e-]+', "", text) for text in texts)
        assert cut == whole, name
    assert not (tmp_path / "cut" / "tiny" / "evaluate" / "parts").exists()


def test_from_the_command_to_a_loss_are_nine_frames(
    cli: Cli, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import posttrain
    from posttrain.objectives import SftObjective

    calls: list[list[str]] = []
    loss = SftObjective.loss

    def counted(self: SftObjective, *arguments: Any, **named: Any) -> Any:
        here = Path(posttrain.__file__).parent
        calls.append([f.name for f in traceback.extract_stack() if here in Path(f.filename).parents])
        return loss(self, *arguments, **named)

    monkeypatch.setattr(SftObjective, "loss", counted)
    assert cli("train", recipe, "--runs", tmp_path).code == 0
    assert 5 < len(calls[0]) + 1 <= 9, [*calls[0], "loss"]
