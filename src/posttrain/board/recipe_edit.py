"""Edits of a recipe by its form: what was typed, added or taken out becomes a patch of the YAML.

::

    with_typed(text, file, path, typed)     the text with what was typed into a field; nothing = the default
    with_entry(text, file, path, ...)       with one more entry of a list, stage, or optional group
    without(text, file, path)               without a key or an entry

What is typed means what it means behind ``path=`` on the command line, except that texts need no quotes and lists no brackets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.board.recipe_types import default_of, entry_of, is_list, only_value, owner_of, spot_at
from posttrain.board.yaml_edit import patched
from posttrain.board.yaml_nodes import spellings
from posttrain.board.yaml_values import MISSING, value_at, with_value, without_value
from posttrain.config import (
    ConfigPath,
    Document,
    assigned,
    dotted,
    fields_of,
    keys_of,
    parse_yaml,
    shape_of,
    value_of,
    variants_of,
)
from posttrain.errors import ConfigError
from posttrain.lab.recipe import Recipe


def with_typed(text: str, file: str, path: ConfigPath, typed: str) -> str:
    """The text after something was typed into a field; what is empty takes the key out, and so does null where null is the default.

    Raises:
        ConfigError: the text or what was typed is no YAML, or the path leads nowhere.

    """
    document = parse_yaml(text, file)
    spot, above = spot_at(document.value, path), spot_at(document.value, path[:-1])
    if typed == "" and above is not None and shape_of(above.annotation).tag == path[-1]:
        return without(text, file, path[:-1])
    if typed == "":
        return without(text, file, path)
    where = f"override {f'{dotted(path)}={typed}'!r}"
    if above is not None and shape_of(above.annotation).tag == path[-1]:
        return _with_kind(document, text, path, typed)
    value, spelled = _typed_value(spot.annotation if spot else None, typed, where)
    if value is None and spot is not None and spot.key is not None and default_of(spot.key) is None:
        return without(text, file, path)
    wanted = assigned(document, [str(part) for part in path], value, Recipe, where).value
    return _patched(document, text, wanted, {(*path, *below): one for below, one in spelled.items()})


def with_entry(text: str, file: str, path: ConfigPath, kind: str = "", name: str = "") -> str:
    """The text with one more entry of a list or mapping of groups, or with an optional group turned on.

    kind: of the entry, where there are several. name: of an entry of a mapping.

    Raises:
        ConfigError: the name is taken or missing, or nothing can be added there.

    """
    document = parse_yaml(text, file)
    spot = spot_at(document.value, path)
    if spot is None:
        raise ConfigError("there is no such key", where=dotted(path))
    entry = entry_of(spot.annotation)
    new = _begun(spot.annotation if entry is None else entry, kind)
    old = value_at(document.value, path)
    if old is MISSING:
        old = default_of(spot.key) if spot.key is not None else None
    if not isinstance(old, dict | list):
        old = None
    if entry is not None and is_list(spot.annotation):
        return _patched(document, text, with_value(document.value, path, [*(old or []), new]))
    if entry is not None:
        if not name or name in (old or {}):
            problem = f"there is an entry {name!r} already" if name else "a name is needed"
            raise ConfigError(problem, where=dotted(path))
        new = {**(old or {}), name: new}
    return _patched(document, text, with_value(document.value, path, new))


def _begun(annotation: Any, kind: str) -> dict[str, Any]:
    """A group in which nothing is said but what it is."""
    shape = shape_of(annotation)
    if shape.tag is not None:
        return {shape.tag: kind or next(iter(variants_of(shape)))}
    needed = [key.name for key in keys_of(shape.base) if key.default is None]
    return {name: only[0] for name in needed if (only := only_value(fields_of(shape.base)[name]))}


def without(text: str, file: str, path: ConfigPath) -> str:
    """The text without a key or an entry; the same where it is not there. Raises ConfigError where the text is no YAML."""
    document = parse_yaml(text, file)
    return _patched(document, text, without_value(document.value, path))


def _with_kind(document: Document, text: str, path: ConfigPath, kind: str) -> str:
    """Another kind of group keeps the keys that it knows too."""
    above = spot_at(document.value, path[:-1])
    assert above is not None
    owner = owner_of(above.annotation, {path[-1]: kind})
    old = value_at(document.value, path[:-1])
    known = fields_of(owner) if owner else {}
    kept = {key: value for key, value in old.items() if key in known} if isinstance(old, dict) else {}
    return _patched(document, text, with_value(document.value, path[:-1], {**kept, path[-1]: kind}))


def _typed_value(annotation: Any, typed: str, where: str) -> tuple[Any, dict[ConfigPath, str]]:
    """(what a typed text means, how its values are spelled)."""
    shape = shape_of(annotation)
    if shape.base is str and not (shape.nullable and typed == "null"):
        return typed.replace("\r\n", "\n"), {}
    if is_list(annotation) and not typed.lstrip().startswith("[") and typed != "null":
        typed = f"[{typed}]"
    value = value_of(typed, where)
    return value, {(): typed.strip()} | spellings(typed, where)


def _patched(document: Document, text: str, wanted: Any, spelled: Mapping[ConfigPath, str] | None = None) -> str:
    def absent(path: ConfigPath) -> Any:
        spot = spot_at(document.value, path)
        return MISSING if spot is None or spot.key is None else default_of(spot.key)

    return patched(text, wanted, document.file, spelled=spelled, absent=absent, says=document.value)
