"""Values as HTML: a self-contained page that makes no request. Styles, script and drawings are inside, and its content security policy
forbids the rest. Every string is escaped: rows, replies and names are foreign text.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from itertools import groupby

from markupsafe import Markup, escape

from posttrain.report import numbers, values
from posttrain.report.charts import Chart, draw
from posttrain.report.figure import Figure
from posttrain.report.svg import Scale, dot, line, tag, whisker
from posttrain.report.words import LANGUAGES, word_of

ARROWS = {"higher": ("\N{UPWARDS ARROW}", "higher is better"), "lower": ("\N{DOWNWARDS ARROW}", "lower is better")}
MOST_LABELS = 24
"""Verdicts offered as a filter, the most frequent ones; the search finds the others."""
LONG_DETAIL = 160
"""Characters from which on the reasons of a judge are folded."""
_SHADES = 8
"""Of a colour in a matrix; their strength stands in page.css."""


def page(one: values.Page) -> str:
    """Return the whole document; equal pages give equal bytes."""
    script = package_text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    links = [(section.anchor, section.title) for section in one.sections]
    return _SHELL.format(
        policy=Markup(policy),
        title=f"{one.title} \N{EN DASH} {one.kind}",
        css=Markup(package_text("figure.css") + package_text("page.css")),
        kind=one.kind,
        heading=one.title,
        facts=_join(_lines(one.facts)),
        lead=blocks([block for block in one.opening if _is_lead(block)], 2),
        tiles=tiles(one.headlines),
        opening=blocks([block for block in one.opening if not _is_lead(block)], 2),
        links=_join(tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title in links),
        sections=_join(_section(section, 2) for section in one.sections),
        footer=one.footer,
        script=Markup(script),
    )


_SHELL = Markup("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{css}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header class="top">
<p class="eyebrow">{kind}</p>
<h1>{heading}</h1>
<ul class="subtitle">{facts}</ul>
{lead}
{tiles}
{opening}
</header>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main id="content">
{sections}
</main>
<footer><p>{footer}</p></footer>
<script>{script}</script>
</body>
</html>
""")


def _is_lead(block: values.Block) -> bool:
    return isinstance(block, values.Text) and block.kind == "lead"


def package_text(name: str) -> str:
    """Return a style sheet or script of this package."""
    return (resources.files("posttrain.report") / name).read_text(encoding="utf-8")


# ---- the first screen ----------------------------------------------------------------------------------------------


def _lines(facts: Iterable[tuple[str, values.Cell]]) -> Iterator[Markup]:
    for name, value in facts:
        if values.is_known(value):
            yield tag(
                "li",
                f"{name} " if name else "",
                cell(value) if isinstance(value, values.Mark) else tag("strong", cell(value)),
            )


def tiles(headlines: Sequence[values.Headline]) -> Markup:
    """Return the headline numbers, each with a small picture of its difference where it has one."""
    if not headlines:
        return Markup("")
    return tag("dl", *map(_tile, headlines), class_="tiles", aria_label="Headline numbers")


def _tile(one: values.Headline) -> Markup:
    parts = [tag("dt", one.label), tag("dd", cell(one.value), class_="value")]
    if one.change is not None and (picture := _change_picture(one)):
        parts.append(tag("dd", picture))
    parts.append(tag("dd", one.note, class_="note"))
    if one.verdict:
        parts.append(tag("dd", word_of(one.verdict), class_=f"pill {_slug(one.verdict)}"))
    return tag("div", *parts, class_="tile quality" if one.quality else "tile")


def _change_picture(one: values.Headline) -> Markup | None:
    """Return a difference and its interval around zero, better to the right."""
    change = one.change
    if change is None or change.value is None or change.low is None or change.high is None:
        return None
    turn = -1 if one.better == "lower" else 1
    low, high = sorted((turn * change.low, turn * change.high))
    end = max(abs(low), abs(high)) * 1.15 or 1.0
    scale, kind = Scale(-end, end, 4, 196), {"improved": "s1", "worse": "s2"}.get(one.verdict or "", "s0")
    text = f"{change.text}, {change.interval}"
    parts = [
        line(0, 200, 12, 12, "axis"),
        line(100, 100, 2, 22, "zero"),
        whisker(scale(low), scale(high), 12, kind),
        dot(scale(turn * change.value), 12, f"dot {kind}", text, 5),
    ]
    return tag(
        "svg",
        *parts,
        class_="figure change",
        viewBox="0 0 200 24",
        role="img",
        aria_label=f"Difference {text}; right of zero is better",
    )


# ---- sections and blocks -------------------------------------------------------------------------------------------


def _section(one: values.Section, level: int) -> Markup:
    heading = tag(f"h{min(level, 6)}", one.title, id=f"{one.anchor}-title")
    inside = blocks(one.blocks, level + 1)
    if one.folded:
        gist = tag("span", one.gist, class_="muted") if one.gist else ""
        inside = tag("details", tag("summary", heading, gist), inside)
        heading = Markup("")
    return tag("section", heading, inside, id=one.anchor, aria_labelledby=f"{one.anchor}-title")


def blocks(several: Sequence[values.Block], level: int) -> Markup:
    """Return blocks below each other; charts that follow each other stand in a grid."""
    parts = []
    for charts, group in groupby(several, key=lambda block: isinstance(block, Chart)):
        if charts:
            figures = [figure for block in group if isinstance(block, Chart) and (figure := draw(block))]
            small = bool(figures) and all(figure.small for figure in figures)
            drawn = [_figure(figure, level) for figure in figures]
            parts.append(tag("div", *drawn, class_="figures small" if small else "figures") if drawn else Markup(""))
        else:
            parts += [_block(block, level) for block in group]
    return Markup("\n").join(parts)


def _block(one: values.Block, level: int) -> Markup:
    match one:
        case values.Text():
            return tag("p", one.text, class_=None if one.kind == "plain" else one.kind)
        case values.Table():
            return table(one)
        case values.Facts():
            pairs = [tag("div", tag("dt", name), tag("dd", cell(value))) for name, value in one.known]
            return tag("dl", *pairs, class_="terms" if one.terms else "facts") if pairs else Markup("")
        case values.Matrix():
            return _matrix(one)
        case values.Notice():
            several = tag("ul", *(tag("li", text) for text in one.texts))
            said = tag("p", one.texts[0]) if len(one.texts) == 1 else several
            return tag("div", tag(f"h{min(level, 6)}", one.title), said, class_=f"notice {one.kind}", role="note")
        case values.Code():
            text = tag("pre", one.text, tabindex="0")
            title = tag("p", one.title, class_="aside")
            return tag("details", tag("summary", one.title), text) if one.folded else title + text
        case values.Tokens():
            spans = [tag("span", token.visible, class_=_role(token), title=token.note) for token in one.tokens]
            return tag("p", one.title, class_="aside") + tag("pre", *spans, class_="tokens", tabindex="0")
        case values.Replies():
            return _replies(one, level)
        case values.Beside():
            return tag("div", *(blocks((inner,), level) for inner in one.blocks), class_="split")
        case values.Section():
            return _section(one, level)
        case values.Records():
            return Markup("")
        case _:
            raise TypeError(f"{type(one).__name__} is no block")


def _role(token: values.Token) -> str:
    return "supervised" if token.weight > 0 else "negative" if token.weight < 0 else "context"


def _figure(figure: Figure, level: int) -> Markup:
    caption = tag("figcaption", figure.caption) if figure.caption else ""
    return tag("figure", tag(f"h{min(level, 6)}", figure.title), figure.inline(), caption)


# ---- tables --------------------------------------------------------------------------------------------------------


def table(one: values.Table) -> Markup:
    """Return a table that can be scrolled sideways; on a phone its rows become lists."""
    numeric = one.numeric
    head = [
        tag("th", name, scope="col", class_="number" if right else None)
        for name, right in zip(one.columns, numeric, strict=True)
    ]
    body, before = [], None
    for row in one.rows:
        if isinstance(row, str):
            heading = tag("th", tag("span", row), scope="colgroup", colspan=str(len(one.columns)))
            body.append(tag("tr", heading, class_="group"))
            before = None
            continue
        again = row[0] == before and len(one.columns) > 1
        first = tag("td", class_="text") if again else tag("th", cell(row[0]), scope="row", class_="text")
        cells = [
            tag("td", cell(value), class_="number" if right else None, data_label=name)
            for name, value, right in zip(one.columns[1:], row[1:], numeric[1:], strict=True)
        ]
        body.append(tag("tr", first, *cells, class_="again" if again else None))
        before = row[0]
    classes = "glance" if one.glance else "wide" if len(one.columns) > 4 else None
    drawn = _scrolled(one.title, head, body, classes)
    if not one.folded:
        return drawn
    return tag("details", tag("summary", one.title, tag("span", f" ({len(one.lines):,})", class_="muted")), drawn)


def _scrolled(title: str, head: Sequence[Markup], body: Sequence[Markup], classes: str | None) -> Markup:
    caption = tag("caption", title) if title else ""
    inside = tag("table", caption, tag("thead", tag("tr", *head)), tag("tbody", *body), class_=classes)
    return tag("div", inside, class_="scroll", role="region", aria_label=title, tabindex="0")


def cell(one: values.Cell) -> Markup:
    """Return one field."""
    match one:
        case None:
            return tag("span", numbers.NOTHING, class_="muted")
        case values.Number():
            small = [tag("small", text) for text in (one.interval, one.note) if text]
            mark = tag("span", one.mark, class_=f"mark {one.verdict}") if one.mark else Markup("")
            return Markup(" ").join(part for part in (tag("span", one.text, class_="nowrap"), *small, mark) if part)
        case values.Mark():
            return tag("span", word_of(one.kind), class_=f"pill {_slug(one.kind)}")
        case values.Label():
            arrow, words = ARROWS.get(one.better, ("", ""))
            seen = tag("span", f" {arrow}", class_="arrow", title=words, aria_hidden="true") if arrow else ""
            unseen = tag("span", f" ({words})", class_="unseen") if arrow else ""
            return _join([one.text, seen, unseen, tag("small", one.note) if one.note else ""])
        case _:
            return escape(one)


def _matrix(one: values.Matrix) -> Markup:
    head = [
        tag("th", str(place + 1), scope="col", title=model, aria_label=model) for place, model in enumerate(one.models)
    ]
    body = []
    for row, model in enumerate(one.models):
        cells = [tag("th", tag("span", str(row + 1), class_="place"), model, scope="row", title=model)]
        for column, (rate, count) in enumerate(zip(one.rates_MM[row], one.counts_MM[row], strict=True)):
            if column == row:
                cells.append(tag("td", class_="self"))
            elif rate is None:
                cells.append(tag("td", numbers.NOTHING, class_="muted"))
            else:
                text = [numbers.percent(rate, 0), tag("small", numbers.count(count))]
                cells.append(tag("td", *text, class_=_shade(rate), title=f"{model} against {one.models[column]}"))
        body.append(tag("tr", *cells))
    return _scrolled(one.title, [tag("td"), *head], body, "matrix")


def _shade(rate: float) -> str:
    """Return the class of a cell: stronger the further from one half, one colour for each side. No style: a strict page forbids it."""
    return f"{'wins' if rate >= 0.5 else 'loses'}-{round(abs(rate - 0.5) * 2 * _SHADES)}"


# ---- replies -------------------------------------------------------------------------------------------------------


def _replies(one: values.Replies, level: int) -> Markup:
    parts = [_filters(one.cards)] if one.filters else []
    for group, cards in groupby(one.cards, key=lambda card: card.group):
        heading = tag(f"h{min(level, 6)}", group) if group else ""
        parts.append(tag("div", heading, *map(_card, cards), class_="prompt-class"))
    return tag("div", *parts, data_replies="" if one.filters else None)


def _filters(cards: Sequence[values.Card]) -> Markup:
    labels = Counter(label for card in cards for label in _labels(card))
    choices = {
        "benchmark": ("Prompts", _distinct(card.group for card in cards)),
        "class": ("Class", _distinct(card.category for card in cards)),
        "language": ("Language", _distinct(card.language for card in cards)),
        "outcome": ("Check", _distinct(card.outcome for card in cards)),
        "label": ("Verdict", [label for label, _ in labels.most_common(MOST_LABELS)]),
    }
    fields = []
    for key, (text, known) in choices.items():
        if len(known) > 1:
            named = [(LANGUAGES.get(value, value) if key == "language" else value, value) for value in known]
            options = [tag("option", name, value=value) for name, value in named]
            fields.append(tag("label", f"{text} ", tag("select", tag("option", "all", value=""), *options, name=key)))
    box = Markup('<input type="search" name="search" placeholder="words in prompt or reply">')
    search, count = tag("label", "Search ", box, class_="search"), tag("output", aria_live="polite")
    classes = {"class_": "filters", "role": "search", "aria_label": "Filter the replies", "hidden": ""}
    return tag("form", *fields, search, count, **classes)


def _labels(card: values.Card) -> tuple[str, ...]:
    return tuple(_distinct(answer.label for answer in card.answers))


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _card(one: values.Card) -> Markup:
    lang = language_tag(one.language)
    turns = []
    for place, turn in enumerate(one.turns):
        number = tag("span", str(place + 1), class_="turn") if len(one.turns) > 1 else ""
        turns.append(tag("p", number, *_cut(turn), lang=lang))
    names = (one.name, one.category, LANGUAGES.get(one.language, one.language))
    said = " \N{MIDDLE DOT} ".join(name for name in names if name)
    tags = [tag("span", said), cell(values.Mark(one.outcome)) if one.outcome else ""]
    header = tag("header", tag("div", *turns, class_="turns"), tag("div", *tags, class_="tags"))
    many = "answers many" if len(one.answers) > 3 else "answers"
    answers = tag("div", *(_answer(answer, lang) for answer in one.answers), class_=many)
    return tag(
        "article",
        header,
        answers if one.answers else "",
        tag("p", one.note, class_="check", lang=lang) if one.note else "",
        class_="prompt",
        data_benchmark=one.group,
        data_class=one.category,
        data_language=one.language,
        data_outcome=one.outcome,
        data_labels="\n".join(_labels(one)),
        aria_label=f"Prompt {one.name}",
    )


def _answer(one: values.Answer, lang: str | None) -> Markup:
    sign, classes = {True: ("\N{CHECK MARK} ", "right"), False: ("\N{BALLOT X} ", "wrong"), None: ("", None)}[one.good]
    label = tag("span", f"{sign}{one.label}", class_=classes) if one.label else ""
    parts = [tag("p", tag("span", one.name), label, class_="who")]
    for place, text in enumerate(one.texts):
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}") if one.cut else text  # half a character at the limit
        parts.append(tag("p", f"Turn {place + 1}", class_="turn") if len(one.texts) > 1 else Markup(""))
        empty = tag("p", "(empty reply)", class_="reply empty")
        parts.append(tag("p", *_cut(whole), class_="reply", lang=lang) if whole.strip() else empty)
    parts += [tag("p", note, class_="small") for note in one.notes]
    if one.detail:
        why = tag("p", one.detail, class_="why")
        parts.append(tag("details", tag("summary", "Why"), why) if len(one.detail) > LONG_DETAIL else why)
    return tag("div", *parts, class_="answer")


TEXT_CHARACTERS = 6_000
"""Of one reply or prompt; what is longer is cut, which the page says."""


def _cut(text: str) -> list[str | Markup]:
    if len(text) <= TEXT_CHARACTERS:
        return [text]
    return [
        text[:TEXT_CHARACTERS],
        tag("span", f"the first {TEXT_CHARACTERS:,} of {len(text):,} characters", class_="cut"),
    ]


def language_tag(language: str) -> str | None:
    """Return the language tag for the page; plain ``zh`` would leave the choice of Han glyphs to chance."""
    return "zh-Hans" if language == "zh" else language or None


def _slug(kind: str) -> str:
    return kind.replace(" ", "-")


def _join(parts: Iterable[str | Markup]) -> Markup:
    return Markup("").join(parts)
