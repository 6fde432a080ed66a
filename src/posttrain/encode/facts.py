"""What the training examples of a stage are like, counted once where they are made (examples.json, docs/run-folder.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Indel

from posttrain.encode.preferences import FeedbackTokens, PairTokens, sequences_of
from posttrain.types import Tokens

T = TypeVar("T")

EXAMPLES_FILE = "examples.json"
"""In the stage's folder."""
LONG_REPLY = 16
"""A reply of so many tokens is not said twice by chance; a shorter one may be a label."""
MOST_READ = 512
"""Replies, or pairs of them, that are read token by token, spread evenly over all."""
RUN = 4
"""Tokens of a run that may come again in its reply (Welleck et al. 2020, arXiv:1908.04319, seq-rep-4)."""
ALIKE = 0.9
"""Replies that share so much of their tokens are alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleFacts:
    """examples.json of a train stage: an epoch of examples, rows that count several times as often as they do."""

    examples: int
    replies: int
    """Sequences: two a pair."""
    stops: int
    """Replies whose last supervised tokens are a stop, so that ending is learned."""
    repeated: int
    """Examples that are token for token an earlier one."""
    long_replies: int
    """Better replies of at least 16 tokens."""
    repeated_replies: int
    """Those of them that stood before, under whatever prompt."""
    vocabulary: int
    """Tokens the tokenizer knows."""
    repetition: float = 0.0
    """Of better replies, the mean share of runs of four tokens that stood before in the same reply."""
    pairs_compared: int = 0
    similarity: float | None = None
    """Of the compared pairs, the median share of tokens in common (1 less the indel distance over the tokens of both)."""
    alike: int = 0
    """Compared pairs that share at least 90% of their tokens."""


def example_facts(
    examples: Sequence[Tokens | PairTokens | FeedbackTokens], stops: Sequence[tuple[int, ...]], vocabulary: int
) -> ExampleFacts:
    """Count. ``stops``: the token sequences that end a reply."""
    sequences = [sequence for one in examples for sequence in sequences_of(one)]
    wholes = [tuple(sequence.ids_T.tobytes() for sequence in sequences_of(one)) for one in examples]
    better = [_reply(sequences_of(one)[0]) for one in examples if not isinstance(one, FeedbackTokens) or one.desirable]
    long = [reply.tobytes() for reply in better if len(reply) >= LONG_REPLY]
    pairs = _spread([one for one in examples if isinstance(one, PairTokens)])
    shares = [Indel.normalized_similarity(_reply(one.chosen).tolist(), _reply(one.rejected).tolist()) for one in pairs]
    repeated = [_repetition(reply.tolist()) for reply in _spread([reply for reply in better if len(reply) >= RUN])]
    return ExampleFacts(
        examples=len(examples),
        replies=len(sequences),
        stops=sum(_ends(sequence, stops) for sequence in sequences),
        repeated=len(wholes) - len(set(wholes)),
        long_replies=len(long),
        repeated_replies=len(long) - len(set(long)),
        vocabulary=vocabulary,
        repetition=float(np.mean(repeated)) if repeated else 0.0,
        pairs_compared=len(shares),
        similarity=median(shares) if shares else None,
        alike=sum(share >= ALIKE for share in shares),
    )


def _spread(several: Sequence[T]) -> list[T]:
    """At most `MOST_READ` of them, from the first to the last."""
    return [several[int(place)] for place in np.linspace(0, len(several) - 1, min(len(several), MOST_READ))]


def _repetition(tokens: Sequence[int]) -> float:
    runs = list(zip(*(tokens[start:] for start in range(RUN)), strict=False))
    return 1 - len(set(runs)) / len(runs)


def _reply(tokens: Tokens) -> NDArray[np.int32]:
    """Its supervised tokens."""
    reply_S: NDArray[np.int32] = tokens.ids_T[tokens.weights_T != 0]
    return reply_S


def _ends(tokens: Tokens, stops: Sequence[tuple[int, ...]]) -> bool:
    """Whether its last supervised tokens are a stop."""
    reply = _reply(tokens)
    return any(tuple(reply[-len(stop) :].tolist()) == stop for stop in stops if stop)
