"""What is counted of training examples."""

from __future__ import annotations

import numpy as np

from posttrain.encode.facts import LONG_REPLY, example_facts
from posttrain.encode.preferences import FeedbackTokens, PairTokens
from posttrain.types import Tokens

STOP = 7


def tokens(prompt: list[int], reply: list[int]) -> Tokens:
    ids = np.array([*prompt, *reply], np.int32)
    return Tokens(ids, np.array([0.0] * len(prompt) + [1.0] * len(reply), np.float32), "row")


def test_stops_and_repetitions_by_hand() -> None:
    long = [*range(10, 10 + LONG_REPLY - 1), STOP]
    examples = [
        tokens([1], long),
        tokens([2], long),  # the reply again
        tokens([2], long),  # the whole again
        tokens([3], long[:-1]),  # cut before its stop, and short enough to be a label
        tokens([4], [9, STOP]),
        tokens([5], [9, STOP]),  # a label again is no repetition
    ]
    found = example_facts(examples, [(STOP,)], 100)
    assert (found.examples, found.replies, found.stops) == (6, 6, 5)
    assert (found.repeated, found.long_replies, found.repeated_replies) == (1, 3, 2)
    assert (found.vocabulary, found.pairs_compared, found.similarity) == (100, 0, None)


def test_replies_that_repeat_themselves_by_hand() -> None:
    examples = [tokens([1], [1, 2, 3, 4] * 3), tokens([1], list(range(9))), tokens([1], [5])]
    found = example_facts(examples, [], 100)
    assert found.repetition == (1 - 4 / 9) / 2  # nine runs of four, four of them different; the shortest has none


def test_pairs_are_alike_by_the_tokens_they_share() -> None:
    first, other = list(range(10)), [*range(9), 99]
    pairs = [PairTokens(tokens([1], [*first, STOP]), tokens([1], [*other, STOP]), str(n)) for n in range(3)]
    pairs.append(PairTokens(tokens([1], [*first, STOP]), tokens([1], [50]), "3"))
    found = example_facts(pairs, [(STOP,)], 100)
    assert (found.pairs_compared, found.alike) == (4, 3)
    assert found.similarity == 1 - 2 / 22  # of 11 tokens a side one is replaced: deleted and inserted
    assert (found.replies, found.stops) == (8, 7)


def test_only_better_replies_are_looked_at_for_repetitions() -> None:
    long = list(range(LONG_REPLY))
    found = example_facts([FeedbackTokens(tokens([n], long), n == 0) for n in range(3)], [], 100)
    assert (found.long_replies, found.repeated_replies, found.stops) == (1, 0, 0)
