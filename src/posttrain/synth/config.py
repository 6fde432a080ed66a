"""The configuration of a synthesis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Discriminator

from posttrain.data.config import Source
from posttrain.data.decontaminate.benchmarks import Benchmark
from posttrain.data.decontaminate.step import DecontaminateStep
from posttrain.data.filters.language import LanguageFilter
from posttrain.data.filters.step import FilterStep
from posttrain.generate.cost import Prices
from posttrain.generate.source import ModelSource, check_prices, prices_of
from posttrain.references import NamesFile
from posttrain.synth import AnyPipeline

SynthStep = Annotated[FilterStep | DecontaminateStep, Discriminator("kind")]
"""A step that looks at one row at a time, so that a round can be filtered before the next begins."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent; null = no cap. Answers from the cache count as well."""

    requests: Annotated[int, Ge(0)] | None = None
    """At most so many requests."""
    tokens: Annotated[int, Ge(0)] | None = None
    """No more is asked once so many tokens are read and written."""
    money: Annotated[float, Ge(0)] | None = None
    """No more is asked once this is spent, in the currency of the prices."""
    prompt_price: Annotated[float, Ge(0)] | None = None
    """Price of a million tokens read."""
    completion_price: Annotated[float, Ge(0)] | None = None
    """Price of a million tokens written."""
    shared: str | None = None
    """A file in which other runs and processes of this machine count what they ask of servers as well: together they keep below
    ``requests``, ``tokens`` and ``money``."""

    def __post_init__(self) -> None:
        check_prices(self.prompt_price, self.completion_price, self.money, "requests")
        if self.shared is not None and self.requests is self.tokens is self.money is None:
            raise ValueError("a shared budget without a cap limits nothing: give requests, tokens or money")

    @property
    def prices(self) -> Prices | None:
        """The prices; None where there are none."""
        return prices_of(self.prompt_price, self.completion_price)


@dataclass(frozen=True, kw_only=True)
class SynthSettings:
    """Make rows with a model: instructions from seeds, topics or nothing, or preferences among replies."""

    pipeline: AnyPipeline
    """How rows are made."""
    writer: ModelSource = field(default_factory=lambda: ModelSource(local="base"))
    """Who writes; the recipe's model, where nobody is named."""
    language: Literal["en", "zh"] = "en"
    """Language of the prompts, seeds and topics that posttrain brings."""
    prompts: Annotated[str, NamesFile()] | None = None
    """A YAML file whose prompts replace posttrain's own (docs/synthesis.md)."""
    rows_wanted: Annotated[int, Ge(1)] = 200
    """The synthesis ends when so many rows have passed all filters."""
    too_similar: Annotated[float, Gt(0), Le(1)] = 0.7
    """Largest ROUGE-L of an instruction with any in the pool."""
    steps: tuple[SynthStep, ...] | None = None
    """Filters of every round, as of a data stage; null = ``filter`` with its defaults and, of instructions that the pipeline writes itself, the stage's language."""
    avoid: tuple[Benchmark, ...] = ()
    """Benchmarks whose prompts must not come up, beside posttrain's own fixed prompts, which are always looked for."""
    yardstick: Source | None = None
    """A real set whose diversity stands beside that of the rows in the report, at equal size."""
    round_size: Annotated[int, Ge(1)] = 64
    """Threads begun together; the pool grows from round to round."""
    idle_rounds: Annotated[int, Ge(1)] = 5
    """The synthesis ends after so many rounds in a row that keep nothing."""
    budget: Budget = Budget()
    """What may be spent."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the rows that is kept for evaluation."""

    @property
    def filters(self) -> tuple[SynthStep, ...]:
        """The steps, or the default ones."""
        if self.steps is not None:
            return self.steps
        own = getattr(self.pipeline, "data", None) is None
        return (FilterStep(kind="filter", language=LanguageFilter(keep=(self.language,) if own else ())),)

    @property
    def held_out_amount(self) -> float:
        """The share of rows to hold out."""
        return self.held_out
