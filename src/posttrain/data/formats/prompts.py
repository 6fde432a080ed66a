"""Prompts that wait for their reply: for generation, synthesis, judging and online training.

The prompt of a record stands under one of the usual keys, as text, a message or messages, or is a conversation without a turn of the
assistant. Reading it is shared by the formats of pairs and of rated answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.alpaca import question
from posttrain.data.formats.base import Foreign, Format, RowError, items
from posttrain.data.formats.conversation import prompt_row
from posttrain.data.formats.transcripts import prompt_turns
from posttrain.data.formats.turns import messages_in, role_of, talk, turns_under
from posttrain.types import Message, Origin, PromptRow

PROMPT_KEYS = (
    *("prompt", "instruction", "question", "query", "problem", "user_prompt", "user_input", "inputs", "question_stem"),
    "input",
)
"""The first of them that a record has is its prompt."""
_REPLY_WORDS = (
    *("judg", "feedback", "answer", "reply", "output", "completion", "assistant", "solution", "chosen", "rejected"),
    *("gpt", "bot", "resp", "code"),
)
_REFERENCE_WORDS = ("reference", "gold", "ground", "expected", "final", "correct")
"""Of keys under which a text may be the reply, and of those under which it is what a reply is compared with."""


def prompt_key_of(record: Foreign) -> str | None:
    """The key of a record's prompt."""
    return keys.first(record, PROMPT_KEYS)


def prompt_of(record: Foreign) -> tuple[tuple[Message, ...], Set[str]]:
    """The turns of a record's prompt and the keys they were made from; none where there is no such key.

    Text is a turn of the user, or a transcript that waits for the reply; an instruction comes with its input.
    """
    key = prompt_key_of(record)
    if key is None:
        return (), frozenset()
    if key == "instruction" or ("instruction" in record and not keys.is_present(record[key])):
        return question(record)
    value = record[key]
    if isinstance(value, str) and messages_in(value) is None:
        return prompt_turns(value), frozenset((key,))
    return turns_under(record, key, "user"), frozenset((key,))


def has_reply(turns: Any) -> bool:
    """Whether a list of turns has one of the assistant, or turns of which that can't be told from their roles."""
    if isinstance(turns, str):
        turns = messages_in(turns)
    if not isinstance(turns, list) or not turns:
        return True
    last = turns[-1]  # mostly this one
    if isinstance(last, dict) and last.get("role") == "assistant":
        return True
    return any(not isinstance(turn, dict) or role_of(turn) in ("assistant", None) for turn in reversed(turns))


def _detect(record: Foreign) -> bool:
    talks = [key for key in keys.TALKS if key in record]
    replies = (*keys.REPLIES, *keys.SIDES, "text", "conversation_a", "response_0", "response_1", "response_a")
    if any(key in record for key in replies) or any(map(_may_be_reply, record, record.values())):
        return False
    if talks:
        return not has_reply(record[talks[0]])
    key = prompt_key_of(record)
    value = None if key is None else record[key]
    if isinstance(value, list):
        return not has_reply(value)
    return isinstance(value, str) or (isinstance(value, Mapping) and role_of(value) == "user")


def _may_be_reply(key: str, value: Any) -> bool:
    name = str(key).lower()
    text = value[0] if isinstance(value, list) and value else value
    said = isinstance(text, str) and any(word in name for word in _REPLY_WORDS)
    said = said and ("code" not in name or len(text.split()) > 1)  # that of a language, or an error, is one word
    return said and not any(word in name for word in (*_REFERENCE_WORDS, "id", "len", "count", "format", "type"))


def _parse(record: Foreign, origin: Origin, source: str) -> PromptRow:
    key = keys.first(record, keys.TALKS)
    if key is not None and keys.is_present(record[key]):
        return prompt_row(record, {key}, talk(items(record, key)), origin, source)
    prompt, used = prompt_of(record)
    if not used:
        raise RowError("wrong_shape", f"no prompt; keys: {', '.join(map(str, record))}"[:200])
    return prompt_row(record, used, prompt, origin, source)


PROMPTS = Format("prompts", _detect, _parse, '{"prompt": "Name a colour."}', "prompts")
