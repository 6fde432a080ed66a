"""A round of replies: sampled from the live weights, scored, and what of each is learned from.

The ids that were sampled are the ids that are trained on. Each reply draws from a generator of its own, seeded by (seed, step, row,
number of the reply): what it says depends neither on the order of the prompts nor on its neighbours' draws.

Shapes: R replies, T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import nn

from posttrain.errors import TrainingError
from posttrain.generate.decode import NewToken, decode
from posttrain.generate.engine import Sampling
from posttrain.generate.local import read_reply
from posttrain.model.forward import causal_lm
from posttrain.model.lengths import context_of
from posttrain.online.prompts import Prompt
from posttrain.online.scores import CUT, Missing, Scorer, Written
from posttrain.parallel.peers import ALONE, Peers
from posttrain.types import Tokens

PROBED = 1
"""Replies of a prompt whose log-probabilities the sampler tells as well, to be held against the trainer's."""


@dataclass(frozen=True, eq=False)
class Reply:
    """A sampled reply."""

    prompt: Prompt
    ids_T: NDArray[np.int32]
    """The tokens, the stop included."""
    text: str
    """Without its think block and its stop."""
    cut: bool
    """Whether it reached the limit of tokens."""
    sampler_logps_T: NDArray[np.float32] | None = None
    """Of its tokens at temperature 1, as the sampler had them; None where they were not asked for."""
    version: int = 0
    """Steps that the weights it was sampled from had learned."""

    @property
    def tokens(self) -> Tokens:
        """Prompt and reply, every token of the reply supervised."""
        ids_T = np.concatenate([self.prompt.ids_T, self.ids_T])
        weights_T = np.zeros(len(ids_T), np.float32)
        weights_T[len(self.prompt.ids_T) :] = 1.0
        return Tokens(ids_T, weights_T, self.prompt.row_id)


class Drawing(NamedTuple):
    """How replies are drawn."""

    stops: Sequence[tuple[int, ...]]
    """Token sequences that end a reply: all that the template trains and the model knows."""
    text_of: Callable[[Sequence[int]], str]
    """What ids say, without special tokens."""
    temperature: float
    max_new_tokens: int


class Sampler(Protocol):
    """Who writes the replies."""

    def sample(self, prompts: Sequence[Prompt], replies: int, seed: int, step: int, version: int) -> list[Reply]:
        """So many replies to every prompt, those of a prompt one after another.

        step: what their seeds are made of. version: steps that the live weights have learned. Raises a PosttrainError where there are none.
        """

    def checkpointed(self) -> None:
        """The live weights are saved: what was sampled until now is never asked for again."""

    def close(self) -> None:
        """The run has ended well."""


Report = Callable[[int, int], None]
"""Called with (replies that are there, all)."""


class OwnWeights(NamedTuple):
    """Samples from the live modules, without a copy; of several processes each answers its share of the prompts."""

    model: nn.Module
    drawing: Drawing
    report: Report
    peers: Peers = ALONE

    def sample(self, prompts: Sequence[Prompt], replies: int, seed: int, step: int, version: int) -> list[Reply]:
        """See `Sampler`."""

        def answered(some: Sequence[Prompt]) -> list[Reply]:
            return sample(self.model, some, replies, self.drawing, seed, step, self.report)

        if self.peers.size == 1:
            return [replace(reply, version=version) for reply in answered(prompts)]

        def told(some: list[Prompt]) -> list[list[Told]]:
            found = iter(answered(some))
            return [[tell(next(found)) for _ in range(replies)] for _ in some]

        by_prompt = self.peers.compute(prompts, [1] * len(prompts), told)
        return [heard(prompt, one, version) for prompt, own in zip(prompts, by_prompt, strict=True) for one in own]

    def checkpointed(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is held."""


class OneForAll(NamedTuple):
    """A sampler that rank 0 asks, and whose replies it tells the others."""

    own: Sampler
    peers: Peers

    def sample(self, prompts: Sequence[Prompt], replies: int, seed: int, step: int, version: int) -> list[Reply]:
        """See `Sampler`."""
        found = self.peers.decided(
            lambda: [tell(one) for one in self.own.sample(prompts, replies, seed, step, version)]
        )
        return [heard(prompts[place // replies], one, version) for place, one in enumerate(found)]

    def checkpointed(self) -> None:
        """See `Sampler`."""
        self.own.checkpointed()

    def close(self) -> None:
        """See `Sampler`."""
        self.own.close()


Told = tuple[list[int], str, bool, list[float] | None]
"""A reply as processes tell it each other."""


def tell(reply: Reply) -> Told:
    """All of a reply but its prompt and version."""
    logps = None if reply.sampler_logps_T is None else reply.sampler_logps_T.tolist()
    return reply.ids_T.tolist(), reply.text, reply.cut, logps


def heard(prompt: Prompt, told: Told, version: int) -> Reply:
    """The inverse of `tell`."""
    ids, text, cut, logps = told
    logps_T = None if logps is None else np.array(logps, np.float32)
    return Reply(prompt, np.array(ids, np.int32), text, cut, logps_T, version)


def draw_seed(seed: int, step: int, row_id: str, number: int) -> int:
    """The seed of one reply."""
    return xxhash.xxh3_64_intdigest(f"{seed} {step} {row_id} {number}".encode()) >> 1


def sample(
    model: nn.Module,
    prompts: Sequence[Prompt],
    replies: int,
    drawing: Drawing,
    seed: int,
    step: int,
    progress: Report = lambda done, total: None,
) -> list[Reply]:
    """So many replies to every prompt, those of a prompt one after another. Raises TrainingError where the model computes NaN."""
    drawn = draws(model, prompts, replies, drawing, seed, step)
    asked, samplings = [prompt for prompt, _ in drawn], [sampling for _, sampling in drawn]
    said: list[list[NewToken]] = [[] for _ in asked]
    training, done = model.training, 0
    model.eval()
    for new in decode(model, [prompt.ids_T for prompt in asked], drawing.stops, samplings):
        said[new.prompt].append(new)
        if new.finish == "not_finite":
            raise TrainingError(
                f"the model computed NaN or infinity in a reply to {asked[new.prompt].row_id}",
                fix="lower learning_rate, or use dtype: fp32; the last checkpoint is intact",
            )
        if new.finish is not None:
            done += 1
            progress(done, len(asked))
    model.train(training)
    return [_reply(prompt, tokens, drawing) for prompt, tokens in zip(asked, said, strict=True)]


def draws(
    model: nn.Module, prompts: Sequence[Prompt], replies: int, drawing: Drawing, seed: int, step: int
) -> list[tuple[Prompt, Sampling]]:
    """Every reply of a round: what it answers and how it is drawn."""
    room = context_of(causal_lm(model).config)
    found = []
    for prompt in prompts:
        limit = drawing.max_new_tokens if room is None else min(drawing.max_new_tokens, room - len(prompt.ids_T))
        for number in range(replies):
            own_seed = draw_seed(seed, step, prompt.row_id, number)
            probed = 0 if number < PROBED else None
            found.append((prompt, Sampling(drawing.temperature, 1.0, limit, own_seed, probed)))
    return found


def _reply(prompt: Prompt, tokens: Sequence[NewToken], drawing: Drawing) -> Reply:
    likely = [new.likely.logprob for new in tokens if new.likely is not None]
    return reply_of(prompt, [new.token for new in tokens], tokens[-1].finish == "stop", likely, drawing)


def reply_of(prompt: Prompt, ids: list[int], stopped: bool, logprobs: Sequence[float], drawing: Drawing) -> Reply:
    """A reply by its sampled ids [T], the stop included. logprobs: of its tokens at temperature 1, or none."""
    return Reply(
        prompt,
        np.array(ids, np.int32),
        read_reply(prompt.ids_T, ids, stopped, drawing.stops, drawing.text_of).text,
        not stopped,
        np.array(logprobs, np.float32) if len(logprobs) == len(ids) else None,
    )


class Scored(NamedTuple):
    """A reply with what it is worth."""

    reply: Reply
    reward: float | Missing
    parts: dict[str, float]
    besides: Mapping[str, float] = {}
    """What became of its comparisons."""


def written(reply: Reply, text: str) -> Written:
    """A text as the reply to a prompt."""
    one = reply.prompt
    return Written(one.messages, text, one.meta, one.task, one.row_id)


def score(
    replies: Sequence[Reply],
    scorer: Scorer,
    cut_replies: Literal["score", "drop"] | float,
    rivals: Sequence[Written] = (),
) -> list[Scored]:
    """What each reply is worth; with ``drop`` a cut one is missing. rivals: what they are compared with besides each other."""
    worths = scorer([*(written(one, one.text) for one in replies), *rivals])[: len(replies)]
    found = []
    for reply, worth in zip(replies, worths, strict=True):
        reward = worth.reward
        if reply.cut and cut_replies == "drop":
            reward = CUT
        elif reply.cut and not isinstance(cut_replies, str) and not isinstance(reward, Missing):
            reward = float(cut_replies)
        found.append(Scored(reply, reward, dict(worth.parts), worth.besides))
    return found
