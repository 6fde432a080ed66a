"""Rephrased and translated evaluation prompts: proposed by the cosine of sentence vectors, never proven by it.

n-grams are blind to both. A vector tells likeness of meaning but not paraphrase from a related question (Tulu 3 tried vectors
and turned to n-grams for that reason), so what is found here is proposed for reading and not dropped unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl

from posttrain.data.decontaminate.config import EmbeddingTier
from posttrain.data.decontaminate.matching import HITS, turns_of
from posttrain.data.encoders import Encoder, Vectors, make_encoder
from posttrain.data.text import Fields

_NOISE = 1e-4
"""More than the texts that are encoded together can change of a cosine."""


@dataclass(frozen=True)
class Proposer:
    """Finds the nearest evaluation text of every row. Its encoder is loaded once in every process."""

    encoder: str
    fields: Fields
    vectors_XD: Vectors
    """The evaluation texts, each encoded alone."""
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
        model = loaded(self.encoder)
        rough = (model.encode(turns) @ self.vectors_XD.T).max(axis=1, initial=-1.0)
        return [
            self._alone(model, turn) if value >= self.exact_from else None
            for turn, value in zip(turns, rough.tolist(), strict=True)
        ]

    def _alone(self, model: Encoder, turn: str) -> tuple[int, float]:
        cosines = (model.encode([turn])[0].astype(np.float64) * self.vectors_XD).sum(axis=1)
        text = int(cosines.argmax())
        return text, round(float(cosines[text]), 6)


@cache
def loaded(name: str) -> Encoder:
    """The encoder of a name, made once in a process."""
    return make_encoder(name)


def proposer(tier: EmbeddingTier, fields: Fields, texts: Sequence[str]) -> Proposer:
    """The proposer of evaluation texts. ConfigError where the encoder is unknown or not installed.

    Where it decides rows every cosine is worked out exactly; where it only proposes, just those that may be proposed.
    """
    encoder = loaded(tier.encoder)
    vectors = np.stack([encoder.encode([text])[0] for text in texts])
    return Proposer(tier.encoder, fields, vectors, -1.0 if tier.drop else threshold_of(tier) - _NOISE)


def threshold_of(tier: EmbeddingTier) -> float:
    """The cosine from which a row is proposed."""
    return loaded(tier.encoder).threshold if tier.threshold is None else tier.threshold
