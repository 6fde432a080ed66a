"""Reading on several workers is reading on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.data.config import Source
from posttrain.data.pipeline import gather
from posttrain.data.steps import StepRun


def write(path: Path, count: int) -> None:
    lines = []
    for number in range(count):
        if number % 7 == 3:
            lines.append("{broken")
        elif number % 11 == 5:
            lines.append(json.dumps({"messages": [{"role": "nobody", "content": "x"}]}))
        else:
            text = f"问题 {number % 40}"  # copies far apart
            lines.append(
                json.dumps({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]})
            )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def files(out: Path, sources: list[Source], workers: int) -> dict[str, bytes]:
    gather(sources, out, StepRun(lambda name: None, workers))
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.data.pipeline.BLOCK_ROWS", 16)
    write(tmp_path / "a.jsonl", 100)
    write(tmp_path / "b.jsonl", 150)
    sources = [Source(path=str(tmp_path / "a.jsonl")), Source(path=str(tmp_path / "b.jsonl"), max_rows=30)]
    one = files(tmp_path / "one", sources, 1)
    assert sorted(one) == ["ledger.json", "rows.parquet"]
    assert files(tmp_path / "two", sources, 2) == one
    ledger = json.loads(one["ledger.json"])
    assert [reject["line"] for reject in ledger["rejects"] if reject["file"].endswith("a.jsonl")] == sorted(
        reject["line"] for reject in ledger["rejects"] if reject["file"].endswith("a.jsonl")
    )
    read, form, unique = ledger["steps"]
    assert read["rows_in"] < 250
    assert form["rows_out"] == unique["rows_in"]
    assert sum(unique["dropped"].values()) == unique["rows_in"] - unique["rows_out"] > 0


def test_a_limit_is_exact_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.data.pipeline.BLOCK_ROWS", 4)
    write(tmp_path / "a.jsonl", 60)
    _, ledger = gather(
        [Source(path=str(tmp_path / "a.jsonl"), max_rows=9)], tmp_path / "out", StepRun(lambda name: None)
    )
    assert ledger.steps[1].rows_out == 9
    assert ledger.steps[0].rows_in == 12  # lines 4 and 11 are broken, 6 has no known role
