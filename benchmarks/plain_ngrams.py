"""n-grams as sets of tuples: what hashed ones are compared with, here and in tests."""

from __future__ import annotations

from collections.abc import Sequence


def ngrams(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    """All runs of n tokens; fewer than n tokens are one n-gram, no tokens are none."""
    if len(words) < n:
        return {tuple(words)} if words else set()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
