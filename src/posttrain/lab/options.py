"""Options of a command that are keys of a configuration: ``--key value`` on the command line, ``key: value`` in a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config import Key


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files, and options as ``key=value``: from ``--key value``, ``--key=value``, with dashes in keys for underscores.

    A key without a value after it is ``true``.
    """
    files, options = [], []
    left = list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            files.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = left.pop(0) if left and not left[0].startswith("--") else "true"
        options.append(f"{key.replace('-', '_')}={value}")
    return files, options


def option_line(name: str, key: Key, choice: str | None = None) -> str:
    """One option for ``--help``; ``choice``: what must be chosen for it to exist."""
    default = "required" if key.default is None else f"default {key.default}"
    needed = f" (with {choice})" if choice else ""
    return f"--{name}{needed}  [{key.allowed}; {default}]\n    {key.meaning}\n"
