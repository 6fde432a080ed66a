"""Broken text: mojibake, characters that stand for lost ones, and prose that is mostly symbols."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from posttrain.data.filters.base import Conversation, Filter, Measurement, at_most, excerpt


@dataclass(frozen=True, kw_only=True)
class Garbled(Filter):
    """Broken text in any turn."""

    max_mojibake: Annotated[int, Ge(0)] = 0
    """Most places where UTF-8 was read as Latin-1, Windows-1252 or GBK (``Ã©``, ``â€™``, ``浣犲ソ``, ``锟斤拷``)."""
    max_broken_characters: Annotated[int, Ge(0)] = 0
    """Most replacement characters (U+FFFD), control, private-use and non-characters."""
    max_symbol_share: Annotated[float, Ge(0), Le(1)] = 0.5
    """Largest share of symbols (neither letter, digit, mark, sentence punctuation nor the bar of tables) in the prose, code left out."""
    min_symbols: Annotated[int, Ge(0)] = 50
    """The share counts only where there are more symbols than this: a row of emoji is not garbage."""

    def measure(self, row: Conversation) -> Iterator[Measurement]:
        """What is measured on a row."""
        found = mojibake(row.content)
        named = ", ".join(map(excerpt, found[:3]))
        yield at_most("garbled.mojibake", len(found), self.max_mojibake, "mojibake", named, "places")
        broken = _BROKEN.findall(row.content) if _BROKEN.search(row.content) else []
        named = ", ".join(f"U+{ord(character):04X}" for character in sorted(set(broken))[:5])
        check, most = "garbled.broken_characters", self.max_broken_characters
        yield at_most(check, len(broken), most, "broken_characters", named, "characters")
        symbols, written = _symbols(row.prose)
        share = symbols / written if symbols > self.min_symbols else 0.0
        yield at_most("garbled.symbols", share, self.max_symbol_share, "mostly_symbols", unit="of the prose")


# What the bytes 80..BF become under Latin-1 and Windows-1252.
_CONTINUED = (
    "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201a\u201c-\u201e"
)
_CONTINUED += "\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122"
_LATIN_MOJIBAKE = re.compile(
    # Two bytes: accented letters (after a letter A with tilde); signs and the space that does not break (A circumflex).
    rf"\u00c3[{_CONTINUED}]|\u00c2[\u0080-\u00bf]"
    # Three bytes: quotes and dashes; Chinese and Japanese, of which one alone may be a letter before a closing quote.
    rf"|\u00e2[\u0080\u20ac][{_CONTINUED}]|(?:[\u00e3-\u00e9][{_CONTINUED}]{{2}}){{2,}}"
    # Four bytes: emoji.
    rf"|\u00f0[\u009f\u0178][{_CONTINUED}]{{2}}"
)
_HINTS = re.compile("[\u00c2\u00c3\u00e2-\u00e9\u00f0]")
_GBK_RUN = re.compile(r"[^\x00-\x7f\s\ufffd\ue000-\uf8ff]{4,}")
_UTF8_BYTES = re.compile(rb"(?:[\xe2-\xef][\x80-\xbf]{2}){2}")
"""What UTF-8 read as GBK has in its bytes, looked for before every run of characters is."""
_REPLACED_TWICE = re.compile("锟斤拷|烫烫烫|屯屯屯")

_BROKEN = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufdd0-\ufdef\ufffe\uffff\ue000-\uf8ff\U000f0000-\U0010ffff]"
)
_NO_SYMBOL = re.compile(r"[\w\s.,;:!?'\"()|\-\u0300-\u036f\u2010-\u2027\u3000-\u303f\uff00-\uffef]+")
_NO_ASCII_SYMBOL = bytes(byte for byte in range(128) if _NO_SYMBOL.fullmatch(chr(byte)))
_THREE_BYTES = re.compile(r"[\u2e80-\u9fff\uff00-\uffef\u2010-\u2027]+")


def mojibake(text: str) -> list[str]:
    """The places of a text where UTF-8 bytes were read in another encoding."""
    if text.isascii():
        return []
    found = [match[0] for match in _LATIN_MOJIBAKE.finditer(text)] if _HINTS.search(text) else []
    found += _REPLACED_TWICE.findall(text)
    if not _UTF8_BYTES.search(text.encode("gbk", "replace")):
        return found
    return found + [match[0] for match in _GBK_RUN.finditer(text) if _is_utf8_read_as_gbk(match[0])]


def _is_utf8_read_as_gbk(run: str) -> bool:
    """Whether the GBK bytes of a run of Chinese are UTF-8 of Chinese.

    GBK pairs bytes, UTF-8 writes Chinese in threes, so the last character may be cut. Some words do decode, as letters of
    two bytes; characters of three bytes do not arise by chance in a run of four.
    """
    try:
        raw = run.encode("gbk")
    except UnicodeEncodeError:
        return False
    for cut in range(3):
        try:
            meant = raw[: len(raw) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return bool(_THREE_BYTES.fullmatch(meant))
    return False


def _symbols(prose: str) -> tuple[int, int]:
    """The symbols of a prose, and all its characters but white space."""
    written = sum(map(len, prose.split()))
    if prose.isascii():
        return len(prose.encode().translate(None, _NO_ASCII_SYMBOL)), written
    return len(_NO_SYMBOL.sub("", prose)), written
