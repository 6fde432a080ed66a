"""Rephrased and translated evaluation prompts: proposed by the cosine of sentence vectors, never proven by it.

The vector of a text is a mean over its tokens, so a question with four options is far from the question alone. A turn and a prompt are
therefore as near as the nearest of their segments: the whole, what stands before options and answer, the last question in that.
Measured: docs/data-decontamination.md.

n-grams are blind to both. A vector tells likeness of meaning but not paraphrase from a related question (Tulu 3 tried vectors
and turned to n-grams for that reason), so what is found here is proposed for reading and not dropped unless asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import polars as pl
from annotated_types import Gt, Le
from numpy.typing import NDArray

from posttrain.data.decontaminate.matching import HITS, turns_of, words
from posttrain.data.encoders import Encoder, Vectors, loaded_encoder
from posttrain.data.text import Fields, tokens

_NOISE = 1e-4
"""More than the texts that are encoded together can change of a cosine."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingTier:
    """Propose rows that say what an evaluation prompt says in other words or another language."""

    encoder: str = "use-multilingual"
    """The sentence encoder (extra ``embed``)."""
    threshold: Annotated[float, Gt(0), Le(1)] | None = None
    """Cosine from which a turn is proposed; default: the one calibrated for the encoder."""
    drop: bool = False
    """Whether proposed rows are dropped; without it they are only listed."""


@dataclass(frozen=True)
class Proposer:
    """Finds the nearest evaluation text of every row. Its encoder is loaded once in every process."""

    encoder: str
    fields: Fields
    vectors_SD: Vectors
    """The segments of the evaluation texts, each encoded alone."""
    text_S: NDArray[np.int64]
    """The evaluation text of every segment."""
    exact_from: float
    """Turns below this cosine are left out; the others are encoded alone, so that a row's cosine is its own."""

    def __call__(self, block: pl.DataFrame) -> pl.DataFrame:
        """[HITS] of a block, with the cosine as overlap: the nearest text of every row that is not left out."""
        turns = turns_of(block, self.fields)
        distinct = sorted({turn for _, turn in turns})
        near = dict(zip(distinct, self._nearest(distinct), strict=True))
        found = [(row, *hit) for row, turn in turns if (hit := near[turn]) is not None]
        frame = pl.DataFrame(found, schema=HITS, orient="row").sort("row", -pl.col("overlap"), "text")
        return frame.unique("row", keep="first", maintain_order=True)

    def _nearest(self, turns: Sequence[str]) -> list[tuple[int, float] | None]:
        """(nearest text, cosine) of every turn."""
        model = loaded_encoder(self.encoder)
        parts = [segments(turn) for turn in turns]
        rough = (model.encode([part for its in parts for part in its]) @ self.vectors_SD.T).max(axis=1, initial=-1.0)
        starts = np.cumsum([0, *map(len, parts)])[:-1]
        highest = np.maximum.reduceat(rough, starts) if len(parts) else rough
        return [
            self._alone(model, its) if value >= self.exact_from else None
            for its, value in zip(parts, highest.tolist(), strict=True)
        ]

    def _alone(self, model: Encoder, parts: Sequence[str]) -> tuple[int, float]:
        vectors = [model.encode([part])[0].astype(np.float64) for part in parts]
        cosines = np.max([(vector * self.vectors_SD).sum(axis=1) for vector in vectors], axis=0)
        nearest = int(cosines.argmax())
        return int(self.text_S[nearest]), round(float(cosines[nearest]), 6)


def proposer(tier: EmbeddingTier, fields: Fields, texts: Sequence[str]) -> Proposer:
    """The proposer of evaluation texts. ConfigError where the encoder is unknown or not installed.

    A question that several texts share names none of them. Where the proposer decides rows every cosine is worked out exactly; where it only proposes, just those that may be proposed.
    """
    encoder = loaded_encoder(tier.encoder)
    parts = [(number, part) for number, text in enumerate(texts) for part in segments(text)]
    held = Counter(part for _, part in parts)
    own = [(number, part) for number, part in parts if held[part] == 1 or part == texts[number]]
    vectors = np.stack([encoder.encode([part])[0] for _, part in own])
    owners = np.array([number for number, _ in own], np.int64)
    return Proposer(tier.encoder, fields, vectors, owners, -1.0 if tier.drop else threshold_of(tier) - _NOISE)


def threshold_of(tier: EmbeddingTier) -> float:
    """The cosine from which a row is proposed."""
    return loaded_encoder(tier.encoder).threshold if tier.threshold is None else tier.threshold


# ---- segments ------------------------------------------------------------------------------------------------------

_LABEL = r"[(（\[]?(?:[A-Ha-h]|[1-9①-⑨])[)）\].、:：．]"
_OPTION_LINE = re.compile(rf"^[ \t]*{_LABEL}[ \t]*\S", re.MULTILINE)
_INLINE = r"(?:(?<=\s)|(?<=[。？?！!:：，,;；]))[(（]?{}[)）.、:：．]\s*\S"
_INLINE_OPTIONS = re.compile(f"{_INLINE.format('A')}.*?{_INLINE.format('B')}", re.DOTALL)
_ANSWER = re.compile(
    r"(?:^|(?<=[\s。？?]))(?:answer|options?|choices?|答案|解答|回答|选项)\s*(?:is|是|为)?\s*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"""(?<=[.!?])["”’)\]]*\s+|(?<=[。！？；…])["”’」』]*|\n+""")
_LEAST_STEM, _LEAST_QUESTION = 3, 5
"""Words of what stands before options, and of a question inside a text: fewer stand in too many prompts to name one; two CJK
characters count as one word."""
_PASSAGE_WORDS = 60
"""From so many words on a text ends with its question, or with the sentence that is to be completed, also without a mark."""


def segments(text: str) -> tuple[str, ...]:
    """The text, what stands before its options or answer, and the last question in that: those that differ."""
    stem = _stem(text)
    sentences = [sentence for part in _SENTENCE_END.split(stem) if (sentence := part.strip())]
    questions = [sentence for sentence in sentences if sentence[-1] in "?？"]
    if not questions and words(tokens(stem)) >= _PASSAGE_WORDS:
        questions = sentences
    least = ((stem, _LEAST_STEM), *((sentence, _LEAST_QUESTION) for sentence in questions[-1:]))
    parts = [part for part, words_needed in least if words(tokens(part)) >= words_needed]
    return tuple(dict.fromkeys((text, *parts)))


def _stem(text: str) -> str:
    """What stands before the options, and before the answer."""
    answer = _ANSWER.search(text)
    if answer is not None and text[: answer.start()].strip():
        text = text[: answer.start()]
    lines = [found.start() for found in _OPTION_LINE.finditer(text)]
    inline = _INLINE_OPTIONS.search(text)
    if len(lines) > 1:
        text = text[: lines[0]]
    elif inline is not None:
        text = text[: inline.start()]
    return text.strip()
