r"""GSM8K: grade school word problems, right where the number a reply ends up with is the answer.

Cobbe et al. 2021, arXiv:2110.14168; rows from github.com/openai/grade-school-math. The number is read by
``posttrain.tasks.checks.stated_number``: behind the last ``Answer:``, ``answer is``, ``\boxed{`` or ``####`` that a number follows, otherwise
the last number of the reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from annotated_types import Ge

from posttrain.errors import DataError
from posttrain.generate.engine import Sampling
from posttrain.references import NamesFile
from posttrain.tasks.base import Answer, Needs, Point, Score, Task
from posttrain.tasks.checks import number_equals, stated_number
from posttrain.tasks.numbers import numbers_in
from posttrain.tasks.records import Area, Measure, Remark
from posttrain.tasks.rows import file_rows, row_ids, text_of
from posttrain.types import Origin

_ASK = (
    "{question}\n\nWork this out step by step and write the steps down. "
    'Then end with one line: "Answer:" and the final number, without a unit.'
)
_WITH_EXAMPLES = "Here are problems with their solutions.\n\n{examples}\n\nNow solve this one.\n\n{ask}"
_EXAMPLE = "Problem: {question}\n{steps}\nAnswer: {number}"
_CALCULATOR = re.compile(r"<<[^<>]*>>")
"""Marks for a calculator inside the solutions (``<<3*4=12>>``): no model is asked to write them."""

_MEASURES = (
    Measure(
        "accuracy",
        "Right answers",
        about="Share of problems where the number the reply ends up with is the answer.",
        headline=True,
    ),
    Measure(
        "answered",
        "Replies that state a number",
        about="Share of replies with any number in them: without one there is nothing to be right.",
    ),
)


class _Problem(NamedTuple):
    """A problem and its worked solution."""

    question: str
    steps: str
    number: str
    """The answer as the file writes it."""


@dataclass(frozen=True, kw_only=True)
class Gsm8kBenchmark:
    """GSM8K: word problems with one number as the answer, without examples or after some.

    Greedy replies to our own wording, so numbers are comparable between models of one stage, not with leaderboards. A reply cut
    at ``max_tokens`` is scored as it stands: the last number in it counts. A problem without a reply is left out and counted.
    """

    title: ClassVar[str] = "GSM8K"
    area: ClassVar[Area] = "reasoning"
    measures: ClassVar[tuple[Measure, ...]] = _MEASURES
    needs: ClassVar[Needs] = Needs()

    name: Literal["gsm8k"]
    path: Annotated[str, NamesFile()]
    """Rows with ``question`` and ``answer``, whose last line is ``####`` and the number: GSM8K's test.jsonl."""
    shots: Annotated[int, Ge(0)] = 0
    """Solved problems shown before each problem, in the same message; they are the first of ``examples``."""
    examples: Annotated[str, NamesFile()] | None = None
    """Rows of the same form to take ``shots`` from: GSM8K's train.jsonl."""
    max_prompts: Annotated[int, Ge(1)] | None = None
    """Ask only the first so many; null = all."""
    max_tokens: Annotated[int, Ge(1)] = 512
    """Longest reply in tokens."""

    def __post_init__(self) -> None:
        if (self.shots > 0) != (self.examples is not None):
            raise ValueError("shots and examples go together: give both (shots: 4, examples: train.jsonl) or neither")

    def tasks(self) -> tuple[Task, ...]:
        """One task a problem; its id is the row's own or its number (``#1``).

        Raises:
            DataError: a file that can't be read, a row that is no problem, too few examples, or one that is asked as well.

        """
        rows = list(file_rows(self.path))[: self.max_prompts]
        problems = [_problem(row, origin) for origin, row in rows]
        if not problems:
            raise DataError("there are no problems in this file", where=self.path, fix="give GSM8K's test.jsonl")
        examples = self._examples({problem.question for problem in problems})
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        return tuple(
            Task(
                name,
                (_prompt(problem, examples),),
                sampling,
                language="en",
                expected=numbers_in(problem.number)[0].value,
            )
            for name, problem in zip(row_ids(rows), problems, strict=True)
        )

    def _examples(self, problems: set[str]) -> list[_Problem]:
        if self.examples is None:
            return []
        rows = list(file_rows(self.examples))[: self.shots]
        if len(rows) < self.shots:
            raise DataError(
                f"{len(rows)} examples for {self.shots} shots", where=self.examples, fix="give more, or lower shots"
            )
        found = [_problem(row, origin) for origin, row in rows]
        for problem, (origin, _) in zip(found, rows, strict=True):
            if problem.question in problems:
                raise DataError(
                    "this example is one of the problems asked: its answer would be given away",
                    where=str(origin),
                    fix="take examples from another file, such as GSM8K's train.jsonl",
                )
        return found

    def score(self, task: Task, reply: str) -> Score:
        """Compare numbers."""
        number, right = stated_number(reply), number_equals(reply, task.expected)
        points = (Point("accuracy", float(right)), Point("answered", float(number is not None)))
        read = f"expected {task.expected:.15g}" + ("" if number is None else f", read {number:.15g}")
        return Score(points, Remark("no number" if number is None else "right" if right else "wrong", right, read))

    def notes(self, answers: Mapping[str, Sequence[Answer]]) -> list[str]:
        """What the numbers can be put beside, and how many replies were cut."""
        from posttrain.data.decontaminate.benchmarks import size_note  # loads polars, which reading a recipe does not

        size = size_note("gsm8k", len({answer.task.id for own in answers.values() for answer in own}))
        shots = f"{self.shots} solved examples" if self.shots else "No examples"
        notes = [f"{shots} and posttrain's own wording: not to be put beside numbers from other prompts."]
        notes += [size] if size else []
        for model, own in answers.items():
            complete = [answer for answer in own if answer.complete]
            right = [answer for answer in complete if number_equals(answer.replies[0], answer.task.expected)]
            cut, right_and_cut = (sum("length" in answer.finishes for answer in some) for some in (complete, right))
            if cut:  # a cut reply ends with whatever number it had come to: it is right by chance more often
                notes.append(
                    f"{model}: {cut} of {len(complete)} replies were cut at the limit of tokens and are read as they stand; {right_and_cut} of "
                    f"its {len(right)} right answers are among them, and may be right by chance."
                )
        return notes


def _problem(row: Mapping[str, Any], origin: Origin) -> _Problem:
    question, answer = text_of(row, "question", origin), text_of(row, "answer", origin)
    steps, mark, last = answer.rpartition("####")
    if not mark or len(numbers_in(last)) != 1:
        raise DataError(
            f"the answer must end with '#### ' and a number, not {answer[-40:]!r}",
            where=str(origin),
            fix="write it as in GSM8K: the steps, then a line such as '#### 1,250'",
        )
    return _Problem(question, _CALCULATOR.sub("", steps).strip(), last.strip())


def _prompt(problem: _Problem, examples: Sequence[_Problem]) -> str:
    ask = _ASK.format(question=problem.question)
    if not examples:
        return ask
    written = [_EXAMPLE.format(question=e.question, steps=e.steps, number=e.number) for e in examples]
    return _WITH_EXAMPLES.format(examples="\n\n".join(written), ask=ask)
