"""Rows of tables, in order: cells between separators, Parquet, Arrow, block by block."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from posttrain.data.sniff import ARROW_FILE
from posttrain.data.streams import Stream, Tick
from posttrain.errors import DataError

_TABLE_ROWS = 4_096
_BUFFER_BYTES = 1 << 20
_SAMPLE_ROWS = 50
_UNSTORED = 1 << 24
"""Rows that may take no bytes: those of a column of nulls."""
_BROKEN = (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, IndexError, OverflowError)
"""What broken bytes raise: polars takes some for impossible and panics."""


Row = dict[str, Any] | str
"""The cells of a row by column, or why there is none."""


# ---- cells between separators --------------------------------------------------------------------------------------


def read_cells(stream: Stream, label: str) -> Iterator[Row]:
    """The rows of a CSV or TSV file, whose first line names the columns; the separator is found in the first rows."""
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB a cell, is too small for long replies
    reader = _reader(stream.head, tabs_first=".tsv" in stream.path.name.lower())
    rows = reader(f"{_text(line)}\n" for line in stream.lines())
    try:
        header = [name.strip("\ufeff") for name in next(rows, [])]
    except csv.Error as error:
        raise DataError(f"broken CSV header: {error}", where=label, fix="name the columns in the first line") from error
    if len(set(header)) < len(header):
        raise DataError(f"a CSV column stands twice in the header: {header}", where=label, fix="give each its own name")
    while True:
        first_line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            # no second try within these lines: text of a broken cell must not turn into rows
            yield f"lines {first_line}-{rows.line_num}: {error}"
            continue
        if row is None:
            return
        if not row:
            continue  # a blank line
        if len(row) == len(header):
            yield dict(zip(header, row, strict=True))
        else:
            yield f"line {first_line}: {len(row)} cells where the header has {len(header)}"


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _reader(head: bytes, *, tabs_first: bool) -> Callable[[Iterable[str]], Any]:
    """The reader that finds as many cells as in the header in most of the first rows, two at least; of equal ones the first.

    A cell may stand in double quotes, or, between tabs, these are text.
    """
    lines = [f"{_text(line)}\n" for line in head.split(b"\n")]
    lines = lines[:-1] or lines  # the last line may be cut off
    separators = "\t,;" if tabs_first else ",\t;"
    readers = [partial(csv.reader, delimiter=separator, strict=True) for separator in separators]
    readers.append(partial(csv.reader, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True))
    return max(readers, key=lambda reader: _fit(reader(lines)))


def _fit(rows: Any) -> float:
    """Share of the first rows with as many cells as the header; 0 where there is one column, or the header is broken."""
    good = total = 0
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


def read_parquet(path: Path, label: str, tick: Tick | None, skip: int = 0) -> Iterator[Row]:
    """The rows of a Parquet file from row ``skip`` on. Raises DataError where none can be read; what is broken later is reason by the last row."""
    yield from _tolerant(lambda: _scanned(path, tick, skip), label, "Parquet")


def _tolerant(read: Callable[[], Iterator[Row]], label: str, what: str) -> Iterator[Row]:
    """The rows that can be read, and why there are no more of them."""
    any_read = False
    try:
        for row in read():
            any_read = True
            yield row
    except _BROKEN as error:
        reason = str(error).split("\n", 1)[0][:300]
        if not any_read:
            raise DataError(
                f"can't read this {what} file: {reason}", where=label, fix="write or fetch it again"
            ) from error
        yield f"from here on the file is cut off or broken: {reason}"


def _scanned(path: Path, tick: Tick | None, skip: int) -> Iterator[Row]:
    """Row group by row group and inside of one page by page: a group may hold a million rows."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with pa.memory_map(os.fsencode(path)) as source:
            file = ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            first = 0
            done = skip = min(skip, sum(sizes))
            while first < len(sizes) and skip >= sizes[first]:
                skip -= sizes[first]
                first += 1
            for batch in file.iter_batches(_TABLE_ROWS, row_groups=range(first, len(sizes))):
                batch.validate(full=True)
                wanted = batch.slice(skip)
                skip -= batch.num_rows - wanted.num_rows
                done += wanted.num_rows
                yield from _rows(pl.DataFrame(wanted))
                if tick is not None:
                    tick(done, sum(sizes))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


def _rows(frame: pl.DataFrame) -> Iterator[Row]:
    return ({key: _without_nulls(cell) for key, cell in row.items()} for row in frame.iter_rows(named=True))


def _without_nulls(cell: Any) -> Any:
    """A table gives every struct of a column all its fields: those that are null here were never written."""
    if isinstance(cell, dict):
        return {key: _without_nulls(value) for key, value in cell.items() if value is not None}
    return [_without_nulls(value) for value in cell] if isinstance(cell, list) else cell


# ---- Arrow ---------------------------------------------------------------------------------------------------------


def read_arrow(stream: Stream, label: str, skip: int = 0) -> Iterator[Row]:
    """The rows of an Arrow file or stream (what ``save_to_disk`` writes; Feather), as :func:`read_parquet`, batch by batch."""
    yield from _tolerant(lambda: _batch_rows(stream, skip), label, "Arrow")


def _batch_rows(stream: Stream, skip: int) -> Iterator[Row]:
    for batch in _batches(stream):
        for start in range(skip, batch.num_rows, _TABLE_ROWS):
            yield from _rows(pl.DataFrame(batch.slice(start, _TABLE_ROWS)))
        skip = max(0, skip - batch.num_rows)


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
