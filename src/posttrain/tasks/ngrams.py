"""What n-grams say of replies: overlap with references (BLEU, ROUGE-L), and variety (distinct n-grams, self-BLEU, repetition).

Everything counts the tokens of ``posttrain.data.text`` (case folded, no punctuation, a CJK character is a token), so the numbers are not
those of sacrebleu's ``13a`` or of rouge-score's tokenizer; on the same tokens they agree. Shapes in names: ``N`` n-gram orders 1 to 4,
``T`` tokens.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
from rapidfuzz.distance import LCSseq

from posttrain.data.text import tokens

ORDERS = 4
Smoothing = Literal["floor", "exponential"]
"""What stands for a precision of zero matches.

floor         0.1 matches (method 1 of Chen and Cherry 2014)
exponential   1/2 of a match at the first order without matches, 1/4 at the next, ... (NIST's mteval-v13a)
"""


def ngram_counts(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often every run of n tokens occurs; nothing where there are fewer than n."""
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


# ---- BLEU ----------------------------------------------------------------------------------------------------------


class BleuCounts(NamedTuple):
    """What BLEU is made of; counts of several texts are added field by field."""

    matches_N: tuple[int, ...]
    """N-grams found in a reference, each at most as often as there (clipped), by order."""
    ngrams_N: tuple[int, ...]
    """N-grams there are, by order."""
    length: int
    """Tokens of the text."""
    reference_length: int
    """Tokens of the reference nearest in length, the shorter one of two equally near."""


def bleu_counts(words: Sequence[str], references: Sequence[Sequence[str]]) -> BleuCounts:
    """Counts of one text against its references (at least one), all as tokens."""
    matches, totals = [], []
    for n in range(1, ORDERS + 1):
        own, most = ngram_counts(words, n), Counter[tuple[str, ...]]()
        for reference in references:
            most |= ngram_counts(reference, n)
        matches.append((own & most).total())
        totals.append(own.total())
    nearest = min(map(len, references), key=lambda length: (abs(length - len(words)), length))
    return BleuCounts(tuple(matches), tuple(totals), len(words), nearest)


def added(counts: Iterable[BleuCounts]) -> BleuCounts:
    """The counts of several texts together."""
    matches, totals, lengths, reference_lengths = zip(*counts, strict=True)
    sums_N, totals_N = (tuple(map(sum, zip(*rows, strict=True))) for rows in (matches, totals))
    return BleuCounts(sums_N, totals_N, sum(lengths), sum(reference_lengths))


def bleu_of(counts: BleuCounts, smoothing: Smoothing, *, effective_order: bool = False) -> float:
    """BLEU from 0 to 1: brevity penalty times the geometric mean of the precisions (Papineni et al. 2002, section 2.3).

    BP = min(1, exp(1 - r / c)) with c tokens of the text and r of the reference. With ``effective_order`` the mean is over the orders the text
    is long enough for; otherwise a text without 4-grams scores 0. A text without a single match scores 0 under any smoothing.
    """
    orders = [n for n, total in enumerate(counts.ngrams_N) if total]
    if not any(counts.matches_N) or (len(orders) < ORDERS and not effective_order):
        return 0.0
    precisions, halves = [], 0
    for n in orders:
        matches = float(counts.matches_N[n])
        if matches == 0:
            halves += 1
            matches = 0.1 if smoothing == "floor" else 0.5**halves
        precisions.append(matches / counts.ngrams_N[n])
    penalty = min(1.0, math.exp(1 - counts.reference_length / counts.length))
    return penalty * math.exp(sum(map(math.log, precisions)) / len(precisions))


def self_bleu(samples: Sequence[str]) -> float | None:
    """Mean BLEU of every sample against all others as references, from 0 (nothing in common) to 1 (all the same).

    Zhu et al. 2018 (arXiv:1802.01886), of one prompt's samples. Texts shorter than four tokens are judged by the orders they have. Samples
    without tokens are left out; None where fewer than two remain.

    >>> self_bleu(["yes it is", "yes it is", "yes it is"]), self_bleu(["yes", "no"]), self_bleu(["yes"])
    (1.0, 0.0, None)
    """
    written = [words for words in map(tokens, samples) if words]
    if len(written) < 2:
        return None
    counts = [bleu_counts(words, [*written[:i], *written[i + 1 :]]) for i, words in enumerate(written)]
    return fmean(bleu_of(each, "floor", effective_order=True) for each in counts)


# ---- ROUGE-L -------------------------------------------------------------------------------------------------------


def rouge_l(text: str, references: Sequence[str]) -> float:
    """ROUGE-L of a text: F = 2 R P / (R + P) (Lin 2004, eq. 2 to 4, beta 1), of the reference with the largest F.

    The longest common subsequence is taken as a share of the reference (recall) and of the text (precision). References have words in
    them; a text without tokens scores 0.

    >>> rouge_l("police kill the gunman", ["Police killed the gunman."])
    0.75
    """
    words = tokens(text)
    return max(rouge_l_of(words, tokens(reference)) for reference in references)


def rouge_l_of(words: Sequence[str], reference: Sequence[str]) -> float:
    """ROUGE-L of two texts as tokens; 2 R P / (R + P) is twice the common tokens as a share of all. 0 where one has none."""
    return 2 * longest_common_subsequence(words, reference) / (len(words) + len(reference) or 1)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by the bit-parallel recurrence of Hyyro (2004)."""
    return int(LCSseq.similarity(a, b))


# ---- variety -------------------------------------------------------------------------------------------------------


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Distinct n-grams as a share of all, over the texts together (Li et al. 2016, arXiv:1510.03055); None where there are none.

    It falls with the amount of text: compare like with like.

    >>> distinct_n(["I am fine", "I am here"], 1), distinct_n(["Yes."], 2)
    (0.6666666666666666, None)
    """
    counts = [ngram_counts(tokens(text), n) for text in texts]
    total = sum(each.total() for each in counts)
    return len(set().union(*counts)) / total if total else None


def repetition(text: str) -> tuple[float, int] | None:
    """How much a reply repeats itself; None where it has fewer than four tokens.

    The share of its runs of four tokens that stood before in it, 1 - distinct / all (Welleck et al. 2020, arXiv:1908.04319, seq-rep-4), and
    the tokens of the longest run that occurs again in it; the two may overlap, so ``a a a a`` has a run of 3.
    """
    distinct = distinct_n([text], ORDERS)
    return None if distinct is None else (1 - distinct, longest_repeat(tokens(text)))


def longest_repeat(words: Sequence[str]) -> int:
    """Length of the longest run of tokens that occurs at least twice, in O(T log^2 T).

    Prefix doubling (Karp, Miller and Rosenberg 1972): runs of 1, 2, 4, ... tokens get numbers, equal ones the same; a run of any
    length is a pair of those that begin and end it. Where a run occurs again so does every shorter one.
    """
    numbers: dict[str, int] = {}
    doubled = [np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)]
    while len(doubled[-1]) > 1 << (len(doubled) - 1):
        doubled.append(_joined(doubled[-1], 1 << (len(doubled) - 1)))

    def unique(length: int) -> bool:
        power = length.bit_length() - 1
        runs_T = _joined(doubled[power], length - (1 << power))
        return bool(runs_T.max() + 1 == len(runs_T))

    return bisect_left(range(1, len(words)), True, key=unique)


def _joined(runs_T: Any, shift: int) -> Any:
    """Numbers of the runs that begin with one run and end with the one that starts ``shift`` tokens later."""
    later_T = runs_T[shift:]
    return np.unique(runs_T[: len(later_T)] * (int(runs_T.max()) + 1) + later_T, return_inverse=True)[1]
