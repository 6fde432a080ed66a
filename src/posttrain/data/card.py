"""The configurations of a data set as its card declares them: the ``configs`` in the front matter of a clone's README.md.

::

    configs:
    - config_name: main
      data_files:
      - split: train
        path: main/train-*

Anything else that a card may say, and a card that can't be read, declares nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_PATTERN = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")
_GLOB = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True, slots=True)
class Configuration:
    """One configuration: which files are its rows, and of which split."""

    name: str
    default: bool
    files: tuple[tuple[str, re.Pattern[str]], ...]
    """(split, names below the folder)"""

    def split_of(self, name: str) -> str | None:
        """The split of a file; None where it is not of this configuration."""
        return next((split for split, names in self.files if names.fullmatch(name)), None)


def configurations(folder: Path) -> tuple[Configuration, ...]:
    """The configurations of a folder's card; none where there is no card, or it names no files."""
    try:
        front = _FRONT.match((folder / "README.md").read_text(encoding="utf-8"))
        card = yaml.safe_load(front[1]) if front is not None else None
    except (OSError, ValueError, yaml.YAMLError):
        return ()
    declared = card.get("configs") if isinstance(card, Mapping) else None
    found = [_configuration(entry) for entry in declared] if isinstance(declared, list) else []
    return tuple(entry for entry in found if entry is not None)


def _configuration(entry: Any) -> Configuration | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("config_name", "default"), str):
        return None
    files = tuple((split, _names(pattern)) for split, pattern in _patterns(entry.get("data_files"), "train"))
    name = str(entry.get("config_name", "default"))
    return Configuration(name, entry.get("default") is True or name == "default", files) if files else None


def _patterns(declared: Any, split: str) -> Iterator[tuple[str, str]]:
    """(split, pattern) of ``data_files``: a pattern, several, or splits with theirs."""
    if isinstance(declared, str):
        yield split, declared
    elif isinstance(declared, Mapping) and "path" in declared:
        yield from _patterns(declared["path"], str(declared.get("split", split)))
    elif isinstance(declared, Mapping):
        for name, inner in declared.items():
            yield from _patterns(inner, str(name))
    elif isinstance(declared, Sequence):
        for inner in declared:
            yield from _patterns(inner, split)


def _names(pattern: str) -> re.Pattern[str]:
    """What a pattern matches; a single star stays within a folder."""
    parts = _PATTERN.findall(pattern.removeprefix("./"))
    return re.compile("".join(_GLOB.get(part) or re.escape(part) for part in parts), re.DOTALL)
