"""The one tokenizer for comparing texts: under ROUGE-L, n-grams, MinHash, SimHash, decontamination and length filters.

NFKC, casefold, then every CJK character is a token of its own, and so is every other run of letters, digits and marks.
Punctuation and symbols are not tokens; numbers stay as they are, so "3 + 4" and "5 + 9" differ.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal

from posttrain.types import Message, Role

Fields = Literal["user", "assistant", "conversation"]
COMPARED_ROLES: Mapping[Fields, tuple[Role, ...]] = {
    "user": ("user",),
    "assistant": ("assistant",),
    "conversation": ("user", "assistant", "tool"),
}
"""The turns that are compared: those of the user, of the assistant, or all but system."""

CJK = (
    "\u3040-\u30ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # ideographs
    "\u1100-\u11ff\uac00-\ud7af"  # Hangul
)
_MARKS = "\u0300-\u036f"
_TOKEN = re.compile(rf"[{CJK}]|[^\W_{CJK}][^\W{CJK}]*(?:[{_MARKS}]+[^\W{CJK}]*)*")
_ASCII_TOKEN = re.compile(r"[a-z0-9][a-z0-9_]*")
"""The same for ASCII, in half the time."""


def normalised(text: str) -> str:
    """NFKC and casefold."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text).casefold()


def tokens(text: str) -> list[str]:
    """The tokens of a text; none where it has neither letters nor digits."""
    normal = normalised(text)
    return (_ASCII_TOKEN if normal.isascii() else _TOKEN).findall(normal)


def token_spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """(a text with the tokens of this one, where each of them stands in it): as written where folding keeps its length."""
    normal = normalised(text)
    spans = [found.span() for found in (_ASCII_TOKEN if normal.isascii() else _TOKEN).finditer(normal)]
    return (text if len(normal) == len(text) else normal), spans


def compared_text(messages: Sequence[Message], fields: Fields) -> str:
    """The turns of a conversation that are compared, a line each."""
    return "\n".join([message.content for message in messages if message.role in COMPARED_ROLES[fields]])
