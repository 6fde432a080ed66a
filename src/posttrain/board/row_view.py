"""One whole row as blocks of a report: what it says, why it went, what was measured of it. All of it is shown as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from posttrain.board.row_source import Shown
from posttrain.board.row_table import line_of
from posttrain.data.streams import printable
from posttrain.lab.row_page import turn_blocks
from posttrain.report.values import Block, Cell, Code, Facts, Notice, Number, Section, Table
from posttrain.types import PairRow, PromptRow, Row, SftRow, UnpairedRow

LONGEST_TEXT = 200_000
"""Characters of one text that are shown."""

Say = Callable[..., str]
"""The words of the page: name and values -> text."""
_BESIDE = (
    "id",
    "source",
    "split",
    "weight",
    "cluster",
    "parents",
    "model",
    "category",
    "prompt_id",
    "sample",
    "failure",
    "more",
)
"""Facts in their order, where they are known."""


def row_blocks(one: Shown, say: Say) -> tuple[Block, ...]:
    """Everything that is known of a row."""
    found: list[Block] = []
    if one.reason:
        step = f"{say('step')} {one.step}" if one.step else ""
        texts = tuple(text for text in (f"{one.reason}: {one.detail}" if one.detail else one.reason, step) if text)
        found.append(Notice("warning", say("dropped"), texts))
    if one.facts.get("twin"):
        found.append(Notice("fact", say("twin"), (str(one.facts["twin"]),)))
    found.append(_facts(one, say))
    if one.row is not None:
        found += _said(one.row, say)
        if one.row.meta:
            found.append(Code(say("meta"), _json(dict(one.row.meta)), "json"))
    if checks := one.facts.get("verdicts"):
        found.append(Section(say("checks"), "checks", (_checks(checks, say),), folded=True, gist=f"{len(checks)}"))
    if scores := one.facts.get("scores"):
        columns = (say("score"), say("value"), say("by"))
        found.append(Table(say("scores"), columns, tuple((s["name"], Number(s["value"]), s["by"]) for s in scores)))
    if measured := one.facts.get("values"):
        found.append(Facts(tuple((name, _number(value)) for name, value in measured.items())))
    if remark := one.facts.get("remark"):
        found.append(
            Notice("fact", str(remark.get("label", "")), (str(remark.get("detail") or remark.get("label", "")),))
        )
    if one.record is not None:
        text = one.record if isinstance(one.record, str) else _json(one.record)
        found.append(Code(say("record"), printable(text), "json", folded=one.row is not None))
    return tuple(_bounded(block, say) for block in found)


def _bounded(block: Block, say: Say) -> Block:
    """The block with only the beginning of a text that would take a browser minutes, and a word about it."""
    match block:
        case Code(text=text) if len(text) > LONGEST_TEXT:
            cut = say("cut", shown=f"{LONGEST_TEXT:,}", characters=f"{len(text):,}")
            return replace(block, title=f"{block.title} ({cut})", text=text[:LONGEST_TEXT])
        case Section():
            return replace(block, blocks=tuple(_bounded(inner, say) for inner in block.blocks))
        case _:
            return block


def _facts(one: Shown, say: Say) -> Block:
    line = line_of(one)
    items: list[tuple[str, Cell]] = [
        (say("place"), str(one.origin)),
        (say("kind"), say(f"kind_{line.kind}") if line.kind else say("kind_none")),
        (say("characters"), Number(line.characters, "count") if line.characters else None),
        (say("tokens_about"), Number(line.tokens, "count") if line.tokens is not None else None),
        (say("language"), line.language),
    ]
    for name in _BESIDE:
        value = one.facts.get(name, one.row.source if name == "source" and one.row is not None else None)
        if value not in (None, "", [], 1.0) or (name == "sample" and value):
            items.append((say(name), ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return Facts(tuple(items))


def _said(row: Row, say: Say) -> list[Block]:
    """The turns; of a pair both sides, of feedback with its label."""
    match row:
        case PairRow():
            sides = {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
        case UnpairedRow():
            sides = {"prompt": row.prompt, "desirable" if row.desirable else "undesirable": row.completion}
        case PromptRow():
            sides = {"prompt": row.prompt}
        case SftRow():
            sides = {"messages": row.messages}
    tools = dict.fromkeys(sides, ()) | {next(iter(sides)): row.tools}
    return [Section(say(name), name, turn_blocks(turns, tools[name])) for name, turns in sides.items()]


def _checks(checks: Sequence[Mapping[str, Any]], say: Say) -> Table:
    columns = (say("check"), say("step"), say("value"), say("limit"), say("passed"))
    rows = tuple(
        (one["check"], one["step"], Number(one["value"]), one["limit"], say("yes") if one["passed"] else say("no"))
        for one in sorted(checks, key=lambda one: bool(one["passed"]))
    )
    return Table(say("checks"), columns, rows)


def _number(value: Any) -> Cell:
    return Number(float(value)) if isinstance(value, int | float) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)
