"""MT-Bench: two-turn questions in eight categories, their scores, and how far a judge's votes agree with people's.

Procedure: Zheng et al. 2023, arXiv:2306.05685, and FastChat's ``fastchat/llm_judge`` (``common.py``, ``show_result.py``,
``compute_agreement.py``), whose numbers are reproduced. The question file comes from a path; nothing of it is shipped here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.errors import DataError
from posttrain.judge.items import base_category, needs_reference
from posttrain.judge.verdicts import Accounting, Missing, Verdict, account, mirrored
from posttrain.stats.intervals import Interval, mean_by_group

_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
}
MAX_NEW_TOKENS = 1024
"""Limit of an answer in each turn."""


def answer_temperature(category: str) -> float:
    """The temperature at which a model answers; 0.7 for categories MT-Bench does not know."""
    return _TEMPERATURES.get(base_category(category), 0.7)


# ---- questions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one or more user turns."""

    id: int
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()
    """A reference answer for each turn, or none."""


def load_questions(path: Path, references: Path | None = None) -> tuple[Question, ...]:
    """The questions of a JSON Lines file in MT-Bench's form (``question_id``, ``category``, ``turns``, ``reference``).

    ``references`` is a file of a model's answers (``question_id``, ``choices[0].turns``), as FastChat's
    ``reference_answer/gpt-4.jsonl``: it takes the place of the references in the question file and must hold every question of a category
    that needs one. Without it a question keeps its own, if it has any.

    Raises:
        DataError: names file and line of what is wrong.

    """
    given: dict[int, tuple[str, ...]] = {}
    if references is not None:
        for place, record in _records(references):
            question_id, choices = _field(record, "question_id", int, place), _field(record, "choices", list, place)
            turns = choices[0].get("turns") if choices and isinstance(choices[0], dict) else None
            given[question_id] = _texts(turns, "choices[0].turns", place)
    questions: dict[int, Question] = {}
    for place, record in _records(path):
        question_id, category = _field(record, "question_id", int, place), _field(record, "category", str, place)
        turns = _texts(record.get("turns"), "turns", place)
        if question_id in questions:
            raise DataError(f"question {question_id} comes a second time", where=place)
        own = () if record.get("reference") is None else _texts(record["reference"], "reference", place)
        answers = own if references is None else given.get(question_id, ())
        if references is not None and needs_reference(category) and not answers:
            raise DataError(f"question {question_id} ({category}) needs a reference answer", where=str(references))
        if answers and len(answers) != len(turns):
            raise DataError(
                f"question {question_id} has {len(turns)} turns, but {len(answers)} reference answers", where=place
            )
        questions[question_id] = Question(question_id, category, turns, answers)
    if not questions:
        raise DataError("there are no questions in this file", where=str(path))
    return tuple(questions.values())


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
            mean = mean_by_group(values, ["all"] * len(values), clusters_R=clusters, resamples=resamples)["all"]
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
    """A tie because the judge's two games disagreed."""


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
    for place, record in _records(path):
        names = [_field(record, key, str, place) for key in ("model_a", "model_b", "judge", "winner")]
        model_a, model_b, judge, winner = names
        if winner not in _WINNERS:
            raise DataError(f"winner {winner!r}", where=place, fix=f"use {', '.join(_WINNERS)}")
        if model_a == model_b:
            raise DataError(f"{model_a!r} is compared with itself", where=place)
        verdict, flipped = _WINNERS[winner]
        if model_a > model_b:
            model_a, model_b, verdict = model_b, model_a, mirrored(verdict)
        question_id, turn = _field(record, "question_id", int, place), _field(record, "turn", int, place)
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
    share = mean_by_group(equal, ["all"] * len(equal), clusters_R=questions, resamples=resamples)["all"]
    return VoteAgreement(sum(equal), len(kept), share)


# ---- files ---------------------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read this file: {error}", where=str(path)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"this line is no JSON: {error}", where=place) from error
        if not isinstance(record, dict):
            raise DataError(f"an object is needed, not {line[:40]}", where=place)
        yield place, record


def _field(record: Mapping[str, Any], key: str, kind: type, place: str) -> Any:
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{key} must be {_KINDS[kind]}, not {value!r}", where=place)
    return value


_KINDS = {int: "a whole number", str: "a text", list: "a list"}


def _texts(value: Any, key: str, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise DataError(f"{key} must be a list of texts", where=place)
    return tuple(value)
