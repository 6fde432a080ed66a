"""What the report says in sentences: what was done, and what the numbers show or don't.

A sentence claims a difference only where the facts carry the verdict ``improved`` or ``worse``; anything else is
``no difference shown``, which is not the same as ``no difference``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from posttrain.report import benchmark_wording, numbers, preference_wording
from posttrain.report.facts import AccuracyComparison, EvalFacts, LossComparison, RunFacts, TrainFacts
from posttrain.report.feedback_tables import feedback_sentence
from posttrain.report.preferences import OBJECTIVE_NAMES
from posttrain.report.words import FEW_ROWS, Finding, Tile, join, plural

T = TypeVar("T")


def paragraph(facts: RunFacts) -> str:
    """Return what was done and what came of it, in one paragraph of plain sentences."""
    sentences = [_data_sentence(facts), *_train_sentences(facts)]
    for evaluation in facts.evaluations:
        sentences.append(benchmark_wording.headline_sentence(evaluation))
        sentences.append(_likelihood_sentence(evaluation))
        if evaluation.preferences is not None:
            sentences.append(preference_wording.headline_sentence(evaluation.preferences))
        if evaluation.feedback is not None:
            sentences.append(feedback_sentence(evaluation.feedback))
        sentences.append(_accuracy_sentence(evaluation))
    unfinished = [stage.name for stage in facts.stages if stage.status != "complete"]
    if unfinished:
        sentences.append(f"The run is not complete: {join(unfinished)} did not finish.")
    return " ".join(sentence for sentence in sentences if sentence)


def findings(facts: RunFacts) -> tuple[Finding, ...]:
    """Return what the run shows, each comparison with its verdict, in the order of the stages."""
    found: list[Finding] = []
    for train in facts.training:
        found += _training_findings(train)
        found += preference_wording.training_findings(train)
    for evaluation in facts.evaluations:
        found += benchmark_wording.evaluation_findings(evaluation)
        found += [_loss_finding(evaluation, c) for c in evaluation.loss_comparisons]
        if evaluation.preferences is not None:
            found += preference_wording.evaluation_findings(evaluation.stage.name, evaluation.preferences)
        found += [_accuracy_finding(evaluation, c) for c in evaluation.accuracy_comparisons]
        found += _reply_findings(evaluation)
    found += [Finding(name, "Warning", None, text) for name, text in benchmark_wording.weak_judges(facts).items()]
    return tuple(found)


def tiles(facts: RunFacts) -> tuple[Tile, ...]:
    """Return the headline numbers: quality first, then cost. Of each measure the last evaluation that has it."""
    row: list[Tile] = benchmark_wording.tiles(facts)
    if found := _last(facts, lambda evaluation: evaluation.headline_loss):
        row += _loss_tiles(*found)
    if preferences := _last(facts, lambda evaluation: evaluation.preferences):
        row += preference_wording.tiles(preferences[1])
    if accuracy := _last(facts, lambda evaluation: evaluation.headline_accuracy):
        row.append(_accuracy_tile(accuracy[1]))
    return (*row, *_cost_tiles(facts))


def _last(facts: RunFacts, measure: Callable[[EvalFacts], T | None]) -> tuple[EvalFacts, T] | None:
    """Return the last evaluation with a measure, and the measure."""
    return next(((e, found) for e in reversed(facts.evaluations) if (found := measure(e)) is not None), None)


def _loss_tiles(evaluation: EvalFacts, comparison: LossComparison) -> list[Tile]:
    pair = comparison.pair
    first, last = evaluation.likelihood.get(pair.a), evaluation.likelihood.get(pair.b)
    row = [
        Tile(
            "Held-out loss",
            numbers.signed(pair.difference),
            f"nats per token, {numbers.confidence(pair.confidence)} interval {numbers.interval(pair.low, pair.high)}",
            comparison.verdict,
            quality=True,
        )
    ]
    if first and last:
        row.append(
            Tile(
                "Perplexity",
                f"{numbers.fixed(first.perplexity, 2)} \N{RIGHTWARDS ARROW} {numbers.fixed(last.perplexity, 2)}",
                f"{numbers.signed_percent(comparison.perplexity_change)} on {plural(last.rows, 'held-out row')}",
                quality=True,
            )
        )
    return row


def _accuracy_tile(comparison: AccuracyComparison) -> Tile:
    pair = comparison.pair
    return Tile(
        "Checked answers",
        f"{pair.both_right + pair.only_a} \N{RIGHTWARDS ARROW} {pair.both_right + pair.only_b} of {comparison.checked}",
        f"{numbers.points(pair.difference)} points, {numbers.confidence(pair.confidence)} interval "
        f"{numbers.points_interval(pair.low, pair.high)}",
        comparison.verdict,
        quality=True,
    )


def loss_sentence(evaluation: EvalFacts, comparison: LossComparison) -> str:
    """Return the held-out comparison of two models in one or two sentences."""
    pair = comparison.pair
    first, second = evaluation.likelihood.get(pair.a), evaluation.likelihood.get(pair.b)
    values = (
        f" ({pair.a} {numbers.fixed(first.loss)}, {pair.b} {numbers.fixed(second.loss)})" if first and second else ""
    )
    bounds = f"{numbers.confidence(pair.confidence)} interval {numbers.interval(pair.low, pair.high)}"
    if comparison.verdict == "not shown":
        text = (
            f"Held-out loss of {pair.b} against {pair.a}: no difference shown{values}. The difference is "
            f"{numbers.signed(pair.difference)} nats per token and its {bounds} includes zero."
        )
    else:
        lower = comparison.verdict == "improved"
        text = (
            f"Held-out loss of {pair.b} is {'lower' if lower else 'higher'} than that of {pair.a}{values}: "
            f"{numbers.signed(pair.difference)} nats per token, {bounds}; perplexity "
            f"{numbers.signed_percent(comparison.perplexity_change)}."
        )
    rows = len(comparison.row_differences)
    if rows:
        text += f" {comparison.rows_better} of {plural(rows, 'held-out row')} became more likely."
    if 0 < rows < FEW_ROWS:
        text += f" With only {plural(rows, 'row')} the interval is rough."
    return text


def accuracy_sentence(comparison: AccuracyComparison) -> str:
    """Return the comparison of checked answers in words, with the test and its number of prompts."""
    pair = comparison.pair
    test = f"McNemar's exact test {numbers.p_value(pair.p_value)}, n = {comparison.checked}"
    bounds = f"{numbers.confidence(pair.confidence)} interval {numbers.points_interval(pair.low, pair.high)}"
    counts = (
        f"{pair.b} answered {pair.both_right + pair.only_b} of {comparison.checked} checked prompts correctly, "
        f"{pair.a} {pair.both_right + pair.only_a} ({pair.only_b} gained, {pair.only_a} lost)"
    )
    difference = f"{numbers.points(pair.difference)} points, {bounds}; {test}"
    if comparison.checked == 0:
        return f"No prompt with a checkable answer was answered by both {pair.a} and {pair.b}."
    if comparison.verdict == "improved":
        return f"{counts}: more than {pair.a}. {difference}."
    if comparison.verdict == "worse":
        return f"{counts}: fewer than {pair.a}. {difference}."
    if pair.only_a == pair.only_b == 0:
        return f"{counts}: no difference shown. Both passed and failed exactly the same prompts."
    text = f"{counts}: no difference shown. {difference}."
    if not comparison.instruments_agree:
        text += " Interval and exact test disagree, which happens with few prompts, so no claim is made."
    return text


def selection_notes(evaluation: EvalFacts, facts: RunFacts) -> list[str]:
    """Return a caution for each compared model whose weights were chosen on the rows it is now judged by."""
    rows = evaluation.stage.manifest.config.get("data") if evaluation.stage.manifest else None
    return [
        f"The weights of {train.stage.name} were chosen by their loss on these same rows, which flatters it a little."
        for train in facts.training
        if train.stage.name in evaluation.models[1:]
        and train.config.get("keep") == "best"
        and train.config.get("data") == rows
        and len(train.held_out) > 2
    ]


# ---- the paragraph -------------------------------------------------------------------------------------------------


def _data_sentence(facts: RunFacts) -> str:
    parts = []
    for data in facts.data:
        ledger, result = data.stage.ledger, data.result
        if ledger is None or result.train_rows is None:
            continue
        names = sorted(result.sources)
        sources = join(names) if 0 < len(names) <= 4 else f"{len(names)} sources" if names else "the sources"
        dropped = sum(ledger.dropped.values())
        parts.append(
            f"{plural(ledger.rows_in, 'row')} {'was' if ledger.rows_in == 1 else 'were'} read from {sources}; "
            f"{numbers.count(dropped) if dropped else 'none'} {'was' if dropped < 2 else 'were'} dropped, {numbers.count(result.train_rows)} kept for training and "
            f"{numbers.count(result.held_out_rows)} held out."
        )
    return " ".join(parts)


def _train_sentences(facts: RunFacts) -> list[str]:
    """Return one sentence a train stage; what is as in the stage before is not said again."""
    before: list[TrainFacts | None] = [None, *facts.training[:-1]]
    return [_train_sentence(facts, train, last) for train, last in zip(facts.training, before, strict=False)]


def _train_sentence(facts: RunFacts, train: TrainFacts, before: TrainFacts | None) -> str:
    result, manifest = train.result, train.stage.manifest
    steps = train.step_count
    if steps is None or manifest is None:
        return ""
    start = train.config.get("start_from", "base")
    start = (facts.model or "the base model") if start == "base" else f"the weights of stage {start}"
    how = method(train)
    if before is not None and _adapter_text(before) == _adapter_text(train):
        how = _objective_text(train) + (" in the same way" if _adapter_text(train) else "")
    text = f"Stage {train.stage.name} trained {start} by {how}"
    ledger = train.stage.ledger
    if ledger is not None:
        rows = ledger.rows_kept
        training = train.preferences
        text += f" on {preference_wording.units(training, rows) if training else plural(rows, 'example')}"
    if train.preferences is not None:
        text += f", {preference_wording.reference_text(train, train.preferences)},"
    text += f" for {plural(steps, 'step')}"
    details = []
    if batch := train.config.get("batch_size"):
        details.append(f"{batch} {_unit(train)} each")
    if result.epochs is not None:
        details.append(f"{result.epochs:.3g} {'epoch' if result.epochs == 1 else 'epochs'}")
    if result.tokens is not None:
        details.append(f"{numbers.count(result.tokens)} tokens, {numbers.count(result.supervised_tokens)} supervised")
    text += f" ({', '.join(details)})" if details else ""
    text += f" in {numbers.duration(train.seconds)}" if train.seconds is not None else ""
    same = before is not None and _device(before) == _device(train)
    return text + ("." if same or not manifest.device else f" on {_device(train)}.")


def method(train: TrainFacts) -> str:
    """Return the objective and what was trained, for example ``SFT with LoRA of rank 16 (... parameters)``."""
    return _objective_text(train) + _adapter_text(train)


def _objective_text(train: TrainFacts) -> str:
    if train.preferences is not None:
        return preference_wording.objective_text(train.preferences)
    objective = train.config.get("objective")
    name = str(objective["name"]) if isinstance(objective, dict) and "name" in objective else "training"
    return OBJECTIVE_NAMES.get(name, name)


def _adapter_text(train: TrainFacts) -> str:
    """Return what was trained: `` with LoRA of rank 16 (...)``."""
    adapter, text = train.config.get("adapter"), ""
    if isinstance(adapter, dict) and adapter.get("name") == "lora":
        kind = "DoRA" if adapter.get("dora") else "rsLoRA" if adapter.get("rslora") else "LoRA"
        text += f" with {kind} of rank {adapter['rank']}" if "rank" in adapter else f" with {kind}"
    elif isinstance(adapter, dict) and adapter.get("name") == "full":
        text += " of all weights"
    trainable, total = train.result.trainable_parameters, train.result.total_parameters
    if trainable is not None and total:
        text += (
            f" ({numbers.compact(trainable)} of {numbers.compact(total)} parameters, "
            f"{numbers.percent(trainable / total)})"
        )
    return text


def _unit(train: TrainFacts) -> str:
    if train.preferences is None:
        return "examples"
    return "pairs" if train.preferences.paired else "judged replies"


def _device(train: TrainFacts) -> str:
    manifest = train.stage.manifest
    if manifest is None:
        return ""
    cores = (manifest.provenance or {}).get("cpu_count")
    device = manifest.device or "an unknown device"
    inside = [f"{cores} cores"] if device == "cpu" and cores else []
    inside += [str(manifest.dtype)] if manifest.dtype else []
    name = "a CPU" if device == "cpu" else device
    return f"{name} ({', '.join(inside)})" if inside else name


def _likelihood_sentence(evaluation: EvalFacts) -> str:
    comparison = evaluation.headline_loss
    if comparison is None:
        parts = [f"{name} {numbers.fixed(m.loss)}" for name, m in evaluation.likelihood.items()]
        return f"Held-out loss in nats per token: {join(parts)}." if parts else ""
    pair = comparison.pair
    first, second = evaluation.likelihood.get(pair.a), evaluation.likelihood.get(pair.b)
    if not (first and second):
        return loss_sentence(evaluation, comparison)
    bounds = f"{numbers.confidence(pair.confidence)} interval {numbers.interval(pair.low, pair.high)}"
    movement = {"improved": "fell", "worse": "rose", "not shown": "did not change demonstrably"}[comparison.verdict]
    return (
        f"On {plural(second.rows, 'held-out row')} the loss {movement} from {numbers.fixed(first.loss)} ({pair.a}) to "
        f"{numbers.fixed(second.loss)} ({pair.b}) nats per token (difference {numbers.signed(pair.difference)}, {bounds}), perplexity from "
        f"{numbers.fixed(first.perplexity, 2)} to {numbers.fixed(second.perplexity, 2)}."
    )


def _accuracy_sentence(evaluation: EvalFacts) -> str:
    comparison = evaluation.headline_accuracy
    if comparison is None or comparison.checked == 0:
        return ""
    pair = comparison.pair
    outcome = {
        "improved": "an improvement",
        "worse": "a loss",
        "not shown": "no difference is shown",
    }[comparison.verdict]
    return (
        f"Of {comparison.checked} prompts with a checkable answer {pair.a} got {pair.both_right + pair.only_a} right "
        f"and {pair.b} {pair.both_right + pair.only_b}: {outcome} "
        f"(McNemar's exact test {numbers.p_value(pair.p_value)})."
    )


# ---- findings ------------------------------------------------------------------------------------------------------


def _training_findings(train: TrainFacts) -> list[Finding]:
    found = []
    name = train.stage.name
    bad = [r.step for r in train.steps if not math.isfinite(r.loss)]
    if bad:
        found.append(Finding(name, "Training", None, f"The training loss of {name} was not finite at step {bad[0]}."))
    lost = [r.step for r in train.held_out if not math.isfinite(r.loss)]
    if lost:
        found.append(Finding(name, "Training", None, f"The held-out loss of {name} was not finite at step {lost[0]}."))
    lowest = train.lowest_held_out
    finite = [record for record in train.held_out if math.isfinite(record.loss)]
    if lowest is not None and len(finite) > 1:
        first, last = finite[0], finite[-1]
        text = f"Held-out loss while training {name}: {numbers.fixed(first.loss)} at step {first.step}, "
        if lowest.step == last.step:
            text += f"lowest at the last measurement: {numbers.fixed(last.loss)} at step {last.step}."
        else:
            text += (
                f"lowest {numbers.fixed(lowest.loss)} at step {lowest.step}, {numbers.fixed(last.loss)} at the last "
                f"measurement (step {last.step})."
            )
        if lowest.step == first.step:
            text += " It never went below its starting value: training did not help on these rows."
        elif lowest.step != last.step:
            text += " It rose again after its lowest point (over-fitting, or noise)."
            if train.stage.status == "complete":
                kept = "weights of the lowest point" if train.config.get("keep") == "best" else "final weights"
                text += f" The {kept} were handed on."
        found.append(Finding(name, "Training", None, text))
    if train.result.stopped_early:
        found.append(
            Finding(name, "Training", None, f"Stage {name} stopped early: the held-out loss improved no more.")
        )
    return found


def _loss_finding(evaluation: EvalFacts, comparison: LossComparison) -> Finding:
    return Finding(evaluation.stage.name, "Held-out loss", comparison.verdict, loss_sentence(evaluation, comparison))


def _accuracy_finding(evaluation: EvalFacts, comparison: AccuracyComparison) -> Finding:
    return Finding(evaluation.stage.name, "Checked answers", comparison.verdict, accuracy_sentence(comparison))


def _reply_findings(evaluation: EvalFacts) -> list[Finding]:
    replies = f"Of {plural(len(evaluation.prompts), 'reply', 'replies')} for each model, these"
    ends = (
        (evaluation.cut_replies, "ended at the length limit and not by themselves"),
        (evaluation.failed_replies, "failed, because the model computed NaN or infinity"),
    )
    found = []
    for count, what in ends:
        numbers = [(model, count(model)) for model in evaluation.models]
        if any(number for _, number in numbers):
            parts = join([f"{number} of {model}" for model, number in numbers])
            found.append(Finding(evaluation.stage.name, "Replies", None, f"{replies} {what}: {parts}."))
    return found


# ---- tiles ---------------------------------------------------------------------------------------------------------


def _cost_tiles(facts: RunFacts) -> list[Tile]:
    """Return time of all train stages together, speed of the last one, and the highest memory."""
    row = []
    several = len(facts.training) > 1
    timed = [train for train in facts.training if train.seconds is not None]
    if timed:
        steps = [
            plural(train.step_count, "step") + (f" of {train.stage.name}" if several else "")
            for train in timed
            if train.step_count is not None
        ]
        seconds = sum(train.seconds for train in timed if train.seconds is not None)
        row.append(Tile("Training time", numbers.short_duration(seconds), join(steps)))
    measured = [train for train in facts.training if train.result.tokens_per_second is not None]
    if measured:
        last = measured[-1]
        share = last.result.matmul_share
        note = "tokens per second" + (f", {numbers.percent(share, 0)} of matmul peak" if share is not None else "")
        label = f"Speed of {last.stage.name}" if several else "Speed"
        row.append(Tile(label, numbers.count(last.result.tokens_per_second), note))
    peaks = [(train.peak_memory_bytes, train) for train in facts.training if train.peak_memory_bytes is not None]
    if peaks:
        peak, train = max(peaks, key=lambda item: item[0])
        note = f"while training {f'{train.stage.name} ' if several else ''}on {_device(train)}"
        row.append(Tile("Peak memory", numbers.memory(peak), note))
    return row
