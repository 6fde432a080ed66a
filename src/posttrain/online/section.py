"""What an online stage says of itself: how the reward went, what it cost in KL, and what the same prompts were answered over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter, ValidationError

from posttrain.objectives.base import BaseObjective, Curve
from posttrain.objectives.policy_gradient import PolicyGradient
from posttrain.online.config import Method
from posttrain.online.records import SAMPLES_FILE, Measured, OnlineResult, read_measured
from posttrain.report import values
from posttrain.report.charts import Chart
from posttrain.report.figure import file_name
from posttrain.report.numbers import duration, fixed, percent
from posttrain.report.reading import Gap, Stage, optional
from posttrain.report.values import Answer, Block, Card, Cell, Facts, Finding, Headline, Number, Section, Table, Text
from posttrain.report.words import plural
from posttrain.train.planned import memory_blocks
from posttrain.train.records import HeldOutRecord, StepRecord, TrainResult
from posttrain.train.section import RUN_CURVES, Training, UnknownObjective, curve_chart, read_curves, read_memory

SHOWN_TIMES = 4
"""Measurements whose replies are shown: the first, the last, and some between."""


def online_section(stage: Stage, gaps: list[Gap]) -> Section:
    """The section of one online stage; what is absent or damaged becomes a gap."""
    result = stage.result(OnlineResult, gaps)
    training, measured = read_online(stage, gaps), read_samples(stage, gaps)
    method, steps, held_out = training.objective, training.steps, training.held_out
    settings = f" ({method.settings_text})" if method.settings_text else ""
    blocks: list[Block] = [
        Text(f"{method.title}{settings}. {method.explanation}"),
        Facts(tuple(_facts(result, stage))),
        *_charts(training, method),
    ]
    if training.memory is not None:
        blocks += memory_blocks(training.memory)
    if parts := _parts(steps, held_out):
        blocks.append(parts)
    if cards := _cards(measured):
        blocks.append(
            Section(
                "The same prompts over time",
                file_name("samples", stage.name),
                (values.Replies("", tuple(cards)),),
                folded=True,
                gist=plural(len(cards), "held-out prompt"),
            )
        )
    blocks.append(values.Records("online", {"stage": stage.name, "method": method, "result": result}))
    return Section(
        f"Learning from its own replies: {stage.name}",
        file_name("online", stage.name),
        tuple(blocks),
        summary=_sentence(stage, method, result),
        headlines=tuple(_headlines(result)),
        findings=tuple(Finding(stage.name, "Online", None, text) for text in _findings(stage, method, result, steps)),
    )


def read_online(stage: Stage, gaps: list[Gap]) -> Training:
    """What an online stage logged, as that of a train stage; what is absent or damaged becomes a gap."""
    curves, memory = read_curves(stage, gaps), read_memory(stage, gaps)
    return Training(stage, _method(stage.config.get("method")), TrainResult(), *curves, None, memory)


def read_samples(stage: Stage, gaps: list[Gap]) -> tuple[Measured, ...]:
    """The measurements of its held-out prompts; none where none are held out."""
    path = stage.folder.file(SAMPLES_FILE)
    return (optional(gaps, stage, path, "there are no samples", read_measured) or ()) if path.is_file() else ()


def _method(settings: Any) -> BaseObjective:
    try:
        found: BaseObjective = TypeAdapter[Any](Method).validate_python(settings)
    except ValidationError:
        name = settings.get("name") if isinstance(settings, Mapping) else None
        return UnknownObjective(name=str(name)) if name else UnknownObjective()
    return found


def _facts(result: OnlineResult, stage: Stage) -> Iterator[tuple[str, Cell]]:
    yield "Steps", Number(result.steps, "count")
    yield "Optimizer steps", Number(result.updates, "count")
    yield "Replies sampled", Number(result.replies, "count")
    yield "Their tokens", Number(result.tokens, "count")
    yield "Replies cut at the limit", _share(result.cut, result.replies)
    yield "Replies without a score", _share(result.missing, result.replies)
    yield "Reward, first step", Number(result.first_reward, digits=3)
    yield "Reward, last tenth", Number(result.last_reward, digits=3)
    yield "Held-out reward before", Number(result.held_out_before, digits=3)
    yield "Held-out reward after", Number(result.held_out_after, digits=3)
    yield "KL to the reference at the end", Number(result.kl, digits=4, note="nats a token, k3")
    yield "Largest gap between sampler and trainer", Number(result.largest_gap, "scientific", note="nats a token, k3")
    yield (
        "Speed, median over steps",
        Number(result.tokens_per_second, "count", note="tokens per second, sampled and learned"),
    )
    yield "Time sampling", None if result.sampling_seconds is None else duration(result.sampling_seconds)
    yield "Time learning", None if result.learning_seconds is None else duration(result.learning_seconds)
    yield "Peak memory", Number(result.peak_memory_bytes, "bytes")


def _share(part: int | None, of: int | None) -> Number | None:
    return None if part is None or not of else Number(part, "count", note=percent(part / of))


def _headlines(result: OnlineResult) -> Iterator[Headline]:
    difference = result.held_out_difference
    if difference is not None and result.held_out_rows:
        change = Number(difference.estimate, low=difference.low, high=difference.high, signed=True)
        note = f"from {fixed(result.held_out_before)} on {plural(result.held_out_rows, 'held-out prompt')}"
        yield Headline("Held-out reward", Number(result.held_out_after, digits=3), note, quality=True, change=change)
    if result.tokens_per_second is not None:
        yield Headline("Sampled and learned", Number(result.tokens_per_second, "count"), "tokens per second")


def _sentence(stage: Stage, method: BaseObjective, result: OnlineResult) -> str:
    if result.steps is None:
        return ""
    text = (
        f"Stage {stage.name} learned from {plural(result.replies or 0, 'reply', 'replies')} of its own by {method.title}, "
        f"in {plural(result.steps, 'step')}"
    )
    return text + (f" and {duration(stage.seconds)}." if stage.seconds is not None else ".")


def _findings(stage: Stage, method: BaseObjective, result: OnlineResult, steps: Sequence[StepRecord]) -> Iterator[str]:
    difference = result.held_out_difference
    if difference is not None:
        ends = f"{fixed(result.held_out_before)} before, {fixed(result.held_out_after)} after"
        interval = f"{difference.confidence:.0%} interval {difference.low:+.3f} to {difference.high:+.3f}"
        shown = "" if difference.low > 0 or difference.high < 0 else "; no difference is shown"
        yield f"Held-out reward of {stage.name}: {ends}, difference {difference.estimate:+.3f} ({interval}){shown}."
    grouped = not (isinstance(method, PolicyGradient) and method.compares_all)
    silent = [one.metrics["groups/equal"] for one in steps if grouped and "groups/equal" in one.metrics]
    if silent and sum(silent) / len(silent) > 0.5:
        yield (
            f"In {percent(sum(silent) / len(silent))} of the groups of {stage.name} all replies scored the same: these taught nothing."
        )
    for name in dict.fromkeys(key for one in steps for key in one.metrics if key.endswith(("/ties", "/unread"))):
        share = fmean(one.metrics[name] for one in steps if name in one.metrics)
        score, _, what = name.rpartition("/")
        became = "ended in a tie" if what == "ties" else "have no verdict, and counted for neither reply"
        yield f"Of the comparisons of {stage.name} ({score}) {percent(share)} {became}."
    if result.missing:
        yield f"{plural(result.missing, 'reply', 'replies')} of {stage.name} could not be scored, and were left out."


# ---- charts and tables ---------------------------------------------------------------------------------------------


def _charts(training: Training, method: BaseObjective) -> list[Chart]:
    logged = {key for one in training.steps for key in one.metrics}
    curves: list[Curve] = [curve for curve in method.curves if curve.metrics[0] in logged]
    return [curve_chart(training, curve) for curve in (*curves, *RUN_CURVES)] if training.steps else []


def _parts(steps: Sequence[StepRecord], held_out: Sequence[HeldOutRecord]) -> Table | None:
    """The scores by part: first and last step, and the held-out prompts before and after."""
    names = [key for one in steps[:1] for key in one.metrics if key.startswith("reward/") and key != "reward/deviation"]
    if not names:
        return None
    columns = ("Score", "First step", "Last step", "Held-out before", "Held-out after")
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        of_steps = [one.metrics.get(name) for one in (steps[0], steps[-1])]
        of_held_out = [one.metrics.get(name) for one in (held_out[0], held_out[-1])] if held_out else [None, None]
        rows.append((name.removeprefix("reward/"), *(Number(value, digits=3) for value in (*of_steps, *of_held_out))))
    return Table("Scores, unweighed", columns, tuple(rows)).known()


def _cards(measured: Sequence[Measured]) -> list[Card]:
    """The replies to the same held-out prompts, at some of the measurements."""
    if not measured:
        return []
    last = len(measured) - 1
    shown = sorted({round(place * last / (SHOWN_TIMES - 1)) for place in range(SHOWN_TIMES)})
    found = []
    for place, first in enumerate(measured[0].samples):
        answers = []
        for at in shown:
            one = next((s for s in measured[at].samples[place : place + 1] if s.row == first.row), None)
            if one is not None:
                label = "no score" if one.reward is None else f"reward {fixed(one.reward)}"
                answers.append(Answer(f"step {measured[at].step}", (one.reply,), label=label, cut=one.cut))
        found.append(Card(first.row, (first.prompt,), tuple(answers)))
    return found
