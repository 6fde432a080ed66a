"""From the answers of all models to a record: the one place that goes over answers. Nothing is lost without a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from posttrain.errors import ConfigError
from posttrain.judge.pool import Judges
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks.base import (
    Answer,
    Benchmark,
    Findings,
    HasNotes,
    JudgesReplies,
    Key,
    MeasuresCorpus,
    Score,
    ScoresReplies,
    Unscored,
    Value,
)
from posttrain.tasks.measures import differences, results
from posttrain.tasks.records import Account, Cost, Remark, ReplyLengths, Source, TaskRecord, TaskRow

Answers = Mapping[str, Sequence[Answer]]
"""By model."""


def findings_of(benchmark: Benchmark, answers: Answers, judges: Judges | None, settings: IntervalSettings) -> Findings:
    """What a benchmark finds in the answers of every model (in the recipe's order, the first is the baseline).

    Raises:
        ConfigError: it needs a judge and there is none.

    """
    found = Findings()
    if benchmark.needs.judge:
        if judges is None:
            raise ConfigError(f"{benchmark.title} needs a judge", where="judge", fix="say in the eval stage who judges")
        assert isinstance(benchmark, JudgesReplies), "who needs a judge asks it"
        found = benchmark.judge(answers, judges, settings)
    elif isinstance(benchmark, ScoresReplies):
        found = score_each(lambda model, answer: benchmark.score(answer.task, answer.replies[0]), answers)
    if isinstance(benchmark, MeasuresCorpus):
        lost = {model: without_a_value(own) for model, own in answers.items()}
        more = benchmark.corpus(
            {model: [a for a in own if (a.task.id, a.sample) not in lost[model]] for model, own in answers.items()},
            settings,
        )
        found = replace(
            found,
            values=[*found.values, *more.values],
            remarks={**found.remarks, **more.remarks},
            notes=[*found.notes, *more.notes],
            results=[*found.results, *more.results],
        )
    if isinstance(benchmark, HasNotes):
        found = replace(found, notes=[*found.notes, *benchmark.notes(answers)])
    return found


def score_each(score: Callable[[str, Answer], Score | Unscored], answers: Answers) -> Findings:
    """Score every reply by itself (``score`` is given the model's name too). A task counts with all its samples or not at all."""
    values: list[Value] = []
    accounting: dict[str, Account] = {}
    remarks: dict[Key, Remark] = {}
    reply_values: dict[Key, dict[str, float]] = {}
    for model, own in answers.items():
        lost = without_a_value(own)
        for answer in own:
            if (place := (answer.task.id, answer.sample)) in lost:
                continue
            found, key = score(model, answer), (model, *place)
            remarks[key] = found.remark
            if isinstance(found, Unscored):
                # an empty reply that was cut off, or stopped by a filter, has no value for that reason
                finish, empty = answer.finishes[-1], not answer.replies[-1].strip()
                lost[place] = finish if empty and finish in ("length", "content_filter") else found.reason
                continue
            values += [Value(model, answer.task.id, p.measure, p.value, p.category) for p in found.points]
            reply_values[key] = found.values
        accounting[model] = counted(own, list(lost.values()))
    return Findings(values, accounting, remarks, reply_values)


def without_a_value(answers: Sequence[Answer]) -> dict[tuple[str, int], str]:
    """(task id, sample) -> why it has no value, before it is looked at: it is not complete, or another sample of its task is not."""
    broken = {answer.task.id for answer in answers if not answer.complete}
    return {
        (answer.task.id, answer.sample): why_missing(answer) if not answer.complete else "other_sample_missing"
        for answer in answers
        if answer.task.id in broken
    }


def counted(answers: Sequence[Answer], dropped: Sequence[str]) -> Account:
    """The accounting of one model. ``dropped``: a reason for every answer that has no value."""
    complete = sum(answer.complete for answer in answers)
    return Account(len(answers), complete, len(answers) - len(dropped), dict(Counter(dropped)))


def why_missing(answer: Answer) -> str:
    """Why an answer is not complete: the reason of its failed call."""
    return "no_reply" if answer.failure is None else answer.failure.reason


# ---- the record ----------------------------------------------------------------------------------------------------


def task_record(
    benchmark: Benchmark,
    key: str,
    source: Source,
    findings: Findings,
    answers: Answers,
    settings: IntervalSettings,
    **more: Any,
) -> TaskRecord:
    """The record of a benchmark. ``more``: what is not measured (``config``, ``cost``, ``judge``).

    Raises:
        AssertionError: a benchmark lost answers without a reason.

    """
    models, measures = tuple(answers), benchmark.measures
    for model, account in findings.accounting.items():
        assert account.asked == account.measured + sum(account.dropped.values()), f"{model}: answers without a reason"
        assert account.asked == len(answers[model]), f"{model}: not every answer is accounted for"
    return TaskRecord(
        key=key,
        task=benchmark.name,
        title=benchmark.title,
        area=benchmark.area,
        source=source,
        models=models,
        baseline=models[0],
        confidence=settings.confidence,
        resamples=settings.resamples,
        measures=measures,
        results=(*results(findings, measures, models, settings), *findings.results),
        differences=(
            # fixed prompts ask one question: each model is tested against the first by itself
            *differences(findings, measures, models, settings, adjust=benchmark.area != "prompts"),
            *findings.differences,
        ),
        accounting=dict(findings.accounting),
        replies={model: reply_lengths(found) for model, found in answers.items()},
        win_rates=findings.win_rates,
        ratings=findings.ratings,
        length_controlled=findings.length_controlled,
        notes=tuple(findings.notes),
        **more,
    )


def reply_lengths(answers: Sequence[Answer]) -> ReplyLengths:
    """Lengths of the replies of one model."""
    tokens = [usage.completion_tokens for a in answers for usage in a.usages if usage is not None]
    characters = [len(reply) for a in answers for reply in a.replies]
    return ReplyLengths(
        tokens_mean=float(np.mean(tokens)) if tokens else None,
        tokens_p50=float(np.quantile(tokens, 0.5)) if tokens else None,
        tokens_p95=float(np.quantile(tokens, 0.95)) if tokens else None,
        characters_mean=float(np.mean(characters)) if characters else None,
        cut=sum(finish == "length" for a in answers for finish in a.finishes),
    )


def cost_of(answers: Sequence[Answer], seconds: float) -> Cost:
    """What the replies of one model took."""
    usages = [usage for answer in answers for usage in answer.usages if usage is not None]
    return Cost(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        seconds=None if any(answer.cached for answer in answers) else seconds,
    )


def reply_rows(answers: Answers, findings: Findings) -> Iterator[TaskRow]:
    """One row for every model, task and sample."""
    for model, found in answers.items():
        for answer in found:
            task, key = answer.task, (model, answer.task.id, answer.sample)
            tokens = [usage.completion_tokens for usage in answer.usages if usage is not None]
            yield TaskRow(
                model=model,
                prompt_id=task.id,
                sample=answer.sample,
                category=task.category,
                language=task.language,
                turns=task.turns,
                replies=answer.replies,
                finishes=answer.finishes,
                tokens=sum(tokens) if len(tokens) == len(answer.replies) else None,
                failure=None if answer.failure is None else f"{answer.failure.reason}: {answer.failure.detail}",
                values=dict(findings.reply_values.get(key, {})),
                remark=findings.remarks.get(key),
            )
