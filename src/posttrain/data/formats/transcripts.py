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
_OPEN = "\n\nAssistant:"
"""What a transcript has before a reply."""


def is_transcript(text: str) -> bool:
    """Whether a text begins with a turn, and has a reply after it."""
    return _TURN.match(text) is not None and _OPEN in text


def transcript(text: str) -> tuple[Message, ...]:
    """The turns of a transcript. Raises RowError (``wrong_shape``) for another text."""
    before, *parts = _TURN.split(text)
    if before or not parts:
        raise RowError("wrong_shape", f"no transcript of Human and Assistant: {text[:80]!r}")
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_SPEAKERS[speaker], said.strip()) for speaker, said in spoken)


def asked(text: str) -> tuple[Message, ...]:
    """A prompt in text: the turns of a transcript that waits for the reply, otherwise one turn of the user."""
    if is_transcript(text) and text.rstrip().endswith(_OPEN):
        return transcript(text)[:-1]
    return (Message("user", text),)
