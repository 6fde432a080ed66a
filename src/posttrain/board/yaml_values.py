"""Values of a YAML text: parts of them, how two differ, and how one is written in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from posttrain.config import ConfigPath, parse_yaml, resolved_yaml
from posttrain.errors import ConfigError

INDENT = 2
MISSING = object()
"""Where nothing stands."""


def value_at(value: Any, path: ConfigPath) -> Any:
    """What stands at a path, or `MISSING`."""
    for part in path:
        known = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
        if part not in known:
            return MISSING
        value = value[part]
    return value


def with_value(value: Any, path: ConfigPath, new: Any) -> Any:
    """A copy with another value at a path; mappings on the way are made where there are none."""
    if not path:
        return new
    if isinstance(value, list):
        return [with_value(one, path[1:], new) if place == path[0] else one for place, one in enumerate(value)]
    inner = value if isinstance(value, dict) else {}
    return {**inner, str(path[0]): with_value(inner.get(str(path[0])), path[1:], new)}


def without_value(value: Any, path: ConfigPath) -> Any:
    """A copy without what stands at a path; the same where nothing does."""
    if not path or value_at(value, path) is MISSING:
        return value
    first, rest = path[0], path[1:]
    entries = list(enumerate(value)) if isinstance(value, list) else list(value.items())
    kept = [(key, without_value(one, rest) if key == first else one) for key, one in entries if rest or key != first]
    return [one for _, one in kept] if isinstance(value, list) else dict(kept)


# ---- what differs --------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """One thing to do at one path."""

    kind: Literal["set", "insert", "remove"]
    path: ConfigPath


def first_difference(old: Any, new: Any, path: ConfigPath = ()) -> Change | None:
    """The first thing to do: values are changed before keys are added, and added before others go, so that no block is ever empty."""
    if isinstance(old, dict) and isinstance(new, dict):
        both = (first_difference(old[key], new[key], (*path, key)) for key in old if key in new)
        if inner := next((change for change in both if change), None):
            return inner
        if (added := next((key for key in new if key not in old), None)) is not None:
            return Change("insert", (*path, added))
        gone = next((key for key in old if key not in new), None)
        return None if gone is None else Change("remove", (*path, gone))
    if isinstance(old, list) and isinstance(new, list):
        pairs = enumerate(zip(old, new, strict=False))
        place = next((number for number, (a, b) in pairs if not same(a, b)), min(len(old), len(new)))
        if len(old) != len(new):
            return Change("insert" if len(old) < len(new) else "remove", (*path, place))
        return first_difference(old[place], new[place], (*path, place)) if place < len(old) else None
    return None if same(old, new) else Change("set", path)


def same(a: Any, b: Any) -> bool:
    """Equal with equal types: 1, 1.0 and true are three values."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# ---- values as text ------------------------------------------------------------------------------------------------


def inline(value: Any) -> str:
    """A value in one line, as it may stand in brackets too."""
    return resolved_yaml([value], inline=True).strip()[1:-1]


def means(spelling: str, value: Any) -> bool:
    """Whether a text may stand anywhere for a value."""
    try:
        return "\n" not in spelling and same(parse_yaml(f"[{spelling}]", "").value, [value])
    except ConfigError:
        return False


def block_lines(value: Mapping[str, Any], indent: int) -> list[str]:
    """A mapping as lines, what is inside of its keys in one line each."""
    return [f"{' ' * indent}{inline(key)}: {inline(inner)}" for key, inner in value.items()]


def literal_block(text: str, indent: int) -> str | None:
    """A text of several lines as a literal block, or None where it can't be one."""
    if "\n" not in text.rstrip("\n") or text.endswith("\n\n"):
        return None
    lines = "".join(f"\n{' ' * indent}{line}" if line else "\n" for line in text.removesuffix("\n").split("\n"))
    literal = ("|" if text.endswith("\n") else "|-") + lines
    try:
        return literal if parse_yaml(f"{' ' * (indent - INDENT)}key: {literal}\n", "").value["key"] == text else None
    except ConfigError:
        return None
