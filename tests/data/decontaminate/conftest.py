"""Rows and benchmarks written down in a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from posttrain.data.decontaminate.benchmarks import Benchmark
from posttrain.data.rows import rows_frame, write_rows
from posttrain.data.steps import StepRun
from posttrain.types import Message, Origin, SftRow

RUN = StepRun(resolve=lambda name: None)


def row(*turns: str, source: str = "train", line: int = 1) -> SftRow:
    """A conversation of these turns of the user, each with an answer."""
    messages = [m for turn in turns for m in (Message("user", turn), Message("assistant", "An answer."))]
    return SftRow(tuple(messages), Origin("rows.jsonl", line), source)


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[[Sequence[SftRow]], Path]:
    """Writes rows to a Parquet file."""

    def write(rows: Sequence[SftRow]) -> Path:
        path = tmp_path / "rows.parquet"
        write_rows(path, rows_frame(rows))
        return path

    return write


@pytest.fixture
def benchmark_file(tmp_path: Path) -> Callable[..., Benchmark]:
    """Writes prompts (a list of turns each) to a file and names the benchmark."""

    def write(*prompts: Sequence[str], name: str = "bench") -> Benchmark:
        path = tmp_path / f"{name}.jsonl"
        records = [{"question_id": number, "turns": list(turns)} for number, turns in enumerate(prompts)]
        path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
        return Benchmark(name=name, path=str(path))

    return write
