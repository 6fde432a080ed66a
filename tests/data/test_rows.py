"""Rows in Parquet: what is written is read again, exactly."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.rows import LINEAGE, SCHEMA, read_rows, rows_frame, write_rows
from posttrain.errors import DataError, RunError
from posttrain.types import ROLES, Message, Origin, SftRow, ToolCall

TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=3)
MESSAGES = st.builds(
    Message,
    st.sampled_from(ROLES),
    TEXT,
    st.none() | TEXT,
    st.lists(st.builds(ToolCall, TEXT, OBJECTS.map(json.dumps)), max_size=2).map(tuple),
    st.none() | st.floats(0, 10),
)
ROWS = st.builds(
    SftRow,
    st.lists(MESSAGES, min_size=1, max_size=4).map(tuple),
    st.builds(Origin, TEXT, st.integers(1, 2**40)),
    TEXT,
    st.lists(OBJECTS, max_size=2).map(tuple),
    OBJECTS,
)


@settings(max_examples=40)
@given(rows=st.lists(ROWS, max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[SftRow]) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.parquet"
    write_rows(path, rows_frame(rows))
    assert read_rows(path) == rows
    assert pl.read_parquet(path)["id"].to_list() == [row.id for row in rows]


def test_the_file_is_as_the_run_folder_says(tmp_path: Path) -> None:
    row = SftRow(
        (Message("user", "2+2?"), Message("assistant", "", "think", (ToolCall("add", '{"a": 2}'),), 0.5)),
        Origin("a.jsonl", 7),
        "a",
        ({"name": "add"},),
        {"class": "math"},
    )
    path = tmp_path / "rows" / "train.parquet"
    write_rows(path, rows_frame([row]))
    frame = pl.read_parquet(path)
    assert dict(frame.schema) == SCHEMA | LINEAGE
    assert frame.select(list(SCHEMA)).to_dicts() == [
        {
            "id": row.id,
            "source": "a",
            "file": "a.jsonl",
            "line": 7,
            "messages": [
                {"role": "user", "content": "2+2?", "reasoning": None, "tool_calls": "[]", "weight": None},
                {
                    "role": "assistant",
                    "content": "",
                    "reasoning": "think",
                    "tool_calls": '[{"name": "add", "arguments": "{\\"a\\": 2}"}]',
                    "weight": 0.5,
                },
            ],
            "tools": '[{"name": "add"}]',
            "meta": '{"class": "math"}',
        }
    ]
    assert [p.name for p in path.parent.iterdir()] == ["train.parquet"]


def test_missing_damaged_and_foreign_files_are_data_errors(tmp_path: Path) -> None:
    damaged, foreign = tmp_path / "damaged.parquet", tmp_path / "foreign.parquet"
    damaged.write_bytes(b"PAR1 cut")
    pl.DataFrame({"text": ["x"]}).write_parquet(foreign)
    for path in (tmp_path / "missing.parquet", damaged, foreign):
        with pytest.raises(DataError, match=path.name):
            read_rows(path)


def test_a_full_disk_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: pl.LazyFrame, path: Path, **options: object) -> None:
        raise pl.exceptions.ComputeError("underlying IO error: No space left on device (os error 28)")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    with pytest.raises(RunError, match="the disk is full"):
        write_rows(tmp_path / "train.parquet", rows_frame([]))
