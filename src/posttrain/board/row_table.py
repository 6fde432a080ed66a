"""A page of rows as short lines, one whole row, how many there are, how long they are, and where a dropped row's text still is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from posttrain.board.row_readers import RowsFileSource, is_rows_file, source_of
from posttrain.board.row_sets import RowSet, original
from posttrain.board.row_source import Shown, Sieve, Source
from posttrain.data.profile import length_summary, main_language
from posttrain.data.profile_records import Lengths
from posttrain.data.rows import row_of, scan_rows
from posttrain.data.text import tokens
from posttrain.errors import DataError
from posttrain.table import grouped
from posttrain.types import Message, Origin, PairRow, PromptRow, Row, RowKind, SftRow, UnpairedRow

EXCERPT = 180
"""Characters of a text in a line."""
EVERYTHING = Sieve()
PATIENCE = 1.5
"""Seconds that a search goes on before it says how far it has come."""
_KINDS: Mapping[type, RowKind] = {
    SftRow: "conversations",
    PairRow: "pairs",
    UnpairedRow: "feedback",
    PromptRow: "prompts",
}


@dataclass(frozen=True, slots=True)
class RowLine:
    """A row in a table."""

    at: int
    origin: Origin
    kind: RowKind | None
    """None where it is no row."""
    prompt: str
    """The beginning of what the user asked first; of what is no row, of the record."""
    reply: str = ""
    """The beginning of the last reply, of a pair of the chosen one."""
    rejected: str = ""
    characters: int | None = None
    """Of all turns; None where the text is not here."""
    tokens: int | None = None
    """Of a model where they were counted (replies), else of the comparison tokenizer: words and CJK characters."""
    language: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    step: str = ""
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RowPage:
    """Some rows of a file, one after the other."""

    rows: tuple[Shown, ...]
    at: int
    after: int | None
    """Where to go on; None at the end."""
    found_all: bool
    """Whether the page ended because it is full or there are no more; False where the search ran out of patience."""

    @property
    def lines(self) -> tuple[RowLine, ...]:
        """The rows as lines of a table."""
        return tuple(map(line_of, self.rows))


def page(source: Source, at: int, limit: int, sieve: Sieve = EVERYTHING, patience: float = PATIENCE) -> RowPage:
    """Up to ``limit`` rows from a place on that a sieve lets through.

    Raises DataError where the file can't be read.
    """
    until, shown, after, full = time.monotonic() + patience, list[Shown](), at, False
    with readable():
        for found in source.rows(at, sieve):
            if isinstance(found, int):
                after = found
            else:
                if full:
                    return _page(shown, at, after, found_all=True)
                after = found.at + 1
                if not sieve.language or language_of(found) == sieve.language:
                    shown.append(found)
                full = len(shown) == limit
            if sieve and time.monotonic() > until:
                return _page(shown, at, after, found_all=full)
    return _page(shown, at, None, found_all=True)


def _page(shown: Sequence[Shown], at: int, after: int | None, *, found_all: bool) -> RowPage:
    return RowPage(tuple(shown), at, after, found_all)


@contextmanager
def readable() -> Iterator[None]:
    """Make what polars raises the one error that everything here raises."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).split("\n", 1)[0][:300]
        raise DataError(f"can't read these rows: {reason}", fix="look whether the file is whole") from error


def line_of(one: Shown) -> RowLine:
    """A row as a line of a table."""
    about: dict[str, Any] = {key: getattr(one, key) for key in ("at", "origin", "facts", "step", "reason", "detail")}
    if one.row is None:
        text = one.text
        return RowLine(kind=None, prompt=excerpt(text), characters=one.characters or None, **about)
    row, known = one.row, one.facts.get("tokens")
    said = one.text
    asked = next((turn.content for turn in row.messages if turn.role == "user"), row.messages[0].content)
    return RowLine(
        kind=_KINDS[type(row)],
        prompt=excerpt(asked),
        reply=excerpt(_last(row.messages) if not isinstance(row, PromptRow) else ""),
        rejected=excerpt(_last(row.rejected) if isinstance(row, PairRow) else ""),
        characters=one.characters,
        tokens=known if isinstance(known, int) else len(tokens(said)),
        language=language_of(one),
        **about,
    )


def _last(messages: Sequence[Message]) -> str:
    """The last reply."""
    return next((turn.content or _calls(turn) for turn in reversed(messages) if turn.role == "assistant"), "")


def _calls(turn: Message) -> str:
    return ", ".join(f"{call.name} {call.arguments}" for call in turn.tool_calls)


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    short = " ".join(text[: 4 * EXCERPT].split())
    return short if len(short) <= EXCERPT and len(text) <= 4 * EXCERPT else f"{short[:EXCERPT].rstrip()} ..."


def language_of(one: Shown) -> str:
    """The language of a row: what it says itself, or what its prose is."""
    said = one.facts.get("language")
    if isinstance(said, str) or one.row is None:
        return str(said or "")
    return main_language(one.row.messages)


def row_at(source: Source, at: int) -> Shown | None:
    """The row at a place (after blank lines the next one); None behind the last one. Raises DataError as `page`."""
    return next(iter(rows_from(source, at, 1)), None)


def rows_from(source: Source, at: int, number: int) -> list[Shown]:
    """So many rows from a place on, fewer at the end. Raises DataError as `page`."""
    with readable():
        return list(islice((one for one in source.rows(at, EVERYTHING) if isinstance(one, Shown)), number))


class Choices(NamedTuple):
    """What the rows of a file can be sifted by: value -> how many rows; empty where there is nothing to choose."""

    splits: Mapping[str, int] = {}
    reasons: Mapping[str, int] = {}
    models: Mapping[str, int] = {}


@lru_cache(maxsize=64)
def choices_of(rows: RowSet) -> Choices:
    """Splits, reasons and models among the rows of a file of posttrain's own."""
    source = source_of(rows)
    with readable():
        if isinstance(source, RowsFileSource):
            frame = pl.scan_parquet(rows.path, glob=False)
            columns = frame.collect_schema()
            found = [_counts(frame, name) if name in columns else {} for name in ("split", "reason")]
            return Choices(found[0] if len(found[0]) > 1 else {}, found[1])
        if rows.role not in ("dropped", "replies"):
            return Choices()
        shown = [one for one in source.rows(0, EVERYTHING) if isinstance(one, Shown)]
    reasons = Counter(one.reason for one in shown if one.reason)
    return Choices({}, reasons, Counter(str(one.facts["model"]) for one in shown if "model" in one.facts))


def _counts(frame: pl.LazyFrame, name: str) -> dict[str, int]:
    found = frame.select(pl.col(name).drop_nulls().value_counts(sort=True)).unnest(name).collect()
    return dict(found.iter_rows())


# ---- where the text of a dropped row is ----------------------------------------------------------------------------


class Beside(NamedTuple):
    """Where the text of a row was found."""

    row: Row
    file: str
    """As it is listed."""


def texts_in_run(wanted: Sequence[Shown], sets: Sequence[RowSet]) -> dict[int, Beside]:
    """The rows of a run that stand for entries without a text (of a ledger, of measured rows), by the place of the entry.

    Looked for by content id where the entry has one (``prompt_id``), else by file and line.
    """
    ids = grouped((str(one.facts["prompt_id"]), one.at) for one in wanted if one.bare and "prompt_id" in one.facts)
    places = grouped((tuple(one.origin), one.at) for one in wanted if one.bare and "prompt_id" not in one.facts)
    files, lines = [file for file, _ in places], [line for _, line in places]
    named = pl.col("id").is_in(list(ids)) | (pl.col("file").is_in(files) & pl.col("line").is_in(lines))
    found: dict[int, Beside] = {}
    for one in sets:
        if not (ids or places):
            break
        if one.role in ("rows", "dropped") and one.path.suffix == ".parquet" and is_rows_file(one.path):
            with readable():
                records = scan_rows(one.path).filter(named).collect()
            for record in records.iter_rows(named=True):
                beside = Beside(row_of(record), one.name)
                entries = [*ids.pop(record["id"], ()), *places.pop((record["file"], record["line"]), ())]
                found |= dict.fromkeys(entries, beside)
    return found


def original_of(one: Shown, folders: Sequence[Path], patience: float = PATIENCE) -> Shown | None:
    """The row of a file of others that a ledger names, where that file is still there and may be opened."""
    file = original(one.origin.file, folders)
    if file is None:
        return None
    source, until = source_of(file), time.monotonic() + patience
    with readable():
        # the line of an element of an array is no place, so the second look begins at the first row
        for start in (one.origin.line - 1, 0):
            for found in source.rows(max(0, start), EVERYTHING):
                if isinstance(found, Shown) and found.origin.line >= one.origin.line:
                    if found.origin.line == one.origin.line:
                        return replace(found, facts={**found.facts, "file": file.name})
                    break
                if time.monotonic() > until:
                    break
    return None


# ---- lengths -------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Characters of the rows of a file."""

    lengths: Lengths
    rows: int
    whole: bool
    """Whether all rows were looked at, not only the first ones."""


def lengths_of(source: Source, patience: float = PATIENCE) -> Measured | None:
    """How long the rows are, in characters of all their turns; None where there are none with a text."""
    with readable():
        if isinstance(source, RowsFileSource):
            sides = (pl.col(side).list.eval(_characters()).list.sum().fill_null(0) for side in ("messages", "rejected"))
            values = scan_rows(source.of.path).select(pl.sum_horizontal(*sides)).collect().to_series().to_numpy()
            return _measured(values, whole=True)
        until, found = time.monotonic() + patience, list[int]()
        for one in source.rows(0, EVERYTHING):
            if isinstance(one, Shown) and one.row is not None:
                found.append(one.characters)
            if time.monotonic() > until:
                return _measured(found, whole=False)
    return _measured(found, whole=True)


def _characters() -> pl.Expr:
    turn = pl.element().struct
    return sum(
        (turn.field(name).str.len_chars().fill_null(0) for name in ("content", "reasoning")), start=pl.lit(0, pl.UInt32)
    )


def _measured(values: Iterable[int], *, whole: bool) -> Measured | None:
    lengths = np.asarray(values, np.int64)
    return Measured(length_summary(lengths, ()), len(lengths), whole) if len(lengths) else None
