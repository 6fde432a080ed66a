"""Every number of AlpacaEval, Bradley-Terry, Elo and arena-rank that the shared data lets us reproduce, beside its bar."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from posttrain.judge import votes
from posttrain.stats import ratings

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def reproduce() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "reproduce_ratings.py"
    spec = importlib.util.spec_from_file_location("reproduce_ratings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(reproduce, shared_data):
    return reproduce.rows(shared_data)


@pytest.mark.parametrize(
    ("prefix", "count", "tolerance"),
    [
        ("AlpacaEval win rate", 26, 1e-6),
        ("AlpacaEval standard error", 26, 1e-6),
        ("AlpacaEval discrete", 26, 1e-6),
        ("AlpacaEval draws", 26, 0),
        ("LC win rate from published weights, mean error", 1, 0.01),
        ("LC win rate by own fit, mean error", 1, 0.05),
        ("LC win rate by own fit", 27, 0.3),
        ("LC standard error as printed", 4, 0.005),
        ("AlpacaEval log-prob parser", 1, 0),
        ("Raw annotations, win rate", 1, 1e-6),
        ("Raw annotations, draws", 1, 0),
        ("Raw annotations, LC", 1, 0.3),
        ("Spearman with Arena", 2, 6e-4),
        ("bradley_terry", 10, 1e-7),
        ("elo", 10, 1e-12),
        ("average_win_rate", 10, 1e-12),
        ("arena-rank rating", 6, 0.02),
        ("arena-rank half-width", 6, 0.3),
        ("Wikipedia", 4, 6e-4),
    ],
)
def test_published_numbers(rows, prefix: str, count: int, tolerance: float):
    chosen = [row for row in rows if row.name.startswith(prefix)]
    assert len(chosen) == count
    # the bars of this list, not those the benchmark prints
    assert [row for row in chosen if not abs(row.ours - row.published) <= tolerance] == []


def test_the_parser_read_all_tokens(rows):
    assert [row.ours for row in rows if row.name.startswith("AlpacaEval log-prob parser")] == [101]


def test_bootstrap_and_sandwich_agree_on_human_votes(shared_data: Path):
    people = votes.read_comparisons(shared_data / "evaluation/mt_bench/human_votes.jsonl", cluster="question_id")
    assert len(people) == 3355
    assert len(set(people.clusters_N.tolist())) == 80
    widths: dict[str, dict[str, float]] = {}
    make: dict[str, Callable[[], ratings.RatingTable]] = {
        "sandwich": lambda: ratings.bradley_terry(people),
        "bootstrap": lambda: ratings.bradley_terry(people, interval="bootstrap", rounds=1000),
    }
    for name, table in make.items():
        widths[name] = {rating.model: rating.high - rating.low for rating in table().ratings}
    ratios = [widths["bootstrap"][model] / width for model, width in widths["sandwich"].items()]
    assert 0.85 < min(ratios) < max(ratios) < 1.15
    alone = ratings.bradley_terry(votes.read_comparisons(shared_data / "evaluation/mt_bench/human_votes.jsonl"))
    wider = [widths["sandwich"][rating.model] / (rating.high - rating.low) for rating in alone.ratings]
    # votes on one question agree more than votes at large: the usual intervals are too narrow
    assert np.mean(wider) > 1.1


def test_gpt4_votes_give_the_order_of_the_human_ones(shared_data: Path):
    folder = shared_data / "evaluation" / "mt_bench"
    tables = [
        ratings.bradley_terry(votes.read_comparisons(folder / f"{name}_votes.jsonl")) for name in ("human", "gpt4_pair")
    ]
    human, gpt4 = ({rating.model: rating.rating for rating in table.ratings} for table in tables)
    places = [np.argsort(np.argsort([table[model] for model in sorted(table)])) for table in (human, gpt4)]
    assert np.abs(places[0] - places[1]).max() <= 1
