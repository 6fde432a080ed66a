"""Blocks and lines of plain and compressed files."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data import streams
from posttrain.data.streams import Stream

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}
TEXT = b"".join(b'{"row": %d, "text": "%d"}\n' % (n, n * 7919) for n in range(500))


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut files into blocks of 7 bytes, so that every border falls somewhere awkward."""
    monkeypatch.setattr(streams, "BLOCK_BYTES", 7)


def stream(tmp_path: Path, data: bytes) -> Stream:
    path = tmp_path / "file"
    path.write_bytes(data)
    return Stream(path)


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("members", [1, 2, 3])
def test_every_compression_and_its_members_are_read_whole(tmp_path: Path, kind: str, members: int) -> None:
    found = stream(tmp_path, COMPRESS[kind](TEXT) * members)
    assert b"".join(found.blocks()) == TEXT * members
    assert found.damage is None


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_cut_compressed_file_delivers_what_was_there_and_says_so(tmp_path: Path, kind: str) -> None:
    whole = COMPRESS[kind](TEXT * 20)
    found = stream(tmp_path, whole[: len(whole) - 9])
    assert (TEXT * 20).startswith(b"".join(found.blocks()))
    assert found.damage is not None
    assert "cut off" in found.damage


def test_corrupt_bytes_end_the_stream_and_say_so(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(TEXT))
    whole[len(whole) // 2] ^= 0xFF
    found = stream(tmp_path, bytes(whole))
    b"".join(found.blocks())
    assert found.damage is not None
    assert "corrupt" in found.damage


def test_zero_padding_after_a_member_is_no_damage(tmp_path: Path) -> None:
    found = stream(tmp_path, gzip.compress(TEXT) + b"\0" * 512)
    assert b"".join(found.blocks()) == TEXT
    assert found.damage is None


def test_tick_counts_the_bytes_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(TEXT))
    ticks: list[tuple[int, int]] = []
    b"".join(Stream(path, lambda done, total: ticks.append((done, total))).blocks())
    assert ticks == [(path.stat().st_size, path.stat().st_size)]


@given(data=st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", "\u2028".encode(), b"\x0c", b"\x85"])).map(b"".join))
def test_lines_end_at_line_feeds_and_nowhere_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(data)
    for block_bytes in (1, 3, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streams, "BLOCK_BYTES", block_bytes)
            assert list(Stream(path).lines()) == expected
            for skip in range(len(expected) + 2):
                assert list(Stream(path).lines(skip)) == expected[skip:]
