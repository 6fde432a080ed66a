"""Arena-Hard: hard prompts, the judge writes its own answer first and then says how much better one reply is than the other.

Li et al. 2024, arXiv:2406.11939; procedure of arena-hard-auto: two judgments, one in each order, both kept; five labels from ``[[A>>B]]`` to
``[[B>>A]]``, of which the last one counts; a much better reply (``>>``) counts three times. The score is the share of the win that goes
to the model:

    score = sum of weight x points / sum of weight       points 1, 1/2, 0; weight 3 for ``>>``, else 1; over all judgments

Published are quantiles (5 and 95%) of 100 bootstrap means over judgments; here whole prompts are resampled, since the two judgments of one prompt are
not independent, and the confidence is the stage's. The judge's prompt is our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import Ge

from posttrain.errors import DataError
from posttrain.generate.engine import Completion, Sampling
from posttrain.judge.judge import Judgment
from posttrain.judge.pool import Judges
from posttrain.judge.prompts import load_prompt
from posttrain.judge.verdicts import FiveVerdict, Missing, Verdict, arena_hard, read, side
from posttrain.judge.win_rates import POINTS
from posttrain.references import NamesFile
from posttrain.stats.intervals import IntervalSettings, compare, ratio, wilson
from posttrain.tasks.base import Answer, Findings, Needs, Task
from posttrain.tasks.matches import (
    OWN_PROMPT,
    WIN_RATE,
    BaselineReply,
    Match,
    against_baseline,
    baseline_text,
    judge_pairings,
    judgment_values,
    match_findings,
    match_notes,
    missing_notes,
    one_model,
)
from posttrain.tasks.measures import adjusted, difference_between
from posttrain.tasks.records import Area, Difference, Measure, Result
from posttrain.tasks.rows import file_rows, keep_shares, label_of, text_of
from posttrain.types import Origin

SCORE = "score"
MUCH = 3
"""How often a much better reply counts (arena-hard-auto's weight)."""

_MEASURES = (
    Measure(
        SCORE,
        "Arena-Hard score",
        about="Share of the win that goes to the model over both judgments of every prompt; a much better reply counts three times.",
        headline=True,
    ),
    Measure(
        WIN_RATE,
        "Win rate",
        about="Wins plus half of the ties; a win is what the judge says in both orders, anything else is a tie.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ArenaHardBenchmark:
    """Arena-Hard: hard prompts judged in five steps against a baseline's replies.

    A reply cut at ``max_tokens`` is judged as it stands. A judgment without a readable label is in no score; the prompt's other judgment is kept, as
    published, and its win rate is missing. A judge without labels (a reward model) has weight 1.
    """

    title: ClassVar[str] = "Arena-Hard"
    area: ClassVar[Area] = "helpfulness"
    measures: ClassVar[tuple[Measure, ...]] = _MEASURES

    name: Literal["arena_hard"]
    path: Annotated[str, NamesFile()]
    """Prompts: Arena-Hard's question.jsonl, or rows with ``prompt`` (or ``turns``) and ``uid`` (or ``question_id``, ``id``)."""
    baseline: Annotated[str, NamesFile()] | None = None
    """Replies to compare with: rows with the same ids and ``text``, or Arena-Hard's model_answer file; null = the stage's first model."""
    max_prompts: Annotated[int, Ge(1)] | None = None
    """Ask only so many: the first of every ``cluster`` (or ``category``), which keeps its share; null = all."""
    max_tokens: Annotated[int, Ge(1)] = 4096
    """Longest reply in tokens."""
    temperature: Annotated[float, Ge(0)] = 0.0
    """0 = greedy."""

    @property
    def needs(self) -> Needs:
        """A judge; two models where the first one is the baseline."""
        return Needs(judge=True, two_models=self.baseline is None)

    def tasks(self) -> tuple[Task, ...]:
        """One task a prompt. A category is told only where the file has several.

        Raises:
            DataError: a file that can't be read, a row without a prompt or with the id of another one, or a prompt without a baseline reply.

        """
        rows = _questions(self.path)
        replies = None if self.baseline is None else _replies(self.baseline)
        several = len({row.category for row in rows}) > 1
        tasks = []
        for row in keep_shares(rows, [row.cluster or row.category for row in rows], self.max_prompts):
            if replies is not None and row.id not in replies:
                raise DataError(
                    f"no reply to prompt {row.id!r}",
                    where=self.baseline,
                    fix="give a file with a reply to every prompt",
                )
            tasks.append(
                Task(
                    id=row.id,
                    turns=(row.text,),
                    sampling=Sampling(temperature=self.temperature, max_tokens=self.max_tokens),
                    category=row.category if several else None,
                    language=row.language,
                    expected=None if replies is None else replies[row.id],
                )
            )
        return tuple(tasks)

    def judge(self, answers: Mapping[str, Sequence[Answer]], judges: Judges, settings: IntervalSettings) -> Findings:
        """Compare every model with the baseline."""
        baseline, pairs = against_baseline(answers, from_file=self.baseline is not None)
        matches = judge_pairings(pairs, judges, load_prompt("five", "pair", judges.language), judges.plan)
        found = tally(matches)
        tallies = {model: found.get(model, {}) for model in answers}
        if self.baseline is None:  # against itself: one half by definition
            tasks = {task: one.category for own in found.values() for task, one in own.items()}
            tallies[baseline] = {task: Tally(0.5, 1.0, category) for task, category in tasks.items()}
        places = {(model, task): one for model, own in tallies.items() for task, one in own.items()}
        return match_findings(
            answers,
            matches,
            settings,
            baseline=baseline if self.baseline is None else None,
            points={(*place, 0): {SCORE: one.points / one.weight} for place, one in places.items()},
            measured=places,
            notes=[
                OWN_PROMPT.format(title=self.title),
                *match_notes(matches, len(answers) - (self.baseline is None)),
                *missing_notes(judgment_values(matches), "judgments have no readable label"),
            ],
            results=score_results(tallies, settings, None if self.baseline else baseline),
            differences=score_differences(tallies, settings),
        )


# ---- the score -----------------------------------------------------------------------------------------------------


class Tally(NamedTuple):
    """One model on one prompt."""

    points: float
    """Sum of weight times points."""
    weight: float
    category: str | None = None


Tallies = Mapping[str, Mapping[str, Tally]]
"""By model and task id."""


def tally(matches: Sequence[Match]) -> dict[str, dict[str, Tally]]:
    """Every model a's judgments against the baseline, all judges and samples pooled; prompts without a readable judgment are left out.

    Equal replies are a tie in each order.
    """
    found: dict[str, dict[str, Tally]] = {}
    judges = max((len(match.judgments) for match in matches), default=0) or 1
    for match in matches:
        own = [(0.5, 1.0)] * (2 * judges) if match.same else list(_points(match))
        if own:
            total = Tally(sum(p * w for p, w in own), sum(w for _, w in own), match.task.category)
            found.setdefault(match.model_a, {})[match.task.id] = total
    return found


def _points(match: Match) -> Iterator[tuple[float, float]]:
    """(points of model a, weight) of every judgment with a verdict."""
    for judgment in (judgment for judgments in match.judgments.values() for judgment in judgments):
        label = label_of_judgment(judgment)
        if not isinstance(label, Missing):
            points = POINTS[side(label)]
            yield 1 - points if judgment.ask.order == "swapped" else points, MUCH if label.endswith(">>") else 1


def label_of_judgment(judgment: Judgment) -> FiveVerdict | Missing:
    """What the judge said, with its strength: the reply is read again. A verdict without a reply (a reward model) has no strength."""
    if isinstance(judgment.value, Missing):
        return judgment.value
    if isinstance(judgment.outcome, Completion):
        return read(judgment.outcome, arena_hard)
    assert not isinstance(judgment.value, float | int), "pairs are not rated"
    return _WITHOUT_STRENGTH[judgment.value]


_WITHOUT_STRENGTH: dict[Verdict, FiveVerdict] = {"first": "first>", "second": "second>", "tie": "tie"}


def score_results(tallies: Tallies, settings: IntervalSettings, fixed: str | None = None) -> list[Result]:
    """The score over all prompts and in every category, prompts resampled. ``fixed``: the model whose score is one half by definition.

    The interval is Wilson's over prompts where all judgments went one way: every resample would be the same.
    """
    found = []
    for model, own in tallies.items():
        categories = dict.fromkeys(one.category for one in own.values() if one.category is not None)
        for category in (None, *categories) if own else ():
            chosen = [one for one in own.values() if category is None or one.category == category]
            interval = ratio([one.points for one in chosen], [one.weight for one in chosen], settings)
            if interval.estimate in (0.0, 1.0):
                interval = wilson(round(interval.estimate * len(chosen)), len(chosen), settings.confidence)
            size, by_definition = len(chosen), model == fixed
            found.append(Result(model, SCORE, category, *interval[:3], size, size, by_definition=by_definition))
    return found


def score_differences(tallies: Tallies, settings: IntervalSettings) -> list[Difference]:
    """Every later model minus the first, on common prompts; Holm's adjustment over all of them."""
    first, *others = tallies
    found = []
    for model in others:
        a, b = tallies[first], tallies[model]
        common = [task for task in a if task in b]
        if common:
            seen = compare(
                [a[task].points for task in common],
                [b[task].points for task in common],
                weights_a_R=[a[task].weight for task in common],
                weights_b_R=[b[task].weight for task in common],
                test="permutation",
                settings=settings,
            )
            found.append(replace(difference_between(first, model, SCORE, seen), higher=None, lower=None))
    return adjusted(found)


# ---- files ---------------------------------------------------------------------------------------------------------


class _Question(NamedTuple):
    """A row of the prompt file."""

    id: str
    text: str
    category: str | None
    cluster: str | None
    language: str | None


def _questions(path: str) -> list[_Question]:
    found = []
    for name, row, origin in _rows(path, "prompt {name!r} comes a second time"):
        place, key = (row, "prompt") if "prompt" in row else _only_turn(row, origin)
        labels = (label_of(row, label, origin) for label in ("category", "cluster", "language"))
        found.append(_Question(name, text_of(place, key, origin), *labels))
    if not found:
        raise DataError("there are no prompts in this file", where=path, fix="give Arena-Hard's question.jsonl")
    return found


def _replies(path: str) -> dict[str, BaselineReply]:
    found: dict[str, BaselineReply] = {}
    for name, row, origin in _rows(path, "a second reply to prompt {name!r}"):
        model = next((label for key in ("model", "model_id") if (label := label_of(row, key, origin))), "baseline")
        reply = BaselineReply(model, baseline_text(*_reply_place(row, origin), origin))
        one_model(reply, next(iter(found.values()), reply), origin)
        found[name] = reply
    return found


def _rows(path: str, twice: str) -> Iterator[tuple[str, Mapping[str, Any], Origin]]:
    """Every row with its id; ``twice``: what is wrong where another one has it."""
    names = set()
    for origin, row in file_rows(path):
        name = next((label for key in ("uid", "question_id", "id") if (label := label_of(row, key, origin))), None)
        if name is None:
            raise DataError("a row without an id", where=str(origin), fix="write uid, question_id or id")
        if name in names:
            raise DataError(twice.format(name=name), where=str(origin), fix="give each prompt one row")
        names.add(name)
        yield name, row, origin


def _only_turn(row: Mapping[str, Any], origin: Origin) -> tuple[Mapping[str, Any], str]:
    """Where the text of the only entry of ``turns`` stands: itself, or its ``content``."""
    turns = row.get("turns")
    if not isinstance(turns, list) or len(turns) != 1:
        raise DataError("one text, or a list turns with one entry, is needed", where=str(origin), fix="write one turn")
    return (turns[0], "content") if isinstance(turns[0], Mapping) else ({"turns": turns[0]}, "turns")


def _reply_place(row: Mapping[str, Any], origin: Origin) -> tuple[Mapping[str, Any], str]:
    """Where a reply's text stands: under ``text``, or as in one of the two forms of Arena-Hard's model_answer files."""
    match row:
        case {"text": _}:
            return row, "text"
        case {"choices": [{"turns": _} as choice, *_]}:
            return _only_turn(choice, origin)
        case {"messages": [*_, {"content": {"answer": _} as content}]}:
            return content, "answer"
        case {"messages": [*_, {"content": str()} as message]}:
            return message, "content"
        case _:
            return row, "text"
