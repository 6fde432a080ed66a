"""Tells quickly which texts may share an n-gram with the evaluation texts; most training rows share none.

Works on hashes of tokens (:mod:`posttrain.data.shingles`), so it may let a text pass that shares nothing, but never holds back
one that does. What passes is looked at token by token by the index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posttrain.data.shingles import hash_tokens

Keys = NDArray[np.uint64]

_MOST_BITS = 21
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Sieve:
    """For every length of n-gram in use the sorted keys of its n-grams, and which leading bits keys of them begin with."""

    keys: dict[int, Keys]
    begins: dict[int, NDArray[np.bool_]]


def sieve(texts: Mapping[int, Sequence[str]]) -> Sieve:
    """The sieve of texts by the length of the n-grams they are looked for with; none has fewer tokens than that."""
    keys = {size: np.unique(dict(_windows(hash_tokens(its).hashes_T, [size]))[size]) for size, its in texts.items()}
    return Sieve(keys, {size: _begins(known) for size, known in keys.items()})


def passing(through: Sieve, texts: Sequence[str]) -> NDArray[np.int64]:
    """The texts, by number, that may share an n-gram."""
    words = hash_tokens(texts)
    found = np.zeros(len(words.hashes_T), np.bool_)
    for size, keys in _windows(words.hashes_T, list(through.keys)):
        near = np.flatnonzero(through.begins[size].take(_leading(keys, through.begins[size])))
        known = through.keys[size]
        place = np.searchsorted(known, keys[near])
        found[near[known[np.minimum(place, len(known) - 1)] == keys[near]]] = True
    return np.unique(np.searchsorted(words.offsets_N, np.flatnonzero(found), side="right") - 1)


def _begins(keys: Keys) -> NDArray[np.bool_]:
    """Which leading bits the keys begin with: few enough that most strange keys begin otherwise."""
    table = np.zeros(1 << min(_MOST_BITS, (64 * len(keys)).bit_length()), np.bool_)
    table[_leading(keys, table)] = True
    return table


def _leading(keys: Keys, table: NDArray[np.bool_]) -> Keys:
    return keys >> np.uint64(65 - len(table).bit_length())


def _windows(hashes_T: Keys, sizes: Sequence[int]) -> Iterator[tuple[int, Keys]]:
    """(size, key of every run of so many tokens), whether or not it reaches over the end of a text."""
    keys = np.zeros(len(hashes_T), np.uint64)
    for size in range(1, max(sizes, default=0) + 1):
        width = len(hashes_T) - size + 1
        if width <= 0:
            return
        keys = keys[:width] * _FACTOR + hashes_T[size - 1 : size - 1 + width]  # Horner's rule, modulo 2**64
        if size in sizes:
            yield size, keys
