"""Binary feedback: any conversation format with a ``label`` (or ``kto_tag``) that says whether the last reply is good.

Beside ``prompt`` and ``completion`` the label judges the completion, otherwise the last turn.
"""

from __future__ import annotations

from typing import Any

from posttrain.data.formats.alpaca import ALPACA
from posttrain.data.formats.base import Foreign, Format, RowError, kind_of
from posttrain.data.formats.messages import MESSAGES
from posttrain.data.formats.prompt_completion import PROMPT_COMPLETION
from posttrain.data.formats.sharegpt import SHAREGPT
from posttrain.data.formats.sides import judged_row
from posttrain.data.formats.text_pair import TEXT_PAIR
from posttrain.data.formats.turns import turns_under
from posttrain.types import Origin, SftRow, UnpairedRow

_LABELS = ("label", "kto_tag")
_WORDS = {"true": True, "false": False}
_CONVERSATIONS = (MESSAGES, SHAREGPT, ALPACA, PROMPT_COMPLETION, TEXT_PAIR)


def _detect(record: Foreign) -> bool:
    return any(_verdict(record.get(key)) is not None for key in _LABELS) and _conversation(record) is not None


def _conversation(record: Foreign) -> Format[SftRow] | None:
    return next((known for known in _CONVERSATIONS if known.detect(record)), None)


def _verdict(label: Any) -> bool | None:
    """What a label says: a boolean, or its name as in a CSV cell."""
    return _WORDS.get(label.strip().lower()) if isinstance(label, str) else label if isinstance(label, bool) else None


def _parse(record: Foreign, origin: Origin, source: str) -> UnpairedRow:
    key = next((key for key in _LABELS if key in record), _LABELS[0])
    desirable, known = _verdict(record.get(key)), _conversation(record)
    if desirable is None:
        raise RowError("wrong_shape", f"{key!r} is {kind_of(record.get(key))}, expected true or false")
    if known is None:
        raise RowError("wrong_shape", f"a label without a conversation; keys: {', '.join(record)}"[:200])
    turns = len(turns_under(record, "completion", "assistant")) if known is PROMPT_COMPLETION else 1
    row = known.parse({name: value for name, value in record.items() if name != key}, origin, source)
    return judged_row(row, turns, desirable)


FEEDBACK = Format(
    "feedback",
    _detect,
    _parse,
    '{"prompt": "Name a colour.", "completion": "Blue.", "label": true}',
    "feedback",
)
