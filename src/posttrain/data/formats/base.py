"""How values of records are read."""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Set
from typing import Any

Foreign = Mapping[str, Any]
"""A record as its author wrote it."""

_LONGEST_META = 200


class RowError(Exception):
    """A record can't become a row: ``reason`` is one of the fixed short reasons of docs/data-formats.md."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


def lacking(record: Foreign, detail: str) -> RowError:
    """The error of a record that has not what its format needs."""
    return RowError("wrong_shape", f"{detail}; keys: {', '.join(map(str, record))}"[:200])


def optional_text(record: Foreign, key: str) -> str:
    """The text under a key, verbatim; a missing or null one is the empty string."""
    value = record.get(key)
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        raise RowError("wrong_shape", f"{key!r} is {kind_of(value)}, expected text")
    return value


def first_text(record: Foreign, names: Iterable[str]) -> str | None:
    """The first of some keys' values that is text."""
    return next((record[name] for name in names if isinstance(record.get(name), str)), None)


def items(record: Foreign, key: str) -> list[Any]:
    """The list under a key; JSON text (as in a CSV cell) is parsed; a missing, null or blank one is empty."""
    value = record.get(key)
    if isinstance(value, str):
        value = json_value(value, key) if value.strip() else None
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError("wrong_shape", f"{key!r} is {kind_of(value)}, expected a list")
    return value


def objects(record: Foreign, key: str) -> list[Foreign]:
    """The list under a key, as :func:`items`, where every item must be an object."""
    found = items(record, key)
    for item in found:
        if not isinstance(item, Mapping):
            raise RowError("wrong_shape", f"{key!r} holds {kind_of(item)}, expected objects")
    return found


def finite(value: Any) -> float | None:
    """A number, or a number written as text; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def json_value(text: str, what: str) -> Any:
    """The value of JSON text inside a record, or a ``wrong_shape`` that says what it should have been."""
    value = value_in(text)
    if value is None and text.strip() != "null":
        raise RowError("wrong_shape", f"{what!r} is not JSON: {text[:80]!r}")
    return value


def value_in(text: str) -> Any:
    """The value of a text in JSON, or as Python prints it (a column of a CSV that pandas wrote); None where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return python_value(text)


def python_value(text: str) -> Any:
    """The list or object of a text as Python prints it (or of JSON); None for any other text."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes in the texts
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, list | dict) else None


def kind_of(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def is_unicode(text: str) -> bool:
    """Whether a text can be written: without lone surrogates, which broken bytes leave behind."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def meta_of(record: Foreign, used: Set[str]) -> dict[str, Any]:
    """The other keys with short plain values (identifiers, categories, scores), for later tables and filters."""
    return {key: value for key, value in record.items() if key not in used and is_unicode(key) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_META and is_unicode(value)
    return isinstance(value, bool) or (isinstance(value, int | float) and finite(value) is not None)
