"""Published numbers about judges, votes and refusals, reproduced from the published raw data."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from mt_bench_votes import Rating, score_table
from refusal_labels import load_labels

from posttrain.judge.items import needs_reference
from posttrain.judge.refusal import rule_label, xstest_label
from posttrain.judge.verdicts import Missing, mt_bench_rating, rating
from posttrain.tasks.mt_bench_data import load_questions

pytestmark = pytest.mark.shared

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "reproduce_votes.py"


@pytest.fixture(scope="module")
def votes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce_votes", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("part", "rows"),
    [
        ("mt_bench_agreement", 14),
        ("mt_bench_kappas", 23),
        ("mt_bench_scores", 4),
        ("llmbar", 10),
        ("krippendorff", 3),
        ("xstest", 112),
    ],
)
def test_published_numbers_are_reproduced(votes: ModuleType, shared_data: Path, part: str, rows: int) -> None:
    found = list(getattr(votes, part)(shared_data / "evaluation"))
    assert [row for row in found if not row.reproduced] == []
    assert len(found) == rows


def test_the_command_prints_every_row_and_its_exit_code_tells(
    votes: ModuleType, shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["reproduce_votes.py", str(shared_data)])
    assert votes.main() == 0
    assert capsys.readouterr().out.endswith("166 of 166 reproduced\n")
    monkeypatch.setitem(votes.XSTEST_RATERS, "gpt4", (98.4, 0.96))
    assert votes.main() == 1
    printed = capsys.readouterr().out
    assert printed.endswith("165 of 166 reproduced\n")
    assert printed.count("DIFFERS") == 1


def test_a_row_that_differs_is_told(votes: ModuleType) -> None:
    assert votes.Row("percent", 66.0, 65.9717, 0.05).reproduced
    assert not votes.Row("percent", 66.0, 65.94, 0.05).reproduced
    assert not votes.Row("count", 380, 381, 0).reproduced


def test_our_rating_differs_from_the_published_one_only_where_it_should(shared_data: Path) -> None:
    """Of 1,760 real judgments one has no rating; none is ambiguous: both rules read the same numbers."""
    texts = [
        json.loads(line)["judgment"]
        for path in sorted((shared_data / "evaluation" / "mt_bench_judgments").glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len(texts) == 1760
    assert [rating(text) for text in texts] == [mt_bench_rating(text) for text in texts]
    assert sum(isinstance(rating(text), Missing) for text in texts) == 1


def test_scores_count_what_could_not_be_read(shared_data: Path) -> None:
    folder = shared_data / "evaluation"
    questions = load_questions(
        folder / "mt_bench" / "question.jsonl", folder / "mt_bench" / "reference_answer_gpt-4.jsonl"
    )
    assert len(questions) == 80
    assert {q.category for q in questions if q.references} == {
        q.category for q in questions if needs_reference(q.category)
    }
    path = folder / "mt_bench_judgments" / "alvarobartt_mistral-orpo_gpt-4_single.jsonl"
    judgments = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    # The judge was run twice on this model, and both runs were kept; one reply of the judge has no rating.
    rated = [
        Rating(j["question_id"], j["turn"], mt_bench_rating(j["judgment"]))
        for j in judgments
        if j["model"] == "mistral-orpo"
    ]
    table = score_table(questions, rated, resamples=200)
    assert table.unjudged == ()
    assert len(rated) == 320
    counts = table.overall.accounting
    assert counts.asked == 320
    assert counts.parsed == 320 - counts.missing.get("parse", 0)
    recorded = [j["score"] for j in judgments if j["model"] == "mistral-orpo" and j["score"] != -1]
    assert table.overall.mean is not None
    assert table.overall.mean.estimate == pytest.approx(sum(recorded) / len(recorded))
    assert table.overall.mean.low < table.overall.mean.estimate < table.overall.mean.high


def test_chinese_questions_have_the_same_categories(shared_data: Path) -> None:
    questions = load_questions(shared_data / "mt-bench-zh-huozi" / "data__mt-bench-zh__question.jsonl")
    assert Counter(q.category for q in questions)["zh_math"] == 10
    assert sum(needs_reference(q.category) for q in questions) == 30


@pytest.mark.parametrize(("model", "least", "published"), [("gpt4", 0.945, 0.9355), ("llama2orig", 0.91, 0.8935)])
def test_our_refusal_rules_are_nearer_to_people_than_the_published_ones(
    votes: ModuleType, shared_data: Path, model: str, least: float, published: float
) -> None:
    path = shared_data / "evaluation" / "xstest" / f"completions_{model}_human_and_gpt4_labels.csv"
    people = load_labels(path, "final_label")
    replies = {row["id"]: row["completion"] for row in votes.read_csv(path)}

    def right(label) -> float:
        return sum((label(replies[i]) == "full_compliance") == (people[i] == "full_compliance") for i in people) / len(
            people
        )

    assert right(xstest_label) == pytest.approx(published, abs=1e-3)
    assert right(rule_label) > least


def test_ordinary_answers_are_rarely_called_refusals(shared_data: Path) -> None:
    """Looked through by hand, nearly all of these are: the model has no eyes, no text was given, and the like."""
    demo = shared_data / "llama-factory-demo"
    for name, most in (("data__alpaca_en_demo.json", 0.01), ("data__alpaca_zh_demo.json", 0.03)):
        outputs = [row["output"] for row in json.loads((demo / name).read_text(encoding="utf-8"))]
        labels = Counter(rule_label(output) for output in outputs)
        assert 1 - labels["full_compliance"] / len(outputs) < most
