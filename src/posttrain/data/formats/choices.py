"""The options of a multiple-choice question, and the one that an answer means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, RowError, python_value

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COLUMNS: tuple[tuple[str, ...], ...] = tuple(
    tuple(
        form.format(letter=letter, small=letter.lower(), number=number) for number, letter in enumerate(LETTERS[:8], 1)
    )
    for form in (
        "{letter}",
        "option_{small}",
        "option_{letter}",
        "option{letter}",
        "op{small}",
        "choice_{small}",
        "option{number}",
        "choice{number}",
    )
)
"""Options in columns of their own: A, B, C, D, ..."""
_LABELLED = re.compile(r"^\s*\(?([A-Za-z]|\d{1,2})[.):、:]\s*(.+)$", re.DOTALL)
_LETTER = re.compile(r"^\s*\(?([A-Za-z]|\d{1,2})[.):]?\s*$")


class Option(NamedTuple):
    """One option: its letter (or what its author wrote for it) and its text."""

    label: str
    text: str

    @property
    def line(self) -> str:
        """As it stands below the question."""
        return f"{self.label}. {self.text}"


def option_columns(record: Foreign) -> tuple[tuple[str, ...], list[Option]] | None:
    """(columns, options) where a record has a column for each of two options and more."""
    for columns in COLUMNS:
        had = [column for column in columns if keys.is_present(record.get(column))]
        if len(had) > 1 and had == list(columns[: len(had)]):
            values = [record[column] for column in had]
            if all(isinstance(value, str | int | float) for value in values):
                return tuple(had), [Option(letter, str(value)) for letter, value in zip(LETTERS, values, strict=False)]
    return None


def options_of(value: Any) -> list[Option] | None:
    """The options of a value: texts, objects with a label and a text, ARC's two lists, letters with texts, or a text of lines.

    None where it is something else (the choices of a completion, say). A list of one is no choice.
    """
    if isinstance(value, str):
        parsed = python_value(value)
        value = value.splitlines() if parsed is None else parsed
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label", value.get("labels"))
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            value = [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)]
        else:
            value = [{"label": label, "text": text} for label, text in value.items()]
    if not isinstance(value, list):
        return None
    found = [_option(item, LETTERS[number % 26]) for number, item in enumerate(value) if keys.is_present(item)]
    options = [option for option in found if option is not None]
    return options if len(options) == len(found) > 1 else None


def _option(item: Any, letter: str) -> Option | None:
    if isinstance(item, Mapping):
        label = next(
            (item[key] for key in ("label", "key", "id", "letter", "option") if isinstance(item.get(key), str)), letter
        )
        text = next(
            (item[key] for key in ("text", "value", "content", "answer") if isinstance(item.get(key), str)), None
        )
        return None if text is None else Option(label.strip(), text)
    if isinstance(item, bool) or not isinstance(item, str | int | float):
        return None
    labelled = _LABELLED.match(item) if isinstance(item, str) else None
    if labelled is not None and labelled[1].upper() == letter:
        return Option(letter, labelled[2].strip())
    return Option(letter, str(item))


def meant(answer: Any, options: Sequence[Option]) -> Option | None:
    """The option that an answer means: its text, its letter, or its number counted from 0. None where it is none of these.

    Raises RowError (``wrong_shape``) for a number beyond the options.
    """
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, bool):
        return None
    if isinstance(answer, str):
        plain = answer.strip().casefold()
        for option in options:
            if plain in (option.text.strip().casefold(), option.line.strip().casefold()):
                return option
        named = _LETTER.match(answer) or _LABELLED.match(answer)
        if named is not None:
            for option in options:
                if option.label.casefold() == named[1].casefold():
                    return option
        if not plain.isdecimal():
            return None
        answer = int(plain)
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if not isinstance(answer, int):
        return None
    if not 0 <= answer < len(options):
        raise RowError("wrong_shape", f"the answer is option {answer} (counted from 0) of {len(options)}")
    return options[answer]
