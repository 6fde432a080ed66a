"""The voices there are: a model of this process, whose replies share its batch, and a GGUF file through llama.cpp."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import encode_prompt
from posttrain.errors import PosttrainError
from posttrain.generate.decode import Decoding, NewToken
from posttrain.generate.engine import Failure, Usage
from posttrain.generate.growing import GrowingText
from posttrain.generate.llamacpp import LlamaCppEngine
from posttrain.generate.local import LAST_TOKENS
from posttrain.generate.voice import Asked, Hear, Piece
from posttrain.model.forward import causal_lm
from posttrain.model.lengths import context_of, limits_of


class Tokenizer(Protocol):
    """What a voice asks of a tokenizer."""

    def __call__(self, text: str) -> Any:
        """Ids of a text, with what the tokenizer puts around one."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> Any:
        """The text of ids."""


class _Reply:
    """One reply that is being made."""

    def __init__(self, asked: Asked, hear: Hear) -> None:
        self.asked, self.hear = asked, hear
        self.over = False
        self.prompt_tokens = 0
        self.text: GrowingText | None = None

    def end(self) -> None:
        """Nobody listens any more."""
        self.over = True


class LocalVoice:
    """Speaks with a model of this process (see `posttrain.model.adapters.frozen_model`), in a thread of its own.

    template: None where the model has none: it can only go on with texts. stops: token sequences that end a reply. slots: replies continued at
    once; others wait their turn, first come, first served. Replies do not depend on each other but for rounding.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        stops: Sequence[tuple[int, ...]],
        slots: int,
    ) -> None:
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._stops, self._slots = stops, slots
        self._room = context_of(causal_lm(model).config)
        self._limits = limits_of(causal_lm(model))
        self._inbox: queue.SimpleQueue[_Reply | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def begin(self, asked: Asked, hear: Hear) -> Callable[[], None]:
        """See `posttrain.generate.voice.Voice`."""
        reply = _Reply(asked, hear)
        self._inbox.put(reply)
        return reply.end

    def close(self) -> None:
        """See `posttrain.generate.voice.Voice`."""
        self._inbox.put(None)
        self._thread.join()

    def _work(self) -> None:
        decoding = Decoding(self._model, self._stops, self._slots)
        replies: dict[int, _Reply] = {}
        number = 0
        while True:
            while not decoding.busy or not self._inbox.empty():
                reply = self._inbox.get()
                if reply is None:
                    return
                number += 1
                if self._joins(reply, number, decoding):
                    replies[number] = reply
            try:
                for new in list(decoding.step()):
                    self._grow(replies[new.prompt], new)
            except (PosttrainError, RuntimeError) as error:  # no memory, for one: the next reply may fit again
                for reply in replies.values():
                    reply.hear(Failure("server_error", str(error)))
                replies, decoding = {}, Decoding(self._model, self._stops, self._slots)
            for over in [number for number, reply in replies.items() if reply.over]:
                decoding.drop(over)
                del replies[over]

    def _joins(self, reply: _Reply, number: int, decoding: Decoding) -> bool:
        """Let a reply join those that are made; where it can't be made, its listener is told."""
        try:
            ids = self._ids(reply.asked.said)
        except PosttrainError as error:
            reply.hear(Failure("invalid_request", error.problem))
            return False
        problem = self._limits.problem(ids)
        if problem is None and self._room is not None and len(ids) >= self._room:
            problem = f"the prompt has {len(ids)} tokens, the model's context {self._room}"
        if problem is not None:
            reply.hear(Failure("invalid_request", problem))
            return False
        sampling = reply.asked.sampling
        if self._room is not None:
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, self._room - len(ids)))
        opened = self._text(ids[-LAST_TOKENS:].tolist()).rstrip().endswith("<think>")
        reply.text = GrowingText(self._text, self._stops, reply.asked.stops, opened)
        reply.prompt_tokens = len(ids)
        decoding.add(number, ids, sampling)
        return True

    def _ids(self, said: Any) -> NDArray[np.int32]:
        if isinstance(said, str):
            return np.array(self._tokenizer(said)["input_ids"], np.int32)
        if said and isinstance(said[0], int):
            return np.array(said, np.int32)
        if self._template is None:
            raise PosttrainError("this model has no chat template")
        return encode_prompt(said, self._template)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _grow(self, reply: _Reply, new: NewToken) -> None:
        """Add a token to a reply and tell it."""
        if reply.over:
            return
        assert reply.text is not None, "it has joined"
        if new.finish == "not_finite":
            reply.over = True
            detail = f"the model computed NaN or infinity after {reply.text.tokens} tokens of its reply"
            reply.hear(Failure("not_finite", detail))
            return
        piece = reply.text.add(new)
        if piece.finish is not None:
            reply.over = True
            piece = piece._replace(usage=Usage(reply.prompt_tokens, reply.text.tokens))
        if piece != Piece():
            reply.hear(piece)


class LlamaCppVoice:
    """Speaks with a GGUF file. slots: replies made at once, as the engine has them; others wait their turn."""

    def __init__(self, engine: LlamaCppEngine, slots: int) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(slots)
        self._closed = threading.Event()

    def begin(self, asked: Asked, hear: Hear) -> Callable[[], None]:
        """See `posttrain.generate.voice.Voice`."""
        over = threading.Event()

        def work() -> None:
            if not over.is_set():
                self._engine.speak(asked, hear, lambda: over.is_set() or self._closed.is_set())

        self._threads.submit(work)
        return over.set

    def close(self) -> None:
        """See `posttrain.generate.voice.Voice`."""
        self._closed.set()
        self._threads.shutdown(cancel_futures=True)
        self._engine.close()
