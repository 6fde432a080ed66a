"""What a filter is: a configuration, and a pure function from one conversation and it to a few measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from posttrain.data import text
from posttrain.data.prose import Parts, parts_of
from posttrain.types import Message

C = TypeVar("C")
Side = Literal["user", "assistant"]


class Measurement(NamedTuple):
    """One thing measured on one row, and what was asked of it."""

    check: str
    """``<filter>.<what>``; at most one of each for a row."""
    value: float
    limit: str
    """The limit in words: ``>= 3``, ``<= 0.2``, ``any`` where none is set."""
    passed: bool
    reason: str = ""
    """Why the row goes where it did not pass: short and fixed."""
    detail: str = ""
    """What was found in this row. Never the found text where that is private or a secret."""


@dataclass(frozen=True)
class Conversation:
    """One row as filters see it. What several of them need is worked out once, when it is first needed."""

    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    tools: bool = False
    """Whether the assistant was offered tools."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Score name -> value; of several by one name the largest."""
    waits: bool = False
    """Whether it is a prompt that waits for its reply."""

    @cached_property
    def content(self) -> str:
        """The text of all turns, a line each."""
        return "\n".join(message.content for message in self.messages)

    @cached_property
    def user_tokens(self) -> list[str]:
        """Comparison tokens of all user turns."""
        return text.tokens(text.compared_text(self.messages, "user"))

    @cached_property
    def assistant_tokens(self) -> list[str]:
        """Comparison tokens of all assistant turns."""
        return text.tokens(text.compared_text(self.messages, "assistant"))

    @cached_property
    def assistant(self) -> tuple[str, ...]:
        """The text of every assistant turn."""
        return tuple(message.content for message in self.messages if message.role == "assistant")

    @cached_property
    def user_parts(self) -> Parts:
        """Prose and code of all user turns."""
        return parts_of(text.compared_text(self.messages, "user"))

    @cached_property
    def assistant_parts(self) -> Parts:
        """Prose and code of all assistant turns."""
        return parts_of("\n".join(self.assistant))

    @cached_property
    def prose(self) -> str:
        """The prose of all user and assistant turns."""
        return f"{self.user_parts.prose}\n{self.assistant_parts.prose}"


class Example(NamedTuple, Generic[C]):
    """A row and the configuration it is dropped under."""

    config: C
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class Filter(Generic[C]):
    """One filter: an entry of the table ``FILTERS``."""

    name: str
    config: type[C]
    measure: Callable[[Conversation, C], Iterable[Measurement]]
    """Pure; every measurement whose ``passed`` is false drops the row, the first one gives the reason."""
    dropped: Mapping[str, Example[C]]
    """Every reason, with an example."""
    replies: Literal["all", "wanted"] = "all"
    """Which replies of preference rows it looks at. ``all``: a row goes where either reply is bad. ``wanted``: only what is to be
    imitated, for traits that a rejected or undesirable reply is there to show."""


def talk(*turns: str) -> Conversation:
    """A conversation of turns by the user and the assistant, the user first."""
    roles: tuple[Side, Side] = ("user", "assistant")
    return Conversation(tuple(Message(roles[number % 2], content) for number, content in enumerate(turns)))


def at_most(check: str, value: float, limit: float | None, reason: str, found: str = "", unit: str = "") -> Measurement:
    """A measurement that must not exceed a limit; None = any value passes."""
    if limit is None:
        return Measurement(check, value, "any", True)
    passed = value <= limit
    detail = "" if passed else _detail(value, f"at most {limit:g}", unit, found)
    return Measurement(check, value, f"<= {limit:g}", passed, reason, detail)


def _detail(value: float, limit: str, unit: str, found: str) -> str:
    return f"{value:.4g}{' ' if unit else ''}{unit} ({limit}){': ' if found else ''}{found}"


def within(
    check: str, value: float, lowest: float, highest: float | None, reasons: tuple[str, str], unit: str
) -> Measurement:
    """A measurement that must lie between two limits, both included; ``reasons``: for too little and too much."""
    limit = f">= {lowest:g}" if highest is None else f">= {lowest:g}, <= {highest:g}"
    if value < lowest:
        return Measurement(check, value, limit, False, reasons[0], _detail(value, f"at least {lowest:g}", unit, ""))
    if highest is not None and value > highest:
        return Measurement(check, value, limit, False, reasons[1], _detail(value, f"at most {highest:g}", unit, ""))
    return Measurement(check, value, limit, True)


def excerpt(found: str, limit: int = 60) -> str:
    """A found text on one short line."""
    line = " ".join(found.split())
    return repr(line if len(line) <= limit else line[: limit - 3] + "...")


def first(found: Iterator[str]) -> str:
    """The first of some found texts, excerpt; empty where there is none."""
    return next(map(excerpt, found), "")
