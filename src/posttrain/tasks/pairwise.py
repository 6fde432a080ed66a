"""Pairwise comparison of the stage's models: every two judged on the same prompts, win rates, and ratings of all.

Win rates count what the judge says in both orders; with ``against: all`` the verdicts also give Bradley-Terry ratings
(``posttrain.stats.ratings``) with sandwich intervals by prompt, as the pairs on one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from posttrain.errors import DataError
from posttrain.generate.engine import Sampling
from posttrain.judge.pool import Judges
from posttrain.judge.prompts import load_prompt
from posttrain.judge.verdicts import Missing, Verdict
from posttrain.references import NamesFile
from posttrain.stats.intervals import IntervalSettings
from posttrain.stats.ratings import Comparison, Rating, bradley_terry, gather, win_matrix
from posttrain.tasks.base import Answer, Findings, Needs, Task
from posttrain.tasks.matches import WIN_RATE, Match, judge_pairings, match_findings, match_notes, pairings
from posttrain.tasks.records import Area, Measure, Ratings
from posttrain.tasks.rows import plain_tasks

_ABOUT = {
    "first": ("Win rate against the first model", "Wins plus half of the ties against the first model's replies"),
    "all": ("Win rate against the others", "Wins plus half of the ties against all other models' replies"),
}


@dataclass(frozen=True, kw_only=True)
class PairwiseBenchmark:
    """The stage's models against each other on the same prompts.

    A reply cut at ``max_tokens`` is judged as it stands. Equal replies are a tie without asking.
    """

    title: ClassVar[str] = "Pairwise comparison"
    area: ClassVar[Area] = "helpfulness"

    name: Literal["pairwise"]
    path: Annotated[str, NamesFile(builtin="tasks/prompts.yaml")] = "builtin"
    """``builtin`` (posttrain's own prompts), a YAML file of the same form, or rows with ``prompt`` (and ``id``, ``category``, ``language``)."""
    against: Literal["first", "all"] = "first"
    """Compare every model with the first one, or every two models (and rate them)."""
    max_prompts: Annotated[int, Ge(1)] | None = None
    """Ask only so many: the first of every category, which keeps its share; null = all."""
    max_tokens: Annotated[int, Ge(1)] = 1024
    """Longest reply in tokens."""
    temperature: Annotated[float, Ge(0)] = 0.0
    """0 = greedy."""

    @property
    def needs(self) -> Needs:
        """A judge, and models to put side by side."""
        return Needs(judge=True, two_models=True)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The win rate."""
        label, about = _ABOUT[self.against]
        about += "; a win is what the judge says in both orders, anything else is a tie."
        return (Measure(WIN_RATE, label, "share", "higher", about, headline=True),)

    def tasks(self) -> tuple[Task, ...]:
        """One task a prompt.

        Raises:
            ConfigError: a YAML file that is wrong.
            DataError: any other file of prompts that can't be used.

        """
        sampling = Sampling(temperature=self.temperature, max_tokens=self.max_tokens)
        return plain_tasks(self.path, self.max_prompts, sampling)

    def judge(self, answers: Mapping[str, Sequence[Answer]], judges: Judges, settings: IntervalSettings) -> Findings:
        """Judge every pair of models; the later model of the recipe is model a."""
        models = list(answers)
        pairs = [(later, earlier) for earlier, later in combinations(models, 2)]
        if self.against == "first":
            pairs = [(later, earlier) for later, earlier in pairs if earlier == models[0]]
        prompt = load_prompt("pair", "pair", judges.language)
        matches = judge_pairings(pairings(answers, pairs), judges, prompt, judges.plan)
        notes, ratings = match_notes(matches, len(models) - 1), None
        if self.against == "all":
            ratings, rating_notes = ratings_of(matches, models, settings)
            notes += rating_notes
        return match_findings(
            answers,
            matches,
            settings,
            baseline=models[0] if self.against == "first" else None,
            both=self.against == "all",
            notes=notes,
            ratings=ratings,
        )


# ---- ratings -------------------------------------------------------------------------------------------------------


_WINNERS: dict[Verdict, Literal["a", "b", "tie"]] = {"first": "a", "second": "b", "tie": "tie"}


def ratings_of(
    matches: Sequence[Match], models: Sequence[str], settings: IntervalSettings
) -> tuple[Ratings | None, list[str]]:
    """Bradley-Terry ratings, best first, and the win matrix in the order of ``models``; and what a reader must know.

    Where ratings do not exist (a model that won or lost everything, or nothing but ties) there are no rows, and a note says why.
    """
    rows = [
        Comparison(match.model_a, match.model_b, _WINNERS[outcome], cluster=match.task.id)
        for match in matches
        for outcome in match.outcomes.values()
        if not isinstance(outcome, Missing)
    ]
    if not rows:
        return None, []
    comparisons = gather(rows)
    matrix = win_matrix(comparisons)
    known = tuple(model for model in models if model in matrix.models)
    places = [matrix.models.index(model) for model in known]
    wins = tuple(map(tuple, matrix.wins_MM[places][:, places].tolist()))
    rated: tuple[Rating, ...] = ()
    notes = []
    if all(row.winner == "tie" for row in rows):
        # WHY no ratings: equal ones with intervals of no width would look like certainty
        notes.append("No ratings: every comparison with a verdict is a tie.")
    else:
        try:
            rated = bradley_terry(comparisons, confidence=settings.confidence).ratings
        except DataError as error:
            notes.append(f"No ratings: {error.problem}.")
    return Ratings("bradley_terry", rated, known, wins), notes
