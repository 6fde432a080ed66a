"""Raw records of files, demo assets and hub data sets, one by one, each with its place.

A thing that can't be read as a record becomes a :class:`Reject` of the step ``read`` and costs nothing but itself; only a source that
can't be read as a whole (missing, empty, of an unknown kind) is a DataError. What a record means is decided later, by
``posttrain.data.formats``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.artifacts import Reject, digest, file_digest
from posttrain.data.formats.columns import rows_of_columns
from posttrain.data.json_array import DECODER, Element, describe, iterate_array, iterate_values
from posttrain.data.places import DataFile, HubSet
from posttrain.data.sniff import Kind, sniff
from posttrain.data.streams import Stream, Tick
from posttrain.data.tabular import Row, read_arrow, read_cells, read_parquet
from posttrain.errors import DataError
from posttrain.types import Origin

_TICK_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object, Parquet row or CSV row, as read."""

    origin: Origin
    value: Mapping[str, Any]


Line = tuple[int, bytes]
"""The 1-based number of a line of a JSON Lines file and its bytes, not parsed yet: that is work for whoever gets it."""
Raw = Line | Record | Reject


def parsed(raw: Raw, label: str) -> Record | Reject:
    """What was read, of a line its record; ``label``: the file."""
    if not isinstance(raw, tuple):
        return raw
    number, line = raw
    # bytes that are not UTF-8 become lone surrogates: they cost a row only where they stand in its text
    text = line.decode("utf-8", "surrogateescape").lstrip("\ufeff")
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return Reject(Origin(label, number), "read", "broken_json", describe(error))
    return _record(Origin(label, number), value)


# ---- reading -------------------------------------------------------------------------------------------------------


def read(part: DataFile | HubSet, tick: Tick | None = None) -> Iterator[Record | Reject]:
    """The records of one file or hub data set, in order; see :func:`read_raw`."""
    return (parsed(raw, part.label) for raw in read_raw(part, tick))


def read_whole(part: DataFile | HubSet, problem: str, fix: str) -> Iterator[Record]:
    """The records of one file or hub data set, in order. Raises DataError at the first that can't be read: ``problem``, and why."""
    for record in read(part):
        if isinstance(record, Reject):
            raise DataError(f"{problem}{record.reason}: {record.detail}", where=str(record.origin), fix=fix)
        yield record


def read_raw(part: DataFile | HubSet, tick: Tick | None = None, skip: int = 0) -> Iterator[Raw]:
    """The records of one file or hub data set, in order; lines of JSON as they are.

    ``skip``: so many lines, elements or rows at the beginning are passed over (lines, and rows of Parquet and Arrow, are not even parsed).

    The line of an origin is the 1-based line where a JSON row starts; in a JSON array whose first element stands on the
    line of its bracket it is the 1-based element number; in CSV, Parquet and Arrow files and hub data sets the 1-based number
    of the row (without the header). ``tick(done, total)`` is called now and then, in bytes on disk or in rows.

    Raises DataError where the part as a whole can't be read.
    """
    if isinstance(part, HubSet):
        yield from itertools.islice(_hub(part, tick), skip, None)
        return
    try:
        stream, last = Stream(part.path, tick), 0
        for raw in _READERS[sniff(stream, part.label)](stream, part.label, skip):
            last = raw[0] if isinstance(raw, tuple) else raw.origin.line
            yield raw
        if stream.damage is not None:
            yield Reject(Origin(part.label, last + 1), "read", "damaged_file", stream.damage)
    except OSError as error:
        raise _unreadable(part, error) from error


def _record(origin: Origin, value: Any) -> Record | Reject:
    if isinstance(value, dict):
        return Record(origin, value)
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        if len(value) == 1:
            return Record(origin, value[0])  # an object in brackets of its own
        return Record(origin, {"messages": value})  # a row that is a list of turns
    try:
        written = str(value)[:80]
    except RecursionError:
        written = "nested too deeply to be written out"
    return Reject(origin, "read", "not_an_object", f"{type(value).__name__}: {written}")


def _is_turn(value: Any) -> bool:
    """Whether a value is a turn of a conversation and nothing more."""
    return isinstance(value, dict) and value.keys() in ({"role", "content"}, {"from", "value"})


def _lines(stream: Stream, label: str, skip: int) -> Iterator[Line]:
    for number, line in enumerate(stream.lines(skip), skip + 1):
        if line and not line.isspace():
            yield number, line


def _array(stream: Stream, label: str) -> Iterator[Record | Reject]:
    """The elements of an array, or the one conversation whose turns they are."""
    elements = iterate_array(stream.blocks())
    first = next(elements, None)
    if first is None:
        return
    if _is_turn(first.value):
        turns = [first, *elements]
        if all(_is_turn(turn.value) for turn in turns):
            yield Record(Origin(label, 1), {"messages": [turn.value for turn in turns]})
            return
        elements = iter(turns[1:])
    for element in itertools.chain([first], elements):
        yield _element(element, Origin(label, element.number if first.line == 1 else element.line))


def _values(stream: Stream, label: str) -> Iterator[Record | Reject]:
    """Objects one after the other; one alone that holds columns gives a record for each of their rows."""
    found = iterate_values(stream.blocks())
    first, second = next(found, None), next(found, None)
    if first is not None and second is None and (rows := rows_of_columns(first.value, alone=True)) is not None:
        yield from (Record(Origin(label, number), row) for number, row in enumerate(rows, 1))
        return
    for element in itertools.chain(filter(None, (first, second)), found):
        yield _element(element, Origin(label, element.line))


def _element(element: Element, origin: Origin) -> Record | Reject:
    if element.error is not None:
        return Reject(origin, "read", "broken_json", f"element {element.number}: {element.error}")
    return _record(origin, element.value)


def _table(rows: Iterator[Row], label: str, reason: str, skipped: int = 0) -> Iterator[Record | Reject]:
    for number, row in enumerate(rows, skipped + 1):
        origin = Origin(label, number)
        yield Reject(origin, "read", reason, row) if isinstance(row, str) else Record(origin, row)


_READERS: Mapping[Kind, Callable[[Stream, str, int], Iterator[Raw]]] = {
    "array": lambda stream, label, skip: itertools.islice(_array(stream, label), skip, None),
    "values": lambda stream, label, skip: itertools.islice(_values(stream, label), skip, None),
    "lines": _lines,
    "cells": lambda stream, label, skip: itertools.islice(
        _table(read_cells(stream, label), label, "broken_csv"), skip, None
    ),
    "parquet": lambda stream, label, skip: _table(
        read_parquet(stream.path, label, stream.tick, skip), label, "damaged_file", skip
    ),
    "arrow": lambda stream, label, skip: _table(read_arrow(stream, label, skip), label, "damaged_file", skip),
}


def content_of(parts: Iterable[DataFile | HubSet]) -> str:
    """Digest of the content of all parts of a source: the sha256 of a file's bytes, the commit of a hub data set.

    Raises DataError where one can't be read.
    """
    return digest([_content_digest(part) for part in parts])


def _content_digest(part: DataFile | HubSet) -> str:
    if isinstance(part, HubSet):
        return hub_revision(part)
    try:
        return file_digest(part.path)
    except OSError as error:
        raise _unreadable(part, error) from error


def _unreadable(file: DataFile, error: OSError) -> DataError:
    return DataError(f"can't read the file: {error.strerror or error}", where=file.label, fix="check its permissions")


# ---- the hub -------------------------------------------------------------------------------------------------------


def hub_revision(part: HubSet) -> str:
    """The commit a hub data set is at now: the identity of its content."""
    try:
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(part.name).sha)
    except Exception as error:  # the hub's client raises many kinds; all mean the same to the user
        raise _hub_error(part, error) from error


def _hub(part: HubSet, tick: Tick | None) -> Iterator[Record | Reject]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "no such file or folder; reading a hub data set needs the datasets library",
            where=part.name,
            fix="pip install 'posttrain[hub]', or give the path of a file",
        ) from error
    try:
        rows = datasets.load_dataset(
            part.name, part.config, split=part.split, streaming=True, revision=hub_revision(part)
        )
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
