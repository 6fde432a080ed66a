"""The configuration of a selection: one small dataclass for each method."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import Discriminator

from posttrain.data.text import Fields

if TYPE_CHECKING:
    from posttrain.data.steps import Decisions, StepRun

LABELS = ("very easy", "easy", "medium", "hard", "very hard")
"""The difficulty labels of Magpie (Xu et al. 2024, arXiv 2406.08464)."""

Share = Annotated[float, Ge(0), Le(1)]


# ---- parts of several methods ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What an answer must be before it can be chosen, measured by the filters of the same names (docs/data-filters.md).

    Beside these limits: roles in turn, closed code fences, nothing garbled.
    """

    min_user_tokens: Annotated[int, Ge(0)] = 1
    """Fewest comparison tokens of the user."""
    min_assistant_tokens: Annotated[int, Ge(0)] = 5
    """Fewest comparison tokens of the assistant: short answers are likely under any model."""
    max_assistant_tokens: Annotated[int, Ge(1)] | None = None
    """Most comparison tokens of the assistant; null: any number."""
    max_line_share: Share = 0.5
    """Largest share of lines that stood before, in answers of 8 lines and more."""
    max_ngram_share: Share = 0.3
    """Largest share of 5-grams that stood before: text that repeats itself is likely under any model, too."""
    max_boilerplate_share: Share = 0.6
    """Largest share of stock openings and closings."""
    min_sentences: Annotated[int, Ge(0)] = 0
    """Fewest sentences."""
    refusals: Literal["drop", "keep"] = "drop"
    """What happens to refusals and "As an AI language model"; keep them in safety data."""


@dataclass(frozen=True, kw_only=True)
class StrictGates:
    """The same as the gates of ``grape``, with limits for a small set. LIMA keeps answers of 1,200 to 4,096 characters."""

    min_user_tokens: Annotated[int, Ge(0)] = 3
    """Fewest comparison tokens of the user."""
    min_assistant_tokens: Annotated[int, Ge(0)] = 150
    """Fewest comparison tokens of the assistant."""
    max_assistant_tokens: Annotated[int, Ge(1)] | None = 1000
    """Most comparison tokens of the assistant; null: any number."""
    max_line_share: Share = 0.2
    """Largest share of lines that stood before, in answers of 8 lines and more."""
    max_ngram_share: Share = 0.15
    """Largest share of 5-grams that stood before."""
    max_boilerplate_share: Share = 0.1
    """Largest share of stock openings and closings."""
    min_sentences: Annotated[int, Ge(0)] = 3
    """Fewest sentences."""
    refusals: Literal["drop", "keep"] = "drop"
    """What happens to refusals and "As an AI language model"; keep them in safety data."""


@dataclass(frozen=True, kw_only=True)
class NgramNovelty:
    """How much of a text is new: the share of its n-grams that no row kept before it has."""

    measure: Literal["ngram"]
    fields: Fields = "user"
    """The turns that are compared."""
    n: Annotated[int, Ge(1)] = 3
    """Length of the n-grams in comparison tokens; shorter texts are one n-gram."""
    min_novelty: Share = 0.5
    """A row with a smaller share of new n-grams is dropped."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingDistance:
    """How near a text is to what is kept: the largest cosine between its embedding and those of the rows kept before it."""

    measure: Literal["embedding"]
    fields: Fields = "user"
    """The turns that are embedded."""
    encoder: str = "use-multilingual"
    """Name of the sentence encoder (extra ``embed``)."""
    max_cosine: Annotated[float, Ge(-1), Le(1)] = 0.9
    """A row with a larger cosine is dropped. What counts as near differs from encoder to encoder."""


Distance = Annotated[NgramNovelty | EmbeddingDistance, Discriminator("measure")]


# ---- the methods -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Medium:
    """Keep what is neither easy nor hard: a band between two quantiles of a signal, source by source."""

    method: Literal["medium"]
    signal: str = "loss"
    """A score the rows carry (``loss``, ``ifd``, a judge's), ``length``, or ``meta.KEY``: numbers, or ``labels`` of the step."""
    low: Share = 0.25
    """Lower end of the band, as a share of the source's rows."""
    high: Share = 0.75
    """Upper end of the band."""


@dataclass(frozen=True, kw_only=True)
class Ifd:
    """Keep what the prompt helps with least, but helps (Cherry: Li et al. 2024, arXiv 2308.12032)."""

    method: Literal["ifd"]
    limit: Annotated[float, Gt(0)] = 1.0
    """Rows above are dropped first: the prompt does not help at all."""
    top: Annotated[float, Gt(0)] | None = 0.1
    """How many of a source's rows to keep, the highest IFD first: a share of the scored ones below 1, otherwise a number;
    null: all within the limit. The paper takes 5 to 15 %."""


@dataclass(frozen=True, kw_only=True)
class Grape:
    """Of several answers to one instruction keep the likeliest under the base model (GRAPE, arXiv 2502.04194)."""

    method: Literal["grape"]
    gates: Gates = field(default_factory=Gates)
    """What an answer must pass to be a candidate."""
    min_candidates: Annotated[int, Ge(2)] = 2
    """Fewest candidates for a choice."""
    alone: Literal["keep", "drop"] = "keep"
    """What happens to the candidates of instructions that have fewer."""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Take rows in an order, and none that is too near to what is taken."""

    method: Literal["diversity"]
    order_by: str | None = None
    """Signal by which rows are ordered (a score, ``length`` or ``meta.KEY``); null: by a seeded hash of the content."""
    prefer: Literal["high", "low"] = "high"
    """Which end of the signal comes first."""
    within_source: bool = True
    """Order by the rank among the rows of the same source, so that sources of different scale or language come evenly."""
    distance: Distance = field(default_factory=lambda: NgramNovelty(measure="ngram"))
    """What too near means."""
    budget: Annotated[float, Gt(0)] | None = None
    """Most rows kept: a share of all rows below 1, otherwise a number; null: all that are apart."""


@dataclass(frozen=True, kw_only=True)
class Deita:
    """Complexity times quality, summed over the turns, then only what is apart (Liu et al. 2024, arXiv 2312.15685)."""

    method: Literal["deita"]
    complexity: str = "complexity"
    """Signal of a row, or of each turn: scores ``complexity.1``, ``complexity.2``, ..., or a list under ``meta.KEY``."""
    quality: str = "quality"
    """The same for the quality of the answers."""
    distance: Distance = field(default_factory=lambda: EmbeddingDistance(measure="embedding", fields="conversation"))
    """What too near means; the paper takes a cosine of 0.9."""
    budget: Annotated[float, Gt(0)] = 6000
    """Most rows kept: a share of all rows below 1, otherwise a number. The paper takes 6,000 and 10,000."""


@dataclass(frozen=True, kw_only=True)
class FewButGood:
    """A small, clean, varied set (LIMA: Zhou et al. 2023, arXiv 2305.11206): strict gates, then only what is apart."""

    method: Literal["few_but_good"]
    gates: StrictGates = field(default_factory=StrictGates)
    """What a row must pass; far stricter than the defaults of the filter step."""
    order_by: str = "length"
    """Signal by which rows are ordered, the highest first. Long answers first is hard to beat where nothing better is
    known (Zhao et al. 2024, arXiv 2402.04833); name a judge's score where there is one."""
    within_source: bool = True
    """Order by the rank among the rows of the same source."""
    distance: Distance = field(default_factory=lambda: NgramNovelty(measure="ngram"))
    """What too near means."""
    budget: Annotated[float, Gt(0)] = 1000
    """Most rows kept: a share of all rows below 1, otherwise a number. LIMA has 1,000."""


Rule = Annotated[Medium | Ifd | Grape | Diversity | Deita | FewButGood, Discriminator("method")]


@dataclass(frozen=True, kw_only=True)
class SelectStep:
    """Choose rows by what they are worth: by difficulty, by likelihood, by quality, and apart from each other."""

    kind: Literal["select"]
    rule: Rule
    """How to choose."""
    scored_by: str | None = None
    """Which scores to read where several models gave them: the beginning of their ``by``, for example the model's name."""
    labels: Annotated[tuple[str, ...], MinLen(1)] = LABELS
    """Texts under a ``meta.KEY``, from low to high (easy to hard, bad to good); they count 1, 2, 3 and so on."""
    unscored: Literal["drop", "keep"] = "drop"
    """What happens to rows without the signal the rule needs. Where no row has it, that is an error."""
    compare: tuple[str, ...] = ("loss", "ifd", "length")
    """Signals whose agreement is reported beside those of the rule, as far as the rows carry them."""

    def decide(self, rows: Path, seed: int, run: StepRun) -> Decisions:
        """Choose rows. The order of the rows plays no part; the seed only where no signal orders them.

        Raises DataError where no row carries the signal the rule needs, or several models gave it.
        """
        from posttrain.data.select.step import select  # polars only where rows are read

        return select(self, rows, seed, run)
