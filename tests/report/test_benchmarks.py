"""Reading the files of benchmarks, and what follows from them: verdicts, contests, the table of all models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import Ledger, RunDir
from posttrain.report.benchmark_records import (
    Account,
    BenchmarkRecord,
    BenchmarkRow,
    Calls,
    Difference,
    Fingerprint,
    JudgeEntry,
    JudgeRecord,
    Measure,
    Result,
    Source,
    WinRates,
)
from posttrain.report.benchmarks import BenchmarkFacts, benchmark_facts, contradiction
from posttrain.report.facts import EvalFacts, read_evaluation
from posttrain.report.records import Estimate
from posttrain.report.values import Line
from posttrain.report.verdicts import measure_verdict
from posttrain.stages import KINDS
from posttrain.stages.eval import weak_judges
from posttrain.stages.page import Run
from posttrain.stages.page import read_run as read_kinds
from posttrain.tasks.benchmark_section import benchmark_section

Edit = Callable[[Path, Callable[[Any], None]], None]


def record(**values: Any) -> BenchmarkRecord:
    """Two models, one measure."""
    common: dict[str, Any] = {
        "schema": 1,
        "key": "maths",
        "benchmark": "gsm8k",
        "title": "GSM8K",
        "area": "reasoning",
        "source": Source("test.jsonl", "ab" * 32, 80),
        "models": ("base", "sft"),
        "baseline": "base",
        "confidence": 0.95,
        "measures": (Measure("accuracy", "Right answers", "share", "higher", headline=True),),
        "results": (
            Result("base", "accuracy", None, 0.25, 0.17, 0.35, 80, 80),
            Result("sft", "accuracy", None, 0.5, 0.39, 0.61, 80, 80),
        ),
    }
    return BenchmarkRecord(**(common | values))


def difference(**values: Any) -> Difference:
    common: dict[str, Any] = {
        "a": "base",
        "b": "sft",
        "measure": "accuracy",
        "difference": 0.25,
        "low": 0.1,
        "high": 0.4,
    }
    common |= {"p_value": 0.01, "adjusted_p": 0.02, "test": "mcnemar", "detectable": 0.15, "prompts": 80}
    return Difference(**(common | values))


def wins(a: str, b: str, rate: tuple[float, float, float] | None, p: float | None, **values: int) -> WinRates:
    counts = {"wins": 30, "losses": 10, "ties": 4, "missing": 2} | values
    return WinRates(a, b, **counts, win_rate=None, adjusted=None if rate is None else Estimate(*rate), p_value=p)


def read_run(run: RunDir) -> Run:
    return read_kinds(run, KINDS)


def evaluation(run: RunDir, name: str = "benchmarks") -> EvalFacts:
    return read_evaluation(next(stage for stage in read_run(run).stages if stage.name == name), [])


def one(run: RunDir, key: str) -> BenchmarkFacts:
    return next(b for b in evaluation(run).benchmarks if b.record.key == key)


def artefact(run: RunDir, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / f"benchmarks/benchmarks/{key}.json").read_text(encoding="utf-8"))
    return found


# ---- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "p", "better", "expected"),
    [
        (0.1, 0.4, 0.02, "higher", "improved"),
        (0.1, 0.4, 0.02, "lower", "worse"),
        (-0.4, -0.1, 0.02, "lower", "improved"),
        (-0.4, -0.1, 0.02, "higher", "worse"),
        (0.1, 0.4, 0.02, "neither", "differs"),
        (-0.4, -0.1, 0.02, "neither", "differs"),
        (0.1, 0.4, 0.051, "higher", "not shown"),
        (-0.1, 0.4, 0.001, "higher", "not shown"),
        (0.0, 0.4, 0.001, "neither", "not shown"),
    ],
)
def test_a_difference_needs_its_interval_and_its_adjusted_test(
    low: float, high: float, p: float, better: Any, expected: str
) -> None:
    assert measure_verdict(low, high, p, 0.95, better) == expected


def test_the_adjusted_p_decides_and_no_test_shows_nothing() -> None:
    verdict = lambda **values: benchmark_facts("e", record(differences=(difference(**values),))).differences[0].verdict  # noqa: E731
    assert verdict() == "improved"
    assert verdict(p_value=0.001, adjusted_p=0.2) == "not shown"
    assert verdict(p_value=None, adjusted_p=None) == "not shown"
    assert verdict(low=None) == "not shown"


def test_a_difference_of_an_unknown_measure_is_left_out() -> None:
    assert benchmark_facts("e", record(differences=(difference(measure="other"),))).differences == ()


def test_contests_stand_with_the_later_model_first() -> None:
    found = benchmark_facts("e", record(win_rates=(wins("base", "sft", (0.3, 0.2, 0.4), 0.01),))).contests[0]
    assert (found.model, found.against) == ("sft", "base")
    assert (found.wins, found.losses, found.ties, found.missing, found.judged) == (10, 30, 4, 2, 44)
    assert found.rate == Estimate(0.7, 0.6, 0.8)
    assert found.verdict == "improved"
    other = benchmark_facts("e", record(win_rates=(wins("sft", "base", (0.3, 0.2, 0.4), 0.01),))).contests[0]
    assert (other.model, other.rate, other.verdict) == ("sft", Estimate(0.3, 0.2, 0.4), "worse")
    outside = benchmark_facts("e", record(win_rates=(wins("sft", "gpt-4", (0.3, 0.2, 0.4), 0.01),))).contests[0]
    assert (outside.model, outside.against) == ("sft", "gpt-4")


def test_contests_are_adjusted_over_all_of_them() -> None:
    rates = ((0.7, 0.6, 0.8), 0.01), ((0.6, 0.51, 0.7), 0.03), (None, None), ((0.6, 0.51, 0.7), 0.04)
    found = benchmark_facts("e", record(win_rates=tuple(wins("sft", "base", rate, p) for rate, p in rates))).contests
    # Holm, by hand: 3 * 0.01, 2 * 0.03, 1 * 0.04 raised to the one before
    assert [c.adjusted_p for c in found] == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert [c.verdict for c in found] == ["improved", "not shown", "not shown", "not shown"]


def test_an_interval_across_one_half_is_no_win() -> None:
    assert (
        benchmark_facts("e", record(win_rates=(wins("sft", "base", (0.6, 0.49, 0.7), 0.01),))).contests[0].verdict
        == "not shown"
    )


def test_the_recipe_s_name_stands_where_the_title_does_not_tell(benchmark_run: RunDir, edit_json: Edit) -> None:
    assert [b.name for b in evaluation(benchmark_run).benchmarks][:3] == ["MT-Bench", "Arena", "AlpacaEval 2"]
    edit_json(benchmark_run.path / "benchmarks/benchmarks/arena.json", lambda v: v.update(title="MT-Bench"))
    assert [b.name for b in evaluation(benchmark_run).benchmarks][:3] == [
        "MT-Bench (chat)",
        "MT-Bench (arena)",
        "AlpacaEval 2",
    ]


def test_without_a_headline_the_first_measure_is_one() -> None:
    quiet = tuple(replace(measure, headline=False) for measure in record().measures)
    assert [m.key for m in benchmark_facts("e", record(measures=quiet)).headlines] == ["accuracy"]
    assert benchmark_facts("e", record(results=())).headlines == ()


# ---- reading -------------------------------------------------------------------------------------------------------


def test_a_run_with_benchmarks_has_no_gaps(benchmark_run: RunDir) -> None:
    facts = read_run(benchmark_run)
    assert (facts.status, facts.gaps) == ("complete", ())
    found = evaluation(benchmark_run)
    assert found.models == ("base", "sft", "dpo", "simpo")
    assert [b.record.key for b in found.benchmarks] == ["chat", "arena", "alpaca", "form", "gsm8k", "safety", "variety"]
    assert [b.record.source.prompts for b in found.benchmarks] == [24, 30, 20, 40, 30, 80, 8]
    assert all(len(b.rows) == sum(a.asked for a in b.record.accounting.values()) for b in found.benchmarks)
    assert (found.likelihood, found.preferences, found.prompts) == ({}, None, ())


@pytest.mark.parametrize(("name", "lost"), [("chat.json", "benchmark chat"), ("chat.rows.jsonl", "replies to chat")])
def test_a_missing_or_damaged_file_is_named_once(benchmark_run: RunDir, name: str, lost: str) -> None:
    path = benchmark_run.path / "benchmarks/benchmarks" / name
    path.write_text('{"models": [}\n')
    (gap,) = read_run(benchmark_run).gaps
    assert gap.kind == "damaged"
    path.unlink()
    (gap,) = read_run(benchmark_run).gaps
    assert gap.kind == "missing"
    assert name in gap.text
    assert lost in gap.text
    assert len(evaluation(benchmark_run).benchmarks) == (6 if name == "chat.json" else 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(schema=2), "schema 2, this version reads 1"),
        (lambda v: v.update(baseline="other"), "the baseline other is none of the models"),
        (lambda v: v["measures"][0].update(better="up"), "measures.0.better"),
        (lambda v: v["results"][0].pop("estimate"), "results.0.estimate"),
        (lambda v: v["ratings"].update(wins=[[0.0]]), "wins is not 4 x 4"),
    ],
)
def test_a_record_that_does_not_fit_is_named(benchmark_run: RunDir, edit_json: Edit, change: Any, said: str) -> None:
    edit_json(benchmark_run.path / "benchmarks/benchmarks/arena.json", change)
    (gap,) = read_run(benchmark_run).gaps
    assert gap.kind == "damaged"
    assert said in gap.text


def test_a_benchmark_that_is_not_in_the_configuration_is_read_too(benchmark_run: RunDir, edit_json: Edit) -> None:
    edit_json(benchmark_run.path / "benchmarks/manifest.json", lambda m: m["config"].pop("benchmarks"))
    assert sorted(b.record.key for b in evaluation(benchmark_run).benchmarks)[0] == "alpaca"
    assert read_run(benchmark_run).gaps == ()


def test_while_a_stage_runs_its_benchmarks_are_not_missing(benchmark_run: RunDir, edit_json: Edit) -> None:
    edit_json(benchmark_run.path / "benchmarks/manifest.json", lambda m: m.update(status="running"))
    shutil.rmtree(benchmark_run.path / "benchmarks/benchmarks")
    (gap,) = read_run(benchmark_run).gaps
    assert gap.kind == "running"


def test_accounts_that_do_not_sum_up_or_do_not_fit_the_rows_are_reported(
    benchmark_run: RunDir, edit_json: Edit
) -> None:
    path = benchmark_run.path / "benchmarks/benchmarks/gsm8k.json"
    edit_json(path, lambda v: v["accounting"]["base"].update(measured=29))
    (gap,) = read_run(benchmark_run).gaps
    assert "asked base for 30 answers and accounts for 29" in gap.text
    edit_json(path, lambda v: v["accounting"]["base"].update(measured=29, asked=29))
    (gap,) = read_run(benchmark_run).gaps
    assert "counts 29 answers of base, its rows file holds 30" in gap.text


def test_no_contradiction_of_equal_numbers() -> None:
    row = BenchmarkRow("base", "1", 0, ("?",), ("!",))
    assert contradiction(record(accounting={"base": Account(1, 1, 1)}), [row]) is None
    assert contradiction(record(accounting={"base": Account(1, 1, 0, {"timeout": 1})}), [row]) is None
    assert contradiction(record(accounting={"base": Account(1, 1, 1)}), [row, row]) is not None


# ---- all models at a glance ----------------------------------------------------------------------------------------


def line(run: RunDir, label: str, note: str = "") -> Line:
    return next(one for one in read_run(run).lines if one.label.text == label and note in one.label.note)


def test_the_lines_hold_the_numbers_of_the_files(benchmark_run: RunDir) -> None:
    assert list(dict.fromkeys(one.group for one in read_run(benchmark_run).lines)) == [
        "Helpfulness", "Following instructions", "Reasoning", "Safety, both ways", "Diversity", "Held-out rows",
        "Checked answers", "Length of replies", "Cost of the benchmarks",
    ]  # fmt: skip
    for key, label in (("safety", "Refusal of safe prompts"), ("chat", "Mean rating"), ("gsm8k", "Right answers")):
        file = artefact(benchmark_run, key)
        (measure,) = (m for m in file["measures"] if m["label"] == label)
        found = line(benchmark_run, label, file["title"])
        assert (found.label.better, found.baseline) == (measure["better"], "base")
        results = {r["model"]: r for r in file["results"] if r["measure"] == measure["key"] and r["category"] is None}
        assert {m: (c.value, c.low, c.high, c.unit) for m, c in found.cells.items()} == {
            m: (r["estimate"], r["low"], r["high"], measure["unit"]) for m, r in results.items()
        }
        differences = {d["b"]: d for d in file["differences"] if d["measure"] == measure["key"]}
        for model, cell in found.cells.items():
            if model == "base":
                assert cell.verdict is None
                continue
            d = differences[model]
            decided = (d["low"] > 0 or d["high"] < 0) and d["adjusted_p"] < 0.05
            good = (d["difference"] > 0) is (measure["better"] == "higher")
            assert cell.verdict == (("improved" if good else "worse") if decided else "not shown")


def test_a_win_rate_against_oneself_is_by_definition(benchmark_run: RunDir) -> None:
    base = line(benchmark_run, "Win rate against the first model").cells["base"]
    assert (base.value, base.low, base.note) == (0.5, None, "by definition")


def test_a_half_by_ties_is_not_by_definition() -> None:
    measure = Measure("win_rate", "Win rate", "share", "higher", headline=True)
    half = Result("base", "win_rate", None, 0.5, 0.5, 0.5, 9, 9)
    tied = record(measures=(measure,), results=(half,), win_rates=(wins("sft", "base", None, 1.0),))
    assert benchmark_facts("e", tied).by_definition(half)
    assert not benchmark_facts("e", replace(tied, win_rates=())).by_definition(half)
    everyone = replace(tied, win_rates=(*tied.win_rates, wins("dpo", "sft", None, 1.0)))
    assert not benchmark_facts("e", everyone).by_definition(half)
    assert not benchmark_facts("e", tied).by_definition(replace(half, low=0.4))


def test_costs_are_summed_only_where_all_are_known(benchmark_run: RunDir, edit_json: Edit) -> None:
    keys = ("chat", "arena", "alpaca", "form", "gsm8k", "safety", "variety")
    expected = sum(artefact(benchmark_run, key)["cost"]["dpo"]["completion_tokens"] for key in keys)
    assert line(benchmark_run, "Tokens written").cells["dpo"].value == expected
    assert line(benchmark_run, "Time of the replies").cells["dpo"].value == pytest.approx(7 * 3.5)
    edit_json(benchmark_run.path / "benchmarks/benchmarks/chat.json", lambda v: v["cost"]["dpo"].update(seconds=None))
    assert "dpo" not in line(benchmark_run, "Time of the replies").cells


def test_every_headline_of_quality_has_a_line(benchmark_run: RunDir, preference_run: RunDir) -> None:
    for run in map(read_run, (benchmark_run, preference_run)):
        said = " ".join(f"{one.label.text} {one.label.note}" for one in run.lines)
        words = {"Held-out loss": "Loss", "Checked answers": "fixed prompts", "Preference accuracy": "Reward accuracy"}
        words["Preference margin"] = "Reward margin"
        for headline in run.headlines:
            if headline.quality:
                assert words.get(headline.label, headline.label) in said


# ---- what is claimed -----------------------------------------------------------------------------------------------


def section_of(**values: Any) -> Any:
    return benchmark_section(benchmark_facts("evaluate", record(**values)), ("base", "sft"), several=False)


def test_what_is_shown_is_said_with_its_numbers() -> None:
    (finding,) = section_of(differences=(difference(),)).findings
    assert (finding.topic, finding.verdict) == ("GSM8K", "improved")
    numbers = "+25.0 points, 95% interval +10.0 to +40.0"
    assert finding.text == f"Right answers, compared with base: sft {numbers}, adjusted p = 0.020, n = 80."
    (headline,) = section_of(differences=(difference(),)).headlines
    assert (headline.value, headline.verdict, headline.change.value) == ("25% → 50%", "improved", 0.25)
    assert section_of(differences=(difference(adjusted_p=0.5),)).findings == ()
    few = section_of(differences=(difference(prompts=12),)).findings[0].text
    assert few.endswith("With only 12 prompts the interval is rough.")
    two = section_of(differences=(difference(prompts=2),)).headlines[0]
    assert two.note.endswith("of 2 prompts only")


def test_a_win_against_another_model_than_the_baseline_is_a_finding() -> None:
    rates = (wins("sft", "dpo", (0.7, 0.6, 0.8), 0.001), wins("sft", "base", (0.7, 0.6, 0.8), 0.001))
    (finding,) = section_of(win_rates=rates).findings
    assert finding.text.startswith(
        "sft wins more often than it loses against dpo: win rate 70.0% (60.0% to 80.0%) over 44 questions"
    )


@pytest.mark.parametrize(
    ("engine", "judge", "right", "warned"),
    [
        ("reward", "runs/{run}/dpo", 10, True),
        ("reward", "runs/{run}/dpo", 15, False),  # Wilson's interval of 15 of 18 starts at 0.61
        ("openai", "runs/{run}/dpo", 10, False),
        ("reward", "runs/another/dpo", 10, False),
        ("reward", "runs/another-{run}/dpo", 10, False),
    ],
)
def test_a_reward_judge_no_better_than_a_coin_is_named(
    preference_run: RunDir, engine: str, judge: str, right: int, warned: bool
) -> None:
    metrics = preference_run.path / "dpo" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    held_out = [line for line in lines if line["split"] == "held_out"]
    held_out[-1] |= {"rewards/accuracies": right / 18, "rows": 18}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    name = judge.format(run=preference_run.path.name)
    entry = JudgeEntry(name, Fingerprint(engine, name), Calls(10, 10, 10, {}, {}))
    facts = benchmark_facts("evaluate", record(judge=JudgeRecord((entry,), "en")))
    found = weak_judges(replace(evaluation(preference_run, "evaluate"), benchmarks=(facts,)))
    assert [one.stage for one in found] == (["dpo"] if warned else [])
    if warned:
        # 10 of 18 by hand: (10 + 1.96^2 / 2) / (18 + 1.96^2) = 0.546, half width 0.209
        assert "in 55.6% of 18 held-out pairs (95% interval 34% to 75%)" in found[0].text


@pytest.mark.parametrize(("parsed", "warned"), [(90, False), (89, True), (0, True)])
def test_a_judge_that_can_not_be_read_is_named(parsed: int, warned: bool) -> None:
    calls = Calls(100, 95, parsed, {"parse": 95 - parsed, "transport": 5}, {"timeout": 5})
    found = section_of(judge=JudgeRecord((JudgeEntry("tiny", Fingerprint("openai", "tiny"), calls),), "en")).findings
    assert [one.topic for one in found] == (["Warning"] if warned else [])
    if parsed == 89:
        said = "11.0% of the calls to tiny gave no verdict (parse 6; failed calls: timeout 5), more than 10%."
        assert said in found[0].text


def test_an_eval_stage_of_benchmarks_alone_needs_no_ledger(benchmark_run: RunDir, edit_json: Edit) -> None:
    assert not (benchmark_run.path / "benchmarks/ledger.json").exists()
    edit_json(benchmark_run.path / "benchmarks/manifest.json", lambda m: m["config"].update(data="prepare"))
    assert {gap.kind for gap in read_run(benchmark_run).gaps} == {"missing"}
    Ledger().write(benchmark_run.path / "benchmarks/ledger.json")
    (gap,) = read_run(benchmark_run).gaps
    assert "likelihood.json is missing" in gap.text
