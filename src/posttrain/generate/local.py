"""The engine for a model in this process: any HF model or adapter, continuous batching, no server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import nn

from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import encode_prompt
from posttrain.encode.user_turn import user_stops, user_turn_ids
from posttrain.errors import TemplateError
from posttrain.generate.decode import SLOTS, NewToken, decode, without_stop
from posttrain.generate.engine import (
    Completion,
    Failure,
    Fingerprint,
    Outcome,
    Outcomes,
    Request,
    Sampling,
    Usage,
    split_think,
)
from posttrain.generate.growing import token_logprob
from posttrain.generate.shared import shared_decode
from posttrain.generate.ways import speed_note
from posttrain.model.forward import causal_lm
from posttrain.model.lengths import context_of, limits_of
from posttrain.model.shared import SharedModel

LAST_TOKENS = 8
"""Tokens of a prompt that show whether it ends inside a think block."""


@dataclass(frozen=True, eq=False)
class LocalEngine:
    """Answers with a model of this process (see `posttrain.model.adapters.frozen_model`).

    ``name`` is what the fingerprint calls the model: give the digest of its weights where answers are cached. ``stops``: token
    sequences that end a reply (`posttrain.model.lineage.Lineage`). ``slots``: replies made at once. A request's ``seed``
    and number of the draw decide what is drawn, whatever else is asked; a prompt that the template refuses, or that leaves no
    room for a token in the model's context, is a Failure ``invalid_request``.
    """

    model: nn.Module
    template: ChatTemplate
    stops: Sequence[tuple[int, ...]]
    name: str
    slots: int = SLOTS
    shared: SharedModel | None = None
    """Where other processes hold the model as well: then each makes a part of the replies, ``slots`` at once."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Model, template and compute type."""
        text = self.template.text or str(self.template.tokenizer.chat_template)
        with_variables = f"{text}\n{{}}".encode()  # none: kept so that answers that are stored keep their keys
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return Fingerprint(
            engine="transformers",
            model=self.name,
            template=xxhash.xxh3_128_hexdigest(with_variables),
            options=json.dumps({"dtype": dtype}),
        )

    @property
    def speed_note(self) -> str | None:
        """What to tell of a model whose replies are slow; None for others. The first use proves how the model is continued."""
        return speed_note(self.model)

    def generate(self, requests: Sequence[Request]) -> Outcomes:
        """Answer all requests; outcomes come as replies end."""
        prompts: list[NDArray[np.int32]] = []
        indices: list[int] = []
        of_user = [index for index, request in enumerate(requests) if request.speaks == "user"]
        if of_user and len(of_user) < len(requests):  # the two have other stops
            rest = [index for index, request in enumerate(requests) if request.speaks != "user"]
            for places in (of_user, rest):
                yield from ((places[at], outcome) for at, outcome in self.generate([requests[i] for i in places]))
            return
        for index, request in enumerate(requests):
            prompt = self._prompt(request)
            if isinstance(prompt, Failure):
                yield index, prompt
            else:
                prompts.append(prompt)
                indices.append(index)
        stops = user_stops(self.template) if of_user and prompts else self.stops
        room = self._room()
        samplings = []
        for index, prompt in zip(indices, prompts, strict=True):
            s = requests[index].sampling
            limit = s.max_tokens if room is None else min(s.max_tokens, room - len(prompt))
            samplings.append(replace(s, max_tokens=limit, seed=(s.seed or 0) + requests[index].sample))
        replies: list[list[NewToken]] = [[] for _ in prompts]
        with contextlib.closing(self._decode(prompts, stops, samplings)) as tokens:
            for new in tokens:
                replies[new.prompt].append(new)
                if new.finish is not None:
                    index = indices[new.prompt]
                    yield index, self._outcome(requests[index], prompts[new.prompt], replies[new.prompt], stops)

    def _decode(
        self, prompts: Sequence[NDArray[np.int32]], stops: Sequence[tuple[int, ...]], samplings: Sequence[Sampling]
    ) -> Generator[NewToken, None, None]:
        """The tokens of all replies, made here or by several processes."""
        if self.shared is None or len(prompts) < 2:
            yield from decode(self.model, prompts, stops, samplings, self.slots)
        else:
            yield from shared_decode(self.shared, self.model, prompts, stops, samplings, self.slots)

    def _prompt(self, request: Request) -> NDArray[np.int32] | Failure:
        try:
            if request.speaks == "user":
                ids = user_turn_ids(self.template, request.prompt)
            else:
                ids = encode_prompt(request.prompt, self.template)
        except TemplateError as error:
            return Failure("invalid_request", error.problem)
        room = self._room()
        if room is not None and len(ids) >= room:
            return Failure("invalid_request", f"the prompt has {len(ids)} tokens, the model's context {room}")
        problem = limits_of(causal_lm(self.model)).problem(ids)
        return ids if problem is None else Failure("invalid_request", problem)

    def _room(self) -> int | None:
        """Tokens of the model's context, where it has a limit."""
        return context_of(causal_lm(self.model).config)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.template.tokenizer.decode(ids, skip_special_tokens=True))

    def _outcome(
        self, request: Request, prompt: NDArray[np.int32], tokens: Sequence[NewToken], stops: Sequence[tuple[int, ...]]
    ) -> Outcome:
        if tokens[-1].finish == "not_finite":
            return Failure(
                "not_finite", f"the model computed NaN or infinity after {len(tokens) - 1} tokens of its reply"
            )
        ids = [new.token for new in tokens]
        kept, text, reasoning = read_reply(prompt, ids, tokens[-1].finish == "stop", stops, self._text)
        finish = tokens[-1].finish
        assert finish == "stop" or finish == "length", "a reply is told when it has ended"
        logprobs = None
        if request.sampling.logprobs is not None and reasoning is None:
            logprobs = tuple(token_logprob(new, self._text) for new in tokens[: len(kept)])
        return Completion(text, finish, reasoning=reasoning, logprobs=logprobs, usage=Usage(len(prompt), len(ids)))


class ReadReply(NamedTuple):
    """The tokens of a reply without its stop, its text without the think block, and the block (None = there was none)."""

    kept: list[int]
    text: str
    reasoning: str | None


def read_reply(
    prompt: NDArray[np.int32],
    ids: list[int],
    stopped: bool,
    stops: Sequence[tuple[int, ...]],
    text_of: Callable[[Sequence[int]], str],
) -> ReadReply:
    """What the sampled ids [T] of a reply say behind the ids of a prompt."""
    kept = without_stop(ids, stops) if stopped else ids
    opened = text_of(prompt[-LAST_TOKENS:].tolist()).rstrip().endswith("<think>")
    return ReadReply(kept, *split_think(text_of(kept), opened=opened))
