"""summary.json of ``posttrain judge``: what was judged, by whom, and what came of it: win rates, or mean ratings of single replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from posttrain.generate.cost import Totals
from posttrain.generate.engine import Sampling
from posttrain.judge.agreement import krippendorff_alpha
from posttrain.judge.bias import BiasReport, main_judgments
from posttrain.judge.calibrate import JudgeCalibration, RatingCalibration
from posttrain.judge.config import JudgeTask, Plan
from posttrain.judge.items import BadLine, Item
from posttrain.judge.judge import Judgment, Question
from posttrain.judge.pool import JudgeEntry
from posttrain.judge.verdicts import Accounting, Missing, Verdict, account
from posttrain.judge.win_rates import PairOutcome, WinRates, win_rates
from posttrain.stats.intervals import Interval, IntervalSettings

SCHEMA = 2

Outcomes = Mapping[Question, Verdict | Missing]


@dataclass(frozen=True, slots=True)
class BadLines:
    """Lines that are no items."""

    count: int
    first: tuple[BadLine, ...]


@dataclass(frozen=True, slots=True)
class References:
    """Questions whose reference answer the judge saw, and those that would need one."""

    shown: int
    needed_but_absent: int


@dataclass(frozen=True, slots=True)
class PromptMark:
    """What the judges were asked with."""

    kind: str
    language: str | None
    parser: str
    digest: str


@dataclass(frozen=True, slots=True)
class Weighted:
    """Mean probability that reply a is better, over the judgments that give one (AlpacaEval's weighted win rate of a)."""

    judgments: int
    probability_a: Interval


@dataclass(frozen=True, slots=True)
class Panel:
    """How far several judges agree."""

    judges: int
    questions: int
    unanimous: int
    missing: int
    krippendorff_alpha: Interval | None


@dataclass(frozen=True, slots=True)
class MeanRating:
    """The mean over the ratings that could be read, and how many that were."""

    mean: Interval | None
    """By bootstrap over questions, whose turns and samples belong together; None without ratings."""
    calls: Accounting


@dataclass(frozen=True, slots=True)
class ModelRatings:
    """One model's ratings."""

    overall: MeanRating
    by_turn: dict[int, MeanRating]
    by_category: dict[str, MeanRating]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSummary:
    """summary.json."""

    schema: int = SCHEMA
    task: JudgeTask
    file: str
    items: int
    questions: int
    bad_lines: BadLines
    references: References
    judges: tuple[JudgeEntry, ...]
    prompt: PromptMark | None
    """None where only reward models judge."""
    sampling: Sampling | None
    plan: Plan
    confidence: float
    resamples: int
    spent: Totals | None
    bias: dict[str, BiasReport]
    win_rates: tuple[WinRates, ...] = ()
    win_rates_by_category: dict[str, tuple[WinRates, ...]] = field(default_factory=dict)
    weighted: dict[str, Weighted | None] = field(default_factory=dict)
    """By judge; of judges that give probabilities."""
    panel: Panel | None = None
    scale: tuple[float, float] | None = None
    """Of ratings."""
    ratings: dict[str, ModelRatings] = field(default_factory=dict)
    """By model."""
    ratings_by_judge: dict[str, dict[str, ModelRatings]] = field(default_factory=dict)
    calibration: dict[str, JudgeCalibration | RatingCalibration] = field(default_factory=dict)
    """By judge."""


def pair_outcomes(items: Sequence[Item], final: Outcomes, settings: IntervalSettings) -> tuple[WinRates, ...]:
    """Win rates of every two models."""
    chosen = [(items[place], outcome) for (place, _), outcome in final.items()]
    return win_rates([PairOutcome(one.model_a, one.model_b, outcome, one.id) for one, outcome in chosen], settings)


def by_category(items: Sequence[Item], final: Outcomes, settings: IntervalSettings) -> dict[str, tuple[WinRates, ...]]:
    """Win rates in every category, in order of appearance."""
    categories = dict.fromkeys(item.category for item in items if item.category is not None)
    return {
        category: pair_outcomes(items, {q: v for q, v in final.items() if items[q[0]].category == category}, settings)
        for category in categories
    }


def weighted(items: Sequence[Item], judgments: Sequence[Judgment], settings: IntervalSettings) -> Weighted | None:
    """The weighted win rate of one judge; None where it gave no probability."""
    known = [(one.to_second, one.ask) for one in main_judgments(judgments) if one.to_second is not None]
    of_a = [1 - p if ask.order == "original" else p for p, ask in known]
    found = settings.mean(of_a, [items[ask.item].id for _, ask in known])
    return None if found is None else Weighted(len(known), found)


def panel_of(by_judge: Sequence[Outcomes], final: Outcomes, settings: IntervalSettings) -> Panel:
    """How far the judges of a panel agree."""
    voted = [[v for judge in by_judge if not isinstance(v := judge[question], Missing)] for question in final]
    several = [votes for votes in voted if len(votes) > 1]
    return Panel(
        judges=len(by_judge),
        questions=len(final),
        unanimous=sum(len(votes) == len(by_judge) and len(set(votes)) == 1 for votes in voted),
        missing=sum(isinstance(outcome, Missing) for outcome in final.values()),
        krippendorff_alpha=krippendorff_alpha(several, settings) if several else None,
    )


def model_ratings(
    items: Sequence[Item], judgments: Sequence[Judgment], settings: IntervalSettings = IntervalSettings()
) -> dict[str, ModelRatings]:
    """Every model's mean ratings, in order of appearance. A reply without a rating is left out of the mean and counted."""

    def mean(chosen: Sequence[Judgment]) -> MeanRating:
        rated = [(float(one.value), items[one.ask.item].id) for one in chosen if isinstance(one.value, float | int)]
        interval = settings.mean([value for value, _ in rated], [cluster for _, cluster in rated])
        return MeanRating(interval, account([one.value for one in chosen]))

    def of(model: str) -> ModelRatings:
        own = [one for one in main_judgments(judgments) if items[one.ask.item].model_a == model]
        turns = sorted({one.ask.turn for one in own})
        categories = dict.fromkeys(items[one.ask.item].category for one in own)
        return ModelRatings(
            mean(own),
            {turn: mean([one for one in own if one.ask.turn == turn]) for turn in turns},
            {c: mean([one for one in own if items[one.ask.item].category == c]) for c in categories if c is not None},
        )

    return {model: of(model) for model in dict.fromkeys(item.model_a for item in items)}


def panel_ratings(judges: Sequence[Sequence[Judgment]]) -> Sequence[Judgment]:
    """The ratings of one judge, or of a panel: for every ask the mean of the judges that gave one; missing where none did."""
    if len(judges) == 1:
        return judges[0]
    found = []
    for answers in zip(*judges, strict=True):
        ratings = [float(one.value) for one in answers if isinstance(one.value, float | int)]
        found.append(Judgment(answers[0].ask, sum(ratings) / len(ratings) if ratings else answers[0].value))
    return found
