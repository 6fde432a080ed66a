"""What annotators have said: who is ahead, how far they agree beyond chance, and whether the side decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import median

from posttrain.board.label_sets import Item
from posttrain.board.label_sources import compared
from posttrain.board.labelling import Answers, Given, verdict
from posttrain.judge.agreement import cohen_kappa, krippendorff_alpha, raw_agreement
from posttrain.report.values import Block, Facts, Number, Table
from posttrain.stats.intervals import Interval, IntervalSettings

FEW = 30
"""Items labelled by several below which an interval says little."""
Say = Callable[..., str]
"""The words of the board: key and values -> text."""


def results(
    items: Mapping[str, Item], answers: Answers, say: Say, settings: IntervalSettings = IntervalSettings()
) -> list[Block]:
    """The blocks of a page; none while nothing was answered."""
    if not answers.of:
        return []
    found: list[Block] = [_outcome(items, answers, say, settings), _annotators(answers, say, settings)]
    if len(answers.of) > 1:
        found.append(_agreement(answers, say, settings))
    return found


def _outcome(items: Mapping[str, Item], answers: Answers, say: Say, settings: IntervalSettings) -> Block:
    """How often each of the two was preferred, over items; ties half."""
    verdicts = [verdict(given).choice for item, given in answers.by_item().items() if item in items]
    wins, losses, ties = (verdicts.count(choice) for choice in ("a", "b", "tie"))
    names = compared(items.values()) or ("a", "b")
    share = settings.share(wins + ties / 2, decided) if (decided := wins + losses + ties) else None
    return Facts(
        (
            (say("label.preferred", name=names[0]), Number(wins, "count")),
            (say("label.preferred", name=names[1]), Number(losses, "count")),
            (say("label.ties"), Number(ties, "count")),
            (say("label.split"), Number(verdicts.count("split"), "count")),
            (say("label.win_rate", name=names[0]), _number(share)),
        )
    )


def _annotators(answers: Answers, say: Say, settings: IntervalSettings) -> Block:
    columns = tuple(say(f"label.{key}") for key in ("annotator", "answers", "ties", "skips", "left_share", "seconds"))
    rows = []
    for who, given in sorted(answers.of.items()):
        counts = {answer: sum(one.answer == answer for one in given) for answer in ("left", "right", "tie", "skip")}
        sided = counts["left"] + counts["right"]
        rows.append(
            (
                who,
                Number(len(given), "count"),
                Number(counts["tie"], "count"),
                Number(counts["skip"], "count"),
                _number(settings.share(counts["left"], sided)),
                Number(median(one.seconds for one in given), "seconds"),
            )
        )
    return Table(say("label.annotators"), columns, tuple(rows))


def _agreement(answers: Answers, say: Say, settings: IntervalSettings) -> Block:
    """Every two annotators, then all together, over the items that several have decided."""
    said = {who: _decided(given) for who, given in sorted(answers.of.items())}
    rows = []
    for one, other in combinations(said, 2):
        both = [item for item in said[one] if item in said[other]]
        first, second = ([said[who][item] for item in both] for who in (one, other))
        agreement = raw_agreement(first, second, settings=settings) if both else None
        kappa = cohen_kappa(first, second, settings=settings) if both else None
        rows.append((f"{one}, {other}", Number(len(both), "count"), _number(agreement), _number(kappa, "number")))
    ratings = [
        [given.get(item) for given in said.values()] for item in dict.fromkeys(i for g in said.values() for i in g)
    ]
    shared = [rating for rating in ratings if sum(one is not None for one in rating) > 1]
    alpha = krippendorff_alpha(shared, settings) if shared else None
    everyone = (
        say("label.everyone"),
        Number(len(shared), "count", note=_few(len(shared), say)),
        None,
        _number(alpha, "number"),
    )
    columns = tuple(say(f"label.{key}") for key in ("who", "both", "agreement", "kappa"))
    return Table(say("label.agreement_title"), columns, (*rows, everyone))


def _few(items: int, say: Say) -> str:
    return say("label.few") if items < FEW else ""


def _decided(given: Sequence[Given]) -> dict[str, str]:
    return {one.item: one.choice for one in given if one.choice != "skip"}


def _number(found: Interval | None, unit: str = "share") -> Number | None:
    """An estimate with its interval; None where chance explains everything, or there is nothing."""
    if found is None or math.isnan(found.estimate):
        return None
    low, high = (None if math.isnan(end) else end for end in (found.low, found.high))
    return Number(found.estimate, unit, low, high)  # type: ignore[arg-type]  # one of two
