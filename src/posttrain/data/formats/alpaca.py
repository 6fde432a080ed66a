"""Alpaca: ``instruction``, optional ``input`` and ``output``; also the spellings of its relatives.

GPTeacher writes ``response`` for ``output``; Dolly writes ``context`` for ``input``; LLaMA-Factory adds ``system`` and
``history`` (earlier [question, answer] pairs); Self-Instruct keeps input and output in a list ``instances`` of one.
"""

from __future__ import annotations

from collections.abc import Iterator

from posttrain.data.formats.base import (
    Foreign,
    Format,
    RowError,
    exchange,
    items,
    kind_of,
    objects,
    optional_text,
    sft_row,
)
from posttrain.data.formats.keys import first
from posttrain.types import Message, Origin, SftRow

_INPUTS = ("input", "context")
_OUTPUTS = ("output", "response")
QUESTION_KEYS = ("instruction", "history", *_INPUTS)
"""What an instruction is asked with."""


def _detect(record: Foreign) -> bool:
    return "instruction" in record and any(key in record for key in (*_OUTPUTS, "instances"))


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    instance = record
    if first(record, _OUTPUTS) is None and "instances" in record:
        instances = objects(record, "instances")
        if len(instances) != 1:
            raise RowError("wrong_shape", f"'instances' holds {len(instances)} items, expected one")
        instance = instances[0]
    output = first(instance, _OUTPUTS)
    if "instruction" not in record or output is None:
        raise RowError("wrong_shape", f"no instruction or no output; keys: {', '.join(record)}")
    turns = exchange(question(record, instance), optional_text(instance, output))
    used = {"instances", *QUESTION_KEYS, *_OUTPUTS}
    return sft_row(record, used, (*history(record), *turns), origin, source)


def question(record: Foreign, instance: Foreign) -> str:
    """What the user asks: the instruction of a record with the input of an instance (which may be the record itself)."""
    instruction = optional_text(record, "instruction")
    given = optional_text(instance, first(instance, _INPUTS) or "input")
    # joined and stripped as in LLaMA-Factory, so that both train on the same tokens
    return (instruction + "\n" + given).strip()


def history(record: Foreign) -> Iterator[Message]:
    """The earlier turns of a record."""
    for pair in items(record, "history"):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowError("wrong_shape", f"'history' holds {kind_of(pair)}, expected [question, answer] pairs")
        yield Message("user", pair[0])
        yield Message("assistant", pair[1])


ALPACA = Format(
    "alpaca",
    _detect,
    _parse,
    '{"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour"}',
)
