"""A model that answers while others listen: what is asked of it, and what is heard of a reply while it is made. No torch here.

Asked -> voice.begin(asked, hear) -> hear(Piece), hear(Piece), ..., the last with ``finish``; or hear(Failure)
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from posttrain.generate.engine import Failure, FinishReason, Sampling, TokenLogprob, Usage
from posttrain.types import Message


@dataclass(frozen=True, slots=True)
class Asked:
    """One reply asked for."""

    said: tuple[Message, ...] | str | tuple[int, ...]
    """A conversation to answer by the chat template; or a text, or token ids, to go on with as they are."""
    sampling: Sampling
    stops: tuple[str, ...] = ()
    """Texts that end the reply; they are not part of it."""


class Piece(NamedTuple):
    """What a reply has become longer by."""

    text: str = ""
    reasoning: str = ""
    """Of its think block, which is kept apart."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of all tokens so far that were not told before, those of the think block included; empty where none were asked for."""
    finish: FinishReason | None = None
    """Set on the last piece."""
    usage: Usage | None = None
    """On the last piece."""


Hear = Callable[[Piece | Failure], None]
"""Called from another thread."""
LOOK_INTERVAL = 0.2
"""Seconds between looks for a Ctrl-C: a signal just before a wait without end would be lost in it."""


class Voice(Protocol):
    """Makes several replies at once."""

    def begin(self, asked: Asked, hear: Hear) -> Callable[[], None]:
        """Begin a reply, after those that wait already. What is returned ends it within a token; nothing need be heard after that."""

    def close(self) -> None:
        """End all replies, and wait until none is computed any more."""


def pieces(voice: Voice, asked: Asked) -> Generator[Piece | Failure, None, None]:
    """A reply as it is made; closing ends it."""
    heard: queue.SimpleQueue[Piece | Failure] = queue.SimpleQueue()
    end = voice.begin(asked, heard.put)
    try:
        while True:
            try:
                found = heard.get(timeout=LOOK_INTERVAL)
            except queue.Empty:
                continue
            yield found
            if isinstance(found, Failure) or found.finish is not None:
                return
    finally:
        end()
