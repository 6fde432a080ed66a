"""Scoring rows: the numbers against plain float64 arithmetic, what stays unscored, and resuming."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from rich.console import Console

from posttrain.artifacts import RunDir, read_json
from posttrain.encode.template import load_tokenizer
from posttrain.errors import DataError, InterruptedRunError
from posttrain.lab.engine import Experiment
from posttrain.lab.one_stage import one_stage
from posttrain.lab.recipe import load_recipe
from posttrain.report import terminal
from posttrain.report.live import Display
from posttrain.stages import score as scoring
from posttrain.stages.score import SCORES, ScoreStage

pytestmark = pytest.mark.demo_model

ROWS: list[list[tuple[str, str]]] = [
    [("user", "What is 2 + 2?"), ("assistant", "It is 4.")],
    [("user", "你好，请介绍一下北京。"), ("assistant", "北京是中国的首都。")],
    [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "再见"),
        ("assistant", "Bye 👋, see you."),
    ],
    [("user", "Code?"), ("assistant", "```python\nprint(1)\n```")],
    *([("user", f"Say {k}."), ("assistant", f"{k}, {'yes ' * k}")] for k in range(6)),
]


def write(path: Path, rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def score(tiny_model: Path) -> Callable[..., dict[str, Any]]:
    """``score(files, out, **settings)`` with the tiny model in fp32."""

    def run(files: Sequence[str], out: Path, display: Display | None = None, **settings: Any) -> dict[str, Any]:
        keys = {"model": tiny_model, "dtype": "fp32", **settings}
        recipe = one_stage("score", [*files, *(f"--{key}={value}" for key, value in keys.items())]).recipe(out)
        Experiment(recipe, RunDir(out), display or Display(Console(quiet=True))).execute()
        return read_json(out / "score" / "facts.json")

    return run


def rows_of(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "score" / "rows" / "train.parquet")


def scores_of(out: Path) -> dict[str, dict[str, float]]:
    """First user text -> score name -> value."""
    return {
        next(m["content"] for m in row["messages"] if m["role"] == "user"): {
            s["name"]: s["value"] for s in row["scores"]
        }
        for row in rows_of(out).iter_rows(named=True)
    }


def plain_means(model_folder: Path, row: Sequence[tuple[str, str]]) -> dict[str, float]:
    """The scores of a ChatML row, by hand: text cut at the turns, log-softmax over everything in float64."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer_logps(before: list[int], answer: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([before + answer])).logits[0].log_softmax(-1)
        return [float(logits[len(before) + k - 1, token]) for k, token in enumerate(answer)]

    turns = list(row)
    if turns[0][0] != "system":  # the template's own
        turns.insert(0, ("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"))
    header = ids("<|im_start|>assistant\n")
    context: list[int] = []
    under: list[float] = []
    alone: list[float] = []
    for role, text in turns:
        if role == "assistant":
            answer = ids(f"{text}<|im_end|>")
            under += answer_logps(context + header, answer)
            alone += answer_logps(header, answer)
            context += header + answer + ids("\n")
        else:
            context += ids(f"<|im_start|>{role}\n{text}<|im_end|>\n")
    loss, loss_alone = -sum(under) / len(under), -sum(alone) / len(alone)
    return {
        "loss": loss,
        "mean_logp": -loss,
        "loss_alone": loss_alone,
        "ifd": loss / loss_alone,
        "assistant_tokens": len(under),
    }


def test_scores_are_those_of_plain_float64_arithmetic(
    score: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    facts = score([write(tmp_path / "rows.jsonl", ROWS)], tmp_path / "out")
    found = scores_of(tmp_path / "out")
    for row in ROWS[:4]:
        expected = plain_means(tiny_model, row)
        own = found[next(text for role, text in row if role == "user")]
        assert {name: own[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        assert own["tokens"] > own["assistant_tokens"]
    assert set(found["Code?"]) == set(SCORES)
    assert facts["opening"] == "<|im_start|>assistant\n"
    told = facts["sources"]["rows"]
    assert (told["rows"], told["scored"], told["unscored"]) == (10, 10, {})
    assert told["loss"]["mean"] == pytest.approx(sum(s["loss"] for s in found.values()) / 10)


def test_a_random_model_finds_prompts_of_no_help(score: Callable[..., Any], tmp_path: Path) -> None:
    """IFD near 1 is what a model gives that has learnt nothing."""
    score([write(tmp_path / "rows.jsonl", ROWS)], tmp_path / "out")
    assert all(abs(s["ifd"] - 1) < 0.1 for s in scores_of(tmp_path / "out").values())


def test_rows_that_can_not_be_scored_stay(score: Callable[..., Any], tmp_path: Path) -> None:
    rows = [*ROWS[:2], [("user", "long"), ("assistant", "word " * 300)]]
    facts = score([write(tmp_path / "rows.jsonl", rows)], tmp_path / "out", max_length=200)
    found = scores_of(tmp_path / "out")
    assert found["long"] == {}
    assert len(found) == 3
    assert facts["sources"]["rows"]["unscored"] == {"too_long": 1}
    ledger = read_json(tmp_path / "out" / "score" / "ledger.json")
    assert [step["name"] for step in ledger["steps"]] == ["score"]
    assert ledger["steps"][-1]["notes"] == {"scored": 2, "unscored: too_long": 1}
    assert (ledger["rows_in"], ledger["rows_kept"]) == (3, 3)
    console = Console(width=120)
    with console.capture() as shown:
        console.print(terminal.section(ScoreStage.section(RunDir(tmp_path / "out").stage("score"))))
    assert "Without scores: 1 too_long" in shown.get()


def test_rows_keep_what_they_carry(score: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    """Scores of another model stay, those of the same are replaced; verdicts and clusters stay."""
    score([write(tmp_path / "rows.jsonl", ROWS[:3])], tmp_path / "first")
    rows = rows_of(tmp_path / "first")
    judge = [{"name": "judge", "value": 7.0, "by": "someone"}]
    carried = rows.with_columns(
        scores=pl.concat_list(pl.lit(pl.Series([judge], dtype=rows.schema["scores"])), "scores"), cluster=pl.lit("c1")
    )
    carried.write_parquet(tmp_path / "carried.parquet")
    score([str(tmp_path / "carried.parquet")], tmp_path / "second")
    again = rows_of(tmp_path / "second")
    assert again["cluster"].to_list() == ["c1"] * 3
    for before, after in zip(rows["scores"].to_list(), again["scores"].to_list(), strict=True):
        assert after == [*judge, *before]
    assert {s["by"] for scores in rows["scores"].to_list() for s in scores} == {f"{tiny_model.name}@{_digest(rows)}"}


def _digest(rows: pl.DataFrame) -> str:
    return str(rows["scores"][0][0]["by"]).partition("@")[2]


def test_another_template_is_another_scorer(score: Callable[..., Any], tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS[:2])
    template = tmp_path / "plain.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    own = score([file], tmp_path / "own")
    other = score([file], tmp_path / "own", template=str(template))
    assert own["by"] != other["by"]
    assert own["sources"]["rows"]["loss"] != other["sources"]["rows"]["loss"]


def test_the_order_of_the_rows_plays_no_part(score: Callable[..., Any], tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    score([write(tmp_path / "a.jsonl", ROWS)], tmp_path / "a")
    score([write(tmp_path / "b.jsonl", shuffled)], tmp_path / "b")
    assert scores_of(tmp_path / "a") == scores_of(tmp_path / "b")


class Impatient(Display):
    """Presses Ctrl-C when so many rows are done."""

    def __init__(self, after: int) -> None:
        super().__init__(Console(quiet=True))
        self.after = after
        self.told: list[tuple[int, int]] = []

    def tick(self, label: str, done: int, total: int) -> None:
        if label == scoring.SCORING:
            self.told.append((done, total))
            if done >= self.after:
                raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_scoring_goes_on(
    score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CACHE_ROWS", 3)
    file = write(tmp_path / "rows.jsonl", ROWS)
    score([file], tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        score([file], tmp_path / "out", Impatient(after=6))
    assert not (tmp_path / "out" / "score" / "rows").exists()
    watched = Impatient(after=10**9)
    score([file], tmp_path / "out", watched)
    assert watched.told[-1] == (4, 4)  # two parts of three were there
    assert [done for done, _ in watched.told] == sorted(done for done, _ in watched.told)
    assert scores_of(tmp_path / "out") == scores_of(tmp_path / "whole")
    finished = Impatient(after=0)
    score([file], tmp_path / "out", finished)
    assert finished.told == []


@pytest.mark.slow
def test_auto_goes_on_with_the_numbers_it_began_with(
    score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.model import hardware

    file = write(tmp_path / "rows.jsonl", ROWS[:2])
    monkeypatch.setattr(hardware, "matmul_flops", lambda dtype, device: 1.0 if dtype == torch.bfloat16 else 9.0)
    assert score([file], tmp_path / "out", dtype="auto")["dtype"] == "fp32"
    monkeypatch.setattr(hardware, "matmul_flops", lambda dtype, device: 9.0 if dtype == torch.bfloat16 else 1.0)
    assert score([file], tmp_path / "out", dtype="auto")["dtype"] == "fp32"
    assert score([file], tmp_path / "new", dtype="auto")["dtype"] == "bf16"


def test_bf16_is_near(score: Callable[..., Any], tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    score([file], tmp_path / "fp32")
    score([file], tmp_path / "bf16", dtype="bf16")
    full, half = scores_of(tmp_path / "fp32"), scores_of(tmp_path / "bf16")
    assert all(half[p]["loss"] == pytest.approx(full[p]["loss"], rel=0.01) for p in full)
    assert any(half[p]["loss"] != full[p]["loss"] for p in full)


def test_several_files_and_duplicates(score: Callable[..., Any], tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", [*ROWS[:2], ROWS[0]])
    score([first], tmp_path / "out")
    second = write(tmp_path / "second.jsonl", ROWS[2:4])
    facts = score([str(tmp_path / "out"), second], tmp_path / "both")
    assert {name: told["rows"] for name, told in facts["sources"].items()} == {"first": 2, "second": 2}
    assert all(math.isfinite(s["loss"]) for s in scores_of(tmp_path / "both").values())


def test_a_missing_file_is_told_before_a_model_is_looked_for(score: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        score([str(tmp_path / "nothing.jsonl")], tmp_path / "out", model="no/model")


def test_the_command(tiny_model: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from posttrain.cli import app

    file = write(tmp_path / "rows.jsonl", ROWS[:3])
    arguments = ["score", file, "--model", str(tiny_model), "-o", str(tmp_path / "out"), "--dtype", "fp32"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sources"]["rows"]["scored"] == 3
    shown = CliRunner().invoke(app, arguments)
    assert "train.parquet" in shown.stdout


@pytest.fixture
def slow_scoring(tiny_model: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a scoring of 24 rows in parts of 2 as a process of its own."""
    file = write(tmp_path / "rows.jsonl", [[("user", f"Count {k}"), ("assistant", f"{k} " * 50)] for k in range(24)])
    code = (
        "import sys\nfrom posttrain.stages import score\nfrom posttrain.cli import main\nscore.CACHE_ROWS = 2\n"
        f"sys.argv = ['posttrain', 'score', {file!r}, '--model', {str(tiny_model)!r}, '--dtype', 'fp32', '-o', {str(tmp_path / 'out')!r}]\n"
        "main()\n"
    )
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_killed_scoring_goes_on(
    score: Callable[..., Any],
    slow_scoring: Callable[[], subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "CACHE_ROWS", 2)
    score([str(tmp_path / "rows.jsonl")], tmp_path / "whole")
    process = slow_scoring()
    while process.poll() is None and len(list((tmp_path / "out").glob(".scores/*/*.parquet"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob(".scores/*/*.parquet")}
    assert 3 <= len(kept) <= 12
    score([str(tmp_path / "rows.jsonl")], tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert scores_of(tmp_path / "out") == scores_of(tmp_path / "whole")


def test_score_then_select_by_ifd_then_train_is_one_recipe(tiny_model: Path, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [[("user", f"Say {k}."), ("assistant", f"{k}, {'yes ' * k}")] for k in range(20)])
    (tmp_path / "recipe.yaml").write_text(
        f"name: chain\nmodel: {tiny_model}\nstages:\n"
        "  prepare: {kind: data, sources: [{path: rows.jsonl}], held_out: 4, profile: false}\n"
        "  scored: {kind: score, data: prepare, dtype: fp32}\n"
        "  chosen:\n    kind: data\n    sources: [{path: scored}]\n    profile: false\n"
        "    steps: [{kind: select, rule: {method: ifd, limit: 9, top: 6}}]\n"
        "  sft: {kind: train, data: chosen, max_steps: 1, batch_size: 2, dtype: fp32}\n"
    )
    run = RunDir(tmp_path / "run")
    Experiment(load_recipe(tmp_path / "recipe.yaml"), run, Display(Console(quiet=True))).execute()
    rows = {name: run.stage(name).file("rows") for name in ("prepare", "chosen")}
    chosen = pl.read_parquet(rows["chosen"] / "train.parquet")
    assert len(chosen) == 6
    assert set(chosen["id"]) <= set(pl.read_parquet(rows["prepare"] / "train.parquet")["id"])
    held_out = [pl.read_parquet(folder / "held_out.parquet")["id"].to_list() for folder in rows.values()]
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 4
    # read through two stages, of which each held out other rows: none of these is trained on
    (tmp_path / "two.yaml").write_text(
        "name: two\nstages:\n"
        "  a: {kind: data, sources: [{path: rows.jsonl}], held_out: 4, profile: false}\n"
        "  b: {kind: data, sources: [{path: rows.jsonl}], held_out: 7, profile: false}\n"
        "  both: {kind: data, sources: [{path: a}, {path: b}], profile: false}\n"
    )
    two = RunDir(tmp_path / "two")
    Experiment(load_recipe(tmp_path / "two.yaml"), two, Display(Console(quiet=True))).execute()
    train, kept = (
        set(pl.read_parquet(two.stage("both").file("rows", f"{s}.parquet"))["id"]) for s in ("train", "held_out")
    )
    assert not train & kept
    assert len(train | kept) == 20
    assert run.stage("sft").file("adapter").is_dir()
