"""Rows of tables: cells between separators, Parquet, Arrow. Each row with its 1-based number, block by block."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from posttrain.data.sniff import ARROW_FILE
from posttrain.data.streams import Stream, Tick, printable
from posttrain.errors import DataError

_TABLE_ROWS = 16_384
_SAMPLE_ROWS = 50
_UNSTORED = 1 << 24
"""Rows that may take no bytes: those of a column of nulls."""
_BROKEN = (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, IndexError, OverflowError)
"""What broken bytes raise: polars takes some for impossible and panics."""


class Row(NamedTuple):
    """A row: its number and its cells by column; or, where ``broken`` says why, no row."""

    number: int
    cells: dict[str, Any]
    broken: str | None = None


# ---- cells between separators --------------------------------------------------------------------------------------


class Dialect(NamedTuple):
    """How lines are cut into cells."""

    separator: str
    quoted: bool
    """Whether a cell may stand in double quotes; otherwise they are text."""


def read_cells(stream: Stream, label: str) -> Iterator[Row]:
    """The rows of a CSV or TSV file, whose first line names the columns; the separator is found in the first rows."""
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB a cell, is too small for long replies
    dialect = _dialect(stream.head, tabs_first=".tsv" in stream.path.name.lower())
    rows = _reader((f"{_text(line)}\n" for line in stream.lines()), dialect)
    try:
        header = [name.strip("\ufeff") for name in next(rows, [])]
    except csv.Error as error:
        raise DataError(f"broken CSV header: {error}", where=label, fix="name the columns in the first line") from error
    if len(set(header)) < len(header):
        raise DataError(f"a CSV column stands twice in the header: {header}", where=label, fix="give each its own name")
    number = 0
    while True:
        number += 1
        first_line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            # no second try within these lines: text of a broken cell must not turn into rows
            yield Row(number, {}, f"lines {first_line}-{rows.line_num}: {error}")
            continue
        if row is None:
            return
        if not row:
            number -= 1  # a blank line
        elif len(row) != len(header):
            yield Row(number, {}, f"line {first_line}: {len(row)} cells where the header has {len(header)}")
        else:
            yield Row(number, dict(zip(header, row, strict=True)))


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _reader(lines: Iterable[str], dialect: Dialect) -> Any:
    if dialect.quoted:
        return csv.reader(lines, delimiter=dialect.separator, strict=True)
    return csv.reader(lines, delimiter=dialect.separator, quoting=csv.QUOTE_NONE, strict=True)


def _dialect(head: bytes, *, tabs_first: bool) -> Dialect:
    """The dialect in which most of the first rows have as many cells as the header, two at least; of equal ones the first."""
    lines = [f"{_text(line)}\n" for line in head.split(b"\n")]
    lines = lines[:-1] or lines  # the last line may be cut off
    separators = "\t,;" if tabs_first else ",\t;"
    dialects = [Dialect(one, True) for one in separators] + [Dialect("\t", False)]
    fits = [_fit(lines, dialect) for dialect in dialects]
    return dialects[fits.index(max(fits))]


def _fit(lines: Sequence[str], dialect: Dialect) -> float:
    """Share of the first rows with as many cells as the header; 0 where there is one column, or the header is broken."""
    rows, good, total = _reader(lines, dialect), 0, 0
    try:
        columns = len(next(rows, []))
    except csv.Error:
        return 0.0
    while total < _SAMPLE_ROWS:
        try:
            row = next(rows, None)
        except csv.Error:
            total += 1
            continue
        if row is None:
            break
        total += bool(row)
        good += len(row) == columns
    return (good + 1) / (total + 1) if columns > 1 else 0.0


# ---- Parquet -------------------------------------------------------------------------------------------------------


def read_parquet(path: Path, label: str, tick: Tick | None) -> Iterator[Row]:
    """The rows of a Parquet file. Raises DataError where none can be read; what is broken later is reason by the last row."""
    yield from _tolerant(lambda: _scanned(pl.scan_parquet(_readable(path), glob=False), tick), label, "Parquet")


def _tolerant(read: Callable[[], Iterator[Row]], label: str, what: str) -> Iterator[Row]:
    """The rows that can be read, and why there are no more of them."""
    number = 0
    try:
        for row in read():
            yield row
            number = row.number
    except _BROKEN as error:
        reason = str(error).split("\n", 1)[0][:300]
        if not number:
            raise DataError(
                f"can't read this {what} file: {reason}", where=label, fix="write or fetch it again"
            ) from error
        yield Row(number + 1, {}, f"from here on the file is cut off or broken: {reason}")


def _readable(path: Path) -> Path | io.BytesIO:
    """The path, or the content of the file where its name is not UTF-8, which polars does not take."""
    return path if printable(str(path)) == str(path) else io.BytesIO(path.read_bytes())


def _scanned(frame: pl.LazyFrame, tick: Tick | None) -> Iterator[Row]:
    total = frame.select(pl.len()).collect().item()
    for start in range(0, total, _TABLE_ROWS):
        yield from _rows(frame.slice(start, _TABLE_ROWS).collect(), start)
        if tick is not None:
            tick(min(start + _TABLE_ROWS, total), total)


def _rows(frame: pl.DataFrame, before: int) -> Iterator[Row]:
    for number, row in enumerate(frame.iter_rows(named=True), before + 1):
        yield Row(number, {key: _without_nulls(cell) for key, cell in row.items()})


def _without_nulls(cell: Any) -> Any:
    """A table gives every struct of a column all its fields: those that are null here were never written."""
    if isinstance(cell, dict):
        return {key: _without_nulls(value) for key, value in cell.items() if value is not None}
    return [_without_nulls(value) for value in cell] if isinstance(cell, list) else cell


# ---- Arrow ---------------------------------------------------------------------------------------------------------


def read_arrow(stream: Stream, label: str) -> Iterator[Row]:
    """The rows of an Arrow file or stream (what ``save_to_disk`` writes; Feather), as :func:`read_parquet`, batch by batch."""
    yield from _tolerant(lambda: _batch_rows(stream), label, "Arrow")


def _batch_rows(stream: Stream) -> Iterator[Row]:
    before = 0
    for batch in _batches(stream):
        for start in range(0, batch.num_rows, _TABLE_ROWS):
            frame = pl.DataFrame(batch.slice(start, _TABLE_ROWS))
            yield from _rows(frame, before)
            before += len(frame)


def _batches(stream: Stream) -> Iterator[Any]:
    """The batches of pyarrow, each checked. A file that is cut off before its index is read as the stream it holds."""
    import pyarrow as pa  # here: few sources need it
    from pyarrow import ipc

    try:
        if stream.compressed:
            source = pa.BufferReader(b"".join(stream.blocks()))
        else:
            source = pa.memory_map(os.fsencode(stream.path))
        try:
            file = ipc.open_file(source)
            batches = map(file.get_batch, range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(len(ARROW_FILE) if stream.head.startswith(ARROW_FILE) else 0)
            batches = ipc.open_stream(source)
        for batch in batches:
            batch.validate(full=True)
            if batch.num_rows > 8 * batch.nbytes + _UNSTORED:
                raise ValueError(f"{batch.num_rows} rows in {batch.nbytes} bytes")
            yield batch
            if stream.tick is not None:
                stream.tick(source.tell(), source.size())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
