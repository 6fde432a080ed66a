"""One row at every stage on its way to a loss: messages, rendered text, tokens with weights, place in a micro-batch.

``show_row`` gives a value; ``as_json``, ``as_terminal`` and ``as_html`` draw it.
"""

from __future__ import annotations

import html
import itertools
import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from posttrain.encode.collate import collate
from posttrain.encode.packing import pack
from posttrain.encode.spans import supervised_renderings
from posttrain.encode.template import ChatTemplate, RejectedError, RowRejected
from posttrain.encode.tokens import OverLength, TokenisedText, fit_length, tokenise_renderings
from posttrain.types import Message, SftRow, Tokens


@dataclass(frozen=True, slots=True)
class TokenView:
    """One token: its id, the text it shows, the weight of predicting it."""

    id: int
    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where an example stands when this row is packed alone: micro-batch, first token, and states that predict."""

    micro_batch: int
    start: int
    predicting: int


@dataclass(frozen=True, slots=True)
class ExampleView:
    """One training example made of the row."""

    tokens: tuple[TokenView, ...]
    rendered: str
    """The whole rendering; longer than what the tokens show where it was cut."""
    truncated: bool
    rejected: RowRejected | None
    """Why this example is not trained on; its tokens are then shown all the same, where there are any."""
    place: Place | None

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(token.weight != 0 for token in self.tokens)


@dataclass(frozen=True, slots=True)
class RowView:
    """A row and what becomes of it."""

    row: SftRow
    examples: tuple[ExampleView, ...]
    notes: tuple[str, ...]
    rejected: RowRejected | None
    """Why the whole row is rejected, or None."""
    number: int | None = None
    """Which row it is of its source, from 0, where it was asked for by number."""

    @property
    def place(self) -> str:
        """Row and line in words: a row is counted from 0 as in ``--row``, a line from 1 as in editors and ledgers."""
        row = "" if self.number is None else f"row {self.number} (from 0), "
        return f"{row}line {self.row.origin.line} of {self.row.origin.file}"


def show_row(
    row: SftRow,
    template: ChatTemplate,
    max_length: int | None = None,
    over_length: OverLength = "drop",
    budget: int = 2048,
    number: int | None = None,
) -> RowView:
    """Take one row through every stage of encoding. Without ``max_length`` nothing is over-length.

    ``number``: which row it is of its source, from 0.
    """
    try:
        renderings, notes = supervised_renderings(row, template)
    except RejectedError as error:
        return RowView(row, (), (), error.rejected, number)
    texts = tokenise_renderings(renderings, template)
    fitted = [
        text
        if isinstance(text, RowRejected)
        else fit_length(Tokens(text.ids_T, text.weights_T, row.id, part), max_length or len(text.ids_T), over_length)
        for part, text in enumerate(texts)
    ]
    kept = [example for example in fitted if isinstance(example, Tokens)]
    places = iter(_places(kept, budget))
    examples = []
    for rendering, text, example in zip(renderings, texts, fitted, strict=True):
        tokens = () if isinstance(text, RowRejected) else _token_views(text)
        if isinstance(example, Tokens):
            cut = len(example) < len(tokens)
            examples.append(ExampleView(tokens[: len(example)], rendering.text, cut, None, next(places)))
        else:
            examples.append(ExampleView(tokens, rendering.text, False, example, None))
    return RowView(row, tuple(examples), tuple(sorted(notes)), None, number)


def _token_views(text: TokenisedText) -> tuple[TokenView, ...]:
    ends = text.ends_T.tolist()
    return tuple(
        TokenView(token_id, text.text[start:end], round(weight, 6))
        for token_id, start, end, weight in zip(
            text.ids_T.tolist(), [0, *ends[:-1]], ends, text.weights_T.tolist(), strict=True
        )
    )


def _places(examples: list[Tokens], budget: int) -> list[Place]:
    places: dict[int, Place] = {}
    for number, members in enumerate(pack([len(example) for example in examples], budget)):
        starts = collate([examples[k] for k in members]).segments.starts
        for k, start in zip(members, starts, strict=True):
            places[k] = Place(number, start, examples[k].supervised)
    return [places[k] for k in range(len(examples))]


# ---- JSON ------------------------------------------------------------------------------------------------------------


def as_json(view: RowView) -> dict[str, Any]:
    """Return a JSON value. ``tokens`` are those of all examples in order; uncut, their texts join to ``rendered``."""
    return {
        "row": view.number,
        "origin": {"file": view.row.origin.file, "line": view.row.origin.line},
        "row_id": view.row.id,
        "messages": [asdict(message) for message in view.row.messages],
        "tools": [dict(tool) for tool in view.row.tools],
        "rendered": "".join(example.rendered for example in view.examples),
        "tokens": [
            {"id": token.id, "text": token.text, "weight": token.weight, "example": number}
            for number, example in enumerate(view.examples)
            for token in example.tokens
        ],
        "examples": [_example_json(example) for example in view.examples],
        "notes": list(view.notes),
        "rejected": _rejected_json(view.rejected),
    }


def _example_json(example: ExampleView) -> dict[str, Any]:
    place = example.place
    return {
        "rendered": example.rendered,
        "tokens": len(example.tokens),
        "supervised": example.supervised,
        "truncated": example.truncated,
        "rejected": _rejected_json(example.rejected),
        "place": place and {"micro_batch": place.micro_batch, "start": place.start, "predicting": place.predicting},
    }


def _rejected_json(rejected: RowRejected | None) -> dict[str, str] | None:
    return None if rejected is None else {"reason": rejected.reason, "detail": rejected.detail}


# ---- shared by both drawings -----------------------------------------------------------------------------------------


_SIGNS = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421, 0xA0: 0x237D}
"""A visible sign for every control character: data must not be able to steer a terminal."""


def _printable(text: str) -> str:
    """Replace control characters by their signs, except line ends and tabs."""
    return text.translate({code: sign for code, sign in _SIGNS.items() if code not in (0x09, 0x0A)})


def _visible(text: str) -> str:
    """Show also line ends, tabs, and a token that shows nothing (the rest of a character before it)."""
    if not text:
        return "\u00b7"
    return _printable(text.replace("\t", "\u2192").replace("\n", "\u21b5\n"))


def _facts(example: ExampleView) -> str:
    parts = [f"{len(example.tokens)} tokens", f"{example.supervised} supervised"]
    if example.truncated:
        parts.append("truncated")
    if example.place is not None:
        parts.append(f"micro-batch {example.place.micro_batch}, tokens from {example.place.start}")
    if example.rejected is not None:
        parts.append(f"dropped: {example.rejected.reason} ({example.rejected.detail})")
    return ", ".join(parts)


def _named(message: Message) -> str:
    """Name and id of a result, which a template may print."""
    said = [part for part in (message.name, message.tool_call_id) if part is not None]
    return f" ({', '.join(said)})" if said else ""


def _message_lines(view: RowView) -> list[tuple[str, str]]:
    """(role with weight, text) of the tools and every message, reasoning and tool calls included."""
    lines = [("tool", json.dumps(tool, ensure_ascii=False)) for tool in view.row.tools]
    for message in view.row.messages:
        role = message.role if message.weight is None else f"{message.role} (weight {message.weight:g})"
        if message.reasoning:
            lines.append((f"{role}: reasoning", message.reasoning))
        if message.content or not message.tool_calls:
            lines.append((role, message.content))
        lines.extend((f"{role}: call", f"{call.name} {call.arguments}") for call in message.tool_calls)
        lines[-1] = (f"{lines[-1][0]}{_named(message)}", lines[-1][1])
    return lines


# ---- terminal --------------------------------------------------------------------------------------------------------


def as_terminal(view: RowView, *, colours: bool = True) -> RenderableType:
    """Draw for a terminal: supervised tokens on green, alternating shades so that their edges show.

    Without ``colours`` (a pipe, a file) what is supervised stands in brackets.
    """
    messages = Table(show_header=False, box=None, padding=(0, 1))
    messages.add_column(style="bold", no_wrap=True)
    messages.add_column(overflow="fold")
    for role, text in _message_lines(view):
        messages.add_row(Text(role), Text(_printable(text)))
    parts: list[RenderableType] = [Panel(messages, title=Text(f"messages: {view.place}"), title_align="left")]
    if view.rejected is not None:
        reason = Text(f"{view.rejected.reason}: {view.rejected.detail}", style="bold red")
        return Group(*parts, Panel(reason, title="row rejected", title_align="left"))
    if view.notes:
        parts.append(Text(f"notes: {', '.join(view.notes)}", style="yellow"))
    brackets = ("", "") if colours else BRACKETS
    for number, example in enumerate(view.examples):
        title = f"example {number + 1} of {len(view.examples)}: {_facts(example)}"
        parts.append(Panel(Text(_printable(example.rendered)), title="rendered text", title_align="left"))
        parts.append(Panel(_coloured(example, *brackets), title=Text(title), title_align="left"))
    supervised = "like this".join(brackets)
    parts.append(Text.assemble("supervised: ", (supervised, SHADES[0]), ("  context: ", ""), ("like this", "dim")))
    return Group(*parts)


SHADES = ("black on green", "black on bright_green")
"""Styles of supervised tokens in a terminal, taking turns."""
BRACKETS = ("\u27e6", "\u27e7")


def _coloured(example: ExampleView, opening: str, closing: str) -> Text:
    text = Text(overflow="fold")
    shades = itertools.cycle(SHADES)
    for supervised, tokens in itertools.groupby(example.tokens, lambda token: token.weight != 0):
        text.append(opening if supervised else "")
        for token in tokens:
            shade = next(shades)
            style = "dim" if not supervised else shade if token.weight > 0 else "black on red"
            text.append(_visible(token.text), style=style)
        text.append(closing if supervised else "")
    return text


# ---- HTML ------------------------------------------------------------------------------------------------------------


def as_html(view: RowView) -> str:
    """Draw as one self-contained page, light and dark; the id and weight of a token show when it is pointed at."""
    origin = html.escape(view.place)
    messages = "".join(
        f"<tr><th>{html.escape(role)}</th><td><pre>{html.escape(text)}</pre></td></tr>"
        for role, text in _message_lines(view)
    )
    body = [f"<h1>{origin}</h1><h2>Messages</h2><table>{messages}</table>"]
    if view.rejected is not None:
        reason, detail = html.escape(view.rejected.reason), html.escape(view.rejected.detail)
        body.append(f'<p class="rejected"><b>Row rejected: {reason}.</b> {detail}</p>')
    if view.notes:
        body.append(f"<p>Notes: {html.escape(', '.join(view.notes))}</p>")
    for number, example in enumerate(view.examples):
        body.append(
            f"<h2>Example {number + 1} of {len(view.examples)}</h2><p>{html.escape(_facts(example))}</p>"
            f"<h3>Rendered text</h3><pre>{html.escape(example.rendered)}</pre>"
            f'<h3>Tokens</h3><pre class="tokens">{"".join(map(_token_html, example.tokens))}</pre>'
        )
    if view.examples:
        body.append('<p><span class="supervised">supervised token</span> <span class="context">context</span></p>')
    return _PAGE.replace("@TITLE@", origin).replace("@BODY@", "\n".join(body))


def _token_html(token: TokenView) -> str:
    kind = "supervised" if token.weight else "context"
    tip = f"id {token.id}, weight {token.weight:g}"
    return f'<span class="{kind}" title="{tip}">{html.escape(_visible(token.text))}</span>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #ffffff; --faint: #6b7280; --line: #d9dce1;
  --good: #bfe8c8; --good-edge: #2e7d42; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --paper: #16181c; --faint: #9097a1; --line: #343841;
  --good: #1f5130; --good-edge: #6fcf87; --bad: #ff8a80; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; } h3 { font-size: 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 0.9rem/1.6 ui-monospace, monospace; margin: 0; }
table { border-collapse: collapse; width: 100%; } th, td { border-top: 1px solid var(--line); padding: 0.3rem 0.6rem;
  text-align: left; vertical-align: top; } th { white-space: nowrap; font-weight: 600; }
th { width: 1%; } .tokens span { border-right: 1px solid var(--line); } .context { color: var(--faint); }
.supervised { background: var(--good); border-bottom: 2px solid var(--good-edge); } .rejected { color: var(--bad); }
</style></head><body>
@BODY@
</body></html>
"""
