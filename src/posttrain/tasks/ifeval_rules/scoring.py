"""IFEval from replies to four numbers with intervals: read prompts -> build verifiers -> verdicts -> scores.

strict  the reply as it is follows the instruction
loose   one of eight variants does: whole, without the first line, without the last line, without both; each also without ``*``

A think block is taken off first, and an empty text follows nothing. A prompt without a reply is missing, not wrong: it is
counted and left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError, validate_call

from posttrain.errors import ConfigError, DataError
from posttrain.judge.quoting import answer_part
from posttrain.stats.intervals import Interval, mean_by_group, wilson
from posttrain.tasks.ifeval_rules import INSTRUCTIONS, Verifier

RANDOM_KEYS = frozenset({1122, 1129})
"""Prompts of the published set that ask for '#' or '!': the original draws a random letter for them, so its own runs differ."""


class Instruction(NamedTuple):
    """One instruction of a prompt, ready to be asked."""

    type: str
    """A name of :data:`posttrain.tasks.ifeval_rules.INSTRUCTIONS`."""
    follows: Verifier


@dataclass(frozen=True)
class InstructionPrompt:
    """One prompt of IFEval."""

    key: int
    text: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class InstructionVerdict:
    """What one reply follows; the tuples go with ``types``."""

    key: int
    types: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


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


# ---- reading -------------------------------------------------------------------------------------------------------


def load_instruction_prompts(path: Path) -> tuple[InstructionPrompt, ...]:
    """The prompts of a file like the original's input_data.jsonl: ``key``, ``prompt``, ``instruction_id_list``, ``kwargs`` a line.

    Raises:
        DataError: a file that can't be read, a line that is no such object, an unknown type, or wrong arguments.

    """
    prompts: dict[int, InstructionPrompt] = {}
    for where, record in _lines(path):
        prompt = instruction_prompt(record, where)
        if prompt.key in prompts:
            raise DataError(f"key {prompt.key} is there twice", where=where, fix="give every prompt a key of its own")
        prompts[prompt.key] = prompt
    if not prompts:
        raise DataError("there are no prompts in this file", where=str(path), fix="give IFEval's input_data.jsonl")
    return tuple(prompts.values())


def load_replies(path: Path) -> dict[str, str]:
    """Prompt -> reply from lines with ``prompt`` and ``response``.

    Raises:
        DataError: a file that can't be read, a line without these texts, or a prompt that is there twice.

    """
    replies: dict[str, str] = {}
    for where, record in _lines(path):
        prompt, reply = record.get("prompt"), record.get("response")
        if not isinstance(prompt, str) or not isinstance(reply, str):
            raise DataError("prompt and response must be texts", where=where, fix="write both as strings")
        if prompt in replies:
            raise DataError(f"two replies to {prompt[:60]!r}", where=where, fix="keep one")
        replies[prompt] = reply
    return replies


def instruction_prompt(record: Mapping[str, Any], where: str) -> InstructionPrompt:
    """One prompt from its record; ``where`` goes into errors. Arguments that are null are left out, zeros are not."""
    key, text = record.get("key"), record.get("prompt")
    types, arguments = record.get("instruction_id_list"), record.get("kwargs")
    if not isinstance(key, int) or isinstance(key, bool) or not isinstance(text, str):
        raise DataError(
            "key must be a whole number and prompt a text", where=where, fix="see IFEval's input_data.jsonl"
        )
    if not isinstance(types, list) or not isinstance(arguments, list) or not len(types) == len(arguments) > 0:
        raise DataError(
            f"instruction_id_list and kwargs of prompt {key} must be lists of one length",
            where=where,
            fix="give one object of arguments (it may be empty) per instruction",
        )
    pairs = zip(types, arguments, strict=True)
    return InstructionPrompt(key, text, tuple(_instruction(t, given, f"{where}, prompt {key}") for t, given in pairs))


def _instruction(name: Any, arguments: Any, where: str) -> Instruction:
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise DataError(
            "an instruction is a name and an object of arguments", where=where, fix="see IFEval's input_data.jsonl"
        )
    try:
        build = _checked(name)
    except ConfigError as error:
        raise DataError(error.problem, where=where, fix=error.fix) from None
    try:
        verifier = build(**{key: value for key, value in arguments.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        argument = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{name}: {argument}: {first['msg'].lower()}", where=where, fix=f"correct the argument {argument!r}"
        ) from None
    except ValueError as error:
        raise DataError(f"{name}: {error}", where=where, fix="correct its arguments") from None
    return Instruction(name, verifier)


@cache
def _checked(name: str) -> Callable[..., Verifier]:
    """The function of a type, which refuses arguments of the wrong kind."""
    return validate_call(INSTRUCTIONS[name])


def _lines(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Place and object of every line that is not blank."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't be read: {error}", where=str(path), fix="give a file of JSON lines in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"this line is no JSON: {error}", where=where, fix="write one object a line") from None
        if not isinstance(record, dict):
            raise DataError("this line is no JSON object", where=where, fix="write one object a line")
        yield where, record


# ---- verdicts ------------------------------------------------------------------------------------------------------


def answer_of(reply: str) -> str:
    r"""The reply without its think block; where there is none, unchanged to the last space.

    >>> answer_of("<think>no capitals</think>\n\nfine"), answer_of(" fine\n"), answer_of("<think>cut off")
    ('fine', ' fine\n', '')
    """
    return answer_part(reply) if "<think>" in reply or "</think>" in reply else reply


def loose_variants(answer: str) -> tuple[str, ...]:
    r"""The eight texts of which one has to follow.

    >>> loose_variants("Sure:\n*a*\nBye")
    ('Sure:\n*a*\nBye', '*a*\nBye', 'Sure:\n*a*', '*a*', 'Sure:\na\nBye', 'a\nBye', 'Sure:\na', 'a')
    """
    lines = answer.split("\n")
    cut = (answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    return (*cut, *(text.replace("*", "") for text in cut))


def instruction_verdict(prompt: InstructionPrompt, reply: str) -> InstructionVerdict:
    """What a reply follows, strictly and loosely."""
    answer = answer_of(reply)
    written = [text for text in dict.fromkeys(loose_variants(answer)) if text.strip()]
    strict = tuple(bool(answer.strip()) and each.follows(answer) for each in prompt.instructions)
    loose = tuple(
        passed or any(each.follows(text) for text in written)
        for passed, each in zip(strict, prompt.instructions, strict=True)
    )
    return InstructionVerdict(prompt.key, tuple(each.type for each in prompt.instructions), strict, loose)


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


# ---- scores --------------------------------------------------------------------------------------------------------


def instruction_scores(
    found: InstructionVerdicts, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> InstructionScores:
    """The four numbers and the table by type."""
    verdicts = found.verdicts

    def by_prompt(followed_P: Sequence[Sequence[bool]]) -> Interval:
        return wilson(sum(map(all, followed_P)), len(followed_P), confidence)

    def by_instruction(followed_P: Sequence[Sequence[bool]]) -> Interval:
        values_R = [float(passed) for each in followed_P for passed in each]
        prompts_R = [number for number, each in enumerate(followed_P) for _ in each]
        every_R = ["all"] * len(values_R)
        settings: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
        return mean_by_group(values_R, every_R, clusters_R=prompts_R, **settings)["all"]

    strict, loose = [v.strict for v in verdicts], [v.loose for v in verdicts]
    return InstructionScores(
        asked=len(verdicts) + len(found.missing),
        answered=len(verdicts),
        empty=len(found.empty),
        prompt_strict=by_prompt(strict),
        instruction_strict=by_instruction(strict),
        prompt_loose=by_prompt(loose),
        instruction_loose=by_instruction(loose),
        by_type=_by_type(verdicts, confidence),
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


def instruction_record(scores: InstructionScores) -> dict[str, Any]:
    """The scores as plain values for a file."""
    return {
        "asked": scores.asked,
        "answered": scores.answered,
        "empty": scores.empty,
        "prompt_strict": scores.prompt_strict._asdict(),
        "instruction_strict": scores.instruction_strict._asdict(),
        "prompt_loose": scores.prompt_loose._asdict(),
        "instruction_loose": scores.instruction_loose._asdict(),
        "by_type": {
            each.type: {
                "instructions": each.instructions,
                "strict": each.strict._asdict(),
                "loose": each.loose._asdict(),
            }
            for each in scores.by_type
        },
    }
