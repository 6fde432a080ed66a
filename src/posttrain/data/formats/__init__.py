"""Foreign rows become typed rows: one small file a format, one line each in :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.formats.alpaca import ALPACA
from posttrain.data.formats.base import Foreign, Format, RowError, is_preference
from posttrain.data.formats.messages import MESSAGES
from posttrain.data.formats.prompt_completion import PROMPT_COMPLETION
from posttrain.data.formats.sharegpt import SHAREGPT
from posttrain.data.formats.text_pair import TEXT_PAIR
from posttrain.data.streams import printable
from posttrain.errors import DataError
from posttrain.table import Table
from posttrain.types import SftRow

__all__ = ["FORMATS", "Format", "RowError", "detect_format"]

FORMATS: Table[Format[SftRow]] = Table(
    "row format", {f.name: f for f in (MESSAGES, SHAREGPT, ALPACA, PROMPT_COMPLETION, TEXT_PAIR)}
)
"""Conversation formats, the more telling ones first: a row with ``messages`` and ``prompt`` is read by its messages."""


def detect_format(records: Sequence[Foreign], where: str) -> Format[SftRow]:
    """The format that fits most of the first records of a file (the earlier one in the table where two fit alike).

    Raises DataError with the keys found where none fits.
    """
    fits = {name: sum(map(f.detect, records)) for name, f in FORMATS.items()}
    best = max(fits, key=lambda name: fits[name])
    if fits[best]:
        return FORMATS[best]
    keys = list(dict.fromkeys(key for record in records for key in record))
    found = printable(", ".join(keys[:12])) + (", ..." if len(keys) > 12 else "")
    if any(map(is_preference, records)):
        hint = "this looks like preference data; name a format to train on its conversations alone"
    elif keys == ["text"]:
        hint = "text alone is not a conversation; give a prompt and a reply"
    else:
        hint = "rename the keys to those of a known format"
    raise DataError(
        f"no row format fits (keys found: {found}; known formats: {', '.join(FORMATS)})",
        where=where,
        fix=f"{hint}; see docs/data-formats.md",
    )
