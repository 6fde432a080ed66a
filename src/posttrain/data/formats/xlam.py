"""xLAM's function calling: a ``query``, the ``tools`` and, under ``answers``, the calls that answer it (lists, or their JSON text)."""

from __future__ import annotations

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, Format, RowError
from posttrain.data.formats.conversation import sft_row
from posttrain.data.formats.prompts import prompt_key_of, prompt_of
from posttrain.data.formats.turns import calls_of
from posttrain.types import Message, Origin, SftRow

_ANSWERS = ("answers", "function_calls", "tool_calls")


def _detect(record: Foreign) -> bool:
    answers, tools = keys.first(record, _ANSWERS), keys.first(record, keys.TOOLS)
    if answers is None or tools is None or prompt_key_of(record) is None:
        return False
    try:
        return bool(calls_of(record[answers]))
    except RowError:
        return False


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    prompt, used = prompt_of(record)
    answers = keys.first(record, _ANSWERS)
    if answers is None or not any(turn.content.strip() for turn in prompt):
        raise RowError("wrong_shape", f"no query or no answers; keys: {', '.join(map(str, record))}"[:200])
    reply = Message("assistant", "", tool_calls=calls_of(record[answers]))
    return sft_row(record, {*used, answers}, (*prompt, reply), origin, source)


XLAM = Format(
    "xlam",
    _detect,
    _parse,
    '{"query": "Add 1 and 2.", "tools": [{"name": "add"}], "answers": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}',
)
