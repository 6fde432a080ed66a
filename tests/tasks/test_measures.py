"""From values to a record: means, paired differences and accounting, worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from posttrain.generate.engine import Failure, Sampling, Usage
from posttrain.stats.intervals import IntervalSettings, mcnemar, wilson
from posttrain.tasks.base import Answer, Findings, Task, Value
from posttrain.tasks.gsm8k import Gsm8kBenchmark
from posttrain.tasks.measures import difference_of, differences, mean_of, results
from posttrain.tasks.measuring import reply_lengths, reply_rows, task_record
from posttrain.tasks.records import Account, Difference, Measure, ReplyLengths, Source, TaskRecord

SETTINGS = IntervalSettings(resamples=2_000)


def between(a, b) -> Difference | None:
    return difference_of(a, b, SETTINGS, models=("a", "b"), measure="accuracy")


ACCURACY = Measure("accuracy", "Accuracy", "share", "higher", "Right answers.", headline=True)


def test_a_share_has_wilsons_interval_also_at_the_edge() -> None:
    found = mean_of({f"q{k}": [1.0] for k in range(10)}, SETTINGS)
    assert found == wilson(10, 10)
    assert found.low < 0.8  # ten right of ten is not certainty


def test_values_of_one_task_are_one_piece_of_evidence() -> None:
    """Copying every value ten times within its task leaves the interval as it is."""
    once = {f"q{k}": [float(k)] for k in range(12)}
    ten = {task: values * 10 for task, values in once.items()}
    assert mean_of(once, SETTINGS) == pytest.approx(mean_of(ten, SETTINGS))


def test_a_difference_is_paired_and_tested_exactly() -> None:
    a = {f"q{k}": [0.0] for k in range(6)} | {"both": [1.0], "only a has it": [1.0]}
    b = {f"q{k}": [1.0] for k in range(6)} | {"both": [1.0], "only b has it": [0.0]}
    found = between(a, b)
    assert found is not None
    assert (found.prompts, found.test) == (7, "mcnemar")
    assert found.difference == pytest.approx(6 / 7)
    assert found.p_value == mcnemar(0, 6) == 2 / 64


def test_turns_are_compared_turn_by_turn_and_a_lost_turn_by_means() -> None:
    a = {"q1": [4.0, 6.0], "q2": [5.0, 5.0]}
    b = {"q1": [5.0, 9.0], "q2": [8.0]}
    found = between(a, b)
    assert found is not None
    assert found.difference == pytest.approx((1 + 3 + 3) / 3)
    assert found.test == "permutation"
    spread = np.std([2.0, 3.0], ddof=1)  # of the tasks' mean differences
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * spread / math.sqrt(2), rel=1e-5)


def test_nothing_in_common_is_no_difference() -> None:
    assert between({"a": [1.0]}, {"b": [1.0]}) is None


def test_holm_counts_all_headline_tests_together() -> None:
    other = replace(ACCURACY, key="other", headline=False)
    values = [
        Value(model, f"q{k}", key, float(model != "base" and k < right))
        for key in ("accuracy", "other")
        for model, right in (("base", 0), ("sft", 8), ("dpo", 6))
        for k in range(8)
    ]
    found = {
        (d.measure, d.b): d for d in differences(Findings(values), (ACCURACY, other), ["base", "sft", "dpo"], SETTINGS)
    }
    smaller, larger = mcnemar(0, 8), mcnemar(0, 6)
    for measure in ("accuracy", "other"):
        assert found[measure, "sft"].adjusted_p == pytest.approx(2 * smaller)
        assert found[measure, "dpo"].adjusted_p == pytest.approx(max(2 * smaller, larger))


def test_results_have_a_line_a_category() -> None:
    values = [Value("m", "q1", "accuracy", 1.0, "math"), Value("m", "q2", "accuracy", 0.0, "code")]
    found = {r.category: (r.estimate, r.prompts) for r in results(Findings(values), [ACCURACY], ["m"], SETTINGS)}
    assert found == {None: (0.5, 2), "math": (1.0, 1), "code": (0.0, 1)}


TASK = Task("q1", ("Hello?",), Sampling())
GOOD = Answer(TASK, 0, ("Hi.",), ("stop",), (Usage(3, 2),))
CUT = Answer(TASK, 1, ("Hi, I am",), ("length",), (Usage(3, 4),))
LOST = Answer(TASK, 2, (), (), (), Failure("timeout", "too slow", 3))


def test_the_record_holds_every_answer_or_its_reason() -> None:
    counts = Account(asked=3, answered=2, measured=2, dropped={"timeout": 1})
    findings = Findings([Value("m", "q1", "accuracy", 1.0)] * 2, {"m": counts}, notes=["rough"])
    record = recorded(findings)
    assert record.accounting["m"] == counts
    assert record.replies["m"] == ReplyLengths(3.0, 3.0, pytest.approx(3.9), 5.5, cut=1)  # type: ignore[arg-type]
    assert record.notes == ("rough",)
    with pytest.raises(AssertionError, match="without a reason"):
        recorded(Findings([], {"m": replace(counts, dropped={})}))


def recorded(findings: Findings) -> TaskRecord:
    benchmark = Gsm8kBenchmark(name="gsm8k", path="x")
    return task_record(benchmark, "x", Source(None, None, 1), findings, {"m": [GOOD, CUT, LOST]}, SETTINGS)


def test_rows_hold_replies_with_what_was_found() -> None:
    findings = Findings(reply_values={("m", "q1", 0): {"accuracy": 1.0}})
    good, lost = reply_rows({"m": [GOOD, LOST]}, findings)
    assert (good.replies, good.tokens, good.values, good.failure) == (("Hi.",), 2, {"accuracy": 1.0}, None)
    assert (lost.replies, lost.values, lost.failure) == ((), {}, "timeout: too slow")


def test_no_replies_no_lengths() -> None:
    assert reply_lengths([LOST]).tokens_mean is None
