"""The record of a measurement, the same for benchmarks, held-out rows and fixed prompts: ``<key>.json`` and ``<key>.rows.jsonl``.

Written with `write_record`, read with `read_record` and `read_rows` (docs/run-folder.md). Unknown keys are ignored, so a newer run can be read; a
missing or mistyped one is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrain.artifacts import plain, read_json, write_json, write_text
from posttrain.judge.pool import JudgeRecord
from posttrain.judge.win_rates import WinRates
from posttrain.report.reading import json_lines, parse
from posttrain.report.values import Better
from posttrain.stats.intervals import Test
from posttrain.stats.ratings import Rating

SCHEMA = 2

Area = Literal["helpfulness", "instructions", "reasoning", "safety", "diversity", "held_out", "prompts"]
"""What is measured; the report groups by it."""

Unit = Literal["share", "rating", "tokens", "number", "count"]
"""``share`` is shown as a percentage; ``rating`` has a scale."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the prompts or rows come from."""

    path: str | None
    digest: str | None
    prompts: int
    """How many there are."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number that is reported of every model."""

    key: str
    """Column of values and of the record."""
    label: str
    unit: Unit = "share"
    better: Better = "higher"
    about: str = ""
    """One sentence for readers who don't know it."""
    headline: bool = False
    """Shown in the overview of all models."""
    scale: tuple[float, float] | None = None
    """Lowest and highest value, where there are such."""


@dataclass(frozen=True, slots=True)
class Result:
    """One measure of one model, over all prompts (``category`` None) or over those of a category."""

    model: str
    measure: str
    category: str | None
    estimate: float | None
    low: float | None
    high: float | None
    values: int
    prompts: int
    """Prompts (or rows) behind it: what is resampled."""
    by_definition: bool = False
    """Not measured: a model compared with itself."""


@dataclass(frozen=True, slots=True)
class Difference:
    """``b`` minus ``a`` on the prompts that both have a value of.

    It is shown where its interval excludes zero and, where there is a test, the p-value (adjusted, if it is) says so too.
    """

    a: str
    b: str
    measure: str
    difference: float
    low: float | None
    high: float | None
    prompts: int
    p_value: float | None = None
    adjusted_p: float | None = None
    """Holm's, over the headline comparisons of this record, or over its others; None where every test stands by itself."""
    test: Test | None = None
    """None = the interval alone decides."""
    detectable: float | None = None
    """The smallest true difference that these prompts would have shown four times of five."""
    higher: int | None = None
    """Prompts whose value under ``b`` is the higher one."""
    lower: int | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """What became of one model's answers: asked = measured + the sum of ``dropped``. Nothing is lost without a reason."""

    asked: int
    answered: int
    """Answers that are complete."""
    measured: int
    """Answers that have a value."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> answers without a value."""


@dataclass(frozen=True, slots=True)
class ReplyLengths:
    """Length of one model's replies, and how many were cut at the limit of tokens."""

    tokens_mean: float | None = None
    """Tokens where the engine counted them (thinking included)."""
    tokens_p50: float | None = None
    tokens_p95: float | None = None
    characters_mean: float | None = None
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one model's replies took."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    """None of a resumed stage: an earlier life took part of the time."""


# ---- one model against another -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings of all models, best first, and ``wins_MM[i][j]``: wins of model i over model j, ties half."""

    method: str
    rows: tuple[Rating, ...]
    models: tuple[str, ...]
    wins: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Refuse a table of wins that is not square."""
        size = len(self.models)
        if len(self.wins) != size or any(len(row) != size for row in self.wins):
            raise ValueError(f"wins is not {size} x {size}")


@dataclass(frozen=True, slots=True)
class LengthControlledRow:
    """Win rates of one model against the baseline, in percent as AlpacaEval gives them."""

    model: str
    win_rate: float
    standard_error: float | None
    discrete: float
    n: int
    length_controlled: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """AlpacaEval 2's length-controlled win rates."""

    baseline: str
    comparable: bool
    """With the published leaderboard."""
    why_not: str | None
    rows: tuple[LengthControlledRow, ...]


# ---- the two files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """``<key>.json``: what was measured, of whom, with what result."""

    schema: int = SCHEMA
    key: str
    """The recipe's name for it."""
    task: str
    """What it is: ``ifeval``, ``likelihood``."""
    title: str
    area: Area
    source: Source
    models: tuple[str, ...]
    baseline: str
    """Differences are those of the other models from it."""
    reference: str | None = None
    """The model that rewards are measured from."""
    confidence: float
    resamples: int
    measures: tuple[Measure, ...]
    results: tuple[Result, ...]
    differences: tuple[Difference, ...] = ()
    accounting: dict[str, Account] = field(default_factory=dict)
    replies: dict[str, ReplyLengths] = field(default_factory=dict)
    cost: dict[str, Cost] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    judge: JudgeRecord | None = None
    win_rates: tuple[WinRates, ...] = ()
    ratings: Ratings | None = None
    length_controlled: LengthControlled | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a file of another schema, or without its baseline."""
        if self.schema != SCHEMA:
            raise ValueError(f"schema {self.schema}, this version reads {SCHEMA}")
        if self.baseline not in self.models:
            raise ValueError(f"the baseline {self.baseline} is not one of the models")


@dataclass(frozen=True, slots=True)
class Remark:
    """What stands beside a reply: its verdict in a word or two, whether that is good, and why."""

    label: str
    """``passed``, ``7 of 10``, ``full refusal``, ``wins``."""
    good: bool | None = None
    """None = neither good nor bad."""
    detail: str = ""
    """Failed instructions, the expected answer, the judge's own words."""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One line of ``<key>.rows.jsonl``: what one model said to one sample of one prompt, or its values of a held-out row.

    A field that has its default is left out of the file.
    """

    model: str
    prompt_id: str
    sample: int = 0
    category: str | None = None
    language: str | None = None
    turns: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()
    finishes: tuple[str, ...] = ()
    tokens: int | None = None
    failure: str | None = None
    values: dict[str, float] = field(default_factory=dict)
    remark: Remark | None = None


def write_record(folder: Path, record: TaskRecord, rows: Iterable[TaskRow]) -> None:
    """Write both files; the record last: where it is, all is."""
    lines = (json.dumps(_written(row), ensure_ascii=False) + "\n" for row in rows)
    write_text(folder / f"{record.key}.rows.jsonl", "".join(lines))
    write_json(folder / f"{record.key}.json", plain(record))


def _written(row: TaskRow) -> dict[str, Any]:
    own = {one.name: getattr(row, one.name) for one in dataclasses.fields(row)}
    return {name: plain(value) for name, value in own.items() if value not in (None, 0, (), {}) or name == "sample"}


def read_record(path: Path) -> TaskRecord:
    """The record of a file. Raises RunError where it is missing, damaged or of another shape."""
    return parse(TaskRecord, read_json(path), path)


def read_rows(path: Path) -> tuple[TaskRow, ...]:
    """The rows of a file. Raises RunError, or OSError where it is missing."""
    return parse(tuple[TaskRow, ...], json_lines(path), path)
