"""Alpaca's way: many tasks in one request, each with its input and output (Taori et al. 2023, stanford_alpaca).

A strong teacher writes whole tasks at once; nothing is told apart beforehand, and every answer costs one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from posttrain.generate.engine import Sampling
from posttrain.references import NamesFile
from posttrain.synth.base import Cost, Dropped, Made, Pipeline, Screen, Situation, Thread, ask
from posttrain.synth.prompts import Prompts
from posttrain.synth.reading import (
    Instance,
    WrittenTask,
    check_words,
    instance_fault,
    instruction_fault,
    task_row,
    written_tasks,
)
from posttrain.synth.seeds import Seed, read_seeds

_LABELS = {
    "en": ("Instruction: ", "Input: ", "Output: "),
    "zh": ("\u6307\u4ee4\uff1a", "\u8f93\u5165\uff1a", "\u8f93\u51fa\uff1a"),
}


@dataclass(frozen=True, kw_only=True)
class Alpaca(Pipeline):
    """Whole tasks, many a request, from a strong teacher (Alpaca)."""

    name: Literal["alpaca"]
    seeds_file: Annotated[str, NamesFile(builtin="synth/seeds.jsonl")] = "builtin"
    """Seed tasks as of self_instruct, or ``builtin``."""
    shots: Annotated[int, Ge(1)] = 3
    """Seeds shown whole in a request."""
    tasks_a_request: Annotated[int, Ge(1)] = 20
    """Tasks in an answer, those shown included."""
    temperature: Annotated[float, Ge(0)] = 1.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    max_tokens: Annotated[int, Ge(1)] = 3072
    """Longest answer."""
    min_words: Annotated[int, Ge(1)] = 4
    """Shortest instruction in words; a CJK character counts as one."""
    max_words: Annotated[int, Ge(1)] = 150
    """Longest instruction in words."""

    def __post_init__(self) -> None:
        if self.tasks_a_request <= self.shots:
            raise ValueError(f"tasks_a_request {self.tasks_a_request} leaves no new task: {self.shots} are shown")
        check_words(self.min_words, self.max_words)

    def seeds(self, language: str) -> Sequence[tuple[str, str]]:
        """The seed tasks."""
        return [(seed.id, seed.instruction) for seed in read_seeds(self.seeds_file, language)]

    @property
    def rows_a_thread(self) -> float:
        """Every task of the answer that was not shown."""
        return float(self.tasks_a_request - self.shots)

    def threads(self, situation: Situation) -> list[Thread]:
        """Requests, each with other examples."""
        seeds = read_seeds(self.seeds_file, situation.language)
        return [
            self._request(situation, situation.random.sample(seeds, min(self.shots, len(seeds))))
            for _ in range(situation.size)
        ]

    def costs(self, prompts: Prompts, language: str) -> Sequence[Cost]:
        """Whole tasks, many a request."""
        shots = "".join(
            f"{one.instruction}{one.input}{one.output}" for one in read_seeds(self.seeds_file, language)[: self.shots]
        )
        return (
            Cost("writer", "tasks", 1 / self.rows_a_thread, prompts.texts["alpaca.tasks"] + shots, self.max_tokens),
        )

    def _request(self, situation: Situation, shots: Sequence[Seed]) -> Thread:
        instruction, given, output = _LABELS[situation.language]
        examples = "\n###\n".join(
            f"{number}. {instruction}{seed.instruction}\n{number}. {given}{seed.input or '<noinput>'}\n{number}. {output}{seed.output}"
            for number, seed in enumerate(shots, 1)
        )
        text = situation.prompts.fill(
            "alpaca.tasks", count=str(self.tasks_a_request), examples=examples, first=str(len(shots) + 1)
        )
        sampling = Sampling(self.temperature, self.top_p, self.max_tokens)
        (answer,) = yield (ask(text, sampling, prompt="alpaca.tasks"),)
        # the request ends with the first label, and a model may go on right behind it
        found = written_tasks(answer.text)
        if not answer.text.lstrip().startswith(("{", "[", "#")) and (not found or not _begins(answer.text, found[0])):
            found = written_tasks(f"{instruction}{answer.text}")
        results: list[Made | Dropped | Thread] = []
        if answer.finish == "length" and found:
            last = found.pop()
            results.append(Dropped("cut", "the list reached the limit of tokens", last.instruction))
        words = situation.prompts.words
        for task in found:
            fault = instruction_fault(
                task.instruction,
                least=self.min_words,
                most=self.max_words,
                blacklist=words["self_instruct.blacklist"],
                openings=words["self_instruct.openings"],
            ) or instance_fault(task.instruction, Instance(task.input, task.output))
            results.append(fault or _one(task, tuple(seed.id for seed in shots)))
        return results or [Dropped("unparsable", "no task in the answer", answer.text)]


def _begins(text: str, first: WrittenTask) -> bool:
    """Whether nothing but a label stands before the first task."""
    return len(text[: text.find(first.instruction)].strip()) < len("20. Instruction: **")


def _one(task: WrittenTask, parents: tuple[str, ...]) -> Thread:
    similar = yield Screen(task.instruction)
    return [task_row(task.instruction, Instance(task.input, task.output), parents, similar)]
