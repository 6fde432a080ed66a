"""Write the report of a run: one self-contained HTML page, the same as Markdown, the figures, and summary.json.

The page makes no request at all: styles, script and drawings are inside, and its content security policy forbids the
rest. Replies and rows are foreign text; every value is escaped (autoescape in the page, fences in the Markdown).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from posttrain.artifacts import LedgerStep, RunDir, write_json, write_text
from posttrain.report import (
    benchmark_replies,
    benchmark_tables,
    benchmark_wording,
    numbers,
    preference_tables,
    preference_wording,
    wording,
)
from posttrain.report.facts import EvalFacts, RunFacts, read_run
from posttrain.report.feedback_tables import feedback_differences, feedback_table
from posttrain.report.figure import file_name
from posttrain.report.figures import Figures, draw
from posttrain.report.overview import overview
from posttrain.report.preference_comparison import PreferenceStages, preference_stages
from posttrain.report.records import Rate
from posttrain.report.summary import summary
from posttrain.report.win_matrix import cell_style
from posttrain.report.words import VERDICT_TEXT

REJECT_LIMIT = 50
"""Dropped rows shown in the page for each stage; ledger.json has all of them."""

CLASSES = {"knowledge": "Knowledge questions", "rewriting": "Instruction rewriting", "reasoning": "Chain of thought"}
LANGUAGES = {"en": "English", "zh": "Chinese"}


def write_report(run: RunDir, title: str | None = None) -> Path:
    """Write report/index.html, report/report.md, report/figures/*.svg and summary.json; return the path of the page.

    Works on unfinished runs: what is missing is named at the top. ``title`` replaces the recipe's name as the heading.
    Raises RunError where there is no run, no stage has started, or the folder can't be written. Equal artefacts give
    equal bytes.
    """
    facts = read_run(run, title)
    stages = preference_stages(facts)
    figures = draw(facts, stages)
    folder = run.path / "report"
    shutil.rmtree(folder / "figures", ignore_errors=True)
    figure_css = package_text("figure.css")
    for figure in figures.all():
        write_text(folder / "figures" / f"{figure.name}.svg", figure.standalone(figure_css))
    write_text(folder / "report.md", render_markdown(facts, figures, stages))
    write_text(folder / "index.html", render_page(facts, figures, stages))
    write_json(run.path / "summary.json", summary(facts, stages))
    return folder / "index.html"


def render_page(facts: RunFacts, figures: Figures, stages: PreferenceStages | None) -> str:
    """Return the HTML page."""
    script = package_text("page.js")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment(autoescape=True)
        .get_template("page.html.jinja")
        .render(
            **_context(facts, figures, stages),
            figure_css=Markup(package_text("figure.css")),
            page_css=Markup(package_text("page.css")),
            script=Markup(script),
            script_hash=f"sha256-{script_hash}",
        )
    )


def render_markdown(facts: RunFacts, figures: Figures, stages: PreferenceStages | None) -> str:
    """Return the report as Markdown, with the figures as links to figures/*.svg."""
    text = environment(autoescape=False).get_template("report.md.jinja").render(**_context(facts, figures, stages))
    return re.sub(r"\n{3,}", "\n\n", text)


def _context(facts: RunFacts, figures: Figures, stages: PreferenceStages | None) -> dict[str, Any]:
    models = overview(facts)
    benchmarks = [benchmark for evaluation in facts.evaluations for benchmark in evaluation.benchmarks]
    room = benchmark_replies.PAGE_BYTES // max(1, sum(bool(evaluation.benchmarks) for evaluation in facts.evaluations))
    return {
        "facts": facts,
        "figures": figures,
        "stages": stages,
        "comparison_note": preference_wording.comparison_note(stages) if stages else "",
        "overview": models,
        "overview_sentence": benchmark_wording.overview_sentence(models, facts) if models else "",
        "judge_warnings": [
            *benchmark_wording.weak_judges(facts).values(),
            *benchmark_wording.judge_warnings(benchmarks),
        ],
        "judges": benchmark_tables.judges_table(benchmarks),
        "fixed": benchmark_replies.FIXED,
        "paragraph": wording.paragraph(facts),
        "findings": wording.findings(facts),
        "tiles": wording.tiles(facts),
        "verdict_text": VERDICT_TEXT,
        "loss_sentence": wording.loss_sentence,
        "interval": numbers.interval,
        "points_interval": numbers.points_interval,
        "percent_interval": numbers.percent_interval,
        "rows_shown": any(stage.ledger and stage.ledger.steps for stage in facts.stages),
        "reject_limit": REJECT_LIMIT,
        "classes": CLASSES,
        "languages": LANGUAGES,
        "shelves": {e.stage.name: benchmark_replies.shelves(e, room) for e in facts.evaluations},
    }


def package_text(name: str) -> str:
    """Return a style sheet or script of this package."""
    return (resources.files("posttrain.report") / name).read_text(encoding="utf-8")


@cache
def environment(*, autoescape: bool) -> Environment:
    """Return the templates of this package, with the formats of numbers as filters."""
    environment = Environment(
        loader=PackageLoader("posttrain.report", "."),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        name: getattr(numbers, name)
        for name in (
            "fixed",
            "signed",
            "count",
            "percent",
            "signed_percent",
            "points",
            "in_unit",
            "interval_in_unit",
            "p_value",
            "duration",
            "memory",
            "moment",
            "confidence",
        )
    }
    environment.filters |= {
        "about": benchmark_wording.about,
        "accuracy_rows": accuracy_rows,
        "accuracy_sentence": wording.accuracy_sentence,
        "bracketed": bracketed,
        "cell": cell,
        "cell_style": cell_style,
        "check_words": check_words,
        "cut_note": cut_note,
        "fenced": fenced,
        "filters": benchmark_replies.filters,
        "flattened": flattened,
        "html_language": html_language,
        "json_text": json_text,
        "lang": lang,
        "markdown_cards": benchmark_replies.markdown_cards,
        "method": wording.method,
        "explanation": preference_wording.explanation,
        "reference_text": preference_wording.reference_text,
        "remarks": preference_wording.remarks,
        "units": preference_wording.units,
        "perplexity": perplexity,
        "reasons": reasons,
        "selection_notes": wording.selection_notes,
        "sentence_start": lambda text: text[:1].upper() + text[1:],
        "slug": file_name,
    }
    environment.filters |= {"feedback_table": feedback_table, "feedback_differences": feedback_differences}
    environment.filters |= {
        name: getattr(preference_tables, name)
        for name in ("models_table", "differences_table", "course_table", "comparison_table", "length_rows")
    }
    environment.filters |= {
        name: getattr(benchmark_tables, name)
        for name in (
            "account_table",
            "bias_table",
            "category_tables",
            "contest_rows",
            "judges_table",
            "length_controlled_table",
            "measure_differences",
            "mitigations_table",
            "plan_text",
            "ratings_table",
            "results_table",
        )
    }
    return environment


# ---- what the templates need beyond numbers and sentences ----------------------------------------------------------


def accuracy_rows(evaluation: EvalFacts) -> list[tuple[str, list[tuple[str, Rate]]]]:
    """Return (name of the prompts, [(model, rate)]) for all prompts and then for each class."""
    models = evaluation.accuracy
    names = dict.fromkeys(name for model in models.values() for name in model.by_class)
    rows = [("all", [(name, model.all) for name, model in models.items()])]
    return rows + [(name, [(m, a.by_class[name]) for m, a in models.items() if name in a.by_class]) for name in names]


def reasons(step: LedgerStep) -> str:
    """Return why rows were dropped, shortened or changed at a step: ``exact duplicate 14; held out 99``."""
    parts = [f"{reason} {number:,}" for reason, number in [*step.dropped.items(), *step.notes.items()]]
    return "; ".join([*parts, *([f"truncated {step.truncated:,}"] if step.truncated else [])])


def flattened(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, text) for every leaf of nested mappings and lists."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flattened(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, inner in enumerate(value):
            yield from flattened(inner, f"{path}[{index}]")
    elif path:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def perplexity(loss: float) -> float:
    """Return e to the power of a loss; infinite beyond the range of a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def html_language(language: str) -> str:
    """Return the language tag for the page; plain ``zh`` would leave the choice of Han glyphs to chance."""
    return "zh-Hans" if language == "zh" else language


def lang(language: str) -> Markup:
    """Return the attribute that names a language; nothing where it is not known."""
    return Markup(' lang="{}"').format(html_language(language)) if language else Markup("")


def cut_note(length: int, text: str) -> Markup:
    """Return how much of a text is shown, where that is not all of it."""
    if length == len(text):
        return Markup("")
    return Markup('<span class="cut">the first {} of {} characters</span>').format(f"{len(text):,}", f"{length:,}")


def check_words(kind: str, expected: Any) -> str:
    """Return what a check asks for: ``contains any: 7, seven``; parts of a combined check are joined by ``; ``."""
    if isinstance(expected, list) and expected and all(isinstance(part, Mapping) for part in expected):
        return "; ".join(check_words(str(part.get("kind", kind)), part.get("expected")) for part in expected)
    values = expected if isinstance(expected, list) else [expected]
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    return f"{kind.replace('_', ' ')}: {', '.join(texts)}"


def json_text(value: Any) -> str:
    """Return indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def bracketed(text: str) -> Markup:
    """Return text that may break before its brackets, but not inside them."""
    first, bracket, rest = text.partition(" (")
    return Markup('{} <span class="nowrap">({}</span>').format(first, rest) if bracket else Markup("{}").format(text)


def cell(text: str) -> str:
    """Return text that is safe inside a line, a heading or a table cell of Markdown."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", " ".join(str(text).split())).replace("&", "&amp;")


def fenced(text: str, language: str = "") -> str:
    """Return a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
