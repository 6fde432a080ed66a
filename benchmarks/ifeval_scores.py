"""IFEval's four numbers with intervals, from files of published replies.

A prompt without a reply is missing, not wrong: it is counted and left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.errors import DataError
from posttrain.stats.intervals import Interval, IntervalSettings, mean, wilson
from posttrain.tasks.ifeval_rules.instructions import INSTRUCTIONS
from posttrain.tasks.ifeval_rules.scoring import (
    InstructionPrompt,
    InstructionVerdict,
    answer_of,
    instruction_verdict,
)
from posttrain.tasks.rows import file_rows


@dataclass(frozen=True)
class InstructionVerdicts:
    """Verdicts of all prompts that have a reply, and what has none."""

    verdicts: tuple[InstructionVerdict, ...]
    missing: tuple[int, ...]
    """Keys of prompts without a reply."""
    unknown: tuple[int | str, ...]
    """Replies to prompts that are not asked, by what they were given under."""
    empty: tuple[int, ...]
    """Keys of replies that hold no text beside thinking; they follow nothing."""


class TypeScore(NamedTuple):
    """How often one type of instruction was followed."""

    type: str
    instructions: int
    strict: Interval
    loose: Interval


@dataclass(frozen=True)
class InstructionScores:
    """The four numbers of IFEval with their intervals.

    By prompt (all its instructions are followed): Wilson's interval. By instruction: percentile bootstrap over prompts, since the
    instructions of one prompt share a reply; where every instruction is followed (or none) it has no width. By type: Wilson's interval.
    """

    asked: int
    answered: int
    empty: int
    prompt_strict: Interval
    instruction_strict: Interval
    prompt_loose: Interval
    instruction_loose: Interval
    by_type: tuple[TypeScore, ...]


def load_replies(path: Path) -> dict[str, str]:
    """Prompt -> reply from lines with ``prompt`` and ``response``.

    Raises:
        DataError: a file that can't be read, a line without these texts, or a prompt that is there twice.

    """
    replies: dict[str, str] = {}
    for origin, record in file_rows(str(path)):
        where = str(origin)
        prompt, reply = record.get("prompt"), record.get("response")
        if not isinstance(prompt, str) or not isinstance(reply, str):
            raise DataError("prompt and response must be texts", where=where, fix="write both as strings")
        if prompt in replies:
            raise DataError(f"two replies to {prompt[:60]!r}", where=where, fix="keep one")
        replies[prompt] = reply
    return replies


def instruction_verdicts(
    prompts: Sequence[InstructionPrompt], replies: Mapping[str, str] | Mapping[int, str]
) -> InstructionVerdicts:
    """Verdicts of every prompt that has a reply, in the order of the prompts.

    ``replies`` go by the text of the prompt or by its key, not both.

    Raises:
        DataError: no prompt has a reply.

    """
    given: dict[Any, str] = dict(replies)
    by_text = all(isinstance(name, str) for name in given)
    named = [(prompt.text if by_text else prompt.key, prompt) for prompt in prompts]
    answered = [(prompt, given[name]) for name, prompt in named if name in given]
    if not answered:
        raise DataError(
            f"none of the {len(given)} replies belongs to one of the {len(prompts)} prompts",
            fix="give replies by the exact text of the prompt, or by its key as a number",
        )
    asked = {name for name, _ in named}
    return InstructionVerdicts(
        verdicts=tuple(instruction_verdict(prompt, reply) for prompt, reply in answered),
        missing=tuple(prompt.key for name, prompt in named if name not in given),
        unknown=tuple(name for name in given if name not in asked),
        empty=tuple(prompt.key for prompt, reply in answered if not answer_of(reply).strip()),
    )


def instruction_scores(
    found: InstructionVerdicts, settings: IntervalSettings = IntervalSettings()
) -> InstructionScores:
    """The four numbers and the table by type."""
    verdicts = found.verdicts

    def by_prompt(followed_P: Sequence[Sequence[bool]]) -> Interval:
        return wilson(sum(map(all, followed_P)), len(followed_P), settings.confidence)

    def by_instruction(followed_P: Sequence[Sequence[bool]]) -> Interval:
        values_R = [float(passed) for each in followed_P for passed in each]
        prompts_R = [number for number, each in enumerate(followed_P) for _ in each]
        return mean(values_R, prompts_R, settings)

    strict, loose = [v.strict for v in verdicts], [v.loose for v in verdicts]
    return InstructionScores(
        asked=len(verdicts) + len(found.missing),
        answered=len(verdicts),
        empty=len(found.empty),
        prompt_strict=by_prompt(strict),
        instruction_strict=by_instruction(strict),
        prompt_loose=by_prompt(loose),
        instruction_loose=by_instruction(loose),
        by_type=_by_type(verdicts, settings.confidence),
    )


def _by_type(verdicts: Sequence[InstructionVerdict], confidence: float) -> tuple[TypeScore, ...]:
    """In the order of the table; types that no prompt has are left out."""
    followed: dict[str, list[tuple[bool, bool]]] = {name: [] for name in INSTRUCTIONS}
    for verdict in verdicts:
        for name, strict, loose in zip(verdict.types, verdict.strict, verdict.loose, strict=True):
            followed[name].append((strict, loose))
    return tuple(
        TypeScore(
            name,
            len(pairs),
            wilson(sum(strict for strict, _ in pairs), len(pairs), confidence),
            wilson(sum(loose for _, loose in pairs), len(pairs), confidence),
        )
        for name, pairs in followed.items()
        if pairs
    )
