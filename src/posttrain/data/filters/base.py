"""What a filter is: settings, and a pure function from one conversation to a few measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from posttrain.data import text
from posttrain.data.prose import Parts, parts_of
from posttrain.types import Message


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


class Filter(Protocol):
    """One filter: its settings, and what it measures."""

    replies: ClassVar[Literal["all", "wanted"]] = "all"
    """Which replies of preference rows it looks at. ``all``: a row goes where either reply is bad. ``wanted``: only what is to be
    imitated, for traits that a rejected or undesirable reply is there to show."""

    def measure(self, row: Conversation) -> Iterable[Measurement]:
        """Pure; every measurement whose ``passed`` is false drops the row, the first one gives the reason."""


def within(
    check: str,
    value: float,
    lowest: float | None,
    highest: float | None,
    reasons: tuple[str, str],
    unit: str = "",
    found: str = "",
) -> Measurement:
    """A measurement that must lie between two limits, both included (None: any); ``reasons``: for too little and too much."""
    limits = ((">=", lowest), ("<=", highest))
    limit = ", ".join([f"{sign} {bound:g}" for sign, bound in limits if bound is not None]) or "any"
    if lowest is not None and value < lowest:
        reason, wanted = reasons[0], f"at least {lowest:g}"
    elif highest is not None and value > highest:
        reason, wanted = reasons[1], f"at most {highest:g}"
    else:
        return Measurement(check, value, limit, True)
    detail = f"{value:.4g}{' ' if unit else ''}{unit} ({wanted}){': ' if found else ''}{found}"
    return Measurement(check, value, limit, False, reason, detail)


def at_most(check: str, value: float, limit: float | None, reason: str, found: str = "", unit: str = "") -> Measurement:
    """A measurement that must not exceed a limit; None = any value passes."""
    return within(check, value, None, limit, ("", reason), unit, found)


def excerpt(found: str, limit: int = 60) -> str:
    """A found text on one short line."""
    line = " ".join(found.split())
    return repr(line if len(line) <= limit else line[: limit - 3] + "...")
