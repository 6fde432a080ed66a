"""What a report says of measurements: verdicts by interval and test, contests, gaps, and what follows from the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import RunDir, write_text
from posttrain.report import numbers
from posttrain.report.reading import Gap, Stage
from posttrain.report.values import Answer as Shown
from posttrain.report.values import Better, Card, Number
from posttrain.stages import KINDS
from posttrain.stages.page import read_run, write_report
from posttrain.tasks.browser import chosen, fair_shares
from posttrain.tasks.facts import TaskFacts, difference_verdict, outcome_of, read_stage
from posttrain.tasks.records import Difference, Measure
from posttrain.tasks.section import lines, task_section

Edit = Callable[[Path, Callable[[Any], None]], None]


def stage_of(run: RunDir, name: str) -> Stage:
    return next(stage for stage in read_run(run, KINDS).stages if stage.name == name)


def measured(run: RunDir, stage: str, key: str) -> TaskFacts:
    return next(one for one in read_stage(stage_of(run, stage), []) if one.record.key == key)


def gaps_of(run: RunDir) -> list[Gap]:
    return list(read_run(run, KINDS).gaps)


# ---- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "p_value", "adjusted_p", "better", "verdict"),
    [
        (0.1, 0.3, None, None, "higher", "improved"),
        (-0.3, -0.1, None, None, "higher", "worse"),
        (0.0, 0.3, None, None, "higher", "not shown"),
        (None, None, None, None, "higher", "not shown"),
        (-0.3, -0.1, None, None, "lower", "improved"),
        (0.1, 0.3, None, None, "neither", "differs"),
        # 4 gained and 0 lost of 24: the interval starts at 1/24, but McNemar's p is 2 * 0.5**4
        (1 / 24, 8 / 24, 0.125, None, "higher", "not shown"),
        (0.05, 0.4, 0.01, None, "higher", "improved"),
        (0.05, 0.4, 0.01, 0.2, "higher", "not shown"),
        (-0.1, 0.4, 0.01, 0.01, "higher", "not shown"),
    ],
)
def test_a_verdict_needs_the_interval_and_the_test_where_there_is_one(
    low: float | None, high: float | None, p_value: float | None, adjusted_p: float | None, better: Better, verdict: str
) -> None:
    measure = Measure("m", "M", "share", better, "")
    one = Difference("base", "sft", "m", 0.1, low, high, prompts=24, p_value=p_value, adjusted_p=adjusted_p)
    assert difference_verdict(one, measure, 0.95) == verdict


@pytest.mark.parametrize(
    ("first", "last", "alone", "outcome"),
    [
        (True, True, False, "both right"),
        (False, True, False, "gained"),
        (True, False, False, "lost"),
        (False, False, False, "both wrong"),
        (None, True, False, "not checked"),
        (True, None, False, "not checked"),
        (None, True, True, "right"),
        (None, False, True, "wrong"),
    ],
)
def test_outcome_compares_first_and_last(first: bool | None, last: bool | None, alone: bool, outcome: str) -> None:
    assert outcome_of(first, last, alone=alone) == outcome


def test_contests_have_the_later_model_first_and_a_claim_has_its_adjusted_test(benchmark_run: RunDir) -> None:
    facts = measured(benchmark_run, "benchmarks", "arena")
    place = list(facts.record.models).index
    assert all(place(one.model) > place(one.against) for one in facts.contests)
    written = {frozenset((one.model_a, one.model_b)): one for one in facts.record.win_rates}
    for one in facts.contests:
        source = written[frozenset((one.model, one.against))]
        assert {one.wins, one.losses} == {source.wins, source.losses}
        assert one.wins == (source.wins if source.model_a == one.model else source.losses)
        assert one.adjusted_p >= one.p_value
        assert one.rate is not None
        if one.verdict != "not shown":
            assert one.adjusted_p < 0.05
            assert not one.rate.low <= 0.5 <= one.rate.high


# ---- what a section says -------------------------------------------------------------------------------------------


def test_nothing_is_claimed_where_nothing_is_shown(run: RunDir, edit_json: Edit) -> None:
    assert measured(run, "evaluate", "prompts").differences[0].verdict == "not shown"
    edit_json(run.path / "evaluate/likelihood.json", lambda v: v["differences"][0].update(low=-0.1, high=0.1))
    page = read_run(run, KINDS)
    for one in (*page.findings, *page.headlines):
        assert one.verdict in (None, "not shown")
    assert page.summary.count("no difference shown") == 2


@pytest.mark.parametrize(("rows", "rough"), [(98, False), (12, True)])
def test_an_interval_from_few_rows_is_called_rough(run: RunDir, edit_json: Edit, rows: int, rough: bool) -> None:
    edit_json(run.path / "evaluate/likelihood.json", lambda v: v["differences"][0].update(prompts=rows))
    found = task_section(measured(run, "evaluate", "likelihood")).findings[0]
    assert ("rough" in found.text) is rough


def test_an_interval_of_one_or_two_rows_is_not_given(run: RunDir, edit_json: Edit) -> None:
    change = {"difference": -0.25, "low": -1.0, "high": 1.0, "prompts": 2}
    edit_json(run.path / "evaluate/likelihood.json", lambda v: v["differences"][0].update(change))
    page = read_run(run, KINDS)
    texts = [page.summary, *(one.text for one in page.findings if "Held-out loss" in one.topic)]
    assert texts[1:]
    assert all("1.000" not in text and "too few for an interval" in text for text in texts)


def test_a_value_that_is_so_by_definition_has_no_interval(preference_run: RunDir) -> None:
    facts = measured(preference_run, "prefer", "preferences")
    assert facts.results["sft", "reward_accuracy", None].by_definition
    line = next(line for line in lines([facts]) if line.label.text == "Reward accuracy")
    cell = line.cells["sft"]
    assert isinstance(cell, Number)
    assert (cell.value, cell.low, cell.note) == (0.5, None, "by definition")


def test_a_cost_is_summed_only_where_every_part_is_known(benchmark_run: RunDir) -> None:
    chat, form = (measured(benchmark_run, "benchmarks", key) for key in ("chat", "form"))
    models = set(chat.record.models)
    read = {line.label.text: line for line in lines([chat, form])}["Tokens read"]
    assert set(read.cells) == models
    unknown = {name: replace(cost, prompt_tokens=None) for name, cost in form.record.cost.items() if name == "sft"}
    part = replace(form, record=replace(form.record, cost={**form.record.cost, **unknown}))
    read = {line.label.text: line for line in lines([chat, part])}["Tokens read"]
    assert set(read.cells) == models - {"sft"}


def test_a_judge_that_often_gives_no_verdict_is_named(benchmark_run: RunDir) -> None:
    # the judge of alpaca leaves one of five calls unread, that of arena one of fifty
    names = {key: measured(benchmark_run, "benchmarks", key).unread_judges for key in ("alpaca", "arena")}
    assert [bool(judges) for judges in names.values()] == [True, False]
    warned = [one for one in read_run(benchmark_run, KINDS).findings if one.topic == "Warning"]
    assert any("AlpacaEval" in one.text for one in warned)


def test_one_model_alone_is_described_and_not_judged(run: RunDir, preference_eval: Callable[..., None]) -> None:
    preference_eval(run, {"sft": 0.0})
    section = task_section(measured(run, "prefer", "preferences"))
    assert section.headlines == section.findings == ()
    assert "sft" in section.summary
    assert "is the baseline" not in repr(section)


def test_every_measurement_is_on_the_page_in_markdown_and_in_the_summary(benchmark_run: RunDir) -> None:
    page = write_report(benchmark_run, KINDS).read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    markdown = (benchmark_run.path / "report/report.md").read_text(encoding="utf-8")
    summary = json.loads((benchmark_run.path / "summary.json").read_text(encoding="utf-8"))
    found = {one["key"]: one for one in summary["records"]["benchmark"]}
    facts = read_stage(stage_of(benchmark_run, "benchmarks"), [])
    assert list(found) == [one.record.key for one in facts]
    for one in facts:
        units = {measure.key: measure.unit for measure in one.record.measures}
        for result in one.record.results:
            assert numbers.in_unit(result.estimate, units[result.measure]) in text
        for difference in one.differences:
            ends = numbers.signed_in_unit(difference.record.difference, units[difference.record.measure])
            assert ends in text
            assert ends in markdown
    assert page.count("<script") == 1, "replies of models are text"
    assert not gaps_of(benchmark_run)


# ---- files that are absent, damaged or do not agree ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["benchmarks/form.json", "benchmarks/form.rows.jsonl"])
def test_a_benchmark_without_a_file_is_a_gap(benchmark_run: RunDir, name: str) -> None:
    path = benchmark_run.path / "benchmarks" / name
    path.write_text("{\n")
    assert [(gap.stage, gap.kind) for gap in gaps_of(benchmark_run)] == [("benchmarks", "damaged")]
    path.unlink()
    assert [(gap.stage, gap.kind) for gap in gaps_of(benchmark_run)] == [("benchmarks", "missing")]


def test_a_record_that_its_rows_contradict_is_a_gap(run: RunDir, edit_json: Edit) -> None:
    path = run.path / "evaluate/prompts.rows.jsonl"
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(path, "".join(rows[:-1]))
    (gap,) = gaps_of(run)
    assert gap.kind == "damaged"
    assert "counts 18 answers of sft, its rows file holds 17" in gap.text
    write_text(path, "".join(rows))
    edit_json(run.path / "evaluate/prompts.json", lambda v: v["accounting"]["base"].update(measured=1))
    (gap,) = gaps_of(run)
    assert "accounts for" in gap.text


# ---- which replies are shown ---------------------------------------------------------------------------------------


def test_room_is_shared_fairly_and_categories_take_turns() -> None:
    assert fair_shares([100, 10, 100], 150) == [70, 10, 70]
    assert fair_shares([5, 5], 100) == [5, 5]
    deck = [
        Card(name=str(n), turns=("q" * 50,), answers=(Shown("m", ("a" * 50,)),), group="g", category="abb"[n % 3])
        for n in range(6)
    ]
    few = [chosen(deck, room) for room in range(0, 20_000, 50)]
    two = next(kept for kept in few if len(kept) == 2)
    assert {card.category for card in two} == {"a", "b"}
    assert few[-1] == tuple(deck)
