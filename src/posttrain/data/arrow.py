"""The messages of an Arrow stream or file, held against their bodies before polars reads them.

A flipped byte may announce more values, or a longer text behind the compression, than there can be: polars asks the system for that much
and the process ends. Layout: Apache Arrow's format/Message.fbs and File.fbs, read without their library.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard

SCHEMA, DICTIONARY, BATCH = 1, 2, 3
"""Kinds of messages."""
_PREFIX = 8
"""Bytes of the mark and the length before a message's description."""
_DENSEST = 1 << 16
"""Bytes that one compressed byte can stand for: zstd's runs come to half of it."""
_UNSTORED = 1 << 24
"""Values that may take no bytes: those of a column of nulls."""


class Message(NamedTuple):
    """What the description of a message says."""

    kind: int
    body: int
    """Length of its body in bytes."""
    header: int
    """Where its header stands in the description."""


def described(description: bytes) -> Message:
    """Kind, length of the body, header. Raises struct.error, IndexError or ValueError where it is none."""
    table = _follow(description, 0)
    kind, header, body = (_field(description, table, number) for number in (1, 2, 3))
    return Message(
        description[kind] if kind else 0,
        _int64(description, body) if body else 0,
        _follow(description, header) if header else 0,
    )


def check_sizes(description: bytes, body: bytes | memoryview) -> None:
    """Raise ValueError where a batch announces what its body can't hold."""
    message = described(description)
    if message.kind not in (DICTIONARY, BATCH):
        return
    batch = message.header
    if message.kind == DICTIONARY:
        batch = _follow(description, _needed(description, batch, 1))
    packed, stored = _field(description, batch, 3) is not None, 0
    for offset, length in _pairs(description, _needed(description, batch, 2)):
        if not 0 <= offset <= offset + length <= len(body) or length < 0:
            raise ValueError(f"a buffer of {length} bytes at {offset} in a body of {len(body)}")
        stored += _unpacked(bytes(body[offset : offset + min(length, 64)]), length) if packed and length else length
    rows = _field(description, batch, 0)
    counts = [(_int64(description, rows) if rows else 0, 0), *_pairs(description, _field(description, batch, 1))]
    for values, nulls in counts:
        if not 0 <= nulls <= values <= 8 * stored + _UNSTORED:
            raise ValueError(f"{values} values with {nulls} nulls in {stored} bytes")


def check_file(path: Path) -> None:
    """`check_sizes` of every batch that the index of an Arrow file names; raises as `described`."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        size = struct.unpack_from("<i", whole, len(whole) - 10)[0]
        index = whole[len(whole) - 10 - size : len(whole) - 10]
        table = _follow(index, 0)
        for number in (2, 3):
            start, count = _vector(index, _field(index, table, number))
            for place in range(start, start + 24 * count, 24):
                at, described_length, body = struct.unpack_from("<qi4xq", index, place)
                begin = at + described_length
                if not 0 <= at < begin <= begin + body <= len(whole):
                    raise ValueError(f"a batch of {body} bytes at {at} in a file of {len(whole)}")
                with memoryview(whole) as view, view[begin : begin + body] as content:
                    check_sizes(whole[at + _PREFIX : begin], content)


def _unpacked(begin: bytes, length: int) -> int:
    """The length of a compressed buffer when it is unpacked, as its first eight bytes announce it (-1: it is not packed)."""
    announced = _int64(begin, 0)
    if announced == -1:
        return length - 8
    if not 0 <= announced <= _DENSEST * length:
        raise ValueError(f"{announced} bytes are announced of {length} compressed ones")
    known = _content_size(begin[8:])
    if known not in (None, announced):
        raise ValueError(f"{announced} bytes are announced where the compressed data hold {known}")
    return announced


def _content_size(frame: bytes) -> int | None:
    """What a zstd frame says of its content; None where it says nothing, or is of another compression."""
    try:
        size = zstandard.frame_content_size(frame)
    except zstandard.ZstdError:
        return None
    return size if size >= 0 else None


def _follow(data: bytes, place: int) -> int:
    return place + int(struct.unpack_from("<I", data, place)[0])


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a field of a table stands; None where it is left out."""
    fields = table - int(struct.unpack_from("<i", data, table)[0])
    size, place = struct.unpack_from("<H", data, fields)[0], 4 + 2 * number
    offset = struct.unpack_from("<H", data, fields + place)[0] if place < size else 0
    return table + offset if offset else None


def _needed(data: bytes, table: int, number: int) -> int:
    place = _field(data, table, number)
    if place is None:
        raise ValueError("a batch without its parts")
    return place


def _vector(data: bytes, place: int | None) -> tuple[int, int]:
    """(where the first element stands, how many there are)."""
    if place is None:
        return 0, 0
    start = _follow(data, place)
    return start + 4, int(struct.unpack_from("<I", data, start)[0])


def _pairs(data: bytes, place: int | None) -> Iterator[tuple[int, int]]:
    start, count = _vector(data, place)
    for number in range(count):
        first, second = struct.unpack_from("<qq", data, start + 16 * number)
        yield int(first), int(second)


def _int64(data: bytes, place: int) -> int:
    return int(struct.unpack_from("<q", data, place)[0])
