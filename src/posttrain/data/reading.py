"""From raw records to a file of typed rows, block by block: the part of reading that runs on an engine."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from posttrain.artifacts import Reject
from posttrain.data.formats import RowError, detect_format, read_record
from posttrain.data.formats.columns import Columns, check_paths, renamed, rows_of_columns
from posttrain.data.formats.drafts import PairRule, Ranked
from posttrain.data.rows import rows_frame, write_rows
from posttrain.data.sources import Raw, Record, parsed
from posttrain.types import Message, Origin, PromptRow, Row, RowKind, SftRow, UnpairedRow

_DETECTION_RECORDS = 100


@dataclass(frozen=True, slots=True)
class Reading:
    """How the records of one file become rows."""

    label: str
    """The file."""
    format: str | None
    """None where no record is good."""
    row_kind: RowKind
    """What the rows should be."""
    source: str
    rule: PairRule
    """Which pairs are made of rated answers."""
    columns: Columns = field(default_factory=dict)
    """Which column is what, where it was said."""
    detected: bool = False
    """Whether the format was found, not named: then a record of another format of the same kind is read by that."""
    unfit: str | None = None
    """Why no format fits the file, where its rows are dropped for it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the records of a block, which is all of one file."""

    label: str
    records: int
    ids: list[str]
    """Content ids of the rows that were written."""
    lines: list[int]
    """Where they stood."""
    places: list[int]
    """The place among the records of the one that each row came from; a record may give several rows."""
    unusable: list[tuple[int, Reject]]
    """The others, each with its place among the records."""

    @property
    def used(self) -> int:
        """Records that gave rows."""
        return self.records - len(self.unusable)


class RawBlock(NamedTuple):
    """Some records of one file."""

    number: int
    """Place among all blocks."""
    most: int | None
    """Stop after so many good records."""
    records: list[Raw]


def part_path(parts: Path, number: int) -> Path:
    """The file of a block's rows."""
    return parts / f"{number:06d}.parquet"


def known_format(
    records: Iterator[Raw], label: str, name: str, columns: Columns | None = None
) -> tuple[str | None, Iterator[Raw]]:
    """The name of the records' format, their columns named, and all of the records. None where none of them is
    good, or there is none.

    ``auto`` looks at the first good ones. Raises NoFormatError where no format fits.
    """
    head: list[Raw] = []
    good: list[Record] = []
    for raw in records:
        head.append(raw)
        record = parsed(raw, label)
        if isinstance(record, Record):
            good.append(record)
            if len(good) == _DETECTION_RECORDS:
                break
    if len(head) == len(good) == 1 and (rows := rows_of_columns(good[0].value)) is not None:
        good = [Record(Origin(label, number), row) for number, row in enumerate(rows, 1)]
        head = list(good)
    everything = itertools.chain(head, records)
    if columns and good:
        check_paths([record.value for record in good], columns, label)
    if name != "auto":
        return name, everything
    values = [renamed(record.value, columns or {}) for record in good]
    return detect_format(values, label).name if good else None, everything


def parse(raw: Raw, reading: Reading) -> Sequence[Row] | Reject:
    """The typed rows of one record, one at least."""
    record = parsed(raw, reading.label)
    if isinstance(record, Reject):
        return record
    if reading.unfit is not None:
        return Reject(record.origin, "format", "no_format", reading.unfit)
    assert reading.format is not None, "a good record has a format"
    try:
        value = renamed(record.value, reading.columns)
        found = read_record(value, reading.format, reading.detected, record.origin, reading.source)
        if isinstance(found, SftRow) and reading.row_kind != "prompts":
            return (found,)
        pairs = found.pairs(reading.rule, record.origin, reading.source) if isinstance(found, Ranked) else (found,)
        return [row for pair in pairs for row in rows_as(pair, reading.row_kind)]
    except RowError as rejected:
        return Reject(record.origin, "format", rejected.reason, rejected.detail)


def rows_as(row: Row, row_kind: RowKind) -> tuple[Row, ...]:
    """The row as rows of a kind that can be made of it: of everything prompts, of all with replies conversations, of a pair also two
    judgements.

    The prompt of a conversation is what stands before its last reply. Raises RowError: ``undesirable`` where it says what not to
    imitate, ``empty_prompt`` where nothing stands before a reply.
    """
    beside = (row.origin, row.source, row.tools, row.meta)
    if row_kind == "prompts":
        prompt = _before_reply(row.messages) if isinstance(row, SftRow) else row.prompt
        if not any(turn.content.strip() for turn in prompt if turn.role != "system"):
            raise RowError("empty_prompt", "nothing stands before the reply")
        return (PromptRow(prompt, *beside),)
    if isinstance(row, SftRow | PromptRow) or row_kind == "pairs":
        return (row,)
    if row_kind == "feedback":
        if isinstance(row, UnpairedRow):
            return (row,)
        return tuple(
            UnpairedRow(row.prompt, completion, desirable, *beside)
            for completion, desirable in ((row.chosen, True), (row.rejected, False))
        )
    if isinstance(row, UnpairedRow) and not row.desirable:
        raise RowError("undesirable", "the reply was judged undesirable, and conversations are there to be imitated")
    return (SftRow(row.messages, *beside),)


def _before_reply(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    return messages[:end]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without looks for cycles: records and rows have none, and a tenth of the time of reading went into these looks."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def read_block(parts: Path, reading: Reading, block: RawBlock) -> Outcome:
    """Parse the records of a block, write its good rows (:func:`part_path`), and say what became of each record."""
    rows: list[Row] = []
    places: list[int] = []
    unusable: list[tuple[int, Reject]] = []
    used = 0
    for place, raw in enumerate(block.records):
        found = parse(raw, reading)
        if isinstance(found, Reject):
            unusable.append((place, found))
            continue
        rows += found
        places += [place] * len(found)
        used += 1
        if used == block.most:
            break
    ids = [row.id for row in rows]
    write_rows(part_path(parts, block.number), rows_frame(rows, ids), compression="lz4")
    return Outcome(reading.label, used + len(unusable), ids, [row.origin.line for row in rows], places, unusable)
