"""Mean ratings of single replies, by model, turn and category, with intervals over questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.judge.bias import main_judgments
from posttrain.judge.items import Item
from posttrain.judge.judge import Judgment
from posttrain.judge.verdicts import Accounting, account
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
