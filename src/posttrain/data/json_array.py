"""Read the elements of a JSON array, or JSON values one after the other, without holding the file, and go on after a broken one."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Set
from typing import Any, NamedTuple

COMMENT = r"//[^\n]*\n|/\*.*?\*/"
_GAP = re.compile(rf"(?:[ \t\r\n,]|{COMMENT})*", re.DOTALL)
_WHITE = re.compile(rf"(?:[ \t\r\n]|{COMMENT})*", re.DOTALL)
_OBJECT_AFTER_BREAK = re.compile(r"[,}\]\n][ \t\r\n]*(?=\{)")
_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"[ \t\r\n]*(:?)|[{}\[\]]', re.DOTALL)
_SECOND_LIST = re.compile(r'"\s*:\s*\[\s*\{')
_WRAPPERS = ("data", "rows", "examples", "records", "samples", "dataset")
"""Keys under which one object holds all rows."""
_LONGEST_LITERAL = 16
_TRIM_CHARACTERS = 1 << 20


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values. Raises ValueError where a key says two things, of which one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"the key {key!r} stands twice in one object, with different values")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_once)
"""Reads rows."""


class Element(NamedTuple):
    """One element: its 1-based ``number``, the 1-based ``line`` it starts on, its value or what is wrong with it."""

    number: int
    line: int
    value: Any
    error: str | None = None


def iterate_array(blocks: Iterable[bytes]) -> Iterator[Element]:
    """Yield the elements of the JSON array in these UTF-8 blocks, or of the array of rows inside an object (``{"data": [...]}``).

    A broken element is yielded with ``error`` and the reading goes on at the next element: the next object with the
    indentation of the first one, or, where elements do not stand on lines of their own, the next whole object that
    has the keys of the element before, or of the part of the broken one that can be read. A missing ``]`` and text after it are
    errors too. Bytes that are not UTF-8 arrive as lone surrogates (``surrogateescape``), so they cost only the row they stand
    in. Missing or doubled commas between elements, and comments there, are forgiven.
    """
    text = _Text(blocks)
    _skip_gap(text)
    wrapped = text.buffer.startswith("{", text.at)
    text.advance((wrapped_array(text.buffer, text.at) or text.at) if wrapped else text.at)
    text.advance(text.at + 1)
    yield from _elements(text, "]", wrapped=wrapped)


def iterate_values(blocks: Iterable[bytes]) -> Iterator[Element]:
    """Yield the JSON values that stand one after the other in these blocks, each over as many lines as it likes."""
    yield from _elements(_Text(blocks), None)


def wrapped_array(text: str, start: int = 0) -> int | None:
    """Where the bracket of the array of objects is that an object holds under a usual name for rows; None: nowhere."""
    position = _skip(_WHITE, text, start) + 1
    while True:
        try:
            key, position = DECODER.raw_decode(text, _skip(_GAP, text, position))
            position = _skip(_WHITE, text, position)
            if not isinstance(key, str) or text[position : position + 1] != ":":
                return None
            position = _skip(_WHITE, text, position + 1)
            inside = _skip(_WHITE, text, position + 1)
            if key in _WRAPPERS and text.startswith("[", position) and text.startswith("{", inside):
                return position
            _, position = DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return None


def _elements(text: _Text, closing: str | None, *, wrapped: bool = False) -> Iterator[Element]:
    """The elements from the place of reading on, up to the closing bracket (None: the end of the file)."""
    number, objects_seen, indent, known_keys = 0, False, None, frozenset[str]()
    while True:
        text.trim()
        _skip_gap(text)
        if text.at == len(text.buffer):
            if closing is not None:
                yield Element(number + 1, text.line, None, "the file ends before the array is closed with ]")
            return
        if text.buffer[text.at] == closing:
            yield from _after_the_end(text, number + 1, wrapped=wrapped)
            return
        if not objects_seen and text.buffer[text.at] == "{":
            objects_seen, indent = True, _indent(text.buffer, text.at) if closing else ""
        try:
            value, end = DECODER.raw_decode(text.buffer, text.at)
        except (ValueError, RecursionError) as error:
            if _cut_off(error, len(text.buffer)) and text.more():
                continue
            number += 1
            following = _end_all_the_same(text, error)
            if following is None:
                following = _next_element(text, indent, known_keys or _keys_before(text, error))
            lost = "up to the end of the file" if following is None else "up to the next readable element"
            yield Element(number, text.line, None, f"{describe(error)}; dropped {lost}")
            if following is None:
                return
            text.advance(following)
            continue
        if not isinstance(value, dict) and end > len(text.buffer) - _LONGEST_LITERAL and text.more():
            continue  # a number may go on in the next block
        number += 1
        if isinstance(value, dict):
            known_keys = frozenset(value)
        yield Element(number, text.line, value)
        text.advance(end)


def _end_all_the_same(text: _Text, error: ValueError | RecursionError) -> int | None:
    """Where an element ends that is whole JSON, but no row; None for any other."""
    while not isinstance(error, json.JSONDecodeError | RecursionError):
        try:
            return json.JSONDecoder().raw_decode(text.buffer, text.at)[1]
        except (ValueError, RecursionError) as again:
            if not (_cut_off(again, len(text.buffer)) and text.more()):
                return None
    return None


def _skip_gap(text: _Text) -> None:
    """Go to the next element, over commas and comments, however many blocks they fill."""
    while True:
        text.advance(_skip(_GAP, text.buffer, text.at))
        rest = text.buffer[text.at : text.at + 2]
        if rest not in ("", "/", "//", "/*") or not text.more():
            return


def _keys_before(text: _Text, error: ValueError | RecursionError) -> frozenset[str]:
    """The keys of a broken object, as far as it can be read."""
    end = error.pos if isinstance(error, json.JSONDecodeError) else text.at
    depth, keys = 0, set[str]()
    for match in _NAME.finditer(text.buffer, text.at, end):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(match[0], 0)
        if depth == 1 and match[1] is not None and (match[2] or not keys):  # a first key may lack its colon
            keys.add(match[1])
    return frozenset(keys)


class _Text:
    """A growing window on decoded text. ``at`` is the place of reading in ``buffer``, ``line`` its 1-based line."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._decode = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape").decode
        self._ended = False
        self.buffer, self.at, self.line = "", 0, 1

    def more(self) -> bool:
        """Append at least as much as is there (so that a long element is not tried too often); False at the end."""
        if self._ended:
            return False
        parts, wanted = [self.buffer], max(1, len(self.buffer) - self.at)
        while wanted > 0 and not self._ended:
            block = next(self._blocks, None)
            self._ended = block is None
            parts.append(self._decode(block or b"", self._ended))
            wanted -= len(parts[-1])
        grown = "".join(parts)
        longer = len(grown) > len(self.buffer)
        self.buffer = grown
        return longer

    def advance(self, position: int) -> None:
        """Go on to a position, counting lines."""
        self.line += self.buffer.count("\n", self.at, position)
        self.at = position

    def trim(self) -> None:
        """Let go of what has been read."""
        if self.at > _TRIM_CHARACTERS:
            self.buffer, self.at = self.buffer[self.at :], 0


def describe(error: ValueError | RecursionError) -> str:
    """A JSON error in a few words, with the text around the place."""
    if not isinstance(error, json.JSONDecodeError):
        return "nested too deeply" if isinstance(error, RecursionError) else str(error)
    around = error.doc[max(0, error.pos - 20) : error.pos + 20]
    return f"{error.msg} near {around!r}"


def _skip(pattern: re.Pattern[str], buffer: str, position: int) -> int:
    """The end of a pattern that matches everywhere (it may match nothing)."""
    match = pattern.match(buffer, position)
    return match.end() if match else position


def _cut_off(error: ValueError | RecursionError, length: int) -> bool:
    """Whether the error may vanish once more of the text is there."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= length - _LONGEST_LITERAL


def _indent(buffer: str, position: int) -> str | None:
    """The white space before an element that starts a line of its own, otherwise None."""
    start = buffer.rfind("\n", 0, position) + 1
    before = buffer[start:position]
    return before if start and not before.strip(" \t") else None


def _next_element(text: _Text, indent: str | None, known_keys: Set[str]) -> int | None:
    """Where the next whole element starts after the broken one at ``text.at``, or None."""
    position = text.at + 1
    while True:
        match = _OBJECT_AFTER_BREAK.search(text.buffer, position)
        if match is None:
            # keep the last characters: a separator may stand at the edge of the window
            position = max(position, len(text.buffer) - _LONGEST_LITERAL)
            if not text.more():
                return None
            continue
        start = match.end()
        try:
            value, _ = DECODER.raw_decode(text.buffer, start)
        except (ValueError, RecursionError) as error:
            if not (_cut_off(error, len(text.buffer)) and text.more()):
                position = start
            continue
        if indent is None:
            # most keys in common: an object inside of a row may share one, such as an id
            shared = len(known_keys & value.keys())
            fits = (
                not known_keys
                or known_keys <= value.keys()
                or (shared > 0 and 2 * shared >= min(len(known_keys), len(value)))
            )
        else:
            fits = _indent(text.buffer, start) == indent
        if fits:
            return start
        position = start


def _after_the_end(text: _Text, number: int, *, wrapped: bool) -> Iterator[Element]:
    """An error element where something other than white space follows the array; in an object, where it is another list of rows."""
    text.advance(text.at + 1)
    while text.more():
        pass
    position = _skip(_WHITE, text.buffer, text.at)
    found = text.buffer[position : position + 40]
    if wrapped:
        second = _SECOND_LIST.search(text.buffer, position)
        if second is not None:
            yield Element(
                number,
                text.line,
                None,
                f"a second list of rows, not read: {text.buffer[position : second.end()][-40:]!r}",
            )
    elif found:
        text.advance(position)
        yield Element(number, text.line, None, f"text after the end of the array, not read: {found!r}")
