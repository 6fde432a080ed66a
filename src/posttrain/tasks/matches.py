"""Models' replies to the same prompts, judged against each other. What the benchmarks with pairs have in common.

    answers -> pairings -> items -> judges' judgments -> matches -> values, counts, win rates, what the page shows

Equal replies are a tie without asking: it costs nothing and can't be wrong. A pair without a verdict is in no rate; it is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from posttrain.errors import DataError
from posttrain.generate.engine import Completion
from posttrain.judge.bias import main_judgments
from posttrain.judge.config import JudgePrompt, Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import Judgment, asks_of, outcomes, panel_outcomes
from posttrain.judge.pool import Judges
from posttrain.judge.verdicts import Missing, Verdict, mirrored
from posttrain.judge.win_rates import POINTS, PairOutcome, win_rates
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.base import Answer, Findings, Key, Task, Value
from posttrain.tasks.measuring import counted, why_missing
from posttrain.tasks.records import Account, Remark
from posttrain.tasks.rows import text_of
from posttrain.types import Origin

NOTHING_TO_COMPARE = "nothing to compare with"
WIN_RATE = "win_rate"
"""Key of the measure (W + T/2) / n."""
LAST_CHARACTERS = 600
"""How much of a judge's words is shown: the end, where the verdict is."""
REPEATED_SHARE, REPEATED_TIMES = 0.05, 3
"""One reply to at least this share of the prompts, and this many of them, is told."""


class BaselineReply(NamedTuple):
    """The reply of a model that is not in the stage, read from a file."""

    model: str
    text: str


def baseline_text(row: Mapping[str, Any], key: str, origin: Origin) -> str:
    """A baseline's reply, which may be blank. Raises DataError where it is no text."""
    value = row.get(key)
    return value if isinstance(value, str) and not value.strip() else text_of(row, key, origin)


def one_model(reply: BaselineReply, first: BaselineReply, origin: Origin) -> None:
    """Raise DataError where a file holds replies of several models."""
    if reply.model != first.model:
        raise DataError(
            f"replies of {reply.model!r} and of {first.model!r} in one file",
            where=str(origin),
            fix="give the replies of one baseline",
        )


# ---- pairs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two models' replies to one task."""

    task: Task
    model_a: str
    model_b: str
    replies_a: tuple[str, ...]
    """One a turn, as in the next."""
    replies_b: tuple[str, ...]
    references: tuple[str, ...] = ()
    """A reference answer a turn, or none."""

    @property
    def same(self) -> bool:
        """Both said the same in every turn."""
        return self.replies_a == self.replies_b

    @property
    def item(self) -> Item:
        """What a judge is asked."""
        return Item(
            id=self.task.id,
            turns=self.task.turns,
            replies_a=self.replies_a,
            replies_b=self.replies_b,
            category=self.task.category,
            model_a=self.model_a,
            model_b=self.model_b,
            references=self.references,
        )


def pairings(
    answers: Mapping[str, Sequence[Answer]],
    pairs: Iterable[tuple[str, str]],
    references: Callable[[Task], tuple[str, ...]] = lambda task: (),
) -> list[Pairing]:
    """Every pair of models (a, b) on every task that both answered completely, in the order of a's answers."""
    found = []
    for model_a, model_b in pairs:
        others = {(answer.task.id, answer.sample): answer for answer in answers[model_b] if answer.complete}
        for answer in answers[model_a]:
            other = others.get((answer.task.id, answer.sample))
            if answer.complete and other is not None:
                task = answer.task
                found.append(Pairing(task, model_a, model_b, answer.replies, other.replies, references(task)))
    return found


def with_file_baseline(answers: Mapping[str, Sequence[Answer]]) -> tuple[str, dict[str, Sequence[Answer]]]:
    """The baseline's name, and all answers with the baseline's own, whose replies the tasks expect (`BaselineReply`) beside them."""
    tasks = {answer.task.id: answer.task for found in answers.values() for answer in found}
    names = [task.expected.model for task in tasks.values()]
    name = names[0] if names else "baseline"
    while name in answers:
        name += " (file)"
    own = [Answer(task, 0, (task.expected.text,), ("stop",), (None,)) for task in tasks.values()]
    return name, {**answers, name: own}


@dataclass(frozen=True, slots=True)
class Match:
    """A pairing and what the judges said."""

    pairing: Pairing
    outcomes: Mapping[int, Verdict | Missing]
    """Of every turn asked (from 1): ``first`` is model a. A panel's is its majority."""
    judgments: Mapping[str, Sequence[Judgment]] = field(default_factory=dict)
    """By judge; none where the replies are the same."""


def judge_pairings(pairings: Sequence[Pairing], judges: Judges, prompt: JudgePrompt, plan: Plan) -> list[Match]:
    """Ask all judges about all pairings, in one batch; those with equal replies are ties."""
    items = [pairing.item for pairing in pairings if not pairing.same]
    judged = judges.ask(items, prompt, plan) if items else []
    by_judge = {one.name: main_judgments(one.judgments) for one in judged}
    finals = [outcomes(judgments) for judgments in by_judge.values()]
    final = panel_outcomes(finals) if finals else {}
    outcomes_I: list[dict[int, Verdict | Missing]] = [{} for _ in items]
    for (place, turn), outcome in final.items():
        outcomes_I[place][turn] = outcome
    judgments_I: list[dict[str, list[Judgment]]] = [{name: [] for name in by_judge} for _ in items]
    for name, judgments in by_judge.items():
        for judgment in judgments:
            judgments_I[judgment.ask.item][name].append(judgment)
    asked = iter(zip(outcomes_I, judgments_I, strict=True))
    matches = []
    for pairing in pairings:
        if pairing.same:
            turns = dict.fromkeys(ask.turn for ask in asks_of([pairing.item], plan, "pair"))
            matches.append(Match(pairing, dict.fromkeys(turns, "tie")))
        else:
            found, by_name = next(asked)
            matches.append(Match(pairing, found, by_name))
    return matches


# ---- what they say of each reply -----------------------------------------------------------------------------------


class Side(NamedTuple):
    """A match from the side of one of its models."""

    task: Task
    opponent: str
    turn: int
    verdict: Verdict | Missing
    """``first`` = this model wins."""
    words: str
    """The judges' own."""


Sides = Mapping[tuple[str, str], Sequence[Side]]
"""By model and task id."""


def sides(matches: Sequence[Match], *, both: bool) -> dict[tuple[str, str], list[Side]]:
    """Matches from the side of model a; with ``both`` also from that of model b."""
    found: dict[tuple[str, str], list[Side]] = {}
    for match in matches:
        pair = match.pairing
        for turn, outcome in match.outcomes.items():
            own = Side(pair.task, pair.model_b, turn, outcome, _words(match, turn, of_a=True))
            found.setdefault((pair.model_a, pair.task.id), []).append(own)
            if both:
                other = outcome if isinstance(outcome, Missing) else mirrored(outcome)
                side = Side(pair.task, pair.model_a, turn, other, _words(match, turn, of_a=False))
                found.setdefault((pair.model_b, pair.task.id), []).append(side)
    return found


def side_values(sides: Sides, measure: str = WIN_RATE) -> list[Value]:
    """Win 1, tie 1/2, loss 0, of every question that has an outcome."""
    return [
        Value(model, task_id, measure, POINTS[side.verdict], side.task.category)
        for (model, task_id), found in sides.items()
        for side in found
        if not isinstance(side.verdict, Missing)
    ]


def baseline_halves(baseline: str, values: Sequence[Value], measure: str = WIN_RATE) -> list[Value]:
    """The baseline against itself: one half by definition, on every task that another model has a value on."""
    tasks = {value.task: value.category for value in values if value.measure == measure}
    return [Value(baseline, task, measure, 0.5, category) for task, category in tasks.items()]


def side_remarks(sides: Sides) -> dict[Key, Remark]:
    """What stands beside each reply: wins, loses, tie; with several opponents or turns how many of each."""
    return {(model, task_id, 0): _remark(found) for (model, task_id), found in sides.items()}


def side_points(sides: Sides, measure: str = WIN_RATE) -> dict[Key, dict[str, float]]:
    """The mean of a reply's values, for the rows file; nothing where it has none."""
    points: dict[Key, list[float]] = {}
    for value in side_values(sides, measure):
        points.setdefault((value.model, value.task, 0), []).append(value.value)
    return {key: {measure: sum(found) / len(found)} for key, found in points.items()}


_ONE = {"first": "wins", "second": "loses", "tie": "tie"}


def _remark(found: Sequence[Side]) -> Remark:
    verdicts = [side.verdict for side in found if not isinstance(side.verdict, Missing)]
    lost = len(found) - len(verdicts)
    if len(found) == 1:
        label = _ONE[verdicts[0]] if verdicts else "no verdict"
    else:
        count = Counter(verdicts)
        numbers = ((count["first"], "won"), (count["second"], "lost"), (count["tie"], "tied"), (lost, "no verdict"))
        label = ", ".join(f"{number} {word}" for number, word in numbers if number)
    balance = sum(POINTS[verdict] - 0.5 for verdict in verdicts)
    several = len({side.turn for side in found}) > 1
    detail = [f"Against {s.opponent}{f', turn {s.turn}' if several else ''}: {s.words}" for s in found]
    return Remark(label, None if balance == 0 else balance > 0, "\n\n".join(detail))


def _words(match: Match, turn: int, *, of_a: bool) -> str:
    if match.pairing.same:
        return "the same reply, a tie without asking"
    told = []
    for judgment in (
        judgment for judgments in match.judgments.values() for judgment in judgments if judgment.ask.turn == turn
    ):
        place = {"original": "first", "swapped": "second"}.get(judgment.ask.order)
        if place is not None and not of_a:
            place = "second" if place == "first" else "first"
        told.append((f"(shown {place}) " if place else "") + judge_words(judgment))
    return "\n".join(told)


def judge_words(judgment: Judgment) -> str:
    """A judge's own words, or its probabilities, or why there is no verdict."""
    if isinstance(judgment.value, Missing):
        return f"no verdict: {judgment.value.reason}" + (f" ({judgment.value.detail})" if judgment.value.detail else "")
    if judgment.to_second is not None:
        return f"the reply shown second is better with probability {judgment.to_second:.1%}"
    if isinstance(judgment.outcome, Completion):
        text = judgment.outcome.text.strip()
        return text if len(text) <= LAST_CHARACTERS else f"... {text[-LAST_CHARACTERS:]}"
    return f"{judgment.value}"


# ---- accounting ----------------------------------------------------------------------------------------------------


def missing_reasons(matches: Sequence[Match]) -> dict[tuple[str, str], str]:
    """(model, task id) -> why the judges gave no verdict on it, the first reason where there are several."""
    found: dict[tuple[str, str], str] = {}
    for match in matches:
        for outcome in match.outcomes.values():
            if isinstance(outcome, Missing):
                for model in (match.pairing.model_a, match.pairing.model_b):
                    found.setdefault((model, match.pairing.task.id), f"judge: {outcome.reason}")
    return found


def accounts(
    answers: Mapping[str, Sequence[Answer]],
    measured: Iterable[tuple[str, str]],
    reasons: Mapping[tuple[str, str], str],
) -> dict[str, Account]:
    """What became of every model's answers (one sample a task). ``measured`` and ``reasons`` are by model and task id.

    An incomplete answer is dropped for the reason of the failed call. A complete one without a value or a reason has no other model's
    reply to be compared with.
    """
    valued = set(measured)
    found = {}
    for model, own in answers.items():
        lost = [answer for answer in own if (model, answer.task.id) not in valued]
        found[model] = counted(
            own,
            [
                reasons.get((model, answer.task.id), NOTHING_TO_COMPARE) if answer.complete else why_missing(answer)
                for answer in lost
            ],
        )
    return found


# ---- findings and notes ---------------------------------------------------------------------------------------------


def match_findings(
    answers: Mapping[str, Sequence[Answer]],
    matches: Sequence[Match],
    values: Sequence[Value],
    settings: IntervalSettings,
    *,
    measured: Iterable[tuple[str, str]] = (),
    reasons: Mapping[tuple[str, str], str] | None = None,
    **more: Any,
) -> Findings:
    """What every benchmark with pairs reports of its matches. ``values`` say which answers are measured, with those of ``measured``
    beside them; ``reasons``: why others are not, beside what the judges gave no verdict on.
    """
    outcomes = [
        PairOutcome(match.pairing.model_a, match.pairing.model_b, outcome, match.pairing.task.id)
        for match in matches
        for outcome in match.outcomes.values()
    ]
    places = [*((value.model, value.task) for value in values), *measured]
    return Findings(
        values=values,
        accounting=accounts(answers, places, {**(reasons or {}), **missing_reasons(matches)}),
        win_rates=win_rates(outcomes, settings),
        **more,
    )


def match_notes(matches: Sequence[Match]) -> list[str]:
    """Equal replies and questions without a verdict, where there are any."""
    notes = []
    asked: Counter[tuple[str, str]] = Counter()
    same: Counter[tuple[str, str]] = Counter()
    for match in matches:
        pair = (match.pairing.model_a, match.pairing.model_b)
        asked[pair] += 1
        same[pair] += match.pairing.same
    for (model_a, model_b), number in same.items():
        if number:
            total = asked[model_a, model_b]
            notes.append(
                f"{model_a} and {model_b} gave the same reply to {number} of {total} prompts: ties, not asked."
            )
    told = [outcome for match in matches for outcome in match.outcomes.values()]
    judgments = [judgment.value for match in matches for own in match.judgments.values() for judgment in own]
    return notes + missing_notes(told, "questions have no verdict", judgments)


def missing_notes(values: Sequence[object], what: str, examples: Sequence[object] = ()) -> list[str]:
    """How many of the values are missing, by reason and with one detail, of ``examples`` first; nothing where none is."""
    lost = [value for value in values if isinstance(value, Missing)]
    if not lost:
        return []
    reasons = ", ".join(f"{reason} {number}" for reason, number in Counter(one.reason for one in lost).most_common())
    details = (one.detail.strip() for one in (*examples, *lost) if isinstance(one, Missing))
    detail = next((f"; for example: {text[:200]}" for text in details if text), "")
    return [f"{len(lost)} of {len(values)} {what} ({reasons}{detail}): they are in none of the numbers."]


def repeated_notes(answers: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Models that give one reply to many prompts: a constant text may please a judge and still be no answer (null-model control)."""
    notes = []
    for model, found in answers.items():
        replies = [tuple(reply.strip() for reply in answer.replies) for answer in found if answer.complete]
        text, times = Counter(replies).most_common(1)[0] if replies else ((), 0)
        if times >= max(REPEATED_TIMES, REPEATED_SHARE * len(replies)):
            shown = " / ".join(text).strip(" /")
            quoted = f"{shown[:80]!r}{'...' if len(shown) > 80 else ''}" if shown else "an empty text"
            notes.append(
                f"{model} gives the same reply to {times} of {len(replies)} prompts ({quoted}): "
                "look at its replies before its numbers."
            )
    return notes


OWN_PROMPT = "Judged with posttrain's own prompts: not comparable with published {title} scores, whoever judges."
"""A note of every benchmark here."""
ONE_MODEL = "There is one model and nothing to compare it with."
