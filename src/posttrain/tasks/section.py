"""What an evaluation says: how models differ on held-out rows, on prompts and on benchmarks, each difference with its verdict.

A sentence claims a difference only where the verdict is ``improved`` or ``worse``; anything else is ``no difference shown``, which is
not the same as ``no difference``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from posttrain.report import numbers
from posttrain.report.charts import Chart, Forest, Histogram, Lane, bins, color, counted, spaced
from posttrain.report.evidence import FEWEST_ROWS, bounded, bounds, evidence
from posttrain.report.facts import AccuracyComparison, EvalFacts, LossComparison
from posttrain.report.feedback import EvalFeedback
from posttrain.report.figure import file_name
from posttrain.report.preferences import EvalPreferences, Measure, PreferenceComparison
from posttrain.report.records import Estimate, Rate
from posttrain.report.values import (
    Beside,
    Block,
    Facts,
    Finding,
    Headline,
    Label,
    Line,
    Mark,
    Number,
    Records,
    Section,
    Table,
    Text,
    row,
)
from posttrain.report.verdicts import Verdict, gain_verdict
from posttrain.report.words import FEW_ROWS, join, plural
from posttrain.report.words import counted as how_many
from posttrain.tasks.benchmark_section import AREAS, benchmark_section, cost_lines
from posttrain.tasks.reply_cards import PAGE_BYTES, replies_section

ARROW = " \N{RIGHTWARDS ARROW} "
GROUPS = (*AREAS.values(), "Held-out rows", "Checked answers", "Length of replies", "Cost of the benchmarks")
"""Groups of lines of the table of all models in their order; other areas come after these."""
PREFERENCE_MEASURES: tuple[tuple[Measure, str], ...] = (
    ("reward_accuracy", "reward accuracy"),
    ("reward_margin", "reward margin, nats"),
    ("ranking_accuracy", "ranking accuracy"),
)
KINDS = {"improved": "s1", "worse": "s2"}


def evaluation_sections(evaluations: Sequence[tuple[EvalFacts, Sequence[str]]]) -> tuple[Section, ...]:
    """Return the sections of all eval stages, each with the notes on how its models were chosen.

    Of each headline the last evaluation that has it speaks on the first screen.
    """
    several = len(evaluations) > 1
    room = PAGE_BYTES // max(1, sum(bool(evaluation.benchmarks) for evaluation, _ in evaluations))
    found = [one for evaluation, notes in evaluations for one in _evaluation(evaluation, notes, room, several=several)]
    seen: set[str] = set()
    for place in reversed(range(len(found))):
        kept = tuple(one for one in found[place].headlines if one.label not in seen)
        seen |= {one.label for one in found[place].headlines}
        found[place] = replace(found[place], headlines=kept)
    lines = [line for section in found for line in section.lines]
    lines.sort(key=lambda line: GROUPS.index(line.group) if line.group in GROUPS else len(AREAS) - 0.5)
    return tuple(replace(one, lines=tuple(lines) if place == 0 else ()) for place, one in enumerate(found))


def _evaluation(evaluation: EvalFacts, notes: Sequence[str], room: int, *, several: bool) -> list[Section]:
    stage = evaluation.stage.name
    suffix = f": {stage}" if several else ""
    found = [benchmark_section(one, evaluation.models, several=several) for one in evaluation.benchmarks]
    if evaluation.benchmarks:
        lines = cost_lines(evaluation.benchmarks, evaluation.models, several=several)
        found[0] = replace(
            found[0], lines=(*found[0].lines, *lines), summary=f"{_benchmark_sentence(evaluation)}".strip()
        )
    if evaluation.likelihood:
        found.append(_likelihood(evaluation, notes, suffix))
    if evaluation.preferences:
        found.append(_preferences(stage, evaluation.preferences, notes, suffix))
    if evaluation.feedback:
        found.append(_feedback(stage, evaluation.feedback, suffix))
    if evaluation.accuracy:
        found.append(_accuracy(evaluation, suffix))
    if replies := replies_section(evaluation, suffix, file_name("replies", stage), room):
        record = {
            "stage": stage,
            "prompts": len(evaluation.prompts),
            "outcomes": dict(Counter(prompt.outcome for prompt in evaluation.prompts)),
            "cut_at_length_limit": {model: evaluation.cut_replies(model) for model in evaluation.models},
            "not_finite": {model: evaluation.failed_replies(model) for model in evaluation.models},
        }
        replies = replace(replies, blocks=(*replies.blocks, Records("replies", record)))
        found.append(replace(replies, findings=_reply_findings(evaluation), lines=_reply_lines(evaluation)))
    return found


# ---- likelihood ----------------------------------------------------------------------------------------------------


def _likelihood(evaluation: EvalFacts, notes: Sequence[str], suffix: str) -> Section:
    stage, models, comparisons = evaluation.stage.name, evaluation.likelihood, evaluation.loss_comparisons
    first = evaluation.models[0]
    by_model = Table(
        "Held-out loss and perplexity by model",
        ("Model", "Loss (nats a token)", "Perplexity", "Rows", "Tokens"),
        tuple(
            (
                f"{name} (baseline)" if name == first and len(models) > 1 else name,
                Number(one.loss, digits=3),
                Number(one.perplexity, digits=2),
                Number(one.rows, "count"),
                Number(one.tokens, "count"),
            )
            for name, one in models.items()
        ),
    )
    said = (
        "How well each model predicts replies it was not trained on. Perplexity is e to the power of the loss: a model with perplexity 6 is "
        "as unsure as if it chose between 6 equally likely tokens. Lower is better."
    )
    blocks: list[Block] = [Text(said), by_model]
    if comparisons:
        blocks = [Text(said), Beside((by_model, _loss_forest(stage, evaluation)))]
        blocks.append(
            Table(
                "Differences of held-out loss",
                ("Comparison", "Difference", "Perplexity", "Rows more likely", "Verdict"),
                tuple(
                    (
                        f"{c.pair.b} minus {c.pair.a}",
                        _loss_difference(evaluation, c),
                        Number(
                            c.perplexity_change,
                            "share",
                            note=f"{numbers.signed_percent(c.perplexity_change_low)} to {numbers.signed_percent(c.perplexity_change_high)}",
                        ),
                        f"{c.rows_better:,} of {len(c.row_differences):,}" if c.row_differences else None,
                        Mark(c.verdict),
                    )
                    for c in comparisons
                ),
            )
        )
        blocks += [chart for c in comparisons if (chart := _row_histogram(stage, c)) is not None]
        drawn = f", {comparisons[0].pair.resamples:,} resamples" if comparisons[0].pair.resamples else ""
        blocks.append(
            Text(
                f"Both models are scored on the same rows. The interval resamples these rows with replacement (paired bootstrap{drawn}). "
                "Where it includes zero no difference is shown. Held-out rows come from the same sources as the training rows, so this says "
                f"how well the model learned these sources, not how good it is elsewhere. {' '.join(notes)}".strip(),
                "aside",
            )
        )
    blocks.append(
        Records("likelihood", {"stage": stage, "models": models, "comparisons": [_loss_record(c) for c in comparisons]})
    )
    headline = evaluation.headline_loss
    verdicts = {c.pair.b: c.verdict for c in comparisons if c.pair.a == first}
    rows = how_many((one.rows for one in models.values()), "row")
    note = f"stage {stage}, {rows}"
    return Section(
        f"Held-out loss{suffix}",
        file_name("loss", stage),
        tuple(blocks),
        folded=True,
        gist=", ".join(f"{name} {numbers.fixed(one.loss)}" for name, one in models.items()),
        summary=_loss_summary(evaluation),
        headlines=_loss_headlines(evaluation, headline) if headline else (),
        findings=tuple(Finding(stage, "Held-out loss", c.verdict, _loss_sentence(evaluation, c)) for c in comparisons),
        lines=(
            Line(
                "Held-out rows",
                Label("Loss, nats per token", note, "lower"),
                {name: Number(one.loss, digits=3, verdict=verdicts.get(name)) for name, one in models.items()},
                first,
            ),
            Line(
                "Held-out rows",
                Label("Perplexity", note, "lower"),
                {name: Number(one.perplexity, digits=2) for name, one in models.items()},
            ),
        ),
    )


def _loss_record(c: LossComparison) -> dict[str, Any]:
    changes = ("perplexity_change", "perplexity_change_low", "perplexity_change_high", "rows_better")
    more = {key: getattr(c, key) for key in changes}
    return {**asdict(c.pair), **more, "rows": len(c.row_differences), "verdict": c.verdict}


def _loss_difference(evaluation: EvalFacts, comparison: LossComparison) -> Number:
    pair, second = comparison.pair, evaluation.likelihood.get(comparison.pair.b)
    return bounded(pair.difference, pair.low, pair.high, "number", second.rows if second else None, digits=3)


def _loss_headlines(evaluation: EvalFacts, comparison: LossComparison) -> tuple[Headline, ...]:
    pair, difference = comparison.pair, _loss_difference(evaluation, comparison)
    first, last = evaluation.likelihood.get(pair.a), evaluation.likelihood.get(pair.b)
    note = f"nats per token, {pair.a} to {pair.b}: {evidence(difference, pair.confidence)}"
    value: str | Number = difference
    if first and last:
        value = f"{numbers.fixed(first.loss, 2)}{ARROW}{numbers.fixed(last.loss, 2)}"
        note += f"; perplexity {numbers.fixed(first.perplexity, 2)}{ARROW}{numbers.fixed(last.perplexity, 2)}"
    return (
        Headline("Held-out loss", value, note, comparison.verdict, quality=True, change=difference, better="lower"),
    )


def _loss_sentence(evaluation: EvalFacts, comparison: LossComparison) -> str:
    """Return the held-out comparison of two models in one or two sentences."""
    pair, difference = comparison.pair, _loss_difference(evaluation, comparison)
    first, second = evaluation.likelihood.get(pair.a), evaluation.likelihood.get(pair.b)
    values = (
        f" ({pair.a} {numbers.fixed(first.loss)}, {pair.b} {numbers.fixed(second.loss)})" if first and second else ""
    )
    said = evidence(difference, pair.confidence)
    if comparison.verdict == "not shown":
        zero = " It includes zero." if difference.interval else ""
        text = f"Held-out loss of {pair.b} against {pair.a}: no difference shown{values}. Difference in nats per token: {said}.{zero}"
    else:
        lower = "lower" if comparison.verdict == "improved" else "higher"
        change = numbers.signed_percent(comparison.perplexity_change)
        text = f"Held-out loss of {pair.b} is {lower} than that of {pair.a}{values}: {said}, in nats per token; perplexity {change}."
    rows = len(comparison.row_differences)
    if rows:
        text += f" {comparison.rows_better} of {plural(rows, 'held-out row')} became more likely."
    return text + (f" With only {plural(rows, 'row')} the interval is rough." if FEWEST_ROWS <= rows < FEW_ROWS else "")


def _loss_summary(evaluation: EvalFacts) -> str:
    comparison = evaluation.headline_loss
    if comparison is None:
        parts = [f"{name} {numbers.fixed(m.loss)}" for name, m in evaluation.likelihood.items()]
        return f"Held-out loss in nats per token: {join(parts)}." if parts else ""
    pair = comparison.pair
    first, second = evaluation.likelihood.get(pair.a), evaluation.likelihood.get(pair.b)
    if not (first and second):
        return _loss_sentence(evaluation, comparison)
    movement = {"improved": "fell", "worse": "rose", "not shown": "did not change demonstrably"}[comparison.verdict]
    return (
        f"On {plural(second.rows, 'held-out row')} the loss {movement} from {numbers.fixed(first.loss)} ({pair.a}) to "
        f"{numbers.fixed(second.loss)} ({pair.b}) nats per token (difference "
        f"{evidence(_loss_difference(evaluation, comparison), pair.confidence)}), perplexity from {numbers.fixed(first.perplexity, 2)} to "
        f"{numbers.fixed(second.perplexity, 2)}."
    )


def _loss_forest(stage: str, evaluation: EvalFacts) -> Chart:
    lanes = []
    for c in evaluation.loss_comparisons:
        number = _loss_difference(evaluation, c)
        text = f"{number.text} ({number.interval or number.note})"
        kind = KINDS.get(c.verdict, "s0")
        lanes.append(Lane(f"{c.pair.b} minus {c.pair.a}", c.pair.difference, c.pair.low, c.pair.high, text, kind))
    level = numbers.confidence(evaluation.loss_comparisons[0].pair.confidence)
    return Forest(
        name=file_name(stage, "loss-difference"),
        title="Difference of held-out loss",
        lanes=tuple(lanes),
        unit="nats per token; left of zero is better",
        line=0.0,
        caption=f"Points are differences, bars their {level} paired bootstrap intervals. A bar across zero: no difference shown.",
    )


def _row_histogram(stage: str, comparison: LossComparison) -> Chart | None:
    """Return the loss differences of single held-out rows; the outermost bars collect what lies beyond the 1st and 99th percentile."""
    values = sorted(value for value in comparison.row_differences if math.isfinite(value))
    if not values:
        return None
    low, high = (values[round(share * (len(values) - 1))] for share in (0.01, 0.99))
    size = (max(high, 0.0) - min(low, 0.0) or 1.0) / bins(len(values))
    first, last = math.floor(min(low, 0.0) / size), math.ceil(max(high, 0.0) / size)  # one edge is exactly zero
    first, last = (first, last) if last > first else (-1, 1)
    edges = spaced(first * size, last * size, last - first)
    pair = comparison.pair
    text = f"{comparison.rows_better:,} of {plural(len(values), 'held-out row')} became more likely under {pair.b} than under {pair.a}"
    return Histogram(
        name=file_name(stage, "rows", pair.a, pair.b),
        title=f"Row by row: {pair.b} minus {pair.a}",
        edges=edges,
        heights=counted(values, edges),
        x_label="nats per token; left of zero is better",
        colors=tuple("s1" if end <= size / 2 else "s2" for end in edges[1:]),
        zero=True,
        caption=f"{text}. The outermost bars also hold what lies beyond.",
        said=f"Loss difference of each held-out row; {text}.",
    )


# ---- preferences ---------------------------------------------------------------------------------------------------


def _preferences(stage: str, found: EvalPreferences, notes: Sequence[str], suffix: str) -> Section:
    level = numbers.confidence(found.confidence)
    rows = []
    for name, model in found.models.items():
        fixed = found.at_chance_by_definition(name)
        rows.append(
            (
                f"{name} (reference)" if fixed else name,
                Number(0.5, "share", note="by definition") if fixed else _estimate(model.reward_accuracy, "share"),
                Number(0.0, digits=0, note="by definition")
                if fixed
                else _estimate(model.reward_margin, "number", signed=True),
                _estimate(model.ranking_accuracy, "share"),
                Number(model.logps_chosen, digits=1),
                Number(model.logps_rejected, digits=1),
                Number(model.kl, digits=4),
            )
        )
    columns = (
        "Model",
        "Reward accuracy",
        "Reward margin (nats)",
        "Ranking accuracy",
        "Log p of chosen",
        "Log p of rejected",
        "KL (nats a token)",
    )
    blocks: list[Block] = [
        Text(
            f"{plural(found.pairs, 'pair')} of a chosen and a rejected reply, held out from training. Rewards are measured from "
            f"{found.reference}; intervals are {level} bootstrap intervals."
        ),
        Table("Held-out preferences by model", columns, tuple(rows)),
        _preference_forest(stage, found),
    ]
    if found.comparisons:
        blocks += [_margin_forest(stage, found), _preference_differences(found)]
        drawn = f", {found.resamples:,} resamples" if found.resamples else ""
        blocks.append(
            Text(
                f"All models are scored on the same pairs, and the intervals resample these pairs with replacement (paired bootstrap{drawn}). A "
                "margin differs where its interval excludes zero; a share of pairs only where an exact sign test says so as well, as the "
                f"bootstrap alone is too bold with few pairs. {' '.join(notes)}".strip(),
                "aside",
            )
        )
    blocks.append(
        Facts(
            (
                (
                    "Reward accuracy",
                    f"The share of pairs whose chosen reply gained more log-probability against {found.reference} than the rejected one. 50% is "
                    f"chance, and what {found.reference} itself has by definition.",
                ),
                (
                    "Reward margin",
                    "By how much more, in nats, on average over the pairs. Times beta it is the margin of DPO's training curves.",
                ),
                (
                    "Ranking accuracy",
                    "The share of pairs whose chosen reply has the higher log-probability a token. It needs no reference, and differs from 50% "
                    "before any training, as fluent replies are likelier whether they were chosen or not.",
                ),
                (
                    "KL",
                    f"How far the model has moved from {found.reference}, in nats a reply token, estimated on these replies.",
                ),
            ),
            terms=True,
        )
    )
    blocks.append(
        Records(
            "preferences",
            {
                "stage": stage,
                "reference": found.reference,
                "pairs": found.pairs,
                "models": found.models,
                "differences": [_preference_record(c) for c in found.comparisons],
            },
        )
    )
    against = {c.difference.b: c for c in found.against_reference}
    line = Line(
        "Held-out rows",
        Label("Reward accuracy", f"stage {stage}, {plural(found.pairs, 'pair')}", "higher"),
        {
            name: Number(0.5, "share", note="by definition")
            if found.at_chance_by_definition(name)
            else replace(
                _estimate(model.reward_accuracy, "share"),
                verdict=against[name].verdict("reward_accuracy") if name in against else None,
            )
            for name, model in found.models.items()
        },
        found.reference,
    )
    margins = Line(
        "Held-out rows",
        Label("Reward margin, nats", f"stage {stage}, {plural(found.pairs, 'pair')}", "higher"),
        {
            name: Number(0.0, digits=0, note="by definition")
            if found.at_chance_by_definition(name)
            else replace(
                _estimate(model.reward_margin, "number", signed=True),
                verdict=against[name].verdict("reward_margin") if name in against else None,
            )
            for name, model in found.models.items()
        },
        found.reference,
    )
    return Section(
        f"Held-out preferences{suffix}",
        file_name("preferences", stage),
        tuple(blocks),
        folded=True,
        gist=", ".join(f"{name} {numbers.percent(one.reward_accuracy.estimate)}" for name, one in found.models.items()),
        summary=_preference_summary(found),
        headlines=_preference_headlines(found),
        findings=tuple(
            finding
            for c in found.comparisons
            for finding in (
                Finding(stage, "Preference accuracy", c.verdict("reward_accuracy"), _preference_sentence(found, c)),
                Finding(stage, "Preference margin", c.verdict("reward_margin"), _margin_sentence(found, c)),
            )
        ),
        lines=(line, margins),
    )


def _preference_record(c: PreferenceComparison) -> dict[str, Any]:
    tests = {m: {"better": t.better, "worse": t.worse, "p_value": t.p_value} for m, t in c.tests.items()}
    return {
        **asdict(c.difference),
        "verdicts": {measure: c.verdict(measure) for measure, _ in PREFERENCE_MEASURES},
        "sign_tests": tests,
    }


def _estimate(one: Estimate, unit: str, *, signed: bool = False) -> Number:
    return Number(one.estimate, unit, one.low, one.high, signed=signed)  # type: ignore[arg-type]


def _preference_difference(found: EvalPreferences, comparison: PreferenceComparison, measure: Measure) -> Number:
    one: Estimate = getattr(comparison.difference, measure)
    unit = "number" if measure == "reward_margin" else "share"
    return bounded(one.estimate, one.low, one.high, unit, found.pairs, "pair")


def _preference_differences(found: EvalPreferences) -> Table:
    rows = []
    for c in found.comparisons:
        for measure, label in PREFERENCE_MEASURES:
            test = c.tests.get(measure)
            rows.append(
                (
                    f"{c.difference.b} minus {c.difference.a}",
                    label,
                    _preference_difference(found, c, measure),
                    f"{test.better} better, {test.worse} worse" if test else None,
                    Number(test.p_value, "p") if test else None,
                    Mark(c.verdict(measure)),
                )
            )
    columns = ("Comparison", "Measure", "Difference", "Pairs", "Sign test", "Verdict")
    return Table("Differences of held-out preferences", columns, tuple(rows))


def _preference_forest(stage: str, found: EvalPreferences) -> Chart:
    groups: tuple[tuple[str, Measure], ...] = (
        (f"reward accuracy, against {found.reference}", "reward_accuracy"),
        ("ranking accuracy, by log-probability a token", "ranking_accuracy"),
    )
    lanes = []
    for title, measure in groups:
        for place, (name, model) in enumerate(found.models.items()):
            one: Estimate = getattr(model, measure)
            text = f"{numbers.percent(one.estimate)} ({numbers.percent_interval(one.low, one.high)})"
            lanes.append(Lane(name, 100 * one.estimate, 100 * one.low, 100 * one.high, text, color(place), title))
    return Forest(
        name=file_name(stage, "preference-accuracy"),
        title="How often the chosen reply is favoured",
        lanes=tuple(lanes),
        unit="percent of held-out pairs",
        line=50.0,
        span=(0.0, 100.0),
        caption=f"Points are shares of {plural(found.pairs, 'pair')}, bars their {numbers.confidence(found.confidence)} bootstrap intervals; the "
        f"line is chance. {found.reference} has 50% reward accuracy by definition.",
    )


def _margin_forest(stage: str, found: EvalPreferences) -> Chart:
    lanes = []
    for c in found.comparisons:
        one, number = c.difference.reward_margin, _preference_difference(found, c, "reward_margin")
        text = f"{number.text} ({number.interval or number.note})"
        kind = KINDS.get(c.verdict("reward_margin"), "s0")
        lanes.append(Lane(f"{c.difference.b} minus {c.difference.a}", one.estimate, one.low, one.high, text, kind))
    return Forest(
        name=file_name(stage, "preference-margin"),
        title="Difference of the mean reward margin",
        lanes=tuple(lanes),
        unit="nats; right of zero is better",
        line=0.0,
        caption=f"Points are differences, bars their {numbers.confidence(found.confidence)} paired bootstrap intervals. A bar across zero: no "
        "difference shown.",
    )


def _preference_headlines(found: EvalPreferences) -> tuple[Headline, ...]:
    comparison = found.headline
    if comparison is None:
        return ()
    difference = comparison.difference
    first, last = found.models.get(difference.a), found.models.get(difference.b)
    whose = f" of {difference.b}" if len(found.comparisons) > 1 else ""
    row = []
    if first and last:
        shares = [numbers.percent(model.reward_accuracy.estimate, 0) for model in (first, last)]
        change = _preference_difference(found, comparison, "reward_accuracy")
        note = f"{plural(found.pairs, 'held-out pair')}; {evidence(change, found.confidence)}"
        verdict = comparison.verdict("reward_accuracy")
        row.append(
            Headline(f"Preference accuracy{whose}", ARROW.join(shares), note, verdict, quality=True, change=change)
        )
    change = _preference_difference(found, comparison, "reward_margin")
    note = ", ".join([f"nats against {difference.a}", *bounds(change, found.confidence)])
    verdict = comparison.verdict("reward_margin")
    row.append(
        Headline(
            f"Preference margin{whose}", Number(change.value, signed=True), note, verdict, quality=True, change=change
        )
    )
    return tuple(row)


def _preference_summary(found: EvalPreferences) -> str:
    if found.headline is None:
        shares = [f"{name} {numbers.percent(m.ranking_accuracy.estimate)}" for name, m in found.models.items()]
        return f"Share of {plural(found.pairs, 'held-out pair')} whose chosen reply is the likelier one a token: {join(shares)}."
    outcomes = {
        "improved": "preference accuracy rose",
        "worse": "preference accuracy fell",
        "not shown": "no difference of preference accuracy is shown",
    }
    parts: list[str] = []
    for c in found.against_reference or (found.headline,):
        last = found.models.get(c.difference.b)
        said = _shares(found, c, "reward_accuracy")
        if parts and last:
            said = f"{c.difference.b} in {numbers.percent(last.reward_accuracy.estimate)}"
        parts.append(f"{said}: {outcomes[c.verdict('reward_accuracy')]} ({_evidence(found, c, 'reward_accuracy')})")
    return "; ".join(parts) + "."


def _preference_sentence(found: EvalPreferences, c: PreferenceComparison) -> str:
    """Return the comparison of both accuracies in words, with intervals and tests."""
    words = {"improved": "more", "worse": "fewer"}
    verdict, ranking = c.verdict("reward_accuracy"), c.verdict("ranking_accuracy")
    return (
        f"{_shares(found, c, 'reward_accuracy')}: {words.get(verdict, 'no difference shown')}. {_evidence(found, c, 'reward_accuracy')}. By "
        f"log-probability a token, without any reference: {_shares(found, c, 'ranking_accuracy', brief=True)}, "
        f"{words.get(ranking, 'no difference shown')} ({_evidence(found, c, 'ranking_accuracy')}).{_few(found)}"
    )


def _margin_sentence(found: EvalPreferences, c: PreferenceComparison) -> str:
    """Return the comparison of the mean margins in words."""
    difference = c.difference
    gained = {
        "improved": f"the chosen replies gained on the rejected ones from {difference.a} to {difference.b}",
        "worse": f"the chosen replies lost against the rejected ones from {difference.a} to {difference.b}",
        "not shown": "no difference shown",
    }[c.verdict("reward_margin")]
    values = [
        f"{name} {numbers.signed(model.reward_margin.estimate)}{' (by definition)' if found.at_chance_by_definition(name) else ''}"
        for name in (difference.a, difference.b)
        if (model := found.models.get(name))
    ]
    number = _preference_difference(found, c, "reward_margin")
    return (
        f"Mean reward margin against {found.reference}, in nats: {join(values)}. The difference is {_with_zero(number, found)}: "
        f"{gained}.{_few(found)}"
    )


def _shares(found: EvalPreferences, comparison: PreferenceComparison, measure: Measure, *, brief: bool = False) -> str:
    """Return the shares of both models: ``On 30 held-out pairs dpo favours the chosen reply in 73.3%, sft in 50.0% ...``."""
    difference = comparison.difference
    first, last = found.models.get(difference.a), found.models.get(difference.b)
    if first is None or last is None:
        return f"{difference.b} against {difference.a} on {plural(found.pairs, 'held-out pair')}"
    before, after = (numbers.percent(getattr(model, measure).estimate) for model in (first, last))
    if brief:
        return f"{difference.b} {after}, {difference.a} {before}"
    text = f"On {plural(found.pairs, 'held-out pair')} {difference.b} favours the chosen reply in {after}, {difference.a} in {before}"
    if found.at_chance_by_definition(difference.a):
        return f"{text} (by definition, as it is the reference)"
    return f"{text} (measured against {found.reference})"


def _evidence(found: EvalPreferences, comparison: PreferenceComparison, measure: Measure) -> str:
    number = _preference_difference(found, comparison, measure)
    text, test = _with_zero(number, found), comparison.tests.get(measure)
    if test is None:
        return text
    text += f"; sign test {numbers.p_value(test.p_value)}, {test.better} pairs better and {test.worse} worse"
    one: Estimate = getattr(comparison.difference, measure)
    if (one.low > 0 or one.high < 0) != (test.p_value < 1 - comparison.confidence):
        text += "; interval and exact test disagree, which happens with few pairs, so no claim is made"
    return text


def _with_zero(number: Number, found: EvalPreferences) -> str:
    zero = number.low is not None and number.high is not None and number.low <= 0 <= number.high
    return f"{evidence(number, found.confidence)}{', which includes zero' if zero else ''}"


def _few(found: EvalPreferences) -> str:
    return (
        f" With only {plural(found.pairs, 'pair')} the intervals are rough."
        if FEWEST_ROWS <= found.pairs < FEW_ROWS
        else ""
    )


# ---- feedback ------------------------------------------------------------------------------------------------------


def _feedback(stage: str, feedback: EvalFeedback, suffix: str) -> Section:
    found, rows = feedback.found, []
    for name, model in feedback.models.items():
        fixed = name == found.reference
        nats = (model.reward_margin, model.reward_desirable, model.reward_undesirable)
        rows.append(
            row(
                f"{name} (reference)" if fixed else name,
                _separation(name, feedback),
                *(Number(0.0, digits=0, note="by definition") if fixed else _maybe(one) for one in nats),
                Number(model.kl, digits=4),
            )
        )
    columns = ("Model", "Separation", "Reward margin (nats)", "Reward of good replies", "Reward of bad replies", "KL")
    differences = []
    for one in found.differences:
        for label, estimate, unit in (
            ("separation", one.separation, "share"),
            ("reward margin, nats", one.reward_margin, "number"),
        ):
            if estimate is not None:
                number = bounded(estimate.estimate, estimate.low, estimate.high, unit, found.rows)
                verdict = gain_verdict(estimate.low, estimate.high)
                differences.append((f"{one.b} minus {one.a}", label, number, Mark(verdict)))
    blocks: list[Block] = [
        Text(
            f"{found.rows:,} replies held out from training, {found.desirable:,} found good and {found.undesirable:,} found bad. Rewards are "
            f"measured from {found.reference}; intervals are {numbers.confidence(found.confidence)} bootstrap intervals."
        ),
        Table("Held-out judged replies by model", columns, tuple(rows)),
    ]
    if differences:
        blocks.append(
            Table(
                "Differences of held-out judged replies",
                ("Comparison", "Measure", "Difference", "Verdict"),
                tuple(differences),
            )
        )
        drawn = f", {found.resamples:,} resamples" if found.resamples else ""
        blocks.append(
            Text(
                "All models are scored on the same replies. The intervals resample good and bad replies apart (bootstrap stratified by label"
                f"{drawn}); where one includes zero no difference is shown.",
                "aside",
            )
        )
    blocks.append(
        Facts(
            (
                (
                    "Separation",
                    "How often a good reply drawn at random is rewarded more than a bad one (the area under the ROC curve). 50% is chance, and "
                    f"what {found.reference} itself has by definition.",
                ),
                (
                    "Reward",
                    "By how much log-probability a reply gained against the reference, in nats, on average; the margin is that of good replies "
                    "less that of bad ones.",
                ),
            ),
            terms=True,
        )
    )
    blocks.append(Records("feedback", {"stage": stage, **{"record": found}}))
    headline, summary = feedback.headline, ""
    headlines: tuple[Headline, ...] = ()
    if headline is not None and (own := feedback.models[headline[1]].separation) is not None:
        a, b, estimate, verdict = headline
        change = bounded(estimate.estimate, estimate.low, estimate.high, "share", found.rows)
        before = feedback.models[a].separation
        value = ARROW.join(numbers.percent(one.estimate, 0) for one in (before, own) if one is not None)
        note = f"{plural(found.rows, 'held-out judged reply', 'held-out judged replies')}; {evidence(change, found.confidence)}"
        headlines = (Headline("Separation of judged replies", value, note, verdict, quality=True, change=change),)
        none = ", so no difference is shown" if verdict == "not shown" else ""
        summary = (
            f"On {found.rows:,} held-out judged replies {b} rewards a good reply more than a bad one in {numbers.percent(own.estimate)} of all "
            f"pairs of them ({change.text}, {change.interval or change.note}{none})."
        )
    against = {
        one.b: one.separation for one in found.differences if one.separation is not None and one.a == found.reference
    }
    cells = {}
    for name, model in feedback.models.items():
        if model.separation is not None:
            other = against.get(name)
            cells[name] = replace(
                _separation(name, feedback), verdict=gain_verdict(other.low, other.high) if other is not None else None
            )
    note = f"stage {stage}, {plural(found.rows, 'row')}"
    return Section(
        f"Held-out judged replies{suffix}",
        file_name("feedback", stage),
        tuple(blocks),
        folded=True,
        gist=plural(found.rows, "reply", "replies"),
        summary=summary,
        headlines=headlines,
        lines=(Line("Held-out rows", Label("Separation of judged replies", note, "higher"), cells, found.reference),),
    )


def _separation(name: str, feedback: EvalFeedback) -> Number:
    if name == feedback.found.reference:
        return Number(0.5, "share", note="by definition")
    one = feedback.models[name].separation
    return Number(None) if one is None else _estimate(one, "share")


def _maybe(one: Estimate | None) -> Number:
    return Number(None) if one is None else _estimate(one, "number", signed=True)


# ---- checked answers -----------------------------------------------------------------------------------------------


def _accuracy(evaluation: EvalFacts, suffix: str) -> Section:
    stage, comparisons = evaluation.stage.name, evaluation.accuracy_comparisons
    rates = {name: found.all for name, found in evaluation.accuracy.items() if found.all.checked}
    names = dict.fromkeys(name for model in evaluation.accuracy.values() for name in model.by_class)
    groups = [("all", [(name, model.all) for name, model in evaluation.accuracy.items()])]
    groups += [(c, [(m, a.by_class[c]) for m, a in evaluation.accuracy.items() if c in a.by_class]) for c in names]
    by_class = Table(
        "Checked accuracy by model and class",
        ("Prompts", "Model", "Right", "Accuracy"),
        tuple(
            (group, model, f"{rate.passed} of {rate.checked}", _rate(rate))
            for group, found in groups
            for model, rate in found
        ),
    )
    blocks: list[Block] = [
        Text(
            "Some prompts have an answer that a program can check. Accuracy is the share of them that passed; brackets are Wilson intervals."
        ),
        Beside((_accuracy_forest(stage, evaluation, groups), by_class)),
    ]
    if comparisons:
        rows = []
        for c in comparisons:
            counts = (c.pair.both_right, c.pair.only_b, c.pair.only_a, c.pair.both_wrong, c.checked)
            rows.append(
                row(
                    f"{c.pair.b} minus {c.pair.a}",
                    _accuracy_difference(c),
                    *(Number(count, "count") for count in counts),
                    Number(c.pair.p_value, "p"),
                    Mark(c.verdict),
                )
            )
        columns = ("Comparison", "Points", "Both right", "Gained", "Lost", "Both wrong", "n", "McNemar", "Verdict")
        blocks.append(Table("Differences of checked accuracy", columns, tuple(rows)))
        blocks.append(
            Text(
                "The interval is a paired bootstrap over prompts; McNemar's exact test asks how likely so uneven a split of gained and lost "
                "prompts would be if both models were equally good. A difference counts as shown only if both agree. With few prompts only "
                "large differences can be shown.",
                "aside",
            )
        )
    headline = evaluation.headline_accuracy
    first = evaluation.models[0]
    verdicts = {c.pair.b: c.verdict for c in comparisons if c.pair.a == first}
    blocks.append(
        Records(
            "accuracy",
            {
                "stage": stage,
                "models": evaluation.accuracy,
                "comparisons": [{**asdict(c.pair), "checked": c.checked, "verdict": c.verdict} for c in comparisons],
            },
        )
    )
    lines: tuple[Line, ...] = ()
    if rates:
        note = f"fixed prompts, {stage}, {how_many((rate.checked for rate in rates.values()), 'prompt')}"
        cells = {name: replace(_rate(rate), verdict=verdicts.get(name)) for name, rate in rates.items()}
        lines = (Line("Checked answers", Label("Right answers", note, "higher"), cells, first),)
    return Section(
        f"Checked answers{suffix}",
        file_name("accuracy", stage),
        tuple(blocks),
        folded=True,
        gist=", ".join(f"{name} {rate.passed} of {rate.checked}" for name, rate in rates.items()),
        summary=_accuracy_summary(headline),
        headlines=() if headline is None else (_accuracy_headline(headline),),
        findings=tuple(Finding(stage, "Checked answers", c.verdict, _accuracy_sentence(c)) for c in comparisons),
        lines=lines,
    )


def _rate(rate: Rate) -> Number:
    return Number(rate.accuracy, "share", rate.low, rate.high, digits=0) if rate.checked else Number(None)


def _accuracy_difference(c: AccuracyComparison) -> Number:
    return bounded(c.pair.difference, c.pair.low, c.pair.high, "share", c.checked, "prompt")


def _accuracy_forest(
    stage: str, evaluation: EvalFacts, groups: Sequence[tuple[str, Sequence[tuple[str, Rate]]]]
) -> Chart:
    places = {model: place for place, model in enumerate(evaluation.models)}
    lanes = []
    for group, found in groups:
        for model, rate in found:
            if rate.accuracy is not None and rate.low is not None and rate.high is not None:
                ends = (100 * rate.accuracy, 100 * rate.low, 100 * rate.high)
                lanes.append(Lane(model, *ends, f"{rate.passed}/{rate.checked}", color(places[model]), group))
    return Forest(
        name=file_name(stage, "accuracy"),
        title="Checked answers",
        lanes=tuple(lanes),
        unit="percent of checked answers that are right",
        span=(0.0, 100.0),
        caption="Points are accuracies, bars their Wilson intervals. Single classes hold few prompts: read them as description.",
    )


def _accuracy_headline(c: AccuracyComparison) -> Headline:
    pair, change = c.pair, _accuracy_difference(c)
    value = f"{pair.both_right + pair.only_a}{ARROW}{pair.both_right + pair.only_b} of {c.checked}"
    return Headline("Checked answers", value, evidence(change, pair.confidence), c.verdict, quality=True, change=change)


def _accuracy_summary(c: AccuracyComparison | None) -> str:
    if c is None or c.checked == 0:
        return ""
    pair = c.pair
    outcome = {"improved": "an improvement", "worse": "a loss", "not shown": "no difference is shown"}[c.verdict]
    return (
        f"Of {c.checked} prompts with a checkable answer {pair.a} got {pair.both_right + pair.only_a} right and {pair.b} "
        f"{pair.both_right + pair.only_b}: {outcome} (McNemar's exact test {numbers.p_value(pair.p_value)})."
    )


def _accuracy_sentence(c: AccuracyComparison) -> str:
    """Return the comparison of checked answers in words, with the test and its number of prompts."""
    pair = c.pair
    if c.checked == 0:
        return f"No prompt with a checkable answer was answered by both {pair.a} and {pair.b}."
    counts = (
        f"{pair.b} answered {pair.both_right + pair.only_b} of {c.checked} checked prompts correctly, {pair.a} "
        f"{pair.both_right + pair.only_a} ({pair.only_b} gained, {pair.only_a} lost)"
    )
    test = f"McNemar's exact test {numbers.p_value(pair.p_value)}, n = {c.checked}"
    difference = f"{evidence(_accuracy_difference(c), pair.confidence)}; {test}"
    words = {"improved": "more", "worse": "fewer"}
    if c.verdict in words:
        return f"{counts}: {words[c.verdict]} than {pair.a}. {difference}."
    if pair.only_a == pair.only_b == 0:
        return f"{counts}: no difference shown. Both passed and failed exactly the same prompts."
    text = f"{counts}: no difference shown. {difference}."
    if not c.instruments_agree:
        text += " Interval and exact test disagree, which happens with few prompts, so no claim is made."
    return text


# ---- replies and benchmarks ----------------------------------------------------------------------------------------


def _reply_findings(evaluation: EvalFacts) -> tuple[Finding, ...]:
    replies = f"Of {plural(len(evaluation.prompts), 'reply', 'replies')} for each model, these"
    ends = (
        (evaluation.cut_replies, "ended at the length limit and not by themselves"),
        (evaluation.failed_replies, "failed, because the model computed NaN or infinity"),
    )
    found = []
    for count, what in ends:
        known = [(model, count(model)) for model in evaluation.models]
        if any(number for _, number in known):
            parts = join([f"{number} of {model}" for model, number in known])
            found.append(Finding(evaluation.stage.name, "Replies", None, f"{replies} {what}: {parts}."))
    return tuple(found)


def _reply_lines(evaluation: EvalFacts) -> tuple[Line, ...]:
    cells = {
        model: Number(tokens, "tokens", note=f"{cut:,} cut" if (cut := evaluation.cut_replies(model)) else "")
        for model in evaluation.models
        if (tokens := evaluation.reply_tokens(model)) is not None
    }
    if not cells:
        return ()
    note = f"tokens a reply, {evaluation.stage.name}, {plural(len(evaluation.prompts), 'prompt')}"
    return (Line("Length of replies", Label("Fixed prompts", note), cells),)


def _benchmark_sentence(evaluation: EvalFacts) -> str:
    """Return what was asked, and what the headline measures show of the last model against the baseline."""
    records = [facts.record for facts in evaluation.benchmarks]
    models = [model for model in evaluation.models if any(model in record.models for record in records)]
    prompts = sum(record.source.prompts for record in records)
    text = (
        f"{plural(len(records), 'benchmark')} with {plural(prompts, 'prompt')} {'was' if len(records) == 1 else 'were'} answered by "
        f"{join(models)}."
    )
    clauses: dict[Verdict, list[str]] = {}
    for facts in evaluation.benchmarks:
        for one in facts.differences:
            known = one.record.measure in {m.key for m in facts.headlines} and one.record.b == models[-1]
            if known and one.verdict != "not shown" and one.record.a == facts.record.baseline:
                number = bounded(
                    one.record.difference,
                    one.record.low,
                    one.record.high,
                    one.measure.unit,
                    one.record.prompts,
                    "prompt",
                )
                said = f"{one.measure.label} of {facts.name} ({evidence(number, facts.record.confidence)})"
                clauses.setdefault(one.verdict, []).append(said)
    if not clauses:
        none = (
            f" No headline measure shows a difference of {models[-1]} from {records[0].baseline}."
            if len(models) > 1
            else ""
        )
        return text + none
    claims: dict[Verdict, str] = {"improved": "better", "worse": "worse", "differs": "different"}
    parts = [f"{claims[verdict]} in {join(said)}" for verdict, said in clauses.items()]
    return f"{text} Compared with {records[0].baseline}, {models[-1]} is {join(parts)}."
