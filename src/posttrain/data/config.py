"""The configuration of a data stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from pydantic import Discriminator

from posttrain.data.decontaminate.step import DecontaminateStep
from posttrain.data.dedup.step import DedupStep
from posttrain.data.filters.step import FilterStep
from posttrain.data.formats.drafts import PairRule
from posttrain.data.mix import MixStep
from posttrain.data.places import DataFile, HubSet, Resolve, locate
from posttrain.data.select.step import SelectStep
from posttrain.data.split import SplitStep
from posttrain.references import NamesStage

ChainStep = Annotated[FilterStep | DedupStep | DecontaminateStep | SelectStep | SplitStep, Discriminator("kind")]
"""A step of the data chain."""
WantedRowKind = Literal["auto", "conversations", "pairs", "feedback", "prompts"]
"""A kind of row, or whatever the sources are."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One set of rows: a stage of the recipe that hands on rows, a file, a folder, a demo asset (its name), or a hub data set (``org/name``)."""

    path: Annotated[str, NamesStage("rows", or_outside="rows")]
    format: str = "auto"
    """A row format (see docs/data-formats.md) or ``auto`` to detect it."""
    columns: dict[str, str] | None = None
    """Which column is what, where the names do not say it: ``{user: question, assistant: meta.reply}``."""
    name: str | None = None
    """Name in tables and in the rows' lineage; default: the path's stem."""
    max_rows: Annotated[int, Ge(1)] | None = None
    """Take only the first so many good rows."""
    split: str | None = None
    """Split of a folder or hub data set; default: a folder must hold one only, of a hub data set ``train``."""
    config: str | None = None
    """Configuration of a hub data set, or of a clone of one, where it has several."""
    pairs: PairRule | None = None
    """Which pairs are made of rated or ranked answers (UltraFeedback, Nectar, scored responses). Not for other formats."""

    def parts(self, resolve: Resolve) -> Sequence[DataFile | HubSet]:
        """What it is read from. Raises DataError where it is missing."""
        return locate(self.path, resolve, self.split, config=self.config).parts


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Read and check rows, drop exact duplicates, run the chain of steps, and split."""

    sources: Annotated[tuple[Source, ...], MinLen(1)]
    rows: WantedRowKind = "auto"
    """What the rows should be: ``auto`` takes what the formats of the sources give, which must agree; ``conversations`` makes
    preferences into replies to imitate, ``feedback`` makes pairs into judged replies, ``prompts`` takes the replies away."""
    steps: tuple[ChainStep, ...] = ()
    """What is done with the rows between reading and splitting, in this order; a ``split`` step comes last."""
    held_out: Annotated[float, Ge(0)] | None = None
    """Rows kept for evaluation: a share below 1, or a number of rows (default 0.05). Rows with the same prompt stay together.
    Not beside a ``split`` step, whose validation rows are the held-out ones."""
    mix: MixStep | None = None
    """How much of each source is trained on, of the rows that are not held out; so every mix is judged on the same rows."""
    profile: bool = True
    """Whether to look at the rows that are left and write profile.json and profile.html."""
    workers: Annotated[int, Ge(1)] = 1
    """Processes the steps may use; the result does not depend on it."""
    engine: Literal["local", "ray"] = "local"
    """``ray`` runs the steps on a Ray cluster (extra ``ray``); the result is the same."""

    @property
    def held_out_amount(self) -> float:
        """The share or number of rows to hold out: of a split step, its validation rows."""
        split = next((step for step in self.steps if isinstance(step, SplitStep)), None)
        return split.validation if split is not None else 0.05 if self.held_out is None else self.held_out

    @property
    def splits(self) -> bool:
        """Whether a split step decides which rows are held out."""
        return any(isinstance(step, SplitStep) for step in self.steps)
