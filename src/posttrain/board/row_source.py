"""A row as it stands in a file, which rows are wanted, and what gives them one after the other.

A place is the number of lines, elements or rows before a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from posttrain.data.streams import printable
from posttrain.types import Message, Origin, Row


@dataclass(frozen=True, slots=True)
class Shown:
    """One row as it stands in a file."""

    at: int
    """What stands before it."""
    origin: Origin
    row: Row | None = None
    """None where it can't be read, or is no row."""
    record: Any = None
    """What was read: an object; of a damaged line its text; None where nothing is known of it."""
    step: str = ""
    reason: str = ""
    """Why it was dropped, or can't be read."""
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What stands beside it: ``id``, ``split``, ``scores``, ``verdicts``, ``twin``, ``model``, ``values``, ..."""

    @property
    def bare(self) -> bool:
        """Whether its text, where there is one, stands elsewhere: of an entry of a ledger, of a held-out row that was measured."""
        return self.row is None and (self.record is None or "prompt_id" in self.facts)

    @property
    def texts(self) -> list[str]:
        """Everything that it says."""
        if self.row is not None:
            turns = [*self.row.messages, *getattr(self.row, "rejected", ())]
            return [text for turn in turns for text in _said(turn)]
        return [printable(self.record if isinstance(self.record, str) else _json(self.record))]

    @property
    def text(self) -> str:
        """The same as one text, for the search."""
        return "\n".join(self.texts)

    @property
    def characters(self) -> int:
        """How long all of it is."""
        return sum(map(len, self.texts))


def _said(turn: Message) -> Iterator[str]:
    yield from (text for text in (turn.content, turn.reasoning) if text)
    yield from (f"{call.name} {call.arguments}" for call in turn.tool_calls)


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True, slots=True)
class Sieve:
    """Which rows are wanted; what is empty asks for nothing."""

    text: str = ""
    """Somewhere in the row, in any case."""
    split: str = ""
    reason: str = ""
    model: str = ""
    language: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.split or self.reason or self.model or self.language)

    def may_hold(self, line: bytes) -> bool:
        """Whether a line of JSON may be of a row that is wanted. A quick look: no wanted row is missed."""
        wanted, escaped = self.text.lower(), b"\\u" in line
        if self.model.isascii() and self.model.encode() not in line:
            return False
        if not wanted or escaped or set('"\\/\n\t') & set(wanted):
            return True
        if wanted.isascii():
            return wanted.encode() in line.lower()
        return wanted.upper() != wanted or wanted.encode("utf-8", "replace") in line

    def lets(self, one: Shown) -> bool:
        """Whether a row is wanted, but for its language."""
        return (
            (not self.split or one.facts.get("split") == self.split)
            and (not self.reason or one.reason == self.reason)
            and (not self.model or one.facts.get("model") == self.model)
            and (not self.text or self.text.lower() in one.text.lower())
        )


class Source(Protocol):
    """The rows of a file."""

    def rows(self, at: int, sieve: Sieve) -> Iterator[Shown | int]:
        """Those from a place on that a sieve lets through, and now and then the place that was reached."""

    def count(self) -> int | None:
        """How many there are (lines that are blank included); None where only reading the whole file would tell."""
