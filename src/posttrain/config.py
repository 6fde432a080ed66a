"""Strict YAML to frozen dataclasses, with errors a person can act on. Machinery only: no stage type is known here.

::

    read_yaml(path) -> Document          plain values and the place (line) of every one of them
    override(Document, ["a.b=1"], T)     the same with values replaced
    build(T, Document) -> T              checked against the type, or one ConfigError with all that is wrong
    resolved_yaml(value) -> str          the way back, defaults included
    json_schema(T), sections(T)          what may be written, for editors and for the documentation

The types are plain dataclasses beside the code they configure: ``Annotated`` bounds (``annotated_types``), tagged unions
(``Annotated[A | B, Discriminator("name")]``), and a docstring under a field as its description. pydantic does the
checking, in its strict mode: ``"16"`` and ``true`` are not whole numbers, ``1`` is a good number, an unknown key is an error.

YAML is read by the core schema of YAML 1.2: ``1e-4`` is a number; ``on``, ``yes`` and ``no`` are text; keys are always text.
Anchors, aliases and ``<<`` merges work; tags (``!!python/...``) do not.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import annotated_types as bounds
import yaml
from pydantic import Discriminator, TypeAdapter, ValidationError

from posttrain.artifacts import plain
from posttrain.errors import ConfigError
from posttrain.table import did_you_mean

T = TypeVar("T")
ConfigPath = tuple[str | int, ...]
Place = int | str
"""Where a value was written: a line number of the file (from 1), or the override it came from."""

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
MAX_DEPTH = 40
MAX_PROBLEMS = 10


# ---- problems ------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """One thing that is wrong at one config path."""

    path: ConfigPath
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}"


def dotted(path: ConfigPath) -> str:
    """``stages.sft.learning_rate``; the empty path is ``(top level)``."""
    return ".".join(str(part) for part in path) or "(top level)"


@dataclass(frozen=True)
class Document:
    """What a YAML file says, and where it says it."""

    file: str
    """The file as the user named it."""
    value: Any
    """dict, list, str, int, float, bool, None. Aliases are expanded; numbers are finite."""
    places: Mapping[ConfigPath, Place]
    """The place of every key and list entry; the root is line 1."""

    def place(self, path: ConfigPath) -> Place:
        """The place of a path, or of the nearest thing around it that was written."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, 1)

    def is_override(self, path: ConfigPath) -> bool:
        """Whether the value at this path came from an override."""
        return isinstance(self.place(path), str)

    def error(self, problems: Sequence[Problem]) -> ConfigError:
        """One ConfigError that tells all problems (the first ten), in the order of the file."""
        return _error_of(self.file, [(self.place(problem.path), problem) for problem in problems])


def _error_of(file: str, found: Sequence[tuple[Place, Problem]]) -> ConfigError:
    ordered = sorted(dict.fromkeys(found), key=lambda item: (isinstance(item[0], str), item[0]))
    problems = [problem for _, problem in ordered]
    if len(ordered) == 1:
        place, problem = ordered[0]
        return ConfigError(
            str(problem), where=f"{file}:{place}" if isinstance(place, int) else place, problems=problems
        )
    lines = [f"\n  {f'line {place}' if isinstance(place, int) else place}: {problem}" for place, problem in ordered]
    more = f"\n  and {len(lines) - MAX_PROBLEMS} more" if len(lines) > MAX_PROBLEMS else ""
    return ConfigError(f"{len(ordered)} problems" + "".join(lines[:MAX_PROBLEMS]) + more, where=file, problems=problems)


# ---- YAML to plain values with places ------------------------------------------------------------------------------

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BOOL = re.compile("true|True|TRUE|false|False|FALSE")
_NULL = re.compile("~|null|Null|NULL|")
_LINE_BREAK = re.compile("[\n\r\x85\u2028\u2029]")


class YamlLoader(yaml.SafeLoader):
    """Composes nodes only: the values are made below, so that every one keeps its place."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own protocol
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node, as PyYAML asks for it; refuse depth that no configuration has."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    _whole = re.compile(rf"^(?:{_pattern.pattern})$", re.ASCII)
    YamlLoader.add_implicit_resolver(_TAG + _name, _whole, None)


def read_yaml(path: str | Path) -> Document:
    """Read one YAML file.

    Raises:
        ConfigError: the file is missing, a folder, too large, not UTF-8, not YAML, or has duplicate keys.

    """
    file = Path(path).expanduser()
    if file.is_dir():
        inside = sorted(p.name for p in file.iterdir() if p.suffix in (".yaml", ".yml"))
        fix = f"name a file in it: {', '.join(inside[:8])}" if inside else "name a YAML file"
        raise ConfigError("this is a folder, not a YAML file", where=str(path), fix=fix)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"{file.stat().st_size:,} bytes is too large for a configuration (limit {MAX_BYTES:,})",
                where=str(path),
                fix="did you give a data file instead of a YAML file?",
            )
        raw = file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"no such file{_neighbour(file)}", where=str(path)) from None
    except OSError as error:
        raise ConfigError(f"can't read this file: {error.strerror or error}", where=str(path)) from None
    return parse_yaml(_decoded(raw, str(path)), str(path))


def _neighbour(file: Path) -> str:
    try:
        names = sorted(p.name for p in file.parent.iterdir())
    except OSError:
        return f"; the folder {str(file.parent)!r} does not exist either"
    return did_you_mean(file.name, names)


def _decoded(raw: bytes, file: str) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError("this file is UTF-16", where=file, fix="save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"byte 0x{raw[error.start]:02x} is not UTF-8", where=f"{file}:{line}", fix="save the file as UTF-8"
        ) from None


def parse_yaml(text: str, file: str) -> Document:
    """Parse YAML text; ``file`` is the name used in errors. See ``read_yaml``."""
    node = composed(text, file)
    if node is None:
        raise ConfigError("the file is empty", where=file, fix="start from one of the files in recipes/")
    return _document(node, file)


def composed(text: str, file: str, loader: type[YamlLoader] = YamlLoader) -> yaml.Node | None:
    """The node graph of a text with one document; None where there is nothing but comments. Raises ConfigError as `read_yaml`."""
    try:
        return loader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"the character {text[error.position]!a} is not allowed in YAML", where=f"{file}:{line}"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        tab_line = _tab_line(text, line)
        if tab_line:
            raise ConfigError(
                "a tab is used for indentation", where=f"{file}:{tab_line}", fix="YAML allows only spaces there"
            ) from None
        problem = error.problem or str(error)
        opened = error.context_mark.line + 1 if error.context_mark else line
        if problem == "found unexpected end of stream":
            raise ConfigError("the quote opened here is never closed", where=f"{file}:{opened}") from None
        if problem.startswith(("expected ',' or ']'", "expected ',' or '}'")):
            closing = problem[17]
            message = f"a ',' or the closing {closing!r} of the bracket opened on line {opened} is missing"
            raise ConfigError(message, where=f"{file}:{line}") from None
        raise ConfigError(_YAML_WORDS.get(problem, f"this is not YAML: {problem}"), where=f"{file}:{line}") from None
    except (ValueError, OverflowError, RecursionError) as error:
        # For example "\UFFFFFFFF": PyYAML hands the escape to chr() unchecked.
        raise ConfigError(f"this is not YAML: {error}", where=file) from None


def _tab_line(text: str, line: int) -> int | None:
    """The line with a tab in its indentation, if it is this one or the one before (PyYAML stops at either)."""
    lines = text.split("\n")
    for number in (line, line - 1, line + 1):
        if 1 <= number <= len(lines) and re.match(r"[ ]*\t\s*\S", lines[number - 1]):
            return number
    return None


_YAML_WORDS = {
    "mapping values are not allowed here": "a second ':' here, or wrong indentation (put text that contains ': ' in quotes)",
    "could not find expected ':'": "a key without ':' (write `key: value`)",
    "expected <block end>, but found '<block mapping start>'": "wrong indentation: this key lines up with nothing above it",
    "expected <block end>, but found '-'": "wrong indentation: this list entry lines up with nothing above it",
    "expected <block end>, but found '<scalar>'": "text after the end of a quoted value",
    "but found another document": "a second document starts here ('---'): write one file for each",
}


def _document(root: yaml.Node, file: str) -> Document:
    places: dict[ConfigPath, Place] = {(): 1}
    found: list[tuple[Place, Problem]] = []
    count = 0

    def line(node: yaml.Node) -> int:
        return int(node.start_mark.line) + 1

    def wrong(node: yaml.Node, path: ConfigPath, message: str) -> None:
        found.append((line(node), Problem(path, message)))

    def walk(node: yaml.Node, path: ConfigPath) -> Any:
        nonlocal count
        count += 1
        if count > MAX_VALUES or len(path) > MAX_DEPTH:
            raise ConfigError(
                f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels once the aliases (*name) are expanded",
                where=f"{file}:{line(node)}",
            )
        if isinstance(node, yaml.ScalarNode):
            return scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != _TAG + "seq":
                wrong(node, path, f"the tag {node.tag!r} is not allowed")
            for index, entry in enumerate(node.value):
                places[(*path, index)] = line(entry)
            return [walk(entry, (*path, index)) for index, entry in enumerate(node.value)]
        if node.tag != _TAG + "map":
            wrong(node, path, f"the tag {node.tag!r} is not allowed")
        return mapping(node, path)

    def mapping(node: yaml.Node, path: ConfigPath) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                wrong(key_node, path, "a key must be text, not a list or a mapping")
                continue
            key = str(key_node.value)
            if key == "<<" and key_node.style is None:
                for name, value in merge(value_node, path).items():
                    merged.setdefault(name, value)
                continue
            where = (*path, key)
            if key in first:
                wrong(key_node, where, f"this key is given twice (first on line {first[key]})")
                continue
            first[key] = line(key_node)
            places[where] = line(key_node)
            own[key] = walk(value_node, where)
        return {**{name: value for name, value in merged.items() if name not in own}, **own}

    def merge(node: yaml.Node, path: ConfigPath) -> dict[str, Any]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                wrong(part, path, "'<<' merges a mapping or a list of mappings")
                continue
            before = dict(places)
            for name, value in walk(part, path).items():
                values.setdefault(name, value)
            places.update(before)  # the first place written for a path stays
        return values

    def scalar(node: yaml.ScalarNode, path: ConfigPath) -> Any:
        text, tag = str(node.value), str(node.tag)
        if tag == _TAG + "str":
            if any("\ud800" <= character <= "\udfff" for character in text):
                wrong(node, path, "half of a surrogate pair is not text")
                return ""
            return text
        if tag == _TAG + "null" and _NULL.fullmatch(text):
            return None
        if tag == _TAG + "bool" and _BOOL.fullmatch(text):
            return text.lower() == "true"
        if tag == _TAG + "int" and _INT.fullmatch(text) and len(text) <= 400:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if tag in (_TAG + "float", _TAG + "int") and _FLOAT.fullmatch(text):
            number = math.inf if text.lower().endswith(("inf", "nan")) else float(text)
            if math.isfinite(number):
                return number
            wrong(node, path, f"{text} is not a finite number")
            return 0.0
        short = tag.removeprefix(_TAG)
        wrong(
            node,
            path,
            f"{_shown(text)} can't be read with the tag '!!{short}'"
            if tag.startswith(_TAG)
            else f"the tag {tag!r} is not allowed",
        )
        return None

    value = walk(root, ())
    if found:
        raise _error_of(file, found)
    return Document(file, value, places)


# ---- reading types -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A type annotation taken apart: ``Annotated`` bounds, ``| None``, the members and tag of a union."""

    base: Any
    limits: tuple[Any, ...] = ()
    nullable: bool = False
    members: tuple[Any, ...] = ()
    tag: str | None = None


@cache
def shape_of(annotation: Any) -> Shape:
    """An annotation taken apart."""
    limits: tuple[Any, ...] = ()
    while get_origin(annotation) is Annotated:
        annotation, *extra = get_args(annotation)
        limits = (*extra, *limits)
    if get_origin(annotation) not in (Union, types.UnionType):
        return Shape(annotation, limits)
    members = tuple(member for member in get_args(annotation) if member is not types.NoneType)
    nullable = len(members) < len(get_args(annotation))
    if len(members) == 1:
        inner = shape_of(members[0])
        return dataclasses.replace(inner, limits=(*inner.limits, *limits), nullable=nullable or inner.nullable)
    tags = [limit.discriminator for limit in limits if isinstance(limit, Discriminator)]
    return Shape(annotation, limits, nullable, members, str(tags[0]) if tags else None)


@cache
def fields_of(owner: type) -> dict[str, Any]:
    """Field name -> annotation of a dataclass, in order."""
    hints = get_type_hints(owner, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(owner) if f.init}


def variants_of(shape: Shape) -> dict[str, type]:
    """Tag value -> dataclass of a tagged union, in order."""
    assert shape.tag is not None
    return {str(value): member for member in shape.members for value in get_args(fields_of(member)[shape.tag])}


def is_config(annotation: Any) -> bool:
    """Whether an annotation is a dataclass."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def words(annotation: Any) -> str:
    """A type in plain words: ``a number greater than 0``, ``one of 'cosine', 'linear'``."""
    shape = shape_of(annotation)
    limits = [limit for one in shape.limits for limit in (one if isinstance(one, bounds.GroupedMetadata) else [one])]
    said = " and ".join(text for limit in limits for text in _limit_words(limit, shape.base))
    return _words(shape, f" {said}" if said else "") + (" or null" if shape.nullable else "")


def _words(shape: Shape, limits: str) -> str:
    base, origin = shape.base, get_origin(shape.base)
    if shape.tag is not None:
        return f"a mapping with {shape.tag}: {' or '.join(variants_of(shape))}"
    if shape.members:
        return " or ".join(words(member) for member in shape.members)
    if origin is Literal:
        values = [repr(value) for value in get_args(base)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if origin in (tuple, list):
        return f"a list{limits}, each entry {words(get_args(base)[0])}"
    if origin is dict:
        return f"a mapping{limits}"
    if is_config(base):
        return f"a mapping ({', '.join(fields_of(base))})"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Any: "any value"}
    return plain[base] + limits


_LIMITS = {"ge": "of at least", "gt": "greater than", "le": "at most", "lt": "below"}


def _limit_words(limit: Any, base: Any) -> Iterator[str]:
    yield from (f"{said} {getattr(limit, name)}" for name, said in _LIMITS.items() if hasattr(limit, name))
    if isinstance(limit, bounds.MinLen):
        singular, plural = ("character", "characters") if base is str else ("entry", "entries")
        yield f"with at least {limit.min_length} {singular if limit.min_length == 1 else plural}"


def _shown(value: Any) -> str:
    """A value as it would be written, cut to a line."""
    match value:
        case None:
            return "null (nothing)"
        case bool():
            return "true" if value else "false"
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "...")
        case dict():
            return "a mapping" if value else "an empty mapping"
        case list():
            return "an empty list" if not value else "a list"
        case _:
            text = str(value)
            return text if len(text) <= 60 else text[:57] + "..."


# ---- checked against a type ----------------------------------------------------------------------------------------


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def build(annotation: type[T], document: Document, path: ConfigPath = ()) -> T:
    """The value at ``path`` of the document, checked against a dataclass (or any annotation of its fields).

    Raises:
        ConfigError: names file, line and config path of everything that is wrong.

    """
    value = document.value
    for part in path:
        value = value[part]
    checker: TypeAdapter[T] = _adapter(cast(Any, annotation))
    if not path and not isinstance(value, dict) and is_config(annotation):
        hint = " (a space is needed after each ':')" if isinstance(value, str) and ":" in value else ""
        raise document.error([Problem((), f"must be {words(annotation)}, got {_shown(value)}{hint}")])
    try:
        # JSON mode, because strict mode on Python values takes instances of the dataclasses only.
        return checker.validate_json(json.dumps(value), strict=True, extra="forbid")
    except ValidationError as error:
        raw = [_problem(annotation, value, found) for found in error.errors(include_url=False)]
    problems = [Problem((*path, *problem.path), problem.message) for problem in _without_echoes(raw)]
    raise document.error(problems) from None


def _problem(annotation: Any, value: Any, found: Mapping[str, Any]) -> Problem:
    """One finding of pydantic as path and words. Its location also holds labels of unions, which are no keys."""
    path: ConfigPath = ()
    parts, kind = list(found["loc"]), found["type"]
    while parts:
        shape = shape_of(annotation)
        if shape.tag is not None:
            annotation = variants_of(shape)[str(parts.pop(0))]
        elif shape.members:
            break  # which member was meant is unknown: the words of the whole union say what is allowed
        elif is_config(shape.base):
            name = str(parts.pop(0))
            path = (*path, name)
            if kind in ("unexpected_keyword_argument", "extra_forbidden") and not parts:
                return Problem(path, _unknown_key(name, shape.base))
            annotation = fields_of(shape.base)[name]
            if kind in ("missing", "missing_argument") and not parts:
                return Problem(path, f"this key is missing; it must be {words(annotation)}")
            value = value[name]
        else:
            part = parts.pop(0)
            path = (*path, part)
            annotation = get_args(shape.base)[1 if get_origin(shape.base) is dict else 0]
            value = value[part]
    if kind == "value_error":  # settings that are right alone and wrong together: a configuration said so itself
        return Problem(path, str(found["ctx"]["error"]))
    return _wrong_value(annotation, value, path)


def _wrong_value(annotation: Any, value: Any, path: ConfigPath) -> Problem:
    shape = shape_of(annotation)
    if shape.tag is not None and isinstance(value, dict):
        known = variants_of(shape)
        if shape.tag not in value:
            return Problem((*path, shape.tag), f"this key is missing; it must be one of {', '.join(map(repr, known))}")
        return Problem((*path, shape.tag), _must_be(f"one of {', '.join(map(repr, known))}", value[shape.tag], known))
    literals = [str(v) for a in (shape.base, *shape.members) if get_origin(a) is Literal for v in get_args(a)]
    return Problem(path, _must_be(words(annotation), value, literals) + _spelling_hint(annotation, value))


def _must_be(allowed: str, value: Any, near: Sequence[str] | Mapping[str, Any] = ()) -> str:
    return f"must be {allowed}, got {_shown(value)}" + (did_you_mean(value, near) if isinstance(value, str) else "")


def _spelling_hint(annotation: Any, value: Any) -> str:
    """How to write it instead: numbers as text (``"16"``, ``1_000``, ``1,000``), the truth values of YAML 1.1, lists."""
    shape = shape_of(annotation)
    if isinstance(value, dict) and get_origin(shape.base) in (tuple, list):
        return " (start each entry with '- ')"
    if not isinstance(value, str):
        return ""
    bases = {shape_of(member).base for member in (shape.members or (annotation,))}
    thousands = re.fullmatch(r"[-+]?\d{1,3}([_, ]\d{3})+(\.\d+)?", value)
    plain = re.sub(r"[_, ]", "", value) if thousands else value.replace(",", ".")
    if {int, float} & bases and _FLOAT.fullmatch(plain) and math.isfinite(float(plain)):
        return f" (write {plain}, without quotes)"
    if bool in bases and value.lower() in _YAML_1_1_BOOL:
        return f" (write {_YAML_1_1_BOOL[value.lower()]}, without quotes)"
    return ""


_YAML_1_1_BOOL = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}


def _unknown_key(name: str, owner: type) -> str:
    fields = fields_of(owner)
    near = did_you_mean(name, fields)
    inside = next((f"{outer}.{name}" for outer, a in fields.items() for c in _configs(a) if name in fields_of(c)), None)
    if inside and not near.endswith(f"{name!r}?)"):
        return f"unknown key here; it belongs one level deeper: '{inside}'"
    return f"unknown key{near}" if near else f"unknown key; known here: {', '.join(fields)}"


def _configs(annotation: Any) -> tuple[type, ...]:
    """The dataclasses a field may hold, directly or as entries of a list or mapping."""
    shape = shape_of(annotation)
    inner = shape.members or (get_args(shape.base) if get_origin(shape.base) in (tuple, list, dict) else ())
    if is_config(shape.base):
        return (shape.base,)
    return tuple(config for part in inner if part is not Ellipsis for config in _configs(part))


def _without_echoes(problems: Sequence[Problem]) -> list[Problem]:
    """Without echoes: a list called too short because its entry is wrong, a key called missing because it is misspelt."""
    paths = {problem.path for problem in problems}
    suggested = {
        (*p.path[:-1], name)
        for p in problems
        for name in re.findall(r"unknown key \(did you mean '(\w+)'\?\)", p.message)
    }
    return [
        problem
        for problem in dict.fromkeys(problems)
        if not any(len(other) > len(problem.path) and other[: len(problem.path)] == problem.path for other in paths)
        and not (problem.path in suggested and problem.message.startswith("this key is missing"))
    ]


# ---- overrides -----------------------------------------------------------------------------------------------------


def override(
    document: Document,
    assignments: Sequence[str],
    annotation: type,
    *,
    shorthand: str | None = None,
    called: str = "override",
) -> Document:
    """The document with values replaced by ``path=value`` texts, in order.

    The value is YAML (``1e-4``, ``null``, ``[a, b]``, ``{name: full}``); the path is dotted, list entries by their number from 0
    (``stages.prepare.sources.0.path``). With ``shorthand="stages"``, ``sft.epochs=2`` is short for ``stages.sft.epochs=2`` where the
    file has such a stage and there is no top-level key ``sft``. A key that the file leaves at its default may be set, also inside a
    mapping that the file does not mention; entries of lists and of free mappings must exist. ``called`` is what an error calls
    an assignment.

    Raises:
        ConfigError: no ``=``, a path that does not exist, a value that is not YAML.

    """
    for assignment in assignments:
        document = _override_one(document, assignment, annotation, shorthand, called)
    return document


def _override_one(
    document: Document, assignment: str, annotation: type, shorthand: str | None, called: str
) -> Document:
    where = f"{called} {assignment!r}"
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            "an override is written key=value", where=where, fix="for example sft.learning_rate=1e-4, without spaces"
        )
    parts = key.strip().split(".")
    top = document.value if isinstance(document.value, dict) else {}
    short = top.get(shorthand) if shorthand else None
    if isinstance(short, dict) and parts[0] not in fields_of(annotation):
        if parts[0] not in short:
            known = [*fields_of(annotation), *short]
            raise ConfigError(
                f"unknown key {parts[0]!r}{did_you_mean(parts[0], known)}",
                where=where,
                fix=f"known: {', '.join(known)}",
            )
        parts = [str(shorthand), *parts]
    return assigned(document, parts, value_of(text, where), annotation, where)


def assigned(document: Document, parts: Sequence[str], new: Any, annotation: type, where: str) -> Document:
    """The document with the value at one path replaced, as `override` does. ``where``: what an error names, and the value's place."""
    value, path = _assigned(annotation, document.value, list(parts), new, (), where)
    places = {p: place for p, place in document.places.items() if p[: len(path)] != path}
    return Document(document.file, value, {**places, path: where})


def value_of(text: str, where: str) -> Any:
    """What the text behind ``path=`` means. Raises ConfigError where it is not YAML."""
    try:
        node = composed(text, where)
        rest = text if node is None else text[node.end_mark.index :]
        if rest.strip():
            raise ConfigError("'#' starts a comment in YAML", fix="put the value in quotes")
        return None if node is None else _document(node, where).value
    except ConfigError as error:
        raise ConfigError(error.problem.removeprefix("(top level): "), where=where, fix=error.fix) from None


def _assigned(
    annotation: Any, value: Any, parts: list[str], new: Any, path: ConfigPath, where: str
) -> tuple[Any, ConfigPath]:
    """A copy of ``value`` with ``new`` at ``parts``, and the path of it with list numbers as numbers."""
    if not parts:
        return new, path
    name, rest = parts[0], parts[1:]
    shape = shape_of(annotation)
    if shape.tag is not None and isinstance(value, dict):
        # An unknown or missing tag is told by build(); then any key of any variant is let through to it.
        variants = variants_of(shape)
        chosen = variants.get(str(value.get(shape.tag)))
        if chosen is None:
            chosen = next((v for v in variants.values() if name in fields_of(v)), shape.members[0])
        shape = shape_of(chosen)

    def fail(problem: str) -> ConfigError:
        return ConfigError(f"{dotted((*path, name))}: {problem}", where=where)

    if isinstance(value, list):
        if not re.fullmatch("[0-9]+", name) or int(name) >= len(value):
            raise fail(f"a list entry is named by its number, 0 to {len(value) - 1}" if value else "the list is empty")
        inner = next((get_args(a)[0] for a in (shape.base, *shape.members) if get_origin(a) in (tuple, list)), Any)
        entry, full = _assigned(inner, value[int(name)], rest, new, (*path, int(name)), where)
        return [entry if i == int(name) else old for i, old in enumerate(value)], full
    if not isinstance(value, dict):
        raise ConfigError(f"{dotted(path)} is {_shown(value)}, nothing inside it can be set", where=where)
    if is_config(shape.base):
        fields = fields_of(shape.base)
        if name not in fields:
            raise fail(_unknown_key(name, shape.base))
        old = value.get(name)
        if rest and old is None:
            old = _default_mapping(shape.base, name)
        entry, full = _assigned(fields[name], old, rest, new, (*path, name), where)
        return {**value, name: entry}, full
    if name not in value:
        raise fail(f"there is no such entry{did_you_mean(name, value)}; known: {', '.join(value)}")
    inner = get_args(shape.base)[1] if get_origin(shape.base) is dict else Any
    entry, full = _assigned(inner, value[name], rest, new, (*path, name), where)
    return {**value, name: entry}, full


def _default_mapping(owner: type, name: str) -> dict[str, Any] | None:
    """What a mapping that the file leaves out starts from: empty, what can only have one value, or the tag of the default where a tag is needed."""
    annotation = fields_of(owner)[name]
    if not (inside := _configs(annotation)):
        return None
    if len(inside) == 1:
        shapes = {key: shape_of(kind).base for key, kind in fields_of(inside[0]).items()}
        return {
            key: get_args(base)[0]
            for key, base in shapes.items()
            if get_origin(base) is Literal and len(get_args(base)) == 1
        }
    tag = shape_of(annotation).tag
    default = _default(next(f for f in dataclasses.fields(owner) if f.name == name))
    return {tag: getattr(default, tag)} if tag is not None and hasattr(default, tag) else {}


# ---- the way back --------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes text that either this reader or a YAML 1.1 reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _InlineDumper(_Dumper):
    """Writes in one line, text with line breaks too."""


def _written_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds U+0085 away unless it is told to escape it.
    escaped = "\x85" in text or (isinstance(dumper, _InlineDumper) and _LINE_BREAK.search(text))
    return dumper.represent_scalar(_TAG + "str", text, style='"' if escaped else None)


_Dumper.add_representer(str, _written_text)
_InlineDumper.add_representer(str, _written_text)
for _name, _pattern in (("int", _INT), ("float", _FLOAT)):
    for _dumper in (_Dumper, _InlineDumper):
        _dumper.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern.pattern})$", re.ASCII), None)


def resolved_yaml(value: Any, *, inline: bool = False) -> str:
    """A configuration as YAML with every default written out; parses back to an equal value. ``inline``: in one line."""
    return yaml.dump(
        plain(value),
        Dumper=_InlineDumper if inline else _Dumper,
        default_flow_style=inline,
        sort_keys=False,
        allow_unicode=True,
        width=1_000_000,
    )


# ---- descriptions --------------------------------------------------------------------------------------------------


@cache
def field_docs(owner: type) -> Mapping[str, str]:
    """Field name -> the docstring under it, on one line, inherited ones too. Empty where the source is not at hand."""
    docs: dict[str, str] = {}
    for base in reversed(owner.__mro__[:-1]):
        docs |= _own_field_docs(base)
    return {field.name: docs[field.name] for field in dataclasses.fields(owner) if field.name in docs}


@cache
def _classes_of(module: str) -> Mapping[str, ast.ClassDef]:
    """Qualified name -> class, of the classes that stand in a module's source. Read once: `inspect.getsource` reads it for every class."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, ast.ClassDef] = {}

    def walk(parent: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef):
                found[prefix + node.name] = node
                walk(node, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                walk(node, f"{prefix}{node.name}.<locals>.")

    walk(tree, "")
    return found


def _own_field_docs(owner: type) -> dict[str, str]:
    body = _classes_of(owner.__module__).get(owner.__qualname__)
    if body is None:
        return {}
    docs = {}
    for here, after in zip(body.body, body.body[1:], strict=False):
        match here, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
            case _:
                pass
    return docs


def _default(one: dataclasses.Field[Any]) -> Any:
    """The default of a field, or ``dataclasses.MISSING``."""
    if one.default_factory is not dataclasses.MISSING:
        return one.default_factory()
    return one.default


class Key(NamedTuple):
    """One key of a configuration: what may be written, what holds when nothing is, and what it means."""

    name: str
    allowed: str
    default: str | None
    """As YAML in one line; None = the key is required."""
    meaning: str


class Section(NamedTuple):
    """The keys of one dataclass."""

    path: str
    """Where it stands: ``stages.<name>``, ``stages.<name>.adapter``; empty for the root."""
    choice: str | None
    """``kind: train`` for a member of a tagged union."""
    meaning: str
    keys: tuple[Key, ...]


def sections(annotation: type) -> tuple[Section, ...]:
    """Every key that may be written, dataclass by dataclass, from the outside in."""
    return tuple(
        Section(path, choice, inspect.cleandoc(owner.__doc__ or ""), keys_of(owner))
        for owner, (path, choice) in configurations(annotation).items()
    )


@cache
def keys_of(owner: type) -> tuple[Key, ...]:
    """The keys of one dataclass, in order."""
    docs, annotations = field_docs(owner), fields_of(owner)
    found = []
    for one in dataclasses.fields(owner):
        default, written = _default(one), None
        if default is not dataclasses.MISSING:
            written = resolved_yaml(default, inline=True).removesuffix("...\n").strip()
        found.append(Key(one.name, words(annotations[one.name]), written, docs.get(one.name, "")))
    return tuple(found)


def configurations(annotation: Any) -> dict[type, tuple[str, str | None]]:
    """Every dataclass below an annotation, with the path it stands at first and the choice that selects it."""
    found: dict[type, tuple[str, str | None]] = {}

    def visit(part: Any, path: str, choice: str | None = None) -> None:
        shape = shape_of(part)
        if shape.tag is not None:
            for value, member in variants_of(shape).items():
                visit(member, path, f"{shape.tag}: {value}")
        elif is_config(shape.base):
            if shape.base not in found:
                found[shape.base] = (path, choice)
                for name, inner in fields_of(shape.base).items():
                    visit(inner, f"{path}.{name}" if path else name)
        elif shape.members:
            for member in shape.members:
                visit(member, path)
        elif get_origin(shape.base) in (tuple, list):
            visit(get_args(shape.base)[0], f"{path}.<number>")
        elif get_origin(shape.base) is dict:
            visit(get_args(shape.base)[1], f"{path}.<name>")

    visit(annotation, "")
    return found


def json_schema(annotation: type) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a dataclass, with field docstrings and defaults, for editors."""
    schema = _adapter(annotation).json_schema()
    for owner in configurations(annotation):
        definition = schema if owner is annotation else schema["$defs"][owner.__name__]
        definition["additionalProperties"] = False
        docs = field_docs(owner)
        for one in dataclasses.fields(owner):
            entry = definition["properties"][one.name]
            entry.pop("title", None)
            if one.name in docs:
                entry["description"] = docs[one.name]
            default = _default(one)
            if default is not dataclasses.MISSING:
                entry["default"] = plain(default)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
