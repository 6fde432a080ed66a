"""IFEval: does a reply follow instructions that a program can check (no commas, three paragraphs, ends with these words)?

Zhou et al. 2023, arXiv:2311.07911. The verdicts are those of ``posttrain.tasks.ifeval_rules``: on the published GPT-4 responses equal to
the original's, except for the two prompts for which the original draws a random letter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from posttrain.generate.engine import Sampling
from posttrain.references import NamesFile
from posttrain.tasks.base import Answer, Needs, Point, Score, Task
from posttrain.tasks.ifeval_rules.scoring import (
    RANDOM_KEYS,
    InstructionPrompt,
    instruction_verdict,
    load_instruction_prompts,
)
from posttrain.tasks.records import Area, Measure, Remark

_MEASURES = (
    Measure(
        "prompt_strict",
        "Prompts followed (strict)",
        about="Share of prompts of which every instruction is followed by the reply as it is.",
        headline=True,
    ),
    Measure(
        "instruction_strict",
        "Instructions followed (strict)",
        about="Share of single instructions that are followed by the reply as it is.",
    ),
    Measure(
        "prompt_loose",
        "Prompts followed (loose)",
        about="As strict, but each instruction may also be followed without the first or last line, or without asterisks.",
    ),
    Measure(
        "instruction_loose",
        "Instructions followed (loose)",
        about="Share of single instructions that are followed when the first or last line, or asterisks, may be left out.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class IfevalBenchmark:
    """IFEval: instructions a program can check, strictly and loosely, by prompt and by instruction.

    Greedy replies. A reply that is cut at ``max_tokens`` is scored as it stands, as published, and an empty one follows nothing; a
    prompt without a reply is left out and counted.
    """

    title: ClassVar[str] = "IFEval"
    area: ClassVar[Area] = "instructions"
    measures: ClassVar[tuple[Measure, ...]] = _MEASURES
    needs: ClassVar[Needs] = Needs()

    name: Literal["ifeval"]
    path: Annotated[str, NamesFile()]
    """Prompts in the form of the published input_data.jsonl: ``key``, ``prompt``, ``instruction_id_list``, ``kwargs`` a line."""
    max_prompts: Annotated[int, Ge(1)] | None = None
    """Ask only the first so many (the published order mixes the kinds of instructions); null = all."""
    max_tokens: Annotated[int, Ge(1)] = 1280
    """Longest reply in tokens; 1280 as published."""

    def tasks(self) -> tuple[Task, ...]:
        """One task a prompt. Raises DataError as ``load_instruction_prompts`` does."""
        prompts = load_instruction_prompts(Path(self.path))[: self.max_prompts]
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        return tuple(Task(str(p.key), (p.text,), sampling, language="en", expected=p) for p in prompts)

    def score(self, task: Task, reply: str) -> Score:
        """The verdicts of a reply; values of instructions go with the group of their type (``keywords``, ...)."""
        prompt: InstructionPrompt = task.expected
        verdict = instruction_verdict(prompt, reply)
        points = []
        for rule, followed in (("strict", verdict.strict), ("loose", verdict.loose)):
            points.append(Point(f"prompt_{rule}", float(all(followed))))
            points += [
                Point(f"instruction_{rule}", float(passed), kind.partition(":")[0])
                for kind, passed in zip(verdict.types, followed, strict=True)
            ]
        return Score(tuple(points), _remark(verdict.types, verdict.strict, verdict.loose))

    def notes(self, answers: Mapping[str, Sequence[Answer]]) -> list[str]:
        """How much of the published set was asked, and of its two random prompts."""
        from posttrain.data.decontaminate.benchmarks import size_note  # loads polars, which reading a recipe does not

        tasks = {answer.task.id for own in answers.values() for answer in own}
        size = size_note("ifeval", len(tasks))
        random = sorted(key for key in RANDOM_KEYS if str(key) in tasks)
        letters = (
            f"Prompts {' and '.join(map(str, random))} ask for a punctuation mark; the original program checks a random letter there, so published "
            "runs differ from each other by these prompts. Here the mark itself is counted."
        )
        return [*([size] if size else []), *([letters] if random else [])]


def _remark(types: Sequence[str], strict: Sequence[bool], loose: Sequence[bool]) -> Remark:
    failed = [kind for kind, passed in zip(types, loose, strict=True) if not passed]
    only_loosely = [kind for kind, s, ease in zip(types, strict, loose, strict=True) if ease and not s]
    parts = (("not followed", failed), ("followed loosely only", only_loosely))
    detail = "; ".join(f"{words}: {', '.join(kinds)}" for words, kinds in parts if kinds)
    if all(strict):
        return Remark("passed", True)
    return Remark("passed loosely", None, detail) if all(loose) else Remark("failed", False, detail)
