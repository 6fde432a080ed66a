"""Preferences: several replies to a prompt, from one model or many, scored, and the pairs that the scores are sure of.

A score is one thing, a pair another: all n scores are kept, a reply that nobody could score is missing and not bad, and pairs whose scores are equal
or nearer than the margin are dropped and counted (UltraFeedback, arXiv:2310.01377; Tulu 3, arXiv:2411.15124, let ties stand).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, pstdev
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import Discriminator

from posttrain.config import Problem
from posttrain.data.config import Source
from posttrain.generate.engine import Completion, Sampling
from posttrain.generate.source import ModelSource
from posttrain.synth.base import Ask, Cost, Dropped, Made, Pipeline, Rate, RewardModel, Situation, Thread, ask
from posttrain.synth.prompts import Prompts
from posttrain.tasks import AnyBenchmark
from posttrain.tasks.base import ScoresReplies, Task
from posttrain.tasks.checks import Check
from posttrain.tasks.prompts import settled_check
from posttrain.tasks.worth import nearness, share_of_checks, task_value
from posttrain.types import Message, Origin, PromptRow, Row

Aspect = Literal["instruction_following", "honesty", "truthfulness", "helpfulness"]
ASPECTS: tuple[Aspect, ...] = ("instruction_following", "honesty", "truthfulness", "helpfulness")
_RATING = re.compile(
    r"^\W*(?:answer\s*|\u56de\u7b54\s*)?(\d+)\W*[:\uff1a]\W*(N/A|[1-5](?:\.\d+)?)(?!\d|\.\d)",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class ScoredByJudge:
    """A judge rates all replies to a prompt together, once for each aspect, in an order of its own (UltraFeedback)."""

    by: Literal["judge"]
    judge: ModelSource
    """Who judges."""
    aspects: Annotated[tuple[Aspect, ...], MinLen(1)] = ASPECTS
    """What is rated, from 1 to 5; a reply's score is the mean of those that were rated."""

    least_margin: ClassVar[float] = 1.0


@dataclass(frozen=True, kw_only=True)
class ScoredByReward(RewardModel):
    """A trained reward model scores every reply."""

    by: Literal["reward"]

    least_margin: ClassVar[float] = 0.0


@dataclass(frozen=True, kw_only=True)
class ScoredByTask:
    """A benchmark's own check of one reply: a number that is right, instructions that are followed. Its prompts are the prompts."""

    by: Literal["task"]
    task: AnyBenchmark
    """A benchmark that scores one reply by itself (gsm8k, ifeval, ...), on rows that are not for evaluation."""
    measure: str | None = None
    """Which of its measures; null = the first."""

    least_margin: ClassVar[float] = 0.0


@dataclass(frozen=True, kw_only=True)
class ScoredByChecks:
    """Share of mechanical checks that a reply passes; the same for all prompts."""

    by: Literal["checks"]
    checks: Annotated[tuple[Check, ...], MinLen(1)]
    """As of the prompts of an evaluation: ``{kind: max_words, expected: 40}``."""

    least_margin: ClassVar[float] = 0.0

    @cached_property
    def settled(self) -> tuple[Check, ...]:
        """The checks with what they expect in the form that they take. Raises ConfigError where they can't."""
        return tuple(settled_check(check, "pipeline.score.checks") for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class ScoredByLength:
    """How near a reply is to a length: minus the distance in words."""

    by: Literal["length"]
    words: Annotated[int, Ge(0)] = 0
    """The length wanted; 0 = the shorter the better. A CJK character is a word."""

    least_margin: ClassVar[float] = 1.0


AnyScore = Annotated[
    ScoredByJudge | ScoredByReward | ScoredByTask | ScoredByChecks | ScoredByLength, Discriminator("by")
]


@dataclass(frozen=True, kw_only=True)
class Preferences(Pipeline):
    """Preferences among replies that models write themselves: pairs, judged replies, or all candidates with their scores."""

    name: Literal["preferences"]
    score: AnyScore
    """What a reply is worth."""
    data: Source | None = None
    """Rows whose prompts are answered; null where a task has prompts."""
    suffix: str = ""
    """Stands behind every prompt, on a line of its own: the demand that a check looks for."""
    models: tuple[ModelSource, ...] = ()
    """Who answers; empty = the stage's writer."""
    samples: Annotated[int, Ge(1)] = 4
    """Replies of each model to a prompt."""
    principles: bool = False
    """Whether every reply is written under a principle drawn for it (be helpful, truthful, ...), which rows do not keep."""
    temperature: Annotated[float, Ge(0)] = 0.8
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    max_tokens: Annotated[int, Ge(1)] = 512
    """Longest reply."""
    keep_cut: bool = False
    """Whether replies that were cut at ``max_tokens`` take part; otherwise they are dropped."""
    rows: Literal["pairs", "feedback", "candidates"] = "pairs"
    """``pairs`` for DPO and its kin, ``feedback`` for KTO, ``candidates``: every reply with its score, for ``data select``."""
    rejected: Literal["worst", "mean_minus_two_deviations", "random"] = "worst"
    """Which reply is rejected: the worst, the one nearest to the mean less two standard deviations (better for many samples), or any worse one."""
    min_margin: Annotated[float, Ge(0)] | None = None
    """Pairs must differ by at least so much, and by more than nothing; null = 1 for judges and lengths, 0 for others."""

    @property
    def roles(self) -> Mapping[str, ModelSource | None]:
        """Those who answer, by number, and the judge."""
        answering: dict[str, ModelSource | None] = {f"writer_{place}": one for place, one in enumerate(self.models, 1)}
        judging = {"judge": self.score.judge} if isinstance(self.score, ScoredByJudge) else {}
        return (answering or {"writer": None}) | judging

    @property
    def reward_model(self) -> RewardModel | None:
        """The one that scores."""
        return self.score if isinstance(self.score, ScoredByReward) else None

    def problems(self, writer: ModelSource) -> Iterable[Problem]:
        """No prompts, or too few replies to compare."""
        of_task = isinstance(self.score, ScoredByTask)
        if of_task == (self.data is not None):
            text = (
                "the task has prompts of its own: leave the rows (data) away"
                if of_task
                else "whose prompts are answered? give rows (data: {path: ...})"
            )
            yield Problem(("pipeline", "data"), text)
        if isinstance(self.score, ScoredByTask) and not isinstance(self.score.task, ScoresReplies):
            yield Problem(("pipeline", "score", "task"), f"{self.score.task.name} can't score one reply by itself")
        if self.rows != "candidates" and self.samples * max(1, len(self.models)) < 2:
            yield Problem(("pipeline", "samples"), "two replies to a prompt are needed, to compare them")

    def seeds(self, language: str) -> Sequence[tuple[str, str]]:
        """Nothing; the task's prompts and the checks are read, so that what is wrong with them is told at once."""
        _ = self.score.settled if isinstance(self.score, ScoredByChecks) else self._tasks
        return ()

    @cached_property
    def _tasks(self) -> Mapping[str, Task]:
        """The tasks by id; none where prompts come from rows."""
        score = self.score
        return {task.id: task for task in score.task.tasks()} if isinstance(score, ScoredByTask) else {}

    @property
    def rows_a_thread(self) -> float:
        """A pair, two judged replies, or all candidates."""
        replies = self.samples * max(1, len(self.models))
        return float({"pairs": 1, "feedback": 2, "candidates": replies}[self.rows])

    def threads(self, situation: Situation) -> list[Thread]:
        """The next prompts, in their order."""
        places = slice(situation.begun, situation.begun + situation.size)
        if self._tasks:
            tasks = list(self._tasks.values())[places]
            rows: Sequence[Row] = [
                PromptRow(
                    ((Message("system", task.system),) if task.system else ()) + (Message("user", task.turns[0]),),
                    Origin(self.name, place),
                    self.name,
                    meta={"task": task.id},
                )
                for place, task in enumerate(tasks, situation.begun + 1)
                if len(task.turns) == 1
            ]
        else:
            rows = situation.rows[places]
        return [self._compare(situation, row, situation.random.random()) for row in rows]

    def costs(self, prompts: Prompts, language: str) -> Sequence[Cost]:
        """All replies to a prompt, and what a judge is asked of them."""
        writers = [role for role in self.roles if role != "judge"]
        replies, rows = self.samples * len(writers), self.rows_a_thread
        found = [Cost(role, "replies", self.samples / rows, self.suffix, self.max_tokens, 60) for role in writers]
        if isinstance(self.score, ScoredByJudge):
            text, aspects = prompts.texts["preferences.aspect"], len(self.score.aspects)
            said = 60 + replies * self.max_tokens
            found.append(Cost("judge", "ratings", aspects / rows, text, 16 * replies + 64, said))
        return found

    def _compare(self, situation: Situation, row: Row, chance: float) -> Thread:
        import random

        drawing = random.Random(chance)
        prompt = self._prompt(row)
        answers = yield self._asks(situation, prompt, drawing)
        results: list[Made | Dropped | Thread] = []
        replies: list[str] = []
        by: list[str] = []
        names = [role for role in self.roles if role != "judge"]
        for place, answer in enumerate(answers):
            if isinstance(answer, Dropped):
                results.append(answer)
                continue
            text, fault = answer.text.strip(), self._fault(answer)
            if fault is not None:
                results.append(fault)
            elif text in replies:
                results.append(Dropped("same_reply", "another sample says the same", text))
            else:
                replies.append(text)
                by.append(names[place // self.samples])
        values: list[float | None] = []
        if replies:
            values = yield from self._values(situation, row, prompt, replies, drawing)
        scored = [
            (reply, value, who) for reply, value, who in zip(replies, values, by, strict=True) if value is not None
        ]
        results += [
            Dropped("not_scored", "", reply) for reply, value in zip(replies, values, strict=True) if value is None
        ]
        return results + self._rows(row, prompt, scored, drawing)

    def _prompt(self, row: Row) -> tuple[Message, ...]:
        """What of a row is answered, with the suffix."""
        turns = asked_of(row)
        if not self.suffix:
            return turns
        return (*turns[:-1], Message("user", f"{turns[-1].content.rstrip()}\n{self.suffix}"))

    def _asks(self, situation: Situation, prompt: tuple[Message, ...], drawing: Any) -> tuple[Ask, ...]:
        sampling = Sampling(self.temperature, self.top_p, self.max_tokens)
        principles = situation.prompts.words["preferences.principles"]
        asks = []
        for role in (role for role in self.roles if role != "judge"):
            for sample in range(self.samples):
                system = drawing.choice(principles) if self.principles and prompt[0].role != "system" else ""
                asks.append(
                    ask(
                        prompt[-1].content,
                        sampling,
                        system=system,
                        role=role,
                        before=prompt[:-1],
                        sample=sample,
                        optional=True,
                    )
                )
        return tuple(asks)

    def _fault(self, answer: Completion) -> Dropped | None:
        if not answer.text.strip():
            return Dropped("empty", "the answer is empty", answer.text)
        if answer.finish == "stop" or (answer.finish == "length" and self.keep_cut):
            return None
        reason = "cut" if answer.finish == "length" else "not_finished"
        return Dropped(reason, f"the answer ended by {answer.finish}", answer.text)

    def _values(
        self, situation: Situation, row: Row, prompt: tuple[Message, ...], replies: Sequence[str], drawing: Any
    ) -> Any:
        """What each reply is worth; None where nobody could say."""
        score = self.score
        if isinstance(score, ScoredByJudge):
            return (yield from self._judged(score, situation, prompt, replies, drawing))
        if isinstance(score, ScoredByReward):
            return (yield Rate(prompt, tuple(replies), row.id))
        if isinstance(score, ScoredByChecks):
            return [share_of_checks(score.settled, reply) for reply in replies]
        if isinstance(score, ScoredByLength):
            return [nearness(score.words, reply) for reply in replies]
        task = self._tasks[str(row.meta["task"])]
        assert isinstance(score.task, ScoresReplies), "checked with the recipe"
        return [task_value(score.task, score.measure, task, reply) for reply in replies]

    def _judged(
        self,
        score: ScoredByJudge,
        situation: Situation,
        prompt: tuple[Message, ...],
        replies: Sequence[str],
        drawing: Any,
    ) -> Any:
        """Mean ratings over aspects; each aspect is asked once of all replies, in an order of its own."""
        prompts, orders, asks = situation.prompts, [], []
        question = "\n\n".join(turn.content for turn in prompt if turn.role == "user")
        for aspect in score.aspects:
            order = list(range(len(replies)))
            drawing.shuffle(order)
            orders.append(order)
            listed = [
                prompts.fill("preferences.answer", number=str(number), reply=replies[place])
                for number, place in enumerate(order, 1)
            ]
            text = prompts.fill(
                "preferences.aspect",
                count=str(len(replies)),
                aspect=aspect.replace("_", " "),
                meaning=prompts.texts[f"preferences.{aspect}"],
                instruction=question,
                answers="\n\n".join(listed),
            )
            asks.append(
                ask(
                    text,
                    Sampling(max_tokens=16 * len(replies) + 64),
                    role="judge",
                    prompt="preferences.aspect",
                    optional=True,
                )
            )
        answers = yield tuple(asks)
        ratings: list[list[float]] = [[] for _ in replies]
        for order, answer in zip(orders, answers, strict=True):
            if isinstance(answer, Dropped):
                continue  # what a judge did not say is missing
            for number, rating in read_ratings(answer.text, len(replies)).items():
                ratings[order[number - 1]].append(rating)
        return [fmean(found) if found else None for found in ratings]

    def _rows(
        self, row: Row, prompt: tuple[Message, ...], scored: Sequence[tuple[str, float, str]], drawing: Any
    ) -> list[Made | Dropped | Thread]:
        """The rows that the scores of one prompt's replies give."""
        all_scores = [value for _, value, _ in scored]
        facts = {"all_scores": all_scores, "prompt_row": row.id, "scored_by": self.score.by}
        if self.rows == "candidates":
            return [
                Made(prompt, _said(reply), parents=(row.id,), scores={"score": value}, meta={**facts, "by": who})
                for reply, value, who in scored
            ]
        if len(scored) < 2:
            return [Dropped("one_reply", "fewer than two replies can be compared", _text(prompt, scored))]
        best = max(scored, key=lambda one: one[1])
        worse = [one for one in scored if one[1] < best[1]]
        if not worse:
            return [Dropped("tie", f"all {len(scored)} replies score {best[1]:g}", _text(prompt, scored))]
        other = self._other(worse, all_scores, drawing)
        margin = self.score.least_margin if self.min_margin is None else self.min_margin
        found = best[1] - other[1]
        if found < margin:
            return [Dropped("small_margin", f"{found:g}, at least {margin:g} is wanted", _text(prompt, scored))]
        verdict = {"check": "margin", "value": found, "limit": f">= {margin:g}", "passed": True}
        scores = {"chosen": best[1], "rejected": other[1]}
        if self.rows == "pairs":
            return [
                Made(
                    prompt,
                    _said(best[0]),
                    _said(other[0]),
                    parents=(row.id,),
                    verdicts=(verdict,),
                    scores=scores,
                    meta={**facts, "chosen_by": best[2], "rejected_by": other[2]},
                )
            ]
        return [
            Made(
                prompt,
                _said(reply),
                desirable=good,
                parents=(row.id,),
                verdicts=(verdict,),
                scores={"score": value},
                meta={**facts, "by": who},
            )
            for good, (reply, value, who) in ((True, best), (False, other))
        ]

    def _other(self, worse: Sequence[tuple[str, float, str]], scores: Sequence[float], drawing: Any) -> Any:
        if self.rejected == "random":
            return drawing.choice(list(worse))
        if self.rejected == "worst":
            return min(worse, key=lambda one: one[1])
        aim = fmean(scores) - 2 * pstdev(scores)
        return min(worse, key=lambda one: abs(one[1] - aim))


def read_ratings(text: str, count: int) -> dict[int, float]:
    r"""Ratings by number of the answer; N/A and what can't be read are missing, never a bad rating.

    >>> read_ratings("1: 4\n2: N/A\n3: 5", 3)
    {1: 4.0, 3: 5.0}
    """
    found: dict[int, float] = {}
    for number, rating in _RATING.findall(text):
        if (
            1 <= int(number) <= count
            and int(number) not in found
            and rating.upper() != "N/A"
            and 1 <= float(rating) <= 5
        ):
            found[int(number)] = float(rating)
    return found


def asked_of(row: Row) -> tuple[Message, ...]:
    """The turns of any row up to its last user turn."""
    turns = row.messages
    last = max((place for place, turn in enumerate(turns) if turn.role == "user"), default=-1)
    prompt = getattr(row, "prompt", None)
    return tuple(prompt) if prompt is not None else turns[: last + 1]


def _said(reply: str) -> tuple[Message, ...]:
    return (Message("assistant", reply),)


def _text(prompt: Sequence[Message], scored: Sequence[tuple[str, float, str]]) -> str:
    return "\n".join([prompt[-1].content, *(f"[{value:g}] {reply}" for reply, value, _ in scored)])
