"""The configuration of a dedup step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from posttrain.data.text import Fields

if TYPE_CHECKING:
    from posttrain.data.steps import Decisions, StepRun

Method = Literal["exact", "ngram", "minhash", "simhash", "embedding"]


@dataclass(frozen=True, kw_only=True)
class DedupStep:
    """Drop duplicates and near-duplicates: of each group of like rows, the first in a total order stays."""

    kind: Literal["dedup"]
    method: Method = "minhash"
    """How duplicates are found: equal texts, all pairs by n-grams, MinHash LSH, SimHash, or sentence embeddings."""
    threshold: Annotated[float, Gt(0), Le(1)] | None = None
    """Similarity from which a row is dropped: Jaccard of the n-gram sets (default 0.7), or cosine (default: the encoder's)."""
    fields: Fields = "user"
    """The turns that are compared: ``user`` keeps one answer to a prompt, ``assistant`` every different one."""
    ngram: Annotated[int, Ge(1), Le(64)] | None = None
    """Tokens of a shingle (default 5); a shorter text is one shingle. Not for ``exact`` and ``embedding``."""
    num_perm: Annotated[int, Ge(1), Le(4096)] | None = None
    """``minhash``: the most hash functions, of which bands are made (default 128)."""
    recall: Annotated[float, Gt(0), Lt(1)] | None = None
    """``minhash``: share of the pairs exactly at the threshold that must be proposed (default 0.99)."""
    distance: Annotated[int, Ge(0), Le(12)] | None = None
    """``simhash``: the most bits of 64 in which the fingerprints of a proposed pair differ (default 8)."""
    encoder: str | None = None
    """``embedding``: a known encoder (default use-multilingual), or the folder of a static embedding model."""
    distinct_numbers: bool = True
    """Whether texts with the same words and other numbers, symbols, negations or case of code are different (exercises), and for
    ``embedding`` all texts with other numbers. Without it the similarity alone decides. Not for ``exact``, where they are."""
    common_share: Annotated[float, Gt(0), Le(1)] | None = None
    """n-grams that stand in more than this share of the rows, and in 10, are not compared (default 0.01; 1: all are compared):
    the description of a tool, or a passage, makes no duplicates. Not for ``exact``."""
    prefer: str = "quality"
    """Of like rows, the one with the highest score of this name stays; then the one with the smallest content id."""

    def decide(self, rows: Path, seed: int, run: StepRun) -> Decisions:
        """Which rows stay. Raises ConfigError for an option that the method does not read."""
        from posttrain.data.dedup.step import decide

        return decide(self, rows, seed, run)
