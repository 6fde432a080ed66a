"""``posttrain arena``: published and hand-worked numbers through the whole path, and its refusals."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from conftest import Outcome
from posttrain.artifacts import RunDir
from posttrain.errors import DataError
from posttrain.judge.arena import ArenaRatings, read_ratings
from posttrain.lab.engine import Experiment
from posttrain.lab.recipe import Recipe
from posttrain.report.live import Display
from posttrain.stages.arena import ArenaStage, parse_anchor
from posttrain.stats.ratings import Anchor

STRENGTHS = {"A": 0.640, "B": 1.043, "C": 0.660, "D": 2.270}
"""Wikipedia's worked example of the Bradley-Terry model: strengths with geometric mean 1."""
WINS = {"AB": 2, "BA": 3, "AD": 1, "DA": 4, "BC": 5, "CB": 3, "CD": 1, "DC": 3}


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def games(wins: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"model_a": pair[0], "model_b": pair[1], "winner": "model_a", "prompt": n % 3}
        for pair, count in wins.items()
        for n in range(count)
    ]


def rated(file: Path, out: Path, **keys: Any) -> ArenaRatings:
    recipe = Recipe(name="votes", stages={"arena": ArenaStage(kind="arena", file=str(file), **keys)})
    Experiment(recipe, RunDir(out), Display(Console(quiet=True))).execute()
    return read_ratings(out / "arena" / "ratings.json")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "games.jsonl", games(WINS))


# ---- arena ---------------------------------------------------------------------------------------------------------


def test_ratings_of_the_worked_example(file: Path, tmp_path: Path) -> None:
    facts = rated(file, tmp_path / "out")
    assert [one.model for one in facts.models] == ["D", "B", "C", "A"]
    for one in facts.models:
        assert one.rating == pytest.approx(1000 + 400 * math.log10(STRENGTHS[one.model]), abs=0.2)
        assert one.low < one.rating < one.high


def test_counts_and_the_matrix_are_those_of_the_file(tmp_path: Path) -> None:
    rows = [
        {"model_a": "x", "model_b": "y", "winner": "model_a"},
        {"model_a": "x", "model_b": "y", "winner": "model_a"},
        {"model_a": "y", "model_b": "x", "winner": "model_a"},
        {"model_a": "y", "model_b": "x", "winner": "tie"},
        {"model_a": "y", "model_b": "x", "winner": None},
    ]
    facts = rated(write(tmp_path / "f.jsonl", rows), tmp_path / "out")
    x, y = facts.models
    assert (x.model, x.wins, x.ties, x.losses, x.comparisons) == ("x", 2, 1, 1, 4)
    assert (y.model, y.wins, y.ties, y.losses, y.comparisons) == ("y", 1, 1, 2, 4)
    assert (facts.comparisons, facts.ties, facts.missing) == (4, 1, 1)
    assert facts.win_rates_MM == ((None, 0.625), (0.375, None))
    assert facts.counts_MM == ((0, 4), (4, 0))
    assert x.average_win_rate == 0.625
    # two models: the odds are those of their win rates
    assert x.rating - y.rating == pytest.approx(400 * math.log10(0.625 / 0.375))
    assert any("fewer than 30 comparisons" in warning for warning in facts.warnings)
    assert any("1 pairs have no verdict" in warning for warning in facts.warnings)


def test_an_anchor_shifts_ratings_and_nothing_else(file: Path, tmp_path: Path) -> None:
    free = rated(file, tmp_path / "a")
    anchored = rated(file, tmp_path / "b", anchor="C=1200")
    shift = {b.rating - a.rating for a, b in zip(free.models, anchored.models, strict=True)}
    assert max(shift) - min(shift) < 1e-9
    [c] = [one for one in anchored.models if one.model == "C"]
    assert (c.rating, c.low, c.high) == pytest.approx((1200, 1200, 1200))
    assert [one.rank for one in free.models] == [one.rank for one in anchored.models]


def test_bootstrap_clusters_and_confidence_change_intervals_not_ratings(file: Path, tmp_path: Path) -> None:
    plain = rated(file, tmp_path / "out")
    found = {
        "bootstrap": rated(file, tmp_path / "out", interval="bootstrap"),
        "cluster": rated(file, tmp_path / "out", cluster="prompt"),
        "confidence": rated(file, tmp_path / "out", confidence=0.5),
    }
    for name, facts in found.items():
        for one, other in zip(plain.models, facts.models, strict=True):
            assert one.rating == pytest.approx(other.rating, abs=1e-9), name
            assert one.high - one.low != pytest.approx(other.high - other.low, rel=1e-3), name
    assert found["bootstrap"].interval == "bootstrap"
    assert (found["cluster"].cluster, found["cluster"].clusters) == ("prompt", 3)
    half = found["confidence"].models[0]
    assert (half.high - half.low) / (plain.models[0].high - plain.models[0].low) == pytest.approx(
        0.67449 / 1.95996, rel=1e-4
    )


def test_elo_follows_the_order_of_who_wins(file: Path, tmp_path: Path) -> None:
    facts = rated(file, tmp_path / "out", method="elo")
    assert (facts.method, facts.interval) == ("elo", "bootstrap")
    assert facts.models[0].model == "D"
    assert any("still near the start: " in warning for warning in facts.warnings)
    assert np.mean([one.rating for one in facts.models]) == pytest.approx(1000, abs=2)


def test_weights_count(tmp_path: Path) -> None:
    rows = [
        {"model_a": "x", "model_b": "y", "winner": "model_a", "w": 3},
        {"model_a": "x", "model_b": "y", "winner": "model_b", "w": 1},
    ]
    facts = rated(write(tmp_path / "f.jsonl", rows), tmp_path / "out", weight="w")
    assert facts.models[0].rating - facts.models[1].rating == pytest.approx(400 * math.log10(3))


def test_style_is_told_apart_from_strength(tmp_path: Path) -> None:
    """Two equally strong models; x writes more, and the longer reply wins more often: at equal style they are equal."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(3000):
        long_x = rng.random() < 0.8
        tokens = {"x": 400 if long_x else 100, "y": 100 if long_x else 400}
        x_wins = rng.random() < (0.8 if long_x else 0.2)
        first, second = ("x", "y") if rng.random() < 0.5 else ("y", "x")
        rows.append(
            {
                "model_a": first,
                "model_b": second,
                "winner": "model_a" if x_wins == (first == "x") else "model_b",
                "tokens_a": tokens[first],
                "tokens_b": tokens[second],
            }
        )
    path = write(tmp_path / "f.jsonl", rows)
    raw = rated(path, tmp_path / "out")
    equal = rated(path, tmp_path / "out", style_columns=("tokens",))
    assert raw.models[0].model == "x"
    assert raw.models[0].rating - raw.models[1].rating > 100
    assert abs(equal.models[0].rating - equal.models[1].rating) < 40
    [tokens_facts] = equal.style
    assert tokens_facts.low > 1
    # the only feature has the value +-1 standard deviation: its worth is the log-odds of 0.8
    assert tokens_facts.estimate == pytest.approx(math.log(4), abs=0.1)


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (("--method", "elo", "--interval", "sandwich"), "--interval: Elo has no use"),
        (("--method", "elo", "--anchor", "A"), "--anchor: Elo"),
        (("--method", "elo", "--style-columns", "tokens"), "--style: Elo"),
        (("--method", "elo", "--cluster", "prompt"), "--cluster: Elo"),
        (("--style", "--interval", "bootstrap"), "sandwich intervals only"),
        (("--confidence", "1.0"), "--confidence"),
        (("--anchor", "gpt-4=high"), "--anchor: 'gpt-4=high' can't be read"),
        (("--methd", "elo"), "unknown option --methd (did you mean 'method'?)"),
    ],
)
def test_options_without_effect_are_refused(
    file: Path, tmp_path: Path, cli: Callable[..., Outcome], options: tuple[str, ...], refusal: str
) -> None:
    assert refusal in cli("arena", file, "-o", tmp_path / "out", *options).refused()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wins", "told"),
    [
        ({"AB": 2, "BA": 1, "CD": 1, "DC": 1}, "never compared with each other: A, B | C, D"),
        ({"AB": 2, "BA": 1, "AC": 1, "BC": 2}, "infinite"),
    ],
)
def test_ratings_that_do_not_exist_are_one_error_that_names_the_file(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]], wins: dict[str, int], told: str
) -> None:
    path = write(tmp_path / "f.jsonl", games(wins))
    code, _, err = cli("arena", path, "-o", tmp_path / "out")
    assert code == 2
    assert err.startswith(f"error: {path}: ")
    assert told in err
    assert "fix: " in err


def test_a_style_that_never_differs_is_named(tmp_path: Path) -> None:
    rows = [game | {"tokens_a": 5, "tokens_b": 5, "bold_a": n, "bold_b": 1} for n, game in enumerate(games(WINS))]
    path = write(tmp_path / "f.jsonl", rows)
    with pytest.raises(DataError, match="columns tokens_a and tokens_b"):
        rated(path, tmp_path / "out", style_columns=("bold", "tokens"))


@pytest.mark.parametrize("text", ["=1000", "gpt-4=", "gpt-4=high", "gpt-4=nan"])
def test_an_anchor_that_can_not_be_read_is_refused(text: str) -> None:
    assert parse_anchor(text) is None


def test_anchors() -> None:
    assert parse_anchor("gpt-4") == Anchor("gpt-4", 1000.0)
    assert parse_anchor("a=b=900.5") == Anchor("a=b", 900.5)


def test_the_command_prints_the_table_or_the_facts(
    file: Path, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = cli("arena", file, "-o", tmp_path / "out", "--anchor", "A=900")
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    lines = [line.split() for line in out.splitlines()]
    assert ["Model", "Rank", "Rating", "Games"] in lines
    code, out, _ = cli("arena", file, "-o", tmp_path / "out", "--json")
    assert code == 0
    assert out == (tmp_path / "out" / "arena" / "ratings.json").read_text(encoding="utf-8")
    assert [one["model"] for one in json.loads(out)["models"]] == ["D", "B", "C", "A"]


def test_both_commands_load_no_torch(file: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom posttrain.cli import app\n"
        f"app(['arena', {str(file)!r}, '-o', {str(tmp_path / 'out')!r}], standalone_mode=False)\n"
        f"app(['compare', 'A', 'B', {str(file)!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        rated(tmp_path / name, tmp_path / "out")
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.shared
def test_arena_gives_the_ratings_of_arena_rank(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "evaluation"
    facts = rated(folder / "mt_bench" / "human_votes.jsonl", tmp_path)
    ours = {one.model: one for one in facts.models}
    with (folder / "bradley_terry" / "arena_rank_oracle_mtbench_human.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ours) == 6
    for row in rows:
        one = ours[row["competitors"]]
        assert one.rating == pytest.approx(float(row["ratings"]), abs=0.02)
        half = (float(row["rating_upper"]) - float(row["rating_lower"])) / 2
        assert (one.high - one.low) / 2 == pytest.approx(half, abs=0.3)
    assert sum(one.wins + one.ties + one.losses for one in facts.models) == 2 * 3355
