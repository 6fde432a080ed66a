"""Values in a terminal, for ``rich.print``. Foreign text is never read as markup, and its control characters are not passed on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text as Words

from posttrain.report import numbers, values
from posttrain.report.charts import Bars
from posttrain.report.words import word_of

STYLES = {
    "improved": "bold blue",
    "worse": "bold yellow",
    "differs": "bold",
    "not shown": "dim",
    "failed": "bold yellow",
}
SHADES = ("black on green", "black on bright_green")
_CONTROL = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
_CONTROL |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


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
            case values.Code() if not block.folded:
                yield from (Words(clean(block.title), "bold"), Words(clean(block.text)))
            case values.Tokens():
                yield from (Words(clean(block.title), "bold"), _Coloured(block))
            case values.Beside():
                yield from blocks(block.blocks)
            case values.Section():
                yield section(block)
            case Bars() if block.in_terminal:
                yield from _bars(block)
            case _:
                continue


@dataclass(frozen=True)
class _Coloured:
    """Tokens that are trained on stand on a colour, neighbours in different shades; where there are no colours, in brackets."""

    one: values.Tokens

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Words]:
        if console.color_system is None:
            yield Words(clean(self.one.marked))
            return
        shades = cycle(SHADES)
        styled = [(one, next(shades) if one.weight else "dim") for one in self.one.tokens]
        yield Words.assemble(*((clean(t.visible), "black on red" if t.weight < 0 else style) for t, style in styled))


FILLS = "\u2588\u2593\u2592\u2591\u25a4\u25a5\u25a6\u25a7\u25a8\u25a9\u25a3"
"""One a kind of pieces of a bar: they can be told apart without colours."""
BAR_WIDTH = 28
"""Signs of the longest bar."""
_COLOURS = {
    **{"s0": "blue", "s1": "dark_orange", "s2": "green", "s3": "magenta"},
    **{"s4": "yellow", "s5": "cyan", "s6": "red", "s7": "grey62"},
}


def _bars(one: Bars) -> Iterator[RenderableType]:
    """Yield stacked bars as signs, and what each sign stands for."""
    most = max((sum(piece.value for piece in pieces) for _, _, several in one.lanes for pieces in several), default=0.0)
    fills = {name: (FILLS[place % len(FILLS)], _COLOURS[kind]) for place, (name, kind) in enumerate(one.legend)}
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for name, text, several in one.lanes:
        for pieces in several:
            bar, done, drawn = Words(), 0.0, 0
            for piece in pieces:
                done += piece.value
                end = round(BAR_WIDTH * done / most) if most else 0
                sign, colour = next((fills[kind] for kind in fills if piece.text.startswith(kind)), (FILLS[0], "blue"))
                bar.append(sign * (end - drawn), colour)
                drawn = max(drawn, end)
            grid.add_row(Words(clean(name)), bar, Words(clean(text)))
    yield Words(clean(one.title), "bold")
    yield grid
    legend = [part for name, (sign, colour) in fills.items() for part in ((sign, colour), f" {clean(name)}   ")]
    yield Words.assemble(*legend)
    if one.caption:
        yield Words(clean(one.caption), "dim")


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
    """Return text with a visible sign for every control character: they could move the cursor or change colours."""
    return text.translate(_CONTROL)
