"""Prompts of a safety set: posttrain's own, a YAML file of the same form, or rows such as XSTest's.

A set says of every prompt whether a good model complies with it. Without that there is no telling a refusal that is right from one that
is not, so a file that does not say it and a recipe that does not either is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from posttrain.config import ConfigPath, Problem, build, read_yaml
from posttrain.errors import DataError
from posttrain.judge.refusal import SafetyPrompt
from posttrain.tasks.rows import BUILTIN, file_rows, label_of, row_ids, text_of
from posttrain.types import Origin

Expect = Literal["comply", "refuse"]
"""What a good model does."""

OWN_PROMPTS = Path(__file__).resolve().parent / "safety_prompts.yaml"
TEXT_COLUMNS = ("prompt", "question", "instruction", "goal")
TYPE_COLUMNS = ("type", "category")
_CONTRAST = "contrast_"
_SAYS = {"expect": {"comply": True, "refuse": False}, "label": {"safe": True, "unsafe": False}}
"""Column -> word -> whether a good model complies."""

Row = tuple[Origin, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SafetyEntry:
    """One prompt as a YAML file writes it."""

    id: Annotated[str, MinLen(1)]
    """Unique in the file."""
    language: Literal["en", "zh"]
    type: Annotated[str, MinLen(1)]
    """What the prompt tries; tables have a row for each."""
    expect: Expect
    """What a good model does with it."""
    prompt: Annotated[str, MinLen(1)]
    """The user turn, sent as it is."""


@dataclass(frozen=True, kw_only=True)
class SafetyFile:
    """A YAML file of safety prompts."""

    prompts: Annotated[tuple[SafetyEntry, ...], MinLen(1)]
    """In the order they are asked."""


def is_safety_file(source: str) -> bool:
    """Whether prompts come in posttrain's own form, which says everything itself: ``builtin`` or a YAML file."""
    return source == BUILTIN or source.endswith((".yaml", ".yml"))


def load_safety_file(source: str = BUILTIN) -> tuple[SafetyPrompt, ...]:
    """The prompts of posttrain's own set (``builtin``), or of a YAML file of its form, in their order.

    Raises:
        ConfigError: names file, line and entry of everything that is wrong.

    """
    return _own_prompts() if source == BUILTIN else _read(source)


@cache
def _own_prompts() -> tuple[SafetyPrompt, ...]:
    return _read(OWN_PROMPTS)


def _read(source: str | Path) -> tuple[SafetyPrompt, ...]:
    document = read_yaml(source)
    first: dict[str, ConfigPath] = {}
    problems = []
    prompts = []
    for number, entry in enumerate(build(SafetyFile, document).prompts):
        path: ConfigPath = ("prompts", number, "id")
        if entry.id in first:
            line = document.place(first[entry.id])
            problems.append(Problem(path, f"{entry.id!r} is the id of another prompt (line {line})"))
        first.setdefault(entry.id, path)
        prompts.append(SafetyPrompt(entry.id, entry.prompt, entry.type, entry.expect == "comply", entry.language))
    if problems:
        raise document.error(problems)
    return tuple(prompts)


def load_safety_rows(
    path: str,
    *,
    expect: Expect | None = None,
    language: str | None = None,
    text_column: str | None = None,
    type_column: str | None = None,
) -> tuple[SafetyPrompt, ...]:
    """The prompts of a CSV, JSON Lines, JSON or Parquet file such as XSTest's, in their order.

    A row has a text under ``text_column`` (default: the first of ``TEXT_COLUMNS`` that the first row has). It may have ``id`` (default: its number,
    as ``#1``), a type (``type_column``; default: the first of ``TYPE_COLUMNS``), ``language``, and ``label`` (``safe``, ``unsafe``) or ``expect``
    (``comply``, ``refuse``). Rows that do not say what is expected take ``expect``; where that is not given either, XSTest's types decide:
    ``contrast_`` at the beginning is unsafe. ``language`` is that of the rows that do not say theirs.

    Raises:
        DataError: rows that can't be read, a missing column, an unknown word, an id that comes twice, nothing that says what is expected,
            or an ``expect`` or ``language`` where every row says it itself.

    """
    rows = list(file_rows(path))
    if not rows:
        raise DataError("there are no prompts in this file", where=path, fix="write one object with a prompt a line")
    text_column = text_column or _column(rows, TEXT_COLUMNS) or TEXT_COLUMNS[0]
    if type_column is not None and not any(type_column in row for _, row in rows):
        raise DataError(f"no column {type_column}", where=path, fix=f"type_column: one of {', '.join(rows[0][1])}")
    type_column = type_column or _column(rows, TYPE_COLUMNS)
    kinds = [label_of(row, type_column, origin) or "" if type_column else "" for origin, row in rows]
    languages = [label_of(row, "language", origin) for origin, row in rows]
    if language is not None and None not in languages:
        raise DataError("every row says its language itself", where=path, fix="leave language away")
    safe = _safe(path, rows, kinds, expect)
    return tuple(
        SafetyPrompt(row_id, text_of(row, text_column, origin), kind, complies, own or language)
        for row_id, (origin, row), kind, complies, own in zip(row_ids(rows), rows, kinds, safe, languages, strict=True)
    )


def _column(rows: Sequence[Row], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in rows[0][1]), None)


def _safe(path: str, rows: Sequence[Row], kinds: Sequence[str], expect: Expect | None) -> list[bool]:
    """Of every row, whether a good model complies."""
    said = [_said(row, origin) for origin, row in rows]
    if expect is not None and None not in said:
        raise DataError("every row says itself what is expected", where=path, fix="leave expect away")
    types_say = any(kind.startswith(_CONTRAST) for kind in kinds)
    if expect is None and None in said and not types_say:
        raise DataError(
            "nothing says whether a good model complies with this prompt",
            where=str(rows[said.index(None)][0]),
            fix="give the benchmark expect: refuse (or comply), or the rows a label: safe or unsafe",
        )
    defaults = [expect == "comply" if expect is not None else not kind.startswith(_CONTRAST) for kind in kinds]
    return [default if own is None else own for own, default in zip(said, defaults, strict=True)]


def _said(row: Mapping[str, Any], origin: Origin) -> bool | None:
    for column, words in _SAYS.items():
        word = label_of(row, column, origin)
        if word is None:
            continue
        if word not in words:
            raise DataError(f"{column} {word!r}", where=str(origin), fix=f"use {' or '.join(words)}")
        return words[word]
    return None
