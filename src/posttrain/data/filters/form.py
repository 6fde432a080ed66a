"""The form of a conversation: whose turn it is, empty turns, code fences left open, the last word; too short, too long."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from posttrain.data.filters.base import Conversation, Filter, Measurement, within
from posttrain.types import Message, Role


@dataclass(frozen=True, kw_only=True)
class Structure(Filter):
    """The form of a conversation; each rule can be switched off."""

    alternation: bool = True
    """A system turn only at the start, then user and assistant in turn; tool turns between two turns of the assistant."""
    empty_turns: bool = True
    """No turn of system, user or assistant without text and tool calls."""
    closed_fences: bool = True
    """Every code fence the assistant opens is closed."""
    ends_with_assistant: bool = True
    """The last turn is the assistant's."""

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """What is measured on a row."""
        if self.alternation:
            yield _none("structure.out_of_turn", out_of_turn(row.messages), "roles_do_not_alternate")
        turns = [(f"turn {number}", message) for number, message in enumerate(row.messages, 1)]
        if self.empty_turns:
            blank = [(name, turn) for name, turn in turns if not turn.tool_calls and not turn.content.strip()]
            empty = [f"{name} ({turn.role})" for name, turn in blank if turn.role != "tool"]
            yield _none("structure.empty_turns", empty, "empty_turn")
        if self.closed_fences:
            unclosed = [name for name, turn in turns if turn.role == "assistant" and open_fence(turn.content)]
            yield _none("structure.open_fences", unclosed, "unfinished_code_fence")
        if self.ends_with_assistant and not row.waits:
            last = row.messages[-1].role if row.messages else "nothing"
            other = [] if last == "assistant" else [f"it ends with {last}"]
            yield _none("structure.end", other, "does_not_end_with_assistant")


_FOLLOWS: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
_FENCE = re.compile(r"^(?:[^`\n]*?(`{3,})|[ \t>]*(~{3,}))([^\n]*)$", re.M)


def out_of_turn(messages: Sequence[Message]) -> list[str]:
    """The turns that may not follow the one before them, in words."""
    before: Role | None = None
    found = []
    for number, message in enumerate(messages, 1):
        if message.role not in _FOLLOWS[before]:
            found.append(f"turn {number} is {message.role} after {before or 'nothing'}")
        before = message.role
    return found


def open_fence(text: str) -> bool:
    """Whether a code fence is left open at the end of a text.

    A fence with a word after it (````` ```python `````) inside an open block is code by CommonMark, but many write a block in
    a block and close both: the fence is open only where it is so in either reading. A bare fence closes also at the end
    of a line of code.
    """
    if "```" not in text and "~~~" not in text:
        return False
    opened, depth = "", 0
    for match in _FENCE.finditer(text):
        fence, rest = match[1] or match[2], match[3].strip()
        if fence[0] in rest:
            continue  # opened and closed on one line
        closes = bool(opened) and fence[0] == opened[0] and len(fence) >= len(opened) and not rest
        if not opened:
            opened = fence
        elif closes:
            opened = ""
        depth = depth - 1 if depth and not rest else depth + 1
    return bool(opened) and depth > 0


def _none(check: str, found: list[str], reason: str) -> Measurement:
    return Measurement(check, len(found), "<= 0", not found, reason, ", ".join(found[:3]))


@dataclass(frozen=True, kw_only=True)
class Length(Filter):
    """Tokens of all user turns and of all assistant turns: words, and single characters of Chinese, Japanese, Korean."""

    min_user_tokens: Annotated[int, Ge(0)] = 1
    """Fewest tokens of the user."""
    max_user_tokens: Annotated[int, Ge(0)] | None = 8192
    """Most tokens of the user; null: any number."""
    min_assistant_tokens: Annotated[int, Ge(0)] = 0
    """Fewest tokens of the assistant. A good answer may be one sign: the default drops none."""
    max_assistant_tokens: Annotated[int, Ge(0)] | None = 8192
    """Most tokens of the assistant; null: any number."""

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """What is measured on a row."""
        limits = (self.min_user_tokens, self.max_user_tokens), (self.min_assistant_tokens, self.max_assistant_tokens)
        for who, tokens, both in zip(
            ("user", "assistant"), (row.user_tokens, row.assistant_tokens), limits, strict=True
        ):
            reasons = f"{who}_too_short", f"{who}_too_long"
            yield within(f"length.{who}_tokens", len(tokens), *both, reasons, f"{who} tokens")
