"""Values as Markdown, with the figures as links to figures/*.svg. Foreign text can't end a table cell, a heading or a code block."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from posttrain.report import numbers, values
from posttrain.report.charts import Chart, draw
from posttrain.report.html import ARROWS
from posttrain.report.words import LANGUAGES, word_of


def page(one: values.Page) -> str:
    """Return the whole document."""
    facts = "; ".join(f"{inline(name)} {cell(value)}".strip() for name, value in one.facts if values.is_known(value))
    parts = [
        f"# {inline(one.title)}",
        f"{inline(one.kind)}: {facts}" if facts else inline(one.kind),
        headlines(one.headlines),
    ]
    parts += [*blocks(one.opening, 2), *blocks(one.sections, 2), inline(one.footer)]
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def headlines(several: Sequence[values.Headline]) -> str:
    """Return the headline numbers as a table without a header."""
    rows = [(one.label, one.value, one.note, values.Mark(one.verdict) if one.verdict else "") for one in several]
    return "\n".join(["| | | | |", "|---|---|---|---|", *map(_row, rows)]) if rows else ""


def blocks(several: Sequence[values.Block], level: int) -> Iterator[str]:
    """Yield every block; headings start at ``level``."""
    for block in several:
        yield from _block(block, level)


def _block(one: values.Block, level: int) -> Iterator[str]:
    match one:
        case values.Text():
            yield inline(one.text)
        case values.Table():
            yield table(one)
        case values.Facts():
            yield "\n".join(f"- {inline(name)}: {cell(value)}" for name, value in one.known)
        case values.Matrix():
            yield table(_matrix(one))
        case values.Notice():
            said = [inline(text) for text in one.texts]
            yield (
                f"> **{inline(one.title)}.** {said[0]}"
                if len(said) == 1
                else "\n".join([f"> **{inline(one.title)}.**", ">", *(f"> - {text}" for text in said)])
            )
        case values.Code():
            yield f"{'#' * min(level, 6)} {inline(one.title)}"
            yield fenced(one.text, one.language)
        case values.Tokens():
            yield f"{'#' * min(level, 6)} {inline(one.title)}"
            yield fenced(one.marked, "")
        case values.Replies():
            yield from _replies(one, level)
        case values.Beside():
            yield from blocks(one.blocks, level)
        case values.Section():
            yield f"{'#' * min(level, 6)} {inline(one.title)}"
            yield from blocks(one.blocks, level + 1)
        case values.Records():
            return
        case _:
            yield from _chart(one)


def _chart(one: Chart) -> Iterator[str]:
    if figure := draw(one):
        yield f"![{inline(figure.alt)}](figures/{figure.name}.svg)"
        yield f"*{inline(figure.title)}.* {inline(figure.caption)}".strip()


def table(one: values.Table) -> str:
    """Return a table below its title."""
    rule = "|".join("---:" if place and right is not False else "---" for place, right in enumerate(one.numeric))
    lines = [_row(one.columns), f"|{rule}|"]
    for row in one.rows:
        lines.append(f"| **{inline(row)}** |{' |' * (len(one.columns) - 1)}" if isinstance(row, str) else _row(row))
    return (f"**{inline(one.title)}**\n\n" if one.title else "") + "\n".join(lines)


def _row(cells: Sequence[values.Cell]) -> str:
    return f"| {' | '.join(cell(one) for one in cells)} |"


def cell(one: values.Cell) -> str:
    """Return one field in a line."""
    match one:
        case None:
            return numbers.NOTHING
        case values.Number():
            text = one.text + (f" ({one.interval})" if one.interval else "")
            return ", ".join(part for part in (text, inline(one.note), f"**{one.mark}**" if one.mark else "") if part)
        case values.Mark():
            return f"**{inline(word_of(one.kind))}**"
        case values.Label():
            arrow = ARROWS.get(one.better, ("", ""))[0]
            return " ".join(
                part for part in (inline(one.text), arrow, f"({inline(one.note)})" if one.note else "") if part
            )
        case _:
            return inline(one)


def _matrix(one: values.Matrix) -> values.Table:
    rows: list[tuple[values.Cell, ...]] = [
        (f"{place + 1} {model}", *(values.Number(rate, "share", digits=0) for rate in one.rates_MM[place]))
        for place, model in enumerate(one.models)
    ]
    return values.Table(one.title, ("", *(str(place + 1) for place in range(len(one.models)))), tuple(rows))


def _replies(one: values.Replies, level: int) -> Iterator[str]:
    for _, group in groupby(one.cards, key=lambda card: card.group):
        for card in list(group)[: one.markdown]:
            yield from _card(card, level)
    if one.markdown is not None:
        yield f"At most {one.markdown} prompts of a kind stand here; the page has more."


def _card(one: values.Card, level: int) -> Iterator[str]:
    said = ", ".join(
        text for text in (one.group, one.category, LANGUAGES.get(one.language, one.language), one.outcome) if text
    )
    yield f"{'#' * min(level, 6)} {inline(one.name)}{f' ({inline(said)})' if said else ''}"
    yield from map(fenced, one.turns)
    if one.note:
        yield inline(one.note)
    for answer in one.answers:
        said = "; ".join(inline(text) for text in (answer.label, *answer.notes, answer.detail) if text)
        yield f"{inline(answer.name)}{f': {said}' if said else ''}"
        for text in answer.texts:
            yield fenced(text) if text.strip() else "(empty reply)"


_ESCAPED = re.compile(r"([\\`*_\[\]<>|~#])")


def inline(text: str) -> str:
    """Return text that is safe inside a line, a heading or a table cell."""
    line = _ESCAPED.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")
    line = re.sub(r"^([-+=:])", r"\\\1", line)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)


def fenced(text: str, language: str = "") -> str:
    """Return a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
