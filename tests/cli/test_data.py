"""posttrain data ...: one step alone, its options, its files, its refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from posttrain.lab import one_stage
from posttrain.lab.options import split_arguments

Cli = Callable[..., Any]
KINDS = ["filter", "dedup", "decontaminate", "select", "mix", "split"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    lines = [
        {
            "prompt": f"Tell me about {word} and what it is used for in daily life.",
            "completion": f"{word} is useful. Very.",
        }
        for word in ("iron", "copper", "clay", "wool", "glass", "paper", "stone", "silk")
    ]
    lines.append(
        {"prompt": "Tell me about iron and what it is used for in daily life!", "completion": "Another answer."}
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    return path


def rows_of(out: Path, kind: str) -> Path:
    """The rows that a command has written."""
    return out / kind / "rows" / "train.parquet"


def test_dedup_writes_what_it_promises(cli: Cli, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("data", "dedup", pairs, "-o", out, "--method", "minhash", "--threshold", "0.7", "--fields", "user")
    done = cli(*command)
    assert done.code == 0, done.err
    step, rows_file = out / "dedup" / "steps" / "01-dedup", rows_of(out, "dedup")
    for name in ("clusters.parquet", "rejects.parquet", "ledger.json", "facts.json"):
        assert (step / name).is_file(), name
    ledger = json.loads((out / "dedup" / "ledger.json").read_text())
    assert ledger["rows_in"] == 10
    assert ledger["rows_kept"] == 8 == len(pl.read_parquet(rows_file))
    assert [r["reason"] for r in ledger["rejects"]] == ["broken_json"]
    rejects = pl.read_parquet(step / "rejects.parquet")
    assert rejects["twin"][0] in pl.read_parquet(rows_file)["id"].to_list()
    before = rows_file.stat().st_mtime_ns
    told = cli(*command, "--json")
    assert rows_file.stat().st_mtime_ns == before  # finished: not run again
    assert json.loads(told.out)["facts"]["threshold"] == 0.7


def test_other_options_in_the_same_folder_replace_it_another_step_does_not(
    cli: Cli, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert cli("data", "dedup", pairs, "-o", out).code == 0
    assert cli("data", "dedup", pairs, "-o", out, "--method=exact").code == 0
    assert len(pl.read_parquet(rows_of(out, "dedup"))) == 9  # a full stop and an exclamation mark differ
    assert "stages (dedup)" in cli("data", "filter", pairs, "-o", out).refused()
    before = rows_of(out, "dedup").read_bytes()
    broken = out.parent / "broken.jsonl"
    broken.write_text("{broken\n")
    assert cli("data", "dedup", broken, "-o", out).code == 2
    assert before in [path.read_bytes() for path in (out / ".replaced").glob("*/rows/train.parquet")]
    assert cli("data", "dedup", pairs, "-o", out, "--method=exact").code == 0
    assert rows_of(out, "dedup").read_bytes() == before
    assert "where the stage writes" in cli("data", "dedup", out, "-o", out).refused()
    assert rows_of(out, "dedup").read_bytes() == before


def test_steps_follow_each_other_with_lineage(cli: Cli, pairs: Path, tmp_path: Path) -> None:
    assert (
        cli("data", "filter", pairs, "-o", tmp_path / "a", "--length.min_user_tokens", "3", "--refusal", "null").code
        == 0
    )
    done = cli("data", "split", tmp_path / "a", "-o", tmp_path / "b", "--validation", "2")
    assert done.code == 0, done.err
    train = pl.read_parquet(rows_of(tmp_path / "b", "split"))
    assert len(pl.read_parquet(tmp_path / "b" / "split" / "rows" / "held_out.parquet")) == 2
    assert {v["step"] for verdicts in train["verdicts"].to_list() for v in verdicts} >= {"filter"}
    assert set(train["file"]) == {str(pairs)}
    done = cli("data", "profile", tmp_path / "b", "-o", tmp_path / "c", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"] == len(train) + 2
    assert "<html" in (tmp_path / "c" / "profile" / "profile.html").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_help_teaches_every_option(cli: Cli, kind: str) -> None:
    shown = cli("data", kind, "--help")
    assert shown.code == 0
    for field in one_stage.STEPS[kind].__dataclass_fields__:
        assert field == "kind" or f"--{field.replace('_', '-')}" in shown.out


def test_every_step_has_a_command() -> None:
    assert sorted(one_stage.STEPS) == sorted(KINDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dedup", "PAIRS"], "-o DIR"),
        (["dedup", "-o", "OUT"], "no files"),
        (["dedup", "nowhere.jsonl", "-o", "OUT"], "nowhere.jsonl"),
        (["dedup", "PAIRS", "-o", "OUT", "--methd", "exact"], "did you mean 'method'"),
        (["dedup", "PAIRS", "-o", "OUT", "--method", "minhsh"], "did you mean 'minhash'"),
        (["dedup", "PAIRS", "-o", "OUT", "--threshold", "1.5"], "threshold"),
        (["decontaminate", "PAIRS", "-o", "OUT"], "benchmarks"),
        (["decontaminate", "PAIRS", "-o", "OUT", "--benchmarks", "[{name: x, path: none.json}]"], "none.json"),
        (["select", "PAIRS", "-o", "OUT", "--rule", "{method: medium}"], "posttrain score"),
        (["mix", "PAIRS", "-o", "OUT", "--counts", "{par: 3}"], "pairs"),
        (["split", "PAIRS", "-o", "OUT", "--validation", "5000"], "can't"),
        (["filter", "PAIRS", "-o", "OUT", "--length.min_user_tokens", "500"], "dropped all"),
        (["dedup", "PAIRS", "-o", "OUT", "--engine", "sparc"], "engine: must be one of 'local', 'ray'"),
    ],
)
def test_refusals(arguments: list[str], said: str, cli: Cli, pairs: Path, tmp_path: Path) -> None:
    words = [{"PAIRS": str(pairs), "OUT": str(tmp_path / "out")}.get(word, word) for word in arguments]
    assert said in cli("data", *words).refused()


def test_a_profile_of_raw_files_keeps_the_account_of_reading(cli: Cli, pairs: Path, tmp_path: Path) -> None:
    done = cli("data", "profile", pairs, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [(line["step"], line["rows_in"], line["rows_out"]) for line in told["funnel"]] == [
        ("read", 10, 9),
        ("format", 9, 9),
        ("deduplicate", 9, 9),
    ]
    assert [(entry["reason"], entry["rows"]) for entry in told["removed"]] == [("broken_json", 1)]
    ledger = json.loads((tmp_path / "out" / "profile" / "ledger.json").read_text())
    assert (ledger["rows_in"], ledger["rows_kept"], ledger["dropped"]) == (10, 9, {"broken_json": 1})


@pytest.mark.parametrize("command", [("data", "filter"), ("data", "dedup"), ("data", "profile")])
def test_no_usable_rows_says_why(command: tuple[str, str], cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "completion": ""}\n' * 3 + '{"prompt": "", "completion": "b"}\n{broken\n')
    said = cli(*command, path, "-o", tmp_path / "out").refused()
    assert "empty_assistant_turn 3" in said
    assert f"{path}:1: empty_assistant_turn: " in said
    assert said.count(f"{path}:") >= 3
    assert said == cli(*command, path, "-o", tmp_path / "out").refused()  # and again
    ledger = json.loads((tmp_path / "out" / command[1] / "ledger.json").read_text())
    assert (ledger["rows_in"], ledger["rows_kept"], len(ledger["rejects"])) == (5, 0, 5)


def test_a_split_and_names_of_sources_can_be_given(cli: Cli, pairs: Path, tmp_path: Path) -> None:
    for place in ("a", "b"):
        for split, lines in (("train", slice(0, 6)), ("test", slice(6, 8))):
            path = tmp_path / place / "data" / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(line.replace("about", f"for {place}") for line in pairs.read_text().splitlines(True)[lines])
            path.write_text(text)
    both = ("data", "mix", f"one={tmp_path}/a", f"two={tmp_path}/b", "-o", tmp_path / "out")
    assert "--split train" in cli(*both).refused()
    done = cli(*both, "--split", "train", "--counts", "{one: 3}")
    assert done.code == 0, done.err
    rows = pl.read_parquet(rows_of(tmp_path / "out", "mix"))
    assert sorted(rows["source"].to_list()) == ["one"] * 3 + ["two"] * 6
    done = cli("data", "split", f"mixed={tmp_path}/out", "-o", tmp_path / "split", "--validation", "2")
    assert done.code == 0, done.err
    assert re.search(r"validation +2\b", done.out)
    assert set(pl.read_parquet(rows_of(tmp_path / "split", "split"))["source"]) == {"mixed"}


def test_a_benchmark_with_half_a_surrogate_pair_is_looked_for(cli: Cli, pairs: Path, tmp_path: Path) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"question": "Tell me about iron \\ud800 and what it is used for in daily life."}\n')
    exams = f"[{{name: x, path: {exam}}}]"
    done = cli("data", "decontaminate", pairs, "-o", tmp_path / "o", "--benchmarks", exams, "--limit", "0.9")
    assert done.code == 0, done.err
    rejects = pl.read_parquet(tmp_path / "o" / "decontaminate" / "steps" / "01-decontaminate" / "rejects.parquet")
    assert len(rejects) == 2  # the question, and the one that ends with another mark


def test_arguments_are_told_apart() -> None:
    files, options = split_arguments(["a.jsonl", "--num-perm", "64", "b.csv", "--x=1", "--upsample", "--y", "2"])
    assert files == ["a.jsonl", "b.csv"]
    assert options == ["num_perm=64", "x=1", "upsample=true", "y=2"]


def test_ablation_plans_are_written_and_told(cli: Cli, tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
    done = cli("ablate", recipe, "--kind", "sub_samples", "-o", tmp_path / "plan")
    assert done.code == 0, done.err
    written = sorted((tmp_path / "plan").glob("*.yaml"))
    assert len(written) == 6
    assert all(f"posttrain run {path}" in done.out for path in written)
    assert "did you mean 'sub_samples'" in cli("ablate", recipe, "--kind", "subsamples", "-o", tmp_path).refused()
