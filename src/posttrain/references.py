"""What a configuration names, as values: markers on its fields, and one walk over them.

::

    path: Annotated[str, NamesFile()]                  a field says what its text names
    references(stage)                                  every such text, with its place and its marker
    with_references(stage, change)                     the same configuration with other texts

The graph of a recipe, its checks, its absolute paths and the identity of its stages are all made from this walk. So a field that
carries a marker is in all of them, and nothing else has to know it. Only fields are marked, or the entries of a list or mapping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args, get_origin

from posttrain.config import ConfigPath, fields_of, shape_of

T = TypeVar("T")

Gives = Literal["rows", "model", "reward_model"]
"""What a stage hands on to those that name it."""

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class NamesStage:
    """A stage of the recipe that hands on what is needed here."""

    gives: Gives | None
    """None = any stage will do, whatever it hands on."""
    or_outside: Literal["model", "rows"] | None = None
    """What a text means that names no stage; None = it must name one."""
    goes_on: bool = False
    """Whether what is named is gone on with: only a text with a slash (``./adapter``) may come from outside then, so that a mistyped stage
    is told as one, and an adapter folder lies on the recipe's model."""
    unless_in: str | None = None
    """A mapping beside this field whose keys are named here as well."""

    def may_be_outside(self, text: str) -> bool:
        """Whether a text that names no stage may mean something else."""
        return self.or_outside is not None and ("/" in text or not self.goes_on)

    @property
    def or_base(self) -> bool:
        """Whether ``base``, the recipe's model, is as good."""
        return self.gives == "model"


@dataclass(frozen=True)
class NamesModel:
    """A model: a demo asset, a hub name, a folder, an adapter or a run's train stage."""


@dataclass(frozen=True)
class NamesRows:
    """A set of rows: a file, a folder, a demo asset or a hub data set. What holds the field says what it is read from: ``parts(resolve)``."""


@dataclass(frozen=True)
class NamesFile:
    """A file on this disk, or one on the hub (``hub://...``)."""

    builtin: str | None = None
    """The file of this package that ``words`` name."""
    words: tuple[str, ...] = ("builtin",)


@dataclass(frozen=True)
class NamesEntry:
    """An entry of a list beside this field."""

    of: str


Marker = NamesStage | NamesModel | NamesRows | NamesFile | NamesEntry


class Reference(NamedTuple):
    """One text of a configuration that names something."""

    path: ConfigPath
    """Its place, from the configuration that was walked."""
    marker: Marker
    text: str
    owner: Any
    """The dataclass it is a field of."""


def references(configuration: Any) -> tuple[Reference, ...]:
    """Every text of a configuration that names something, in the order of its fields. Fields left at None name nothing."""
    return tuple(_walk(configuration))


def with_references(configuration: T, change: Callable[[Reference], str]) -> T:
    """The configuration with every such text replaced by what ``change`` makes of it."""
    changed = {one.path: new for one in references(configuration) if (new := change(one)) != one.text}
    replaced: T = _replaced(configuration, changed)
    return replaced


def package_file(marker: NamesFile) -> Path:
    """The file of this package that a word names."""
    assert marker.builtin is not None
    return PACKAGE / marker.builtin


def is_builtin(one: Reference) -> bool:
    """Whether a text names a file of this package."""
    return isinstance(one.marker, NamesFile) and one.marker.builtin is not None and one.text in one.marker.words


def _walk(owner: Any, at: ConfigPath = ()) -> Iterator[Reference]:
    for name, annotation in fields_of(cast(Hashable, type(owner))).items():
        yield from _found(getattr(owner, name), annotation, (*at, name), owner)


def _found(value: Any, annotation: Any, at: ConfigPath, owner: Any) -> Iterator[Reference]:
    shape = shape_of(annotation)
    if isinstance(value, str):
        yield from (Reference(at, limit, value, owner) for limit in shape.limits if isinstance(limit, Marker))
    elif dataclasses.is_dataclass(value):
        yield from _walk(value, at)
    elif isinstance(value, Mapping) and get_origin(shape.base) is dict:
        inner = get_args(shape.base)[1]
        for key, entry in value.items():
            yield from _found(entry, inner, (*at, key), owner)
    elif isinstance(value, tuple) and get_origin(shape.base) is tuple:
        inner = get_args(shape.base)[0]
        for place, entry in enumerate(value):
            yield from _found(entry, inner, (*at, place), owner)


def _replaced(value: Any, changed: Mapping[ConfigPath, str]) -> Any:
    if () in changed:
        return changed[()]
    if not changed:
        return value
    below: dict[str | int, dict[ConfigPath, str]] = {}
    for path, text in changed.items():
        below.setdefault(path[0], {})[path[1:]] = text
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        new = {str(key): _replaced(getattr(value, str(key)), inner) for key, inner in below.items()}
        return dataclasses.replace(value, **new)
    if isinstance(value, Mapping):
        return {key: _replaced(entry, below.get(key, {})) for key, entry in value.items()}
    return tuple(_replaced(entry, below.get(place, {})) for place, entry in enumerate(value))
