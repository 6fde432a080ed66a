"""Raw records of files, folders, demo assets and hub data sets, one by one, each with its place.

A thing that can't be read as a record becomes a :class:`BadRecord` and costs nothing but itself; only a source that
can't be read as a whole (missing, empty, of an unknown kind) is a DataError. What a record means is decided later, by
``posttrain.data.formats``.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from posttrain.artifacts import file_digest
from posttrain.data.json_array import describe, iterate_array
from posttrain.data.streams import COMPRESSED_SUFFIXES, Stream, Tick, printable
from posttrain.errors import DataError
from posttrain.table import did_you_mean
from posttrain.types import Origin

Kind = Literal["array", "lines", "csv", "parquet"]
Resolve = Callable[[str], Path | None]
"""The path of a named demo asset, or None where there is no such name."""

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
_KNOWN = ".json, .jsonl or .ndjson, .csv (each also .gz, .bz2, .xz, .zst), .parquet"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PARQUET_ROWS = 16_384
_TICK_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object, Parquet row or CSV row, as read."""

    origin: Origin
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """Something that is not a record: where, why (a short fixed reason), and the detail of this case."""

    origin: Origin
    reason: str
    detail: str


class RawLine(NamedTuple):
    """One line of a JSON Lines file, not parsed yet: that is work for whoever gets it."""

    origin: Origin
    line: bytes

    def parsed(self) -> Record | BadRecord:
        """The record of the line."""
        # bytes that are not UTF-8 become lone surrogates: they cost a row only where they stand in its text
        text = self.line.decode("utf-8", "surrogateescape").lstrip("\ufeff")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return BadRecord(self.origin, "broken_json", describe(error))
        return _record(self.origin, value)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to read. ``label`` is its name as the user knows it, used in every origin."""

    label: str
    path: Path


@dataclass(frozen=True, slots=True)
class HubSet:
    """A split of a data set on the Hugging Face hub, at one revision."""

    name: str
    split: str

    @property
    def label(self) -> str:
        """The name used in origins."""
        return f"{self.name}[{self.split}]"


@dataclass(frozen=True, slots=True)
class Located:
    """What a source's path stands for: the parts to read, in order, and the files of a folder that are left out."""

    parts: tuple[DataFile | HubSet, ...]
    ignored: tuple[str, ...] = ()


# ---- where the rows are --------------------------------------------------------------------------------------------


def locate(path: str, resolve: Resolve, split: str = "train") -> Located:
    """Find a source: a local file or folder first, then a demo asset, then a hub data set ``org/name``.

    Raises DataError where there is no such thing, or a folder holds no data file.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return _folder(path, local)
    if local.exists():
        return Located((DataFile(path, local),))
    asset = resolve(path)
    if asset is not None:
        return Located((DataFile(path, asset),))
    if _HUB_NAME.fullmatch(path) and not local.parent.is_dir() and _data_suffix(local) is None:
        return Located((HubSet(path, split),))
    siblings = [p.name for p in local.parent.iterdir()] if local.parent.is_dir() else []
    raise DataError(
        f"no such file, folder or demo asset{did_you_mean(local.name, siblings)}",
        where=path,
        fix="give the path of a file or folder, the name of a demo asset, or a hub data set as org/name",
    )


def _folder(label: str, folder: Path) -> Located:
    names = sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    data = [name for name in names if _data_suffix(Path(name)) is not None]
    if not data:
        found = f" (found {', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
        raise DataError(f"the folder holds no data file{found}", where=label, fix=f"put rows into {_KNOWN} files")
    files = tuple(DataFile(printable(f"{label.rstrip('/')}/{name}"), folder / name) for name in data)
    return Located(files, tuple(printable(name) for name in names if name not in set(data)))


def _data_suffix(path: Path) -> str | None:
    """``.json``, ``.csv``, ... of a name, looking below a compression suffix; None where it is no data file's."""
    name = path.name.lower()
    for compressed in COMPRESSED_SUFFIXES:
        name = name.removesuffix(compressed)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def content_digest(part: DataFile | HubSet) -> str:
    """The identity of a part's content: the sha256 of a file's bytes, the commit of a hub data set.

    Raises DataError where it can't be read.
    """
    if isinstance(part, HubSet):
        return hub_revision(part)
    try:
        return file_digest(part.path)
    except OSError as error:
        raise _unreadable(part, error) from error


def _unreadable(file: DataFile, error: OSError) -> DataError:
    return DataError(f"can't read the file: {error.strerror or error}", where=file.label, fix="check its permissions")


# ---- reading -------------------------------------------------------------------------------------------------------


def read(part: DataFile | HubSet, tick: Tick | None = None) -> Iterator[Record | BadRecord]:
    """The records of one file or hub data set, in order; see :func:`read_raw`."""
    for record in read_raw(part, tick):
        yield record.parsed() if isinstance(record, RawLine) else record


def read_raw(part: DataFile | HubSet, tick: Tick | None = None) -> Iterator[RawLine | Record | BadRecord]:
    """The records of one file or hub data set, in order; lines of JSON as they are.

    The line of an origin is the 1-based line where a JSON row starts; in a JSON array whose first element stands on the
    line of its bracket it is the 1-based element number; in CSV and Parquet files and hub data sets the 1-based number
    of the row (without the header). ``tick(done, total)`` is called now and then, in bytes on disk or in rows.

    Raises DataError where the part as a whole can't be read.
    """
    if isinstance(part, HubSet):
        yield from _hub(part, tick)
        return
    try:
        yield from _file(part, tick)
    except OSError as error:
        raise _unreadable(part, error) from error


def _file(file: DataFile, tick: Tick | None) -> Iterator[RawLine | Record | BadRecord]:
    stream = Stream(file.path, tick)
    kind = sniff(stream, file)
    last = 0
    readers: dict[Kind, Callable[[Stream, str], Iterator[RawLine | Record | BadRecord]]]
    readers = {"array": _array, "lines": _lines, "csv": _csv}
    rows = _parquet(file, tick) if kind == "parquet" else readers[kind](stream, file.label)
    for row in rows:
        last = row.origin.line
        yield row
    if stream.damage is not None:
        yield BadRecord(Origin(file.label, last + 1), "damaged_file", stream.damage)


def sniff(stream: Stream, file: DataFile) -> Kind:
    """What kind of file this is, by its first bytes, then by its name. DataError where it is none we read."""
    head, suffix = stream.head, _data_suffix(file.path)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("the file is UTF-16", where=file.label, fix="save it as UTF-8")
    if head.startswith(b"PAR1"):
        if file.path.suffix.lower() in COMPRESSED_SUFFIXES:
            raise DataError("a Parquet file inside a compressed file", where=file.label, fix="decompress it first")
        return "parquet"
    if head.startswith(b"PK\x03\x04"):
        raise DataError("the file is a zip archive", where=file.label, fix="unpack it and give the folder")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        if stream.damage is not None:
            raise DataError(stream.damage, where=file.label, fix="fetch the file again")
        raise DataError("the file is empty", where=file.label, fix="give a file with rows")
    if suffix is None:
        looks = " (its content looks like JSON: rename it to .jsonl)" if text[:1] in (b"{", b"[") else ""
        raise DataError(f"not a data file by its name{looks}", where=file.label, fix=f"use {_KNOWN}")
    if suffix == ".parquet":
        raise DataError("not a Parquet file (it does not begin with PAR1)", where=file.label, fix="write it again")
    if text[:1] == b"[" and not (suffix in (".jsonl", ".ndjson") and _lines_of_lists(text)):
        return "array"
    if text[:1] == b"{" and suffix == ".json" and not _any_object_line(text):
        raise DataError(
            "one JSON object over several lines, not rows",
            where=file.label,
            fix="put the rows into an array [...] or one object on each line",
        )
    if text[:1] == b"{" or suffix in (".jsonl", ".ndjson"):
        return "lines"
    if suffix == ".csv":
        return "csv"
    raise DataError(f"not JSON: it begins with {text[:20]!r}", where=file.label, fix=f"use {_KNOWN}")


def _lines_of_lists(text: bytes) -> bool:
    """Whether the first line is a whole JSON value and other lines follow: JSON Lines, each row a list."""
    first, _, others = text.partition(b"\n")
    return bool(others.strip()) and isinstance(_json_or_none(first), list)


def _any_object_line(text: bytes) -> bool:
    """Whether one of the first lines is an object by itself (or the first is too long to see)."""
    lines = text.split(b"\n")[:50]
    return len(lines) == 1 or any(isinstance(_json_or_none(line), dict) for line in lines)


def _json_or_none(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _record(origin: Origin, value: Any) -> Record | BadRecord:
    if isinstance(value, dict):
        return Record(origin, value)
    return BadRecord(origin, "not_an_object", f"{type(value).__name__}: {str(value)[:80]}")


def _lines(stream: Stream, label: str) -> Iterator[RawLine]:
    for number, line in enumerate(stream.lines(), 1):
        if line and not line.isspace():
            yield RawLine(Origin(label, number), line)


def _array(stream: Stream, label: str) -> Iterator[Record | BadRecord]:
    by_number = False
    for element in iterate_array(stream.blocks()):
        if element.number == 1:
            by_number = element.line == 1
        origin = Origin(label, element.number if by_number else element.line)
        if element.error is not None:
            yield BadRecord(origin, "broken_json", f"element {element.number}: {element.error}")
        else:
            yield _record(origin, element.value)


def _csv(stream: Stream, label: str) -> Iterator[Record | BadRecord]:
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB a cell, is too small for long replies
    text = (f"{line.decode('utf-8', 'surrogateescape')}\n" for line in stream.lines())
    rows = csv.reader(text, strict=True)
    try:
        header = [name.strip("\ufeff") for name in next(rows, [])]
    except csv.Error as error:
        raise DataError(f"broken CSV header: {error}", where=label, fix="name the columns in the first line") from error
    if len(set(header)) < len(header):
        raise DataError(f"a CSV column stands twice in the header: {header}", where=label, fix="give each its own name")
    number = 0
    while True:
        number += 1
        origin, first_line = Origin(label, number), rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            # no second try within these lines: text of a broken cell must not turn into rows
            yield BadRecord(origin, "broken_csv", f"lines {first_line}-{rows.line_num}: {error}")
            continue
        if row is None:
            return
        if not row:
            number -= 1  # a blank line
        elif len(row) != len(header):
            yield BadRecord(
                origin, "broken_csv", f"line {first_line}: {len(row)} cells where the header has {len(header)}"
            )
        else:
            yield Record(origin, dict(zip(header, row, strict=True)))


def _parquet(file: DataFile, tick: Tick | None) -> Iterator[Record]:
    try:
        frame = pl.scan_parquet(file.path, glob=False)
        total = frame.select(pl.len()).collect().item()
        for start in range(0, total, _PARQUET_ROWS):
            rows = frame.slice(start, _PARQUET_ROWS).collect().iter_rows(named=True)
            for number, row in enumerate(rows, start + 1):
                yield Record(Origin(file.label, number), {key: _without_nulls(cell) for key, cell in row.items()})
            if tick is not None:
                tick(min(start + _PARQUET_ROWS, total), total)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"can't read this Parquet file: {error}", where=file.label, fix="write it again") from error


def _without_nulls(cell: Any) -> Any:
    """Parquet gives every struct of a column all its fields: those that are null here were never written."""
    if isinstance(cell, dict):
        return {key: _without_nulls(value) for key, value in cell.items() if value is not None}
    return [_without_nulls(value) for value in cell] if isinstance(cell, list) else cell


# ---- the hub -------------------------------------------------------------------------------------------------------


def hub_revision(part: HubSet) -> str:
    """The commit a hub data set is at now: the identity of its content."""
    try:
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(part.name).sha)
    except Exception as error:  # the hub's client raises many kinds; all mean the same to the user
        raise _hub_error(part, error) from error


def _hub(part: HubSet, tick: Tick | None) -> Iterator[Record | BadRecord]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "no such file or folder; reading a hub data set needs the datasets library",
            where=part.name,
            fix="pip install 'posttrain[hub]', or give the path of a file",
        ) from error
    try:
        rows = datasets.load_dataset(part.name, split=part.split, streaming=True, revision=hub_revision(part))
        for number, row in enumerate(rows, 1):
            yield _record(Origin(part.label, number), row)
            if tick is not None and number % _TICK_ROWS == 0:
                tick(number, 0)
    except DataError:
        raise
    except Exception as error:  # as above: no network, no such set, no such split, a damaged shard
        raise _hub_error(part, error) from error


def _hub_error(part: HubSet, error: Exception) -> DataError:
    reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
    return DataError(
        f"no such file or folder, and the hub data set can't be read: {reason}",
        where=part.label,
        fix="check the name, the split and the network, or download the data set and give its path",
    )
