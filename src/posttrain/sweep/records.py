"""What a sweep writes: sweep.json, which the report, the four-step search and the docs read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from posttrain.artifacts import plain, read_json, write_json
from posttrain.report.reading import parse
from posttrain.report.values import Better, Unit
from posttrain.stats.intervals import Interval

RECORD = "sweep.json"
SCHEMA = 1
Status = Literal["complete", "ended", "failed"]


class Tries(NamedTuple):
    """What a search will run, before anything has run."""

    lines: tuple[tuple[str, str], ...]
    """(what, its values) in words."""
    runs: int
    """About how many, beside the recipe as it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One setting with one seed."""

    seed: int
    folder: str
    """Of the measured stage, from the run folder on."""
    status: Status
    value: float | None = None
    curve: tuple[tuple[int, float], ...] = ()
    """(step, held-out loss) of the training that is measured, or that is read by what is."""
    error: str = ""
    """Why it failed, or at which step it was ended."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSetting:
    """One setting with all its seeds."""

    changes: dict[str, Any]
    as_written: bool = False
    """Whether it is the recipe as it is written."""
    runs: tuple[SweepRun, ...]
    value: Interval | None = None
    """Mean over seeds and rows; None where a run of it did not finish."""
    difference: Interval | None = None
    """From the best, over the same rows and the noise between seeds; None of the best itself."""
    standard_error: float | None = None
    """Of the difference."""

    @property
    def label(self) -> str:
        """``learning_rate 1e-4, rank 8``."""
        return label_of(self.changes) + " (as written)" * (self.as_written and bool(self.changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a setting does on average over all others: one of its values against its first."""

    path: str
    value: Any
    against: Any
    difference: Interval | None
    """None where the noise between seeds is not known."""
    estimate: float
    runs: int
    shown: bool | None
    """Whether it exceeds the noise between seeds; None = not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRecord:
    """sweep.json."""

    schema: int = SCHEMA
    stage: str
    metric: str
    unit: Unit
    better: Better
    seeds: tuple[int, ...]
    rows: int
    """Held-out rows or prompts that all finished runs have in common."""
    confidence: float
    search: str
    settings: tuple[SweepSetting, ...]
    """In the order they were given in, the simplest first."""
    best: int | None = None
    """Place of the setting with the best mean."""
    chosen: int | None = None
    """Place of the simplest setting within one standard error of the best."""
    expected: float | None = None
    """What a setting chosen like this gives on rows that it was not chosen on: choosing by other rows, by five folds."""
    noise: float | None = None
    """Standard deviation between seeds of one setting; None with a single seed."""
    effects: tuple[Effect, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a file of another schema."""
        if self.schema != SCHEMA:
            raise ValueError(f"schema {self.schema}, this version reads {SCHEMA}")


def label_of(changes: Mapping[str, Any]) -> str:
    """The changes in a few words: the last part of each path that tells it from the others."""
    names = short_names(tuple(changes))
    return ", ".join(f"{names[path]} {written(value)}" for path, value in changes.items()) or "as written"


def short_names(paths: tuple[str, ...]) -> dict[str, str]:
    """Path -> its last part, with as much before it as tells it from the others."""
    found = {}
    for path in paths:
        parts = path.split(".")
        others = [other.split(".") for other in paths if other != path]
        depth = next(
            k for k in range(1, len(parts) + 1) if k == len(parts) or all(other[-k:] != parts[-k:] for other in others)
        )
        found[path] = ".".join(parts[-depth:])
    return found


def written(value: Any) -> str:
    """A value of a setting: numbers short, mappings by their name."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, dict):
        return " ".join(str(one) if key == "name" else f"{key} {written(one)}" for key, one in value.items())
    return str(value)


def write_record(out: Path, record: SweepRecord) -> None:
    """Write sweep.json."""
    write_json(out / RECORD, plain(record))


def read_record(path: Path) -> SweepRecord:
    """Read it. Raises RunError."""
    return parse(SweepRecord, read_json(path), path)
