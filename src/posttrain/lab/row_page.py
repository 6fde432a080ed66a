"""``posttrain show``: a row at every stage of encoding, as a page and in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.encode.show import ExampleView, RowView
from posttrain.report.values import Block, Code, Notice, Page, Section, Text, Token, Tokens
from posttrain.types import Message


def row_page(view: RowView) -> Page:
    """The messages of a row, and for each example made of it the rendered text and the tokens."""
    sections = [Section("Messages", "messages", turn_blocks(view.row.messages, view.row.tools))]
    if view.rejected is not None:
        said = Notice("warning", "It is not trained on", (f"{view.rejected.reason}: {view.rejected.detail}",))
        sections.append(Section("Row rejected", "rejected", (said,)))
    if view.notes:
        sections.append(Section("Notes", "notes", (Text(", ".join(view.notes)),)))
    for number, example in enumerate(view.examples, start=1):
        blocks: tuple[Block, ...] = (
            Text(_facts(example)),
            Code("Rendered text", example.rendered, folded=False),
            Tokens(
                "Tokens; what is trained on stands out",
                tuple(Token(t.text, t.weight, f"id {t.id}, weight {t.weight:g}") for t in example.tokens),
            ),
        )
        sections.append(Section(f"Example {number} of {len(view.examples)}", f"example-{number}", blocks))
    return Page(kind="posttrain show", title=view.place, sections=tuple(sections))


def _facts(example: ExampleView) -> str:
    parts = [f"{len(example.tokens)} tokens", f"{example.supervised} supervised"]
    if example.truncated:
        parts.append("truncated")
    if example.place is not None:
        parts.append(f"micro-batch {example.place.micro_batch}, tokens from {example.place.start}")
    if example.rejected is not None:
        parts.append(f"dropped: {example.rejected.reason} ({example.rejected.detail})")
    return ", ".join(parts)


def turn_blocks(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[Code, ...]:
    """The tools and every message as it stands, reasoning and tool calls included, each under its role with its weight."""
    return tuple(Code(role, text, folded=False) for role, text in _turns(messages, tools))


def _turns(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    yield from (("tool", json.dumps(tool, ensure_ascii=False)) for tool in tools)
    for message in messages:
        role = message.role if message.weight is None else f"{message.role} (weight {message.weight:g})"
        named = [part for part in (message.name, message.tool_call_id) if part is not None]
        role += f" ({', '.join(named)})" if named else ""
        if message.reasoning:
            yield f"{role}: reasoning", message.reasoning
        if message.content or not message.tool_calls:
            yield role, message.content
        yield from ((f"{role}: call", f"{call.name} {call.arguments}") for call in message.tool_calls)
