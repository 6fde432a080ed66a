"""What kind of file this is, by its first bytes, then by its name; of a file without rows, what it is and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from posttrain.data.formats.columns import rows_of_columns
from posttrain.data.json_array import COMMENT, wrapped_array
from posttrain.data.streams import BLOCK_BYTES, Stream, uncompressed
from posttrain.errors import DataError

Kind = Literal["array", "values", "lines", "cells", "parquet", "arrow"]
"""Elements of a JSON array, JSON objects one after the other, one JSON object a line, cells between separators, Parquet, Arrow."""

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
KNOWN_FILES = ".json, .jsonl or .ndjson, .csv, .tsv (each also .gz, .bz2, .xz, .zst), .parquet, .arrow"
ARROW_FILE, ARROW_STREAM = b"ARROW1\0\0", b"\xff\xff\xff\xff"
_LINES = (".jsonl", ".ndjson")
_CELLS = (".csv", ".tsv")
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a Git-LFS pointer, not the file it stands for", "run git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the file it stands for", "run git annex get"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet)", "unpack it, or save the sheet as CSV"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give the folder"),
    (b"Rar!", "a rar archive", "unpack it and give the folder"),
    (b"SQLite format 3\0", "an SQLite database", "write its table as JSON Lines or CSV"),
    (b"%PDF", "a PDF document", "give the rows as JSON Lines"),
    (b"\x93NUMPY", "a NumPy array", "write its rows as JSON Lines"),
    (b"\x80\x04", "a pickle, which is a program and never loaded", "write its rows as JSON Lines"),
    (b"\x80\x05", "a pickle, which is a program and never loaded", "write its rows as JSON Lines"),
    (b"FEA1", "a Feather file of the first version", "write it again as Parquet"),
    (b"Obj\x01", "an Avro file", "write it again as Parquet"),
    (b"ORC", "an ORC file", "write it again as Parquet"),
)
"""First bytes, what has them, what to do."""
_COMMENT = re.compile(COMMENT.encode(), re.DOTALL)
_HTML = re.compile(rb"<(!doctype html|html|head|body)\b", re.IGNORECASE)
_HAN = re.compile("[\u4e00-\u9fff]")


class EmptyFileError(DataError):
    """A file without any content: an error where it is all there is, and told in the account where others hold rows."""


def data_suffix(path: Path) -> str | None:
    """``.json``, ``.csv``, ... of a name, looking below a compression suffix; None where it isn't a data file's."""
    name = uncompressed(path.name.lower())
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def sniff(stream: Stream, label: str) -> Kind:
    """The kind of a file. Raises DataError where it is none we read, with what it is and what to do."""
    head, suffix = stream.head, data_suffix(stream.path)
    if head.startswith((b"PAR1", ARROW_FILE)) and stream.compressed:
        raise DataError("a binary table inside a compressed file", where=label, fix="decompress it first")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((ARROW_FILE, ARROW_STREAM)):
        return "arrow"
    for magic, what, fix in _FOREIGN:
        if head.startswith(magic):
            raise DataError(f"this is {what}", where=label, fix=fix)
    if head[257:262] == b"ustar":
        raise DataError("this is a tar archive", where=label, fix="unpack it and give the folder")
    text = _after_comments(head)
    if not text:
        if stream.damage is not None:
            raise DataError(stream.damage, where=label, fix="fetch the file again")
        raise EmptyFileError("the file is empty", where=label, fix="give a file with rows")
    if _HTML.match(text):
        raise DataError("this is a web page, not data", where=label, fix="fetch the file itself (its raw form)")
    if suffix is None:
        looks = " (its content looks like JSON: rename it to .jsonl)" if text[:1] in (b"{", b"[") else ""
        raise DataError(f"not a data file by its name{looks}", where=label, fix=f"use {KNOWN_FILES}")
    _check_encoding(head, label)
    return _text_kind(text, suffix, label)


def is_about_rows(path: Path, is_row: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Whether a ``.json`` file is one value alone and no row, such as a description of the rows beside it."""
    if data_suffix(path) != ".json" or path.stat().st_size >= BLOCK_BYTES:
        return False
    try:
        text = Stream(path).head.decode("utf-8-sig")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return False
    if isinstance(value, dict):
        return (
            bool(value)
            and not is_row(value)
            and wrapped_array(text) is None
            and rows_of_columns(value, alone=True) is None
        )
    return not isinstance(value, list)


def _after_comments(head: bytes) -> bytes:
    """The text without a byte order mark, white space and comments before it."""
    text = head.lstrip(b"\xef\xbb\xbf").lstrip()
    while (comment := _COMMENT.match(text)) is not None:
        text = text[comment.end() :].lstrip()
    return text


def _text_kind(text: bytes, suffix: str, label: str) -> Kind:
    if suffix in (".parquet", ".arrow", ".feather") and text[:1] not in (b"{", b"["):
        named = {".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow"}[suffix]
        raise DataError(f"not a {named} file by its first bytes", where=label, fix="write or fetch it again")
    if text[:1] == b"[" and not (suffix in _LINES and _lines_of_lists(text)):
        return "array" if suffix not in _CELLS or text[1:].lstrip()[:1] == b"{" else "cells"
    if text[:1] == b"{":
        return _object_kind(text)
    first, *others = text.split(b"\n", 51)
    if suffix in _LINES and (_is_json(first) or any(line.lstrip()[:1] in (b"{", b"[") for line in others)):
        return "lines"  # also where the first are texts in JSON: each is told as no object
    if suffix in _CELLS:
        return "cells"
    looks = next((name for mark, name in ((b"\t", ".tsv"), (b",", ".csv"), (b";", ".csv")) if mark in first), None)
    fix = f"use {KNOWN_FILES}" + (f"; it looks like a table: rename it to {looks}" if looks is not None else "")
    raise DataError(f"not JSON: it begins with {text[:20]!r}", where=label, fix=fix)


def _lines_of_lists(text: bytes) -> bool:
    """Whether the first line is a whole JSON value and other lines follow: JSON Lines, each row a list."""
    first, _, others = text.partition(b"\n")
    return bool(others.strip()) and isinstance(_json_or_none(first), list)


def _object_kind(text: bytes) -> Kind:
    """What a file is that begins with an object."""
    lines = [line for line in text.split(b"\n", 51)[:50] if line.strip()]
    first = _json_or_none(lines[0])
    if len(lines) > 1 and isinstance(first, dict):
        return "lines"
    if wrapped_array(text.decode("utf-8", "replace")) is not None:
        return "array"
    if len(lines) == 1:
        return "values" if rows_of_columns(first, alone=True) is not None else "lines"
    # broken lines of objects, or objects over several lines
    alone = [line for line in lines if line.startswith(b"{")]
    return "lines" if len(alone) == len(lines) or any(line.rstrip().endswith(b"}") for line in alone) else "values"


def _is_json(line: bytes) -> bool:
    return _json_or_none(line) is not None or line.strip() == b"null"


def _json_or_none(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _check_encoding(head: bytes, label: str) -> None:
    """Raise DataError where most lines are Chinese text in GBK: all of them but the English ones would be dropped."""
    lines = head.splitlines()[:1000]
    broken = [] if head.isascii() else [line for line in lines[:-1] or lines if not _is_utf8(line)]
    if 2 * len(broken) >= len(lines) and _is_gbk(b"\n".join(broken)):
        fix = "convert it: iconv -f GB18030 -t UTF-8 FILE > NEW"
        raise DataError("the text is GBK (GB18030), not UTF-8", where=label, fix=fix)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_gbk(sample: bytes) -> bool:
    """Whether bytes are Chinese text in GB18030: they decode, and nearly all that is not ASCII are the frequent characters.

    The frequent characters of GB 2312 begin with a byte from B0 to D7; text of another encoding scatters.
    """
    try:
        text = sample.decode("gb18030")
    except UnicodeDecodeError:
        return False
    han = _HAN.findall(text)
    frequent = sum(0xB0 <= character.encode("gb18030")[0] <= 0xD7 for character in han)
    others = sum(not character.isascii() for character in text) - len(han)
    return bool(han) and frequent >= 0.8 * len(han) and others <= len(han)
