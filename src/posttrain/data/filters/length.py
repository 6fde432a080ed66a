"""Too short, too long: comparison tokens of what the user and what the assistant wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from posttrain.data.filters.base import Conversation, Filter, Measurement, within


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
        yield within(
            "length.user_tokens",
            len(row.user_tokens),
            self.min_user_tokens,
            self.max_user_tokens,
            ("user_too_short", "user_too_long"),
            "user tokens",
        )
        yield within(
            "length.assistant_tokens",
            len(row.assistant_tokens),
            self.min_assistant_tokens,
            self.max_assistant_tokens,
            ("assistant_too_short", "assistant_too_long"),
            "assistant tokens",
        )
