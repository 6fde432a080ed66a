"""The prompts of an online stage: from rows or from a benchmark, encoded as inference feeds them, and which of them a step takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.artifacts import Ledger
from posttrain.encode.packing import shuffled_order
from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import encode_prompt
from posttrain.errors import TemplateError
from posttrain.synth.preferences import asked_of
from posttrain.tasks.base import Task
from posttrain.types import Message, Origin, Row, content_id


class Question(NamedTuple):
    """A prompt that is to be encoded."""

    row_id: str
    messages: tuple[Message, ...]
    origin: Origin
    meta: Mapping[str, Any] = {}
    task: Task | None = None


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt, ready to be answered."""

    row_id: str
    messages: tuple[Message, ...]
    ids_T: NDArray[np.int32]
    meta: Mapping[str, Any] = field(default_factory=dict)
    task: Task | None = None


def questions_of_rows(rows: Iterable[Row], suffix: str) -> list[Question]:
    """What the rows ask, each prompt once, with the suffix on a line of its own."""
    found: dict[str, Question] = {}
    for row in rows:
        turns = asked_of(row)
        if suffix and turns:
            turns = (*turns[:-1], Message("user", f"{turns[-1].content.rstrip()}\n{suffix}"))
        name = content_id(turns)
        if turns:
            found.setdefault(name, Question(name, turns, row.origin, row.meta))
    return list(found.values())


def questions_of_tasks(tasks: Iterable[Task], where: str, suffix: str) -> list[Question]:
    """The tasks of one turn of a benchmark."""
    found = []
    for place, task in enumerate(tasks, 1):
        if len(task.turns) == 1:
            asked = f"{task.turns[0].rstrip()}\n{suffix}" if suffix else task.turns[0]
            system = (Message("system", task.system),) if task.system else ()
            found.append(Question(task.id, (*system, Message("user", asked)), Origin(where, place), {}, task))
    return found


def parted(questions: Sequence[Question], held_out: float) -> tuple[list[Question], list[Question]]:
    """Questions to learn on, and a share of them, drawn always alike, to measure on; each in their order."""
    kept = set(shuffled_order(len(questions), 0, 0)[: round(held_out * len(questions))].tolist())
    places = range(len(questions))
    return [questions[p] for p in places if p not in kept], [questions[p] for p in places if p in kept]


def encode_questions(
    questions: Sequence[Question], template: ChatTemplate, max_tokens: int, room: int | None, ledger: Ledger
) -> list[Prompt]:
    """The prompts that can be answered; drops go to step ``encode`` of the ledger.

    room: tokens of the model's context, of which at least one must be left for the reply.
    """
    step = ledger.step("encode", rows_in=len(questions))
    found = []
    for one in questions:
        try:
            ids_T = encode_prompt(one.messages, template)
        except TemplateError as error:
            ledger.drop(step, one.origin, "template", error.problem)
            continue
        if len(ids_T) > max_tokens:
            ledger.drop(step, one.origin, "too_long", f"{len(ids_T)} tokens, max_prompt_tokens is {max_tokens}")
        elif room is not None and len(ids_T) >= room:
            ledger.drop(step, one.origin, "too_long", f"{len(ids_T)} tokens, the model's context has {room}")
        else:
            found.append(Prompt(one.row_id, one.messages, ids_T, one.meta, one.task))
    step.rows_out = len(found)
    return found


def step_prompts(count: int, step: int, a_step: int, seed: int) -> list[int]:
    """Which of ``count`` prompts step ``step`` (0-based) answers: a function of seed and step only.

    Shuffles of all prompts are laid end to end. Where a step would meet a prompt twice, at the seam, it takes it once.
    """
    places = [divmod(place, count) for place in range(step * a_step, (step + 1) * a_step)]
    orders = {epoch: shuffled_order(count, seed, epoch) for epoch in {epoch for epoch, _ in places}}
    return list(dict.fromkeys(int(orders[epoch][place]) for epoch, place in places))
