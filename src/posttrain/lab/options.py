"""Options of a command that are keys of a recipe: ``--key value`` on the command line, ``key: value`` in a recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, get_origin, get_type_hints

from posttrain.config import Document, Key, fields_of, override, parse_yaml, sections
from posttrain.data.config import Source
from posttrain.errors import ConfigError
from posttrain.table import did_you_mean

T = TypeVar("T")


class Keys(NamedTuple):
    """Keys of a recipe that are options of a command."""

    owner: type
    """The configuration whose keys they are."""
    at: tuple[str, ...]
    """Where it stands in the command's recipe, as ``stages.filter.``; with several, an option is said at all of them."""
    without: tuple[str, ...] = ()
    """Keys that the command itself says."""
    only: tuple[str, ...] | None = None
    """The keys that are options; None = all others."""

    def listed(self) -> dict[str, tuple[Key, str | None]]:
        """Every option with the choice it needs; keys inside of keys as ``a.b``."""
        found = {}
        for section in sections(self.owner):
            path = section.path.replace("<number>", "0")
            for key in section.keys if "<name>" not in path else ():
                name = f"{path}.{key.name}" if path else key.name
                if self.has(name):
                    found[name] = (key, section.choice)
        return found

    def has(self, name: str) -> bool:
        """Whether an option is a key here."""
        top = name.partition(".")[0]
        known = fields_of(self.owner) if self.only is None else self.only
        return top in known and top not in ("kind", *self.without)


def configured(
    annotation: type,
    finish: Callable[[Document], T],
    where: str,
    value: Any,
    keys: Sequence[Keys],
    options: Sequence[str],
) -> T:
    """What a command's ``key=value`` options make of ``value``, finished. Of two keys of one name the first is meant.

    Raises:
        ConfigError: an unknown option, or what ``finish`` refuses; it names the option as it is typed.

    """
    document = Document(where, value, {(): where})
    try:
        return finish(override(document, list(_assignments(where, keys, options)), annotation, called="option"))
    except ConfigError as error:
        raise ConfigError(_as_typed(error.problem, keys), where=_as_typed(error.where, keys), fix=error.fix) from None


def _assignments(where: str, keys: Sequence[Keys], options: Sequence[str]) -> Iterator[str]:
    lists: dict[str, list[str]] = {}
    for option in options:
        name, _, text = option.partition("=")
        one = next((one for one in keys if one.has(name)), None)
        if one is None:
            known = [listed for one in keys for listed in one.listed()]
            raise ConfigError(
                f"unknown option --{name.replace('_', '-')}{did_you_mean(name, known)}",
                where=where,
                fix=f"{where} --help lists them",
            )
        value = _as_yaml(one.owner, name, text, lists.setdefault(name, []))
        yield from (f"{at}{name}={value}" for at in one.at)


def _as_typed(text: str | None, keys: Sequence[Keys]) -> str:
    """An error's text with options in place of the paths of the recipe."""
    for at in sorted((at for one in keys for at in one.at if at), key=len, reverse=True):
        text = (text or "").replace(f"{at.removesuffix('.')}: ", "").replace(at, "--")
    return re.sub(r"^option '(?!--)", "option '--", text or "")


def _as_yaml(owner: type, name: str, text: str, before: list[str]) -> str:
    """What was typed as the YAML of its type: texts need no quotes, lists of texts no brackets, and grow where they are repeated; rows may be their path alone."""
    wanted = get_type_hints(owner).get(name)
    if wanted in (str, str | None):
        return json.dumps(text)
    if wanted == tuple[str, ...] and not text.startswith("["):
        before += [part.strip() for part in text.split(",") if part.strip()]
        return json.dumps(before)
    if wanted == Source | None and text != "null" and not text.startswith("{"):
        return json.dumps({"path": text})
    if get_origin(wanted) is tuple and not text.startswith("["):
        return f"[{text}]"
    if wanted == dict[str, str] | None:
        return json.dumps(parse_columns(text))
    try:
        parse_yaml(f"value: {text}", "option")
    except ConfigError:
        return json.dumps(text)  # a path with a colon, say
    return text


def options_help(keys: Sequence[Keys]) -> str:
    """Every option, for ``--help``: name, allowed values, default, meaning."""
    lines: dict[str, str] = {}
    for one in keys:
        for name, (key, choice) in one.listed().items():
            default = "required" if key.default is None else f"default {key.default}"
            needed = f" (with {choice})" if choice else ""
            lines.setdefault(
                name, f"--{name.replace('_', '-')}{needed}  [{key.allowed}; {default}]\n    {key.meaning}\n"
            )
    return "\n".join(["Options (the keys of a recipe; --a.b for a key b inside of a):", "", *lines.values()])


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files, and options as ``key=value``: from ``--key value``, ``--key=value``, with dashes in keys for underscores.

    A key without a value after it is ``true``; ``--no-key`` is ``key=false``.
    """
    files, options = [], []
    left = list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            files.append(word)
            continue
        key, equals, value = word[2:].partition("=")
        if not equals and key.startswith("no-"):
            key, value = key[3:], "false"
        elif not equals:
            value = left.pop(0) if left and not left[0].startswith("--") else "true"
        options.append(f"{key.replace('-', '_')}={value}")
    return files, options


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
