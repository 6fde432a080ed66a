"""Rows as Parquet files, the form in which the data stage hands them on (docs/run-folder.md)."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl

from posttrain.artifacts import atomic_path, write_error
from posttrain.data.text import COMPARED_ROLES, Fields
from posttrain.errors import DataError
from posttrain.types import Message, Origin, PairRow, PromptRow, Row, RowKind, SftRow, ToolCall, UnpairedRow

_ENCODER = json.JSONEncoder(ensure_ascii=False)

BLOCK_ROWS = 8192
"""Rows whose text is in memory at once; files are written in row groups of so many, so that a block is read alone."""

_MESSAGE: dict[str, Any] = {
    "role": pl.String,
    "content": pl.String,
    "reasoning": pl.String,
    "tool_calls": pl.String,
    "weight": pl.Float64,
    "name": pl.String,
    "tool_call_id": pl.String,
}
_TURNS = pl.List(pl.Struct(_MESSAGE))
PREFERENCE: dict[str, Any] = {"prompt_turns": pl.Int64, "rejected": _TURNS, "desirable": pl.Boolean}
"""What pairs and feedback say beside their conversation, null where a row does not say it: how many of the messages are the
prompt (pairs and feedback, and all of them in prompts), the turns of the rejected side (pairs), the label of the completion (feedback)."""
SCHEMA: dict[str, Any] = {
    "id": pl.String,
    "source": pl.String,
    "file": pl.String,
    "line": pl.Int64,
    "messages": _TURNS,
    **PREFERENCE,
    "tools": pl.String,
    "meta": pl.String,
}
"""Columns and types, of every kind of row. ``messages`` is the conversation; of a pair the prompt with the chosen side, of
feedback the prompt with the completion. ``tool_calls``, ``tools`` and ``meta`` are JSON text: ``[]``, ``[]`` and ``{}`` where
there is none."""

MEASUREMENT: dict[str, Any] = {"check": pl.String, "value": pl.Float64, "limit": pl.String, "passed": pl.Boolean}
_VERDICT: dict[str, Any] = {"step": pl.String, **MEASUREMENT}
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

REQUIRED = frozenset((SCHEMA | LINEAGE).keys() - PREFERENCE.keys())
"""The columns that every rows file has. Those written before there were preferences lack :data:`PREFERENCE`."""

_FRESH: dict[str, Any] = {"parents": [], "verdicts": [], "scores": [], "cluster": None, "split": None, "weight": 1.0}
"""The lineage of a row that has just been read."""


def rows_frame(rows: Iterable[Row], ids: Sequence[str] | None = None) -> pl.DataFrame:
    """The rows, all of one kind, as a frame of :data:`SCHEMA` and fresh :data:`LINEAGE`.

    Known content ``ids`` save computing them again.
    """
    rows = list(rows)
    frame = pl.DataFrame(
        {
            "id": ids if ids is not None else [row.id for row in rows],
            "source": [row.source for row in rows],
            "file": [row.origin.file for row in rows],
            "line": [row.origin.line for row in rows],
            "messages": _turns_column([row.messages for row in rows]),
            **_preference_columns(rows),
            "tools": [_json(list(row.tools)) if row.tools else "[]" for row in rows],
            "meta": [_json(dict(row.meta)) if row.meta else "{}" for row in rows],
        },
        schema=SCHEMA,
    )
    return frame.with_columns(_repeated(name, kind, _FRESH[name], len(frame)) for name, kind in LINEAGE.items())


def _repeated(name: str, kind: Any, value: Any, num_rows: int) -> pl.Series:
    """One value in every row: from nested Python lists polars takes a hundred times as long."""
    return pl.Series(name, [value], dtype=kind).new_from_index(0, num_rows)


def _preference_columns(rows: Sequence[Row]) -> dict[str, Any]:
    """The columns of :data:`PREFERENCE`; the first row tells the kind of all."""
    columns: dict[str, Any] = {name: _repeated(name, kind, None, len(rows)) for name, kind in PREFERENCE.items()}
    if rows and not isinstance(rows[0], SftRow):
        columns["prompt_turns"] = [len(row.prompt) for row in cast(Sequence[PairRow | UnpairedRow | PromptRow], rows)]
    if rows and isinstance(rows[0], PairRow):
        columns["rejected"] = _turns_column([row.rejected for row in cast(Sequence[PairRow], rows)])
    if rows and isinstance(rows[0], UnpairedRow):
        columns["desirable"] = [row.desirable for row in cast(Sequence[UnpairedRow], rows)]
    return columns


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
        write_frame(temporary, rows.lazy().select([*SCHEMA, *LINEAGE, *(extra or {})]), compression)


def write_frame(path: Path, frame: pl.LazyFrame, compression: Literal["zstd", "lz4"]) -> None:
    """Write any frame in blocks. Raises RunError where the disk is full or can't be written."""
    level = 1 if compression == "zstd" else None
    try:
        frame.sink_parquet(path, compression=compression, compression_level=level, row_group_size=BLOCK_ROWS)
    except pl.exceptions.PolarsError as error:
        # polars wraps what the system says into its own text
        number = re.search(r"os error (\d+)", str(error))
        raise write_error(OSError(int(number[1]) if number else errno.EIO, str(error)), path) from error


def scan_rows(path: Path) -> pl.LazyFrame:
    """A rows file with all columns of :data:`SCHEMA`: what older files lack (preferences, names in turns) is null."""
    frame = pl.scan_parquet(path, glob=False)
    found = frame.collect_schema()
    older = [
        name for name in ("messages", "rejected") if isinstance(found.get(name), pl.List) and found[name] != _TURNS
    ]
    return frame.with_columns(
        *(pl.lit(None, dtype=PREFERENCE[name]).alias(name) for name in PREFERENCE if name not in found),
        *(pl.col(name).cast(_TURNS) for name in older),
    )


def row_kind_of(rows_file: Path) -> RowKind | None:
    """What the rows of a file say, from its first row; None where it has no rows.

    Raises DataError where the file is missing, damaged or has other columns.
    """
    with _readable(rows_file):
        first = scan_rows(rows_file).select("id", "prompt_turns", "rejected", "desirable").head(1).collect()
    if not len(first):
        return None
    if first["prompt_turns"][0] is None:
        return "conversations"
    if first["desirable"][0] is not None:
        return "feedback"
    return "prompts" if first["rejected"][0] is None else "pairs"


def shared_row_kind(rows_files: Sequence[Path]) -> RowKind | None:
    """What the rows of all these rows files say; None where there are none. Raises DataError where they are of two kinds."""
    kinds = [(str(path), kind) for path in rows_files if (kind := row_kind_of(path)) is not None]
    for file, kind in kinds:
        if kind != kinds[0][1]:
            raise disagreement(file, kind, *kinds[0])
    return kinds[0][1] if kinds else None


def disagreement(file: str, kind: RowKind, first: str, first_kind: RowKind) -> DataError:
    """The error of two files whose rows are of two kinds."""
    return DataError(
        f"these rows are {kind}, and those of {first} are {first_kind}",
        where=file,
        fix="give each kind a data stage of its own, or say what all become (rows: conversations, rows: prompts, or of pairs rows: feedback);"
        " see docs/data-preferences.md",
    )


def refuse_prompts(rows_file: Path) -> None:
    """Raises DataError where the rows of a file are prompts, for what can't be done without replies."""
    if row_kind_of(rows_file) == "prompts":
        raise _other_kind(rows_file, "prompts", "conversations")


def read_rows(rows_file: Path) -> list[SftRow]:
    """The conversations of a Parquet file written by :func:`write_rows`.

    Raises DataError where the file is missing, damaged or has other columns, or where its rows are preferences.
    """
    return frame_rows(_frame(rows_file, "conversations"))


def read_pairs(rows_file: Path) -> list[PairRow]:
    """The pairs of a Parquet file, as :func:`read_rows`."""
    return cast(list[PairRow], _read(rows_file, "pairs"))


def read_feedback(rows_file: Path) -> list[UnpairedRow]:
    """The judged replies of a Parquet file, as :func:`read_rows`."""
    return cast(list[UnpairedRow], _read(rows_file, "feedback"))


def read_kind(rows_file: Path, kind: RowKind) -> Sequence[Any]:
    """The conversations, pairs or judged replies of a Parquet file, as :func:`read_rows`."""
    readers: dict[RowKind, Callable[[Path], Sequence[Any]]] = {"pairs": read_pairs, "feedback": read_feedback}
    return readers.get(kind, read_rows)(rows_file)


def read_any(rows_file: Path) -> Sequence[Row]:
    """The rows of a Parquet file, of whatever kind they are."""
    return _read(rows_file, row_kind_of(rows_file) or "conversations")


def row_of(record: Mapping[str, Any]) -> Row:
    """The row of one record of a rows file, of whatever kind it is."""
    messages, turns, beside = _messages(record["messages"]), record.get("prompt_turns"), _beside(record)
    if turns is None:
        return SftRow(messages, **beside)
    if record["desirable"] is not None:
        return UnpairedRow(messages[:turns], messages[turns:], record["desirable"], **beside)
    if record["rejected"] is not None:
        return PairRow(messages[:turns], messages[turns:], _messages(record["rejected"]), **beside)
    return PromptRow(messages, **beside)


def _read(rows_file: Path, kind: RowKind) -> list[Row]:
    return list(map(row_of, _frame(rows_file, kind).iter_rows(named=True)))


def frame_rows(frame: pl.DataFrame) -> list[SftRow]:
    """The conversations of a frame with the columns of :data:`SCHEMA`, in order; of preferences what their ``messages`` hold."""
    return [SftRow(_messages(record["messages"]), **_beside(record)) for record in frame.iter_rows(named=True)]


def _frame(rows_file: Path, wanted: RowKind) -> pl.DataFrame:
    found = row_kind_of(rows_file)
    if found is not None and found != wanted:
        raise _other_kind(rows_file, found, wanted)
    columns = [name for name in SCHEMA if wanted != "conversations" or name not in PREFERENCE]
    with _readable(rows_file):
        return scan_rows(rows_file).select(columns).collect()


def _other_kind(rows_file: Path, found: RowKind, wanted: RowKind) -> DataError:
    if found == "prompts":
        places = pl.read_parquet(rows_file, columns=["file", "line"], n_rows=1).rows()
        first = "".join(f" (the first, {file}:{line}, has none)" for file, line in places)
        problem = f"{wanted} with replies are needed here{first}"
        fix = "give rows that have replies, or let a model write them first"
    elif wanted == "conversations":
        problem, fix = "conversations are needed here", "set rows: conversations in the data stage"
    elif (found, wanted) == ("pairs", "feedback"):
        problem, fix = "this objective needs feedback", "set rows: feedback in the data stage"
    else:
        problem, fix = f"this objective needs {wanted}", f"give the data stage a source of {wanted}"
    return DataError(
        f"these rows are {found}, but {problem}", where=str(rows_file), fix=f"{fix}; see docs/data-preferences.md"
    )


@contextmanager
def _readable(rows_file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"can't read these rows: {error}",
            where=str(rows_file),
            fix="remove the folder of this stage and run the recipe again",
        ) from error


def conversations(block: pl.DataFrame) -> Iterator[tuple[Message, ...]]:
    """The turns of every row of a block of rows (its column ``messages``)."""
    yield from map(_messages, block["messages"].to_list())


def rejected_sides(block: pl.DataFrame) -> Iterator[tuple[Message, ...]]:
    """The turns of the rejected side of every pair of a block of rows (its column ``rejected``)."""
    yield from map(_messages, block["rejected"].to_list())


def compared_texts(block: pl.DataFrame, fields: Fields) -> list[str]:
    """:func:`posttrain.data.text.compared_text` of every row of a block of rows (its column ``messages``)."""
    turn = pl.element().struct
    chosen = pl.element().filter(turn.field("role").is_in(COMPARED_ROLES[fields])).struct.field("content")
    return block.select(pl.col("messages").list.eval(chosen).list.join("\n")).to_series().to_list()


def _beside(record: Mapping[str, Any]) -> dict[str, Any]:
    origin = Origin(record["file"], record["line"])
    tools, meta = json.loads(record["tools"]), json.loads(record["meta"])
    return {"origin": origin, "source": record["source"], "tools": tuple(tools), "meta": meta}


def _messages(structs: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(map(_message, structs))


def _message(struct: dict[str, Any]) -> Message:
    written = struct["tool_calls"]
    calls = () if written == "[]" else tuple(ToolCall(**call) for call in json.loads(written))
    return Message(**(struct | {"tool_calls": calls}))


def _turns_column(talks: Sequence[tuple[Message, ...]]) -> pl.Series:
    """The turns of every row, one at least, as one column of lists of structs.

    Flat columns grouped again by row: built from nested Python values, polars takes ten times as long and keeps
    four times the memory.
    """
    turns = [turn for talk in talks for turn in talk]
    columns: dict[str, Any] = {name: [getattr(turn, name) for turn in turns] for name in _MESSAGE}
    columns["tool_calls"] = [_calls_json(calls) if calls else "[]" for calls in columns["tool_calls"]]
    columns["row"] = np.repeat(np.arange(len(talks)), [len(talk) for talk in talks])
    flat = pl.DataFrame(columns, schema={**_MESSAGE, "row": pl.Int64})
    grouped = flat.group_by("row", maintain_order=True).agg(pl.struct(list(_MESSAGE)).alias("messages"))
    return grouped["messages"]


def _calls_json(calls: Sequence[ToolCall]) -> str:
    return _json([{key: value for key, value in asdict(call).items() if value is not None} for call in calls])


def _json(value: Any) -> str:
    if not value:
        return "[]" if isinstance(value, list) else "{}"
    return _ENCODER.encode(value)
