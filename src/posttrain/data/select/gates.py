"""Gates: what an answer must be before it can be chosen, measured by the filters of the same names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import polars as pl
from annotated_types import Ge, Le

from posttrain.data.filters.form import Length
from posttrain.data.filters.repetition import Repetition
from posttrain.data.filters.replies import Refusal, Template
from posttrain.data.filters.step import FilterStep, measure
from posttrain.data.select.outcome import Outcome
from posttrain.data.select.signals import Context

Share = Annotated[float, Ge(0), Le(1)]


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
class StrictGates(Gates):
    """The same as the gates of ``grape``, with limits for a small set. LIMA keeps answers of 1,200 to 4,096 characters."""

    min_user_tokens: Annotated[int, Ge(0)] = 3
    min_assistant_tokens: Annotated[int, Ge(0)] = 150
    """Fewest comparison tokens of the assistant."""
    max_assistant_tokens: Annotated[int, Ge(1)] | None = 1000
    max_line_share: Share = 0.2
    max_ngram_share: Share = 0.15
    """Largest share of 5-grams that stood before."""
    max_boilerplate_share: Share = 0.1
    min_sentences: Annotated[int, Ge(0)] = 3


def passing(gates: Gates, table: pl.DataFrame, context: Context, outcome: Outcome) -> pl.DataFrame:
    """The rows that pass the gates; the others are dropped."""
    length = Length(
        min_user_tokens=gates.min_user_tokens,
        max_user_tokens=None,
        min_assistant_tokens=gates.min_assistant_tokens,
        max_assistant_tokens=gates.max_assistant_tokens,
    )
    step = FilterStep(
        kind="filter",
        length=length,
        language=None,
        repetition=Repetition(max_line_share=gates.max_line_share, max_ngram_share=gates.max_ngram_share),
        template=Template(max_boilerplate_share=gates.max_boilerplate_share, min_sentences=gates.min_sentences),
        refusal=Refusal() if gates.refusals == "drop" else None,
        harmful=None,
    )
    decided = measure(step, context.rows_file, context.run, rejected=False)
    outcome.rejects.append(decided.rejects)
    outcome.verdicts.append(decided.verdicts)
    outcome.facts["gates"] = {key: decided.facts[key] for key in ("rows", "kept", "reasons", "checks")}
    return table.join(decided.rejects.select("row"), on="row", how="anti", maintain_order="left")
