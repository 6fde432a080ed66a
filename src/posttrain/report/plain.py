"""Values as plain data for JSON: the numbers unrounded, those that are not finite as null, as JSON has no others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from posttrain.report.charts import Chart
from posttrain.report.values import Beside, Block, Code, Number, Page, Records, Replies, Section, blocks_of
from posttrain.table import grouped

SCHEMA = 2


def page(one: Page) -> dict[str, Any]:
    """Return the fields of the page, what the first screen says, the records by name, and every section."""
    records = [inner for inner in blocks_of(one.sections) if isinstance(inner, Records)]
    return {
        "schema": SCHEMA,
        "title": one.title,
        **plain(one.fields),
        "headlines": plain(one.headlines),
        "records": grouped((inner.name, plain(inner.value)) for inner in records),
        "sections": [section(inner) for inner in one.sections],
    }


def section(one: Section) -> dict[str, Any]:
    """Return what a section says; of charts and replies only what they are called."""
    kept = {
        key: plain(getattr(one, key))
        for key in ("title", "anchor", "summary", "headlines", "findings", "lines", "advice")
    }
    return {**kept, "blocks": [block(inner) for inner in one.blocks if not isinstance(inner, Records)]}


def block(one: Block) -> dict[str, Any]:
    """Return one block; ``block`` names what it is."""
    kind = type(one).__name__.lower()
    match one:
        case Section():
            return {"block": kind, **section(one)}
        case Replies():
            return {"block": kind, "title": one.title, "prompts": len(one.cards)}
        case Code():
            return {"block": kind, "title": one.title}
        case _ if isinstance(one, Chart):
            return {"block": "chart", "name": one.name, "title": one.title}
        case Beside():
            return {"block": kind, "blocks": [block(inner) for inner in one.blocks]}
        case _:
            fields = dataclasses.fields(one)
            return {
                "block": kind,
                **{f.name: plain(getattr(one, f.name)) for f in fields if f.name not in ("folded", "glance")},
            }


def plain(value: Any) -> Any:
    """Return a value as JSON has it: a number without interval, note or verdict is bare."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Number) and value == Number(value.value, value.unit, digits=value.digits, signed=value.signed):
        return plain(value.value)
    if isinstance(value, Number):
        kept = ("value", "low", "high", "unit", "note", "verdict")
        return {key: plain(found) for key in kept if (found := getattr(value, key)) not in (None, "")}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value
