r"""Conversations written as one text: ``\n\nHuman: ... \n\nAssistant: ...``, as in HH-RLHF and Nectar.

A turn begins after a blank line (or at the beginning of the text) with the name of who speaks and a colon; the same words
inside a line are text. White space around the text of a turn belongs to the notation and is stripped.
"""

from __future__ import annotations

import re

from posttrain.data.formats.base import RowError
from posttrain.types import Message, Role

_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_LINES = re.compile(r"(?:\A\s*|\n\s*)(Human|Assistant)[:\uff1a]")
_OPEN = "\n\nAssistant:"
"""What a transcript has before a reply."""


def is_transcript(text: str) -> bool:
    """Whether a text begins with a turn, and has a reply after it."""
    return _TURN.match(text) is not None and _OPEN in text


def transcript(text: str) -> tuple[Message, ...]:
    """The turns of a transcript. Raises RowError (``wrong_shape``) for another text."""
    before, *parts = _TURN.split(text)
    if before or not parts:
        raise RowError("wrong_shape", f"not a transcript of Human and Assistant: {text[:80]!r}")
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_SPEAKERS[speaker], said.strip()) for speaker, said in spoken)


def prompt_turns(text: str) -> tuple[Message, ...]:
    """A prompt in text: the turns of a transcript that waits for the reply, otherwise one turn of the user."""
    if is_transcript(text) and text.rstrip().endswith(_OPEN):
        return transcript(text)[:-1]
    return (Message("user", text),)


def waiting_turns(text: str) -> tuple[Message, ...] | None:
    """The turns of a transcript whose turns begin on a line of their own, as in BELLE; None for any other text.

    The human speaks first, then both in turn; it ends with the human, or with an assistant who has not said anything yet.
    """
    if not text.lstrip().startswith(("Human:", "Human\uff1a")):
        return None
    before, *parts = _LINES.split(text)
    turns = [Message(_SPEAKERS[name], said.strip()) for name, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns and turns[-1].role == "assistant" and not turns[-1].content:
        turns.pop()
    expected = ["user", "assistant"] * len(turns)
    waits = bool(turns) and turns[-1].role == "user" and [turn.role for turn in turns] == expected[: len(turns)]
    return tuple(turns) if not before.strip() and waits and all(turn.content for turn in turns) else None
