"""The parts of a recipe's form, as values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from posttrain.config import ConfigPath

Input = Literal["choice", "text", "long", "number", "list", "yaml"]
"""How a field is typed: one of its choices, text as it is, text of several lines, a number, values with commas between, YAML."""


@dataclass(frozen=True, slots=True)
class Field:
    """One key that takes a value."""

    path: ConfigPath
    name: str
    help: str
    allowed: str
    """In words: ``a number greater than 0``."""
    default: str | None
    """As YAML; None = the key is required."""
    text: str
    """What is written, as it may be typed; empty where nothing is."""
    is_set: bool
    input: Input
    choices: tuple[str, ...] = ()
    """All that may be typed; empty = anything of its type."""
    suggestions: tuple[str, ...] = ()
    """Some of what may be typed."""
    problems: tuple[str, ...] = ()
    is_simple: bool = True
    """Whether it is shown at once."""
    is_known: bool = True
    """False: there is no such key, it can only be taken out."""


@dataclass(frozen=True, slots=True)
class Group:
    """Keys that belong together: a stage, an entry of a list, a mapping."""

    path: ConfigPath
    name: str
    help: str
    allowed: str
    default: str | None
    """As YAML; None = required, or an entry."""
    is_set: bool
    is_null: bool
    """Whether it is turned off, by what is written or by default."""
    can_be_null: bool
    is_entry: bool
    choice: Field | None
    """Which kind of group it is, where there are several."""
    nodes: tuple[Node, ...]
    problems: tuple[str, ...] = ()
    is_simple: bool = True


@dataclass(frozen=True, slots=True)
class GroupList:
    """Groups of one kind, by number or by name."""

    path: ConfigPath
    name: str
    help: str
    allowed: str
    default: str | None
    is_set: bool
    is_null: bool
    can_be_null: bool
    is_named: bool
    """Whether entries have names."""
    kinds: tuple[str, ...]
    """Kinds of entries that can be added; empty = there is one kind."""
    entries: tuple[Group, ...]
    problems: tuple[str, ...] = ()
    is_simple: bool = True


Node = Field | Group | GroupList


def walk(nodes: Iterable[Node]) -> Iterator[Node]:
    """Every node of a form, from the outside in."""
    for node in nodes:
        yield node
        match node:
            case Group(nodes=inner, choice=choice):
                yield from walk([*([choice] if choice else []), *inner])
            case GroupList(entries=entries):
                yield from walk(entries)
