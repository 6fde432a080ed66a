"""What one reply is worth, as one number that more of is better: for choosing among replies and for learning from one's own."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from posttrain.data.text import tokens
from posttrain.tasks.base import ScoresReplies, Task
from posttrain.tasks.checks import Check, passes


def share_of_checks(checks: Sequence[Check], reply: str) -> float:
    """Share of the checks that a reply passes; an empty reply passes none.

    >>> share_of_checks((Check(kind="max_words", expected=3), Check(kind="contains_any", expected=("no",))), "Yes it is")
    0.5
    """
    return fmean(passes(check, reply) for check in checks)


def nearness(words: int, reply: str) -> float:
    """Minus the distance of a reply's length from so many words. A CJK character is a word.

    >>> nearness(3, "Yes it is"), nearness(0, "Yes it is")
    (0.0, -3.0)
    """
    return -float(abs(len(tokens(reply)) - words))


def task_value(benchmark: ScoresReplies, measure: str | None, task: Task, reply: str) -> float | None:
    """What a benchmark finds one reply worth, by one of its measures or the first; None where it can't say."""
    values = getattr(benchmark.score(task, reply), "values", None)
    if values is None:
        return None
    value: float | None = values.get(measure) if measure is not None else next(iter(values.values()))
    return value
