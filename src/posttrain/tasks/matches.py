"""Models' replies to the same prompts, judged against each other. What the benchmarks with pairs have in common.

    answers -> pairings -> items -> judges' judgments -> matches -> values, counts, win rates, what the page shows

Equal replies are a tie without asking: it costs nothing and can't be wrong. A pair without a verdict is in no rate; it is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

from posttrain.errors import DataError
from posttrain.generate.engine import Completion
from posttrain.judge.bias import main_judgments
from posttrain.judge.config import JudgePrompt, Plan
from posttrain.judge.items import Item
from posttrain.judge.judge import Judgment, outcomes, panel_outcomes
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
class Match:
    """Two models' replies to one task, and what the judges said of them."""

    task: Task
    model_a: str
    model_b: str
    replies_a: tuple[str, ...]
    """One a turn, as in the next."""
    replies_b: tuple[str, ...]
    references: tuple[str, ...] = ()
    """A reference answer a turn, or none."""
    outcomes: Mapping[int, Verdict | Missing] = field(default_factory=dict)
    """Of every turn asked (from 1): ``first`` is model a. A panel's is its majority."""
    judgments: Mapping[str, Sequence[Judgment]] = field(default_factory=dict)
    """By judge; none where the replies are the same."""

    @property
    def same(self) -> bool:
        """Both said the same in every turn."""
        return self.replies_a == self.replies_b


def pairings(
    answers: Mapping[str, Sequence[Answer]],
    pairs: Iterable[tuple[str, str]],
    references: Callable[[Task], tuple[str, ...]] = lambda task: (),
) -> list[Match]:
    """Every pair of models (a, b) on every task (asked once) that both answered completely, in the order of a's answers."""
    found = []
    for model_a, model_b in pairs:
        others = {answer.task.id: answer.replies for answer in answers[model_b] if answer.complete}
        found += [
            Match(answer.task, model_a, model_b, answer.replies, others[answer.task.id], references(answer.task))
            for answer in answers[model_a]
            if answer.complete and answer.task.id in others
        ]
    return found


def against_baseline(answers: Mapping[str, Sequence[Answer]], *, from_file: bool) -> tuple[str, list[Match]]:
    """The baseline's name, and every other model against it: the first model, or the replies that the tasks expect (`BaselineReply`)."""
    name, everyone = next(iter(answers)), dict(answers)
    if from_file:
        tasks = {answer.task.id: answer.task for found in answers.values() for answer in found}
        name = next((task.expected.model for task in tasks.values()), "baseline")
        while name in answers:
            name += " (file)"
        everyone[name] = [Answer(task, 0, (task.expected.text,), ("stop",), (None,)) for task in tasks.values()]
    return name, pairings(everyone, [(model, name) for model in answers if model != name])


def judge_pairings(pairings: Sequence[Match], judges: Judges, prompt: JudgePrompt, plan: Plan) -> list[Match]:
    """Ask all judges about all pairings, in one batch; those with equal replies are ties."""
    places = [place for place, pair in enumerate(pairings) if not pair.same]
    items = [
        Item(
            id=pair.task.id,
            turns=pair.task.turns,
            replies_a=pair.replies_a,
            replies_b=pair.replies_b,
            category=pair.task.category,
            model_a=pair.model_a,
            model_b=pair.model_b,
            references=pair.references,
        )
        for pair in pairings
        if not pair.same
    ]
    judged = judges.ask(items, prompt, plan) if items else []
    by_judge = {one.name: main_judgments(one.judgments) for one in judged}
    finals = [outcomes(judgments) for judgments in by_judge.values()]
    outcomes_I: list[dict[int, Verdict | Missing]] = [{} for _ in pairings]
    judgments_I: list[dict[str, list[Judgment]]] = [{} for _ in pairings]
    for (item, turn), outcome in panel_outcomes(finals).items() if finals else ():
        outcomes_I[places[item]][turn] = outcome
    for name, judgments in by_judge.items():
        for judgment in judgments:
            judgments_I[places[judgment.ask.item]].setdefault(name, []).append(judgment)
    for place, pair in enumerate(pairings):
        if pair.same:
            first = 1 if plan.turns == "each" else len(pair.task.turns)
            outcomes_I[place] = dict.fromkeys(range(first, len(pair.task.turns) + 1), "tie")
    found = zip(pairings, outcomes_I, judgments_I, strict=True)
    return [replace(pair, outcomes=own, judgments=of_judges) for pair, own, of_judges in found]


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


def sides(matches: Sequence[Match], *, both: bool = False) -> dict[tuple[str, str], list[Side]]:
    """Matches from the side of model a; with ``both`` also from that of model b."""
    found: dict[tuple[str, str], list[Side]] = {}
    for match in matches:
        for turn, outcome in match.outcomes.items():
            other = outcome if isinstance(outcome, Missing) else mirrored(outcome)
            seen = [(match.model_a, match.model_b, outcome, True), (match.model_b, match.model_a, other, False)]
            for model, opponent, verdict, of_a in seen if both else seen[:1]:
                side = Side(match.task, opponent, turn, verdict, _words(match, turn, of_a=of_a))
                found.setdefault((model, match.task.id), []).append(side)
    return found


_ONE = {"first": "wins", "second": "loses", "tie": "tie"}


def _remark(found: Sequence[Side]) -> Remark:
    """What stands beside a reply: wins, loses, tie; with several opponents or turns how many of each."""
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
    if match.same:
        return "the same reply, a tie without asking"
    places = {"original": "first" if of_a else "second", "swapped": "second" if of_a else "first"}
    texts = []
    for judgment in (one for own in match.judgments.values() for one in own if one.ask.turn == turn):
        place = places.get(judgment.ask.order)
        texts.append((f"(shown {place}) " if place else "") + judge_words(judgment))
    return "\n".join(texts)


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


# ---- findings and notes ---------------------------------------------------------------------------------------------


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
        judged = {answer.task.id: reasons.get((model, answer.task.id), NOTHING_TO_COMPARE) for answer in lost}
        why = [judged[answer.task.id] if answer.complete else why_missing(answer) for answer in lost]
        found[model] = counted(own, why)
    return found


def match_findings(
    answers: Mapping[str, Sequence[Answer]],
    matches: Sequence[Match],
    settings: IntervalSettings,
    *,
    baseline: str | None = None,
    both: bool = False,
    measure: str = WIN_RATE,
    values: Sequence[Value] = (),
    points: Mapping[Key, Mapping[str, float]] | None = None,
    measured: Iterable[tuple[str, str]] = (),
    reasons: Mapping[tuple[str, str], str] | None = None,
    notes: Sequence[str] = (),
    **more: Any,
) -> Findings:
    """What every benchmark with pairs reports of its matches.

    ``measure`` is the one of plain verdicts, ``values`` and ``points`` (of single replies) are those of others. ``baseline``: the model that
    is one half by definition wherever another has a value. An answer with a value is measured, so are those of ``measured``; ``reasons``:
    why others are not, beside what the judges gave no verdict on.
    """
    outcomes = [
        PairOutcome(match.model_a, match.model_b, outcome, match.task.id)
        for match in matches
        for outcome in match.outcomes.values()
    ]
    unread: dict[tuple[str, str], str] = {}
    for model_a, model_b, outcome, task_id in outcomes:
        if isinstance(outcome, Missing):
            for model in (model_a, model_b):
                unread.setdefault((model, str(task_id)), f"judge: {outcome.reason}")
    every, numbers, fixed = list(values), dict[Key, dict[str, float]](), set[tuple[str, str]]()
    own = sides(matches, both=both)
    for (model, task_id), found in own.items():
        verdicts = [POINTS[side.verdict] for side in found if not isinstance(side.verdict, Missing)]
        every += [Value(model, task_id, measure, value, found[0].task.category) for value in verdicts]
        if verdicts:
            numbers[model, task_id, 0] = {measure: fmean(verdicts)}
    for key, more_numbers in (points or {}).items():
        numbers.setdefault(key, {}).update(more_numbers)
    if baseline is not None:
        compared = {(one.task, one.measure): one.category for one in every if one.measure in (WIN_RATE, measure)}
        every += [Value(baseline, task, key, 0.5, category) for (task, key), category in compared.items()]
        fixed = {(baseline, key) for _, key in compared}
    return Findings(
        values=every,
        accounting=accounts(
            answers, [*((one.model, one.task) for one in every), *measured], {**(reasons or {}), **unread}
        ),
        remarks={(*key, 0): _remark(found) for key, found in own.items()},
        reply_values=numbers,
        notes=[*notes, *repeated_notes(answers)],
        win_rates=win_rates(outcomes, settings),
        by_definition=frozenset(fixed),
        **more,
    )


def match_notes(matches: Sequence[Match], opponents: int) -> list[str]:
    """Equal replies and questions without a verdict, where there are any; without opponents that there is nothing to compare."""
    if not opponents:
        return ["There is one model and nothing to compare it with."]
    total = Counter((match.model_a, match.model_b) for match in matches)
    same = Counter((match.model_a, match.model_b) for match in matches if match.same)
    notes = [
        f"{a} and {b} gave the same reply to {same[a, b]} of {number} prompts: ties, not asked."
        for (a, b), number in total.items()
        if same[a, b]
    ]
    outcomes = [outcome for match in matches for outcome in match.outcomes.values()]
    return notes + missing_notes(outcomes, "questions have no verdict", judgment_values(matches))


def judgment_values(matches: Sequence[Match]) -> list[object]:
    """What every single judgment says."""
    return [judgment.value for match in matches for own in match.judgments.values() for judgment in own]


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
            repeated = " / ".join(text).strip(" /")
            quoted = f"{repeated[:80]!r}{'...' if len(repeated) > 80 else ''}" if repeated else "an empty text"
            notes.append(
                f"{model} gives the same reply to {times} of {len(replies)} prompts ({quoted}): "
                "look at its replies before its numbers."
            )
    return notes


OWN_PROMPT = "Judged with posttrain's own prompts: not comparable with published {title} scores, whoever judges."
"""A note of every benchmark here."""
