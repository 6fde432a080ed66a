"""Table: an explicit, ordered mapping from a name to a specification. The one extension mechanism. Beside it: the nearest name, groups.

Adding a format, a loss or a filter is one file and one line in the table of its room; contract tests run over
every entry. There is no registration at import time.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from posttrain.errors import ConfigError

T = TypeVar("T")
K = TypeVar("K")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest known name, otherwise the empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def grouped(pairs: Iterable[tuple[K, T]]) -> dict[K, list[T]]:
    """Key -> its values, in the order in which they come."""
    found: dict[K, list[T]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


class Table(dict[str, T]):
    """An ordered mapping whose missing key is a ConfigError with the nearest name."""

    def __init__(self, kind: str, entries: Mapping[str, T]) -> None:
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: str) -> T:
        raise ConfigError(f"unknown {self.kind} {name!r}{did_you_mean(name, self)}", fix=f"known: {', '.join(self)}")
