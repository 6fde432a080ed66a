"""What the replies of a policy are worth: one score, or several weighed and added up.

A reply that can't be scored (its score raises, is None or not finite) is missing and not bad: it is left out of the step and counted.
A new kind of score is a configuration with ``name`` and ``open`` and a place in the union below.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Lt, MinLen, MultipleOf
from pydantic import Discriminator

from posttrain.errors import ConfigError
from posttrain.generate.cache import RequestCache
from posttrain.judge import verdicts
from posttrain.judge.bias import main_judgments
from posttrain.judge.config import JudgeConfig, JudgeSource
from posttrain.judge.items import Item
from posttrain.judge.judge import outcomes, panel_outcomes
from posttrain.judge.pool import Judged, JudgePool
from posttrain.judge.prompts import load_prompt
from posttrain.judge.reward import open_reward_judge
from posttrain.parallel.peers import ALONE, Peers
from posttrain.references import NamesFile
from posttrain.synth.base import RewardModel
from posttrain.table import grouped
from posttrain.tasks import AnyBenchmark
from posttrain.tasks.base import ScoresReplies, Task
from posttrain.tasks.checks import Check
from posttrain.tasks.prompts import settled_check
from posttrain.tasks.worth import nearness, share_of_checks, task_value
from posttrain.types import Display, Message, Origin, SftRow

if TYPE_CHECKING:
    from posttrain.model.lineage import Lineage
    from posttrain.model.second_adapter import InMemory


class Written(NamedTuple):
    """A reply as its scores see it."""

    prompt: tuple[Message, ...]
    reply: str
    """Without its think block and its stop."""
    meta: Mapping[str, Any] = {}
    """What the row of the prompt says besides."""
    task: Task | None = None
    """Where the prompts are those of a benchmark."""
    group: str = ""
    """Replies of one group answer one prompt: a judge of pairs compares them."""


class Missing(NamedTuple):
    """No score, and why."""

    reason: str


CUT = Missing("cut at the limit of tokens")


class Compared(NamedTuple):
    """What a reply is worth among the others to its prompt, and what became of its comparisons."""

    worth: float | Missing
    shares: Mapping[str, float]
    """``ties`` of those with a verdict, ``unread``: those without one."""


Value = float | Missing | Compared
Values = Callable[[Sequence[Written]], Sequence[Value]]
"""What each of some replies is worth."""


class Opening(NamedTuple):
    """What a score that asks a model needs to be opened."""

    stack: ExitStack
    """Closes what was opened."""
    requests: Path
    """The run's cache of answers: a reply that was judged before the run was killed is not judged again."""
    calls: Path
    """One line for every call to a server."""
    display: Display
    policy: InMemory
    """The model that learns; a reward model of the same base computes on it."""
    second_models: list[str]
    """Why each whole model besides was loaded, told by the scores that did."""


@dataclass(frozen=True, kw_only=True)
class _Score:
    """What all scores have in common."""

    weight: float = 1.0
    """What it counts in the sum; 0 = it is only logged, and a reply that it can't score is not missing."""

    compares: ClassVar[bool] = False
    """Whether a reply is worth something beside others to its prompt only."""

    def check(self) -> None:
        """Find out before anything runs what can't work, without loading a model. Raises a PosttrainError."""

    def open(self, opening: Opening | None) -> Values:
        """Make it ready to score. Raises a PosttrainError where it can't be."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ChecksScore(_Score):
    """Share of mechanical checks that a reply passes; the same for all prompts."""

    name: Literal["checks"]
    checks: Annotated[tuple[Check, ...], MinLen(1)]
    """As of the prompts of an evaluation: ``{kind: max_words, expected: 40}``."""

    @cached_property
    def settled(self) -> tuple[Check, ...]:
        """The checks with what they expect in the form that they take. Raises ConfigError where they can't."""
        return tuple(settled_check(check, "scores.checks") for check in self.checks)

    def check(self) -> None:
        """The checks take what they expect."""
        _ = self.settled

    def open(self, opening: Opening | None) -> Values:
        """By the checks."""
        checks = self.settled
        return _each(lambda one: share_of_checks(checks, one.reply))


@dataclass(frozen=True, kw_only=True)
class LengthScore(_Score):
    """How near a reply is to a length: minus the distance in words."""

    name: Literal["length"]
    words: Annotated[int, Ge(0)] = 0
    """The length wanted; 0 = the shorter the better. A CJK character is a word."""

    def open(self, opening: Opening | None) -> Values:
        """By the words."""
        return _each(lambda one: nearness(self.words, one.reply))


@dataclass(frozen=True, kw_only=True)
class TaskScore(_Score):
    """A benchmark's own check of one reply: a number that is right, instructions that are followed. Its prompts are the prompts."""

    name: Literal["task"]
    task: AnyBenchmark
    """A benchmark that scores one reply by itself (gsm8k, ifeval, ...), on rows that are not for evaluation."""
    measure: str | None = None
    """Which of its measures; null = the first."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.2
    """Share of its prompts that are measured on and not learned from."""

    def check(self) -> None:
        """Its prompts can be read."""
        self.task.tasks()

    def open(self, opening: Opening | None) -> Values:
        """By the benchmark."""
        benchmark = self.task
        assert isinstance(benchmark, ScoresReplies), "checked with the recipe"

        def value(one: Written) -> float | None:
            assert one.task is not None, "the prompts are those of the benchmark"
            return task_value(benchmark, self.measure, one.task, one.reply)

        return _each(value)


@dataclass(frozen=True, kw_only=True)
class FunctionScore(_Score):
    """A Python function of a file: ``def score(prompt: str, reply: str, meta: dict) -> float | None``. It runs with your rights."""

    name: Literal["function"]
    path: Annotated[str, NamesFile()]
    """The Python file. It belongs to the identity of the stage: a changed one is another stage."""
    function: str = "score"
    """Its name. ``prompt`` is the last user turn, ``meta`` what the row says besides."""

    @cached_property
    def loaded(self) -> Callable[[str, str, dict[str, Any]], Any]:
        """The function. Raises ConfigError where there is none."""
        try:
            spec = importlib.util.spec_from_file_location(f"posttrain_score_{Path(self.path).stem}", self.path)
            if spec is None or spec.loader is None:
                raise ImportError("this is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            found = getattr(module, self.function, None)
        except Exception as error:  # whatever a foreign file raises
            raise ConfigError(
                f"this file can't be loaded: {type(error).__name__}: {error}", where=self.path, fix="correct the file"
            ) from error
        if not callable(found):
            raise ConfigError(
                f"there is no function {self.function!r} in this file",
                where=self.path,
                fix="name one: def score(prompt, reply, meta)",
            )
        function: Callable[[str, str, dict[str, Any]], Any] = found
        return function

    def check(self) -> None:
        """The function is there."""
        _ = self.loaded

    def open(self, opening: Opening | None) -> Values:
        """By the function."""
        function = self.loaded
        return _each(lambda one: function(one.prompt[-1].content, one.reply, dict(one.meta)))


@dataclass(frozen=True, kw_only=True)
class RewardModelScore(_Score, RewardModel):
    """A trained reward model scores every reply: an adapter and a head on the policy's own base, or a second model in memory (docs/online.md)."""

    name: Literal["reward_model"]

    @property
    def lineage(self) -> Lineage:
        """What the name means, the stage of a recipe being its folder. Raises ModelError."""
        from posttrain.model.targets import resolve_target

        return resolve_target(self.model, self.base)

    def open(self, opening: Opening | None) -> Values:
        """By the model, loaded now."""
        assert opening is not None, "it may share the policy's base"
        judge = open_reward_judge(JudgeSource(reward=self.model, base=self.base), opening.policy)
        if judge.apart:
            opening.second_models.append(judge.apart)
            opening.display.note(f"the reward model is a second model in memory: {judge.apart}")

        def values(replies: Sequence[Written]) -> list[float | Missing]:
            rows = [
                SftRow((*one.prompt, Message("assistant", one.reply)), Origin("reward", 1), "reward") for one in replies
            ]
            found = judge.rewards(rows)
            return [
                Missing(f"{one.reason} {one.detail}".strip()) if isinstance(one, verdicts.Missing) else _finite(one)
                for one in found
            ]

        return values


@dataclass(frozen=True, kw_only=True)
class JudgeScore(_Score):
    """A judge, or a panel, rates every reply by itself from 1 to 10; the mean of its samples and judges."""

    name: Literal["judge"]
    judge: JudgeConfig
    """Who judges, how often, and what may be spent on it (docs/judges.md)."""

    def open(self, opening: Opening | None) -> Values:
        """By what the judges say; answers are kept with the run."""
        ask = _asking(self.judge, "single", opening)

        def values(replies: Sequence[Written]) -> list[float | Missing]:
            items = [Item(str(n), (one.prompt[-1].content,), (one.reply,)) for n, one in enumerate(replies)]
            judgments = [j for judged in ask(items) for j in judged.judgments]
            by_item = grouped((judgment.ask.item, judgment.value) for judgment in judgments)
            return [_mean_rating(by_item[place]) for place in range(len(items))]

        return values


@dataclass(frozen=True, kw_only=True)
class PairwiseScore(_Score):
    """A judge, or a panel, compares the replies to a prompt two at a time, each pair in both orders. A reply is worth its share of wins,
    ties half; a comparison without a verdict does not count.
    """

    name: Literal["pairwise"]
    judge: JudgeConfig
    """Who judges, how often, and what may be spent on it (docs/judges.md); a reward model may be one."""
    opponents: Annotated[int, Ge(2), MultipleOf(2)] = 4
    """How many of the others a reply is compared with: all, where there are no more than these."""

    compares: ClassVar[bool] = True

    def open(self, opening: Opening | None) -> Values:
        """By what the judges say; answers are kept with the run."""
        ask = _asking(self.judge, "pair", opening)

        def values(replies: Sequence[Written]) -> list[Compared]:
            groups = grouped((one.group, place) for place, one in enumerate(replies))
            pairs = [(own[a], own[b]) for own in groups.values() for a, b in pairs_of(len(own), self.opponents)]
            found = _verdicts(ask, replies, pairs)
            return [worth_among(place, pairs, found) for place in range(len(replies))]

        return values


def pairs_of(count: int, opponents: int) -> list[tuple[int, int]]:
    """Which of so many replies are compared: all pairs, or each reply with its ``opponents`` nearest on a ring.

    So all have equally many comparisons, no two halves are without one between them, and the number of pairs grows with the replies, not
    with their square. The replies were drawn alike, each by its own seed: their order on the ring is as good as any that would be drawn.

    >>> pairs_of(3, 4), len(pairs_of(8, 4)), len(pairs_of(8, 8))
    ([(0, 1), (0, 2), (1, 2)], 16, 28)
    """
    if count - 1 <= opponents:
        return list(combinations(range(count), 2))
    return [(place, (place + step) % count) for step in range(1, opponents // 2 + 1) for place in range(count)]


def _verdicts(
    ask: Callable[[Sequence[Item]], list[Judged]], replies: Sequence[Written], pairs: Sequence[tuple[int, int]]
) -> list[verdicts.Verdict | verdicts.Missing]:
    """Who wins each pair. Equal replies are a tie, and equal pairs are asked once."""
    keys = [(replies[a].group, replies[a].reply, replies[b].reply) for a, b in pairs]
    asked = list(dict.fromkeys(key for key in keys if key[1] != key[2]))
    questions = {one.group: one.prompt[-1].content for one in replies}
    items = [Item(f"{n}", (questions[group],), (a,), (b,)) for n, (group, a, b) in enumerate(asked)]
    judged = [main_judgments(one.judgments) for one in ask(items)] if items else []
    why = {j.ask.item: j.value for own in judged for j in reversed(own) if isinstance(j.value, verdicts.Missing)}
    final = panel_outcomes([outcomes(own) for own in judged]) if judged else {}
    found = {
        asked[place]: why[place] if isinstance(verdict, verdicts.Missing) else verdict
        for (place, _), verdict in final.items()
    }
    return [found.get(key, "tie") for key in keys]


def worth_among(
    place: int, pairs: Sequence[tuple[int, int]], found: Sequence[verdicts.Verdict | verdicts.Missing]
) -> Compared:
    """The share of its comparisons that a reply wins, ties half, of those that have a verdict."""
    points, ties, unread = 0.0, 0, []
    own = [
        (verdict, "first" if pair[0] == place else "second")
        for pair, verdict in zip(pairs, found, strict=True)
        if place in pair
    ]
    for verdict, side in own:
        if isinstance(verdict, verdicts.Missing):
            unread.append(verdict)
        else:
            ties += verdict == "tie"
            points += 0.5 if verdict == "tie" else float(verdict == side)
    read = len(own) - len(unread)
    shares = {"unread": len(unread) / len(own)} if own else {}
    if read:
        return Compared(points / read, {"ties": ties / read, **shares})
    why = f"the judge: {unread[0].reason} {unread[0].detail}".strip() if unread else "no other reply to compare with"
    return Compared(Missing(why), shares)


def _asking(
    judge: JudgeConfig, kind: Literal["single", "pair"], opening: Opening | None
) -> Callable[[Sequence[Item]], list[Judged]]:
    """What asks all judges. They are tried on three questions once: a later step of which three fail is no reason to stop."""
    assert opening is not None, "a judge is asked through the run's cache"
    cache = opening.stack.enter_context(RequestCache(opening.requests))
    pool = opening.stack.enter_context(JudgePool(judge, cache, opening.calls, opening.display))
    prompt, tried = load_prompt(kind, kind, judge.language), False

    def ask(items: Sequence[Item]) -> list[Judged]:
        nonlocal tried
        judged = pool.session(tried=tried).ask(items, prompt, judge.plan)
        tried = True
        return judged

    return ask


def _mean_rating(values: Sequence[Any]) -> float | Missing:
    ratings = [float(value) for value in values if isinstance(value, float)]
    if ratings:
        return fmean(ratings)
    first = values[0]
    return Missing(f"the judge: {first.reason} {first.detail}".strip())


AnyScore = Annotated[
    ChecksScore | LengthScore | TaskScore | FunctionScore | RewardModelScore | JudgeScore | PairwiseScore,
    Discriminator("name"),
]
"""What an entry of ``scores`` may be, told apart by ``name``."""


@dataclass(frozen=True)
class Worth:
    """What one reply is worth: the weighed sum, and each part unweighed. Missing where one of the parts that count is."""

    reward: float | Missing
    parts: Mapping[str, float] = field(default_factory=dict)
    besides: Mapping[str, float] = field(default_factory=dict)
    """What became of its comparisons: ``pairwise/ties``."""


@dataclass(frozen=True)
class Scorer:
    """All scores of a stage, ready to score."""

    parts: tuple[tuple[str, float, Values], ...]
    """(name, weight, values)."""
    compares: bool = False
    """Whether one of them needs other replies to the same prompt."""
    second_models: int = 0
    """Whole models that were loaded for them."""

    def __call__(self, replies: Sequence[Written]) -> list[Worth]:
        """What each reply is worth."""
        columns = [(name, weight, values(replies)) for name, weight, values in self.parts]
        found = []
        for place in range(len(replies)):
            own = [(name, weight, values[place]) for name, weight, values in columns]
            besides = {
                f"{n}/{key}": x for n, _, value in own if isinstance(value, Compared) for key, x in value.shares.items()
            }
            worths = [(n, weight, value.worth if isinstance(value, Compared) else value) for n, weight, value in own]
            missing = [f"{n}: {value.reason}" for n, weight, value in worths if isinstance(value, Missing) and weight]
            known = {n: value for n, _, value in worths if not isinstance(value, Missing)}
            total = sum(weight * known.get(n, 0.0) for n, weight, _ in worths)
            found.append(Worth(Missing("; ".join(missing)) if missing else float(total), known, besides))
        return found


def open_for_all(peers: Peers, opened: Callable[[], Scorer]) -> Scorer:
    """A scorer that rank 0 opens and asks, and whose answers it tells the others: judges and reward models are asked once."""
    if peers.size == 1:
        return opened()
    own: list[Scorer] = []

    def facts() -> list[Any]:
        own.append(opened())
        return [own[0].compares, own[0].second_models]

    compares, second_models = peers.decided(facts)
    return _OneForAll((), compares, second_models, peers, tuple(own))


@dataclass(frozen=True)
class _OneForAll(Scorer):
    """See `open_for_all`."""

    peers: Peers = ALONE
    own: tuple[Scorer, ...] = ()

    def __call__(self, replies: Sequence[Written]) -> list[Worth]:
        """What each reply is worth."""

        def told() -> list[Any]:
            worths = self.own[0](replies)
            return [
                [w.reward.reason if isinstance(w.reward, Missing) else w.reward, dict(w.parts), dict(w.besides)]
                for w in worths
            ]

        return [
            Worth(Missing(reward) if isinstance(reward, str) else reward, parts, besides)
            for reward, parts, besides in self.peers.decided(told)
        ]


def open_scores(scores: Sequence[Any], opening: Opening | None = None) -> Scorer:
    """The scores, ready to score; two of one kind are told apart by a number. Raises a PosttrainError where one can't be."""
    names = part_names([one.name for one in scores])
    parts = tuple((name, one.weight, one.open(opening)) for name, one in zip(names, scores, strict=True))
    return Scorer(parts, any(one.compares for one in scores), len(opening.second_models) if opening else 0)


def part_names(names: Sequence[str]) -> list[str]:
    """What the scores are called where each is logged: two of one kind are told apart by a number."""
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [name if not seen else f"{name}_{seen + 1}" for name, seen in zip(names, before, strict=True)]


def scorer_of(values: Mapping[str, Callable[[Written], Any]]) -> Scorer:
    """A scorer of plain functions of one reply, by name, all of weight 1."""
    return Scorer(tuple((name, 1.0, _each(value)) for name, value in values.items()))


def _each(value: Callable[[Written], Any]) -> Values:
    """A score of one reply after another; whatever goes wrong with one is its own affair."""

    def values(replies: Sequence[Written]) -> list[float | Missing]:
        return [_guarded(value, one) for one in replies]

    return values


def _guarded(value: Callable[[Written], Any], one: Written) -> float | Missing:
    try:
        found = value(one)
        number = None if found is None else float(found)
    except Exception as error:  # foreign code, foreign text
        return Missing(f"{type(error).__name__}: {error}")
    return Missing("None") if number is None else _finite(number)


def _finite(number: float) -> float | Missing:
    return number if math.isfinite(number) else Missing(str(number))
