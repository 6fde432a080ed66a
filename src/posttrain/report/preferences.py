"""What a run knows of preferences: the records of a preference stage, and which replies models favour on held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.artifacts import StageDir
from posttrain.report import numbers
from posttrain.report.reading import Gap, Stage, json_lines, json_value, optional, parse
from posttrain.report.records import (
    Estimate,
    ModelPreferences,
    PreferenceDifference,
    PreferenceRecord,
    PreferenceRow,
    PreferencesFile,
)
from posttrain.report.verdicts import Verdict, gain_verdict, paired_gain_verdict
from posttrain.stats.intervals import mcnemar
from posttrain.types import LOGP_ROUNDING, resolved

Measure = Literal["reward_accuracy", "reward_margin", "ranking_accuracy"]

OBJECTIVE_NAMES = {
    "sft": "SFT",
    "dpo": "DPO",
    "ipo": "IPO",
    "hinge": "the hinge loss (SLiC)",
    "simpo": "SimPO",
    "orpo": "ORPO",
    "kto": "KTO",
    "reward": "reward modelling",
}
PREFERENCE_OBJECTIVES = frozenset(OBJECTIVE_NAMES) - {"sft"}
WITH_REFERENCE = frozenset({"dpo", "ipo", "hinge", "kto"})
SETTING_NAMES = {
    "gamma_beta_ratio": "gamma/beta",
    "sft_weight": "SFT weight",
    "nll": "NLL of the",
    "average": "averaged over",
    "use_margin": "margins of the rows",
}
ALWAYS_SHOWN = ("beta", "weight", "gamma_beta_ratio")
"""Other settings are shown where they are switched on; a weight of one kind of replies where it is not 1."""


# ---- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PreferenceTraining:
    """What a train stage that learns from preferences has beside its loss."""

    objective: str
    settings: Mapping[str, Any]
    """Of the objective, without its name and its reference."""
    reference: str | None
    """The weights whose log-probabilities are compared with: ``base`` or a stage; None where there are none."""
    steps: tuple[PreferenceRecord, ...]
    held_out: tuple[PreferenceRecord, ...]

    @property
    def paired(self) -> bool:
        """Whether it learns from pairs; otherwise from single replies that somebody found good or bad."""
        return self.objective != "kto"

    @property
    def sides(self) -> tuple[str, str]:
        """The two kinds of replies, the better one first."""
        return ("chosen", "rejected") if self.paired else ("desirable", "undesirable")

    @property
    def name(self) -> str:
        """The objective as papers write it."""
        return OBJECTIVE_NAMES.get(self.objective, self.objective)

    @property
    def settings_text(self) -> str:
        """The settings that matter: ``beta 0.1, SFT weight 1``."""
        shown = []
        for key, value in self.settings.items():
            if key not in ALWAYS_SHOWN and (
                value in (None, False, 0) or (key.endswith("sirable_weight") and value == 1)
            ):
                continue
            words = SETTING_NAMES.get(key, key.replace("_", " "))
            plain = f"{value:g}" if isinstance(value, int | float) else str(value)
            shown.append(words if value is True else f"{words} {plain}")
        return ", ".join(shown)

    @property
    def measured(self) -> tuple[PreferenceRecord, ...]:
        """Where the course of the training is read off: held-out measurements where there are two, else the steps."""
        return self.held_out if len(self.held_out) > 1 else self.steps

    @property
    def untrained_loss(self) -> float | None:
        """The loss while policy and reference are one model (of a reward model: while it scores both sides alike)."""
        beta = self.settings.get("beta")
        match self.objective:
            case "dpo" if not self.settings.get("sft_weight"):
                return math.log(2)
            case "reward" if not self.settings.get("centering") and not self.settings.get("use_margin"):
                return math.log(2)
            case "hinge":
                return 1.0
            case "ipo" if isinstance(beta, int | float) and beta > 0:
                return (1 / (2 * beta)) ** 2
        return None


def preference_training(
    config: Mapping[str, Any], records: Sequence[Mapping[str, Any]], path: Path
) -> PreferenceTraining | None:
    """Return what a train stage logged of preferences; None where its objective is another one.

    ``records``: all lines of metrics.jsonl, which is at ``path``. Raises RunError where a line does not fit.
    """
    objective = config.get("objective")
    if not isinstance(objective, Mapping) or objective.get("name") not in PREFERENCE_OBJECTIVES:
        return None
    name = str(objective["name"])
    reference = objective.get("reference") or config.get("start_from") or "base"
    split: dict[str, list[Mapping[str, Any]]] = {"train": [], "held_out": []}
    for record in records:
        split.setdefault(str(record.get("split")), []).append(record)
    return PreferenceTraining(
        objective=name,
        settings={key: value for key, value in objective.items() if key not in ("name", "reference")},
        reference=str(reference) if name in WITH_REFERENCE else None,
        steps=parse(tuple[PreferenceRecord, ...], split["train"], path),
        held_out=parse(tuple[PreferenceRecord, ...], split["held_out"], path),
    )


# ---- evaluation ----------------------------------------------------------------------------------------------------


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
