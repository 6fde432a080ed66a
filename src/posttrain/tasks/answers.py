"""Tasks -> one engine -> answers, turn by turn. A call that fails ends its conversation, and stays in the answer as its failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.generate.engine import Completion, Engine, Failure, FinishReason, Progress, Request, Usage, complete
from posttrain.tasks.base import Answer, Task
from posttrain.types import Message


def answer_all(engine: Engine, tasks: Sequence[Task], seed: int, progress: Progress | None = None) -> list[Answer]:
    """Every sample of every task, in this order. All conversations take their first turn together, then their second, ...

    ``seed`` is that of draws above temperature 0 whose task gives none. Thinking is not shown to the model again.
    """
    talks = [_Talk(task, sample) for task in tasks for sample in range(task.samples)]
    calls, before = sum(len(talk.task.turns) for talk in talks), 0
    for turn in range(max((len(task.turns) for task in tasks), default=0)):
        open_talks = [talk for talk in talks if turn < len(talk.task.turns) and talk.failure is None]

        def tell(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, calls)

        outcomes = complete(engine, [talk.request(turn, seed) for talk in open_talks], tell)
        before += len(open_talks)
        for talk, outcome in zip(open_talks, outcomes, strict=True):
            if isinstance(outcome, Failure):
                talk.failure = outcome
            else:
                talk.replies.append(outcome)
    return [talk.answer() for talk in talks]


@dataclass
class _Talk:
    """One conversation while it is going on."""

    task: Task
    sample: int
    replies: list[Completion] = field(default_factory=list)
    failure: Failure | None = None

    def request(self, turn: int, seed: int) -> Request:
        task = self.task
        messages = [Message("system", task.system)] if task.system else []
        for number in range(turn):
            messages.append(Message("user", task.turns[number]))
            messages.append(Message("assistant", self.replies[number].text))
        messages.append(Message("user", task.turns[turn]))
        sampling = task.sampling
        if sampling.temperature > 0 and sampling.seed is None:
            sampling = replace(sampling, seed=seed)
        return Request(tuple(messages), sampling, sample=self.sample)

    def answer(self) -> Answer:
        return Answer(
            task=self.task,
            sample=self.sample,
            replies=tuple(reply.text for reply in self.replies),
            finishes=tuple(reply.finish for reply in self.replies),
            usages=tuple(reply.usage for reply in self.replies),
            failure=self.failure,
            cached=any(reply.cached for reply in self.replies),
        )


# ---- kept between two lives of a process ---------------------------------------------------------------------------


def answer_record(answer: Answer) -> dict[str, Any]:
    """An answer as JSON; its task is known by id."""
    return {
        "task": answer.task.id,
        "sample": answer.sample,
        "replies": list(answer.replies),
        "finishes": list(answer.finishes),
        "usages": [None if usage is None else list(usage) for usage in answer.usages],
        "failure": None
        if answer.failure is None
        else [answer.failure.reason, answer.failure.detail, answer.failure.attempts],
        "cached": answer.cached,
    }


def answer_of(record: Mapping[str, Any], tasks: Mapping[str, Task]) -> Answer:
    """The answer that ``answer_record`` wrote."""
    finishes: tuple[FinishReason, ...] = tuple(record["finishes"])
    return Answer(
        task=tasks[record["task"]],
        sample=record["sample"],
        replies=tuple(record["replies"]),
        finishes=finishes,
        usages=tuple(None if usage is None else Usage(*usage) for usage in record["usages"]),
        failure=None if record["failure"] is None else Failure(*record["failure"]),
        cached=record["cached"],
    )
