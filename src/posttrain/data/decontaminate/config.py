"""The configuration of the decontamination step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from posttrain.data.text import Fields
from posttrain.references import NamesRows

if TYPE_CHECKING:
    from posttrain.data.places import Resolve
    from posttrain.data.steps import Decisions, StepRun

ShortPrompts = Literal["anywhere", "alone"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One set of evaluation prompts: a file, a folder of files, or a hub data set (``org/name``)."""

    name: Annotated[str, MinLen(1)]
    """Name in tables. mt_bench, vicuna, alpaca_eval, arena_hard, ifeval and gsm8k are read by their own layout."""
    path: Annotated[str, NamesRows()]
    """A file (JSON, JSON Lines, CSV, Parquet, or .txt with one prompt a line), a folder of such files, or a hub name."""
    columns: tuple[str, ...] = ()
    """Columns that make up the prompt, joined by a line break; default: those of the layout that fits."""
    split: str | None = None
    """Split of a folder or hub data set; default: a folder must hold one only, of a hub data set ``test``."""
    config: str | None = None
    """Configuration of a hub data set, or of a clone of one, where it has several."""

    def content(self, resolve: Resolve) -> str:
        """Digest of the content of all it is read from. Raises DataError where it is missing."""
        from posttrain.data.decontaminate.benchmarks import content_digests

        return content_digests([self], resolve)[self.name]


@dataclass(frozen=True, kw_only=True)
class EmbeddingTier:
    """Propose rows that say what an evaluation prompt says in other words or another language."""

    encoder: str = "use-multilingual"
    """The sentence encoder (extra ``embed``)."""
    threshold: Annotated[float, Gt(0), Le(1)] | None = None
    """Cosine from which a turn is proposed; default: the one calibrated for the encoder."""
    drop: bool = False
    """Whether proposed rows are dropped; without it they are only listed."""


@dataclass(frozen=True, kw_only=True)
class DecontaminateStep:
    """Find the rows that hold evaluation prompts (the rule of Tulu 3) and drop them."""

    kind: Literal["decontaminate"]
    benchmarks: Annotated[tuple[Benchmark, ...], MinLen(1)]
    """The evaluation prompts to look for."""
    action: Literal["drop_rows", "drop_sources", "report"] = "drop_rows"
    """drop_rows: matching rows go. drop_sources: with them all rows of a contaminated source. report: nothing goes."""
    fields: Fields = "user"
    """Turns of the training rows that are compared."""
    ngram: Annotated[int, Ge(2)] = 8
    """Tokens of an n-gram."""
    limit: Annotated[float, Ge(0), Lt(1)] = 0.5
    """A row overlaps a prompt where more than this share of the prompt's tokens stands in it."""
    source_limit: Annotated[float, Ge(0), Lt(1)] = 0.02
    """A source is contaminated where its rows overlap more than this share of a benchmark's prompts."""
    short_prompts: ShortPrompts = "anywhere"
    """Where a prompt of fewer tokens than an n-gram must stand: anywhere in a turn, or alone (a turn, line, sentence)."""
    embedding: EmbeddingTier | None = None
    """Also propose rows that hold a prompt in other words or another language; default: no."""

    def decide(self, rows: Path, seed: int, run: StepRun) -> Decisions:
        """Which rows overlap which prompts. Raises ConfigError and DataError where a benchmark can't be read."""
        from posttrain.data.decontaminate.step import decide  # here: reading a recipe needs no polars

        return decide(self, rows, run)

    def inputs(self, resolve: Resolve) -> dict[str, str]:
        """Benchmark -> digest of the content of all it is read from. Raises DataError where one is missing."""
        from posttrain.data.decontaminate.benchmarks import content_digests

        return content_digests(self.benchmarks, resolve)
