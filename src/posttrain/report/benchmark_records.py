"""The files of a benchmark as frozen values: ``benchmarks/<key>.json`` and ``<key>.rows.jsonl`` (docs/run-folder.md).

As in ``records`` unknown keys are ignored, and a missing or mistyped one is an error that names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.report.records import Estimate

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Source:
    """Where the prompts come from."""

    path: str | None
    digest: str | None
    prompts: int


@dataclass(frozen=True, slots=True)
class Measure:
    """One number that a benchmark reports of every model."""

    key: str
    label: str
    unit: str
    """``share``, ``rating``, ``tokens`` or ``number``."""
    better: Literal["higher", "lower", "neither"]
    about: str = ""
    headline: bool = False
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


@dataclass(frozen=True, slots=True)
class Difference:
    """``b`` minus ``a`` on the prompts that both have a value of."""

    a: str
    b: str
    measure: str
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    adjusted_p: float | None
    """Holm's, over the comparisons of this benchmark."""
    test: str | None
    detectable: float | None
    """The smallest true difference that these prompts would have shown four times of five."""
    prompts: int


@dataclass(frozen=True, slots=True)
class Account:
    """What became of one model's answers: asked = measured + the sum of ``dropped``."""

    asked: int
    answered: int
    measured: int
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplyLengths:
    """Length of one model's replies, and how many were cut at the limit of tokens."""

    tokens_mean: float | None = None
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


# ---- the judge -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calls:
    """What became of the calls to a judge: ``missing`` counts those without a verdict by reason, ``failures`` those that failed."""

    asked: int
    answered: int
    parsed: int
    missing: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    cached: int = 0
    asked_again: int = 0
    """Cut off, and asked for a second time."""

    @property
    def unread(self) -> float:
        """Share of the calls that gave no verdict."""
        return (self.asked - self.parsed) / self.asked if self.asked else 0.0


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Who answered as a judge."""

    engine: str = ""
    model: str = ""
    endpoint: str = ""
    template: str = ""
    options: Any = None


@dataclass(frozen=True, slots=True)
class JudgeEntry:
    """One judge."""

    name: str
    fingerprint: Fingerprint
    calls: Calls
    prompts: tuple[str, ...] = ()
    """Digests of the prompts it was asked with."""


@dataclass(frozen=True, slots=True)
class OrderEffects:
    """What the order of the replies did to a judge. The shares are of the pairs with a verdict in both orders."""

    pairs: int
    judged: int
    consistent: Estimate | None
    to_first: Estimate | None
    to_second: Estimate | None
    half_tie: Estimate | None
    direction_p: float | None
    ties: Estimate | None


@dataclass(frozen=True, slots=True)
class LengthPreference:
    """Whether the longer reply wins."""

    decided: int
    longer: Estimate | None
    p_value: float | None
    difference: Estimate | None
    slope: Estimate | None = None
    """Of winning on length: 0 = length does not matter, 1 = twice as long doubles the odds."""


@dataclass(frozen=True, slots=True)
class BiasSummary:
    """One judge on a set of questions."""

    orders: OrderEffects | None
    first_shown: Estimate | None
    judged: int
    dropped: int
    ties: Estimate | None
    length: LengthPreference


@dataclass(frozen=True, slots=True)
class Mitigation:
    """One way of asking, on the questions with an outcome under every way."""

    name: str
    questions: int
    win_rate_a: Estimate | None = None
    ties: Estimate | None = None
    first_shown: Estimate | None = None
    consistent: Estimate | None = None
    changed: Estimate | None = None
    accuracy: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Bias:
    """The bias report of one judge."""

    emphasised: bool
    overall: BiasSummary
    by_category: dict[str, BiasSummary] = field(default_factory=dict)
    mitigations: tuple[Mitigation, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgeRecord:
    """Who judged the replies, and how."""

    judges: tuple[JudgeEntry, ...]
    language: str
    plan: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, Any] | None = None
    bias: dict[str, Bias] = field(default_factory=dict)
    """By judge; of pairs only."""


# ---- one model against another -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WinRates:
    """``model_a`` against ``model_b``. ``win_rate`` leaves ties out of the wins, ``adjusted`` counts them half."""

    model_a: str
    model_b: str
    wins: int
    losses: int
    ties: int
    missing: int
    win_rate: Estimate | None
    adjusted: Estimate | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Rating:
    """One model's rating in points."""

    model: str
    rating: float
    low: float | None
    high: float | None
    rank: int


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings of all models, and ``wins[i][j]``: wins of model i over model j, ties half."""

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
    win_rate: float | None
    standard_error: float | None
    discrete: float | None
    length_controlled: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """AlpacaEval 2's length-controlled win rates."""

    baseline: str
    comparable: bool
    """With the published leaderboard."""
    why_not: str | None
    rows: tuple[LengthControlledRow, ...]


# ---- the two files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BenchmarkRecord:
    """``<key>.json``."""

    schema: int
    key: str
    benchmark: str
    title: str
    area: str
    source: Source
    models: tuple[str, ...]
    baseline: str
    confidence: float
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
            raise ValueError(f"the baseline {self.baseline} is none of the models")


@dataclass(frozen=True, slots=True)
class Shown:
    """What stands beside a reply: its verdict in a word, whether that is good, and why."""

    label: str
    good: bool | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One line of ``<key>.rows.jsonl``: what one model said to one sample of one prompt, turn by turn."""

    model: str
    prompt_id: str
    sample: int
    turns: tuple[str, ...]
    replies: tuple[str, ...]
    finishes: tuple[str, ...] = ()
    category: str | None = None
    language: str | None = None
    tokens: int | None = None
    failure: str | None = None
    values: dict[str, float | None] = field(default_factory=dict)
    shown: Shown | None = None
