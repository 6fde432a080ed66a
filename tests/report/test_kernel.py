"""Rules that hold for every value in every renderer."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from posttrain.report import html, markdown, plain, terminal
from posttrain.report.charts import (
    Bars,
    Chart,
    Forest,
    Histogram,
    Lane,
    Level,
    Lines,
    Piece,
    Plane,
    Radar,
    Series,
    Spot,
    counted,
    draw,
    running_mean,
    spaced,
    thinned,
)
from posttrain.report.values import (
    Answer,
    Beside,
    Block,
    Card,
    Code,
    Facts,
    Finding,
    Headline,
    Label,
    Line,
    Mark,
    Matrix,
    Notice,
    Number,
    Page,
    Records,
    Replies,
    Section,
    Table,
    Text,
    charts_of,
)

FOREIGN = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.sampled_from(
        [
            "</script><script>alert(1)</script>",
            '" onload="alert(1)',
            "<img src=x onerror=alert(1)>",
            "| a | b |\n|---|---|",
            "```\n# out",
            "[link](javascript:alert(1))",
            "[bold]red[/bold]",
            "\x1b[31mred\x1b[0m",
            "# heading\n- item\n1. one\n> quote",
            "&lt;b&gt; &amp;amp;",
            "---",
            "=== ***",
            "{{ 7 * 7 }} {% raw %}",
        ]
    ),
)


def charts(text: str) -> tuple[Chart, ...]:
    return (
        Lines(
            name="lines",
            title=text,
            series=(Series(text, ((0, 1.0), (1, 2.0))), Series("held-out", ((0, 3.0),), "s1", "dots", chosen=0)),
            y_label=text,
            levels=(Level(1.5, text),),
            verticals=(Level(0.5, text),),
            caption=text,
        ),
        Histogram(name="bars", title=text, edges=(0, 1, 2), heights=(3, 1), x_label=text, marks=(Level(1, text),)),
        Forest(name="forest", title=text, lanes=(Lane(text, 1, 0, 2, text, group=text),), unit=text, line=0),
        Bars(name="shares", title=text, lanes=((text, text, ((Piece(1, "s1", text),),)),), legend=((text, "s1"),)),
        Radar(
            name="radar",
            title=text,
            spokes=(text, "b", "c"),
            outlines=((text, "s1", (0.1, None, 0.3)),),
            unit="share",
            low=0,
            high=1,
        ),
        Plane(
            name="plane",
            title=text,
            spots=(Spot(text, "s1", (0.1, 0.0, 0.2), (0.5, 0.4, 0.6)),),
            x_label=text,
            y_label=text,
            corners=(text, text),
        ),
    )


def page_of(text: str) -> Page:
    """A page that holds a text in every place there is."""
    table = Table(
        text, (text, "b", "c", "d"), (text, (text, Number(1.5, note=text), Mark(text), Label(text, text, "lower")))
    )
    card = Card(
        text, (text, text), (Answer(text, (text, ""), text, True, (text,), text),), text, text, text, text, text
    )
    inner: tuple[Block, ...] = (
        Text(text),
        table,
        replace(table, folded=True, glance=True),
        Facts(((text, text),)),
        Facts(((text, text),), terms=True),
        Matrix(text, (text, "b"), ((None, 0.25), (0.75, None)), ((0, 4), (4, 0))),
        Notice("warning", text, (text,)),
        Notice("fact", text, (text, text)),
        Code(text, text),
        Replies(text, (card,), filters=True),
        Records(text, {text: text}),
        Beside((Text(text, "aside"),)),
    )
    return Page(
        kind=text,
        title=text,
        facts=((text, text), ("", Mark(text))),
        headlines=(Headline(text, text, text, "improved", quality=True, change=Number(1, low=0.5, high=2)),),
        opening=(Text(text, "lead"),),
        sections=(
            Section(
                text,
                "one",
                (*inner, *charts(text), Section(text, "two", (Text(text),), folded=True, gist=text)),
                summary=text,
                headlines=(Headline(text, Number(2), text),),
                findings=(Finding(text, text, None, text),),
                lines=(Line(text, Label(text), {text: Number(1)}),),
                advice=(text,),
            ),
        ),
        footer=text,
        fields={text: text},
    )


class Skeleton(HTMLParser):
    """The elements of a page with the names of their attributes, and the text outside of style and script."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self._silent = 0
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "text":  # a long label of a chart stands in two lines
            self.elements.append((tag, tuple(name for name, _ in attrs)))
        self._silent += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text.append(data)


@given(FOREIGN)
def test_foreign_text_adds_nothing_to_the_structure_of_the_page(text: str) -> None:
    found = Skeleton(html.page(page_of(f"x{text}")))  # an empty text would take elements away
    assert found.elements == Skeleton(html.page(page_of("x"))).elements
    if text.isprintable():
        assert f"x{text}" in found.text


def markdown_tokens(text: str) -> list[str]:
    """The kinds of all tokens; lines and spaces inside a text say nothing of the structure."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    found = []
    for token in tokens:
        found.append(token.type)
        found += [
            child.type for child in token.children or () if child.type not in ("text", "softbreak", "text_special")
        ]
    return found


@given(FOREIGN.filter(lambda text: any(character.isprintable() and character.strip() for character in text)))
def test_foreign_text_adds_nothing_to_the_structure_of_the_markdown(text: str) -> None:
    assert markdown_tokens(markdown.page(page_of(text))) == markdown_tokens(markdown.page(page_of("x")))


def printed(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=2_000, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@given(FOREIGN)
def test_foreign_text_is_no_markup_and_no_control_character_in_a_terminal(text: str) -> None:
    page = page_of(text)
    found = printed(terminal.page(page)) + "".join(printed(terminal.section(section)) for section in page.sections)
    assert not set(found) & {chr(code) for code in [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]}
    if text.isprintable() and text.isascii() and text.strip():
        assert text.strip() in found


@given(FOREIGN, st.floats())
def test_json_has_the_raw_numbers_and_the_texts(text: str, value: float) -> None:
    table = Table(text, ("a", "b"), ((text, Number(value, "share", note=text)),))
    found = json.loads(json.dumps(plain.page(Page("k", text, (Section(text, "s", (table,)),))), allow_nan=False))
    assert found["title"] == text
    row = found["sections"][0]["blocks"][0]["rows"][0]
    assert row == [text, {"value": value if math.isfinite(value) else None, "unit": "share", "note": text}]


def test_json_leaves_out_no_number_of_an_interval_and_no_verdict() -> None:
    number = Number(0.123456789, "share", 0.1, 0.2, verdict="improved")
    assert plain.plain(number) == {
        "value": 0.123456789,
        "unit": "share",
        "low": 0.1,
        "high": 0.2,
        "verdict": "improved",
    }
    assert plain.plain(Number(12, "count")) == 12


# ---- cells ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (Number(None), "–"),
        (Number(0.6251, "share"), "62.5%"),
        (Number(0.6251, "share", 0.55, 0.701), "62.5% (55.0% to 70.1%)"),
        (Number(0.083, "share", 0.01, 0.1, signed=True), "+8.3 points (+1.0 to +10.0)"),
        (Number(-1.25, digits=2, signed=True), "−1.25"),
        (Number(6.316, "rating"), "6.32"),
        (Number(1234, "count"), "1,234"),
        (Number(3.12e9, "bytes"), "3.12 GB"),
        (Number(0.0004, "p"), "p < 0.001"),
        (Number(0.5, "share", note="by definition"), "50.0%, by definition"),
        (Mark("not shown"), "no difference shown"),
        (Mark("complete"), "complete"),
        (Label("Loss", "30 rows", "lower"), "Loss (30 rows)"),
    ],
)
def test_a_cell_says_the_same_in_every_renderer(cell: Any, text: str) -> None:
    assert terminal.words(cell).plain.replace("Loss 30 rows", "Loss (30 rows)") == text
    assert markdown.cell(cell).replace("**", "").replace(" ↓", "") == text
    said = "".join(Skeleton(str(html.cell(cell))).text)
    assert re.sub(r"\W", "", said.replace("(lower is better)", "")) == re.sub(r"\W", "", text)


def test_a_shown_difference_is_marked_and_another_is_not() -> None:
    shown, not_shown = Number(1, verdict="worse"), Number(1, verdict="not shown")
    assert 'class="mark worse"' in html.cell(shown)
    assert "mark" not in html.cell(not_shown)
    assert markdown.cell(shown) == "1.000, **worse**"
    assert markdown.cell(not_shown) == "1.000"


def test_columns_of_numbers_stand_to_the_right_and_every_field_names_its_column() -> None:
    found = html.table(Table("t", ("a", "b", "c"), (("x", Number(1), "y"), ("z", None, ""))))
    assert found.count('class="number"') == 3
    assert found.count('data-label="b"') == 2


def test_a_name_that_repeats_stands_once() -> None:
    found = html.table(Table("t", ("a", "b"), (("x", "1"), ("x", "2"), ("y", "3"))))
    assert found.count(">x<") == 1
    assert found.count('class="again"') == 1


def test_columns_and_facts_without_a_value_are_left_out() -> None:
    table = Table("t", ("a", "b", "c"), (("x", None, Number(1)), ("y", "", None))).known()
    assert table.columns == ("a", "c")
    assert table.rows == (("x", Number(1)), ("y", None))
    assert "b" not in Skeleton(html.blocks((Facts((("a", "1"), ("b", None))),), 2)).text


# ---- folding, figures ----------------------------------------------------------------------------------------------


def test_what_is_folded_can_still_be_found() -> None:
    folded = Section("Details", "details", (Text("hidden words"),), folded=True, gist="12 rows")
    found = html.page(Page("k", "t", (folded,)))
    assert "<details><summary><h2" in found
    assert "12 rows" in found
    assert "hidden words" in found
    assert 'href="#details"' in found
    assert "hidden words" in markdown.page(Page("k", "t", (folded,)))


@pytest.mark.parametrize("chart", charts("x"), ids=lambda chart: type(chart).__name__)
def test_a_chart_is_one_drawing_inline_and_as_a_file(chart: Chart) -> None:
    figure = draw(chart)
    assert figure is not None
    inline = str(html.blocks((chart,), 2))
    assert str(figure.body) in inline
    assert 'role="img"' in inline
    alone = figure.standalone(html.package_text("figure.css"))
    root = ElementTree.fromstring(alone.encode())
    assert root.get("aria-label") == figure.alt
    assert str(figure.body) in alone
    assert f"](figures/{chart.name}.svg)" in "\n".join(markdown.blocks((chart,), 2))
    assert list(charts_of(Page("k", "t", (Section("s", "s", (Beside((chart,)),)),)))) == [chart]


@pytest.mark.parametrize(
    "chart",
    [
        Lines(name="l", title="t", series=(Series("a", ((0, math.nan),)),), y_label="y"),
        Lines(name="l", title="t", series=(), y_label="y"),
        Histogram(name="h", title="t", edges=(0, 1), heights=(0,), x_label="x"),
        Forest(name="f", title="t", lanes=(), unit="u"),
        Bars(name="b", title="t", lanes=()),
        Plane(name="p", title="t", spots=(), x_label="x", y_label="y", corners=("", "")),
    ],
    ids=lambda chart: type(chart).__name__,
)
def test_nothing_is_drawn_of_nothing(chart: Chart) -> None:
    assert draw(chart) is None
    assert str(html.blocks((chart,), 2)) == ""
    assert not list(markdown.blocks((chart,), 2))


def test_a_page_makes_no_request_and_runs_its_own_script_only() -> None:
    found = html.page(page_of("x"))
    assert "default-src 'none'" in found
    assert found.count("<script>") == 1
    assert not re.search(r"""(src|href)="(?!#|data:)""", found)


def test_half_a_character_at_the_limit_is_not_shown() -> None:
    answer = Answer("m", ("abc\N{REPLACEMENT CHARACTER}",), cut=True)
    card = Card("p", ("q",), (answer,))
    assert "\N{REPLACEMENT CHARACTER}" not in html.blocks((Replies("r", (card,)),), 2)
    whole = replace(card, answers=(replace(answer, cut=False),))
    assert "\N{REPLACEMENT CHARACTER}" in html.blocks((Replies("r", (whole,)),), 2)


# ---- arithmetic of the charts --------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), st.integers(1, 9))
def test_a_running_mean_stays_within_its_values(values: list[float], window: int) -> None:
    points = list(enumerate(values))
    found = running_mean(points, window)
    assert [step for step, _ in found] == [step for step, _ in points]
    assert all(min(values) - 1e-6 <= value <= max(values) + 1e-6 for _, value in found)


@given(st.integers(1, 3_000))
def test_thinning_keeps_the_mean(count: int) -> None:
    points = [(float(step), float(step % 7)) for step in range(count)]
    found = thinned(points)
    assert len(found) <= 400
    assert found[0][0] < 8
    assert found[-1][0] > count - 9


@given(st.lists(st.floats(-10, 20), min_size=1), st.integers(1, 20))
def test_every_value_is_counted_once(values: list[float], bars: int) -> None:
    assert sum(counted(values, spaced(0, 10, bars))) == len(values)
