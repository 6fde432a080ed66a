"""Every rule on the smallest evidence that shows its symptom, on evidence just short of it, and on none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.artifacts import Ledger, LedgerStep, Manifest, StageDir
from posttrain.doctor import preferences, training
from posttrain.doctor.course import noise
from posttrain.doctor.evidence import EvalEvidence, JudgeEvidence, Measured, TrainEvidence
from posttrain.doctor.findings import Finding, Outcome, Rule, Unknown
from posttrain.doctor.reference import causes_of, markdown
from posttrain.doctor.rules import OF_EVALUATION, OF_JUDGES, OF_ONLINE, OF_TRAINING
from posttrain.doctor.words import Language, Words
from posttrain.encode.facts import ExampleFacts
from posttrain.encode.lengths import Lengths, LengthStatistics
from posttrain.objectives.base import BaseObjective
from posttrain.objectives.dpo import DpoObjective
from posttrain.objectives.sft import SftObjective
from posttrain.objectives.simpo import SimpoObjective
from posttrain.report.reading import Stage
from posttrain.stats.intervals import wilson
from posttrain.tasks.facts import facts_of
from posttrain.tasks.records import Difference, Measure, ReplyLengths, Result, Source, TaskRecord, TaskRow
from posttrain.train.records import HeldOutLosses, HeldOutRecord, StepRecord, TrainResult
from posttrain.train.section import Training

LN_2 = math.log(2)
RULES: dict[str, Rule[Any]] = {**OF_TRAINING, **OF_ONLINE, **OF_EVALUATION, **OF_JUDGES}
SFT = SftObjective()
LENGTHS = LengthStatistics((50, 90, 190), 3, 90, 190, 190, 190, 0.0)
FACTS = ExampleFacts(
    examples=100, replies=100, stops=100, repeated=0, long_replies=90, repeated_replies=0, vocabulary=49152
)
PAIRS = dataclasses.replace(FACTS, replies=200, stops=200, pairs_compared=100, similarity=0.4)


def steps(losses: Sequence[float], **more: Any) -> tuple[StepRecord, ...]:
    metrics = more.pop("metrics", {})
    given = {"grad_norm": 1.0, "tokens": 100, "supervised_tokens": 40, "epoch": 2.0, **more}
    return tuple(StepRecord(step=n, loss=loss, metrics=metrics, **given) for n, loss in enumerate(losses, 1))


def held_out(
    losses: Sequence[float], count: int = 100, metrics: Sequence[Mapping[str, float]] = ()
) -> tuple[HeldOutRecord, ...]:
    each = metrics or [{}] * len(losses)
    return tuple(
        HeldOutRecord(step=10 * n, loss=loss, rows=count, metrics=own)
        for n, (loss, own) in enumerate(zip(losses, each, strict=True))
    )


def seen(
    losses: Sequence[float] = (2.0,) * 20,
    held: tuple[HeldOutRecord, ...] = (),
    objective: BaseObjective = SFT,
    encoded: LedgerStep | None = None,
    logged: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> TrainEvidence:
    config = {"data": "prepare", "adapter": {"name": "lora"}, "learning_rate": 1e-4, "keep": "last", **(settings or {})}
    step = encoded or LedgerStep("encode", rows_in=100, rows_out=100)
    stage = Stage(
        "sft", "train", "complete", Manifest("train", "complete", config), Ledger([step]), StageDir(Path("sft"))
    )
    logs = steps(losses, metrics=logged or {}, **more.pop("each", {}))
    told = Training(stage, objective, TrainResult(), logs, held, Lengths(64, LENGTHS, LENGTHS))
    facts = PAIRS if objective.row_kind == "pairs" else FACTS
    return TrainEvidence(told, more.pop("examples", facts), **more)


def found(outcome: Outcome) -> tuple[str, str]:
    """Severity and first cause."""
    assert isinstance(outcome, Finding)
    return outcome.severity, outcome.causes[0].name


def ask(rule: str, evidence: Any) -> Outcome:
    """What a rule says; what it finds can be told in every language."""
    outcome = RULES[rule].examine(evidence)
    if isinstance(outcome, Finding):
        for language in get_args(Language):
            words = Words(language)
            assert all((words.evidence(rule, outcome), *(words.cause(cause.name) for cause in outcome.causes)))
    return outcome


RATE_LOW, RATE_HIGH = {"learning_rate": 1e-8}, {"learning_rate": 0.05}
FALLING = [2.0 - 0.02 * n for n in range(20)]
DPO = DpoObjective()


def pairs_at(chosen: Sequence[float], rejected: Sequence[float], **more: Sequence[float]) -> tuple[HeldOutRecord, ...]:
    logged: list[dict[str, float]] = [
        {"logps/chosen": a, "logps/rejected": b, "rewards/margins": (a - b) / 10} | {"rewards/accuracies": 0.9}
        for a, b in zip(chosen, rejected, strict=True)
    ]
    for name, values in more.items():
        for one, value in zip(logged, values, strict=True):
            one[name] = value
    return held_out([LN_2, *[0.5] * (len(chosen) - 1)], metrics=logged)


# ---- the loss --------------------------------------------------------------------------------------------------------


def test_noise_is_that_between_neighbours_and_no_trend() -> None:
    draw = np.random.default_rng(0)
    assert noise(draw.normal(0, 0.3, 5000) + np.linspace(0, 50, 5000)) == pytest.approx(0.3, rel=0.05)
    assert noise(np.linspace(0, 50, 100)) < 0.5


def test_a_loss_that_does_not_fall_is_told_by_the_held_out_rows_where_there_are_some() -> None:
    flat = seen(held=held_out([2.0, 1.995]), settings=RATE_LOW)
    assert found(ask("loss_flat", flat)) == ("alarm", "rate_low")
    assert ask("loss_flat", seen(held=held_out([2.0, 1.9]))) is None
    little = seen(held=held_out([2.0, 1.985]), by_row=by_row(2.0, 1.985, spread=0.01))
    assert found(ask("loss_flat", little))[0] == "remark", "less than a hundredth, and more than its error"
    assert ask("loss_flat", seen(held=held_out([2.0, 2.2]))) is None, "one that rises is another rule's"


def test_without_held_out_rows_noise_is_no_flat_loss() -> None:
    noisy = [2.0 + (-1) ** n * (0.5 + 0.1 * (n % 3)) for n in range(20)]
    assert ask("loss_flat", seen(noisy)) == Unknown("held_out")
    assert isinstance(ask("loss_flat", seen([2.0] * 20)), Finding)
    assert ask("loss_flat", seen(FALLING)) is None
    assert ask("loss_flat", seen([2.0] * 5)) == Unknown("steps")


def test_no_gradient_is_named_before_the_rate() -> None:
    outcome = ask("loss_flat", seen(held=held_out([2.0, 2.0]), each={"grad_norm": 0.0}))
    assert found(outcome) == ("alarm", "no_gradient")


def test_a_loss_that_falls_and_rises() -> None:
    rising = [*FALLING, *[3.0] * 10]
    outcome = ask("loss_rises", seen(rising, settings=RATE_HIGH))
    assert found(outcome) == ("alarm", "rate_high")
    assert isinstance(outcome, Finding)
    assert outcome.causes[0].change == ("sft.learning_rate=0.0002",), "the published one"
    assert ask("loss_rises", seen([*FALLING, *[1.8] * 10])) is None
    bare = ask("loss_rises", seen(rising, settings={"max_grad_norm": None, "warmup": 0.0}))
    assert isinstance(bare, Finding)
    assert [cause.name for cause in bare.causes] == ["rate_high", "no_clipping", "no_warmup", "bad_rows"]


def test_a_loss_near_guessing() -> None:
    assert found(ask("loss_high_at_start", seen([9.0] * 20))) == ("alarm", "wrong_tokenizer")
    assert ask("loss_high_at_start", seen([5.0] * 20)) is None
    assert ask("loss_high_at_start", seen([9.0] * 20, held_out([3.0]))) is None, "before the first step it was not"
    assert ask("loss_high_at_start", seen(examples=None)) == Unknown("examples")


def by_row(*means: float, spread: float = 0.1) -> tuple[HeldOutLosses, ...]:
    """Evaluations whose rows differ from each other by far more than from their own earlier values."""
    draw = np.random.default_rng(0)
    own, changes = draw.normal(0, 1, 50), draw.normal(0, spread, (len(means), 50))
    changes -= changes.mean(axis=1, keepdims=True)
    return tuple(
        HeldOutLosses(10 * n, {str(row): mean + own[row] + changes[n][row] for row in range(50)})
        for n, mean in enumerate(means)
    )


def test_a_held_out_loss_that_rose_is_told_by_pairs_of_rows() -> None:
    held = held_out([2.0, 1.5, 1.6, 1.7])
    assert found(ask("held_out_rises", seen(FALLING, held, by_row=by_row(2.0, 1.5, 1.6, 1.7)))) == (
        "alarm",
        "overfitting",
    )
    assert ask("held_out_rises", seen(FALLING, held, by_row=by_row(2.0, 1.5, 1.51, 1.52))) is None, "within two errors"
    assert ask("held_out_rises", seen(FALLING, held, by_row=by_row(2.0, 1.5, 1.7, 1.45))) is None, "it fell again"
    assert ask("held_out_rises", seen(FALLING, held, by_row=by_row(2.0, 1.5))) == Unknown("evaluations")
    assert ask("held_out_rises", seen(FALLING)) == Unknown("held_out")


def test_who_kept_the_best_weights_is_not_alarmed() -> None:
    given = {"held": held_out([2.0, 1.5, 1.6, 1.7]), "by_row": by_row(2.0, 1.5, 1.6, 1.7), "settings": {"keep": "best"}}
    assert found(ask("held_out_rises", seen(FALLING, **given))) == ("remark", "overfitting")


def test_rows_that_only_got_worse_are_of_another_kind_unless_the_rest_was_learned_by_heart() -> None:
    given = {"held": held_out([2.0, 2.2, 2.4, 2.6]), "by_row": by_row(2.0, 2.2, 2.4, 2.6)}
    assert found(ask("held_out_rises", seen(FALLING, **given))) == ("alarm", "other_distribution")
    assert found(ask("held_out_rises", seen(FALLING, settings=RATE_HIGH, **given))) == ("alarm", "rate_high")
    by_heart = [2.0 * 0.8**n for n in range(20)]
    assert found(ask("held_out_rises", seen(by_heart, settings=RATE_HIGH, **given))) == ("alarm", "overfitting")
    once = seen(by_heart, settings=RATE_HIGH, each={"epoch": 0.9}, **given)
    assert found(ask("held_out_rises", once)) == ("alarm", "rate_high"), "no row came twice"


def test_spikes_by_hand() -> None:
    values = [1.0 + 0.1 * (-1) ** n for n in range(100)]
    assert training.spikes(values) == []
    values[80] = 1.59  # mean 1, deviation 0.1: the limit is 1.6
    assert training.spikes(values) == []
    values[80] = 1.61
    assert training.spikes(values) == [80]
    values[30] = 9.0
    assert training.spikes(values) == [], "too early to be told, and the deviation is large from there on"


def test_spikes_are_an_alarm_when_there_are_many_or_nothing_clips_them() -> None:
    losses = [2.0 + 0.01 * (-1) ** n for n in range(100)]
    losses[90] = 9.0
    assert found(ask("gradient_spikes", seen(losses))) == ("remark", "bad_rows")
    assert found(ask("gradient_spikes", seen(losses, settings={"max_grad_norm": None}))) == ("alarm", "bad_rows")
    assert ask("gradient_spikes", seen(losses[:60])) == Unknown("many_steps")


@pytest.mark.parametrize(
    ("rate", "adapter", "outcome"),
    [
        (1e-4, {"name": "lora"}, None),
        (1e-3, {"name": "lora"}, ("remark", "rate_high")),  # five times the highest published
        (1.1e-3, {"name": "lora"}, ("alarm", "rate_high")),
        (1e-6, {"name": "lora"}, ("remark", "rate_low")),
        (2e-4, {"name": "full"}, ("alarm", "rate_high")),
        (1e-5, {"name": "full"}, None),
    ],
)
def test_the_range_of_rates_is_the_methods(rate: float, adapter: Any, outcome: Any) -> None:
    told = ask("rate_range", seen(settings={"learning_rate": rate, "adapter": adapter}))
    assert (told if told is None else found(told)) == outcome


def test_a_failed_stage_and_losses_that_are_no_numbers() -> None:
    assert found(ask("failed", seen([*FALLING, math.nan]))) == ("alarm", "rate_high")
    ended = seen()
    stage = dataclasses.replace(ended.training.stage, manifest=Manifest("train", "failed", error="no space left"))
    ended = dataclasses.replace(ended, training=dataclasses.replace(ended.training, stage=stage))
    assert found(ask("failed", ended)) == ("alarm", "error_says")
    assert ask("failed", seen()) is None


# ---- preferences -----------------------------------------------------------------------------------------------------


def test_a_loss_at_ln_2() -> None:
    def told(loss: float, trained: float | None = None, **more: Any) -> Outcome:
        return ask("loss_at_start", seen([trained or loss] * 20, held_out([LN_2, loss]), DPO, **more))

    assert found(told(LN_2 + 0.0005, settings=RATE_LOW)) == ("alarm", "rate_low")
    assert found(told(LN_2 - 0.005))[0] == "remark"
    assert told(0.6) is None
    assert told(LN_2, 0.3) is None, "it learned its own pairs"
    alike = dataclasses.replace(PAIRS, alike=80)
    assert found(told(LN_2, examples=alike)) == ("alarm", "alike_pairs")


def test_a_policy_that_does_not_begin_at_its_reference() -> None:
    assert found(ask("reference_mismatch", seen(held=held_out([0.1]), objective=DPO))) == (
        "alarm",
        "other_reference",
    )
    assert ask("reference_mismatch", seen(held=held_out([LN_2]), objective=DPO)) is None
    other = seen(held=held_out([0.1]), objective=DpoObjective(reference="base"), settings={"start_from": "first"})
    assert not preferences.has_reference(other), "that one is meant to be elsewhere"


def test_saturated_margins() -> None:
    logged = {"rewards/accuracies": 1.0, "rewards/saturated": 0.95}
    easy = held_out([LN_2, 0.0], metrics=[{"rewards/accuracies": 0.5}, {"rewards/accuracies": 1.0}])
    assert found(ask("margin_saturated", seen(objective=DPO, logged=logged, held=easy))) == ("alarm", "easy_pairs")
    assert found(ask("margin_saturated", seen(objective=DPO, logged=logged))) == ("alarm", "overfitting")
    assert ask("margin_saturated", seen(objective=DPO, logged={**logged, "rewards/saturated": 0.85})) is None
    assert not preferences.saturates(seen(objective=DPO))


@pytest.mark.parametrize(
    ("chosen", "rejected", "severity"),
    [
        ((-100, -99.5), (-100, -110), None),
        ((-100, -104), (-100, -110), "remark"),
        ((-100, -106), (-100, -110), "alarm"),  # more than half as fast as the rejected ones
        ((-100, -112), (-100, -150), "alarm"),  # a tenth of itself
        ((-100, -110), (-100, -105), None),  # the margin fell too
    ],
)
def test_chosen_replies_that_fall(chosen: Any, rejected: Any, severity: str | None) -> None:
    told = ask("chosen_falls", seen(held=pairs_at(chosen, rejected), objective=DPO))
    assert (told if told is None else found(told)[0]) == severity
    if severity == "remark":
        assert found(told)[1] == "no_anchor"


def test_a_policy_that_runs_away() -> None:
    def told(kl: Sequence[float], accuracies: Sequence[float], length: float = 50.0) -> Outcome:
        side = [length] * len(kl)
        more = {"kl": kl, "rewards/accuracies": accuracies, "lengths/chosen": side, "lengths/rejected": side}
        return ask("kl_runaway", seen(held=pairs_at([-100] * len(kl), [-100] * len(kl), **more), objective=DPO))

    assert found(told([0, 0.3, 0.5, 0.9], [0.5, 0.6, 0.6, 0.6])) == ("alarm", "rate_high")
    assert told([0, 0.3, 0.5, 0.9], [0.5, 0.6, 0.6, 0.7]) is None, "it bought accuracy"
    assert told([0, 0.3, 0.5, 0.55], [0.5, 0.6, 0.6, 0.6]) is None, "it came to rest"
    assert told([0, 0.03, 0.05, 0.09], [0.5, 0.6, 0.6, 0.6]) is None, "it is near"
    assert told([0, 0.3, 0.9], [0.5, 0.6, 0.6]) == Unknown("evaluations")


def test_a_coin_is_told_with_its_interval() -> None:
    def told(accuracy: float, count: int, objective: BaseObjective = DPO, start: float = 0.5) -> Outcome:
        logged = [{"rewards/accuracies": start}, {"rewards/accuracies": accuracy}]
        return ask("accuracy_chance", seen(held=held_out([LN_2, 0.6], count, logged), objective=objective))

    assert found(told(0.55, 40))[0] == "remark"
    assert told(0.7, 40) is None
    assert found(told(0.2, 40)) == ("alarm", "labels_swapped")
    assert told(0.5, 40, SimpoObjective(), start=0.4) is None, "without a reference it may begin below one half"
    assert ask("accuracy_chance", seen(objective=DPO)) == Unknown("held_out_pairs")


def test_length_bias_is_of_what_was_gained() -> None:
    draw = np.random.default_rng(0)
    longer = {str(n): int(value) for n, value in enumerate(draw.integers(-30, 60, 60))}
    level = {row: 5.0 * value for row, value in longer.items()}

    def told(share: float) -> Outcome:
        gained = {row: share * longer[row] + 30 * (1 - share) * draw.normal() for row in longer}
        last = {row: level[row] + gained[row] for row in longer}
        first, end = (
            HeldOutLosses(n, dict.fromkeys(longer, 0.0), margins, longer) for n, margins in ((0, level), (9, last))
        )
        return ask("length_bias", seen(objective=DPO, by_row=(first, end)))

    assert found(told(0.8))[0] == "alarm"
    assert told(0.0) is None, "the level it began with follows the length, what it gained does not"
    longer = {row: abs(value) + 1 for row, value in longer.items()}
    assert found(told(0.0)) == ("remark", "lengths_of_rows"), "one side is always the longer one"
    assert ask("length_bias", seen(objective=DPO)) == Unknown("held_out_pairs")


def test_the_rank_correlation_is_spearmans() -> None:
    a = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    rho, low, high = preferences.rank_correlation(a, np.array([2.0, 1, 4, 3, 6, 5, 8, 7]))
    assert rho == pytest.approx(1 - 6 * 8 / (8 * 63))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert low < rho < high <= 1


def test_equal_and_nearly_equal_pairs() -> None:
    equal = LedgerStep("encode", rows_in=100, rows_out=97, dropped={"equal_tokens": 3})
    assert found(ask("identical_pairs", seen(objective=DPO, encoded=equal))) == ("remark", "source_pairs")
    alike = dataclasses.replace(PAIRS, alike=60)
    assert found(ask("identical_pairs", seen(objective=DPO, examples=alike)))[0] == "alarm"
    assert ask("identical_pairs", seen(objective=DPO)) is None


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_dropped_and_cut_rows_and_the_length_that_keeps_them() -> None:
    dropped = LedgerStep("encode", rows_in=100, rows_out=75, dropped={"too_long": 20, "no_stop": 5})
    outcome = ask("rows_dropped", seen(encoded=dropped))
    assert found(outcome) == ("alarm", "max_length")
    assert isinstance(outcome, Finding)
    assert outcome.causes[0].change == ("sft.max_length=192",), "95% of the rows, in steps of 64"
    assert ask("rows_dropped", seen(encoded=LedgerStep("encode", 100, 80, dropped={"too_long": 20}))) is None
    assert found(ask("rows_truncated", seen(encoded=LedgerStep("encode", 100, 100, truncated=30))))[0] == "alarm"
    assert found(ask("rows_truncated", seen(encoded=LedgerStep("encode", 100, 100, truncated=10))))[0] == "remark"


def test_replies_without_a_stop() -> None:
    few = dataclasses.replace(FACTS, stops=70)
    cut = LedgerStep("encode", 100, 100, truncated=30)
    assert found(ask("stop_untrained", seen(examples=few, encoded=cut))) == ("alarm", "max_length")
    assert found(ask("stop_untrained", seen(examples=few))) == ("alarm", "template_without_stop")
    assert ask("stop_untrained", seen()) is None


def test_tokens_that_teach_nothing() -> None:
    assert found(ask("wasted_tokens", seen(each={"supervised_tokens": 9})))[0] == "remark"
    assert ask("wasted_tokens", seen(each={"supervised_tokens": 10})) is None


def test_replies_that_come_again() -> None:
    again = dataclasses.replace(FACTS, repeated_replies=40)
    assert found(ask("duplicates", seen(examples=again))) == ("alarm", "no_dedup")
    meant = seen(examples=again)
    assert meant.training.stage.ledger is not None
    meant.training.stage.ledger.steps.append(LedgerStep("repeat", 60, 100, added=40))
    assert found(ask("duplicates", meant)) == ("remark", "repeated_by_mix")
    assert ask("duplicates", seen()) is None


def test_nothing_held_out() -> None:
    outcome = ask("no_held_out", seen())
    assert isinstance(outcome, Finding)
    assert outcome.causes[0].change == ("prepare.held_out=0.1",)
    assert ask("no_held_out", seen(held=held_out([2.0]))) is None


# ---- models, evaluations, judges -------------------------------------------------------------------------------------

LOSS = Measure("loss", "Held-out loss", "number", "lower", headline=True)
RIGHT = Measure("accuracy", "Right answers", headline=True)


def record(measure: Measure, difference: Difference | None = None, **more: Any) -> TaskRecord:
    given: dict[str, Any] = {
        "key": "k",
        "task": "likelihood",
        "title": "t",
        "area": "held_out",
        "source": Source(None, None, 100),
    }
    results = tuple(Result(model, measure.key, None, 2.0, None, None, 100, 100) for model in ("base", "sft"))
    given |= {
        "models": ("base", "sft"),
        "baseline": "base",
        "confidence": 0.95,
        "resamples": 100,
        "measures": (measure,),
    }
    return TaskRecord(**{**given, "results": results, "differences": (difference,) if difference else (), **more})


def measured(one: TaskRecord, data: str | None = None, told: Sequence[TaskRow] = ()) -> TrainEvidence:
    return seen(measured=(Measured(facts_of("evaluate", one, told), data),))


def test_forgetting_is_measured_on_other_rows() -> None:
    worse = record(LOSS, Difference("base", "sft", "loss", 0.3, 0.2, 0.4, 100))
    assert found(ask("forgetting", measured(worse, "general"))) == ("alarm", "rate_high")
    assert ask("forgetting", measured(worse, "prepare")) == Unknown("other_rows"), "those are its own"
    little = record(LOSS, Difference("base", "sft", "loss", 0.03, 0.02, 0.04, 100))
    assert found(ask("forgetting", measured(little, "general")))[0] == "remark"
    unsure = record(LOSS, Difference("base", "sft", "loss", 0.3, -0.2, 0.8, 100))
    assert ask("forgetting", measured(unsure, "general")) is None
    wrong = Difference("base", "sft", "accuracy", -0.2, -0.3, -0.1, 100)
    assert found(ask("forgetting", measured(record(RIGHT, wrong, area="reasoning", task="gsm8k"))))[0] == "alarm"
    assert ask("forgetting", seen()) == Unknown("other_rows")


def replies(own: str, base: str, count: int = 12) -> list[TaskRow]:
    return [
        TaskRow(model, str(n), replies=(text,)) for model, text in (("base", base), ("sft", own)) for n in range(count)
    ]


def test_a_model_that_repeats_itself_more_than_its_base() -> None:
    parrot, plain = "a b c d " * 6, "one two three four five six seven eight nine ten"
    prompts = record(RIGHT, area="prompts", task="prompts")
    assert found(ask("output_repeats", measured(prompts, told=replies(parrot, plain))))[0] == "alarm"
    assert ask("output_repeats", measured(prompts, told=replies(plain, plain))) is None
    assert ask("output_repeats", measured(prompts, told=replies(parrot, parrot))) is None, "the base does it too"
    assert ask("output_repeats", measured(prompts, told=replies(parrot, plain, 5))) == Unknown("replies")
    uniform = dataclasses.replace(FACTS, repeated_replies=40)
    taught = dataclasses.replace(measured(prompts, told=replies(parrot, plain)), examples=uniform)
    assert found(ask("output_repeats", taught)) == ("alarm", "uniform_rows")


def test_replies_that_do_not_end() -> None:
    def told(own: int, base: int) -> Outcome:
        lengths = {"base": ReplyLengths(cut=base), "sft": ReplyLengths(cut=own)}
        return ask("never_stops", measured(record(RIGHT, replies=lengths), told=replies("x", "y", 40)))

    assert found(told(30, 4)) == ("alarm", "long_replies")
    assert told(30, 28) is None, "so does the base"
    assert told(8, 0) is None
    assert ask("never_stops", seen()) == Unknown("replies")


def test_an_evaluation_is_too_small_for_what_it_claims() -> None:
    def told(prompts: int, low: float, high: float, detectable: float | None = None) -> Outcome:
        one = Difference("base", "sft", "accuracy", (low + high) / 2, low, high, prompts, detectable=detectable)
        return ask("evaluation_small", EvalEvidence(facts_of("evaluate", record(RIGHT, one))))

    assert found(told(8, 0.1, 0.5))[0] == "alarm"
    assert found(told(8, -0.1, 0.5))[0] == "remark"
    assert told(100, 0.1, 0.5) is None
    assert found(told(100, -0.1, 0.14, 0.2))[0] == "remark", "only 20 points would have been seen"
    assert told(100, -0.01, 0.03, 0.05) is None
    needed = told(100, -0.1, 0.14, 0.2)
    assert isinstance(needed, Finding)
    assert needed.numbers["needed"] == 10_000, "ten times smaller a difference takes a hundred times as many"


def test_a_judge_is_weighed_by_the_best_evidence_there_is() -> None:
    assert found(ask("judge_coin", JudgeEvidence("j", held_out=wilson(22, 40), pairs=40))) == (
        "alarm",
        "weak_reward",
    )
    assert ask("judge_coin", JudgeEvidence("j", held_out=wilson(35, 40), pairs=40)) is None
    assert found(ask("judge_coin", JudgeEvidence("j", held_out=wilson(6, 10), pairs=10))) == ("alarm", "few_labels")
    assert ask("judge_coin", JudgeEvidence("j")) == Unknown("labels")


# ---- all of them -----------------------------------------------------------------------------------------------------


NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)
METRICS = st.dictionaries(
    st.sampled_from(
        ["kl", "logps/chosen", "logps/rejected", "lengths/chosen", "lengths/rejected"]
        + [f"rewards/{name}" for name in ("margins", "accuracies", "saturated", "chosen", "rejected")]
    ),
    NUMBERS,
)
MAYBE = st.none() | st.integers(0, 10**6)
STEPS = st.builds(
    StepRecord, step=st.integers(1, 99), loss=NUMBERS, grad_norm=st.none() | NUMBERS, epoch=st.none() | NUMBERS,
    tokens=MAYBE, supervised_tokens=MAYBE, metrics=METRICS,
)  # fmt: skip
HELD = st.builds(HeldOutRecord, step=st.integers(0, 99), loss=NUMBERS, rows=MAYBE, metrics=METRICS)
BY_ROW = st.dictionaries(st.sampled_from("abc"), NUMBERS)
ROWS = st.builds(
    HeldOutLosses, st.integers(0, 99), BY_ROW, BY_ROW, st.dictionaries(st.sampled_from("abc"), st.integers(-9, 9))
)
SETTING = (
    st.none()
    | NUMBERS
    | st.text(max_size=3)
    | st.dictionaries(st.sampled_from(["name", "rank"]), st.just("lora") | st.integers())
)
SETTINGS = st.dictionaries(
    st.sampled_from(["learning_rate", "epochs", "adapter", "keep", "data", "warmup", "max_grad_norm"]), SETTING
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of infinite numbers
@given(
    st.lists(STEPS, max_size=80),
    st.lists(HELD, max_size=6),
    st.lists(ROWS, max_size=5),
    SETTINGS,
    st.sampled_from([SFT, DPO, SimpoObjective()]),
)
def test_no_rule_breaks_on_any_record(logged: Any, held: Any, by: Any, settings: Any, objective: BaseObjective) -> None:
    evidence = seen(held=tuple(held), objective=objective, settings=settings, by_row=tuple(by))
    evidence = dataclasses.replace(evidence, training=dataclasses.replace(evidence.training, steps=tuple(logged)))
    for name, rule in OF_TRAINING.items():
        if rule.applies(evidence):
            ask(name, evidence)


def test_the_page_of_rules_is_up_to_date() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert markdown() in page, "put the table of python -m posttrain.doctor.reference there"
    assert all(causes_of(rule.examine) for rule in RULES.values())
