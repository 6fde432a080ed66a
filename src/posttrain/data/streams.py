"""Bytes of a file, decompressed block by block, and its lines. One loop for all four compressions; UTF-16 and UTF-32 become UTF-8.

Lines end at LF only (CR before it is left to the reader): U+2028, U+2029, U+0085, VT and FF are legal inside JSON
strings, and ``str.splitlines`` would cut a row in two there.
"""

from __future__ import annotations

import bz2
import codecs
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

Tick = Callable[[int, int], None]
"""Called as ``tick(done, total)`` while a file is read: bytes on disk, or rows where a reader counts rows."""

BLOCK_BYTES = 1 << 20


def printable(text: str) -> str:
    """The text with lone surrogates (from broken bytes) spelt out, so that it can be written anywhere."""
    return text.encode("utf-8", "backslashreplace").decode()


_COMPRESSIONS: tuple[tuple[bytes, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),  # gzip header and checksum
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    (b"\x28\xb5\x2f\xfd", lambda: zstandard.ZstdDecompressor().decompressobj()),
)
"""First bytes -> a decompressor, with ``decompress``, ``eof`` and ``unused_data``."""
_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_WIDE = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order mark -> encoding; the longer marks first, because one begins with another."""


def uncompressed(name: str) -> str:
    """The name of a file without the suffixes of compression."""
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


class Stream:
    """The decompressed blocks of one file, readable once.

    The compression is recognised by its first bytes, UTF-16 and UTF-32 by a byte order mark (UTF-16 also by zeros beside a JSON
    bracket); their text is delivered as UTF-8. ``damage`` is set, and the blocks end, where compressed data are cut off or
    corrupt, or wide characters broken: everything before that place is still delivered. ``tick`` gets the position on disk.
    """

    def __init__(self, path: Path, tick: Tick | None = None) -> None:
        self.path, self.tick = path, tick
        self.damage: str | None = None
        self.compressed = False
        self._blocks = self._utf8(self._decompressed())
        self.head = next(self._blocks, b"")
        """The first block, also delivered by ``blocks``."""

    def blocks(self) -> Iterator[bytes]:
        """All blocks from the beginning."""
        yield self.head
        yield from self._blocks

    def lines(self, skip: int = 0) -> Iterator[bytes]:
        """All lines without their LF, but the first ``skip``; the last one also where no LF ends it."""
        rest = b""
        for block in self.blocks():
            if skip:
                if (ended := block.count(b"\n")) < skip:
                    skip -= ended
                    continue
                block, skip = block.split(b"\n", skip)[skip], 0
            first, *others = block.split(b"\n")
            rest += first
            if others:
                yield rest
                yield from others[:-1]
                rest = others[-1]
        if rest:
            yield rest

    def _raw(self) -> Iterator[bytes]:
        total = self.path.stat().st_size
        with self.path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
                if self.tick is not None:
                    self.tick(file.tell(), total)

    def _decompressed(self) -> Iterator[bytes]:
        raw = self._raw()
        first = next(raw, b"")
        make = next((make for magic, make in _COMPRESSIONS if first.startswith(magic)), None)
        self.compressed = make is not None
        if make is None:
            yield first
            yield from raw
            return
        decompressor = make()
        block: bytes | None = first
        try:
            while block is not None:
                while block:
                    if out := decompressor.decompress(block):
                        yield out
                    block = decompressor.unused_data if decompressor.eof else b""
                    # several members may follow one another; zeros after the last one are padding
                    if block := block.lstrip(b"\0"):
                        decompressor = make()
                block = next(raw, None)
                if block and decompressor.eof and (block := block.lstrip(b"\0")):
                    decompressor = make()
        except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as error:
            self.damage = f"the compressed data are corrupt: {error}"
            return
        if not decompressor.eof:
            self.damage = "the compressed file is cut off: what followed is lost"

    def _utf8(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        first = next(blocks, b"")
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" not in first:
            # a mark without what it stands for: wide text has zeros beside every bracket, comma and break
            first = first[2:]
        encoding = next((name for mark, name in _WIDE if first.startswith(mark)), None)
        if first[:1] in (b"{", b"[") and first[1:2] == b"\0" == first[3:4]:
            encoding = "utf-16-le"
        if first[1:2] in (b"{", b"[") and first[:1] == b"\0" == first[2:3]:
            encoding = "utf-16-be"
        if encoding is None:
            yield first
            yield from blocks
            return
        decode = codecs.getincrementaldecoder(encoding)("surrogatepass").decode
        try:
            for block in itertools.chain([first], blocks):
                yield decode(block).encode("utf-8", "surrogatepass")
            if rest := decode(b"", True):
                yield rest.encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            self.damage = f"the text is not {encoding.upper()} from here on: {error.reason}"
