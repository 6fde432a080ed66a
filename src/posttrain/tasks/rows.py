"""Prompts and rows of a benchmark's file, read strictly: a row that can't be used is an error, for a score over other prompts is another score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from posttrain.errors import DataError
from posttrain.generate.engine import Sampling
from posttrain.tasks.base import Task
from posttrain.tasks.prompts import load_prompts
from posttrain.types import Origin

T = TypeVar("T")

BUILTIN = "builtin"
"""The ``path`` that stands for posttrain's own prompts."""


def file_rows(path: str) -> Iterator[tuple[Origin, Mapping[str, Any]]]:
    """Place and content of every row of a JSON Lines, JSON array, CSV or Parquet file (also compressed).

    Raises:
        DataError: a file that can't be read, or anything in it that is no row (names its line).

    """
    from posttrain.data.places import DataFile
    from posttrain.data.sources import read_whole  # loads polars, which reading a recipe does without

    problem, fix = "a benchmark is read whole, and this is no row: ", "mend the row or fetch the file again"
    yield from ((row.origin, row.value) for row in read_whole(DataFile(path, Path(path)), problem, fix))


def plain_tasks(path: str, most: int | None, sampling: Sampling, samples: int = 1) -> tuple[Task, ...]:
    """A task for each prompt of ``builtin`` or a YAML file (see ``posttrain.tasks.prompts``), or of rows with ``prompt``.

    Rows may also have ``id`` (default: their number, as ``#1``), ``category`` and ``language``. ``most``: ask only so many, the first of
    every category, which keeps its share.

    Raises:
        ConfigError: a YAML file that is wrong.
        DataError: any other file that can't be read, or a row without a prompt or with the id of another one.

    """
    if path == BUILTIN or Path(path).suffix in (".yaml", ".yml"):
        tasks = [
            Task(one.id, (one.prompt,), sampling, samples, one.prompt_class, one.language) for one in load_prompts(path)
        ]
    else:
        rows = list(file_rows(path))
        if not rows:
            fix = "write one object with a prompt a line"
            raise DataError("there are no prompts in this file", where=path, fix=fix)
        tasks = []
        for name, (origin, row) in zip(row_ids(rows), rows, strict=True):
            category, language = (label_of(row, key, origin) for key in ("category", "language"))
            tasks.append(Task(name, (text_of(row, "prompt", origin),), sampling, samples, category, language))
    return tuple(keep_shares(tasks, [task.category for task in tasks], most))


def row_ids(rows: Sequence[tuple[Origin, Mapping[str, Any]]]) -> list[str]:
    """The id of every row: its own, otherwise its number from 1, as ``#1``. Raises DataError where two are the same."""
    first: dict[str, Origin] = {}
    for number, (origin, row) in enumerate(rows, 1):
        name = label_of(row, "id", origin) or f"#{number}"
        if name in first:
            raise DataError(
                f"id {name!r} is that of another row ({first[name]})", where=str(origin), fix="give each its own id"
            )
        first[name] = origin
    return list(first)


def text_of(row: Mapping[str, Any], key: str, origin: Origin) -> str:
    """The text under a key. Raises DataError where there is none, or only white space, or broken characters."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        keys = ", ".join(map(str, row))
        raise DataError(f"{key} must be a text that is not blank (keys: {keys})", where=str(origin), fix="write one")
    return unbroken(value, key, origin)


def unbroken(text: str, what: str, origin: Origin) -> str:
    """The text itself. Raises DataError where it holds half of a surrogate pair, as bytes that are not UTF-8 become."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        problem = f"{what} holds bytes that are not UTF-8, or half of a surrogate pair"
        raise DataError(problem, where=str(origin), fix="mend the text")
    return text


def label_of(row: Mapping[str, Any], key: str, origin: Origin) -> str | None:
    """The name under a key: a text or a whole number; None where there is none. Raises DataError where it is anything else."""
    value = row.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{key} must be a text or a whole number", where=str(origin), fix="correct it or leave it away")
    return str(value)


def keep_shares(items: Sequence[T], categories: Sequence[Hashable], most: int | None) -> list[T]:
    """``most`` of the items in their order: the first ones of every category, so many that it keeps its share.

    Shares are rounded by the largest remainder; of equal ones the category that comes first has it. ``most`` None keeps all.

    >>> keep_shares("aAbBcd", ["low", "up", "low", "up", "low", "low"], 3)
    ['a', 'A', 'b']
    """
    if most is None or most >= len(items):
        return list(items)
    counts = Counter(categories)
    quotas = {category: count * most // len(items) for category, count in counts.items()}
    by_remainder = sorted(counts, key=lambda category: -(counts[category] * most % len(items)))
    for category in by_remainder[: most - sum(quotas.values())]:
        quotas[category] += 1
    turns = turns_of(categories)
    return [item for item, category, turn in zip(items, categories, turns, strict=True) if turn < quotas[category]]


def turns_of(keys: Iterable[Hashable]) -> list[int]:
    """How many of those before it have an item's key: 0 of the first ones of all keys, which take turns in this order.

    >>> turns_of("aaba")
    [0, 1, 0, 2]
    """
    seen: Counter[Hashable] = Counter()
    turns = []
    for key in keys:
        turns.append(seen[key])
        seen[key] += 1
    return turns
