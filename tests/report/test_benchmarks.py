"""Reading the files of benchmarks, and what follows from them: verdicts, contests, the table of all models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts import RunDir, write_json
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
from posttrain.report.benchmark_wording import (
    evaluation_findings,
    headline_sentence,
    judge_warnings,
    overview_sentence,
    weak_judges,
)
from posttrain.report.benchmarks import BenchmarkFacts, benchmark_facts, contradiction
from posttrain.report.facts import EvalFacts, read_run
from posttrain.report.overview import overview
from posttrain.report.records import Estimate
from posttrain.report.verdicts import measure_verdict

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


def evaluation(run: RunDir, name: str = "benchmarks") -> EvalFacts:
    return next(e for e in read_run(run).evaluations if e.stage.name == name)


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


def test_the_overview_holds_the_numbers_of_the_files(benchmark_run: RunDir) -> None:
    found = overview(read_run(benchmark_run))
    assert found is not None
    assert found.models == ("base", "sft", "dpo", "simpo")
    titles = [group.title for group in found.groups]
    assert titles == [
        "Helpfulness", "Following instructions", "Reasoning", "Safety, both ways", "Diversity", "Held-out rows",
        "Checked answers", "Length of replies", "Cost of the benchmarks",
    ]  # fmt: skip
    for key, label in (("safety", "Refusal of safe prompts"), ("chat", "Mean rating"), ("gsm8k", "Right answers")):
        file = artefact(benchmark_run, key)
        (measure,) = (m for m in file["measures"] if m["label"] == label)
        line = next(ln for ln in found.lines if ln.label == label and ln.of.startswith(file["title"]))
        assert (line.unit, line.better, line.baseline) == (measure["unit"], measure["better"], "base")
        results = {r["model"]: r for r in file["results"] if r["measure"] == measure["key"] and r["category"] is None}
        assert {m: (e.estimate, e.low, e.high) for m, e in line.entries.items()} == {
            m: (r["estimate"], r["low"], r["high"]) for m, r in results.items()
        }
        shown = {d["b"]: d for d in file["differences"] if d["measure"] == measure["key"]}
        for model, entry in line.entries.items():
            if model == "base":
                assert entry.verdict is None
                continue
            d = shown[model]
            decided = (d["low"] > 0 or d["high"] < 0) and d["adjusted_p"] < 0.05
            good = (d["difference"] > 0) is (measure["better"] == "higher")
            assert entry.verdict == (("improved" if good else "worse") if decided else "not shown")
    assert {"improved", "not shown"} <= set(found.verdicts)


def test_a_win_rate_against_oneself_is_by_definition(benchmark_run: RunDir) -> None:
    found = overview(read_run(benchmark_run))
    assert found is not None
    line = next(line for line in found.lines if line.label == "Win rate against the first model")
    base = line.entries["base"]
    assert (base.estimate, base.low, base.remark) == (0.5, None, "by definition")


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
    found = overview(read_run(benchmark_run))
    assert found is not None
    costs = {line.label: line.entries for line in found.groups[-1].lines}
    keys = ("chat", "arena", "alpaca", "form", "gsm8k", "safety", "variety")
    expected = sum(artefact(benchmark_run, key)["cost"]["dpo"]["completion_tokens"] for key in keys)
    assert costs["Tokens written"]["dpo"].estimate == expected
    assert costs["Time of the replies"]["dpo"].estimate == pytest.approx(7 * 3.5)
    edit_json(benchmark_run.path / "benchmarks/benchmarks/chat.json", lambda v: v["cost"]["dpo"].update(seconds=None))
    found = overview(read_run(benchmark_run))
    assert found is not None
    assert "dpo" not in {line.label: line.entries for line in found.groups[-1].lines}["Time of the replies"]


def test_two_models_without_benchmarks_need_no_overview(run: RunDir) -> None:
    assert overview(read_run(run)) is None


def test_three_models_without_benchmarks_have_one(preference_run: RunDir) -> None:
    facts = read_run(preference_run)
    found = overview(facts)
    assert found is not None
    assert found.models == ("base", "sft", "dpo")
    line = next(line for line in found.lines if line.label == "Reward accuracy")
    assert line.baseline == "sft"
    assert line.entries["sft"].remark == "by definition"
    assert line.entries["dpo"].verdict == "improved"
    loss = next(line for line in found.lines if line.label == "Loss, nats per token")
    assert loss.entries["sft"].verdict == "improved"
    assert "Holm" not in overview_sentence(found, facts)


# ---- sentences -----------------------------------------------------------------------------------------------------


def with_benchmarks(run: RunDir, *facts: BenchmarkFacts) -> EvalFacts:
    return replace(read_run(run).evaluations[0], benchmarks=facts, models=("base", "sft"))


def test_the_sentence_counts_what_is_shown(benchmark_run: RunDir) -> None:
    facts = read_run(benchmark_run)
    found = overview(facts)
    assert found is not None
    shown = sum(verdict != "not shown" for verdict in found.verdicts)
    text = overview_sentence(found, facts)
    assert f"{shown} of {len(found.verdicts)} differences from the baseline are shown and marked" in text
    assert "adjusted for all headline measures and models of that benchmark (Holm), is below 0.05" in text
    assert "The 7 benchmarks are not adjusted for one another." in text


def test_nothing_shown_is_said_so(run: RunDir) -> None:
    quiet = benchmark_facts("evaluate", record(differences=(difference(adjusted_p=0.5),)))
    facts = read_run(run)
    evaluation = replace(facts.evaluations[0], benchmarks=(quiet,), likelihood={}, accuracy={}, loss_comparisons=())
    facts = replace(facts, evaluations=(evaluation,))
    found = overview(facts)
    assert found is not None
    assert (
        "The one difference from the baseline is not shown. That is not the same as no difference"
        in overview_sentence(found, facts)
    )
    assert (
        headline_sentence(evaluation)
        == "1 benchmark with 80 prompts was answered by base and sft. No headline measure shows a difference of sft from base."
    )
    assert evaluation_findings(evaluation) == []


def test_what_is_shown_is_told_with_its_numbers(run: RunDir) -> None:
    found = with_benchmarks(run, benchmark_facts("evaluate", record(differences=(difference(),))))
    numbers = "+25.0 points, 95% interval +10.0 to +40.0"
    asked = "1 benchmark with 80 prompts was answered by base and sft."
    assert (
        headline_sentence(found) == f"{asked} Compared with base, sft is better in Right answers of GSM8K ({numbers})."
    )
    (finding,) = evaluation_findings(found)
    assert (finding.topic, finding.verdict) == ("GSM8K", "improved")
    assert finding.text == f"Right answers, compared with base: sft {numbers}, adjusted p = 0.020, n = 80."


def test_few_prompts_are_named(run: RunDir) -> None:
    found = with_benchmarks(run, benchmark_facts("evaluate", record(differences=(difference(prompts=12),))))
    assert evaluation_findings(found)[0].text.endswith("With only 12 prompts the interval is rough.")


def test_a_win_against_another_model_than_the_baseline_is_a_finding(run: RunDir) -> None:
    rates = (wins("sft", "dpo", (0.7, 0.6, 0.8), 0.001), wins("sft", "base", (0.7, 0.6, 0.8), 0.001))
    (finding,) = evaluation_findings(with_benchmarks(run, benchmark_facts("evaluate", record(win_rates=rates))))
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
    read = read_run(preference_run)
    name = judge.format(run=read.name)
    entry = JudgeEntry(name, Fingerprint(engine, name), Calls(10, 10, 10, {}, {}))
    facts = benchmark_facts("evaluate", record(judge=JudgeRecord((entry,), "en")))
    judged = replace(read.evaluations[0], benchmarks=(facts,))
    found = weak_judges(replace(read, evaluations=(judged,)))
    assert list(found) == (["dpo"] if warned else [])
    if warned:
        # 10 of 18 by hand: (10 + 1.96^2 / 2) / (18 + 1.96^2) = 0.546, half width 0.209
        assert "in 55.6% of 18 held-out pairs (95% interval 34% to 75%)" in found["dpo"]


@pytest.mark.parametrize(("parsed", "warned"), [(90, False), (89, True), (0, True)])
def test_a_judge_that_can_not_be_read_is_named(run: RunDir, parsed: int, warned: bool) -> None:
    calls = Calls(100, 95, parsed, {"parse": 95 - parsed, "transport": 5}, {"timeout": 5})
    judge = JudgeRecord((JudgeEntry("tiny", Fingerprint("openai", "tiny"), calls),), "en")
    facts = benchmark_facts("evaluate", record(judge=judge))
    assert bool(judge_warnings([facts])) is warned
    found = evaluation_findings(with_benchmarks(run, facts))
    assert [f.topic for f in found] == (["Warning"] if warned else [])
    if parsed == 89:
        assert (
            "11.0% of the calls to tiny gave no verdict (parse 6; failed calls: timeout 5), more than 10%."
            in found[0].text
        )


def test_an_eval_stage_of_benchmarks_alone_needs_no_ledger(benchmark_run: RunDir, edit_json: Edit) -> None:
    assert not (benchmark_run.path / "benchmarks/ledger.json").exists()
    edit_json(benchmark_run.path / "benchmarks/manifest.json", lambda m: m["config"].update(data="prepare"))
    assert {gap.kind for gap in read_run(benchmark_run).gaps} == {"missing"}
    write_json(benchmark_run.path / "benchmarks/ledger.json", {"rows_in": 0, "rows_kept": 0, "steps": []})
    (gap,) = read_run(benchmark_run).gaps
    assert "likelihood.json is missing" in gap.text
