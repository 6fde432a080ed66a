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
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_PATTERN = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")
_GLOB = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


class Configuration(NamedTuple):
    """One configuration."""

    name: str
    default: bool
    splits: dict[str, str]
    """Its files, by name below the folder, and the split of each."""


def configurations(folder: Path, files: Sequence[str]) -> list[Configuration]:
    """The configurations of a folder's card that hold any of these files; none where there is no card."""
    try:
        front = _FRONT.match((folder / "README.md").read_text(encoding="utf-8"))
        card = yaml.safe_load(front[1]) if front is not None else None
    except (OSError, ValueError, yaml.YAMLError):
        return []
    declared = card.get("configs") if isinstance(card, Mapping) else None
    found = []
    for entry in declared if isinstance(declared, list) else ():
        name = entry.get("config_name", "default") if isinstance(entry, Mapping) else None
        if not isinstance(name, str):
            continue
        patterns = [(split, _names(pattern)) for split, pattern in _patterns(entry.get("data_files"), "train")]
        splits = {
            file: split
            for file in files
            if (split := next((split for split, names in patterns if names.fullmatch(file)), None)) is not None
        }
        if splits:
            found.append(Configuration(name, entry.get("default") is True or name == "default", splits))
    return found


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
