"""IFEval from replies to verdicts: read prompts -> build verifiers -> what a reply follows.

strict  the reply as it is follows the instruction
loose   one of eight variants does: whole, without the first line, without the last line, without both; each also without ``*``

A think block is taken off first, and an empty text follows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError, validate_call

from posttrain.errors import ConfigError, DataError
from posttrain.judge.quoting import answer_part
from posttrain.tasks.ifeval_rules.instructions import INSTRUCTIONS
from posttrain.tasks.ifeval_rules.language import Verifier
from posttrain.tasks.rows import file_rows

RANDOM_KEYS = frozenset({1122, 1129})
"""Prompts of the published set that ask for '#' or '!': the original draws a random letter for them, so its own runs differ."""


class Instruction(NamedTuple):
    """One instruction of a prompt, ready to be asked."""

    type: str
    """A name of :data:`posttrain.tasks.ifeval_rules.instructions.INSTRUCTIONS`."""
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


# ---- reading -------------------------------------------------------------------------------------------------------


def load_instruction_prompts(path: Path) -> tuple[InstructionPrompt, ...]:
    """The prompts of a file like the original's input_data.jsonl: ``key``, ``prompt``, ``instruction_id_list``, ``kwargs`` a line.

    Raises:
        DataError: a file that can't be read, a line that is no such object, an unknown type, or wrong arguments.

    """
    prompts: dict[int, InstructionPrompt] = {}
    for origin, record in file_rows(str(path)):
        prompt = instruction_prompt(record, str(origin))
        if prompt.key in prompts:
            raise DataError(
                f"key {prompt.key} is there twice", where=str(origin), fix="give every prompt a key of its own"
            )
        prompts[prompt.key] = prompt
    if not prompts:
        raise DataError("there are no prompts in this file", where=str(path), fix="give IFEval's input_data.jsonl")
    return tuple(prompts.values())


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
