"""A recipe as a form: every key of its types with help, default, allowed values, what is written, and what is wrong with it.

The form is made from the dataclasses of a recipe alone, so a key that is added there is in the form.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any, get_args, get_origin

from posttrain import assets
from posttrain.board.recipe_nodes import Field, Group, GroupList, Input, Node, walk
from posttrain.board.recipe_types import (
    choices_of,
    default_of,
    entry_of,
    is_group,
    is_list,
    literals_of,
    markers_of,
    only_value,
    owner_of,
)
from posttrain.board.yaml_nodes import spellings
from posttrain.board.yaml_values import MISSING, inline, value_at
from posttrain.config import (
    ConfigPath,
    Document,
    Key,
    Problem,
    build,
    fields_of,
    keys_of,
    parse_yaml,
    shape_of,
    variants_of,
)
from posttrain.errors import ConfigError
from posttrain.lab.recipe import Recipe, recipe_of
from posttrain.references import NamesEntry, NamesFile, NamesModel, NamesRows, NamesStage
from posttrain.stages import AnyStage
from posttrain.stages.base import BASE, StageKind
from posttrain.table import grouped

STAGES = "stages"
USUAL_FILE = "usual_keys.yaml"
"""Dataclass -> its keys that our own recipes set: they are shown at once, whether they are set or not."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe that is being written."""

    text: str
    file: str
    document: Document | None
    """None where the text is no YAML."""
    recipe: Recipe | None
    """None where something is wrong."""
    error: ConfigError | None
    nodes: tuple[Node, ...]
    """The form; empty where the text is no YAML."""

    @property
    def unplaced(self) -> tuple[str, ...]:
        """What is wrong and stands at no field."""
        if self.error is None:
            return ()
        placed = [(one.path, isinstance(one, Field)) for one in walk(self.nodes)]
        return tuple(
            str(Problem(path, message))
            for path, message in self.error.problems
            if not any(path == at or (covers and path[: len(at)] == at) for at, covers in placed)
        ) or (() if self.error.problems else (str(self.error),))


@dataclass(frozen=True, slots=True)
class Outside:
    """Names from outside a recipe that may be suggested."""

    models: tuple[str, ...] = tuple(assets.MODELS)
    rows: tuple[str, ...] = tuple(assets.DATA)


def draft(text: str, file: str, outside: Outside | None = None) -> Draft:
    """Read a recipe and make its form; what is wrong is kept, not raised."""
    try:
        document = parse_yaml(text, file)
    except ConfigError as error:
        return Draft(text, file, None, None, error, ())
    recipe, wrong = None, None
    try:
        recipe = recipe_of(document)
    except ConfigError as error:
        wrong = error
    gives = {name: stage.gives for name, stage in (recipe.stages if recipe else _built_stages(document)).items()}
    maker = _Maker(document, spellings(text, file), wrong.problems if wrong else (), gives, outside or Outside())
    nodes = maker.nodes(Recipe, document.value, ()) if isinstance(document.value, dict) else ()
    return Draft(text, file, document, recipe, wrong, nodes)


def written_keys(values: Iterable[Any]) -> dict[str, list[str]]:
    """Dataclass -> its keys that are written in any of several recipes, which are given as plain values."""
    found = sorted({(owner.__name__, name) for value in values for owner, name in _written_keys(Recipe, value)})
    return grouped(found)


@cache
def _usual_keys() -> frozenset[tuple[str, str]]:
    text = (resources.files("posttrain.board") / USUAL_FILE).read_text("utf-8")
    return frozenset((owner, name) for owner, names in parse_yaml(text, USUAL_FILE).value.items() for name in names)


def _written_keys(annotation: Any, value: Any) -> Iterator[tuple[type, str]]:
    owner = owner_of(annotation, value)
    if owner is not None and isinstance(value, dict):
        for name, inner in fields_of(owner).items():
            if name in value:
                yield owner, name
                yield from _written_keys(inner, value[name])
        return
    entry = entry_of(annotation)
    if entry is not None and isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _written_keys(entry, one)


def _built_stages(document: Document) -> dict[str, StageKind]:
    """The stages that are right by themselves, of a recipe in which something is wrong."""
    found: dict[str, StageKind] = {}
    stages = value_at(document.value, (STAGES,))
    for name in stages if isinstance(stages, dict) else ():
        with contextlib.suppress(ConfigError):
            found[name] = build(AnyStage, document, (STAGES, name))
    return found


# ---- the form ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the nodes of a form."""

    document: Document
    spellings: Mapping[ConfigPath, str]
    problems: Sequence[tuple[ConfigPath, str]]
    gives: Mapping[str, str | None]
    """What each stage hands on, of those that are right by themselves."""
    outside: Outside
    is_default: bool = field(default=False)
    """Whether what is shown is not written but holds by default."""

    def nodes(
        self, owner: type, value: Mapping[str, Any], path: ConfigPath, without: str | None = None
    ) -> tuple[Node, ...]:
        """One node for every key of a dataclass, and for every key that it does not know."""
        fields = fields_of(owner)
        shown = [key for key in keys_of(owner) if key.name != without and not only_value(fields[key.name])]
        known = [self._node(owner, key, fields[key.name], value, path) for key in shown]
        unknown = [self._unknown(name, value[name], (*path, name)) for name in value if name not in fields]
        return (*known, *unknown)

    def _node(self, owner: type, key: Key, annotation: Any, above: Mapping[str, Any], path: ConfigPath) -> Node:
        at = (*path, key.name)
        is_set = key.name in above and not self.is_default
        value = above.get(key.name, MISSING)
        simple = key.default is None or is_set or (owner.__name__, key.name) in _usual_keys()
        shown = default_of(key) if value is MISSING else value
        maker = self if is_set else replace(self, is_default=True)
        if shown is MISSING and entry_of(annotation) is not None:
            shown = {} if get_origin(shape_of(annotation).base) is dict else []
        if is_group(annotation) and (shown is None or isinstance(shown, dict)):
            return maker._group(annotation, key, shown, at, is_set=is_set, is_simple=simple, is_entry=False)
        if entry_of(annotation) is not None and (shown is None or isinstance(shown, dict | list)):
            return maker._group_list(annotation, key, shown, at, is_set=is_set, is_simple=simple)
        return self._field(annotation, key, value, at, is_simple=simple, beside=above)

    def _group(
        self, annotation: Any, key: Key, value: Any, path: ConfigPath, *, is_set: bool, is_simple: bool, is_entry: bool
    ) -> Group:
        shape, owner = shape_of(annotation), owner_of(annotation, value)
        choice: Field | None = None
        nodes: tuple[Node, ...] = ()
        if value is not None and shape.tag is not None:
            default = None if is_entry or key.default is None else default_of(key)[shape.tag]
            tag = Key(shape.tag, f"one of {', '.join(map(repr, variants_of(shape)))}", default, "")
            written, kinds = value.get(shape.tag, MISSING), tuple(variants_of(shape))
            choice = self._closed(kinds, tag, written, (*path, shape.tag), is_simple=True)
        if value is not None and owner is not None:
            nodes = self.nodes(owner, value, path, without=shape.tag)
        elif value is not None:
            nodes = tuple(self._unknown(name, value[name], (*path, name)) for name in value if name != shape.tag)
        return Group(
            path=path,
            name=key.name,
            help=key.meaning or inspect.cleandoc((owner or shape.base).__doc__ or "") if owner else key.meaning,
            allowed=key.allowed,
            default=key.default,
            is_set=is_set,
            is_null=value is None,
            can_be_null=shape.nullable,
            is_entry=is_entry,
            choice=choice,
            nodes=nodes,
            problems=self._problems(path, inside=False),
            is_simple=is_simple,
        )

    def _group_list(
        self, annotation: Any, key: Key, value: Any, path: ConfigPath, *, is_set: bool, is_simple: bool
    ) -> GroupList:
        shape, entry = shape_of(annotation), entry_of(annotation)
        inner = shape_of(entry)
        pairs: list[tuple[str | int, Any]] = (
            list(value.items()) if isinstance(value, dict) else list(enumerate(value or ()))
        )
        entries = tuple(
            self._group(
                entry,
                Key(str(name), "", None, ""),
                one if isinstance(one, dict) else {},
                (*path, name),
                is_set=is_set,
                is_simple=True,
                is_entry=True,
            )
            for name, one in pairs
        )
        return GroupList(
            path=path,
            name=key.name,
            help=key.meaning,
            allowed=key.allowed,
            default=key.default,
            is_set=is_set,
            is_null=value is None,
            can_be_null=shape.nullable,
            is_named=get_origin(shape.base) is dict,
            kinds=tuple(variants_of(inner)) if inner.tag is not None else (),
            entries=entries,
            problems=self._problems(path, inside=False),
            is_simple=is_simple,
        )

    def _field(
        self, annotation: Any, key: Key, value: Any, path: ConfigPath, *, is_simple: bool, beside: Mapping[str, Any]
    ) -> Field:
        closed, names = self._names(annotation, path, beside)
        choices, problems = choices_of(annotation), self._problems(path, inside=True)
        if closed and not choices and not is_list(annotation):
            choices = names
        if choices:
            return self._closed(choices, key, value, path, is_simple=is_simple)
        is_set = value is not MISSING and not self.is_default
        kind = _input(annotation, value)
        return Field(
            path=path,
            name=key.name,
            help=key.meaning,
            allowed=key.allowed,
            default=key.default,
            text=self._text(path, value, kind) if is_set else "",
            is_set=is_set,
            input=kind,
            suggestions=(*names, *literals_of(annotation)),
            problems=problems,
            is_simple=is_simple or bool(problems),
        )

    def _closed(self, choices: tuple[str, ...], key: Key, value: Any, path: ConfigPath, *, is_simple: bool) -> Field:
        """A field with a list of what may be typed."""
        is_set, problems = value is not MISSING and not self.is_default, self._problems(path, inside=True)
        text = (value if isinstance(value, str) else inline(value)) if is_set else ""
        return Field(
            path=path,
            name=key.name,
            help=key.meaning,
            allowed=key.allowed,
            default=key.default,
            text=text,
            is_set=is_set,
            input="choice",
            choices=choices if not text or text in choices else (*choices, text),
            problems=problems,
            is_simple=is_simple or bool(problems),
        )

    def _unknown(self, name: str, value: Any, path: ConfigPath) -> Field:
        return Field(
            path=path,
            name=name,
            help="",
            allowed="",
            default=None,
            text=inline(value),
            is_set=True,
            input="yaml",
            problems=self._problems(path, inside=True),
            is_known=False,
        )

    def _text(self, path: ConfigPath, value: Any, kind: Input) -> str:
        if kind in ("text", "long") and isinstance(value, str):
            return value
        written = self.spellings.get(path)
        written = inline(value) if written is None or isinstance(value, str) else written
        if kind == "list" and isinstance(value, list) and value:
            return inline(value)[1:-1]
        return written

    def _problems(self, path: ConfigPath, *, inside: bool) -> tuple[str, ...]:
        """What is wrong at a path, and where asked also below it."""
        found = [(at[len(path) :], message) for at, message in self.problems if at[: len(path)] == path]
        return tuple(str(Problem(rest, message)) if rest else message for rest, message in found if inside or not rest)

    def _names(self, annotation: Any, path: ConfigPath, beside: Mapping[str, Any]) -> tuple[bool, tuple[str, ...]]:
        """(whether nothing else may be named, what may be named) by the markers of a field or of its entries."""
        own = path[1] if path[0] == STAGES and len(path) > 1 else None
        found: dict[str, None] = {}
        closed = False
        for marker in markers_of(annotation):
            match marker:
                case NamesStage(gives=gives, or_outside=outside):
                    known = value_at(self.document.value, (STAGES,))
                    known = known if isinstance(known, dict) else {}
                    stages = [one for one in known if gives in (None, self.gives.get(one, gives)) and one != own]
                    base = [BASE] if marker.or_base and value_at(self.document.value, ("model",)) is not MISSING else []
                    found |= dict.fromkeys([*base, *stages])
                    closed = outside is None and marker.unless_in is None
                    if outside is not None and not marker.goes_on:
                        found |= dict.fromkeys(self.outside.rows if outside == "rows" else self.outside.models)
                case NamesModel():
                    found |= dict.fromkeys(self.outside.models)
                case NamesRows():
                    found |= dict.fromkeys(self.outside.rows)
                case NamesFile(builtin=builtin, words=words) if builtin is not None:
                    found |= dict.fromkeys(words)
                case NamesEntry(of=name):
                    entries = beside.get(name)
                    found |= {str(one): None for one in entries} if isinstance(entries, list | dict) else {}
                    closed = True
        return closed, tuple(found)


def _input(annotation: Any, value: Any) -> Input:
    base = shape_of(annotation).base
    if base is str:
        return "long" if isinstance(value, str) and "\n" in value else "text"
    if base in (int, float):
        return "number"
    return "list" if is_list(annotation) and get_origin(get_args(base)[0]) is not dict else "yaml"
