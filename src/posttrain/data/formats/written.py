"""Pairs and feedback as the data chain writes them into Parquet (docs/run-folder.md), read as any other source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.base import Foreign, Format, RowError, items, json_value, kind_of
from posttrain.data.formats.conversation import sft_row
from posttrain.data.formats.sides import Turns, judged_row, pair_row
from posttrain.data.formats.turns import talk
from posttrain.types import Origin, PairRow, UnpairedRow

_COLUMNS = frozenset(
    (
        *("id", "source", "file", "line", "messages", "prompt_turns", "rejected", "desirable", "meta"),
        *("parents", "verdicts", "scores", "cluster", "split", "weight"),
    )
)
"""The columns of a rows file, without ``tools``."""
_NONE: frozenset[str] = frozenset()


def _detect_pair(record: Foreign) -> bool:
    return _is_written(record) and isinstance(record.get("rejected"), list)


def _detect_feedback(record: Foreign) -> bool:
    return _is_written(record) and isinstance(record.get("desirable"), bool)


def _is_written(record: Foreign) -> bool:
    return "messages" in record and isinstance(record.get("prompt_turns"), int)


def _parse_pair(record: Foreign, origin: Origin, source: str) -> PairRow:
    prompt, chosen = _parts(record)
    rejected = talk(items(record, "rejected"))
    return pair_row(_beside(record), _NONE, prompt, chosen, rejected, origin, source)


def _parse_feedback(record: Foreign, origin: Origin, source: str) -> UnpairedRow:
    desirable = record.get("desirable")
    if not isinstance(desirable, bool):
        raise RowError("wrong_shape", f"'desirable' is {kind_of(desirable)}, expected true or false")
    prompt, completion = _parts(record)
    row = sft_row(_beside(record), _NONE, prompt + completion, origin, source)
    return judged_row(row, len(completion), desirable)


def _parts(record: Foreign) -> tuple[Turns, Turns]:
    messages, turns = talk(items(record, "messages")), record.get("prompt_turns")
    if not isinstance(turns, int) or not 0 <= turns <= len(messages):
        raise RowError("wrong_shape", f"'prompt_turns' is {str(turns)[:80]} of {len(messages)} messages")
    return messages[:turns], messages[turns:]


def _beside(record: Foreign) -> dict[str, Any]:
    """What a record says beside its turns: tools, and the keys of its ``meta``, which become its meta again."""
    meta = json_value(str(record.get("meta") or "{}"), "meta")
    if not isinstance(meta, Mapping):
        raise RowError("wrong_shape", f"'meta' is {kind_of(meta)}, expected an object")
    return {key: value for key, value in record.items() if key not in _COLUMNS} | dict(meta)


WRITTEN_PAIRS = Format(
    "posttrain_pairs",
    _detect_pair,
    _parse_pair,
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], '
    '"prompt_turns": 1, "rejected": [{"role": "assistant", "content": "Go away."}], "tools": "[]", "meta": "{}"}',
    "pairs",
)
WRITTEN_FEEDBACK = Format(
    "posttrain_feedback",
    _detect_feedback,
    _parse_feedback,
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], '
    '"prompt_turns": 1, "desirable": true, "tools": "[]", "meta": "{}"}',
    "feedback",
)
