"""What is judged: items of a JSON Lines file. A bad line costs that line and is counted with its place.

One object a line: ``id``, ``prompt`` (or ``turns``, a list), ``reply_a`` and ``reply_b`` (pairs) or ``reply`` (single); each reply is a text,
or a list with one text a turn. Optional: ``category``, ``model_a``, ``model_b`` (``model``), ``reference`` (a text for the last turn, or a
list), ``label``: which reply people found better, or of single replies their rating, a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from posttrain.errors import DataError
from posttrain.judge.verdicts import Verdict
from posttrain.types import Origin

_LABELS: dict[object, Verdict] = {
    **dict.fromkeys(("a", "first", "model_a", "reply_a", "1"), "first"),
    **dict.fromkeys(("b", "second", "model_b", "reply_b", "2"), "second"),
    **dict.fromkeys(("tie", "c", "0"), "tie"),
}


_WANTED = {"pair": "a, b or tie is needed", "single": "a number is needed"}
_NOWHERE = Origin("", 0)

REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding"})
"""Categories whose answers are judged beside a reference answer."""


def base_category(category: str) -> str:
    """The English name of a category; Chinese question sets write ``zh_`` before it."""
    return category.removeprefix("zh_")


def needs_reference(category: str) -> bool:
    """Whether the judge sees a reference answer."""
    return base_category(category) in REFERENCE_CATEGORIES


@dataclass(frozen=True, slots=True)
class Item:
    """One question and the replies to it. Single replies stand in ``replies_a`` and have no ``replies_b``."""

    id: str
    """Names the question: items of one question belong together when resampled."""
    turns: tuple[str, ...]
    replies_a: tuple[str, ...]
    """One a turn."""
    replies_b: tuple[str, ...] = ()
    category: str | None = None
    model_a: str = "a"
    model_b: str = "b"
    references: tuple[str, ...] = ()
    """A reference answer a turn, empty where there is none; or no references at all."""
    label: Verdict | None = None
    """Which reply people found better: ``first`` is a."""
    rating: float | None = None
    """How good people found a single reply."""
    origin: Origin = _NOWHERE


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was left out, and why."""

    place: str
    """File and line."""
    problem: str


class ItemsRead(NamedTuple):
    """The items of a file and what was left out."""

    items: tuple[Item, ...]
    bad: tuple[BadLine, ...]


def read_items(path: Path, task: Literal["pair", "single"], *, labelled: bool = False) -> ItemsRead:
    """The items of a JSON Lines file, in its order. ``labelled``: a line without a label is a bad line.

    Raises:
        DataError: the file can't be read, or no line of it can be used (names the first problem).

    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"can't read the items: {error.strerror}", where=str(path)) from error
    items: list[Item] = []
    bad: list[BadLine] = []
    seen: dict[tuple[str, str, str], int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        origin = Origin(str(path), number)
        try:
            item = _item(json.loads(line.decode("utf-8-sig")), task, origin)
            key = (item.id, item.model_a, item.model_b)
            if key in seen:
                raise ValueError(f"id {item.id!r} comes a second time (first in line {seen[key]})")
            if labelled and item.label is None and item.rating is None:
                raise ValueError(f"no label: {_WANTED[task]}")
        except (ValueError, RecursionError) as error:
            bad.append(BadLine(str(origin), _words(error)))
            continue
        seen[key] = number
        items.append(item)
    if not items:
        first = "".join(f"\n  {line.place}: {line.problem}" for line in bad[:3])
        problem = f"no line can be used of {len(bad):,}{first}" if bad else "this file is empty"
        raise DataError(problem, where=str(path), fix="one JSON object a line: id, prompt, replies (docs/judges.md)")
    return ItemsRead(tuple(items), tuple(bad))


def _words(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, json.JSONDecodeError | RecursionError):
        return "not JSON"
    return str(error)


def _item(record: Any, task: str, origin: Origin) -> Item:
    """Raises ValueError with what is wrong."""
    if not isinstance(record, Mapping):
        raise ValueError(f"a JSON object is needed, not {type(record).__name__}")
    if ("prompt" in record) == ("turns" in record):
        raise ValueError("either prompt or turns is needed")
    turns = _texts(record, "turns" if "turns" in record else "prompt")
    pair = task == "pair"
    replies = {key: _texts(record, key) for key in (("reply_a", "reply_b") if pair else ("reply",))}
    for key, texts in replies.items():
        if len(texts) != len(turns):
            raise ValueError(f"{len(turns)} turns, but {len(texts)} texts in {key}")
    model_a = _name(record, "model_a" if pair else "model", "a")
    model_b = _name(record, "model_b", "b") if pair else ""
    if model_a == model_b:
        raise ValueError(f"model_a and model_b are both {model_a!r}")
    label = record.get("label")
    return Item(
        id=_id(record),
        turns=turns,
        replies_a=replies["reply_a" if pair else "reply"],
        replies_b=replies.get("reply_b", ()),
        category=_name(record, "category", "") or None,
        model_a=model_a,
        model_b=model_b,
        references=_references(record, len(turns)),
        label=_verdict(label) if pair and label is not None else None,
        rating=_rating(label) if not pair and label is not None else None,
        origin=origin,
    )


def _id(record: Mapping[str, Any]) -> str:
    value = record.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError("id: a text or a whole number is needed")
    return str(value)


def _texts(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = record.get(key)
    texts: list[Any] = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key}: a text, or a list of texts, is needed")
    if key in ("prompt", "turns") and not all(text.strip() for text in texts):
        raise ValueError(f"{key}: an empty question")
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise ValueError(f"{key}: half of a surrogate pair")
    return tuple(texts)


def _references(record: Mapping[str, Any], turns: int) -> tuple[str, ...]:
    if record.get("reference") in (None, "", []):
        return ()
    texts = _texts(record, "reference")
    if len(texts) == turns:
        return texts
    if len(texts) == 1:
        return ("",) * (turns - 1) + texts
    raise ValueError(f"{turns} turns, but {len(texts)} texts in reference")


def _name(record: Mapping[str, Any], key: str, default: str) -> str:
    value = record.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: a text is needed")
    return value


def _verdict(label: Any) -> Verdict:
    word = "" if isinstance(label, bool) else str(label).strip().lower()
    if word not in _LABELS:
        raise ValueError(f"label {label!r}: {_WANTED['pair']} (also 1 and 2)")
    return _LABELS[word]


def _rating(label: Any) -> float:
    if isinstance(label, bool) or not isinstance(label, int | float) or not -1e300 < label < 1e300:
        raise ValueError(f"label {label!r}: {_WANTED['single']}")
    return float(label)
