"""What a run knows of preferences: the records of a preference stage, and which replies models favour on held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from posttrain.artifacts import StageDir
from posttrain.report import numbers
from posttrain.report.reading import Gap, Stage, json_lines, json_value, optional, parse
from posttrain.report.records import (
    Estimate,
    ModelPreferences,
    PreferenceDifference,
    PreferenceRow,
    PreferencesFile,
)
from posttrain.report.verdicts import Verdict, gain_verdict, paired_gain_verdict
from posttrain.stats.intervals import mcnemar
from posttrain.types import LOGP_ROUNDING, resolved

Measure = Literal["reward_accuracy", "reward_margin", "ranking_accuracy"]


@dataclass(frozen=True, slots=True)
class SignTest:
    """On how many pairs ``b`` does better and worse than ``a``, and how likely so uneven a split is by chance."""

    better: int
    worse: int

    @property
    def p_value(self) -> float:
        """Two-sided exact p-value; 1 where no pair differs."""
        return mcnemar(self.worse, self.better)


@dataclass(frozen=True, slots=True)
class PreferenceComparison:
    """One pair of models on the held-out pairs. All three measures are higher for better."""

    difference: PreferenceDifference
    tests: Mapping[Measure, SignTest]
    """Of the two accuracies; empty where the rows are not known."""
    confidence: float

    def verdict(self, measure: Measure) -> Verdict:
        """A margin needs an interval without zero; a share of pairs also an exact test that agrees."""
        interval: Estimate = getattr(self.difference, measure)
        test = self.tests.get(measure)
        if test is None:
            return gain_verdict(interval.low, interval.high)
        return paired_gain_verdict(interval.low, interval.high, test.p_value, self.confidence)


@dataclass(frozen=True, slots=True)
class EvalPreferences:
    """The held-out preferences of an eval stage, models in the order of the stage."""

    reference: str
    pairs: int
    confidence: float
    resamples: int | None
    models: Mapping[str, ModelPreferences]
    comparisons: tuple[PreferenceComparison, ...]

    @property
    def against_reference(self) -> tuple[PreferenceComparison, ...]:
        """The comparisons with the reference."""
        return tuple(c for c in self.comparisons if c.difference.a == self.reference)

    @property
    def headline(self) -> PreferenceComparison | None:
        """The last model against the reference; where nothing is compared with that, the last comparison."""
        return next(reversed(self.against_reference or self.comparisons), None)

    def at_chance_by_definition(self, model: str) -> bool:
        """Whether the reward accuracy of a model is one half and its margin 0 because rewards are measured from it."""
        return model == self.reference


def holds_pairs(folder: StageDir, stage: Stage) -> bool:
    """Whether the held-out rows of an eval stage are pairs, as far as its files tell."""
    measured = (stage.manifest.result or {}) if stage.manifest else {}
    return folder.file("preferences.json").exists() or "reward_accuracy" in measured


def read_preferences(folder: StageDir, stage: Stage, gaps: list[Gap]) -> EvalPreferences | None:
    """Return the held-out preferences of an eval stage; None where it compared no pairs, or they can't be read."""
    if not holds_pairs(folder, stage):
        return None
    found = optional(
        gaps,
        stage,
        folder.file("preferences.json"),
        "held-out preferences are not known",
        lambda path: parse(PreferencesFile, json_value(path), path),
    )
    if found is None:
        return None
    rows = optional(
        gaps,
        stage,
        folder.file("preference_rows.jsonl"),
        "shares of pairs are compared by their intervals alone",
        lambda path: parse(tuple[PreferenceRow, ...], json_lines(path), path),
    )
    wins = row_wins(rows or (), found.reference)
    if contradiction := _contradiction(found, wins):
        gaps.append(Gap(stage.name, "damaged", f"Stage {stage.name}: {contradiction}"))
        wins = {}
    declared = stage.manifest.config.get("models") if stage.manifest else None
    order = dict.fromkeys([*(name for name in declared or () if name in found.models), *found.models])
    return EvalPreferences(
        reference=found.reference,
        pairs=found.pairs,
        confidence=found.confidence,
        resamples=found.resamples,
        models={name: found.models[name] for name in order},
        comparisons=tuple(
            PreferenceComparison(difference, sign_tests(wins, difference.a, difference.b), found.confidence)
            for difference in found.differences
        ),
    )


Wins = Mapping[str, Mapping[Measure, Sequence[float]]]
"""model -> accuracy -> for every pair 1 (the chosen reply is favoured), 0 or 1/2."""


def row_wins(rows: Sequence[PreferenceRow], reference: str) -> Wins:
    """Return for every model and pair whether the chosen reply is favoured; empty where a model lacks a pair."""
    by_model: dict[str, list[PreferenceRow]] = {}
    for row in rows:
        by_model.setdefault(row.model, []).append(row)
    if reference not in by_model or len({tuple(r.row_id for r in group) for group in by_model.values()}) != 1:
        return {}
    return {
        model: {
            "reward_accuracy": [
                _win(resolved(own.chosen - start.chosen - (own.rejected - start.rejected), _rounding(own)), 0.0)
                for own, start in zip(group, by_model[reference], strict=True)
            ],
            "ranking_accuracy": [_win(r.chosen / r.chosen_tokens, r.rejected / r.rejected_tokens) for r in group],
        }
        for model, group in by_model.items()
        if all(r.chosen_tokens and r.rejected_tokens for r in group)
    }


def sign_tests(wins: Wins, a: str, b: str) -> dict[Measure, SignTest]:
    """Return the sign test of both accuracies; empty where the rows of a model are not known."""
    if a not in wins or b not in wins:
        return {}
    return {
        measure: SignTest(
            better=sum(second > first for first, second in zip(wins[a][measure], wins[b][measure], strict=True)),
            worse=sum(second < first for first, second in zip(wins[a][measure], wins[b][measure], strict=True)),
        )
        for measure in wins[a]
    }


def _rounding(row: PreferenceRow) -> float:
    return LOGP_ROUNDING * (row.chosen_tokens + row.rejected_tokens)


def _win(chosen: float, rejected: float) -> float:
    return 0.5 if chosen == rejected else float(chosen > rejected)


def _contradiction(found: PreferencesFile, wins: Wins) -> str | None:
    """Say where preferences.json is not what preference_rows.jsonl gives."""
    for model, measures in wins.items():
        entry = found.models.get(model)
        rows = measures["reward_accuracy"]
        if entry is None or not rows:
            continue
        if len(rows) != found.pairs:
            return f"preferences.json counts {found.pairs} pairs, preference_rows.jsonl holds {len(rows)} of {model}."
        share = sum(rows) / len(rows)
        if abs(share - entry.reward_accuracy.estimate) > 0.25 / len(rows):
            return (
                f"preferences.json gives {model} a reward accuracy of "
                f"{numbers.percent(entry.reward_accuracy.estimate)}, preference_rows.jsonl {numbers.percent(share)}."
            )
    return None
