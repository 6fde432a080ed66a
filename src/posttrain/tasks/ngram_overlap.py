"""Overlap of a text with references: BLEU and ROUGE-L.

Both compare the tokens of ``posttrain.data.text`` (case folded, no punctuation, a CJK character is a token), so the numbers are not those of
sacrebleu's ``13a`` or of rouge-score's tokenizer, which see other tokens; on the same tokens they agree. Overlap says little about the quality of
open-ended replies: these are for those who ask. Lists run over texts; ``N`` in names: n-gram orders 1 to 4 or so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from posttrain.data.text import tokens

Smoothing = Literal["none", "floor", "add_one", "exponential"]
"""What stands for a precision of zero matches.

none          0, and so is the score
floor         0.1 matches (method 1 of Chen and Cherry 2014)
add_one       1 match and 1 n-gram more at every order above 1, zero or not (Lin and Och 2004); an order the text is too short for gets none
exponential   1/2 of a match at the first order without matches, 1/4 at the next, ... (NIST's mteval-v13a)
"""


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


class RougeL(NamedTuple):
    """Longest common subsequence as a share of the reference (recall), of the text (precision), and their F."""

    precision: float
    recall: float
    f: float


def ngram_counts(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often every run of n tokens occurs; nothing where there are fewer than n."""
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def bleu_counts(words: Sequence[str], references: Sequence[Sequence[str]], max_order: int = 4) -> BleuCounts:
    """Counts of one text against its references, all as tokens.

    Raises:
        ValueError: no references, or an order below 1.

    """
    if not references or max_order < 1:
        raise ValueError("BLEU needs at least one reference and orders from 1 up")
    matches, totals = [], []
    for n in range(1, max_order + 1):
        own = ngram_counts(words, n)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= ngram_counts(reference, n)
        matches.append((own & most).total())
        totals.append(own.total())
    nearest = nearest_length(len(words), [len(reference) for reference in references])
    return BleuCounts(tuple(matches), tuple(totals), len(words), nearest)


def nearest_length(length: int, reference_lengths: Sequence[int]) -> int:
    """The reference length nearest to a text's; the shorter of two equally near."""
    return min(reference_lengths, key=lambda other: (abs(other - length), other))


def bleu_of(counts: BleuCounts, smoothing: Smoothing = "none", *, effective_order: bool = False) -> float:
    """BLEU from 0 to 1: brevity penalty times the geometric mean of the precisions (Papineni et al. 2002, section 2.3).

    BP = min(1, exp(1 - r / c)) with c tokens of the text and r of the reference. With ``effective_order`` the mean is over the orders the text
    is long enough for; otherwise a text without 4-grams scores 0. A text without a single match scores 0 under any smoothing.
    """
    if not any(counts.matches_N):
        return 0.0
    orders = [n for n, total in enumerate(counts.ngrams_N) if total]
    if len(orders) < len(counts.ngrams_N) and not effective_order:
        return 0.0
    precisions, halves = [], 0
    for n in orders:
        matches, total = float(counts.matches_N[n]), counts.ngrams_N[n]
        if smoothing == "add_one" and n > 0:
            matches, total = matches + 1, total + 1
        elif matches == 0 and smoothing == "floor":
            matches = 0.1
        elif matches == 0 and smoothing == "exponential":
            halves += 1
            matches = 0.5**halves
        precisions.append(matches / total)
    if 0 in precisions:
        return 0.0
    penalty = min(1.0, math.exp(1 - counts.reference_length / counts.length))
    return penalty * math.exp(sum(map(math.log, precisions)) / len(precisions))


def corpus_bleu(
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    smoothing: Smoothing = "none",
    max_order: int = 4,
) -> float:
    """BLEU of a corpus from 0 to 1; ``references[i]`` are those of ``texts[i]``. Counts are summed before precisions are formed.

    >>> round(corpus_bleu(["the cat sat on the mat"], [["The cat sat on a mat."]]), 4)
    0.5373

    Raises:
        ValueError: no texts, unequal lengths, or a text without references.

    """
    if len(texts) != len(references) or not texts:
        raise ValueError(f"a list of references per text is needed: {len(texts)} texts, {len(references)} lists")
    rows = zip(texts, references, strict=True)
    return bleu_of(
        added(bleu_counts(tokens(text), [tokens(r) for r in own], max_order) for text, own in rows), smoothing
    )


def added(counts: Iterable[BleuCounts]) -> BleuCounts:
    """The counts of several texts together."""
    matches, totals, lengths, reference_lengths = zip(*counts, strict=True)
    return BleuCounts(
        tuple(map(sum, zip(*matches, strict=True))),
        tuple(map(sum, zip(*totals, strict=True))),
        sum(lengths),
        sum(reference_lengths),
    )


def rouge_l(text: str, references: Sequence[str], *, beta: float = 1.0) -> RougeL:
    """ROUGE-L of a text: F = (1 + beta^2) R P / (R + beta^2 P) (Lin 2004, eq. 2 to 4), of the reference with the largest F.

    ``beta`` 1 is what rouge-score prints; Lin weighs recall more with a larger one. A text without tokens scores 0.

    >>> rouge_l("police kill the gunman", ["Police killed the gunman."])
    RougeL(precision=0.75, recall=0.75, f=0.75)

    Raises:
        ValueError: no references, a reference without tokens, or a beta that is not positive.

    """
    words = tokens(text)
    wanted = [tokens(reference) for reference in references]
    if not wanted or not all(wanted) or not 0 < beta < math.inf:
        raise ValueError("ROUGE-L needs references with words in them, and a beta above 0")
    return max((_rouge_l(words, reference, beta) for reference in wanted), key=lambda found: found.f)


def _rouge_l(words: Sequence[str], reference: Sequence[str], beta: float) -> RougeL:
    common = longest_common_subsequence(words, reference)
    if common == 0:
        return RougeL(0.0, 0.0, 0.0)
    precision, recall = common / len(words), common / len(reference)
    return RougeL(precision, recall, (1 + beta**2) * recall * precision / (recall + beta**2 * precision))


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by the bit-parallel recurrence of Hyyro (2004): one addition per token of ``b``.

    Bit i of ``row`` is 0 where the row of the usual table steps up at column i.
    """
    places: dict[str, int] = {}
    for position, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << position
    row = every = (1 << len(a)) - 1
    for word in b:
        found = row & places.get(word, 0)
        row = ((row + found) | (row - found)) & every
    return len(a) - row.bit_count()
