"""Mean ratings of single replies, by model, turn and category, with intervals over questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from posttrain.judge.bias import main_games
from posttrain.judge.items import Item
from posttrain.judge.judge import Game
from posttrain.judge.verdicts import Accounting, Missing, account
from posttrain.judge.win_rates import mean_interval
from posttrain.stats.intervals import Interval


class MeanRating(NamedTuple):
    """The mean over the ratings that could be read, and how many that were."""

    mean: Interval | None
    """By bootstrap over questions, whose turns and samples belong together; None without ratings."""
    calls: Accounting


class ModelRatings(NamedTuple):
    """One model's ratings."""

    overall: MeanRating
    by_turn: dict[int, MeanRating]
    by_category: dict[str, MeanRating]


def model_ratings(
    items: Sequence[Item], games: Sequence[Game], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> dict[str, ModelRatings]:
    """Every model's mean ratings, in order of appearance. A reply without a rating is left out of the mean and counted."""

    def mean(chosen: Sequence[Game]) -> MeanRating:
        rated = [(float(g.value), items[g.ask.item].id) for g in chosen if isinstance(g.value, float | int)]
        interval = mean_interval(
            [value for value, _ in rated],
            [cluster for _, cluster in rated],
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )
        return MeanRating(interval, account([game.value for game in chosen]))

    def of(model: str) -> ModelRatings:
        own = [game for game in main_games(games) if items[game.ask.item].model_a == model]

        def where(test: Callable[[Game], bool]) -> MeanRating:
            return mean([game for game in own if test(game)])

        turns = sorted({game.ask.turn for game in own})
        categories = dict.fromkeys(items[game.ask.item].category for game in own)
        return ModelRatings(
            mean(own),
            {turn: where(lambda game, turn=turn: game.ask.turn == turn) for turn in turns},  # type: ignore[misc]
            {c: where(lambda game, c=c: items[game.ask.item].category == c) for c in categories if c is not None},  # type: ignore[misc]
        )

    return {model: of(model) for model in dict.fromkeys(item.model_a for item in items)}


def panel_ratings(judges: Sequence[Sequence[Game]]) -> list[Game]:
    """A panel's ratings: of every ask the mean of the judges that gave one; missing where none did.

    Raises:
        ValueError: the judges were not asked the same things.

    """
    if not judges or any([game.ask for game in games] != [game.ask for game in judges[0]] for games in judges):
        raise ValueError("a panel rates the same replies")
    found = []
    for asked in zip(*judges, strict=True):
        ratings = [float(game.value) for game in asked if isinstance(game.value, float | int)]
        value = sum(ratings) / len(ratings) if ratings else asked[0].value
        assert ratings or isinstance(value, Missing), "what is no rating is missing"
        found.append(Game(asked[0].ask, value))
    return found
