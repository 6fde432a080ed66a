"""Options of a command that are keys of a configuration: ``--key value`` on the command line, ``key: value`` in a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config import Key, parse_yaml
from posttrain.errors import ConfigError


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


def parse_columns(text: str | None) -> dict[str, str] | None:
    """What ``--columns`` says: JSON or YAML (``{user: question, assistant: answer}``), or ``user=question,assistant=answer``.

    Raises ConfigError where it is none of these.
    """
    if text is None:
        return None
    try:
        value = parse_yaml(text, "--columns").value
    except ConfigError:
        value = None
    if isinstance(value, str) and "=" in value:
        value = dict(part.strip().split("=", 1) for part in value.split(",") if "=" in part)
    if not isinstance(value, dict) or not all(isinstance(path, str | int) for path in value.values()):
        raise ConfigError(
            f"not a mapping of columns: {text}",
            where="--columns",
            fix="--columns '{user: question, assistant: answer}'",
        )
    return {name: str(path) for name, path in value.items()}
