"""MT-Bench: two-turn questions of eight categories, rated from 1 to 10 by a judge, or compared with the first model's answers.

Zheng et al. 2023, arXiv:2306.05685; procedure of FastChat's ``llm_judge`` (``posttrain.tasks.mt_bench_data``): temperature by category, 1,024
tokens a turn, every turn judged in the light of those before it, reference answers for maths, reasoning and coding. The mean is
over ratings, as published. The judge's prompts are posttrain's own, in English and Chinese; Chinese question sets (``zh_`` before the
categories) work the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, ClassVar, Literal, NamedTuple

from annotated_types import Ge

from posttrain.generate.engine import Sampling
from posttrain.judge.bias import main_judgments
from posttrain.judge.config import Plan
from posttrain.judge.items import Item, needs_reference
from posttrain.judge.judge import Judgment, by_question
from posttrain.judge.pool import Judges
from posttrain.judge.prompts import load_prompt
from posttrain.judge.summary import panel_ratings
from posttrain.judge.verdicts import Missing
from posttrain.references import NamesFile
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.base import Answer, Findings, Needs, Task, Value, means
from posttrain.tasks.matches import (
    OWN_PROMPT,
    WIN_RATE,
    Match,
    judge_pairings,
    judge_words,
    match_findings,
    match_notes,
    missing_notes,
    pairings,
)
from posttrain.tasks.mt_bench_data import MAX_NEW_TOKENS, answer_temperature, load_questions
from posttrain.tasks.records import Area, Measure, Remark
from posttrain.tasks.rows import keep_shares

_SCALE = (1.0, 10.0)
_RATINGS = (
    Measure(
        "rating", "Mean rating", "rating", "higher", "The judge's rating of every turn, mean over turns.", True, _SCALE
    ),
    Measure("rating_turn_1", "Rating, turn 1", "rating", "higher", "Ratings of the first answers.", scale=_SCALE),
    Measure("rating_turn_2", "Rating, turn 2", "rating", "higher", "Ratings of the second answers.", scale=_SCALE),
)
_PAIRS = Measure(
    WIN_RATE,
    "Win rate against the first model",
    about="Wins plus half of the ties; a win is what the judge says in both orders, anything else is a tie.",
    headline=True,
)


@dataclass(frozen=True, kw_only=True)
class MtBenchBenchmark:
    """MT-Bench: multi-turn questions, rated by a judge or compared with the first model's answers.

    The judge sees whatever text there is, also where it was cut at ``max_tokens``. An answer without all its turns is not judged.
    """

    title: ClassVar[str] = "MT-Bench"
    area: ClassVar[Area] = "helpfulness"

    name: Literal["mt_bench"]
    path: Annotated[str, NamesFile()]
    """Questions: FastChat's question.jsonl, or a file of its form (``question_id``, ``category``, ``turns``, ``reference``)."""
    references: Annotated[str, NamesFile()] | None = None
    """Reference answers: FastChat's reference_answer/gpt-4.jsonl; null = those in the question file, where it has any."""
    judged: Literal["single", "pairs", "both"] = "single"
    """``single`` rates every answer from 1 to 10, ``pairs`` compares each model with the first one, ``both`` does both."""
    max_prompts: Annotated[int, Ge(1)] | None = None
    """Ask only so many questions: the first of every category, which keeps its share; null = all."""
    max_tokens: Annotated[int, Ge(1)] = MAX_NEW_TOKENS
    """Longest answer in each turn, in tokens."""

    @property
    def needs(self) -> Needs:
        """A judge that rates, unless pairs only are judged; two models where nothing else is."""
        return Needs(judge=True, ratings=self.judged != "pairs", two_models=self.judged == "pairs")

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Ratings, the win rate, or both."""
        return {"single": _RATINGS, "pairs": (_PAIRS,), "both": (*_RATINGS, _PAIRS)}[self.judged]

    def tasks(self) -> tuple[Task, ...]:
        """One task a question. Raises DataError as `posttrain.tasks.mt_bench_data.load_questions`."""
        questions = load_questions(Path(self.path), None if self.references is None else Path(self.references))
        return tuple(
            Task(
                id=str(question.id),
                turns=question.turns,
                sampling=Sampling(temperature=answer_temperature(question.category), max_tokens=self.max_tokens),
                category=question.category,
                language="zh" if question.category.startswith("zh_") else "en",
                expected=question.references,
            )
            for question in keep_shares(questions, [question.category for question in questions], self.max_prompts)
        )

    def judge(self, answers: Mapping[str, Sequence[Answer]], judges: Judges, settings: IntervalSettings) -> Findings:
        """Rate, compare, or both."""
        baseline, *others = answers
        notes = [OWN_PROMPT.format(title=self.title), *_reference_notes(answers[baseline], judges.plan)]
        rated: list[_Rated] = []
        matches: list[Match] = []
        if self.judged != "pairs":
            rated = _rate(answers, judges)
            notes += missing_notes([value for one in rated for value in one.turns.values()], "ratings are missing")
        if self.judged != "single":
            pairs = pairings(answers, [(model, baseline) for model in others], lambda task: tuple(task.expected))
            matches = judge_pairings(pairs, judges, load_prompt("pair", "pair", judges.language), judges.plan)
            notes += match_notes(matches, len(others))
        found = match_findings(
            answers,
            matches,
            settings,
            baseline=baseline,
            values=[value for one in rated for value in one.values()],
            reasons={(one.model, one.task.id): one.reason for one in rated},
            notes=notes,
        )
        remarks, numbers = dict(found.remarks), dict(found.reply_values)
        for one in rated:
            key = one.model, one.task.id, 0
            remarks[key] = one.remark(found.remarks.get(key))
            numbers[key] = means(one.values()) | dict(found.reply_values.get(key, {}))
        return replace(found, remarks=remarks, reply_values=numbers)


# ---- ratings -------------------------------------------------------------------------------------------------------


class _Rated(NamedTuple):
    """One answer's ratings."""

    model: str
    task: Task
    turns: Mapping[int, float | Missing]
    """By turn from 1: the mean of a judge's samples and of a panel's judges."""
    words: str

    def values(self) -> list[Value]:
        """One of every turn for all turns together and one for the turn itself (the first two have a measure of their own)."""
        found = []
        for turn, rating in self.turns.items():
            if not isinstance(rating, Missing):
                keys = ["rating"] + ([f"rating_turn_{turn}"] if turn <= 2 else [])
                found += [Value(self.model, self.task.id, key, rating, self.task.category) for key in keys]
        return found

    @property
    def reason(self) -> str:
        """Why there is no rating at all, where there is none."""
        return next((f"judge: {one.reason}" for one in self.turns.values() if isinstance(one, Missing)), "not judged")

    def remark(self, won: Remark | None) -> Remark:
        """What stands beside the reply, together with what was said of it in pairs."""
        ratings = ["none" if isinstance(rating, Missing) else f"{rating:.3g}" for rating in self.turns.values()]
        label = f"{', '.join(ratings)} of {_SCALE[1]:g}"
        if won is None:
            return Remark(label, None, self.words)
        return Remark(f"{label}; {won.label}", won.good, f"{self.words}\n\n{won.detail}")


def _rate(answers: Mapping[str, Sequence[Answer]], judges: Judges) -> list[_Rated]:
    """Ratings of every complete answer of every model, in one batch."""
    complete = [(model, answer) for model, found in answers.items() for answer in found if answer.complete]
    if not complete:
        return []
    items = [
        Item(
            id=answer.task.id,
            turns=answer.task.turns,
            replies_a=answer.replies,
            category=answer.task.category,
            model_a=model,
            model_b="",
            references=tuple(answer.task.expected),
        )
        for model, answer in complete
    ]
    judged = judges.ask(items, load_prompt("single", "single", judges.language), judges.plan)
    of_all = panel_ratings([one.judgments for one in judged])
    turns: list[dict[int, float | Missing]] = [{} for _ in items]
    for (place, turn), judgments in by_question(main_judgments(of_all)).items():
        turns[place][turn] = _mean_rating(judgments)
    words: list[list[str]] = [[] for _ in items]
    for one in judged:
        for judgment in main_judgments(one.judgments):
            words[judgment.ask.item].append(f"Turn {judgment.ask.turn}: {judge_words(judgment)}")
    return [
        _Rated(model, answer.task, found, "\n\n".join(said))
        for (model, answer), found, said in zip(complete, turns, words, strict=True)
    ]


def _mean_rating(judgments: Sequence[Judgment]) -> float | Missing:
    ratings = [float(judgment.value) for judgment in judgments if isinstance(judgment.value, float | int)]
    if ratings:
        return fmean(ratings)
    return next(judgment.value for judgment in judgments if isinstance(judgment.value, Missing))


def _reference_notes(answers: Sequence[Answer], plan: Plan) -> list[str]:
    needing = [answer.task for answer in answers if needs_reference(answer.task.category or "")]
    notes = []
    if plan.reference == "never" and needing:
        notes.append("The judge sees no reference answers, also for maths, reasoning and coding: the plan says so.")
    elif without := [task for task in needing if not any(task.expected)]:
        names = ", ".join(dict.fromkeys(task.category or "" for task in without))
        notes.append(
            f"There is no reference answer for {len(without)} of {len(needing)} questions of maths, reasoning and coding ({names}): "
            "the judge is on its own there."
        )
    if plan.turns == "last":
        notes.append("Only the last turn is judged (the plan says so): means are over those.")
    return notes
