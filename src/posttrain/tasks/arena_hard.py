"""Arena-Hard: hard prompts, the judge writes its own answer first and then says how much better one reply is than the other.

Li et al. 2024, arXiv:2406.11939; procedure of arena-hard-auto: two judgments, one in each order, both kept; five labels from ``[[A>>B]]`` to
``[[B>>A]]``, of which the last one counts; a much better reply (``>>``) counts three times. The score is the share of the win that goes
to the model:

    score = sum of weight x points / sum of weight       points 1, 1/2, 0; weight 3 for ``>>``, else 1; over all judgments

Published are quantiles (5 and 95%) of 100 bootstrap means over judgments; here whole prompts are resampled, since the two judgments of one prompt are
not independent, and the confidence is the stage's. The judge's prompt is our own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from posttrain.errors import DataError
from posttrain.generate.engine import Completion, Sampling
from posttrain.judge.judge import Judgment
from posttrain.judge.pool import Judges
from posttrain.judge.prompts import load_prompt
from posttrain.judge.verdicts import FiveVerdict, Missing, Verdict, arena_hard, read, side
from posttrain.judge.win_rates import POINTS
from posttrain.references import NamesFile
from posttrain.stats.intervals import Interval, IntervalSettings, minimum_detectable_difference, quantiles, wilson
from posttrain.tasks.base import Answer, Findings, Needs, Task, Value
from posttrain.tasks.matches import (
    ONE_MODEL,
    OWN_PROMPT,
    WIN_RATE,
    BaselineReply,
    Match,
    baseline_halves,
    baseline_text,
    judge_pairings,
    match_findings,
    match_notes,
    missing_notes,
    one_model,
    pairings,
    repeated_notes,
    side_points,
    side_remarks,
    side_values,
    sides,
    with_file_baseline,
)
from posttrain.tasks.measures import adjusted
from posttrain.tasks.records import Area, Difference, Measure, Result
from posttrain.tasks.rows import file_rows, keep_shares, label_of, text_of
from posttrain.types import Origin

Floats = NDArray[np.float64]

SCORE = "score"
MUCH = 3
"""How often a much better reply counts (arena-hard-auto's weight)."""
_DRAWS_AT_ONCE = 1_000

_MEASURES = (
    Measure(
        SCORE,
        "Arena-Hard score",
        "share",
        "higher",
        "Share of the win that goes to the model over both judgments of every prompt; a much better reply counts three times.",
        headline=True,
    ),
    Measure(
        WIN_RATE,
        "Win rate",
        "share",
        "higher",
        "Wins plus half of the ties; a win is what the judge says in both orders, anything else is a tie.",
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

    def measures(self) -> tuple[Measure, ...]:
        """The score, and the win rate of both orders together."""
        return _MEASURES

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
        if self.baseline is None:
            baseline, everyone = next(iter(answers)), dict(answers)
        else:
            baseline, everyone = with_file_baseline(answers)
        models = [model for model in answers if model != baseline]
        pairs = pairings(everyone, [(model, baseline) for model in models])
        matches = judge_pairings(pairs, judges, load_prompt("five", "pair", judges.language), judges.plan)
        won = sides(matches, both=False)
        values, halves, tallies = side_values(won), list[Value](), tally(matches)
        if self.baseline is None:
            halves = baseline_halves(baseline, values)
            tasks = {task: found.category for own in tallies.values() for task, found in own.items()}
            tallies = {baseline: {task: Tally(0.5, 1.0, category) for task, category in tasks.items()}} | tallies
        tallies = {model: tallies.get(model, {}) for model in answers}
        points = side_points(won)
        for model, own in tallies.items():
            for task, found in own.items():
                points.setdefault((model, task, 0), {})[SCORE] = found.points / found.weight
        judgments = [judgment.value for match in matches for own in match.judgments.values() for judgment in own]
        fixed = {(half.model, key) for half in halves for key in (WIN_RATE, SCORE)}
        return match_findings(
            answers,
            matches,
            [*values, *halves],
            settings,
            measured=[(model, task) for model, own in tallies.items() for task in own],
            remarks=side_remarks(won),
            reply_values=points,
            notes=[
                OWN_PROMPT.format(title=self.title),
                *(match_notes(matches) if models else [ONE_MODEL]),
                *missing_notes(judgments, "judgments have no readable label"),
                *repeated_notes(answers),
            ],
            results=score_results(tallies, settings, fixed),
            differences=score_differences(tallies, settings),
            by_definition=frozenset(fixed),
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

_POINTS: dict[FiveVerdict, float] = {
    label: POINTS[side(label)] for label in ("first>>", "first>", "tie", "second>", "second>>")
}


def tally(matches: Sequence[Match]) -> dict[str, dict[str, Tally]]:
    """Every model a's judgments against the baseline, all judges and samples pooled; prompts without a readable judgment are left out.

    Equal replies are a tie in each order.
    """
    found: dict[str, dict[str, Tally]] = {}
    judges = max((len(match.judgments) for match in matches), default=0) or 1
    for match in matches:
        pair = match.pairing
        own = [(0.5, 1.0)] * (2 * judges) if pair.same else list(_points(match))
        if own:
            total = Tally(sum(p * w for p, w in own), sum(w for _, w in own), pair.task.category)
            found.setdefault(pair.model_a, {})[pair.task.id] = total
    return found


def _points(match: Match) -> Iterator[tuple[float, float]]:
    """(points of model a, weight) of every judgment with a verdict."""
    for judgment in (judgment for judgments in match.judgments.values() for judgment in judgments):
        label = label_of_judgment(judgment)
        if not isinstance(label, Missing):
            points = _POINTS[label]
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


def score_results(
    tallies: Tallies, settings: IntervalSettings, fixed: Collection[tuple[str, str]] = ()
) -> list[Result]:
    """The score over all prompts and in every category, prompts resampled. ``fixed``: (model, measure) that is not measured."""
    found = []
    for model, own in tallies.items():
        categories = dict.fromkeys(one.category for one in own.values() if one.category is not None)
        for category in (None, *categories) if own else ():
            chosen = {task: one for task, one in own.items() if category is None or one.category == category}
            size, interval = len(chosen), _score(chosen, settings)[:3]
            by_definition = (model, SCORE) in fixed
            found.append(Result(model, SCORE, category, *interval, size, size, by_definition=by_definition))
    return found


def score_differences(tallies: Tallies, settings: IntervalSettings) -> list[Difference]:
    """Every later model minus the first, on common prompts; Holm's adjustment over all of them."""
    first, *others = tallies
    found = []
    for model in others:
        common = [task for task in tallies[first] if task in tallies[model]]
        if common:
            sums_a, sums_b = (_sums([tallies[name][task] for task in common]) for name in (first, model))
            found.append(_difference(first, model, sums_a, sums_b, settings))
    return adjusted(found)


def _score(tallies: Mapping[str, Tally], settings: IntervalSettings) -> Interval:
    """Percentile interval of the ratio of sums over resampled prompts; Wilson's over prompts where all judgments went one way."""
    sums_P2 = _sums(list(tallies.values()))
    share = float(_share(sums_P2.sum(axis=0)))
    if share in (0.0, 1.0):  # every resample would be the same
        return wilson(round(share * len(sums_P2)), len(sums_P2), settings.confidence)
    low, high = _ends(
        np.concatenate([_share(drawn_DP @ sums_P2) for drawn_DP in _draws(len(sums_P2), settings)]), settings
    )
    return Interval(share, low, high, settings.confidence)


def _difference(a: str, b: str, sums_a_P2: Floats, sums_b_P2: Floats, settings: IntervalSettings) -> Difference:
    """Difference of two ratios of sums: paired bootstrap over prompts, and a permutation test that swaps the models' prompts.

    p = (1 + as extreme) / (1 + draws) (Phipson and Smyth 2010). ``detectable`` takes the ratios as linear around what was found.
    """
    prompts = len(sums_a_P2)
    share_a, share_b = _share(sums_a_P2.sum(axis=0)), _share(sums_b_P2.sum(axis=0))
    seen = float(share_b - share_a)
    drawn = [_share(d @ sums_b_P2) - _share(d @ sums_a_P2) for d in _draws(prompts, settings)]
    low, high = _ends(np.concatenate(drawn), settings)
    extreme, rng, moved_P2 = 0, np.random.default_rng(settings.seed), sums_b_P2 - sums_a_P2
    for size in _chunks(settings.resamples):
        swapped_D2 = rng.integers(2, size=(size, prompts)) @ moved_P2
        null_D = _share(sums_b_P2.sum(axis=0) - swapped_D2) - _share(sums_a_P2.sum(axis=0) + swapped_D2)
        extreme += int(np.count_nonzero(np.abs(null_D) >= abs(seen) - 1e-12))
    pulls_P = _pulls(sums_b_P2, share_b) - _pulls(sums_a_P2, share_a)
    spread = float(np.std(pulls_P, ddof=1)) if prompts > 1 else 0.0
    detectable = minimum_detectable_difference(spread, prompts, significance=1 - settings.confidence)
    return Difference(
        a,
        b,
        SCORE,
        seen,
        low,
        high,
        prompts=prompts,
        p_value=(1 + extreme) / (1 + settings.resamples),
        test="permutation",
        detectable=detectable or None,
    )


def _sums(tallies: Sequence[Tally]) -> Floats:
    """Points and weight [P, 2]."""
    return np.array([(one.points, one.weight) for one in tallies], dtype=np.float64)


def _share(sums_X2: Floats) -> Floats:
    """Points by weight."""
    return np.asarray(sums_X2[..., 0] / sums_X2[..., 1], dtype=np.float64)


def _pulls(sums_P2: Floats, share: Floats) -> Floats:
    """How far each prompt pulls the ratio: the terms of its first-order expansion, times the number of prompts."""
    return np.asarray((sums_P2[:, 0] - share * sums_P2[:, 1]) / sums_P2[:, 1].mean(), dtype=np.float64)


def _draws(prompts: int, settings: IntervalSettings) -> Iterator[NDArray[np.int64]]:
    """How often each prompt is in a resample, [D, P] at a time."""
    rng = np.random.default_rng(settings.seed)
    for size in _chunks(settings.resamples):
        yield rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=size)


def _chunks(number: int) -> Iterator[int]:
    for start in range(0, number, _DRAWS_AT_ONCE):
        yield min(_DRAWS_AT_ONCE, number - start)


def _ends(values_D: Floats, settings: IntervalSettings) -> tuple[float, float]:
    tail = (1 - settings.confidence) / 2
    low, high = quantiles(values_D, (tail, 1 - tail))
    return low, high


# ---- files ---------------------------------------------------------------------------------------------------------


class _Question(NamedTuple):
    """A row of the prompt file."""

    id: str
    text: str
    category: str | None
    cluster: str | None
    language: str | None


def _questions(path: str) -> list[_Question]:
    found: dict[str, _Question] = {}
    for origin, row in file_rows(path):
        name = _id(row, origin)
        if name in found:
            raise DataError(f"prompt {name!r} comes a second time", where=str(origin), fix="give each its own id")
        place, key = (row, "prompt") if "prompt" in row else _only_turn(row, origin)
        labels = (label_of(row, label, origin) for label in ("category", "cluster", "language"))
        found[name] = _Question(name, text_of(place, key, origin), *labels)
    if not found:
        raise DataError("there are no prompts in this file", where=path, fix="give Arena-Hard's question.jsonl")
    return list(found.values())


def _replies(path: str) -> dict[str, BaselineReply]:
    found: dict[str, BaselineReply] = {}
    for origin, row in file_rows(path):
        name = _id(row, origin)
        if name in found:
            raise DataError(f"a second reply to prompt {name!r}", where=str(origin), fix="give one a prompt")
        model = next((label for key in ("model", "model_id") if (label := label_of(row, key, origin))), "baseline")
        place, key = _reply_place(row, origin)
        reply = BaselineReply(model, baseline_text(place, key, origin))
        one_model(reply, next(iter(found.values()), reply), origin)
        found[name] = reply
    return found


def _id(row: Mapping[str, Any], origin: Origin) -> str:
    name = next((label for key in ("uid", "question_id", "id") if (label := label_of(row, key, origin))), None)
    if name is None:
        raise DataError("a row without an id", where=str(origin), fix="write uid, question_id or id")
    return name


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
