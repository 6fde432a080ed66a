"""Values in a terminal, for ``rich.print``. Foreign text is never read as markup, and its control characters are not passed on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text as Words

from posttrain.report import numbers
from posttrain.report.values import (
    Beside,
    Block,
    Cell,
    Facts,
    Headline,
    Label,
    Mark,
    Notice,
    Number,
    Page,
    Section,
    Table,
    Text,
    is_known,
)
from posttrain.report.words import word_of

STYLES = {
    "improved": "bold blue",
    "worse": "bold yellow",
    "differs": "bold",
    "not shown": "dim",
    "failed": "bold yellow",
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def page(one: Page) -> RenderableType:
    """Return the first screen: the title, the headline numbers, and what is said below them."""
    facts = "; ".join(
        words(value).plain if not name else f"{name} {words(value).plain}"
        for name, value in one.facts
        if is_known(value)
    )
    return Group(
        Words(clean(f"{one.title}: {facts}" if facts else one.title), "bold"),
        *headlines(one.headlines),
        *blocks(one.opening),
    )


def headlines(several: Sequence[Headline]) -> Iterator[RenderableType]:
    """Yield the headline numbers as a grid; nothing without any."""
    grid = Grid.grid(padding=(0, 2))
    for one in several:
        mark = words(Mark(one.verdict)) if one.verdict else Words()
        grid.add_row(
            Words(clean(one.label), "dim"), Words(words(one.value).plain, "bold"), Words(clean(one.note)), mark
        )
    if several:
        yield Padding(grid, (0, 0, 0, 2))


def section(one: Section) -> RenderableType:
    """Return a section: its title and blocks; charts, replies, code and what is folded stand in the page only."""
    if one.folded:
        return Group()
    return Group(Words(clean(one.title), "bold"), *blocks(one.blocks))


def blocks(several: Sequence[Block]) -> Iterator[RenderableType]:
    """Yield what a terminal can show of the blocks."""
    for block in several:
        match block:
            case Text():
                yield Words(clean(block.text), "dim" if block.kind == "aside" else "")
            case Notice():
                sign, style = ("!", "yellow") if block.kind == "warning" else ("-", "")
                yield from (Words(f"{sign} {clean(text)}", style) for text in block.texts)
            case Table():
                yield table(block)
            case Facts():
                yield table(Table("", ("", ""), tuple((name, value) for name, value in block.items if is_known(value))))
            case Beside():
                yield from blocks(block.blocks)
            case Section():
                yield section(block)
            case _:
                continue


def table(one: Table) -> Grid:
    """Return a table; columns of numbers stand to the right."""
    rows = [row for row in one.rows if not isinstance(row, str)]
    headed = any(one.columns)
    grid = Grid(
        title=Words(clean(one.title)) if one.title else None,
        show_header=headed,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for place, name in enumerate(one.columns):
        known = [row[place] for row in rows if is_known(row[place])]
        right = bool(known) and all(isinstance(value, Number) for value in known)
        grid.add_column(Words(clean(name)), justify="right" if right else "left")
    for row in one.rows:
        grid.add_row(*([Words(clean(row), "bold")] if isinstance(row, str) else map(words, row)))
    return grid


def words(one: Cell) -> Words:
    """Return one field."""
    match one:
        case None:
            return Words(numbers.NOTHING, "dim")
        case Number():
            text = one.text + (f" ({one.interval})" if one.interval else "")
            said = Words(", ".join(part for part in (text, clean(one.note)) if part))
            return Words.assemble(said, " ", (one.mark, STYLES[one.verdict])) if one.verdict and one.mark else said
        case Mark():
            return Words(clean(word_of(one.kind)), STYLES.get(one.kind, ""))
        case Label():
            return (
                Words.assemble(clean(one.text), (f" {clean(one.note)}", "dim")) if one.note else Words(clean(one.text))
            )
        case _:
            return Words(clean(one))


def clean(text: str) -> str:
    """Return text without control characters, which could move the cursor or change colours."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
