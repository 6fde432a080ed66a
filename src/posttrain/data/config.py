"""The configuration of a data stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from posttrain.data.mix import MixStep


@dataclass(frozen=True, kw_only=True)
class Source:
    """One set of rows: a file, a folder of files, a demo asset (its name), or a hub data set (``org/name``)."""

    path: str
    format: str = "auto"
    """A row format (see docs/data-formats.md) or ``auto`` to detect it."""
    name: str | None = None
    """Name in tables and in the rows' lineage; default: the path's stem."""
    max_rows: Annotated[int, Ge(1)] | None = None
    """Take only the first so many good rows."""
    split: str = "train"
    """Split of a hub data set."""


@dataclass(frozen=True, kw_only=True)
class DataStage:
    """Read, check, deduplicate exactly and split rows."""

    kind: Literal["data"]
    sources: Annotated[tuple[Source, ...], MinLen(1)]
    held_out: Annotated[float, Ge(0)] = 0.05
    """Rows kept for evaluation: a share below 1, or a number of rows. Rows with the same prompt stay together."""
    mix: MixStep | None = None
    """How much of each source is trained on, of the rows that are not held out; so every mix is judged on the same rows."""
