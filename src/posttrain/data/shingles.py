"""Tokens and n-grams of many texts at once, as 64-bit hashes: what :mod:`posttrain.data.text` finds, in numpy.

The code points of a block of texts are one array. Two tables say for every code point what it is to the tokenizer and what it
is folded to; tokens are runs in that array, and the hash of a token is a difference of running sums. Only a text whose
characters interact under NFKC, or unfold to several (ligatures, decomposed accents, sharp s), is normalised by itself.

Equal tokens have equal hashes; different ones collide with probability 2**-64 a pair. Shapes: C code points, T tokens, S
shingles, N texts; the tokens of text i are ``hashes_T[offsets_N[i] : offsets_N[i + 1]]``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from posttrain.data.text import normalised

U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]
Offsets = NDArray[np.int64]

CHUNK_CHARACTERS = 1 << 17
"""Code points worked on at once: the running sums of a chunk stay in the cache."""

_SEPARATOR, _CJK, _START, _INSIDE, _MIXED, _NUMERIC = 0, 1, 2, 3, 4, 8
"""What a code point is: between tokens; a token of its own; in a word; in a word but not at its start; not to be judged
alone. ``_NUMERIC`` is a flag on top: a digit or Chinese numeral."""

_CODE_POINTS = 0x110000
_ASSIGNED = 0x20000
"""Above it there is nothing but ideographs, and what is part of no token."""
_COMPATIBLE_IDEOGRAPHS = slice(0x2F800, 0x2FA20)
"""Above it, those that fold to others."""
_CJK_RANGES = (
    *((0x3040, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00)),
    *((0x20000, 0x40000), (0x1100, 0x1200), (0xAC00, 0xD7B0)),
)
"""The same as :data:`posttrain.data.text.CJK`."""
CHINESE_NUMERALS = "〇零一二三四五六七八九十百千万亿两兩萬億"

_BASE = 0x9E3779B97F4A7C15
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)
_NUMBER = np.uint64(0xD1B54A32D192ED03)
"""Stands for every numeric token in a skeleton."""


@dataclass(frozen=True)
class TokenHashes:
    """The tokens of N texts. ``numeric_T``: tokens that begin with a digit, and Chinese numerals."""

    hashes_T: U64
    numeric_T: NDArray[np.bool_]
    offsets_N: Offsets
    """Int64 [N + 1]."""


@dataclass(frozen=True)
class Shingles:
    """The n-grams of N texts, repeated ones included."""

    hashes_S: U64
    offsets_N: Offsets
    """Int64 [N + 1]; every text has at least one shingle."""


def hash_tokens(texts: Sequence[str]) -> TokenHashes:
    """The tokens of every text, as :func:`posttrain.data.text.tokens` finds them."""
    parts = [_hash_chunk(chunk) for chunk in _chunks(texts)]
    counts = np.concatenate([np.diff(part.offsets_N) for part in parts]) if parts else np.empty(0, np.int64)
    return TokenHashes(
        np.concatenate([part.hashes_T for part in parts]) if parts else np.empty(0, np.uint64),
        np.concatenate([part.numeric_T for part in parts]) if parts else np.empty(0, np.bool_),
        offsets_of(counts),
    )


def hash_shingles(words: TokenHashes, texts: Sequence[str], n: int) -> Shingles:
    """All runs of n tokens of every text; a text of fewer tokens is one shingle; one without any, its normalised text."""
    counts_N = np.diff(words.offsets_N)
    shingles_N = np.maximum(counts_N - n + 1, 1)
    offsets_N = offsets_of(shingles_N)
    short_N = counts_N < n
    out_S = np.empty(offsets_N[-1], np.uint64)
    long_S = np.ones(len(out_S), np.bool_)
    long_S[offsets_N[:-1][short_N]] = False
    out_S[long_S] = _windows(words, n)
    out_S[~long_S] = _short(words, texts, np.flatnonzero(short_N), n)
    return Shingles(out_S, offsets_N)


def skeletons(words: TokenHashes) -> U64:
    """Uint64 [N]: equal for texts whose tokens are the same but for numbers."""
    masked_T = np.where(words.numeric_T, _NUMBER, words.hashes_T)
    place_T = np.arange(len(masked_T)) - np.repeat(words.offsets_N[:-1], np.diff(words.offsets_N))
    terms_T = mix(masked_T + place_T.astype(np.uint64) * np.uint64(_BASE))
    sums_T = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms_T, dtype=np.uint64)])
    sums_N: U64 = mix(sums_T[words.offsets_N[1:]] - sums_T[words.offsets_N[:-1]])
    return sums_N


def mix(values: U64) -> U64:
    """A bijection of 64-bit integers that spreads every bit (the finaliser of MurmurHash3)."""
    values = values ^ (values >> np.uint64(33))
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(33)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values ^= values >> np.uint64(33)
    return values


# ---- characters ----------------------------------------------------------------------------------------------------


class _Tables(NamedTuple):
    """For every code point: kind (above) and hash, and its kind in text that is already normalised."""

    kinds: U8
    hashes: U64
    normal_kinds: U8


@cache
def _tables() -> _Tables:
    normal_kinds = _normal_kinds()
    kinds, folded = normal_kinds.copy(), np.arange(_CODE_POINTS)
    kinds[_COMPATIBLE_IDEOGRAPHS] = _MIXED
    characters = [chr(code) for code in range(_ASSIGNED) if chr(code) != "\n"]
    whole = "\n".join(characters)
    results = unicodedata.normalize("NFKC", whole).casefold().split("\n")
    parts = unicodedata.normalize("NFKD", whole).split("\n")
    for character, result, decomposed in zip(characters, results, parts, strict=True):
        code = ord(character)
        if _joins(decomposed[0]):
            kinds[code] = _MIXED
        elif len(result) > 1:
            kinds[code] = _MIXED if normal_kinds[list(map(ord, result))].any() else _SEPARATOR
        elif result != character:
            folded[code], kinds[code] = ord(result), normal_kinds[ord(result)]
    return _Tables(kinds, mix(folded.astype(np.uint64) + np.uint64(1)), normal_kinds)


def _joins(character: str) -> bool:
    """Whether a character may become one with what stands before it: a mark, a vowel or final of Hangul."""
    return character > "\x7f" and (unicodedata.category(character)[0] == "M" or "\u1160" <= character < "\u1200")


def _normal_kinds() -> U8:
    """What every code point is in a text that has been normalised."""
    codes = np.arange(_CODE_POINTS)
    low = [chr(code) for code in range(_ASSIGNED)]
    letters = np.zeros(_CODE_POINTS, np.bool_)
    letters[:_ASSIGNED] = np.fromiter((character.isalnum() for character in low), np.bool_, _ASSIGNED)
    kinds = np.where(letters, _START, _SEPARATOR).astype(np.uint8)
    kinds[(codes == ord("_")) | (codes >= 0x300) & (codes < 0x370)] = _INSIDE
    for first, last in _CJK_RANGES:
        kinds[first:last] = _CJK
    kinds[:_ASSIGNED] |= np.fromiter((_NUMERIC * character.isdecimal() for character in low), np.uint8, _ASSIGNED)
    kinds[[ord(numeral) for numeral in CHINESE_NUMERALS]] |= _NUMERIC
    return kinds


# ---- tokens --------------------------------------------------------------------------------------------------------


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts of about :data:`CHUNK_CHARACTERS`."""
    first = total = 0
    for number, text in enumerate(texts):
        if number > first and total + len(text) > CHUNK_CHARACTERS:
            yield texts[first:number]
            first, total = number, 0
        total += len(text) + 1
    if first < len(texts):
        yield texts[first:]


def _hash_chunk(texts: Sequence[str]) -> TokenHashes:
    tables = _tables()
    codes_C, ends_N = _code_points(texts)
    kinds_C = tables.kinds.take(codes_C)
    if (mixed_C := kinds_C == _MIXED).any():  # then these texts are normalised: what is so folds to itself
        mixed_N = np.logical_or.reduceat(mixed_C, np.concatenate([[0], ends_N[:-1] + 1])).tolist()
        codes_C, ends_N = _code_points([normalised(t) if mixed else t for t, mixed in zip(texts, mixed_N, strict=True)])
        kinds_C = tables.kinds.take(codes_C)
        kinds_C = np.where(kinds_C == _MIXED, tables.normal_kinds.take(codes_C), kinds_C)
    return _runs(kinds_C, tables.hashes.take(codes_C), ends_N)


def _code_points(texts: Sequence[str]) -> tuple[NDArray[np.uint8 | np.uint32], Offsets]:
    """The code points of all texts, each with a line end behind it, and the place of these line ends."""
    joined = "\n".join(texts) + "\n"
    ends_N = np.fromiter(accumulate(len(text) + 1 for text in texts), np.int64, len(texts)) - 1
    if joined.isascii():
        return np.frombuffer(joined.encode("ascii"), np.uint8), ends_N
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32), ends_N


def _runs(kinds_C: U8, hashes_C: U64, ends_N: Offsets) -> TokenHashes:
    """The tokens in an array of classified code points. The last code point is a separator."""
    numeric_C, kinds_C = kinds_C >= _NUMERIC, kinds_C & np.uint8(_NUMERIC - 1)
    cjk_C, word_C = kinds_C == _CJK, kinds_C >= _START
    inner_C = word_C[1:] & word_C[:-1]
    first_C = cjk_C | word_C
    last_C = first_C.copy()
    first_C[1:] &= ~inner_C
    last_C[:-1] &= ~inner_C
    starts_T, ends_T = np.flatnonzero(first_C), np.flatnonzero(last_C) + 1
    while (late_T := kinds_C[starts_T] == _INSIDE).any():  # underscores and marks begin no token
        starts_T = starts_T + late_T
        there_T = starts_T < ends_T
        starts_T, ends_T = starts_T[there_T], ends_T[there_T]
    powers, inverses = _powers(len(kinds_C))
    sums = np.zeros(len(kinds_C) + 1, np.uint64)
    np.multiply(hashes_C, powers[: len(kinds_C)], out=sums[1:])
    np.cumsum(sums[1:], out=sums[1:])
    hashes_T = mix((sums.take(ends_T) - sums.take(starts_T)) * inverses.take(starts_T))
    counts = np.searchsorted(starts_T, ends_N)
    return TokenHashes(hashes_T, numeric_C[starts_T], np.concatenate([np.zeros(1, np.int64), counts]))


def _powers(length: int) -> tuple[U64, U64]:
    """Powers of the base and of its inverse modulo 2**64, at least ``length`` of them."""
    size = max(CHUNK_CHARACTERS * 2, 1 << (length - 1).bit_length())
    return _powers_of(_BASE, size), _powers_of(_BASE_INVERSE, size)


@cache
def _powers_of(base: int, size: int) -> U64:
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


# ---- shingles ------------------------------------------------------------------------------------------------------


def _windows(words: TokenHashes, n: int) -> U64:
    """The hashes of all runs of n tokens that lie within one text, in order."""
    tokens_T = words.hashes_T
    if len(tokens_T) < n:
        return np.empty(0, np.uint64)
    within = np.ones(len(tokens_T), np.bool_)
    for back in range(1, n):  # the last n - 1 tokens of a text begin no window
        places = words.offsets_N[1:] - back
        within[places[places >= words.offsets_N[:-1]]] = False
    within = within[: len(tokens_T) - n + 1]
    sums = tokens_T[: len(within)] * np.uint64(pow(_BASE, 1, 1 << 64))
    for place in range(1, n):
        sums += tokens_T[place : place + len(within)] * np.uint64(pow(_BASE, 2 * place + 1, 1 << 64))
    return mix(sums[within])


def _short(words: TokenHashes, texts: Sequence[str], numbers: NDArray[np.intp], n: int) -> U64:
    """One hash for each of these texts of fewer than n tokens: of all its tokens, or of its text where it has none."""
    starts, counts = words.offsets_N[numbers], np.diff(words.offsets_N)[numbers]
    sums = counts.astype(np.uint64) * _NUMBER
    for place in range(n - 1):
        has = counts > place
        sums[has] += words.hashes_T[starts[has] + place] * np.uint64(pow(_BASE, 2 * place + 1, 1 << 64))
    for index in np.flatnonzero(counts == 0).tolist():
        sums[index] = text_hash(" ".join(normalised(texts[numbers[index]]).split()))
    return mix(sums)


def text_hash(text: str) -> int:
    """64-bit hash of a text as it is."""
    return int(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")))


def spans(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The integers of all ranges ``starts[i] .. starts[i] + counts[i]``, one range after another."""
    ends = np.cumsum(counts)
    places: NDArray[np.int64] = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)
    return places


def offsets_of(counts: NDArray[np.integer]) -> Offsets:
    """Where each of several runs begins, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
