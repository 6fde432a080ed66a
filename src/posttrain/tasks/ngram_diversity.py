"""How varied replies are: distinct n-grams, self-BLEU, spread of embeddings, repetition and length.

Two kinds of variety are told apart. Several samples of one prompt: does the model say different things when asked again? All replies to many prompts:
does it speak in set phrases? Everything counts the tokens of ``posttrain.data.text``. Aligned models lose variety in ways win rates do not show
(Kirk et al. 2024, arXiv:2310.06452).

Shapes in names: ``N`` samples, ``D`` dimensions, ``T`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from posttrain.data.text import tokens
from posttrain.tasks.ngram_overlap import BleuCounts, Smoothing, bleu_of, nearest_length, ngram_counts


class Repetition(NamedTuple):
    """How much a reply repeats itself."""

    repeated_share: float
    """Share of its n-grams that stood before in it: 1 - distinct / all (Welleck et al. 2020, arXiv:1908.04319, seq-rep-n)."""
    longest_repeat: int
    """Tokens of the longest run that occurs again in it; the two may overlap, so ``a a a a`` has a run of 3."""


# ---- measures ------------------------------------------------------------------------------------------------------


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams as a share of all, over the texts together (Li et al. 2016, arXiv:1510.03055); None where there are none.

    It falls with the amount of text: compare like with like.

    >>> distinct_n(["I am fine", "I am here"], 1), distinct_n(["Yes."], 2)
    (0.6666666666666666, None)
    """
    return _distinct([tokens(text) for text in texts], n)


def _distinct(replies: Sequence[Sequence[str]], n: int) -> float | None:
    if n < 1:
        raise ValueError(f"n-grams have at least one token, not {n}")
    counts = [ngram_counts(words, n) for words in replies]
    total = sum(each.total() for each in counts)
    return len(set().union(*counts)) / total if total else None


def self_bleu(samples: Sequence[str], *, max_order: int = 4, smoothing: Smoothing = "floor") -> float | None:
    """Mean BLEU of every sample against all others as references, from 0 (nothing in common) to 1 (all the same).

    Zhu et al. 2018 (arXiv:1802.01886), of one prompt's samples. Texts shorter than ``max_order`` are judged by the orders they have. Samples
    without tokens are left out; None where fewer than two remain.

    >>> self_bleu(["yes it is", "yes it is", "yes it is"]), self_bleu(["yes", "no"]), self_bleu(["yes"])
    (1.0, 0.0, None)
    """
    return _self_bleu([tokens(sample) for sample in samples], max_order, smoothing)


def _self_bleu(samples: Sequence[Sequence[str]], max_order: int, smoothing: Smoothing) -> float | None:
    if max_order < 1:
        raise ValueError(f"BLEU needs orders from 1 up, not {max_order}")
    written = [words for words in samples if words]
    if len(written) < 2:
        return None
    counts = _each_against_the_others(written, max_order)
    return fmean(bleu_of(each, smoothing, effective_order=True) for each in counts)


def _each_against_the_others(samples: Sequence[Sequence[str]], max_order: int) -> list[BleuCounts]:
    """``bleu_counts(sample, all others)`` of every sample, in one pass over the n-grams instead of one per pair."""
    matches: list[list[int]] = [[] for _ in samples]
    totals: list[list[int]] = [[] for _ in samples]
    for n in range(1, max_order + 1):
        counts = [ngram_counts(words, n) for words in samples]
        most: dict[tuple[str, ...], tuple[int, int]] = {}
        for own in counts:
            for gram, count in own.items():
                first, second = most.get(gram, (0, 0))
                most[gram] = (count, first) if count > first else (first, max(count, second))
        for number, own in enumerate(counts):
            # Without the sample that has most of an n-gram, the second most is what the others have.
            others = ((count, most[gram]) for gram, count in own.items())
            matches[number].append(sum(min(count, two[1] if count == two[0] else two[0]) for count, two in others))
            totals[number].append(own.total())
    lengths = [len(words) for words in samples]
    nearest = [nearest_length(length, [*lengths[:i], *lengths[i + 1 :]]) for i, length in enumerate(lengths)]
    rows = zip(matches, totals, lengths, nearest, strict=True)
    return [BleuCounts(tuple(m), tuple(t), length, reference) for m, t, length, reference in rows]


def embedding_spread(embeddings_ND: ArrayLike) -> float:
    """Mean cosine distance over all pairs of samples: 1 - mean of cos(i, j), i < j; 0 = all point the same way.

    Raises:
        ValueError: fewer than two rows, a value that is not finite, or a row of zeros.

    """
    rows_ND = np.asarray(embeddings_ND, dtype=np.float64)
    if rows_ND.ndim != 2 or len(rows_ND) < 2:
        raise ValueError(f"embeddings [N, D] of at least two samples are needed, not {rows_ND.shape}")
    largest_N = np.abs(rows_ND).max(axis=1, initial=0.0)
    if not np.isfinite(largest_N).all() or not (largest_N > 0).all():
        row = int(np.flatnonzero(~np.isfinite(largest_N) | (largest_N <= 0))[0])
        raise ValueError(f"row {row} has no direction: it is all zeros or not finite")
    scaled_ND = rows_ND / largest_N[:, None]
    units_ND = scaled_ND / np.linalg.norm(scaled_ND, axis=1, keepdims=True)
    pairs = len(units_ND) * (len(units_ND) - 1) / 2
    # Half the mean squared distance is 1 - cos for unit vectors; around the mean it loses no digits where all are nearly equal.
    centred_ND = units_ND - units_ND.mean(axis=0)
    return float(len(units_ND) * np.square(centred_ND).sum() / 2 / pairs)


def repetition(text: str, n: int = 4) -> Repetition | None:
    """How much a reply repeats itself; None where it has fewer than n tokens.

    >>> repetition("one two three one two three", 2)
    Repetition(repeated_share=0.4, longest_repeat=3)
    """
    return _repetition(tokens(text), n)


def _repetition(words: Sequence[str], n: int) -> Repetition | None:
    distinct = _distinct([words], n)
    return None if distinct is None else Repetition(1 - distinct, longest_repeat(words))


def longest_repeat(words: Sequence[str]) -> int:
    """Length of the longest run of tokens that occurs at least twice, in O(T log^2 T).

    Prefix doubling (Karp, Miller and Rosenberg 1972): runs of 1, 2, 4, ... tokens get numbers, equal ones the same, until none occurs twice; then
    the length is built up from its highest bit, as a run of a + b tokens is a pair of numbers.
    """
    if not words:
        return 0
    numbers: dict[str, int] = {}
    doubled = [np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)]
    while _repeats(doubled[-1]) and len(doubled[-1]) > 1 << (len(doubled) - 1):
        doubled.append(_joined(doubled[-1], doubled[-1], 1 << (len(doubled) - 1)))
    length, names = 0, np.zeros(len(words), dtype=np.int64)
    for bit in reversed(range(len(doubled))):
        longer = _joined(names, doubled[bit], length)
        if _repeats(longer):
            length, names = length + (1 << bit), longer
    return length


def _joined(first_T: Any, second_T: Any, length: int) -> Any:
    """Numbers of runs that begin with ``first`` (of ``length`` tokens) and go on with ``second``."""
    follow = second_T[length:]
    count = min(len(first_T), len(follow))
    pairs = first_T[:count].astype(np.int64) * (int(second_T.max(initial=0)) + 1) + follow[:count]
    return np.unique(pairs, return_inverse=True)[1]


def _repeats(names_T: Any) -> bool:
    return bool(len(names_T) and names_T.max() + 1 < len(names_T))
