"""Pairwise comparison of the stage's models: every two judged on the same prompts, win rates, and ratings of all.

Win rates count what the judge says in both orders; with ``against: all`` the verdicts also give Bradley-Terry ratings
(``posttrain.stats.ratings``) with sandwich intervals by prompt, as the pairs on one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from posttrain.errors import DataError
from posttrain.generate.engine import Sampling
from posttrain.judge.pool import Judges
from posttrain.judge.prompts import load_prompt
from posttrain.judge.verdicts import Missing, Verdict
from posttrain.references import NamesFile
from posttrain.stats.intervals import IntervalSettings
from posttrain.stats.ratings import Comparison, Comparisons, bradley_terry, gather, win_matrix
from posttrain.tasks.base import Answer, Area, Findings, Measure, Needs, Task
from posttrain.tasks.matches import (
    ONE_MODEL,
    WIN_RATE,
    Match,
    baseline_halves,
    counts,
    judge_pairings,
    match_notes,
    missing_reasons,
    pairings,
    repeated_notes,
    required,
    side_points,
    side_shown,
    side_values,
    sides,
    win_rate_records,
)
from posttrain.tasks.rows import keep_shares, plain_prompts

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
        prompts = plain_prompts(self.path)
        sampling = Sampling(temperature=self.temperature, max_tokens=self.max_tokens)
        return tuple(
            Task(prompt.id, (prompt.text,), sampling, category=prompt.category, language=prompt.language)
            for prompt in keep_shares(prompts, [prompt.category for prompt in prompts], self.max_prompts)
        )

    def score(
        self, answers: Mapping[str, Sequence[Answer]], judges: Judges | None, settings: IntervalSettings
    ) -> Findings:
        """Judge every pair of models; the later model of the recipe is model a."""
        judges = required(judges, self.title)
        models = list(answers)
        pairs = [(later, earlier) for earlier, later in combinations(models, 2)]
        if self.against == "first":
            pairs = [(later, earlier) for later, earlier in pairs if earlier == models[0]]
        prompt = load_prompt("pair", "pair", judges.language)
        matches = judge_pairings(pairings(answers, pairs), judges, prompt, judges.plan)
        won = sides(matches, both=self.against == "all")
        values = side_values(won)
        extra: dict[str, Any] = {"win_rates": win_rate_records(matches, settings)}
        notes = match_notes(matches) if len(models) > 1 else [ONE_MODEL]
        if self.against == "first":
            values += baseline_halves(models[0], values)
        elif len(models) > 1:
            extra["ratings"], rating_notes = ratings_record(matches, models, settings)
            notes += rating_notes
        return Findings(
            values=values,
            counts=counts(answers, [(value.model, value.task) for value in values], missing_reasons(matches)),
            shown=side_shown(won),
            values_shown=side_points(won),
            notes=[*notes, *repeated_notes(answers)],
            extra=extra,
        )


# ---- ratings -------------------------------------------------------------------------------------------------------


def comparisons_of(matches: Sequence[Match]) -> Comparisons | None:
    """The verdicts as comparisons, those on one prompt in one cluster; None without a verdict."""
    rows = [
        Comparison(match.pairing.model_a, match.pairing.model_b, _WINNERS[outcome], cluster=match.pairing.task.id)
        for match in matches
        for outcome in match.outcomes.values()
        if not isinstance(outcome, Missing)
    ]
    return gather(rows) if rows else None


_WINNERS: dict[Verdict, Literal["a", "b", "tie"]] = {"first": "a", "second": "b", "tie": "tie"}


def ratings_record(
    matches: Sequence[Match], models: Sequence[str], settings: IntervalSettings
) -> tuple[dict[str, Any] | None, list[str]]:
    """``ratings`` of the record: Bradley-Terry ratings, best first, and the win matrix in the order of ``models``; and what must be told.

    Where ratings do not exist (a model that won or lost everything, or nothing but ties) there are no rows, and a note says why.
    """
    comparisons = comparisons_of(matches)
    if comparisons is None:
        return None, []
    matrix = win_matrix(comparisons)
    known = [model for model in models if model in matrix.models]
    places = [matrix.models.index(model) for model in known]
    rows, notes = [], []
    if not any(outcome in ("first", "second") for match in matches for outcome in match.outcomes.values()):
        # WHY no ratings: equal ones with intervals of no width would look like certainty
        wins = matrix.wins_MM[places][:, places].tolist()
        told = "No ratings: every comparison with a verdict is a tie."
        return {"method": "bradley_terry", "rows": [], "models": known, "wins": wins}, [told]
    try:
        table = bradley_terry(comparisons, confidence=settings.confidence)
        rows = [{key: getattr(one, key) for key in ("model", "rating", "low", "high", "rank")} for one in table.ratings]
    except DataError as error:
        notes.append(f"No ratings: {error.problem}.")
    wins = matrix.wins_MM[places][:, places].tolist()
    return {"method": "bradley_terry", "rows": rows, "models": known, "wins": wins}, notes
