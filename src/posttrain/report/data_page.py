"""Write the report of a data profile: profile.json as one self-contained page, and as a few lines in the terminal.

Like the report of a run, the page makes no request, runs no script, and escapes every text of a row.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from posttrain.artifacts import read_json, write_text
from posttrain.report import numbers
from posttrain.report.data_figures import (
    PARTS,
    clusters_figure,
    coverage_figure,
    language_word,
    languages_figure,
    lengths_figure,
    sources_figure,
    steps_figure,
    turns_figure,
)
from posttrain.report.data_records import PartFacts, PreferenceFacts, ProfileFacts
from posttrain.report.page import environment, package_text
from posttrain.report.reading import parse

FEATURE_WORDS = {
    "system": "With a system turn",
    "several_exchanges": "With several user turns",
    "tools": "With tools",
    "tool_calls": "With tool calls",
    "reasoning": "With reasoning",
    "last_turn_not_assistant": "Not ending with the assistant",
    "weighted_turns": "With weighted turns",
}
COLUMN_WORDS = {
    "benchmark": "Benchmark",
    "source": "Source",
    "prompts": "Prompts",
    "contaminated_prompts": "Prompts found",
    "matching_rows": "Rows that match",
    "removed_rows": "Rows removed",
    "share": "Share",
    "limit": "Limit",
    "contaminated": "Contaminated",
}
SHARES = ("share", "limit")
"""Columns of the contamination table that are shares."""
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_KANA = re.compile("[\u3041-\u30ff]")


def read_profile(folder: Path) -> ProfileFacts:
    """The facts of ``profile.json``. Raises RunError where it is missing, damaged or of another shape."""
    path = folder / "profile.json"
    return parse(ProfileFacts, read_json(path), path)


def write_data_page(folder: Path, title: str) -> Path:
    """Write ``profile.html`` beside ``profile.json``; equal facts give equal bytes."""
    path = folder / "profile.html"
    write_text(path, render_data_page(read_profile(folder), title))
    return path


def render_data_page(facts: ProfileFacts, title: str) -> str:
    """Return the HTML page."""
    limits = [over.limit for over in facts.lengths["whole"].over]
    page = environment(autoescape=True).get_template("data_page.html.jinja")
    return page.render(
        facts=facts,
        title=title,
        paragraph=paragraph(facts),
        tiles=tiles(facts),
        parts=PARTS,
        limits=limits,
        feature_words=FEATURE_WORDS,
        column_words=COLUMN_WORDS,
        funnel=steps_figure(facts.funnel),
        lengths=[lengths_figure(name, facts.lengths[name], None) for name in PARTS],
        coverage=coverage_figure(facts.lengths["whole"], facts.covering),
        turns=turns_figure(facts.turns),
        sources=sources_figure(facts),
        languages=languages_figure(facts),
        clusters=clusters_figure(facts.clusters) if facts.clusters else None,
        preference_sentence=preference_sentence(facts.preferences) if facts.preferences else None,
        first_shown=next((entry for entry in facts.removed if entry.examples and entry.examples[0].prompt), None),
        weighted=facts.rows_counted != facts.rows,
        language_words=language_words,
        text_language=text_language,
        table_cell=table_cell,
        figure_css=Markup(package_text("figure.css")),
        page_css=Markup(package_text("page.css")),
    )


# ---- words ---------------------------------------------------------------------------------------------------------


def paragraph(facts: ProfileFacts) -> str:
    """Return the set of rows in a few sentences."""
    whole = facts.lengths["whole"]
    known = [one for one in facts.languages if one.language not in ("undetermined", "code")][:2]
    languages = " and ".join(f"{numbers.percent(one.share, 0)} {language_word(one.language)}" for one in known)
    noun = "conversation" if facts.lengths["assistant"].total else "prompt"
    text = (
        f"{_plural(facts.rows, noun)} from {_plural(len(facts.sources), 'source')}"
        f"{f', {languages}' if languages else ''}; {numbers.compact(whole.total)} tokens. "
        f"Half of them have at most {whole.p50:,} tokens, the longest {whole.max:,}; a sequence length of "
        f"{facts.covering.rounded:,} covers {numbers.percent(facts.covering.rounded_share)}."
    )
    if facts.funnel:
        first = facts.funnel[0].rows_in
        kept = facts.funnel[-1].rows_out
        text += (
            f" {numbers.count(first)} rows came in, {numbers.count(facts.removed_rows)} were dropped on the way"
            f" and {numbers.count(kept)} were kept ({numbers.percent(kept / first if first else None)})."
        )
    if facts.rows != facts.distinct_ids:
        text += f" {numbers.count(facts.rows - facts.distinct_ids)} rows are exact copies of others."
    return text


def preference_sentence(facts: PreferenceFacts) -> str:
    """Return what the pairs or judged replies have in common, and what an objective could learn from it by mistake."""
    if facts.kind == "feedback":
        return (
            f"{numbers.count(facts.rows)} judged replies, {numbers.percent(facts.desirable)} of them desirable. "
            "KTO wants both kinds, or weights that make up for it."
        )
    return (
        f"{numbers.count(facts.rows)} pairs; the chosen reply is the longer one in {numbers.percent(facts.chosen_longer)} of them. "
        "Far from half, length alone tells the sides apart, and a model can learn just that."
    )


def tiles(facts: ProfileFacts) -> list[tuple[str, str, str]]:
    """Return (label, value, note) of the headline numbers."""
    whole = facts.lengths["whole"]
    row = [
        ("Rows", numbers.count(facts.rows), _plural(len(facts.sources), "source")),
        ("Tokens", numbers.compact(whole.total), f"{numbers.fixed(whole.mean, 0)} a conversation"),
        ("P50 / P95", f"{whole.p50:,} / {whole.p95:,}", f"tokens, longest {whole.max:,}"),
        (
            "Covers 95%",
            f"{facts.covering.length:,}",
            f"tokens; {facts.covering.rounded:,} covers {numbers.percent(facts.covering.rounded_share)}",
        ),
        (
            "Turns",
            numbers.fixed(facts.turns.mean, 1),
            f"on average, at most {facts.turns.max:,}",
        ),
    ]
    if facts.funnel and facts.funnel[0].rows_in:
        share = facts.removed_rows / facts.funnel[0].rows_in
        row.append(("Dropped", numbers.percent(share), f"{facts.removed_rows:,} of {facts.funnel[0].rows_in:,} rows"))
    return row


def language_words(part: PartFacts) -> str:
    """Return the main languages of a source or split: ``English 97.8%, Chinese 1.7%``."""
    return ", ".join(f"{language_word(one.language)} {numbers.percent(one.share)}" for one in part.languages)


def text_language(text: str) -> str | None:
    """Return the language tag that chooses the right Han glyphs; None for text without them."""
    return "ja" if _KANA.search(text) else "zh-Hans" if _HAN.search(text) else None


def table_cell(column: str, value: Any) -> str:
    """Return one value of the contamination table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return numbers.percent(value) if column in SHARES else numbers.count(value)
    return numbers.NOTHING if value is None else str(value)


def _plural(number: int, one: str) -> str:
    return f"{numbers.count(number)} {one if number == 1 else one + 's'}"


# ---- the terminal --------------------------------------------------------------------------------------------------


def terminal_profile(facts: ProfileFacts) -> RenderableType:
    """Return the tables of a profile, for ``rich.print``."""
    parts: list[RenderableType] = [Text(paragraph(facts))]
    if facts.funnel:
        parts.append(_funnel_table(facts))
    parts.append(_length_table(facts))
    parts.append(_part_table("Sources", facts.sources, weighted=facts.rows_counted != facts.rows))
    if facts.splits:
        parts.append(_part_table("Splits", facts.splits, weighted=facts.rows_counted != facts.rows))
    if facts.contamination:
        parts.append(_contamination_table(facts))
    if facts.preferences:
        parts.append(Text(preference_sentence(facts.preferences)))
    found = ", ".join(f"{language_word(o.language)} {numbers.percent(o.share)}" for o in facts.languages[:8])
    parts.append(Text(f"Languages ({facts.language_rule}): {found}"))
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 or name in ("why", "languages") else "right", style=None)
    return table


def _funnel_table(facts: ProfileFacts) -> Table:
    table = _table("Rows, step by step", "step", "before", "after", "kept", "of all", "why")
    for line in facts.funnel:
        why = ", ".join(f"{reason} {count:,}" for reason, count in line.dropped.items())
        before = numbers.count(line.rows_in + line.added)
        shares = (numbers.percent(line.kept_share), numbers.percent(line.share_of_start))
        table.add_row(line.step, before, numbers.count(line.rows_out), *shares, Text(why))
    return table


def _length_table(facts: ProfileFacts) -> Table:
    limits = [over.limit for over in facts.lengths["whole"].over]
    names = ("P50", "P90", "P95", "max", *(f"> {limit:,}" for limit in limits))
    table = _table(f"Tokens ({facts.tokenizer.name})", "", *names)
    for name, words in PARTS.items():
        one = facts.lengths[name]
        over = (numbers.percent(entry.share) for entry in one.over)
        table.add_row(words, *(f"{value:,}" for value in (one.p50, one.p90, one.p95, one.max)), *over)
    return table


def _part_table(title: str, found: tuple[PartFacts, ...], *, weighted: bool) -> Table:
    counted = ("counted",) if weighted else ()
    table = _table(title, "", "rows", "share", *counted, "tokens", "share", "turns", "P95", "languages")
    for part in found:
        table.add_row(
            Text(part.name),
            numbers.count(part.rows),
            numbers.percent(part.share),
            *((numbers.count(part.rows_counted),) if weighted else ()),
            numbers.count(part.tokens),
            numbers.percent(part.token_share),
            numbers.fixed(part.turns, 1),
            numbers.count(part.p95),
            Text(language_words(part)),
        )
    return table


def _contamination_table(facts: ProfileFacts) -> Table:
    assert facts.contamination is not None
    columns = facts.contamination.columns
    table = _table("Contamination", *(COLUMN_WORDS.get(name, name).lower() for name in columns))
    for row in facts.contamination.rows:
        table.add_row(*(Text(table_cell(name, row.get(name))) for name in columns))
    return table
