"""The rows of a file one after the other from any place on, each as it was read or with the reason why it can't be.

Nothing is held: a file of a gigabyte is opened as fast as a small one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import polars as pl

from posttrain.artifacts import Ledger, Reject
from posttrain.board.row_sets import RowSet
from posttrain.board.row_source import Shown, Sieve, Source
from posttrain.data.formats import FORMATS, NoFormatError
from posttrain.data.formats.drafts import PairRule
from posttrain.data.reading import Reading, known_format, parse
from posttrain.data.rows import LINEAGE, REQUIRED, row_of, scan_rows
from posttrain.data.sniff import sniff
from posttrain.data.sources import Raw, Record, parsed, read_raw
from posttrain.data.steps import BLOCK_ROWS, count_rows
from posttrain.data.streams import Stream, printable
from posttrain.report.reading import read_ledger
from posttrain.types import Message, SftRow

LONGEST_TEXT = 20_000
"""Characters of a damaged line that are shown."""
_LINES_AT_ONCE = 2_000
_QUICK_COUNT = 8_000_000
"""Bytes of a file whose records are counted by reading them."""


def source_of(rows: RowSet) -> Source:
    """How a file is read. Raises DataError where it can't be read as a whole."""
    name = rows.path.name
    if name == "ledger.json":
        return AccountSource(rows)
    if rows.path.suffix == ".parquet" and is_rows_file(rows.path):
        return RowsFileSource(rows)
    if rows.role == "table" or name == "dropped.jsonl":
        return RecordSource(rows, _dropped if name == "dropped.jsonl" else _plain)
    if rows.role == "replies":
        return RecordSource(rows, _reply)
    return ForeignSource(rows)


def is_rows_file(path: Path) -> bool:
    """Whether a Parquet file holds rows as posttrain writes them."""
    try:
        return set(pl.scan_parquet(path, glob=False).collect_schema()) >= REQUIRED
    except (OSError, pl.exceptions.PolarsError):
        return False


# ---- files of others -----------------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    """How a file is read."""

    kind: str
    """Of `posttrain.data.sniff`."""
    compressed: bool
    reading: Reading | None = None
    whole: Sequence[Raw] | None = None
    """All records, where one object holds them as columns."""


@lru_cache(maxsize=64)
def _opened(of: RowSet) -> _Opened:
    """Read the first records of a file for its format."""
    file, label, stream = of.file, of.name, Stream(of.path)
    kind = sniff(stream, label)
    first = list(islice(read_raw(file), 2))
    whole = None
    try:
        name, records = known_format(read_raw(file), label, "auto")
        if len(first) == 1:
            whole = list(records)
        reading = Reading(label, name, FORMATS[name].kind if name else "conversations", "", PairRule(), detected=True)
    except NoFormatError as error:
        reading = Reading(label, None, "conversations", "", PairRule(), unfit=error.problem)
    return _Opened(kind, stream.compressed, reading, whole)


@dataclass(frozen=True)
class ForeignSource:
    """A file of any format that the data chain reads."""

    of: RowSet

    def _how(self) -> _Opened:
        return _opened(self.of)

    def rows(self, at: int, sieve: Sieve) -> Iterator[Shown | int]:
        """Each with its row; one that can't be read with its reason."""
        how = self._how()
        assert how.reading is not None
        records = read_raw(self.of.file, skip=at) if how.whole is None else iter(how.whole[at:])
        for found in _from(records, at, sieve):
            if isinstance(found, int):
                yield found
                continue
            place, raw = found
            record = parsed(raw, self.of.name)
            if isinstance(record, Reject):
                text = raw[1].decode("utf-8", "replace")[:LONGEST_TEXT] if isinstance(raw, tuple) else None
                shown = _rejected(place, record, text)
            else:
                made = parse(record, how.reading)
                if isinstance(made, Reject):
                    shown = _rejected(place, made, record.value)
                else:
                    facts = {"more": len(made) - 1} if len(made) > 1 else {}
                    shown = Shown(place, record.origin, made[0], record.value, facts=facts)
            if sieve.lets(shown):
                yield shown

    def count(self) -> int | None:
        """As `Source.count`."""
        how = self._how()
        return len(how.whole) if how.whole is not None else _count(self.of, how.kind, how.compressed)


def _rejected(at: int, reject: Reject, record: Any) -> Shown:
    return Shown(at, reject.origin, None, record, reject.step, reject.reason, printable(reject.detail))


def _from(records: Iterator[Raw], at: int, sieve: Sieve) -> Iterator[tuple[int, Raw] | int]:
    """(place, record) of those that may be wanted; the place alone now and then."""
    for number, raw in enumerate(records):
        place = raw[0] - 1 if isinstance(raw, tuple) else at + number
        if not isinstance(raw, tuple) or sieve.may_hold(raw[1]):
            yield place, raw
        if number % _LINES_AT_ONCE == _LINES_AT_ONCE - 1:
            yield place + 1


@lru_cache(maxsize=256)
def _count(of: RowSet, kind: str, compressed: bool) -> int | None:
    if kind == "parquet":
        return count_rows(of.path)
    if kind == "lines" and not compressed:
        return count_lines(of.path)
    return sum(1 for _ in read_raw(of.file)) if of.size <= _QUICK_COUNT and not compressed else None


def count_lines(path: Path) -> int:
    """Lines of a file, the last one also where no line feed ends it."""
    count, last = 0, b"\n"
    for block in Stream(path).blocks():
        count += block.count(b"\n")
        last = block[-1:] or last
    return count + (last != b"\n")


# ---- lines of records ----------------------------------------------------------------------------------------------


class _Made(Protocol):
    def __call__(self, at: int, record: Record) -> Shown: ...


@dataclass(frozen=True)
class RecordSource:
    """A file of posttrain's own whose lines or rows are not for training: replies, verdicts, tables."""

    of: RowSet
    made: _Made

    def rows(self, at: int, sieve: Sieve) -> Iterator[Shown | int]:
        """As `Source.rows`."""
        for found in _from(read_raw(self.of.file, skip=at), at, sieve):
            if isinstance(found, int):
                yield found
                continue
            place, raw = found
            record = parsed(raw, self.of.name)
            shown = _rejected(place, record, None) if isinstance(record, Reject) else self.made(place, record)
            if sieve.lets(shown):
                yield shown

    def count(self) -> int | None:
        """As `Source.count`."""
        return _count(self.of, "parquet" if self.of.path.suffix == ".parquet" else "lines", compressed=False)


def _plain(at: int, record: Record) -> Shown:
    return Shown(at, record.origin, None, record.value)


def _dropped(at: int, record: Record) -> Shown:
    """A line of what a synthesis dropped: step, reason, detail and the text of the answer."""
    text, step, reason, detail = (str(record.value.get(key, "")) for key in ("text", "step", "reason", "detail"))
    return Shown(at, record.origin, None, text, step, reason, detail)


_REPLY_FACTS = ("model", "category", "language", "tokens", "values", "remark", "failure", "prompt_id", "sample")


def _reply(at: int, record: Record) -> Shown:
    """What a model said to a prompt (`posttrain.tasks.records.TaskRow`): a conversation where it said something."""
    found = record.value
    turns, replies = found.get("turns") or (), found.get("replies") or ()
    said = []
    for number, turn in enumerate(turns):
        said += [Message("user", str(turn)), *(Message("assistant", str(one)) for one in replies[number : number + 1])]
    row = SftRow(tuple(said), record.origin, str(found.get("model", ""))) if said else None
    return Shown(at, record.origin, row, found, facts={key: found[key] for key in _REPLY_FACTS if key in found})


# ---- rows as posttrain writes them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowsFileSource:
    """A rows file of a stage or a step, with what its rows carry; of rejects also why they went."""

    of: RowSet

    def rows(self, at: int, sieve: Sieve) -> Iterator[Shown | int]:
        """As `Source.rows`; rows that are not wanted never become values of Python."""
        frame, total = scan_rows(self.of.path), count_rows(self.of.path)
        size = BLOCK_ROWS if sieve else 256
        while at < total:
            block = frame.slice(at, size).with_row_index("at", at).filter(_wanted(sieve, frame)).collect()
            yield from map(_row_shown, block.iter_rows(named=True))
            at = min(at + size, total)
            yield at

    def count(self) -> int | None:
        """As `Source.count`."""
        return count_rows(self.of.path)


def _row_shown(record: dict[str, Any]) -> Shown:
    facts = {key: record[key] for key in ("id", *LINEAGE, "twin") if record.get(key) not in (None, [])}
    row = row_of(record)
    about = {key: record.get(key) or "" for key in ("step", "reason", "detail")}
    return Shown(record["at"], row.origin, row, None, facts=facts, **about)


def _wanted(sieve: Sieve, frame: pl.LazyFrame) -> pl.Expr:
    columns = frame.collect_schema()
    wanted = pl.lit(True)
    for name in ("split", "reason"):
        if value := getattr(sieve, name):
            wanted &= pl.col(name).eq(value).fill_null(False) if name in columns else pl.lit(False)
    if sieve.model:
        wanted &= pl.lit(False)
    if sieve.text:
        turn = pl.element().struct
        parts = [turn.field(name) for name in ("content", "reasoning", "tool_calls")]
        text = pl.concat_str(parts, separator="\n", ignore_nulls=True)
        found = (pl.col(side).list.eval(text).list.join("\n").str.to_lowercase() for side in ("messages", "rejected"))
        wanted &= pl.any_horizontal(
            *(one.str.contains(sieve.text.lower(), literal=True).fill_null(False) for one in found)
        )
    return wanted


# ---- the account of a stage ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AccountSource:
    """The dropped rows that the ledger of a stage names: where each stood, and why it went; its text is elsewhere."""

    of: RowSet

    def rows(self, at: int, sieve: Sieve) -> Iterator[Shown | int]:
        """As `Source.rows`."""
        for place, reject in islice(enumerate(_ledger(self.of).rejects), at, None):
            shown = _rejected(place, reject, None)
            if sieve.lets(shown):
                yield shown

    def count(self) -> int | None:
        """As `Source.count`."""
        return len(_ledger(self.of).rejects)


@lru_cache(maxsize=4)
def _ledger(of: RowSet) -> Ledger:
    return read_ledger(of.path)
