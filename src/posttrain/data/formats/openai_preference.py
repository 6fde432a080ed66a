"""OpenAI's form for preference fine-tuning: ``input`` with messages and tools, ``preferred_output``, ``non_preferred_output``."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.data.formats.base import Foreign, Format, RowError, kind_of, value_in
from posttrain.data.formats.sides import pair_row
from posttrain.data.formats.turns import turns_under
from posttrain.types import Origin, PairRow

_SIDES = ("preferred_output", "non_preferred_output")


def _detect(record: Foreign) -> bool:
    return all(key in record for key in ("input", *_SIDES))


def _parse(record: Foreign, origin: Origin, source: str) -> PairRow:
    given = record.get("input")
    if isinstance(given, str) and isinstance(written := value_in(given), Mapping):  # a cell of a table
        given = written
        record = {**record, "input": given}
    if not isinstance(given, Mapping | str | list):
        raise RowError("wrong_shape", f"'input' is {kind_of(given)}, expected messages")
    prompt = turns_under(record, "input", "user")
    chosen, rejected = (turns_under(record, key, "assistant") for key in _SIDES)
    inner = {key: value for key, value in given.items() if key != "messages"} if isinstance(given, Mapping) else {}
    return pair_row({**inner, **record}, {"input", *_SIDES}, prompt, chosen, rejected, origin, source)


OPENAI_PREFERENCE = Format(
    "openai_preference",
    _detect,
    _parse,
    '{"input": {"messages": [{"role": "user", "content": "Capital of Peru?"}]}, "preferred_output": [{"role": "assistant", '
    '"content": "Lima."}], "non_preferred_output": [{"role": "assistant", "content": "Rome."}]}',
    "pairs",
)
