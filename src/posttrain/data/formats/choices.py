"""The options of a multiple-choice question, and the one that an answer means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, RowError, finite, first_text, python_value

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COLUMNS: tuple[tuple[str, ...], ...] = tuple(
    tuple(
        form.format(letter=letter, small=letter.lower(), number=number) for number, letter in enumerate(LETTERS[:8], 1)
    )
    for form in keys.names_of(
        "{letter} option_{small} option_{letter} option{letter} op{small} choice_{small} option{number} choice{number}"
    )
)
"""Options in columns of their own: A, B, C, D, ..."""
_LABELLED = re.compile(r"^\s*\(?([A-Za-z]|\d{1,2})\s?[.):、\uff1a]\s*(.+)$", re.DOTALL)
_LABEL = re.compile(r"(?:^|(?<=[\s,;\uff0c\uff1b]))\(?([A-Za-z]|\d{1,2})\s?[.):、\uff1a]\s*")
_NAMED = re.compile(r"(?:options?|choices?|answers?|opt)?[ _]?([A-Za-z]|\d{1,2})", re.IGNORECASE)
_LETTER = re.compile(r"^\s*\(?([A-Za-z]|\d{1,2})[.):]?\s*$")


class Option(NamedTuple):
    """One option: its letter (or what its author wrote for it) and its text."""

    label: str
    text: str

    @property
    def line(self) -> str:
        """As it stands below the question."""
        return f"{self.label}. {self.text}"


def offered(record: Foreign) -> tuple[tuple[str, ...], list[Option]]:
    """(keys, options) of what a record offers: under ``options`` or ``choices``, or in a column for each; none where there are not two."""
    key = keys.first(record, keys.OPTIONS)
    if key is not None and (options := options_of(record[key])) is not None:
        return (key,), options
    for columns in COLUMNS:
        had = [column for column in columns if keys.is_present(record.get(column))]
        if len(had) > 1 and had == list(columns[: len(had)]):
            values = [record[column] for column in had]
            if all(isinstance(value, str | int | float) for value in values):
                return tuple(had), [Option(letter, str(value)) for letter, value in zip(LETTERS, values, strict=False)]
    return (), []


def options_of(value: Any) -> list[Option] | None:
    """The options of a value: texts, objects or pairs with a label and a text, ARC's two lists, letters with texts, or one text;
    None where it is something else (settings, the choices of a completion, a list of one).
    """
    if isinstance(value, str):
        parsed = python_value(value)
        value = _parts(value) if parsed is None else parsed
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label", value.get("labels"))
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            value = [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)]
        else:
            named = [(_label(label), text) for label, text in value.items()]
            value = [{"label": label, "text": text} for label, text in named if label is not None]
    if not isinstance(value, list):
        return None
    found = [_option(item, LETTERS[number % 26]) for number, item in enumerate(value) if keys.is_present(item)]
    options = [option for option in found if option is not None]
    return options if len(options) == len(found) > 1 else None


def _label(key: str) -> str | None:
    """The letter or number of a key as ``B``, ``option_b``, ``2``; None for any other key."""
    found = _NAMED.fullmatch(key.strip())
    return None if found is None else found[1]


def _parts(text: str) -> list[str]:
    """The options of a text: its lines, what stands behind labels that count on (``a ) 38 , b ) 27``), or between bars."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        return lines
    labels = list(_LABEL.finditer(text))
    if len(labels) > 1 and [label[1].upper() for label in labels] == list(LETTERS[: len(labels)]):
        ends = [*(label.start() for label in labels[1:]), len(text)]
        return [text[label.start() : end].strip(" ,;\uff0c\uff1b") for label, end in zip(labels, ends, strict=True)]
    return re.split(r"\s*[|;\uff1b]\s*", text.strip(" |;\uff1b"))


def _option(item: Any, letter: str) -> Option | None:
    if isinstance(item, list | tuple) and len(item) == 2:
        item = {"label": item[0], "text": item[1]}
    if isinstance(item, Mapping):
        label = first_text(item, ("label", "key", "id", "letter", "option"))
        text = first_text(item, ("text", "value", "content", "answer"))
        return None if text is None else Option(letter if label is None else label.strip(), text)
    if isinstance(item, bool) or not isinstance(item, str | int | float):
        return None
    labelled = _LABELLED.match(item) if isinstance(item, str) else None
    if labelled is not None and labelled[1].upper() == letter:
        return Option(letter, labelled[2].strip())
    return Option(letter, str(item))


def right_ones(answer: Any, options: Sequence[Option], first: int) -> list[Option]:
    """The options that an answer means, one or several (``["A", "C"]``, ``"AC"``), each by its text, its letter, or its number, counted
    from ``first``; none where it means none of them. Raises RowError for a number beyond the options.
    """
    one = _meant(answer, options, first)
    if one is None and isinstance(answer, str) and answer.isupper() and len(set(answer)) == len(answer):
        answer = list(answer)
    if one is not None or not isinstance(answer, list):
        return [] if one is None else [one]
    several = [_meant(part, options, first) for part in answer]
    found = [option for option in several if option is not None]
    return found if len(found) == len(answer) else []


def counted(answer: Any, options: Sequence[Option]) -> int | None:
    """The whole number that an answer is, also as text, where it names no option by its text or label."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if _named(answer, options) is not None:
        return None
    if isinstance(answer, str) and answer.strip().isdecimal():
        answer = finite(answer)
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    return answer if isinstance(answer, int) and not isinstance(answer, bool) else None


def _meant(answer: Any, options: Sequence[Option], first: int) -> Option | None:
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    number = counted(answer, options)
    if number is None:
        return _named(answer, options)
    if not first <= number < first + len(options):
        raise RowError("wrong_shape", f"the answer is option {number} (counted from {first}) of {len(options)}")
    return options[number - first]


def _named(answer: Any, options: Sequence[Option]) -> Option | None:
    """The option that an answer names by its text or its label."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    plain = str(answer).strip().casefold()
    if isinstance(answer, str):
        for option in options:
            if plain in (option.text.strip().casefold(), option.line.strip().casefold()):
                return option
    label = _LETTER.match(plain) or _LABELLED.match(plain)
    return next((option for option in options if label is not None and option.label.casefold() == label[1]), None)
