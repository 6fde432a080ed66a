"""How varied a set of instructions is: shares of distinct n-grams, nearness, first words, verbs with their objects, and topics beside a real set.

Sets are compared at equal size, because every one of these numbers depends on it.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from posttrain.data.text import tokens
from posttrain.synth.pool import Pool
from posttrain.tasks.ngrams import distinct_n

LARGEST = 2000
"""Rows looked at, drawn by chance where there are more: nearness compares all with all."""
TOPICS, TERMS, ROUNDS = 12, 3, 25
FEATURES = 4096
_POLITE = re.compile(
    r"^(?:(?:please|kindly|hi|hello|hey|can you|could you|would you|will you|i(?:'d| would) like you to|i want you to|i need you to|help me(?: to)?)[,!]?\s+)+",
    re.IGNORECASE,
)
_BREAK = re.compile(r"[.,:;!?()\n]")
_WORDS = {
    "ends object": "of for in on at to from with about by as that which who how why what when where if so and or but into between using "
    "without than whose because while is are",
    "before object": "me us a an the some any this that these those my your his her its our their following given",
    "stop": "the a an of to and in is for on with that this it you your i my me be as are can do or by from at how what which please not have "
    "will would could should one its their they them any all some into about there then than each these those was were has had if so but also "
    "more most very such no yes us we our he she his her who when where why",
    "verbs": "\u5199 \u89e3\u91ca \u7ffb\u8bd1 \u5217\u51fa \u5217\u4e3e \u63cf\u8ff0 \u603b\u7ed3 \u6982\u62ec \u4ecb\u7ecd \u6bd4\u8f83 "
    "\u8bbe\u8ba1 \u751f\u6210 \u5224\u65ad \u5206\u6790 \u63d0\u4f9b \u7ed9\u51fa \u7f16\u5199 \u63a8\u8350 \u8bf4\u660e \u8ba1\u7b97 "
    "\u6539\u5199 \u56de\u7b54 \u521b\u4f5c \u64b0\u5199 \u8bc4\u4ef7 \u5206\u7c7b \u627e\u51fa \u63d0\u51fa \u5236\u5b9a \u8bb2 \u505a \u8bf4",
}
_ENDS_OBJECT, _BEFORE_OBJECT, _STOP = (
    frozenset(_WORDS[name].split()) for name in ("ends object", "before object", "stop")
)
_VERBS_ZH = _WORDS["verbs"].split()


@dataclass(frozen=True, slots=True)
class Variety:
    """What is measured on a set of instructions with their replies. Shares are from 0 to 1; words as `posttrain.data.text` counts them."""

    rows: int
    distinct_1: float | None
    distinct_2: float | None
    first_words: float
    """Distinct first words as a share of the instructions."""
    first_word: str
    """The most frequent first word."""
    first_word_share: float
    """Share of the instructions that begin with it."""
    nearest: float
    """Mean ROUGE-L of an instruction with the one most like it."""
    instruction_words: float
    """Median."""
    reply_words: float
    """Median."""
    pairs: dict[str, int] = field(default_factory=dict)
    """The most frequent verbs with their objects."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A group of instructions that share words: its terms, and how many of each set are in it."""

    terms: tuple[str, ...]
    made: int
    yardstick: int


def variety(instructions: Sequence[str], replies: Sequence[str]) -> Variety:
    """Measure a set. Raises ValueError where it is empty."""
    if not instructions:
        raise ValueError("no instructions")
    firsts = Counter(words[0] for text in instructions if (words := tokens(text)))
    (first, often), *_ = firsts.most_common(1) or [("", 0)]
    pairs = Counter(pair for text in instructions if (pair := verb_and_object(text)) is not None)
    return Variety(
        rows=len(instructions),
        distinct_1=distinct_n(instructions, 1),
        distinct_2=distinct_n(instructions, 2),
        first_words=len(firsts) / len(instructions),
        first_word=first,
        first_word_share=often / len(instructions),
        nearest=_nearest(instructions),
        instruction_words=median(len(tokens(text)) for text in instructions),
        reply_words=median(len(tokens(text)) for text in replies) if replies else 0.0,
        pairs=dict(pairs.most_common(20)),
    )


def drawn(texts: Sequence[tuple[str, str]], count: int, seed: int) -> list[tuple[str, str]]:
    """At most ``count`` of the (instruction, reply) pairs, drawn without replacement, in their order."""
    if len(texts) <= count:
        return list(texts)
    return [texts[place] for place in sorted(random.Random(f"variety:{seed}").sample(range(len(texts)), count))]


def _nearest(instructions: Sequence[str]) -> float:
    if len(instructions) < 2:
        return 0.0
    pool = Pool()
    for place, text in enumerate(instructions):
        pool.add(str(place), text, made=False)
    found = []
    for place, text in enumerate(instructions):
        scores_P = pool.scores(text)
        scores_P[place] = 0.0
        found.append(float(scores_P.max()))
    return fmean(found)


# ---- verbs and objects -----------------------------------------------------------------------------------------------


def verb_and_object(instruction: str) -> str | None:
    """The verb an instruction begins with and its object, by rules of thumb; None where it does not begin with a verb of the kind.

    Self-Instruct (arXiv:2212.10560, figure 3) takes both from a parser. Here the verb is the first word behind politeness, the object the last word before
    a preposition, a conjunction or a sign; in Chinese the first of some 30 verbs, and the last two characters of its clause.

    >>> verb_and_object("Please write a short poem about the sea.")
    'write poem'
    """
    line = instruction.strip()
    if not line[:1].isascii():
        return _verb_and_object_zh(line)
    clause = _BREAK.split(_POLITE.sub("", line), maxsplit=1)[0]
    words = re.findall(r"[A-Za-z][A-Za-z'-]*", clause.lower())
    if len(words) < 2 or words[0] in _STOP or "'" in words[0]:
        return None
    phrase: list[str] = []
    for word in words[1:]:
        if word in _ENDS_OBJECT and phrase:
            break
        if word not in _BEFORE_OBJECT:
            phrase.append(word)
        if word in _ENDS_OBJECT:
            break
    return f"{words[0]} {phrase[-1]}" if phrase else None


def _verb_and_object_zh(line: str) -> str | None:
    clause = re.split(r"[\uff0c\u3002\uff1a\uff1b\uff01\uff1f,.:;!?\n]", line, maxsplit=1)[0]
    places = [(clause.find(verb), -len(verb), verb) for verb in _VERBS_ZH if verb in clause]
    if not places:
        return None
    at, _, verb = min(places)
    rest = re.sub(r"[\u7684\u4e86\u5417\u5462\u5427]+$", "", clause[at + len(verb) :])
    return f"{verb} {rest[-2:]}" if len(rest) >= 2 else None


# ---- topics ----------------------------------------------------------------------------------------------------------


def topics(made: Sequence[str], yardstick: Sequence[str], seed: int = 0) -> list[Topic]:
    """Both sets in at most 12 groups by their words, the largest first: spherical k-means over tf-idf of hashed words.

    No model is needed, and the terms that tell a group from the others name it. Rare and very frequent words count little.
    """
    texts = [*made, *yardstick]
    if len(texts) < 2 * TOPICS:
        return []
    words = [_terms(text) for text in texts]
    frequency = Counter(word for own in words for word in set(own))
    ranked = sorted(frequency.items(), key=lambda item: (-item[1], item[0]))[:FEATURES]
    known = [word for word, count in ranked if 2 <= count <= 0.5 * len(texts)]
    if len(known) < TOPICS:
        return []
    place = {word: index for index, word in enumerate(known)}
    weights_NW = np.zeros((len(texts), len(known)), np.float32)
    for row, own in enumerate(words):
        for word, count in Counter(own).items():
            if word in place:
                weights_NW[row, place[word]] = (1 + math.log(count)) * math.log(len(texts) / frequency[word])
    norms_N = np.linalg.norm(weights_NW, axis=1, keepdims=True)
    weights_NW /= np.where(norms_N == 0, 1, norms_N)
    group_N, centre_KW = _spherical_k_means(weights_NW, TOPICS, seed)
    alone_N = norms_N[:, 0] == 0
    group_N[alone_N] = -1
    found = [Topic(("no words in common",), int(alone_N[: len(made)].sum()), int(alone_N[len(made) :].sum()))]
    for index in range(len(centre_KW)):
        inside = group_N == index
        if inside.any():
            best = np.argsort(-(centre_KW[index] - centre_KW.mean(0)), kind="stable")[:TERMS]
            counts = int(inside[: len(made)].sum()), int(inside[len(made) :].sum())
            found.append(Topic(tuple(known[i] for i in best.tolist()), *counts))
    return sorted(
        (one for one in found if one.made + one.yardstick), key=lambda one: (-one.made, -one.yardstick, one.terms)
    )


def _terms(text: str) -> list[str]:
    """Words, without stop words; of CJK text pairs of characters that stand side by side."""
    words = tokens(text)
    singles = [word for word in words if word.isascii() and len(word) > 2 and word not in _STOP]
    pairs = [a + b for a, b in pairwise(words) if not a.isascii() and not b.isascii() and len(a) == len(b) == 1]
    return [*singles, *pairs]


def _spherical_k_means(
    unit_NW: NDArray[np.float32], groups: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(group of every row, unit centres) by k-means++ seeding and at most 25 rounds."""
    chance = np.random.default_rng(seed)
    centres = [unit_NW[chance.integers(len(unit_NW))]]
    for _ in range(groups - 1):
        distance_N = np.clip(1 - np.max(unit_NW @ np.stack(centres).T, axis=1), 0, None).astype(np.float64)
        total = distance_N.sum()
        centres.append(unit_NW[chance.choice(len(unit_NW), p=distance_N / total)] if total > 0 else centres[0])
    centre_KW = np.stack(centres)
    group_N = np.zeros(len(unit_NW), np.int64)
    for _ in range(ROUNDS):
        fresh_N = np.argmax(unit_NW @ centre_KW.T, axis=1)
        if (fresh_N == group_N).all():
            break
        group_N = fresh_N
        sums_KW = np.stack([unit_NW[group_N == index].sum(0) for index in range(groups)])
        norms_K = np.linalg.norm(sums_KW, axis=1, keepdims=True)
        centre_KW = np.where(norms_K > 0, sums_KW / np.where(norms_K == 0, 1, norms_K), centre_KW)
    return group_N, centre_KW
