"""Text pairs: two plain text columns, a question and its answer."""

from __future__ import annotations

from posttrain.data.formats.base import Foreign, Format, RowError, exchange, optional_text, sft_row
from posttrain.types import Origin, SftRow

PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("question", "solution"),
    ("question", "std_answer"),
    ("problem", "solution"),
    ("problem", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "response"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
)
"""Column names that make a pair, first match first."""


def _detect(record: Foreign) -> bool:
    keys = _keys(record)
    return keys is not None and all(isinstance(record[key], str | None) for key in keys)


def _keys(record: Foreign) -> tuple[str, str] | None:
    return next((keys for keys in PAIRS if keys[0] in record and keys[1] in record), None)


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    keys = _keys(record)
    if keys is None:
        raise RowError("wrong_shape", f"no pair of text columns; keys: {', '.join(record)}"[:200])
    turns = exchange(optional_text(record, keys[0]), optional_text(record, keys[1]))
    return sft_row(record, set(keys), turns, origin, source)


TEXT_PAIR = Format(
    "text_pair",
    _detect,
    _parse,
    '{"question": "What is 2 + 2?", "answer": "4"}',
)
