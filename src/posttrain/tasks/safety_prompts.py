"""Prompts of a safety set: posttrain's own, a YAML file of the same form, or rows such as XSTest's.

A set says of every prompt whether a good model complies with it. Without that there is no telling a refusal that is right from one that
is not, so a file that does not say it and a recipe that does not either is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from posttrain.config import build, read_yaml
from posttrain.errors import DataError
from posttrain.judge.refusal import SafetyPrompt
from posttrain.tasks.prompts import repeated_ids
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
    entries = build(SafetyFile, document).prompts
    problems = repeated_ids(document, [(("prompts", number), entry.id) for number, entry in enumerate(entries)])
    if problems:
        raise document.error(problems)
    return tuple(SafetyPrompt(one.id, one.prompt, one.type, one.expect == "comply", one.language) for one in entries)


def load_safety_rows(
    path: str,
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
    columns = rows[0][1]
    text_column = text_column or next((name for name in TEXT_COLUMNS if name in columns), TEXT_COLUMNS[0])
    if type_column is not None and not any(type_column in row for _, row in rows):
        raise DataError(f"no column {type_column}", where=path, fix=f"type_column: one of {', '.join(columns)}")
    type_column = type_column or next((name for name in TYPE_COLUMNS if name in columns), None)
    kinds = [label_of(row, type_column, origin) or "" if type_column else "" for origin, row in rows]
    languages = [label_of(row, "language", origin) for origin, row in rows]
    if language is not None and None not in languages:
        raise DataError("every row says its language itself", where=path, fix="leave language away")
    own = [_complies(row, origin) for origin, row in rows]
    if expect is not None and None not in own:
        raise DataError("every row says itself what is expected", where=path, fix="leave expect away")
    if expect is None and None in own and not any(kind.startswith(_CONTRAST) for kind in kinds):
        raise DataError(
            "nothing says whether a good model complies with this prompt",
            where=str(rows[own.index(None)][0]),
            fix="give the benchmark expect: refuse (or comply), or the rows a label: safe or unsafe",
        )
    found = []
    for name, (origin, row), kind, complies, spoken in zip(row_ids(rows), rows, kinds, own, languages, strict=True):
        if complies is None:
            complies = expect == "comply" if expect is not None else not kind.startswith(_CONTRAST)
        found.append(SafetyPrompt(name, text_of(row, text_column, origin), kind, complies, spoken or language))
    return tuple(found)


def _complies(row: Mapping[str, Any], origin: Origin) -> bool | None:
    """Whether a good model complies, where the row says it itself."""
    for column, words in _SAYS.items():
        word = label_of(row, column, origin)
        if word is None:
            continue
        if word not in words:
            raise DataError(f"{column} {word!r}", where=str(origin), fix=f"use {' or '.join(words)}")
        return words[word]
    return None
