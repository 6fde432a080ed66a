"""The filter step: every chosen filter measures every row, and a row with any measurement outside its limit is dropped."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl

from posttrain.data.engine import map_rows
from posttrain.data.filters import FILTERS, Conversation, Filter, Measurement
from posttrain.data.filters.form import Length, Structure
from posttrain.data.filters.garbled import Garbled
from posttrain.data.filters.harmful import Harmful, score_of
from posttrain.data.filters.language import LanguageFilter, check_languages
from posttrain.data.filters.private import Pii, Secrets
from posttrain.data.filters.repetition import Repetition
from posttrain.data.filters.replies import Refusal, Template
from posttrain.data.language import identifier_words
from posttrain.data.rows import conversations, rejected_sides
from posttrain.data.steps import REJECTS, VERDICTS, Decisions, StepRun, count_rows, score_names
from posttrain.errors import ConfigError, DataError
from posttrain.table import did_you_mean

Chosen = tuple[tuple[str, Filter], ...]
"""Names of filters and their settings, in the order of the table."""

REJECTED = "rejected."
"""Before the check of a measurement on the rejected side of a pair; its reasons begin with ``rejected_``."""
_COLUMNS = ("id", "source", "messages", "prompt_turns", "rejected", "desirable", "tools", "meta", "scores")
_PRIVATE = ("pii", "secrets")
"""Filters whose finds must not show: examples of what they drop carry no text."""
_EXAMPLES = 3
_SHOWN = 160
_QUANTILES = {"min": 0.0, "p05": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class FilterStep:
    """Drop rows by rules. Each filter has defaults that hold for English, Chinese and code; ``null`` turns one off."""

    kind: Literal["filter"]
    structure: Structure | None = field(default_factory=Structure)
    """Roles in turn, no empty turns, closed code fences, the assistant has the last word."""
    length: Length | None = field(default_factory=Length)
    """Tokens of the user and of the assistant."""
    garbled: Garbled | None = field(default_factory=Garbled)
    """Mojibake, replacement and control characters, mostly symbols."""
    language: LanguageFilter | None = field(default_factory=LanguageFilter)
    """The language of the prose; drops rows where ``keep`` names languages."""
    repetition: Repetition | None = field(default_factory=Repetition)
    """Runs of punctuation, repeated lines and n-grams."""
    template: Template | None = field(default_factory=Template)
    """Nothing but boilerplate; too few sentences where asked for."""
    refusal: Refusal | None = field(default_factory=Refusal)
    """Refusals and "As an AI language model"; turn it off for safety data."""
    harmful: Harmful | None = field(default_factory=Harmful)
    """A small lexicon, and a score of a classifier or judge where given."""
    pii: Pii | None = None
    """Personal data; off unless given (``pii: {}``)."""
    secrets: Secrets | None = None
    """Keys, tokens and passwords; off unless given (``secrets: {}``)."""

    def decide(self, rows_file: Path, seed: int, run: StepRun) -> Decisions:
        """Measure every row. The seed plays no part.

        Raises ConfigError where no filter is on or a setting can't be used, DataError where no row carries the score asked for.
        """
        return measure(self, rows_file, run, rejected=True)

    def chosen(self) -> Chosen:
        """The filters that are on, with their settings."""
        return tuple((name, config) for name in FILTERS if (config := getattr(self, name)) is not None)


def measure(step: FilterStep, rows_file: Path, run: StepRun, *, rejected: bool) -> Decisions:
    """What :meth:`FilterStep.decide` returns. ``rejected``: whether the rejected sides of pairs are measured as well."""
    chosen = step.chosen()
    if not chosen:
        raise ConfigError("every filter is off", where="filter", fix=f"turn one on: {', '.join(FILTERS)}")
    if step.language is not None:
        check_languages(step.language)
    total = count_rows(rows_file)
    work = partial(judge, chosen=chosen, rejected=rejected)
    found = _together(map_rows(work, rows_file, _COLUMNS, run, "filter"))
    if step.harmful is not None and step.harmful.score is not None and total and found.unscored == total:
        raise _no_score(step.harmful.score, rows_file)
    return _decisions(found, chosen)


@dataclass(frozen=True)
class Sides:
    """One row as filters see it."""

    id: str
    source: str
    whole: Conversation
    """The conversation; of preference rows the prompt with the chosen reply, or with the judged one."""
    wanted: Conversation
    """What is to be imitated of it: the same, or the prompt alone where the reply was found undesirable."""
    rejected: Conversation | None
    """Of a pair the prompt with the rejected reply."""


@dataclass
class Judged:
    """What the filters found in a block of rows; rows count from its start."""

    sources: pl.Series
    verdicts: pl.DataFrame
    rejects: pl.DataFrame
    examples: list[dict[str, str]]
    """Dropped rows as the report shows them: for each reason the few with the smallest ids, whatever the order of the rows."""
    failed: Counter[str] = field(default_factory=Counter)
    """Filter -> rows outside its limits."""
    alone: Counter[str] = field(default_factory=Counter)
    """Filter -> rows that no other filter would drop."""
    errors: list[tuple[str, str, str]] = field(default_factory=list)
    """(filter, row id, what went wrong): rows a filter could not measure. They stay, as far as that filter goes."""
    unscored: int = 0
    """Rows without the harm score that is asked for."""


def judge(block: pl.DataFrame, chosen: Chosen, rejected: bool = True) -> Judged:
    """Measure a block of rows (the columns of preferences among them) with the chosen filters. Pure.

    ``rejected``: whether the rejected sides of pairs are measured as well.
    """
    judged = Judged(block["source"], pl.DataFrame(), pl.DataFrame(), [])
    places: dict[tuple[str, str], int] = {}  # few checks and limits occur, each pair many times
    measured: list[tuple[int, int, float, bool]] = []
    rejects: list[tuple[int, str, str, None]] = []
    score = next((config.score for _, config in chosen if isinstance(config, Harmful)), None)
    for number, row in enumerate(_rows(block, rejected)):
        failures: list[tuple[str, Measurement]] = []
        for name, config in chosen:
            for one in _measured(name, config, row, judged.errors):
                check = places.setdefault((one.check, one.limit), len(places))
                measured.append((number, check, one.value, one.passed))
                if not one.passed:
                    failures.append((name, one))
        judged.unscored += score is not None and score_of(row.whole, score) is None
        if failures:
            reason, detail = _drop(judged, row, _in_order(failures))
            rejects.append((number, reason, detail, None))
    judged.verdicts = _verdicts(measured, list(places))
    judged.rejects = pl.DataFrame(rejects, schema=REJECTS, orient="row")
    judged.examples = _fewest(judged.examples)
    return judged


def _verdicts(measured: Sequence[tuple[int, int, float, bool]], checks: Sequence[tuple[str, str]]) -> pl.DataFrame:
    """[VERDICTS] of (row, place of its check and limit, value, passed)."""
    rows, places, values, passed = zip(*measured, strict=True) if measured else ((), (), (), ())
    names = pl.DataFrame(checks, schema={name: VERDICTS[name] for name in ("check", "limit")}, orient="row")[
        list(places)
    ]
    columns = {"row": rows, "check": names["check"], "value": values, "limit": names["limit"], "passed": passed}
    return pl.DataFrame(columns, schema=VERDICTS)


def _rows(block: pl.DataFrame, rejected: bool) -> Iterator[Sides]:
    names = ("id", "source", "tools", "meta", "scores", "prompt_turns", "desirable")
    columns = (block[name].to_list() for name in names)
    others = rejected_sides(block) if rejected and not block["rejected"].null_count() else iter(())
    for messages, row_id, source, tools, meta, scores, turns, desirable in zip(
        conversations(block), *columns, strict=True
    ):
        values: dict[str, float] = {}
        for score in scores:
            if score["value"] is not None:
                values[score["name"]] = max(score["value"], values.get(score["name"], score["value"]))
        offered, waits = tools != "[]", turns == len(messages)
        whole = Conversation(messages, {} if meta == "{}" else json.loads(meta), offered, values, waits)
        wanted = Conversation(messages[:turns], tools=offered) if desirable is False else whole
        reply = next(others, None)
        other = None if reply is None else Conversation(messages[:turns] + reply, tools=offered)
        yield Sides(row_id, source, whole, wanted, other)


def _in_order(failures: Sequence[tuple[str, Measurement]]) -> list[tuple[str, Measurement]]:
    """Those of the rejected side last, and without those that the prompt already has on the other side."""
    own = [(name, one) for name, one in failures if not one.check.startswith(REJECTED)]
    known = {(one.check, one.value, one.detail) for _, one in own}
    others = [(name, one) for name, one in failures if one.check.startswith(REJECTED)]
    return own + [(n, m) for n, m in others if (m.check.removeprefix(REJECTED), m.value, m.detail) not in known]


def _measured(name: str, config: Filter, row: Sides, errors: list[tuple[str, str, str]]) -> Sequence[Measurement]:
    """The measurements of one filter on one row, its rejected side last; none, and an entry in ``errors``, where it fails."""
    try:
        if config.replies == "wanted":
            return tuple(config.measure(row.wanted))
        own = tuple(config.measure(row.whole))
        if row.rejected is None:
            return own
        other = config.measure(row.rejected)
        return own + tuple(
            one._replace(check=REJECTED + one.check, reason=one.reason and f"rejected_{one.reason}") for one in other
        )
    except Exception as error:
        errors.append((name, row.id, f"{type(error).__name__}: {error}"[:_SHOWN]))
        return ()


def _drop(judged: Judged, row: Sides, failures: Sequence[tuple[str, Measurement]]) -> tuple[str, str]:
    """(reason, detail) of a row that goes, which is counted and remembered as an example."""
    names = list(dict.fromkeys(name for name, _ in failures))
    judged.failed.update(names)
    if len(names) == 1:
        judged.alone.update(names)
    first = failures[0][1]
    others = list(dict.fromkeys(one.reason for _, one in failures[1:] if one.reason != first.reason))
    detail = first.detail + (f"; also {', '.join(others)}" if others else "")
    private = not set(names).isdisjoint(_PRIVATE)
    side = row.rejected if row.rejected is not None and first.check.startswith(REJECTED) else row.whole
    example = {"reason": first.reason, "id": row.id, "source": row.source, "detail": detail}
    texts = {role: "" if private else _short(side, role) for role in ("user", "assistant")}
    judged.examples.append(example | texts)
    return first.reason, detail


def _short(row: Conversation, role: str) -> str:
    text = " ".join(" ".join(message.content for message in row.messages if message.role == role).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _fewest(examples: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """For each reason the examples with the smallest ids."""
    taken: Counter[str] = Counter()
    kept = []
    for example in sorted(examples, key=lambda one: (one["reason"], one["id"], one["source"], one["detail"])):
        taken[example["reason"]] += 1
        if taken[example["reason"]] <= _EXAMPLES:
            kept.append(example)
    return kept


def _together(blocks: Iterable[tuple[int, Judged]]) -> Judged:
    """What the blocks of a file add up to, each with the place of its first row."""
    parts = []
    for begin, part in blocks:
        place = pl.col("row") + pl.lit(begin, pl.UInt32)
        parts.append((part, part.verdicts.with_columns(place), part.rejects.with_columns(place)))
    return Judged(
        pl.concat([pl.Series("source", [], dtype=pl.String), *(part.sources for part, _, _ in parts)]),
        pl.concat([pl.DataFrame(schema=VERDICTS), *(verdicts for _, verdicts, _ in parts)], rechunk=False),
        pl.concat([pl.DataFrame(schema=REJECTS), *(rejects for _, _, rejects in parts)]),
        _fewest([example for part, _, _ in parts for example in part.examples]),
        sum((part.failed for part, _, _ in parts), Counter()),
        sum((part.alone for part, _, _ in parts), Counter()),
        [error for part, _, _ in parts for error in part.errors],
        sum(part.unscored for part, _, _ in parts),
    )


def _decisions(found: Judged, chosen: Chosen) -> Decisions:
    """The decisions on all rows of a file, with the facts about them."""
    sources = found.sources.to_frame().with_row_index("row")
    facts = {
        "rows": len(sources),
        "kept": len(sources) - len(found.rejects),
        "filters": {name: _filter_facts(found, name, config) for name, config in chosen},
        "checks": _check_facts(found.verdicts),
        "reasons": dict(found.rejects.group_by("reason").len().sort("reason").iter_rows()),
        "sources": _source_facts(sources, found.rejects),
        "languages": _language_facts(sources, found.verdicts),
        "examples": found.examples,
        "errors": [dict(zip(("filter", "id", "error"), one, strict=True)) for one in sorted(found.errors)[:20]],
    }
    notes = Counter(f"{name}_not_measured" for name, _, _ in found.errors)
    if found.unscored:
        notes["without_harm_score"] = found.unscored
    return Decisions(found.rejects, found.verdicts, facts=facts, notes=dict(sorted(notes.items())))


def _filter_facts(found: Judged, name: str, config: Any) -> dict[str, Any]:
    facts = {"settings": dataclasses.asdict(config), "failed": found.failed[name], "alone": found.alone[name]}
    if isinstance(config, LanguageFilter):
        facts["told_by"] = identifier_words(config.identifier)
    return facts


def _check_facts(verdicts: pl.DataFrame) -> dict[str, Any]:
    """Check -> limit, rows measured, rows outside it, quantiles of the value (that of the nearest row)."""
    quantiles = [pl.col("value").quantile(q, "nearest").alias(name) for name, q in _QUANTILES.items()]
    measures = {
        "limit": pl.col("limit").unique().cast(pl.String).sort().str.join(" or "),
        "rows": pl.len(),
        "failed": (~pl.col("passed")).sum(),
        "quantiles": pl.struct(quantiles),
    }
    # One check after the other: grouped, all of them are copied at once.
    return {
        check: verdicts.lazy().filter(pl.col("check") == check).select(**measures).collect().row(0, named=True)
        for check in sorted(verdicts["check"].unique())
    }


def _source_facts(sources: pl.DataFrame, rejects: pl.DataFrame) -> dict[str, Any]:
    """Source -> rows, kept, dropped by reason."""
    rows = dict(sources.group_by("source").len().sort("source").iter_rows())
    dropped: dict[str, dict[str, int]] = {source: {} for source in rows}
    counted = rejects.join(sources, on="row").group_by("source", "reason").len().sort("source", "reason")
    for source, reason, count in counted.iter_rows():
        dropped[source][reason] = count
    return {
        source: {"rows": count, "kept": count - sum(dropped[source].values()), "dropped": dropped[source]}
        for source, count in rows.items()
    }


def _language_facts(sources: pl.DataFrame, verdicts: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Source -> language -> rows, the most frequent first."""
    named = verdicts.lazy().filter(pl.col("check").cat.starts_with("language."))
    counted = (
        named.select("row", language=pl.col("check").cast(pl.String).str.strip_prefix("language."))
        .join(sources.lazy(), on="row")
        .group_by("source", "language")
        .len()
        .sort(["source", "len", "language"], descending=[False, True, False])
    )
    found: dict[str, dict[str, int]] = {}
    for source, language, count in counted.collect().iter_rows():
        found.setdefault(source, {})[language] = count
    return found


def _no_score(name: str, rows_file: Path) -> DataError:
    known = score_names(rows_file)
    found = f"scores found: {', '.join(sorted(known))}" if known else "the rows carry no scores"
    return DataError(
        f"no row carries a score {name!r}{did_you_mean(name, known)} ({found})",
        where="harmful.score",
        fix="give the name of a score the rows carry, of a number in their meta, or null",
    )
