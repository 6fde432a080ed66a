"""Mean ratings of single replies, by model, turn and category, with intervals over questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.judge.bias import main_judgments
from posttrain.judge.items import Item
from posttrain.judge.judge import Judgment
from posttrain.judge.verdicts import Accounting, Missing, account
from posttrain.stats.intervals import Interval, IntervalSettings


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


def model_ratings(
    items: Sequence[Item], judgments: Sequence[Judgment], settings: IntervalSettings = IntervalSettings()
) -> dict[str, ModelRatings]:
    """Every model's mean ratings, in order of appearance. A reply without a rating is left out of the mean and counted."""

    def mean(chosen: Sequence[Judgment]) -> MeanRating:
        rated = [(float(g.value), items[g.ask.item].id) for g in chosen if isinstance(g.value, float | int)]
        interval = settings.mean([value for value, _ in rated], [cluster for _, cluster in rated])
        return MeanRating(interval, account([judgment.value for judgment in chosen]))

    def of(model: str) -> ModelRatings:
        own = [judgment for judgment in main_judgments(judgments) if items[judgment.ask.item].model_a == model]

        turns = sorted({judgment.ask.turn for judgment in own})
        categories = dict.fromkeys(items[judgment.ask.item].category for judgment in own)
        return ModelRatings(
            mean(own),
            {turn: mean([one for one in own if one.ask.turn == turn]) for turn in turns},
            {c: mean([one for one in own if items[one.ask.item].category == c]) for c in categories if c is not None},
        )

    return {model: of(model) for model in dict.fromkeys(item.model_a for item in items)}


def panel_ratings(judges: Sequence[Sequence[Judgment]]) -> list[Judgment]:
    """A panel's ratings: of every ask the mean of the judges that gave one; missing where none did.

    Raises:
        ValueError: the judges were not asked the same things.

    """
    if not judges or any(
        [judgment.ask for judgment in judgments] != [judgment.ask for judgment in judges[0]] for judgments in judges
    ):
        raise ValueError("a panel rates the same replies")
    found = []
    for asked in zip(*judges, strict=True):
        ratings = [float(judgment.value) for judgment in asked if isinstance(judgment.value, float | int)]
        value = sum(ratings) / len(ratings) if ratings else asked[0].value
        assert ratings or isinstance(value, Missing), "what is no rating is missing"
        found.append(Judgment(asked[0].ask, value))
    return found
