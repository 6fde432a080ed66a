"""Conversations as Parquet files, the form in which the data stage hands them on (docs/run-folder.md)."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from posttrain.artifacts import atomic_path, write_error
from posttrain.errors import DataError
from posttrain.types import Message, Origin, SftRow, ToolCall

_ENCODER = json.JSONEncoder(ensure_ascii=False)

BLOCK_ROWS = 8192
"""Rows whose text is in memory at once; files are written in row groups of so many, so that a block is read alone."""

_MESSAGE: dict[str, Any] = {
    "role": pl.String,
    "content": pl.String,
    "reasoning": pl.String,
    "tool_calls": pl.String,
    "weight": pl.Float64,
}
SCHEMA: dict[str, Any] = {
    "id": pl.String,
    "source": pl.String,
    "file": pl.String,
    "line": pl.Int64,
    "messages": pl.List(pl.Struct(_MESSAGE)),
    "tools": pl.String,
    "meta": pl.String,
}
"""Columns and types. ``tool_calls``, ``tools`` and ``meta`` are JSON text: ``[]``, ``[]`` and ``{}`` where there is none."""

_VERDICT: dict[str, Any] = {
    "step": pl.String,
    "check": pl.String,
    "value": pl.Float64,
    "limit": pl.String,
    "passed": pl.Boolean,
}
_SCORE: dict[str, Any] = {"name": pl.String, "value": pl.Float64, "by": pl.String}
LINEAGE: dict[str, Any] = {
    "parents": pl.List(pl.String),
    "verdicts": pl.List(pl.Struct(_VERDICT)),
    "scores": pl.List(pl.Struct(_SCORE)),
    "cluster": pl.String,
    "split": pl.String,
    "weight": pl.Float64,
}
"""What a row carries from step to step: ids of the rows it came from, every verdict with value and limit, scores with the
model that gave them, id of its cluster of near-duplicates or topic (null: none known), split, and sampling weight."""

_FRESH: dict[str, Any] = {
    "parents": [],
    "verdicts": [],
    "scores": [],
    "cluster": None,
    "split": None,
    "weight": 1.0,
}
"""The lineage of a row that has just been read."""


def rows_frame(rows: Iterable[SftRow], ids: Sequence[str] | None = None) -> pl.DataFrame:
    """The rows as a frame of :data:`SCHEMA` and fresh :data:`LINEAGE`. Known content ``ids`` save computing them again."""
    rows = list(rows)
    frame = pl.DataFrame(
        {
            "id": ids if ids is not None else [row.id for row in rows],
            "source": [row.source for row in rows],
            "file": [row.origin.file for row in rows],
            "line": [row.origin.line for row in rows],
            "messages": _messages_column(rows),
            "tools": [_json(list(row.tools)) if row.tools else "[]" for row in rows],
            "meta": [_json(dict(row.meta)) if row.meta else "{}" for row in rows],
        },
        schema=SCHEMA,
    )
    # one value repeated: from nested Python lists polars takes a hundred times as long
    return frame.with_columns(
        pl.Series(name, [_FRESH[name]], dtype=kind).new_from_index(0, len(frame)) for name, kind in LINEAGE.items()
    )


def write_rows(
    path: Path,
    rows: pl.LazyFrame | pl.DataFrame,
    extra: Mapping[str, Any] | None = None,
    compression: Literal["zstd", "lz4"] = "zstd",
) -> None:
    """Write a frame of :data:`SCHEMA` and :data:`LINEAGE` atomically, in blocks (a lazy frame is never held as a whole).

    ``extra``: further columns to write, with their types; ``lz4`` is for files that are read once and removed. Raises RunError where the disk is full or can't be written.
    """
    with atomic_path(path) as temporary:
        try:
            wanted = rows.lazy().select([*SCHEMA, *LINEAGE, *(extra or {})])
            level = 1 if compression == "zstd" else None
            wanted.sink_parquet(temporary, compression=compression, compression_level=level, row_group_size=BLOCK_ROWS)
        except pl.exceptions.PolarsError as error:
            # polars wraps what the system says into its own text
            number = re.search(r"os error (\d+)", str(error))
            raise write_error(OSError(int(number[1]) if number else errno.EIO, str(error)), path) from error


def read_rows(path: Path) -> list[SftRow]:
    """The conversations of a Parquet file written by :func:`write_rows`.

    Raises DataError where the file is missing, damaged or has other columns.
    """
    try:
        frame = pl.read_parquet(path, columns=list(SCHEMA), glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"can't read these rows: {error}", where=str(path), fix="run the data stage again") from error
    return frame_rows(frame)


def frame_rows(frame: pl.DataFrame) -> list[SftRow]:
    """The conversations of a frame with the columns of :data:`SCHEMA`, in order."""
    return [_row(record) for record in frame.iter_rows(named=True)]


def conversations(block: pl.DataFrame) -> Iterator[tuple[Message, ...]]:
    """The turns of every row of a block of rows (its column ``messages``)."""
    for turns in block["messages"].to_list():
        yield tuple(_message(struct) for struct in turns)


def _row(record: dict[str, Any]) -> SftRow:
    return SftRow(
        messages=tuple(_message(struct) for struct in record["messages"]),
        origin=Origin(record["file"], record["line"]),
        source=record["source"],
        tools=tuple(json.loads(record["tools"])),
        meta=json.loads(record["meta"]),
    )


def _message(struct: dict[str, Any]) -> Message:
    written = struct["tool_calls"]
    calls = () if written == "[]" else tuple(ToolCall(c["name"], c["arguments"]) for c in json.loads(written))
    return Message(struct["role"], struct["content"], struct["reasoning"], calls, struct["weight"])


def _messages_column(rows: Sequence[SftRow]) -> pl.Series:
    """The turns of every row as one column of lists of structs.

    Flat columns grouped again by row: built from nested Python values, polars takes ten times as long and keeps
    four times the memory.
    """
    turns = [(number, turn) for number, row in enumerate(rows) for turn in row.messages]
    flat = pl.DataFrame(
        {
            "row": [number for number, _ in turns],
            "role": [turn.role for _, turn in turns],
            "content": [turn.content for _, turn in turns],
            "reasoning": [turn.reasoning for _, turn in turns],
            "tool_calls": [
                _json([{"name": c.name, "arguments": c.arguments} for c in t.tool_calls]) if t.tool_calls else "[]"
                for _, t in turns
            ],
            "weight": [turn.weight for _, turn in turns],
        },
        schema={"row": pl.Int64, **_MESSAGE},
    )
    grouped = flat.group_by("row", maintain_order=True).agg(pl.struct(list(_MESSAGE)).alias("messages"))
    return grouped["messages"]


def _json(value: Any) -> str:
    if not value:
        return "[]" if isinstance(value, list) else "{}"
    return _ENCODER.encode(value)
