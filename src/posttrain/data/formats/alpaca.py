"""Alpaca: ``instruction``, optional ``input`` and ``output``; also the spellings of its relatives.

GPTeacher writes ``response`` for ``output``; Dolly writes ``context`` for ``input``; LLaMA-Factory adds ``system`` and
``history``; Self-Instruct keeps input and output in a list ``instances`` of one; BELLE writes the turns before the reply as a
transcript into the instruction.
"""

from __future__ import annotations

from collections.abc import Set

from posttrain.data.formats.base import Foreign, Format, RowError, objects, optional_text
from posttrain.data.formats.conversation import reply_under, sft_row
from posttrain.data.formats.keys import first, is_present
from posttrain.data.formats.transcripts import waiting_turns
from posttrain.types import Message, Origin, SftRow

_INPUTS = ("input", "context")
_OUTPUTS = ("output", "response")


def _detect(record: Foreign) -> bool:
    return "instruction" in record and not record.keys().isdisjoint((*_OUTPUTS, "instances"))


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    if not any(is_present(record.get(key)) for key in _OUTPUTS) and "instances" in record:
        instances = objects(record, "instances")
        if len(instances) != 1:
            raise RowError("wrong_shape", f"'instances' holds {len(instances)} items, expected one")
        record = {**record, **instances[0]}
    output = first(record, _OUTPUTS)
    if "instruction" not in record or output is None:
        raise RowError("wrong_shape", f"no instruction or no output; keys: {', '.join(map(str, record))}"[:200])
    prompt, used = question(record)
    if not any(turn.content.strip() for turn in prompt):
        raise RowError("empty_prompt", "the prompt is blank")
    turns = (*prompt, *reply_under(record, output))
    return sft_row(record, {"instances", *used, *_OUTPUTS}, turns, origin, source)


def question(record: Foreign) -> tuple[tuple[Message, ...], Set[str]]:
    """(what the user asks, the keys it was made from): the instruction of a record with its input."""
    key = first(record, _INPUTS) or "input"
    instruction, given = optional_text(record, "instruction"), optional_text(record, key)
    turns = waiting_turns(instruction) or ()
    last = turns[-1].content if turns else instruction
    # joined and stripped as in LLaMA-Factory, so that both train on the same tokens
    return (*turns[:-1], Message("user", (last + "\n" + given).strip())), {"instruction", key}


ALPACA = Format(
    "alpaca", _detect, _parse, '{"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour"}'
)
