"""What a report says, as values: a page of sections, each made of blocks.

A section is built where its records are made and knows nothing of HTML, Markdown or terminals; ``html``, ``markdown``, ``terminal`` and
``plain`` (JSON) each render every value here. Every string may hold foreign text: the renderers escape it. Numbers stay unrounded until
a renderer writes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, TypeVar

from posttrain.report import numbers
from posttrain.report.charts import Chart
from posttrain.report.verdicts import Verdict
from posttrain.report.words import MARKS

T = TypeVar("T")
Better = Literal["higher", "lower", "neither"]
Unit = Literal[
    "number", "count", "compact", "share", "rating", "tokens", "points", "seconds", "bytes", "p", "scientific", "moment"
]
"""How a number is written (``numbers.in_unit``). ``share``: 0 to 1, written in percent; ``points``: the same without the sign."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number, with its interval where it has one."""

    value: float | None
    unit: Unit = "number"
    low: float | None = None
    high: float | None = None
    digits: int | None = None
    """Decimals; None = what the unit and the size ask for."""
    signed: bool = False
    """Whether it is a difference, written with its sign; of a ``share`` in percentage points."""
    note: str = ""
    """What stands beside it: ``by definition``, ``3 cut``."""
    verdict: Verdict | None = None
    """Of its comparison with a baseline."""

    @property
    def text(self) -> str:
        """The number itself, without its interval."""
        written = numbers.difference_in_unit if self.signed else numbers.in_unit
        return written(self.value, self.unit, self.digits)

    @property
    def interval(self) -> str:
        """Both ends of its interval; nothing where there is none."""
        if self.low is None or self.high is None:
            return ""
        written = numbers.signed_interval_in_unit if self.signed else numbers.interval_in_unit
        return written(self.low, self.high, self.unit, self.digits)

    @property
    def mark(self) -> str:
        """The word beside it; nothing where no difference is shown."""
        return MARKS[self.verdict] if self.verdict and self.verdict != "not shown" else ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A word that stands out: a verdict, the status of a stage, what became of a prompt."""

    kind: str


@dataclass(frozen=True, slots=True)
class Label:
    """The name of a line with what is said smaller beside it, and which way is better."""

    text: str
    note: str = ""
    better: Better = "neither"


Cell = str | Number | Mark | Label | None
"""One field of a table; None = there is nothing to say."""


# ---- blocks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. ``lead``: the first one of a page; ``aside``: what qualifies the block above."""

    text: str
    kind: Literal["plain", "lead", "aside"] = "plain"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows whose first cell names them; a row that is a string is a heading over the rows below it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...] | str, ...]
    folded: bool = False
    glance: bool = False
    """Whether it is the wide table of all models, whose first column stays in view."""

    @property
    def lines(self) -> list[tuple[Cell, ...]]:
        """The rows without the headings."""
        return [row for row in self.rows if not isinstance(row, str)]

    @property
    def numeric(self) -> list[bool | None]:
        """Whether all that a column says are numbers, by column; None where it says nothing."""
        known = [[row[c] for row in self.lines if is_known(row[c])] for c in range(len(self.columns))]
        return [all(isinstance(cell, Number) for cell in cells) if cells else None for cells in known]

    def known(self) -> Table:
        """Return it without the columns, other than the first, that no row says anything in."""
        kept = [c for c in range(len(self.columns)) if c == 0 or any(is_known(row[c]) for row in self.lines)]
        cut = tuple(row if isinstance(row, str) else tuple(row[c] for c in kept) for row in self.rows)
        return dataclasses.replace(self, columns=tuple(self.columns[c] for c in kept), rows=cut)


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with one value each. ``terms``: the values are explanations of the names."""

    items: tuple[tuple[str, Cell], ...]
    terms: bool = False

    @property
    def known(self) -> tuple[tuple[str, Cell], ...]:
        """Those with a value."""
        return tuple((name, value) for name, value in self.items if is_known(value))


@dataclass(frozen=True, slots=True)
class Matrix:
    """Who beats whom. Shapes: ``M`` models, in this order on both sides."""

    title: str
    models: tuple[str, ...]
    rates_MM: tuple[tuple[float | None, ...], ...]
    """Share of wins of the row's model against the column's, ties half; None where the two never met."""
    counts_MM: tuple[tuple[float, ...], ...]
    """Comparisons of the two."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to know before reading on: a ``fact`` explains, a ``warning`` says what looks wrong or is missing."""

    kind: Literal["fact", "warning"]
    title: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Text as it stands in a file."""

    title: str
    text: str
    language: str = ""
    folded: bool = True


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the text it shows; ``weight``: of predicting it, 0 = it is context."""

    text: str
    weight: float
    note: str = ""

    @property
    def visible(self) -> str:
        """Its text with signs for line ends and tabs, and one where it shows nothing (the rest of a character before it)."""
        return self.text.replace("\t", "\u2192").replace("\n", "\u21b5\n") or "\u00b7"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A sequence of tokens, those that are trained on in colour."""

    title: str
    tokens: tuple[Token, ...]

    @property
    def marked(self) -> str:
        """All of them as text, with what is trained on in brackets."""
        runs = groupby(self.tokens, key=lambda token: token.weight != 0)
        texts = (("".join(token.visible for token in run), trained) for trained, run in runs)
        return "".join(f"\u27e6{text}\u27e7" if trained else text for text, trained in texts)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model said to a prompt, and what came of it."""

    name: str
    texts: tuple[str, ...]
    """One a turn."""
    label: str = ""
    good: bool | None = None
    """Whether ``label`` is good news; None where it is neither."""
    notes: tuple[str, ...] = ()
    detail: str = ""
    """Why, in the words of the judge or the checker."""
    cut: bool = False
    """Whether it ended at the limit of tokens, possibly inside a character."""


@dataclass(frozen=True, slots=True)
class Card:
    """One prompt with the replies of all models."""

    name: str
    turns: tuple[str, ...]
    answers: tuple[Answer, ...]
    group: str = ""
    """The heading it stands under."""
    category: str = ""
    language: str = ""
    """A language tag."""
    outcome: str = ""
    note: str = ""
    """What the replies were checked for."""


@dataclass(frozen=True, slots=True)
class Replies:
    """Prompts with their replies side by side; ``filters``: readers can search and sift them."""

    title: str
    cards: tuple[Card, ...]
    filters: bool = False
    markdown: int | None = None
    """Cards of each group that stand in the Markdown; None = all."""


@dataclass(frozen=True, slots=True)
class Records:
    """The records behind a section as plain values, for programs: only the JSON has them."""

    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Beside:
    """Blocks that stand side by side where there is room."""

    blocks: tuple[Block, ...]


# ---- sections ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Headline:
    """One number of the first screen: what it is, its value, and a line below it."""

    label: str
    value: str | Number
    note: str
    verdict: Verdict | None = None
    quality: bool = False
    """Whether it says how good a model is rather than what it cost."""
    change: Number | None = None
    """The difference behind the verdict with its interval, drawn as a small picture."""
    better: Better = "higher"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the section shows, or fails to show. ``verdict`` is None where nothing is compared."""

    stage: str
    topic: str
    verdict: Verdict | None
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """One measure of all models, for the table of everything at a glance."""

    group: str
    label: Label
    cells: Mapping[str, Number]
    """By model."""
    baseline: str | None = None
    """The model whose difference the verdicts are about; None where nothing is compared."""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page, and what the first screen says of it."""

    title: str
    anchor: str
    blocks: tuple[Block, ...]
    folded: bool = False
    gist: str = ""
    """What stands beside the title while it is folded."""
    summary: str = ""
    """Sentences for the paragraph at the top of the page."""
    headlines: tuple[Headline, ...] = ()
    findings: tuple[Finding, ...] = ()
    lines: tuple[Line, ...] = ()
    advice: tuple[str, ...] = ()
    """What a reader could do next, the most useful first."""


Block = Text | Table | Facts | Matrix | Notice | Chart | Code | Tokens | Replies | Records | Beside | Section


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page: the first screen and the sections below it."""

    kind: str
    """What stands over the title: ``posttrain report``."""
    title: str
    sections: tuple[Section, ...]
    facts: tuple[tuple[str, Cell], ...] = ()
    """The line below the title; a name may be empty."""
    headlines: tuple[Headline, ...] = ()
    opening: tuple[Block, ...] = ()
    """The blocks of the first screen."""
    footer: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What only the JSON says of the whole: name, seed, status."""


def table_of(title: str, lines: Iterable[T], *columns: tuple[str, Callable[[T], Cell]], folded: bool = False) -> Table:
    """Return a table with a row a line. ``columns``: what each is called, and what it says of a line."""
    rows = tuple(tuple(cell(one) for _, cell in columns) for one in lines)
    return Table(title, tuple(name for name, _ in columns), rows, folded)


def is_known(cell: Cell) -> bool:
    """Whether a cell says anything."""
    return cell is not None and cell != "" and not (isinstance(cell, Number) and cell.value is None and not cell.note)


def blocks_of(blocks: tuple[Block, ...]) -> Iterator[Block]:
    """Yield all blocks, those inside sections and beside each other too, in the order of the page."""
    for block in blocks:
        yield block
        if isinstance(block, Section | Beside):
            yield from blocks_of(block.blocks)


def charts_of(page: Page) -> Iterator[Chart]:
    """Yield every chart of a page."""
    for block in blocks_of((*page.opening, *page.sections)):
        if isinstance(block, Chart):
            yield block
