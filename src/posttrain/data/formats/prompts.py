r"""The prompt of a record and a reply to it, wherever they stand and in whatever shape: shared by all formats that have both.

A transcript is a conversation in one text (HH-RLHF, Nectar): a turn begins after a blank line with ``Human:`` or ``Assistant:``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, RowError, optional_text
from posttrain.data.formats.turns import Turns, messages_in, role_of, text_of, turns_under
from posttrain.types import Message, Role

_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_LINES = re.compile(r"(?:\A\s*|\n\s*)(Human|Assistant)[:\uff1a]")
_OPEN = "\n\nAssistant:"
"""What a transcript has before a reply."""
PROMPT_KEYS = (
    *("prompt", "instruction", "question", "query", "problem", "user_prompt", "user_input", "inputs", "question_stem"),
    "input",
)
"""The first of them that a record has is its prompt."""
_INPUTS = ("input", "context")


def prompt_key_of(record: Foreign) -> str | None:
    """The key of a record's prompt."""
    return keys.first(record, PROMPT_KEYS)


def prompt_of(record: Foreign) -> tuple[Turns, Set[str]]:
    """The turns of a record's prompt and the keys they were made from; none where there is no such key.

    Text is a turn of the user, or a transcript that waits for the reply; an instruction comes with its input.
    """
    key = prompt_key_of(record)
    if key is None:
        return (), frozenset()
    if key == "instruction" or ("instruction" in record and not keys.is_present(record[key])):
        return instruction_of(record)
    value = record[key]
    if isinstance(value, str) and messages_in(value) is None:
        waits = is_transcript(value) and value.rstrip().endswith(_OPEN)
        return transcript(value)[:-1] if waits else (Message("user", value),), frozenset((key,))
    return turns_under(record, key, "user"), frozenset((key,))


def instruction_of(record: Foreign) -> tuple[Turns, Set[str]]:
    """(what the user asks, the keys it was made from): the instruction of a record with its input."""
    key = keys.first(record, _INPUTS) or "input"
    instruction, given = optional_text(record, "instruction"), optional_text(record, key)
    turns = waiting_turns(instruction) or ()
    last = turns[-1].content if turns else instruction
    # joined and stripped as in LLaMA-Factory, so that both train on the same tokens
    return (*turns[:-1], Message("user", (last + "\n" + given).strip())), {"instruction", key}


def not_blank(prompt: Turns, name: str = "prompt") -> Turns:
    """The turns of a prompt. Raises RowError (``empty_prompt``) where none says anything."""
    if not any(turn.content.strip() for turn in prompt):
        raise RowError("empty_prompt", f"the {name} is blank")
    return prompt


def reply_under(record: Foreign, key: str) -> Turns:
    """The turns of a reply; one blank turn where there is none.

    A list of several texts is refused as ``several_replies``: they may be alternatives, a ranking, or one answer.
    """
    value = record.get(key)
    if isinstance(value, str):
        return turns_under(record, key, "assistant")
    if isinstance(value, Mapping) and isinstance(value.get("text"), list) and "answer_start" in value:
        value = list(dict.fromkeys(text for text in value["text"] if isinstance(text, str)))  # SQuAD's alternatives
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        if len(value) > 1:
            detail = f"{key!r} holds {len(value)} texts; give one reply, or a format of ranked ones"
            raise RowError("several_replies", detail)
        value = value[0]
    messages = value if isinstance(value, list) else [value]
    if isinstance(value, str) or all(isinstance(item, Mapping) and role_of(item) is not None for item in messages):
        return turns_under({key: value}, key, "assistant") or (Message("assistant", ""),)
    if any(isinstance(item, Mapping) and "content" in item for item in messages):
        raise RowError("unknown_role", f"{key!r} holds a message without a role")
    return (Message("assistant", text_of(value, repr(key))),)


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


def is_transcript(text: str) -> bool:
    """Whether a text begins with a turn, and has a reply after it."""
    return _TURN.match(text) is not None and _OPEN in text


def transcript(text: str) -> Turns:
    """The turns of a transcript. Raises RowError (``wrong_shape``) for another text."""
    before, *parts = _TURN.split(text)
    if before or not parts:
        raise RowError("wrong_shape", f"not a transcript of Human and Assistant: {text[:80]!r}")
    return _spoken(parts)


def waiting_turns(text: str) -> Turns | None:
    """The turns of a transcript whose turns begin on a line of their own, as in BELLE; None for any other text.

    The human speaks first, then both in turn; it ends with the human, or with an assistant who has not said anything yet.
    """
    if not text.lstrip().startswith(("Human:", "Human\uff1a")):
        return None
    before, *parts = _LINES.split(text)
    turns = _spoken(parts)
    if turns and turns[-1].role == "assistant" and not turns[-1].content:
        turns = turns[:-1]
    expected = ["user", "assistant"] * len(turns)
    waits = bool(turns) and turns[-1].role == "user" and [turn.role for turn in turns] == expected[: len(turns)]
    return turns if not before.strip() and waits and all(turn.content for turn in turns) else None


def _spoken(parts: list[str]) -> Turns:
    """Turns of speaker and text, one after the other."""
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_SPEAKERS[speaker], text.strip()) for speaker, text in spoken)
