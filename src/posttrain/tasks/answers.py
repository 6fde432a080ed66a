"""Tasks -> one engine -> answers, turn by turn. A call that fails ends its conversation, and stays in the answer as its failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from posttrain.generate.engine import Completion, Engine, Failure, Progress, Request, Usage, complete
from posttrain.tasks.base import Answer, Task
from posttrain.types import Message


def answer_all(engine: Engine, tasks: Sequence[Task], seed: int, progress: Progress | None = None) -> list[Answer]:
    """Every sample of every task, in this order. All conversations take their first turn together, then their second, ...

    ``seed`` is that of draws above temperature 0 whose task gives none. Thinking is not shown to the model again.
    """
    talks = [(task, sample) for task in tasks for sample in range(task.samples)]
    replies: list[list[Completion]] = [[] for _ in talks]
    failures: dict[int, Failure] = {}
    calls, before = sum(len(task.turns) for task, _ in talks), 0
    for turn in range(max((len(task.turns) for task in tasks), default=0)):
        places = [n for n, (task, _) in enumerate(talks) if turn < len(task.turns) and n not in failures]

        def tell(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, calls)

        outcomes = complete(engine, [_request(*talks[n], replies[n], seed) for n in places], tell)
        before += len(places)
        for n, outcome in zip(places, outcomes, strict=True):
            if isinstance(outcome, Failure):
                failures[n] = outcome
            else:
                replies[n].append(outcome)
    return [
        Answer(
            task=task,
            sample=sample,
            replies=tuple(reply.text for reply in own),
            finishes=tuple(reply.finish for reply in own),
            usages=tuple(reply.usage for reply in own),
            failure=failures.get(n),
            cached=any(reply.cached for reply in own),
        )
        for n, ((task, sample), own) in enumerate(zip(talks, replies, strict=True))
    ]


def _request(task: Task, sample: int, replies: Sequence[Completion], seed: int) -> Request:
    """The next turn of a conversation."""
    messages = [Message("system", task.system)] if task.system else []
    for turn, reply in zip(task.turns, replies, strict=False):
        messages += [Message("user", turn), Message("assistant", reply.text)]
    messages.append(Message("user", task.turns[len(replies)]))
    sampling = task.sampling
    if sampling.temperature > 0 and sampling.seed is None:
        sampling = replace(sampling, seed=seed)
    return Request(tuple(messages), sampling, sample=sample)


# ---- kept between two lives of a process ---------------------------------------------------------------------------


def answer_record(answer: Answer) -> dict[str, Any]:
    """An answer as JSON; its task is known by id."""
    failure = answer.failure
    return {
        "task": answer.task.id,
        "sample": answer.sample,
        "replies": list(answer.replies),
        "finishes": list(answer.finishes),
        "usages": [None if usage is None else list(usage) for usage in answer.usages],
        "failure": None if failure is None else [failure.reason, failure.detail, failure.attempts],
        "cached": answer.cached,
    }


def answer_of(record: Mapping[str, Any], tasks: Mapping[str, Task]) -> Answer:
    """The answer that ``answer_record`` wrote."""
    return Answer(
        task=tasks[record["task"]],
        sample=record["sample"],
        replies=tuple(record["replies"]),
        finishes=tuple(record["finishes"]),
        usages=tuple(None if usage is None else Usage(*usage) for usage in record["usages"]),
        failure=None if record["failure"] is None else Failure(*record["failure"]),
        cached=record["cached"],
    )
