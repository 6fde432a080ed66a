"""An evaluation stage with benchmarks and judges, as a recipe runs it: files, resuming, what is paid once, wrong recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from posttrain.artifacts import RunDir
from posttrain.errors import ConfigError, InterruptedRunError, PosttrainError, RunError
from posttrain.generate import engines
from posttrain.generate.engine import Failure, Request
from posttrain.generate.fake import FakeEngine, Scripted
from posttrain.judge.config import JudgeSource
from posttrain.lab.engine import Experiment
from posttrain.lab.recipe import load_recipe
from posttrain.report.live import Display
from posttrain.tasks import AnyBenchmark, benchmarking

pytestmark = pytest.mark.demo_model

RECIPE = """
name: bench
model: {model}
stages:
  evaluate:
    kind: eval
    models: [base, again]
    others: {{again: {model}}}
    prompts: null
    resamples: 200
    slots: 8
    benchmarks:
      safety: {{name: safety, path: builtin, max_prompts: 4, max_tokens: 4}}
      arena: {{name: pairwise, path: {prompts}, against: all, max_tokens: 6}}
    judge: {{judges: [{{endpoint: "http://127.0.0.1:9/v1", model: scripted}}]}}
  report: {{kind: report}}
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {word}."}) + "\n" for word in ("one", "two", "three")))
    path = tmp_path / "bench.yaml"
    path.write_text(RECIPE.format(model=tiny_model, prompts=prompts))
    return path


def judged_by(monkeypatch: pytest.MonkeyPatch, script: Callable[[Request], Scripted]) -> list[FakeEngine]:
    """Judges are scripted engines from here on; the list holds those that were opened."""
    opened: list[FakeEngine] = []

    def open_fake(source: JudgeSource, *_: object) -> FakeEngine:
        opened.append(FakeEngine(script, model=source.name))
        return opened[-1]

    monkeypatch.setattr(engines, "open_source", open_fake)
    return opened


def run(recipe: Path, runs: Path, *overrides: str) -> RunDir:
    from rich.console import Console

    loaded = load_recipe(recipe, overrides)
    folder = RunDir(runs / loaded.name)
    with Display(Console(quiet=True)) as display:
        Experiment(loaded, folder, display).execute()
    return folder


def record(folder: RunDir, key: str) -> Any:
    return json.loads((folder.path / "evaluate" / "benchmarks" / f"{key}.json").read_text())


def test_a_stage_writes_records_and_rows(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = judged_by(monkeypatch, lambda _: "[[A]]")
    folder = run(recipe, tmp_path / "runs")
    safety, arena = record(folder, "safety"), record(folder, "arena")
    assert safety["judge"] is None
    assert {model: counts["asked"] for model, counts in safety["accounting"].items()} == {"base": 4, "again": 4}
    assert safety["source"] == {"path": "builtin", "digest": safety["source"]["digest"], "prompts": 4}
    # one model under two names says the same: ties that nobody was asked for
    assert opened == []
    (rates,) = arena["win_rates"]
    assert (rates["wins"], rates["losses"], rates["ties"]) == (0, 0, 3)
    assert arena["cost"]["base"]["completion_tokens"] > 0
    rows = [
        json.loads(line) for line in (folder.path / "evaluate/benchmarks/arena.rows.jsonl").read_text().splitlines()
    ]
    assert [row["model"] for row in rows] == ["base"] * 3 + ["again"] * 3
    result = json.loads((folder.path / "evaluate" / "manifest.json").read_text())["result"]
    assert set(result["benchmarks"]) == {"safety", "arena"}
    assert not (folder.path / "evaluate" / "parts").exists()
    assert (folder.path / "report" / "index.html").stat().st_size > 1000


@pytest.mark.slow
def test_a_judge_that_fails_is_counted_and_asked_again_by_the_next_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    recipe.write_text(recipe.read_text().replace("max_tokens: 6}", "max_tokens: 6, temperature: 1.0}"))
    again = f"evaluate.others.again={other_model(tiny_model, tmp_path)}"
    first = judged_by(monkeypatch, lambda _: Failure("server_error", "scripted", 3))
    with pytest.raises(ConfigError, match=r"none of 3 trial calls \(server_error: scripted\)"):
        run(recipe, tmp_path / "runs", again)
    assert len(first[0].requests) == 3  # the rest is not paid for
    with pytest.raises(RunError, match=r"arena: none of 6 calls .* \(server_error: scripted\)"):
        run(recipe, tmp_path / "runs", again, "evaluate.judge.check=false")
    verdicts = iter([Failure("server_error", "scripted", 3), *["[[A]]"] * 8])
    second = judged_by(monkeypatch, lambda _: next(verdicts))
    folder = run(recipe, tmp_path / "runs", again)
    assert len(second[0].requests) == 7  # the failed one of the trial came again
    arena = record(folder, "arena")
    assert arena["judge"]["judges"][0]["calls"] | {"cached": 0} == {
        **{"asked": 6, "answered": 6, "parsed": 6, "missing": {}, "failures": {}, "cached": 0, "asked_again": 0}
    }
    assert arena["judge"]["judges"][0]["calls"]["cached"] == 0
    assert arena["win_rates"][0]["ties"] == 3  # the first shown wins: inconsistent in both orders
    third = judged_by(monkeypatch, lambda _: "[[B]]")
    run(
        recipe,
        tmp_path / "runs",
        f"evaluate.others.again={other_model(tiny_model, tmp_path)}",
        "evaluate.resamples=400",
    )
    assert [len(engine.requests) for engine in third] == [0]  # answers are: nothing is paid twice


def other_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with other weights."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other"
    if not folder.exists():
        shutil.copytree(tiny_model, folder)
        state = load_file(folder / "model.safetensors")
        save_file({key: value.flip(0) for key, value in state.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.slow
def test_a_stage_that_was_stopped_goes_on(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two models: the first one's answers are not made again."""
    whole = run(recipe, tmp_path / "whole")
    asked: list[str] = []
    real = benchmarking.answer_all

    def counted(engine: Any, tasks: Any, seed: int, tick: Any) -> Any:
        if len(asked) == 2:
            asked.clear()
            raise KeyboardInterrupt
        asked.append("batch")
        return real(engine, tasks, seed, tick)

    monkeypatch.setattr(benchmarking, "answer_all", counted)
    with pytest.raises(InterruptedRunError):
        run(recipe, tmp_path / "runs")
    assert asked == []
    resumed = run(recipe, tmp_path / "runs")
    assert asked == ["batch", "batch"]  # two benchmarks of the second model
    for key in ("safety", "arena"):
        one, other = record(whole, key), record(resumed, key)
        for found in (one, other):
            found.pop("cost")
        assert one == other


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("    judge: {", "    # {"), "replies of this benchmark are judged, but there is no judge"),
        (("name: safety, path: builtin", "name: safty, path: builtin"), "did you mean 'safety'"),
        (("path: builtin, max_prompts: 4", "path: nowhere.csv, max_prompts: 4"), "no such benchmarks.safety.path file"),
        (("others: {again", "others: {evaluate"), "'evaluate' is a name of this recipe"),
        (("models: [base, again]", "models: [base]"), "not one of this stage's models"),
        (("model: scripted", "reward: x"), "one of"),
        (("max_prompts: 4", "max_prompts: 0"), "1"),
    ],
)
def test_wrong_recipes_are_told_before_anything_runs(
    recipe: Path, tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    text = recipe.read_text()
    assert change[0] in text
    recipe.write_text(text.replace(*change))
    with pytest.raises(PosttrainError, match=told):
        run(recipe, tmp_path / "runs")
    assert not (tmp_path / "runs" / "bench" / "evaluate" / "parts").exists()


def test_nothing_to_measure_is_an_error(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(
        f"name: x\nmodel: {tiny_model}\nstages:\n  evaluate: {{kind: eval, models: [base], prompts: null}}\n"
    )
    with pytest.raises(ConfigError, match="nothing to measure"):
        load_recipe(path)


# ---- posttrain eval ------------------------------------------------------------------------------------------------


def test_the_command_runs_benchmarks_and_writes_a_report(cli: Any, tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "runs" / "compared"
    other = other_model(tiny_model, tmp_path)
    arguments = ["eval", f"base={tiny_model}", f"new={other}", "-o", out, "--benchmark", "safety"]
    arguments += ["--safety.max-prompts", "4", "--safety.max-tokens", "3", "--resamples", "200"]
    done = cli(*arguments)
    assert done.code == 0, done.err
    assert f"Open {out / 'report' / 'index.html'}" in done.out
    assert (out / "evaluate" / "benchmarks" / "safety.json").exists()
    again = cli(*arguments)
    assert "unchanged" in again.out


def test_the_help_names_every_benchmark(cli: Any) -> None:
    told = cli("eval", "--help").out
    names = [get_args(get_type_hints(kind)["name"])[0] for kind in get_args(get_args(AnyBenchmark)[0])]
    assert [name for name in names if name not in told] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["eval", "MODEL", "MODEL", "-o", "OUT", "--benchmark", "safety"], "two models are called"),
        (["eval", "MODEL", "-o", "OUT", "--benchmark", "gsm8k"], "path"),
        (["eval", "MODEL", "-o", "OUT", "--benchmark", "sefety"], "did you mean 'safety'"),
        (["eval", "MODEL", "-o", "OUT"], "nothing to measure"),
        (["eval", "nowhere/at/all", "-o", "OUT", "--benchmark", "safety"], "nowhere/at/all"),
        (["eval", "MODEL", "-o", "OUT", "--benchmark", "safety", "--judge", "gpt-4"], "does not name a judge"),
        (["eval", "MODEL", "-o", "OUT", "--benchmark", "pairwise"], "there is one model only"),
        (["eval", "MODEL", "x=MODEL", "-o", "OUT", "--benchmark", "pairwise"], "there is no judge"),
        (["eval", "MODEL", "-o", "OUT", "--benchmark", "safety", "--judge", "reward=x"], "asks a judge"),
        (
            [
                "eval",
                "MODEL",
                "-o",
                "OUT",
                "--benchmark",
                "safety",
                "--safety.labels-by",
                "judge",
                "--judge",
                "reward=x",
            ],
            "a reward model judges pairs",
        ),
        (["eval", "MODEL", "-o", "OUT", "--benchmark", "safety", "--safety.max-promts", "3"], "max_prompts"),
    ],
)
def test_wrong_commands_are_told(cli: Any, tmp_path: Path, tiny_model: Path, arguments: list[str], told: str) -> None:
    names = {"MODEL": str(tiny_model), "OUT": str(tmp_path / "out")}
    message = cli(*[names.get(a, a.replace("=MODEL", f"={tiny_model}")) for a in arguments]).refused()
    assert told in message
