"""Rows in Parquet: what is written is read again, exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.rows import (
    LINEAGE,
    PREFERENCE,
    SCHEMA,
    frame_rows,
    read_feedback,
    read_pairs,
    read_rows,
    row_kind_of,
    rows_frame,
    scan_rows,
    write_rows,
)
from posttrain.errors import DataError, RunError
from posttrain.types import ROLES, Message, Origin, PairRow, SftRow, ToolCall, UnpairedRow

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
TALKS = st.lists(MESSAGES, min_size=1, max_size=4).map(tuple)
BESIDE = (
    st.builds(Origin, TEXT, st.integers(1, 2**40)),
    TEXT,
    st.lists(OBJECTS, max_size=2).map(tuple),
    OBJECTS,
)
ROWS = st.builds(SftRow, TALKS, *BESIDE)
PROMPTS = st.lists(MESSAGES, max_size=3).map(tuple)
PAIRS = st.builds(PairRow, PROMPTS, TALKS, TALKS, *BESIDE)
FEEDBACK = st.builds(UnpairedRow, PROMPTS, TALKS, st.booleans(), *BESIDE)
READERS = {"conversations": read_rows, "pairs": read_pairs, "feedback": read_feedback}


@settings(max_examples=20)
@pytest.mark.parametrize(("kind", "some"), [("conversations", ROWS), ("pairs", PAIRS), ("feedback", FEEDBACK)])
@given(data=st.data())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, kind: str, some: Any, data: st.DataObject) -> None:
    rows = data.draw(st.lists(some, max_size=5))
    path = tmp_path_factory.getbasetemp() / "round_trip.parquet"
    write_rows(path, rows_frame(rows))
    assert READERS[kind](path) == rows
    frame = pl.read_parquet(path)
    assert dict(frame.schema) == SCHEMA | LINEAGE
    assert frame["id"].to_list() == [row.id for row in rows]
    assert [row.messages for row in frame_rows(frame)] == [row.messages for row in rows]
    assert row_kind_of(path) == (kind if rows else None)


@given(pair=PAIRS)
def test_the_order_of_the_sides_is_part_of_the_id(pair: PairRow) -> None:
    other = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
    assert (other.id == pair.id) == (pair.chosen == pair.rejected)


def test_ids_are_of_the_content_alone() -> None:
    prompt, good, bad = (
        (Message(role, text),) for role, text in (("user", "x"), ("assistant", "y"), ("assistant", "z"))
    )
    pair = PairRow(prompt, good, bad, Origin("a", 1), "a")
    assert pair.id == PairRow(prompt, good, bad, Origin("b", 2), "b", meta={"margin": 1.0}).id
    judged = UnpairedRow(prompt, good, True, Origin("a", 1), "a")
    others = [
        PairRow(prompt, good, good, Origin("a", 1), "a"),
        PairRow(prompt, good, bad, Origin("a", 1), "a", tools=({"name": "f"},)),
        PairRow((), prompt + good, bad, Origin("a", 1), "a"),
        judged,
        UnpairedRow(prompt, good, False, Origin("a", 1), "a"),
        UnpairedRow((), prompt + good, True, Origin("a", 1), "a"),
        SftRow(prompt + good, Origin("a", 1), "a"),
    ]
    assert len({pair.id, *(row.id for row in others)}) == 1 + len(others)


KIND_ROWS = {
    "conversations": SftRow((Message("user", "x"), Message("assistant", "y")), Origin("a", 1), "a"),
    "pairs": PairRow(
        (Message("user", "x"),), (Message("assistant", "y"),), (Message("assistant", "z"),), Origin("a", 1), "a"
    ),
    "feedback": UnpairedRow((Message("user", "x"),), (Message("assistant", "y"),), False, Origin("a", 1), "a"),
}


@pytest.mark.parametrize("found", READERS)
@pytest.mark.parametrize("wanted", READERS)
def test_another_kind_of_rows_is_told(tmp_path: Path, found: str, wanted: str) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, rows_frame([KIND_ROWS[found]]))
    if found == wanted:
        assert READERS[wanted](path) == [KIND_ROWS[found]]
        return
    needed = "conversations are needed here" if wanted == "conversations" else f"this objective needs {wanted}"
    with pytest.raises(DataError) as caught:
        READERS[wanted](path)
    assert f"{path}: these rows are {found}, but {needed}" in str(caught.value)
    assert "see docs/data-preferences.md" in str(caught.value)
    set_rows = f"set rows: {wanted}" in str(caught.value)
    assert set_rows == (wanted == "conversations" or (found, wanted) == ("pairs", "feedback"))


def test_files_without_the_columns_of_preferences_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    rows = [KIND_ROWS["conversations"]] * 3
    rows_frame(rows).drop(*PREFERENCE).write_parquet(path)
    assert row_kind_of(path) == "conversations"
    assert read_rows(path) == rows
    frame = scan_rows(path).select(*SCHEMA, *LINEAGE).collect()
    assert frame.equals(rows_frame(rows))
    with pytest.raises(DataError, match="this objective needs pairs"):
        read_pairs(path)


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
                {"role": "user", "content": "2+2?", "reasoning": None, "tool_calls": "[]", "weight": None}
                | {"name": None, "tool_call_id": None},
                {
                    "role": "assistant",
                    "content": "",
                    "reasoning": "think",
                    "tool_calls": '[{"name": "add", "arguments": "{\\"a\\": 2}"}]',
                    "weight": 0.5,
                    "name": None,
                    "tool_call_id": None,
                },
            ],
            "prompt_turns": None,
            "rejected": None,
            "desirable": None,
            "tools": '[{"name": "add"}]',
            "meta": '{"class": "math"}',
        }
    ]
    assert [p.name for p in path.parent.iterdir()] == ["train.parquet"]


def test_names_and_ids_are_kept_and_older_files_without_them_are_read(tmp_path: Path) -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("add", "{}", "call_7"), ToolCall("add", "{}")))
    result = Message("tool", "4", name="add", tool_call_id="call_7")
    rows = [SftRow((Message("user", "2+2?"), call, result), Origin("a", 1), "a")]
    path, older = tmp_path / "rows.parquet", tmp_path / "older.parquet"
    write_rows(path, rows_frame(rows))
    assert read_rows(path) == rows
    plain = replace(rows[0], messages=(Message("user", "x"), Message("assistant", "y")))
    assert len({rows[0].id, replace(rows[0], messages=(*rows[0].messages[:2], Message("tool", "4"))).id}) == 2
    turns = pl.List(
        pl.Struct(dict.fromkeys(("role", "content", "reasoning", "tool_calls"), pl.String) | {"weight": pl.Float64})
    )
    older_turns = [[{"role": m.role, "content": m.content, "tool_calls": "[]"} for m in plain.messages]]
    frame = rows_frame([plain]).with_columns(pl.Series("messages", older_turns, dtype=turns))
    frame.write_parquet(older)
    assert read_rows(older) == [plain]


def test_missing_damaged_and_foreign_files_are_data_errors(tmp_path: Path) -> None:
    damaged, foreign = tmp_path / "damaged.parquet", tmp_path / "foreign.parquet"
    damaged.write_bytes(b"PAR1 cut")
    pl.DataFrame({"text": ["x"]}).write_parquet(foreign)
    for path in (tmp_path / "missing.parquet", damaged, foreign):
        for read in (read_rows, read_pairs, read_feedback, row_kind_of):
            with pytest.raises(DataError, match=path.name):
                read(path)


def test_a_full_disk_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: pl.LazyFrame, path: Path, **options: object) -> None:
        raise pl.exceptions.ComputeError("underlying IO error: No space left on device (os error 28)")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    with pytest.raises(RunError, match="the disk is full"):
        write_rows(tmp_path / "train.parquet", rows_frame([]))
