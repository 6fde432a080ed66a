"""``posttrain compare A B FILE``: read scores or verdicts of two models -> pair by prompt -> difference, tests -> one sentence."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Lt

from posttrain.artifacts import plain
from posttrain.config import build
from posttrain.data.sources import Record
from posttrain.errors import ConfigError, DataError
from posttrain.judge.votes import cell, no_verdict, records
from posttrain.lab.options import Keys, configured, options_help, split_arguments
from posttrain.report import numbers
from posttrain.report.values import Block, Number, Section, Text, Unit, table_of
from posttrain.stats import intervals as stats
from posttrain.stats.intervals import Floats, IntervalSettings
from posttrain.stats.ratings import share_of
from posttrain.table import did_you_mean

ITEM_COLUMNS = ("prompt_id", "question_id", "item", "id")
"""Where a file says which prompt a row is about, unless the user does; the first that is there."""


# ---- options and result -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What is compared. A column that is null has its usual name."""

    a: str
    b: str
    file: str
    measure: tuple[str, ...] = ()
    """Columns with numbers or booleans; none = score. May be repeated."""
    item: str | None = None
    """Column of the prompt; null = the first of prompt_id, question_id, item and id."""
    cluster: str | None = None
    """Column whose equal values mark prompts that are not independent."""
    model: str | None = None
    """Column of the model; null = model."""
    model_a: str | None = None
    """Of judged pairs; null = model_a."""
    model_b: str | None = None
    """Of judged pairs; null = model_b."""
    winner: str | None = None
    """Of judged pairs; null = winner."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    """Of the intervals."""
    resamples: Annotated[int, Ge(1)] = 10_000
    """Bootstrap resamples and drawn permutations."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of what is drawn."""


_KEYS = (Keys(CompareSettings, ("",), without=("a", "b", "file")),)


def options() -> str:
    """Every option, for ``--help``."""
    return options_help(_KEYS)


def settings_of(words: Sequence[str]) -> CompareSettings:
    """What a command line says: two models, a file, and options. Raises ConfigError."""
    named, given = split_arguments(words)
    where = "posttrain compare"
    if len(named) != 3:
        raise ConfigError("two models and one file are needed", where=where, fix="posttrain compare A B FILE")
    value = dict(zip(("a", "b", "file"), named, strict=True))
    return configured(CompareSettings, partial(build, CompareSettings), where, value, _KEYS, given)


class McNemar(NamedTuple):
    """How often only one of the two was right, and the exact test of it."""

    only_a: int
    only_b: int
    p_value: float


@dataclass(frozen=True, slots=True)
class MeasureComparison:
    """Two models on one measure, paired by prompt. Differences are ``b - a``."""

    measure: str
    kind: Literal["scores", "booleans", "verdicts"]
    mean_a: float
    """Mean score, share of booleans that are true, or share of wins (ties one half)."""
    mean_b: float
    difference: stats.Interval
    p_value: float
    """Permutation test, two-sided."""
    p_exact: bool
    p_holm: float
    """Adjusted for the number of measures compared at once (Holm); the same as ``p_value`` with one."""
    mcnemar: McNemar | None
    """For booleans with one row a prompt and model, and without clusters."""
    minimum_detectable: float | None
    """True difference that this many prompts would show in 80 of 100 cases; None with a single prompt."""
    a_better: int
    ties: int
    b_better: int
    pairs: int
    """Prompts that both have a value for, or verdicts."""
    units: int
    """What is resampled and swapped as a whole: prompts, or groups of equal cluster."""
    missing: int
    """Prompts that one of the two has no value for, or rows without a verdict."""
    different: bool
    """Whether ``p_holm`` is below 1 - confidence."""
    sentence: str


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Values of both models, row by row, before anything is computed."""

    measure: str
    kind: Literal["scores", "booleans", "verdicts"]
    a_R: Floats
    b_R: Floats
    clusters_R: Sequence[Hashable]
    missing: int
    mcnemar: bool


def compare(settings: CompareSettings) -> tuple[MeasureComparison, ...]:
    """Compare two models on every measure of a file.

    Two kinds of file: one row for each model and prompt with scores or booleans, or one row for each judged pair with a
    winner (it has the winner's column). Several values of one model on one prompt are averaged first; several verdicts on
    one prompt stay rows, but the prompt is drawn and swapped as a whole. ``cluster`` joins prompts that are not independent.

    Raises:
        ConfigError: options that don't go together, or a model compared with itself.
        DataError: the file can't be used, or the two have nothing in common.

    """
    if settings.a == settings.b:
        raise ConfigError(f"{settings.a!r} is compared with itself", fix="name two models")
    rows = list(records(settings.file))
    if not rows:
        raise DataError("no rows", where=settings.file, fix="give a file of scores or judged pairs")
    winner = settings.winner or "winner"
    judged = winner in rows[0][1].value
    _refuse_unused(settings, judged=judged)
    if judged:
        found = [_verdict_pairs(settings, rows, winner)]
    else:
        found = [_score_pairs(settings, rows, measure) for measure in settings.measure or ("score",)]
    drawn = IntervalSettings(settings.confidence, settings.resamples, settings.seed)
    tested = [stats.compare(one.a_R, one.b_R, one.clusters_R, test="permutation", settings=drawn) for one in found]
    adjusted = stats.holm([one.p_value for one in tested if one.p_value is not None])
    return tuple(map(partial(_compared, settings, len(found)), found, tested, adjusted))


def _refuse_unused(settings: CompareSettings, *, judged: bool) -> None:
    if judged and settings.item and settings.cluster:
        raise ConfigError("verdicts are joined by --cluster already", where="--item", fix="name one of the two")
    if judged:
        unused = {"--measure": settings.measure, "--model": settings.model}
    else:
        unused = {"--model-a": settings.model_a, "--model-b": settings.model_b, "--winner": settings.winner}
    for option, given in unused.items():
        if given:
            what = "judged pairs (it has a winner)" if judged else "scores (it has no winner)"
            raise ConfigError(f"{settings.file} holds {what}: it has no use for this", where=option, fix="leave it out")


# ---- read -------------------------------------------------------------------------------------------------


def _verdict_pairs(settings: CompareSettings, rows: Sequence[tuple[str, Record]], winner: str) -> _Pairs:
    """Verdicts between the two models, whichever of them stands first."""
    columns = (settings.model_a or "model_a", settings.model_b or "model_b")
    group = settings.cluster or settings.item or _usual_item(rows[0][1])
    shares_b: list[float] = []
    clusters: list[Hashable] = []
    known: set[str] = set()
    missing = 0
    for where, record in rows:
        names = [str(cell(record, column, where)) for column in columns]
        known.update(names)
        if {*names} != {settings.a, settings.b}:
            continue
        verdict = cell(record, winner, where)
        if no_verdict(verdict):
            missing += 1
            continue
        share = share_of(verdict, where)
        shares_b.append(share if names[0] == settings.b else 1 - share)
        clusters.append(len(clusters) if group is None else str(cell(record, group, where)))
    _models_known(settings, known)
    if not shares_b:
        raise DataError(
            f"no verdict between {settings.a} and {settings.b}", where=settings.file, fix="judge them on some prompts"
        )
    b_R = np.array(shares_b)
    return _Pairs(winner, "verdicts", 1 - b_R, b_R, clusters, missing, mcnemar=False)


def _score_pairs(settings: CompareSettings, rows: Sequence[tuple[str, Record]], measure: str) -> _Pairs:
    """One value for each model and prompt, of the prompts that both have."""
    model, item = settings.model or "model", settings.item or _usual_item(rows[0][1])
    if item is None:
        raise DataError(
            f"no column says which prompt a row is about (looked for {', '.join(ITEM_COLUMNS)})",
            where=rows[0][0],
            fix="name it with --item",
        )
    values: dict[str, dict[str, list[float]]] = {settings.a: {}, settings.b: {}}
    clusters: dict[str, str] = {}
    known: set[str] = set()
    prompts: set[str] = set()
    boolean = True
    for where, record in rows:
        name = str(cell(record, model, where))
        known.add(name)
        if name not in values:
            continue
        key = str(cell(record, item, where))
        prompts.add(key)
        group = key if settings.cluster is None else str(cell(record, settings.cluster, where))
        if clusters.setdefault(key, group) != group:
            raise DataError(
                f"prompt {key!r} is in {settings.cluster} {clusters[key]!r} and {group!r}",
                where=where,
                fix="a prompt belongs to one cluster",
            )
        value = _value(record, measure, where)
        if value is not None:
            boolean = boolean and isinstance(value, bool)
            values[name].setdefault(key, []).append(float(value))
    _models_known(settings, known)
    of_a, of_b = values[settings.a], values[settings.b]
    paired = [key for key in of_a if key in of_b]
    if not paired:
        raise DataError(
            f"no prompt has {measure} of both {settings.a} and {settings.b}",
            where=settings.file,
            fix="score both on the same prompts",
        )
    single = all(len(found[key]) == 1 for found in (of_a, of_b) for key in paired)
    return _Pairs(
        measure,
        "booleans" if boolean else "scores",
        np.array([np.mean(of_a[key]) for key in paired]),
        np.array([np.mean(of_b[key]) for key in paired]),
        [clusters[key] for key in paired],
        len(prompts) - len(paired),
        mcnemar=boolean and single and settings.cluster is None,
    )


def _usual_item(record: Record) -> str | None:
    return next((name for name in ITEM_COLUMNS if name in record.value), None)


def _value(record: Record, measure: str, where: str) -> bool | float | None:
    """A score or boolean; None where there is none. CSV writes them as words."""
    value = cell(record, measure, where)
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if value is None or word in ("", "null", "none", "nan"):
        return None
    if word in ("true", "false"):
        return word == "true"
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{measure} is {value!r}", where=where, fix="give a number, true or false, or null where there is none"
        )
    return number


def _models_known(settings: CompareSettings, known: set[str]) -> None:
    for name in (settings.a, settings.b):
        if name not in known:
            models = sorted(known)
            raise DataError(
                f"no model {name!r}{did_you_mean(name, models)}",
                where=settings.file,
                fix=f"the file has {', '.join(models[:8])}{' ...' if len(models) > 8 else ''}",
            )


# ---- compute ----------------------------------------------------------------------------------------------


def _compared(
    settings: CompareSettings, measures: int, pairs: _Pairs, found: stats.PairedDifference, p_holm: float
) -> MeasureComparison:
    """One of so many measures, with its p-value among all of them, whether that shows a difference, and the sentence."""
    only = McNemar(found.lower, found.higher, stats.mcnemar(found.lower, found.higher)) if pairs.mcnemar else None
    assert found.p_value is not None, "a test was asked for"
    one = MeasureComparison(
        measure=pairs.measure,
        kind=pairs.kind,
        mean_a=float(pairs.a_R.mean()),
        mean_b=float(pairs.b_R.mean()),
        difference=found.interval,
        p_value=found.p_value,
        p_exact=found.exact,
        p_holm=p_holm,
        mcnemar=only,
        minimum_detectable=found.detectable,
        a_better=found.lower,
        ties=found.rows - found.lower - found.higher,
        b_better=found.higher,
        pairs=found.rows,
        units=found.clusters,
        missing=pairs.missing,
        different=p_holm < 1 - settings.confidence,
        sentence="",
    )
    return replace(one, sentence=sentence(settings.a, settings.b, one, measures))


def sentence(a: str, b: str, one: MeasureComparison, measures: int = 1) -> str:
    """The result in plain words."""
    p = f"{numbers.p_value(one.p_holm)}{f' after Holm for {measures} measures' if measures > 1 else ''}"
    interval = f"{numbers.confidence(one.difference.confidence)} interval {_span(one)}"
    what = {"scores": f"mean {one.measure}", "booleans": f"share of {one.measure}", "verdicts": "share of wins"}[
        one.kind
    ]
    basis = f"{one.pairs:,} {'verdicts' if one.kind == 'verdicts' else 'prompts'}"
    if one.units != one.pairs:
        basis += f" in {one.units:,} groups"
    seen = f"{_amount(one, one.difference.estimate)} ({interval}, {p}, {basis})"
    if one.different:
        better, worse = (b, a) if one.difference.estimate > 0 else (a, b)
        return f"{better} has the higher {what} than {worse}: the difference {b} \N{MINUS SIGN} {a} is {seen}."
    text = f"No difference shown in {what} between {a} and {b}: {b} \N{MINUS SIGN} {a} is {seen}."
    if one.minimum_detectable:
        text += (
            f" A true difference would have to be about {_amount(one, one.minimum_detectable, sign=False)}"
            " to be found in 80 of 100 such comparisons."
        )
    return text


def _amount(one: MeasureComparison, value: float, *, sign: bool = True) -> str:
    """Scores as they are, shares in percentage points."""
    text = numbers.signed if sign else numbers.fixed
    return text(value) if one.kind == "scores" else f"{text(100 * value, 1)} points"


def _span(one: MeasureComparison) -> str:
    low, high = one.difference.low, one.difference.high
    unit, digits = ("number", 3) if one.kind == "scores" else ("share", 1)
    return numbers.signed_interval_in_unit(low, high, unit, digits)


def compare_json(settings: CompareSettings, found: Sequence[MeasureComparison]) -> dict[str, Any]:
    """The result as JSON."""
    return {
        "a": settings.a,
        "b": settings.b,
        "file": settings.file,
        "difference": "b - a",
        "measures": [plain(one) for one in found],
    }


def compare_section(settings: CompareSettings, found: Sequence[MeasureComparison]) -> Section:
    """The result for the terminal: a table, and a sentence for each measure."""
    unit: dict[str, Unit] = {"scores": "number", "booleans": "share", "verdicts": "share"}
    table = table_of(
        "",
        found,
        ("Measure", lambda one: one.measure),
        ("Pairs", lambda one: Number(one.pairs, "count")),
        ("A", lambda one: Number(one.mean_a, unit[one.kind])),
        ("B", lambda one: Number(one.mean_b, unit[one.kind])),
        (
            "B \N{MINUS SIGN} A",
            lambda one: Number(one.difference.estimate, unit[one.kind], *one.difference[1:3], signed=True),
        ),
        ("Test", lambda one: Number(one.p_value, "p")),
        ("Holm", lambda one: Number(one.p_holm, "p") if len(found) > 1 else None),
        ("B wins/ties/A wins", lambda one: f"{one.b_better:,}/{one.ties:,}/{one.a_better:,}"),
    )
    blocks: list[Block] = [table.known()]
    for one in found:
        blocks.append(Text(one.sentence))
        if one.mcnemar:
            blocks.append(
                Text(
                    f"Only {settings.a} right: {one.mcnemar.only_a:,}; only {settings.b} right: {one.mcnemar.only_b:,}; "
                    f"McNemar {numbers.p_value(one.mcnemar.p_value)}."
                )
            )
        if one.missing:
            left = "rows without a verdict" if one.kind == "verdicts" else "prompts without a value of both"
            blocks.append(Text(f"{one.missing:,} {left} are in none of these numbers."))
    return Section(f"A = {settings.a}, B = {settings.b}, paired by prompt", "compared", tuple(blocks))
