"""AlpacaEval 2: win rates of a model against a baseline, as judged and with the length of the replies taken out.

Preferences are numbers in [1, 2]: 1 where the baseline is surely better, 2 where the model is, 1.5 (or 0, as older files
write it) for a draw, NaN where the judge gave no verdict. The length-controlled win rate (Dubois et al. 2024,
arXiv:2404.04475, section 3; the tool's name for it is ``length_controlled_v1``) is read from a logistic model of them:

    logit p_i = a tanh((length_baseline_i - length_model_i) / sd) + b difficulty_i + q
    LC win rate = 100 mean_i sigmoid(b difficulty_i + q)

a, b and q are fitted to the soft labels p_i = preference_i - 1 by L1 logistic regression, together with the verdicts on two
gamed baselines (the same model told to be verbose or concise) at a small weight. There q is absent: they are the baseline.

numpy, scipy and polars only. Shapes in names: ``I`` instructions, ``N`` rows of the regression, ``K`` its coefficients,
``G`` rows of the gamed baselines, ``D`` folds, ``C`` penalty strengths.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import scipy
from numpy.typing import ArrayLike, NDArray

from posttrain.errors import DataError
from posttrain.stats.intervals import Floats, Interval, IntervalSettings

LEADERBOARD_JUDGE = "weighted_alpaca_eval_gpt4_turbo"
"""The judge of the published leaderboard: gpt-4-1106-preview, one token, weighted by its log-probabilities."""
LARGE_CHANGE = 10.0
"""Points between the raw and the length-controlled win rate above which the result carries a warning."""

_STRENGTHS = np.logspace(-4, 4, 10)
"""The Cs that cross-validation chooses from (scikit-learn's default grid, as the published tool uses it)."""
_FOLDS = 5
_DRAW, _DRAW_OLD = 1.5, 0.0
_GAMED_WEIGHT = 0.2
"""Weight of the gamed baselines beside the model's rows; each of the two gets half of it."""


# ---- the judge's token ---------------------------------------------------------------------------------------------


def shown_swapped(instruction: str) -> bool:
    """Whether AlpacaEval shows the model's reply first: drawn once per instruction, the same for every model.

    The draw of the published annotations (its seed is 0), so they can be parsed again from the stored tokens.
    """
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True], k=1)[0]


def preference_from_logprobs(top_logprobs: Sequence[tuple[str, float]], *, swapped: bool) -> float:
    """The preference that the judge's one token gives, weighted by probability; NaN where it names neither reply.

    ``top_logprobs`` are the most likely first tokens with their log-probabilities. The judge answers ``m`` for the reply
    shown first (the baseline, unless ``swapped``) and ``M`` for the other one. A token that is not among them counts as
    impossible (alpaca_eval, completion_parsers.logprob_parser).
    """
    logprobs = dict(reversed(top_logprobs))  # of a token that stands there twice the likelier one counts
    first, second = (logprobs.get(token, -math.inf) for token in ("m", "M"))
    if max(first, second) == -math.inf:
        return math.nan
    # sigmoid of the difference: exp of both would underflow where the two are unlikely
    preference = 2 - float(scipy.special.expit(first - second))
    return 3 - preference if swapped else preference


# ---- raw win rates -------------------------------------------------------------------------------------------------


class WinRate(NamedTuple):
    """How often the model is preferred, in percent, over the instructions that got a verdict."""

    win_rate: float
    """Mean of preference - 1, times 100."""
    standard_error: float
    """Standard error of that mean (ddof 1) in points; NaN with one verdict."""
    judged: int
    missing: int
    """Instructions without a verdict: in none of the numbers above."""


def win_rate(preferences_I: ArrayLike) -> WinRate:
    """Raw win rate of a list of preferences (0 or 1.5 is a draw, NaN is missing).

    Raises:
        DataError: nothing was judged, or a preference is neither 0 nor in [1, 2].

    """
    shares_I = _shares(preferences_I)
    judged = shares_I[~np.isnan(shares_I)]
    if judged.size == 0:
        raise DataError(
            f"none of {shares_I.size} preferences holds a verdict",
            fix="look at the judge's replies: its parser found no verdict in any",
        )
    error = float(np.std(judged, ddof=1) / math.sqrt(judged.size)) if judged.size > 1 else math.nan
    return WinRate(100 * float(judged.mean()), 100 * error, judged.size, shares_I.size - judged.size)


def _shares(preferences_I: ArrayLike) -> Floats:
    """Preferences as the model's share of each verdict, in [0, 1]; NaN stays."""
    preferences = np.asarray(preferences_I, dtype=np.float64)
    preferences = np.where(preferences == _DRAW_OLD, _DRAW, preferences)
    wrong = np.flatnonzero((preferences < 1) | (preferences > 2))
    if wrong.size:
        raise DataError(
            f"{preferences[wrong[0]]} is no preference",
            where=f"preference {wrong[0]}",
            fix="give 1 (baseline better) to 2 (model better), 1.5 or 0 for a draw, NaN where there is no verdict",
        )
    return preferences - 1


# ---- L1 logistic regression ----------------------------------------------------------------------------------------


def l1_logistic(
    features_NK: Floats, labels_N: Floats, weights_N: Floats, strength: float, start_K: Floats | None = None
) -> Floats:
    """Coefficients [K] of a logistic regression with an L1 penalty and soft labels, without intercept. K is 3 at most.

    Minimises ``|w|_1 + strength * sum_i weights_i [log(1 + exp(x_i w)) - labels_i x_i w]``, which is liblinear's objective
    with every row given twice, as y = 1 with weight ``labels_i`` and as y = 0 with the rest. Proximal Newton steps (Lee, Sun
    and Saunders 2014, arXiv:1206.1623): exact to rounding, where liblinear stops at a relative tolerance of 1e-4.
    ``strength`` is scikit-learn's C.
    """
    coefficients = np.zeros(features_NK.shape[1]) if start_K is None else start_K.copy()
    scaled_N = strength * weights_N
    # rounding of the sums in the gradient: nothing below it can be told from zero
    tolerance = 1e-12 * (1 + float(scaled_N @ np.abs(features_NK).max(axis=1, initial=0.0)))

    def objective(w: Floats) -> float:
        logits = features_NK @ w
        return float(np.abs(w).sum() + scaled_N @ (np.logaddexp(0, logits) - labels_N * logits))

    value, gained, last = objective(coefficients), math.inf, math.inf
    for _ in range(200):
        chances_N = scipy.special.expit(features_NK @ coefficients)
        gradient = features_NK.T @ (scaled_N * (chances_N - labels_N))
        moving = coefficients != 0
        violations = np.where(moving, np.abs(gradient + np.sign(coefficients)), np.maximum(np.abs(gradient) - 1, 0))
        violation = float(violations.max(initial=0.0))
        # near the optimum rounding hides what a step gains; go on while the conditions still get truer
        if violation <= tolerance or (gained <= 0 and violation > last / 2):
            break
        curvature = (features_NK.T * (scaled_N * chances_N * (1 - chances_N))) @ features_NK
        target = _penalised_quadratic(gradient, curvature, coefficients)
        step = target - coefficients
        promised = float(gradient @ step + np.abs(target).sum() - np.abs(coefficients).sum())
        size, rounding = 1.0, 1e-14 * (1 + abs(value))
        while (found := objective(coefficients + size * step)) > value + 1e-4 * size * promised + rounding:
            size /= 2
            if size < 1e-10:
                return coefficients
        coefficients, gained, value, last = coefficients + size * step, value - found, found, violation
    return coefficients


def _penalised_quadratic(gradient_K: Floats, curvature_KK: Floats, start_K: Floats) -> Floats:
    """The w that minimises ``g (w - start) + (w - start) H (w - start) / 2 + |w|_1``.

    Once it is known which coefficients are 0 and which signs the others have, a linear system gives the minimum; it is taken
    where it agrees with them. The signs of the start are tried first, then all there are.
    """
    for signs_K in (np.sign(start_K), *_sign_patterns(len(start_K))):
        active, w = signs_K != 0, np.zeros_like(start_K)
        if active.any():
            right = curvature_KK[active] @ start_K - gradient_K[active] - signs_K[active]
            try:
                w[active] = np.linalg.solve(curvature_KK[np.ix_(active, active)], right)
            except np.linalg.LinAlgError:
                continue
        slope = gradient_K + curvature_KK @ (w - start_K)
        if np.array_equal(np.sign(w), signs_K) and np.all(np.abs(slope[~active]) <= 1 + 1e-9):
            return w
    return start_K


@cache
def _sign_patterns(size: int) -> tuple[Floats, ...]:
    """Every pattern of -1, 0 and 1."""
    return tuple(map(np.array, itertools.product((-1.0, 0.0, 1.0), repeat=size)))


def _chosen_strength(features_NK: Floats, labels_N: Floats, weights_N: Floats) -> float:
    """The weakest penalty (largest C) that five-fold cross-validation can't tell from the best one.

    That is: its mean held-out loss exceeds the smallest by no more than the standard error of the difference over the folds. The
    published tool takes the smallest itself. From sums of the gamed verdicts that is mostly 2.78, with scikit-learn as
    here, while the published weights are those of 21.5 or more; from there on the fit hardly moves. Over 25 models the
    length-controlled win rate is off by 0.057 points on average with the smallest loss, by 0.025 with this rule.

    A row's fold is its number modulo five. (scikit-learn's GroupKFold deals equally large groups in the order of an unstable
    sort, which differs between machines; any order does.)
    """
    folds_N = np.arange(len(labels_N)) % _FOLDS
    losses_DC = np.zeros((_FOLDS, len(_STRENGTHS)))
    for fold in range(_FOLDS):
        kept, held = folds_N != fold, folds_N == fold
        found_K = None
        for number, strength in enumerate(_STRENGTHS):
            found_K = l1_logistic(features_NK[kept], labels_N[kept], weights_N[kept], float(strength), found_K)
            logits = features_NK[held] @ found_K
            losses_DC[fold, number] = np.mean(weights_N[held] * (np.logaddexp(0, logits) - labels_N[held] * logits))
    return float(_STRENGTHS[_last_as_good_as_best(losses_DC)])


def _last_as_good_as_best(losses_DC: Floats) -> int:
    """The last column whose mean exceeds the smallest by no more than the standard error of their difference over the rows."""
    best = int(np.argmin(losses_DC.mean(axis=0)))
    excess = losses_DC - losses_DC[:, [best]]
    error = np.std(excess, axis=0, ddof=1) / math.sqrt(len(losses_DC))
    # Where a single fold differs the two are equal but for rounding, which must not decide.
    as_good = excess.mean(axis=0) <= error * (1 + 1e-9) + 1e-15
    return int(np.flatnonzero(as_good)[-1])


# ---- the published model -------------------------------------------------------------------------------------------


class GlmWeights(NamedTuple):
    """Coefficients of one model's regression."""

    length: float
    """a: what a shorter reply gains, in logits per tanh of standardised length difference (mostly negative)."""
    difficulty: float
    """b: how much more the model wins where instructions suit it; 0 where no difficulties are known."""
    quality: float
    """q: the model against the baseline at equal length and difficulty 0."""


@dataclass(frozen=True)
class PublishedGlm:
    """What the published regression takes as given: the 805 instructions, and the verdicts on two gamed baselines."""

    difficulty_I: Floats
    baseline_lengths_I: Floats
    """Characters of the baseline's replies, by which a prompt set is recognised as AlpacaEval's."""
    gamed_tanh_G: Floats
    gamed_difficulty_G: Floats
    gamed_labels_G: Floats
    """In [0, 1]: the gamed baseline's share of each verdict."""


def published_glm(
    difficulty_I: ArrayLike,
    baseline_lengths_I: ArrayLike,
    gamed_lengths: Sequence[ArrayLike],
    *,
    sum_label_tanh: float,
    sum_label_difficulty: float,
) -> PublishedGlm:
    """The fixed part of the regression, from sufficient statistics of the gamed verdicts.

    A logistic fit depends on labels y only through sums of y times a feature, so the gamed verdicts enter by two numbers.
    Cross-validation splits the rows, so it wants labels row by row: here they are the least informative ones with these two
    sums, sigmoid(u tanh + v difficulty) with u and v solved for. ``gamed_lengths`` are characters, a list per gamed baseline.

    Raises:
        DataError: the lists differ in length, or no labels in [0, 1] have these sums.

    """
    from scipy import optimize

    difficulty, baseline, *gamed = (
        np.asarray(x, dtype=np.float64) for x in (difficulty_I, baseline_lengths_I, *gamed_lengths)
    )
    if {x.shape for x in (baseline, *gamed)} != {difficulty.shape}:
        raise DataError(
            f"{difficulty.size} difficulties, {baseline.size} baseline lengths, gamed lengths {[x.size for x in gamed]}",
            fix="give one of each per instruction",
        )
    features_GK = np.concatenate([np.column_stack([_length_feature(baseline, x), difficulty]) for x in gamed])
    wanted_K = np.array([sum_label_tanh, sum_label_difficulty])

    def excess(w_K: Floats) -> Floats:
        return np.asarray(features_GK.T @ scipy.special.expit(features_GK @ w_K) - wanted_K, dtype=np.float64)

    found = optimize.root(excess, np.zeros(2), tol=1e-12)
    if np.abs(excess(found.x)).max() > 1e-6 * (1 + np.abs(wanted_K).max()):
        raise DataError(
            f"no verdicts in [0, 1] have the sums {wanted_K.tolist()}",
            fix="give sums of label times feature over both gamed baselines, labels between 0 and 1",
        )
    return PublishedGlm(
        difficulty, baseline, features_GK[:, 0], features_GK[:, 1], scipy.special.expit(features_GK @ found.x)
    )


def read_published_glm(*, difficulty: Path, instructions: Path, lengths: Path, gamed: Path) -> PublishedGlm:
    """Read the fixed part of the regression.

    ``difficulty`` is a CSV with ``index`` and ``instruction_difficulty``; ``instructions`` one with ``len_baseline``;
    ``lengths`` one with a column of reply lengths for each of ``gpt4_1106_preview_verbose`` and ``_concise``; ``gamed`` a
    JSON object with ``sum_y_tanh`` and ``sum_y_difficulty`` over the two. CSV files may be compressed with gzip.

    Raises:
        DataError: a file is missing, can't be read or lacks a column.

    """
    gamed_lengths = _columns(lengths, "gpt4_1106_preview_verbose", "gpt4_1106_preview_concise")
    try:
        statistics = json.loads(gamed.read_text(encoding="utf-8"))
        sums = float(statistics["sum_y_tanh"]), float(statistics["sum_y_difficulty"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"can't read sum_y_tanh and sum_y_difficulty: {error}", where=str(gamed), fix="give a JSON object with both"
        ) from error
    (difficulty_I,), (baseline_lengths_I,) = (
        _columns(difficulty, "instruction_difficulty"),
        _columns(instructions, "len_baseline"),
    )
    return published_glm(
        difficulty_I, baseline_lengths_I, gamed_lengths, sum_label_tanh=sums[0], sum_label_difficulty=sums[1]
    )


def _columns(path: Path, *names: str) -> list[Floats]:
    try:
        table = pl.read_csv(path, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"can't read this CSV: {error}", where=str(path), fix="check the path and the file") from error
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise DataError(
            f"no column {missing[0]!r} among {table.columns[:6]}", where=str(path), fix="give the other file"
        )
    try:
        return [table[name].cast(pl.Float64).to_numpy().astype(np.float64) for name in names]
    except pl.exceptions.PolarsError as error:
        raise DataError(f"not all numbers: {error}", where=str(path), fix="mend the column") from error


# ---- length-controlled win rates -----------------------------------------------------------------------------------


def predicted_wins(weights: GlmWeights, difficulty_I: ArrayLike) -> Floats:
    """The chance [I] in [0, 1] that a model is preferred at equal length; its mean times 100 is the length-controlled win rate."""
    logits = weights.quality + weights.difficulty * np.asarray(difficulty_I, dtype=np.float64)
    return np.asarray(scipy.special.expit(logits), dtype=np.float64)


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate with what it rests on."""

    interval: Interval
    """In percent, with the bootstrap percentile interval over instructions."""
    weights: GlmWeights
    raw: WinRate
    not_comparable: str
    """Why these numbers may not stand beside the leaderboard's; empty where they may."""
    warnings: tuple[str, ...]


class _Rows(NamedTuple):
    """One model's verdicts and what the regression knows about each."""

    shares_I: Floats
    lengths_I: Floats
    baseline_lengths_I: Floats
    difficulty_I: Floats
    """0 where it is not known."""


def length_controlled_win_rate(
    preferences_I: ArrayLike,
    lengths_I: ArrayLike,
    baseline_lengths_I: ArrayLike,
    *,
    judge: str,
    published: PublishedGlm | None = None,
    instructions_I: ArrayLike | None = None,
    settings: IntervalSettings = IntervalSettings(resamples=1000),
) -> LengthControlled:
    """Length-controlled win rate of one model.

    Lengths are characters of the replies. ``published`` is the fixed part of AlpacaEval's regression and ``instructions_I`` the
    numbers (from 0) of the instructions in it, by default 0, 1, 2, ... Where the baseline's replies have the published lengths
    there, the published regression is used; otherwise this is another prompt set or baseline, about whose difficulty nothing
    is known, and the minimal one (length and quality) takes its place. Only the published regression on all instructions
    with the leaderboard's ``judge`` gives numbers that may stand beside the leaderboard (leaving the difficulties out moves
    them by 7 points on average); ``not_comparable`` says so.

    The interval resamples instructions (with verdict and lengths) and fits again, at the C chosen once; the difficulties and
    the gamed verdicts stay as they are.

    Raises:
        DataError: fewer than five verdicts, a preference out of range, or lengths whose difference never varies.

    """
    raw, shares_I = win_rate(preferences_I), _shares(preferences_I)
    lengths_I, baseline_I = (np.asarray(x, dtype=np.float64) for x in (lengths_I, baseline_lengths_I))
    numbers_I = np.arange(shares_I.size) if instructions_I is None else np.asarray(instructions_I)
    given = published if published is not None and _is_published(published, numbers_I, baseline_I) else None
    difficulty_I = np.zeros_like(shares_I) if given is None else given.difficulty_I[numbers_I]
    rows = _Rows(shares_I, lengths_I, baseline_I, difficulty_I)
    reason = _not_comparable(shares_I.size, published, judge, known=given is not None)
    if np.array_equal(lengths_I, baseline_I) and np.all(shares_I == 0.5):
        # the baseline against itself: one half by definition, and nothing to fit
        half = Interval(50.0, 50.0, 50.0, settings.confidence)
        return LengthControlled(half, GlmWeights(0.0, 0.0, 0.0), raw, reason, ())
    if raw.judged < _FOLDS:
        raise DataError(
            f"{raw.judged} verdicts are too few for length control (cross-validation splits them in {_FOLDS})",
            fix="judge more instructions, or read the raw win rate",
        )
    longer_I = lengths_I - baseline_I
    if np.all(longer_I == longer_I[0]):
        raise DataError(
            f"every reply is {longer_I[0]:g} characters longer than the baseline's: length can't be told from quality",
            fix="check that the lengths belong to these replies, or read the raw win rate",
        )
    regression = _regression(rows, given)
    strength = _chosen_strength(*regression)
    start_K = l1_logistic(*regression, strength)
    rng, draws = np.random.default_rng(settings.seed), np.empty(settings.resamples)
    for number in range(settings.resamples):
        drawn_I = rng.integers(shares_I.size, size=shares_I.size)
        again = _Rows(*(column_I[drawn_I] for column_I in rows))
        found_K = l1_logistic(*_regression(again, given), strength, start_K)
        draws[number] = 100 * predicted_wins(GlmWeights(*found_K), again.difficulty_I).mean()
    weights = GlmWeights(*map(float, start_K))
    estimate = 100 * float(predicted_wins(weights, difficulty_I).mean())
    interval = Interval(estimate, *settings.ends(draws), settings.confidence)
    return LengthControlled(interval, weights, raw, reason, tuple(_warnings(raw, estimate)))


def _warnings(raw: WinRate, estimate: float) -> list[str]:
    warnings = []
    if abs(change := estimate - raw.win_rate) > LARGE_CHANGE:
        warnings.append(
            f"length control moves the win rate by {change:+.1f} points ({raw.win_rate:.1f} to {estimate:.1f}): "
            "look at the lengths, and at whether this judge follows them, before trusting either"
        )
    if raw.missing:
        warnings.append(
            f"{raw.missing} of {raw.missing + raw.judged} instructions have no verdict; "
            "they are in the read-out, but nothing was learnt from them"
        )
    return warnings


def _is_published(published: PublishedGlm, numbers_I: NDArray[np.int64], baseline_lengths_I: Floats) -> bool:
    """Whether these are instructions of the published set, each once, with the published baseline's replies."""
    inside = bool(np.all((numbers_I >= 0) & (numbers_I < published.difficulty_I.size)))
    once = np.unique(numbers_I).size == numbers_I.size
    return inside and once and np.array_equal(published.baseline_lengths_I[numbers_I], baseline_lengths_I)


def _not_comparable(size: int, published: PublishedGlm | None, judge: str, *, known: bool) -> str:
    """Why the numbers may not stand beside the leaderboard's."""
    if published is None:
        return (
            "fitted without the published instruction difficulties and gamed baselines, on length and quality alone: "
            "this is another quantity than the leaderboard's"
        )
    if not known:
        return (
            "the baseline's replies are not those of AlpacaEval 2 (another prompt set, order or baseline): no difficulties "
            "are known for it, so length and quality alone were fitted; this is another quantity than the leaderboard's"
        )
    if size != published.difficulty_I.size:
        return f"{size} of the {published.difficulty_I.size} instructions: the leaderboard averages over all"
    if judge != LEADERBOARD_JUDGE:
        return f"judged by {judge}; the leaderboard's judge is {LEADERBOARD_JUDGE}, and win rates move with the judge"
    return ""


def _length_feature(baseline_lengths_I: Floats, lengths_I: Floats) -> Floats:
    """tanh of the length difference in its standard deviations (ddof 1), not centred."""
    difference = baseline_lengths_I - lengths_I
    deviation = float(np.std(difference, ddof=1))
    return np.tanh(difference / deviation) if deviation else np.zeros_like(difference)


def _regression(rows: _Rows, published: PublishedGlm | None) -> tuple[Floats, Floats, Floats]:
    """(features_NK, labels_N, weights_N): the gamed rows, if any, before the model's rows with a verdict."""
    length_I = _length_feature(rows.baseline_lengths_I, rows.lengths_I)
    judged_I = ~np.isnan(rows.shares_I)
    own_IK = np.column_stack([length_I, rows.difficulty_I, np.ones_like(length_I)])[judged_I]
    labels_I = rows.shares_I[judged_I]
    if published is None:
        return own_IK, labels_I, np.ones_like(labels_I)
    gamed_G = published.gamed_labels_G
    gamed_GK = np.column_stack([published.gamed_tanh_G, published.gamed_difficulty_G, np.zeros_like(gamed_G)])
    return (
        np.concatenate([gamed_GK, own_IK]),
        np.concatenate([gamed_G, labels_I]),
        np.concatenate([np.full_like(gamed_G, _GAMED_WEIGHT / 2), np.ones_like(labels_I)]),
    )
