"""The chain of steps in a data stage: accounts add up, files are where the docs say, a kill anywhere loses one step at most."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from posttrain.artifacts import StageDir, read_json
from posttrain.data import steps
from posttrain.data.config import ChainStep, DataSettings, Source
from posttrain.data.dedup.step import DedupStep
from posttrain.data.filters.form import Length
from posttrain.data.filters.step import FilterStep
from posttrain.data.mix import MixStep
from posttrain.data.pipeline import prepare
from posttrain.data.rows import read_rows
from posttrain.data.split import SplitStep
from posttrain.errors import ConfigError, DataError

WORDS = [
    "river",
    "mountain",
    "garden",
    "castle",
    "forest",
    "window",
    "bridge",
    "market",
    "harbour",
    "valley",
    "island",
    "meadow",
    "lantern",
    "orchard",
]


def question(number: int) -> str:
    return (
        " ".join(WORDS[(number * step + number // 7) % len(WORDS)] for step in range(1, 13))
        + f" {'abcdefgh'[number % 8]}"
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """40 different rows, 3 near-duplicates of the first three, one exact duplicate, one too short, one broken line."""
    lines = [
        {"question": question(n), "answer": f"The answer to that is {WORDS[n % 14]}, of course."} for n in range(40)
    ]
    lines += [{"question": question(n) + " please", "answer": "Another answer, much the same."} for n in range(3)]
    lines += [lines[5], {"question": "hi", "answer": "Good day to you."}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    return path


STEPS: tuple[ChainStep, ...] = (
    FilterStep(kind="filter", length=Length(min_user_tokens=2)),
    DedupStep(kind="dedup", threshold=0.5, ngram=3),
    SplitStep(kind="split", validation=5, test=4),
)


def stage(path: Path, *steps: ChainStep, **more: Any) -> DataSettings:
    return DataSettings(sources=(Source(path=str(path)),), steps=steps, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_row_is_accounted_for(rows: Path, tmp_path: Path) -> None:
    out = StageDir(tmp_path / "out")
    result = prepare(stage(rows, *STEPS), out, 0, lambda name: None)
    ledger = read_json(out.file("ledger.json"))
    told = {line["name"]: (line["rows_in"], line["rows_out"], line["dropped"]) for line in ledger["steps"]}
    assert told["read"][:2] == (46, 45)
    assert told["deduplicate"] == (45, 44, {"exact_duplicate": 1})
    assert told["filter"][:2] == (44, 43)
    dropped = told["dedup"][2]["near_duplicate"]
    assert told["dedup"][:2] == (43, 43 - dropped)
    assert dropped >= 3
    assert sum(result[f"{side}_rows"] for side in ("train", "held_out", "test")) == ledger["rows_kept"]
    assert result["held_out_rows"] == 5
    assert result["test_rows"] == 4
    rejects = pl.read_parquet(out.file("steps", "02-dedup", "rejects.parquet"))
    kept = {row.id for row in read_rows(out.file("steps", "02-dedup", "rows.parquet"))}
    assert set(rejects["twin"]) <= kept
    train = pl.read_parquet(out.file("rows", "train.parquet"))
    assert set(train["split"]) == {"train"}
    checks = {(v["step"], v["check"]) for verdicts in train["verdicts"].to_list() for v in verdicts}
    assert {step for step, _ in checks} >= {"filter"}
    assert read_json(out.file("profile.json"))["rows"] == ledger["rows_kept"]


def test_killed_at_any_step_it_goes_on_with_the_same_result(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage(rows, *STEPS, mix=MixStep(kind="mix", share=0.5))
    prepare(config, StageDir(tmp_path / "whole"), 0, lambda name: None)
    expected = contents(tmp_path / "whole")
    real: Callable[..., Any] = steps.apply
    for victim in range(4):
        for after in (False, True):
            calls = iter(range(100))

            def dying(*arguments: Any, **more: Any) -> Any:
                number = next(calls)  # noqa: B023
                if number == victim and not after:  # noqa: B023
                    raise KeyboardInterrupt
                line = real(*arguments, **more)
                if number == victim:  # noqa: B023
                    raise KeyboardInterrupt
                return line

            folder = tmp_path / f"killed-{victim}-{after}"
            monkeypatch.setattr(steps, "apply", dying)
            with pytest.raises(KeyboardInterrupt):
                prepare(config, StageDir(folder), 0, lambda name: None)
            monkeypatch.setattr(steps, "apply", real)
            prepare(config, StageDir(folder), 0, lambda name: None)
            assert contents(folder) == expected


def test_a_finished_step_is_not_run_again(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = stage(rows, *STEPS)
    prepare(config, StageDir(tmp_path / "out"), 0, lambda name: None)

    def never(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("ran again")

    monkeypatch.setattr(steps, "run_step", never)
    prepare(config, StageDir(tmp_path / "out"), 0, lambda name: None)


def test_a_step_that_drops_everything_is_told(rows: Path, tmp_path: Path) -> None:
    config = stage(rows, FilterStep(kind="filter", length=Length(min_user_tokens=1000)))
    with pytest.raises(DataError, match=r"rejects.parquet: step filter dropped all 44 rows"):
        prepare(config, StageDir(tmp_path / "out"), 0, lambda name: None)
    assert len(pl.read_parquet(tmp_path / "out" / "steps" / "01-filter" / "rejects.parquet")) == 44


def test_a_split_comes_last_and_alone(rows: Path, tmp_path: Path) -> None:
    split = SplitStep(kind="split")
    for chain, held_out in (((split, *STEPS[:1]), None), ((split, split), None), ((split,), 0.1)):
        with pytest.raises(ConfigError, match="split step"):
            prepare(stage(rows, *chain, held_out=held_out), StageDir(tmp_path / "out"), 0, lambda name: None)
