"""Foreign rows become typed rows: one small file a format, one line each in :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.formats.alpaca import ALPACA
from posttrain.data.formats.arena import ARENA
from posttrain.data.formats.base import Foreign, Format, RowError
from posttrain.data.formats.feedback import FEEDBACK
from posttrain.data.formats.hh_rlhf import HH_RLHF
from posttrain.data.formats.messages import MESSAGES
from posttrain.data.formats.nectar import NECTAR
from posttrain.data.formats.pairs import PAIRS
from posttrain.data.formats.prompt_completion import PROMPT_COMPLETION
from posttrain.data.formats.ranked import Ranked
from posttrain.data.formats.ranking import RANKING
from posttrain.data.formats.scored_responses import SCORED_RESPONSES
from posttrain.data.formats.sharegpt import SHAREGPT
from posttrain.data.formats.stack_exchange import STACK_EXCHANGE
from posttrain.data.formats.text_pair import TEXT_PAIR
from posttrain.data.formats.ultrafeedback import ULTRAFEEDBACK
from posttrain.data.formats.written import WRITTEN_FEEDBACK, WRITTEN_PAIRS
from posttrain.data.streams import printable
from posttrain.errors import DataError
from posttrain.table import Table
from posttrain.types import Row

__all__ = ["FORMATS", "Format", "RowError", "detect_format"]

_CONVERSATIONS: tuple[Format[Row], ...] = (MESSAGES, SHAREGPT, ALPACA, PROMPT_COMPLETION, TEXT_PAIR)
_PREFERENCES: tuple[Format[Row | Ranked], ...] = (
    *(PAIRS, HH_RLHF, RANKING, ULTRAFEEDBACK, NECTAR, SCORED_RESPONSES, ARENA, STACK_EXCHANGE, FEEDBACK),
    *(WRITTEN_PAIRS, WRITTEN_FEEDBACK),
)

FORMATS: Table[Format[Row | Ranked]] = Table("row format", {f.name: f for f in (*_CONVERSATIONS, *_PREFERENCES)})
"""Conversation formats, the more telling ones first: a row with ``messages`` and ``prompt`` is read by its messages. Then
the formats of preferences; a row that one of them knows is no conversation for :func:`detect_format`."""


def detect_format(records: Sequence[Foreign], where: str) -> Format[Row | Ranked]:
    """The format that fits most of the first records of a file (the earlier one in the table where two fit alike).

    A record that compares or judges answers fits no conversation format, for its conversation alone would be half of it.
    Raises DataError with the keys found where none fits.
    """
    talks = [record for record in records if not any(f.detect(record) for f in _PREFERENCES)]
    fits = {f.name: sum(map(f.detect, talks)) for f in _CONVERSATIONS}
    fits |= {f.name: sum(map(f.detect, records)) for f in _PREFERENCES}
    best = max(fits, key=lambda name: fits[name])
    if fits[best]:
        return FORMATS[best]
    keys = list(dict.fromkeys(key for record in records for key in record))
    found = printable(", ".join(keys[:12])) + (", ..." if len(keys) > 12 else "")
    if keys == ["text"]:
        hint = "text alone is not a conversation; give a prompt and a reply"
    else:
        hint = "rename the keys to those of a known format"
    raise DataError(
        f"no row format fits (keys found: {found}; known formats: {', '.join(FORMATS)})",
        where=where,
        fix=f"{hint}; see docs/data-formats.md",
    )
