"""MT-Bench's published ratings and votes: scores, and how far a judge's votes agree with people's.

As FastChat's ``show_result.py`` and ``compute_agreement.py`` count (Zheng et al. 2023, arXiv:2306.05685).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from posttrain.errors import DataError
from posttrain.judge.verdicts import Accounting, Missing, Verdict, account, mirrored
from posttrain.stats.intervals import Interval, IntervalSettings
from posttrain.stats.intervals import mean as interval_of
from posttrain.tasks.mt_bench_data import Question, field_of
from posttrain.tasks.rows import file_rows

# ---- scores --------------------------------------------------------------------------------------------------------


class Rating(NamedTuple):
    """One judgment of one answer; a question may be judged several times."""

    question_id: int
    turn: int
    """1 or 2."""
    value: float | Missing


class Score(NamedTuple):
    """The mean of the ratings that could be read, and how many that were."""

    mean: Interval | None
    """Over ratings, as published; its interval resamples questions, whose turns and samples belong together. None without ratings."""
    accounting: Accounting


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """The scores of one model."""

    overall: Score
    by_turn: dict[int, Score]
    by_category: dict[str, Score]
    """In the order of the questions."""
    unjudged: tuple[tuple[int, int], ...]
    """(question, turn) without any rating, parsed or not: a score over other questions is another benchmark."""


def score_table(questions: Sequence[Question], ratings: Sequence[Rating], *, resamples: int = 10_000) -> ScoreTable:
    """Scores of one model by turn, by category and overall.

    Every mean is over ratings, as in FastChat's ``show_result.py``, which leaves unreadable ones out without a word; here they are
    counted beside it, with their reasons.

    Raises:
        ValueError: a rating of a question or turn that is not in the set.

    """
    category = {question.id: question.category for question in questions}
    asked = [(question.id, turn) for question in questions for turn in range(1, len(question.turns) + 1)]
    if strange := {(r.question_id, r.turn) for r in ratings} - set(asked):
        raise ValueError(f"ratings of questions or turns that are not in the set: {sorted(strange)[:5]}")
    judged = {(r.question_id, r.turn) for r in ratings}

    def score(chosen: Sequence[Rating]) -> Score:
        parsed = [(r.value, r.question_id) for r in chosen if not isinstance(r.value, Missing)]
        mean = None
        if parsed:
            values, clusters = zip(*parsed, strict=True)
            mean = interval_of(values, clusters, IntervalSettings(resamples=resamples))
        return Score(mean, account([r.value for r in chosen]))

    turns = sorted({turn for _, turn in asked})
    return ScoreTable(
        overall=score(ratings),
        by_turn={turn: score([r for r in ratings if r.turn == turn]) for turn in turns},
        by_category={
            name: score([r for r in ratings if category[r.question_id] == name])
            for name in dict.fromkeys(category.values())
        },
        unjudged=tuple(key for key in asked if key not in judged),
    )


# ---- votes ---------------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """What a vote is about. The models are in alphabetical order."""

    question_id: int
    turn: int
    model_a: str
    model_b: str


@dataclass(frozen=True, slots=True)
class Vote:
    """A judge's verdict on a comparison, in models: ``first`` is ``model_a``."""

    comparison: Comparison
    judge: str
    verdict: Verdict
    flipped: bool
    """A tie because the judge's two judgments disagreed."""


_WINNERS: dict[str, tuple[Verdict, bool]] = {
    "model_a": ("first", False),
    "model_b": ("second", False),
    "tie": ("tie", False),
    "tie (inconsistent)": ("tie", True),
}


def load_votes(path: Path) -> tuple[Vote, ...]:
    """Votes of a JSON Lines file (``question_id``, ``turn``, ``model_a``, ``model_b``, ``judge``, ``winner``).

    Models are put in alphabetical order, so that votes on (a, b) and on (b, a) are about the same comparison.

    Raises:
        DataError: names file and line of what is wrong.

    """
    votes = []
    for origin, record in file_rows(str(path)):
        place = str(origin)
        names = [field_of(record, key, str, place) for key in ("model_a", "model_b", "judge", "winner")]
        model_a, model_b, judge, winner = names
        if winner not in _WINNERS:
            raise DataError(f"winner {winner!r}", where=place, fix=f"use {', '.join(_WINNERS)}")
        if model_a == model_b:
            raise DataError(f"{model_a!r} is compared with itself", where=place)
        verdict, flipped = _WINNERS[winner]
        if model_a > model_b:
            model_a, model_b, verdict = model_b, model_a, mirrored(verdict)
        question_id, turn = field_of(record, "question_id", int, place), field_of(record, "turn", int, place)
        votes.append(Vote(Comparison(question_id, turn, model_a, model_b), judge, verdict, flipped))
    return tuple(votes)


class VoteAgreement(NamedTuple):
    """How often two votes on the same comparison are equal."""

    equal: int
    pairs: int
    share: Interval | None
    """``equal / pairs``, its interval over questions; None without pairs."""


def judge_agreement(
    judge: Sequence[Vote], people: Sequence[Vote], turn: int, *, ties: bool, resamples: int = 10_000
) -> VoteAgreement:
    """A judge's vote against every single human vote on the same comparison (not against their majority).

    ``ties=True`` is setup S1 of the paper: all votes, a tie equal to a tie however it came about. ``ties=False`` is S2: pairs in
    which either side is a tie are left out.

    Raises:
        ValueError: the judge has two votes on one comparison.

    """
    by_comparison: dict[Comparison, Vote] = {}
    for vote in judge:
        if vote.comparison in by_comparison:
            raise ValueError(f"the judge has two votes on {vote.comparison}")
        by_comparison[vote.comparison] = vote
    pairs = [
        (by_comparison[vote.comparison], vote)
        for vote in people
        if vote.comparison.turn == turn and vote.comparison in by_comparison
    ]
    return _agreement(pairs, ties, resamples)


def mutual_agreement(people: Sequence[Vote], turn: int, *, ties: bool, resamples: int = 10_000) -> VoteAgreement:
    """Every pair of votes on the same comparison among people; ``ties`` as in ``judge_agreement``."""
    pairs = []
    for votes in votes_by_comparison(people).values():
        pairs += [
            (vote, other) for i, vote in enumerate(votes) for other in votes[i + 1 :] if vote.comparison.turn == turn
        ]
    return _agreement(pairs, ties, resamples)


def votes_by_comparison(votes: Sequence[Vote]) -> dict[Comparison, list[Vote]]:
    """The votes on every comparison, both in order of appearance."""
    found: dict[Comparison, list[Vote]] = {}
    for vote in votes:
        found.setdefault(vote.comparison, []).append(vote)
    return found


def experts(votes: Sequence[Vote]) -> list[Vote]:
    """Votes of judges called ``expert...``: those the published agreement counts as human (the authors' own are left out)."""
    return [vote for vote in votes if vote.judge.startswith("expert")]


def flips(votes: Sequence[Vote]) -> Counter[bool]:
    """How many votes are ties because the two orders disagreed (True), and how many are not."""
    return Counter(vote.flipped for vote in votes)


def _agreement(pairs: Sequence[tuple[Vote, Vote]], ties: bool, resamples: int) -> VoteAgreement:
    kept = [(a, b) for a, b in pairs if ties or "tie" not in (a.verdict, b.verdict)]
    if not kept:
        return VoteAgreement(0, 0, None)
    equal = [a.verdict == b.verdict for a, b in kept]
    questions = [a.comparison.question_id for a, _ in kept]
    share = interval_of(equal, questions, IntervalSettings(resamples=resamples))
    return VoteAgreement(sum(equal), len(kept), share)
