"""Published numbers of AlpacaEval 2, Bradley-Terry, Elo and arena ratings beside ours.

    python benchmarks/reproduce_ratings.py [FOLDER]

FOLDER is the shared data folder (default: ../shared/data beside the project). Exits with 1 where a number is off.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parent))  # tests load this file by its path
from published import Row, run_script

from posttrain.judge import votes
from posttrain.stats import elo, ratings
from posttrain.stats import length_controlled as alpaca_eval
from posttrain.stats.intervals import IntervalSettings

WIKIPEDIA = {"A": 0.640, "B": 1.043, "C": 0.660, "D": 2.270}
"""The worked example of the article on the Bradley-Terry model: strengths with geometric mean 1."""
WIKIPEDIA_WINS = {"AB": 2, "BA": 3, "AD": 1, "DA": 4, "BC": 5, "CB": 3, "CD": 1, "DC": 3}


def rows(shared: Path) -> list[Row]:
    """Every number that the data folder lets us reproduce."""
    folder = shared / "evaluation"
    return [
        *_raw_win_rates(folder / "alpaca_eval"),
        *_length_controlled(folder / "alpaca_eval"),
        *_judge_tokens(shared),
        *_raw_annotations(shared),
        *_arena_correlation(folder / "alpaca_eval"),
        *_goldens(folder / "bradley_terry"),
        *_arena_rank(folder),
        *_wikipedia(),
    ]


def published_glm(folder: Path) -> alpaca_eval.PublishedGlm:
    """The fixed part of AlpacaEval's regression, as reconstructed from published weights."""
    return alpaca_eval.read_published_glm(
        difficulty=folder / "instruction_difficulty_reconstructed.csv",
        instructions=folder / "instructions_meta.csv",
        lengths=folder / "output_lengths_186models.csv.gz",
        gamed=folder / "gamed_sufficient_stats_reconstructed.json",
    )


def leaderboard(folder: Path) -> dict[str, dict[str, str]]:
    """The published leaderboard by model."""
    return _by(folder / "leaderboard_alpacaeval2_weighted_gpt4_turbo.csv", "")


def _by(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def _raw_win_rates(folder: Path) -> Iterator[Row]:
    published = leaderboard(folder)
    table = pl.read_csv(folder / "preferences_26models.csv.gz")
    for model in table.columns[1:]:
        preferences, theirs = table[model].to_numpy(), published[model]
        ours, (discrete, draws) = alpaca_eval.win_rate(preferences), discrete_win_rate(preferences)
        yield Row(f"AlpacaEval win rate, {model}", float(theirs["win_rate"]), ours.win_rate, 1e-6)
        yield Row(f"AlpacaEval standard error, {model}", float(theirs["standard_error"]), ours.standard_error, 1e-6)
        yield Row(f"AlpacaEval discrete, {model}", float(theirs["discrete_win_rate"]), discrete, 1e-6)
        yield Row(f"AlpacaEval draws, {model}", float(theirs["n_draws"]), draws, 0)


def discrete_win_rate(preferences_I: ArrayLike) -> tuple[float, int]:
    """Every verdict rounded to a loss, a draw (1.5, or 0) or a win: the win rate in percent, and the draws."""
    preferences = np.asarray(preferences_I, dtype=np.float64)
    judged = preferences[~np.isnan(preferences)]
    draws = int(np.count_nonzero(np.isin(judged, (0, 1.5))))
    return 100 * (np.count_nonzero(judged > 1.5) + draws / 2) / judged.size, draws


def _length_controlled(folder: Path) -> Iterator[Row]:
    """Errors are in points of 100; the reconstructed difficulties are what they come from, not rounding."""
    published, glm = leaderboard(folder), published_glm(folder)
    known = {name: float(row["length_controlled_winrate"] or "nan") for name, row in published.items()}
    weights = read_glm_weights(folder / "glm_weights_length_controlled_v1.csv")
    errors = [
        abs(100 * alpaca_eval.predicted_wins(found, glm.difficulty_I).mean() - known[model])
        for model, found in weights.items()
        if not np.isnan(known.get(model, np.nan))
    ]
    yield Row(f"LC win rate from published weights, mean error of {len(errors)}", 0, float(np.mean(errors)), 0.01)
    preferences = pl.read_csv(folder / "preferences_26models.csv.gz")
    lengths = pl.read_csv(folder / "output_lengths_186models.csv.gz")
    fitted = []
    for model in preferences.columns[1:]:
        found = alpaca_eval.length_controlled_win_rate(
            preferences[model].to_numpy(),
            lengths[model].to_numpy(),
            glm.baseline_lengths_I,
            judge=alpaca_eval.LEADERBOARD_JUDGE,
            published=glm,
            settings=IntervalSettings(resamples=2),
        )
        fitted.append(abs(found.interval.estimate - known[model]))
        yield Row(f"LC win rate by own fit, {model}", known[model], found.interval.estimate, 0.3)
        if published[model]["lc_standard_error"]:
            theirs = float(published[model]["lc_standard_error"])
            predicted = alpaca_eval.predicted_wins(found.weights, glm.difficulty_I)
            ours = 100 * float(np.std(predicted, ddof=1) / np.sqrt(predicted.size))
            yield Row(f"LC standard error as printed, {model}", theirs, ours, 0.005)
    yield Row(f"LC win rate by own fit, mean error of {len(fitted)}", 0, float(np.mean(fitted)), 0.05)


def read_glm_weights(path: Path) -> dict[str, alpaca_eval.GlmWeights]:
    """Coefficients of many models from the published weights file (first column: the model's name)."""
    table = pl.read_csv(path, infer_schema_length=None)
    names = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")
    columns = [table[name].cast(pl.Float64).to_list() for name in names]
    rows = zip(*columns, strict=True)
    return {str(model): alpaca_eval.GlmWeights(*row) for model, row in zip(table.to_series(0), rows, strict=True)}


def _judge_tokens(shared: Path) -> Iterator[Row]:
    """The judge's stored tokens, read again with the order in which the replies were shown."""
    fixture = json.loads((shared / "evaluation/alpaca_eval/logprob_parser_fixture_alpaca-7b.json").read_text("utf-8"))
    outputs = shared / "alpaca-eval" / "results__gpt4_1106_preview__model_outputs.json"
    instructions = [row["instruction"] for row in json.loads(outputs.read_text("utf-8"))]
    right = 0
    for row in fixture:
        tokens = [(entry["token"], entry["logprob"]) for entry in row["top_logprobs"]]
        swapped = alpaca_eval.shown_swapped(instructions[row["index"]])
        ours = alpaca_eval.preference_from_logprobs(tokens, swapped=swapped)
        right += abs(ours - row["preference"]) < 1e-9
    yield Row("AlpacaEval log-prob parser, preferences equal", len(fixture), right, 0)


def _raw_annotations(shared: Path) -> Iterator[Row]:
    """One leaderboard entry from the judge's raw replies on: 802 of the 805 instructions are in its file.

    The published tool takes a row's place in the file for the number of its instruction, so every row after a gap gets
    another instruction's difficulty; its number is reproduced in this way only. With the right ones ours is 5.2.
    """
    model = "alpaca-7b_verbose"
    file = shared / "alpaca-eval" / f"results__{model}__weighted_alpaca_eval_gpt4_turbo__annotations.json"
    annotations = json.loads(file.read_text(encoding="utf-8"))
    theirs = leaderboard(shared / "evaluation" / "alpaca_eval")[model]
    baseline_lengths = np.array([len(row["output_1"]) for row in annotations], dtype=np.float64)
    shifted = replace(published_glm(shared / "evaluation" / "alpaca_eval"), baseline_lengths_I=baseline_lengths)
    preferences = [_from_annotation(row) for row in annotations]
    found = alpaca_eval.length_controlled_win_rate(
        preferences,
        [len(row["output_2"]) for row in annotations],
        baseline_lengths,
        judge=alpaca_eval.LEADERBOARD_JUDGE,
        published=shifted,
        settings=IntervalSettings(resamples=2),
    )
    yield Row(f"Raw annotations, win rate, {model}", float(theirs["win_rate"]), found.raw.win_rate, 1e-6)
    yield Row(f"Raw annotations, draws, {model}", float(theirs["n_draws"]), discrete_win_rate(preferences)[1], 0)
    published = float(theirs["length_controlled_winrate"])
    yield Row(f"Raw annotations, LC by row position, {model}", published, found.interval.estimate, 0.3)


def _from_annotation(row: dict[str, Any]) -> float:
    if row["output_1"] == row["output_2"]:
        return 1.5  # AlpacaEval asks no judge about equal replies
    first = row["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
    tokens = [(entry["token"], entry["logprob"]) for entry in first]
    return alpaca_eval.preference_from_logprobs(tokens, swapped=alpaca_eval.shown_swapped(row["instruction"]))


def _arena_correlation(folder: Path) -> Iterator[Row]:
    arena = {
        name: float(row["Arena Elo\n[Feb 2, 2024]"])
        for name, row in _by(folder / "benchmarks_arena_correlation.csv", "Model").items()
        if row["Arena Elo\n[Feb 2, 2024]"] and row["AlpacaEval 2.0"]
    }
    published = leaderboard(folder)
    difficulty = published_glm(folder).difficulty_I
    weights = read_glm_weights(folder / "glm_weights_length_controlled_v1.csv")
    raw = [float(published[name]["win_rate"]) for name in arena]
    controlled = [alpaca_eval.predicted_wins(weights[name], difficulty).mean() for name in arena]
    elos = list(arena.values())
    yield Row(f"Spearman with Arena, raw win rate, {len(arena)} models", 0.931, spearmanr(elos, raw)[0], 6e-4)
    yield Row(f"Spearman with Arena, LC win rate, {len(arena)} models", 0.975, spearmanr(elos, controlled)[0], 6e-4)


def _goldens(folder: Path) -> Iterator[Row]:
    """Reference values of evalica."""
    for name in ("simple", "food"):
        comparisons = votes.read_comparisons(folder / f"{name}.csv", model_a="left", model_b="right")
        matrix = ratings.win_matrix(comparisons)
        strengths = np.exp(ratings.fit_bradley_terry(matrix.wins_MM))
        ours = {
            "bradley_terry": dict(zip(matrix.models, strengths / strengths.sum(), strict=True)),
            "elo": dict(
                zip(matrix.models, elo.play(comparisons, np.arange(len(comparisons))[:, None])[0], strict=True)
            ),
            "average_win_rate": ratings.average_win_rates(matrix),
        }
        tolerances = {"bradley_terry": 1e-7, "elo": 1e-12, "average_win_rate": 1e-12}
        with (folder / f"{name}-golden.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                method, item = row["algorithm"], row["item"]
                if method in ours:
                    label = f"{method}, {name}.csv, {item}"
                    yield Row(label, float(row["score"]), float(ours[method][item]), tolerances[method])


def _arena_rank(folder: Path) -> Iterator[Row]:
    """arena-rank on the human votes of MT-Bench."""
    table = ratings.bradley_terry(votes.read_comparisons(folder / "mt_bench" / "human_votes.jsonl"))
    rated = {one.model: one for one in table.ratings}
    for model, row in _by(folder / "bradley_terry" / "arena_rank_oracle_mtbench_human.csv", "competitors").items():
        half = (float(row["rating_upper"]) - float(row["rating_lower"])) / 2
        ours = rated[model]
        yield Row(f"arena-rank rating, {model}", float(row["ratings"]), ours.rating, 0.02)
        yield Row(f"arena-rank half-width, {model}", half, (ours.high - ours.low) / 2, 0.3)


def _wikipedia() -> Iterator[Row]:
    games = [ratings.Comparison(pair[0], pair[1], "a") for pair, wins in WIKIPEDIA_WINS.items() for _ in range(wins)]
    matrix = ratings.win_matrix(ratings.gather(games))
    for model, strength in zip(matrix.models, np.exp(ratings.fit_bradley_terry(matrix.wins_MM)), strict=True):
        yield Row(f"Wikipedia's Bradley-Terry example, {model}", WIKIPEDIA[model], float(strength), 6e-4)


def main() -> int:
    return run_script({"AlpacaEval, Bradley-Terry, Elo and arena ratings": rows})


if __name__ == "__main__":
    sys.exit(main())
