"""Values in a terminal, for ``rich.print``. Foreign text is never read as markup, and its control characters are not passed on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text as Words

from posttrain.report import numbers, values
from posttrain.report.words import word_of

STYLES = {
    "improved": "bold blue",
    "worse": "bold yellow",
    "differs": "bold",
    "not shown": "dim",
    "failed": "bold yellow",
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def page(one: values.Page) -> RenderableType:
    """Return the first screen: the title, the headline numbers, and what is said below them."""
    known = [(name, words(value).plain) for name, value in one.facts if values.is_known(value)]
    facts = "; ".join(f"{name} {value}" if name else value for name, value in known)
    return Group(
        Words(clean(f"{one.title}: {facts}" if facts else one.title), "bold"),
        *headlines(one.headlines),
        *blocks(one.opening),
    )


def headlines(several: Sequence[values.Headline]) -> Iterator[RenderableType]:
    """Yield the headline numbers as a grid; nothing without any."""
    grid = Grid.grid(padding=(0, 2))
    for one in several:
        mark = words(values.Mark(one.verdict)) if one.verdict else Words()
        grid.add_row(
            Words(clean(one.label), "dim"), Words(words(one.value).plain, "bold"), Words(clean(one.note)), mark
        )
    if several:
        yield Padding(grid, (0, 0, 0, 2))


def section(one: values.Section) -> RenderableType:
    """Return a section: its title and blocks; charts, replies, code and what is folded stand in the page only."""
    if one.folded:
        return Group()
    return Group(Words(clean(one.title), "bold"), *blocks(one.blocks))


def blocks(several: Sequence[values.Block]) -> Iterator[RenderableType]:
    """Yield what a terminal can show of the blocks."""
    for block in several:
        match block:
            case values.Text():
                yield Words(clean(block.text), "dim" if block.kind == "aside" else "")
            case values.Notice():
                sign, style = ("!", "yellow") if block.kind == "warning" else ("-", "")
                yield from (Words(f"{sign} {clean(text)}", style) for text in block.texts)
            case values.Table():
                yield table(block)
            case values.Facts():
                yield table(values.Table("", ("", ""), block.known))
            case values.Beside():
                yield from blocks(block.blocks)
            case values.Section():
                yield section(block)
            case _:
                continue


def table(one: values.Table) -> Grid:
    """Return a table; columns of numbers stand to the right."""
    grid = Grid(
        title=Words(clean(one.title)) if one.title else None,
        show_header=any(one.columns),
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for name, right in zip(one.columns, one.numeric, strict=True):
        grid.add_column(Words(clean(name)), justify="right" if right else "left")
    for row in one.rows:
        grid.add_row(*([Words(clean(row), "bold")] if isinstance(row, str) else map(words, row)))
    return grid


def words(one: values.Cell) -> Words:
    """Return one field."""
    match one:
        case None:
            return Words(numbers.NOTHING, "dim")
        case values.Number():
            text = one.text + (f" ({one.interval})" if one.interval else "")
            said = Words(", ".join(part for part in (text, clean(one.note)) if part))
            return Words.assemble(said, " ", (one.mark, STYLES[one.verdict])) if one.verdict and one.mark else said
        case values.Mark():
            return Words(clean(word_of(one.kind)), STYLES.get(one.kind, ""))
        case values.Label():
            return Words.assemble(clean(one.text), (f" {clean(one.note)}" if one.note else "", "dim"))
        case _:
            return Words(clean(one))


def clean(text: str) -> str:
    """Return text without control characters, which could move the cursor or change colours."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
