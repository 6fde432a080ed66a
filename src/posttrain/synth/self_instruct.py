"""Self-Instruct: a pool of tasks that grows out of seeds (Wang et al. 2022, arXiv:2212.10560).

8 tasks of the pool (6 of people, 2 made) -> 8 new ones -> rules, ROUGE-L against the whole pool
-> does it ask for a label? -> instances, output first for labels, input first for others -> rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from posttrain.generate.engine import Sampling
from posttrain.references import NamesFile
from posttrain.synth.base import Cost, Dropped, Made, Pipeline, Screen, Situation, Thread, ask, numbered, whole
from posttrain.synth.prompts import Prompts
from posttrain.synth.reading import Instance, check_words, instance_fault, instances, instruction_fault, task_row
from posttrain.synth.seeds import Seed, read_seeds


@dataclass(frozen=True, kw_only=True)
class SelfInstruct(Pipeline):
    """New tasks out of seeds, each with one or more inputs and outputs (Self-Instruct)."""

    name: Literal["self_instruct"]
    seeds_file: Annotated[str, NamesFile(builtin="synth/seeds.jsonl")] = "builtin"
    """Seed tasks, one JSON object a line (``instruction``, ``instances``, ``is_classification``), or ``builtin``: posttrain's own of the stage's language."""
    human_shots: Annotated[int, Ge(1)] = 6
    """Seeds shown in a request."""
    made_shots: Annotated[int, Ge(0)] = 2
    """Tasks made before that are shown in a request, as far as there are any."""
    tasks_a_request: Annotated[int, Ge(1)] = 8
    """New tasks asked for at once."""
    outputs: Literal["written", "answered"] = "written"
    """``written``: the model writes input and output after examples, as in the paper. ``answered``: it is asked the task itself, which small chat models do better."""
    temperature: Annotated[float, Ge(0)] = 0.7
    """Of new tasks; outputs are greedy."""
    top_p: Annotated[float, Gt(0), Le(1)] = 0.5
    """Of new tasks."""
    max_tokens: Annotated[int, Ge(1)] = 1024
    """Longest list of new tasks."""
    output_tokens: Annotated[int, Ge(1)] = 350
    """Longest output."""
    min_words: Annotated[int, Ge(1)] = 4
    """Shortest task in words; a CJK character counts as one."""
    max_words: Annotated[int, Ge(1)] = 150
    """Longest task in words."""

    def __post_init__(self) -> None:
        check_words(self.min_words, self.max_words)

    def seeds(self, language: str) -> Sequence[tuple[str, str]]:
        """The seed tasks."""
        return [(seed.id, seed.instruction) for seed in self._seeds(language)]

    @property
    def rows_a_thread(self) -> float:
        """Every task of the list."""
        return float(self.tasks_a_request)

    def threads(self, situation: Situation) -> list[Thread]:
        """Requests for new tasks, each with other examples."""
        return [self._propose(situation) for _ in range(situation.size)]

    def costs(self, prompts: Prompts, language: str) -> Sequence[Cost]:
        """A list of tasks, then for each task whether it asks for a label, and its instances."""
        shots = "\n".join(seed.instruction for seed in self._seeds(language)[: self.human_shots + self.made_shots])
        propose = Cost(
            "writer",
            "new tasks",
            1 / self.tasks_a_request,
            prompts.texts["self_instruct.propose"] + shots,
            self.max_tokens,
        )
        if self.outputs == "answered":
            return propose, Cost("writer", "answers", 1, "", self.output_tokens, 30)
        classify, instance = (prompts.texts[f"self_instruct.{name}"] for name in ("classify", "input_first"))
        return (
            propose,
            Cost("writer", "label or not", 1, classify, 8, 30),
            Cost("writer", "input and output", 1, instance, self.output_tokens, 30),
        )

    def _seeds(self, language: str) -> Sequence[Seed]:
        return read_seeds(self.seeds_file, language)

    def _propose(self, situation: Situation) -> Thread:
        chance, seeds = situation.random, self._seeds(situation.language)
        made = list(situation.pool.made())
        shots = [(seed.id, seed.instruction) for seed in chance.sample(seeds, min(self.human_shots, len(seeds)))]
        shots += [(one.id, one.text) for one in chance.sample(made, min(self.made_shots, len(made)))]
        chance.shuffle(shots)
        return self._tasks(situation, shots)

    def _tasks(self, situation: Situation, shots: Sequence[tuple[str, str]]) -> Thread:
        first = len(shots) + 1
        text = situation.prompts.fill(
            "self_instruct.propose",
            count=str(self.tasks_a_request),
            first=str(first),
            last=str(len(shots) + self.tasks_a_request),
            tasks="\n".join(f"{number}. {' '.join(shot.split())}" for number, (_, shot) in enumerate(shots, 1)),
        )
        sampling = Sampling(self.temperature, self.top_p, self.max_tokens)
        (answer,) = yield (ask(text, sampling, prompt="self_instruct.propose"),)
        found = numbered(answer.text)
        results: list[Made | Dropped | Thread] = []
        if answer.finish == "length" and found:
            results.append(Dropped("cut", "the list reached the limit of tokens", found.pop()))
        words = situation.prompts.words
        parents = tuple(shot for shot, _ in shots)
        for task in found:
            fault = instruction_fault(
                task,
                least=self.min_words,
                most=self.max_words,
                blacklist=words["self_instruct.blacklist"],
                openings=words["self_instruct.openings"],
            )
            results.append(fault or self._one(situation, task, parents))
        return results or [Dropped("unparsable", "no numbered task in the answer", answer.text)]

    def _one(self, situation: Situation, task: str, parents: tuple[str, ...]) -> Thread:
        prompts = situation.prompts
        similar = yield Screen(task)
        if self.outputs == "answered":
            (answer,) = yield (ask(task, Sampling(max_tokens=self.output_tokens)),)
            fault = whole(answer) or instance_fault(task, Instance("", answer.text.strip()))
            return [fault or task_row(task, Instance("", answer.text.strip()), parents, similar)]
        (verdict,) = yield (
            ask(
                prompts.fill("self_instruct.classify", task=task),
                Sampling(max_tokens=8),
                prompt="self_instruct.classify",
            ),
        )
        labels = verdict.text.strip().casefold().startswith(prompts.words["self_instruct.positive"])
        name = f"self_instruct.{'output' if labels else 'input'}_first"
        (answer,) = yield (ask(prompts.fill(name, task=task), Sampling(max_tokens=self.output_tokens), prompt=name),)
        if answer.finish != "stop":
            return [whole(answer) or Dropped("not_finished", answer.finish, answer.text)]
        found = instances(answer.text, output_first=labels)
        if not found:
            return [Dropped("unparsable", "no input and output in the answer", f"{task}\n{answer.text}")]
        results: list[Made | Dropped | Thread] = []
        outputs: dict[str, set[str]] = {}
        for one in found:
            outputs.setdefault(one.input, set()).add(one.output)
        for one in dict.fromkeys(found):
            fault = instance_fault(task, one)
            if fault is None and len(outputs[one.input]) > 1:
                fault = Dropped("contradiction", "one input has two outputs", f"{task}\n{one.input}\n{one.output}")
            results.append(fault or task_row(task, one, parents, similar, {"is_classification": labels}))
        return results
