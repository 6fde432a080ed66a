"""The prompt of a record under any of its usual keys. Shared by the formats of pairs and of rated answers."""

from __future__ import annotations

from collections.abc import Set

from posttrain.data.formats.alpaca import QUESTION_KEYS, history, question
from posttrain.data.formats.base import Foreign
from posttrain.data.formats.transcripts import asked
from posttrain.data.formats.turns import turns_under
from posttrain.types import Message

PROMPT_KEYS = ("prompt", "instruction", "question", "query")
"""The first of them that a record has is its prompt."""


def prompt_key_of(record: Foreign) -> str | None:
    """The key of a record's prompt."""
    return next((key for key in PROMPT_KEYS if key in record), None)


def prompt_of(record: Foreign) -> tuple[tuple[Message, ...], Set[str]]:
    """The turns of a record's prompt and the keys they were made from; none where there is no such key.

    Text is a turn of the user, or a transcript that waits for the reply; an instruction comes with input and history.
    """
    key = prompt_key_of(record)
    if key is None:
        return (), frozenset()
    if key == "instruction":
        return (*history(record), Message("user", question(record, record))), frozenset(QUESTION_KEYS)
    value = record[key]
    return asked(value) if isinstance(value, str) else turns_under(record, key, "user"), frozenset((key,))
