"""What may stand where in a recipe, by the annotations of its dataclasses."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin

from posttrain.board.yaml_values import MISSING, inline, value_at
from posttrain.config import ConfigPath, Key, fields_of, is_config, keys_of, parse_yaml, shape_of, variants_of
from posttrain.lab.recipe import Recipe
from posttrain.references import Marker


def owner_of(annotation: Any, value: Any) -> type | None:
    """The dataclass that a mapping is an instance of; of a union the one its tag names."""
    shape = shape_of(annotation)
    if shape.tag is not None:
        tag = value.get(shape.tag) if isinstance(value, dict) else None
        return variants_of(shape).get(tag) if isinstance(tag, str) else None
    return shape.base if is_config(shape.base) else None


def is_list(annotation: Any) -> bool:
    """Whether it is a list, of whatever."""
    return get_origin(shape_of(annotation).base) in (tuple, list)


def is_group(annotation: Any) -> bool:
    """Whether it is a mapping with known keys, or one of several such."""
    shape = shape_of(annotation)
    return shape.tag is not None or is_config(shape.base)


def entry_of(annotation: Any) -> Any:
    """What the entries of a list or mapping of groups are; None where it is no such thing."""
    base = shape_of(annotation).base
    if is_list(annotation):
        entry = get_args(base)[0]
    elif get_origin(base) is dict:
        entry = get_args(base)[1]
    else:
        return None
    return entry if is_group(entry) else None


class Spot(NamedTuple):
    """The type of a place, and the key it is the value of."""

    annotation: Any
    key: Key | None
    """None for an entry."""


def spot_at(value: Any, path: ConfigPath) -> Spot | None:
    """What may stand at a path; None where nothing may."""
    spot = Spot(Recipe, None)
    for part in path:
        shape = shape_of(spot.annotation)
        owner = owner_of(spot.annotation, value)
        if owner is None and shape.tag is not None and spot.key is not None and spot.key.default is not None:
            owner = owner_of(spot.annotation, default_of(spot.key))  # what is left out is the default's kind
        if owner is not None or shape.tag is not None:
            annotation = fields_of(owner).get(str(part)) if owner is not None else None
            if annotation is None:
                return None
            spot = Spot(annotation, next(key for key in keys_of(owner) if key.name == part))
        elif is_list(spot.annotation):
            spot = Spot(get_args(shape.base)[0], None)
        elif get_origin(shape.base) is dict:
            spot = Spot(get_args(shape.base)[1], None)
        else:
            return None
        value = value_at(value, (part,))
    return spot


@cache
def default_of(key: Key) -> Any:
    """The value that a key has which is not written."""
    return MISSING if key.default is None else parse_yaml(f"- {key.default}", "default").value[0]


def only_value(annotation: Any) -> tuple[str, ...]:
    """The value of a key that can have one only."""
    shape = shape_of(annotation)
    values = get_args(shape.base) if get_origin(shape.base) is Literal and not shape.nullable else ()
    return values if len(values) == 1 else ()


def parts_of(annotation: Any) -> tuple[Any, ...]:
    """An annotation, the members of its union, and what its entries are."""
    shape = shape_of(annotation)
    inner = get_args(shape.base) if get_origin(shape.base) in (tuple, list, dict) else ()
    several = (*shape.members, *(part for part in inner if part is not Ellipsis))
    return (annotation, *(found for part in several for found in parts_of(part)))


def markers_of(annotation: Any) -> tuple[Marker, ...]:
    """What a field, or its entries, name."""
    return tuple(limit for part in parts_of(annotation) for limit in shape_of(part).limits if isinstance(limit, Marker))


def literals_of(annotation: Any) -> tuple[str, ...]:
    """The words among what may be typed."""
    found = (
        get_args(shape_of(part).base) for part in parts_of(annotation) if get_origin(shape_of(part).base) is Literal
    )
    return tuple(str(value) for values in found for value in values)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """All that may be typed, where that can be listed."""
    shape = shape_of(annotation)
    found: tuple[str, ...] = ()
    if shape.base is bool:
        found = ("true", "false")
    elif get_origin(shape.base) is Literal:
        found = tuple(value if isinstance(value, str) else inline(value) for value in get_args(shape.base))
    return (*found, "null") if found and shape.nullable else found
