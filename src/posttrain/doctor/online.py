"""Rules about learning from replies of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from posttrain.doctor.course import Trace, logged, trace
from posttrain.doctor.evidence import TrainEvidence
from posttrain.doctor.findings import Cause, Finding, Outcome, Severity, Unknown
from posttrain.doctor.training import ERRORS, RISE_NOISE, loose, too_fast
from posttrain.objectives.online_dpo import OnlineDpo
from posttrain.objectives.policy_gradient import PolicyGradient
from posttrain.online.records import Measured
from posttrain.online.scores import part_names
from posttrain.report.numbers import fixed, percent
from posttrain.stats.intervals import MeanDifference, mean_difference

FEWEST_PROMPTS = 20
"""Fewer held-out prompts say less of the reward than the steps do. Ours."""
HALVED = 0.5
"""Variety that fell below this share of where it began. Ours."""
SHRUNK, GROWN = 1 / 3, 3.0
"""A length beyond these times of where it began is no longer the same kind of reply. Ours."""
LOST = 0.5
"""A score that lost this share of what it had gained is past its best. Ours."""
SURE = 0.2
"""A policy whose entropy fell below this share of where it began always says the same. Ours."""
SILENT, NEARLY_SILENT = 0.5, 0.85
"""Share of groups without signal that is named, and that is an alarm: 0.85 is p^8 + (1 - p)^8 of replies that pass in 2% of cases."""
GONE = 0.1
"""A deviation of the rewards below this share of where it began is gone. Ours."""
HIGH = 0.8
"""A reward above this share of the most there can be is high. Ours."""
MANY_CUT = 0.5
"""Share of replies at the limit of tokens from which on the limit decides what they are worth. Ours."""
CLIP_HIGHER = 0.28
"""DAPO's upper clip: rare tokens may become likelier (arXiv:2503.14476)."""
BOUNDED = {"checks", "task"}
"""Scores that are 1 at most."""


def _scores(seen: TrainEvidence) -> list[tuple[str, float, str]]:
    """(name in the metrics, weight, kind) of every score."""
    weights = [one.get("weight", 1.0) for one in seen.scores]
    names = [str(one.get("name")) for one in seen.scores]
    return [
        (name, float(weight) if isinstance(weight, int | float) else 1.0, kind)
        for name, weight, kind in zip(part_names(names), weights, names, strict=True)
    ]


# ---- how the reward went -------------------------------------------------------------------------------------------


def change_between(before: Measured, after: Measured) -> MeanDifference | None:
    """How far the rewards of the held-out prompts lie above those of an earlier measurement, prompt by prompt; None of too few."""
    rows = sorted(set(before.rewards) & set(after.rewards))
    if len(rows) < FEWEST_PROMPTS:
        return None
    return mean_difference([before.rewards[row] for row in rows], [after.rewards[row] for row in rows])


def _rose(seen: TrainEvidence, reward: Trace) -> bool | None:
    """Whether the reward is shown to have risen: on the held-out prompts, or else over the steps. None: these can't tell."""
    change = change_between(seen.answered[0], seen.answered[-1]) if len(seen.answered) > 1 else None
    if change is not None:
        return change.estimate > ERRORS * change.error
    if seen.relative:
        return None
    return reward.change > RISE_NOISE * reward.error


def _is_high(seen: TrainEvidence, reward: Trace) -> bool:
    """Whether it ended near the most that there can be, where that is known."""
    scores = _scores(seen)
    bounded = bool(scores) and all(kind in BOUNDED and weight >= 0 for _, weight, kind in scores)
    return bounded and reward.last >= HIGH * sum(weight for _, weight, _ in scores) > 0


# ---- reward hacking ------------------------------------------------------------------------------------------------


class _Judgement(NamedTuple):
    """What something other than the reward says of the same training."""

    what: str
    fell: bool
    severity: Severity
    change: float
    low: float
    high: float
    since: int = 0
    """The step it is compared with."""
    mends: tuple[str, ...] = ()


def reward_hacking(seen: TrainEvidence) -> Outcome:
    """The reward that is trained rises while something else that judges the replies falls."""
    reward = logged(seen.training, "reward")
    if reward is None:
        return Unknown("steps")
    rose = _rose(seen, reward)
    if rose is None:
        return Unknown("held_out")
    if not rose:
        return None
    judged = [*_other_scores(seen, reward), *_measured(seen)]
    fallen = sorted((one for one in judged if one.fell), key=lambda one: one.severity)  # alarms first
    if not fallen:
        drifted = [one for one in _drift(seen) if one.fell]
        if judged:
            return None
        if not drifted:
            return Unknown("other_judgement")
        fallen = drifted
    worst = fallen[0]
    past = (Cause("past_best", (seen.setting("steps", worst.since),)),) if worst.since else ()
    left_out = Cause("one_score", worst.mends)
    numbers = {"first": reward.first, "last": reward.last, **worst._asdict()}
    return Finding(worst.severity, (*past, left_out, *loose(seen), too_fast(seen)), numbers)


def _other_scores(seen: TrainEvidence, reward: Trace) -> Iterator[_Judgement]:
    """The scores of the stage beside each other: one of weight 0 judges freely, one that counts may have been traded for another."""
    scores = _scores(seen)
    for place, (name, weight, _) in enumerate(scores):
        part = logged(seen.training, f"reward/{name}") if len(scores) > 1 else None
        if part is None:
            continue
        part = part.times(-1.0) if weight < 0 else part
        top = int(np.argmax(part.means_T))
        best, since = float(part.means_T[top]), part.step_at(top)
        change = part.last - best
        meanwhile = reward.last - reward.at(since)
        fell = -change > RISE_NOISE * part.error and meanwhile > -reward.error
        free = not weight and -change >= LOST * (best - part.first)
        half = 1.96 * part.error
        mend = seen.setting(f"scores.{place}.weight", 2.0 * weight if weight else 1.0)
        start = top == 0
        yield _Judgement(
            f"reward/{name}", fell, "alarm" if free else "remark", change, change - half, change + half,
            0 if start else since, (mend,),
        )  # fmt: skip


def _measured(seen: TrainEvidence) -> Iterator[_Judgement]:
    """The evaluations of the run that hold this model beside the one it is compared with."""
    for one in seen.measured:
        facts, base = one.facts, one.facts.record.baseline
        severity: Severity = "remark" if facts.record.task == "likelihood" else "alarm"
        for found in facts.differences:
            if (found.record.a, found.record.b) == (base, seen.name) and found.measure.headline:
                low, high = found.record.low, found.record.high
                ends = found.record.difference, low or 0.0, high or 0.0
                yield _Judgement(f"{facts.name}, {found.measure.label}", found.verdict == "worse", severity, *ends)
        for contest in facts.contests:
            if (contest.model, contest.against) == (seen.name, base) and contest.rate is not None:
                rate = contest.rate
                ends = rate.estimate - 0.5, rate.low - 0.5, rate.high - 0.5
                yield _Judgement(f"{facts.name}, win rate - 50%", contest.verdict == "worse", severity, *ends)


def _drift(seen: TrainEvidence) -> Iterator[_Judgement]:
    """What the replies became: a hint, no judgement."""
    for key, least, most in (("distinct_2", HALVED, np.inf), ("length", SHRUNK, GROWN)):
        found = logged(seen.training, key)
        if found is not None:
            moved = not least * found.first < found.last < most * found.first
            moved = moved and abs(found.change) > RISE_NOISE * found.error
            half = 1.96 * found.error
            yield _Judgement(key, moved, "remark", found.change, found.change - half, found.change + half)


# ---- collapse ------------------------------------------------------------------------------------------------------


def collapse(seen: TrainEvidence) -> Outcome:
    """The policy loses what it had learned, or its replies become one."""
    reward = logged(seen.training, "reward")
    if reward is None:
        return Unknown("steps")
    top = int(np.argmax(reward.means_T))
    best, error = float(reward.means_T[top]), reward.error
    shown = RISE_NOISE * error
    back = best - reward.last > shown and reward.last <= reward.first + error
    half_back = best - reward.last > max(shown, LOST * (best - reward.first))
    better = _rose(seen, reward) is not False or _is_high(seen, reward)
    alike = _became_one(seen)
    dead = not better and _deviation_gone(seen)
    if not (back or half_back or alike or dead):
        return None
    numbers = {"first": reward.first, "best": best, "best_step": reward.step_at(top), "last": reward.last}
    ends = {key: logged(seen.training, key) for key in ("distinct_2", "entropy")}
    words = {
        name: "-" if one is None else f"{fixed(one.first)} -> {fixed(one.last)}"
        for name, one in zip(("variety", "entropy"), ends.values(), strict=True)
    }
    cut, equal = (logged(seen.training, key) for key in ("replies/cut", "groups/equal"))
    words |= {"cut": percent(cut.last if cut else None, 0), "equal": percent(equal.last if equal else None, 0)}
    severity: Severity = "alarm" if back or dead or (alike and not better) else "remark"
    return Finding(severity, _why_collapsed(seen, alike=alike), {**numbers, **words})


def _became_one(seen: TrainEvidence) -> bool:
    """Whether pairs of words, or the choice of the next token, lost their variety."""
    for key, least in (("distinct_2", HALVED), ("entropy", SURE)):
        found = logged(seen.training, key)
        if found is not None and found.last <= least * found.first and -found.change > RISE_NOISE * found.error:
            return True
    return False


def _deviation_gone(seen: TrainEvidence) -> bool:
    """Whether the replies of a step came to be worth the same, in nearly every group."""
    deviation, equal = logged(seen.training, "reward/deviation"), logged(seen.training, "groups/equal")
    if deviation is None or equal is None or deviation.first <= 0:
        return False
    return deviation.last <= GONE * deviation.first and equal.last >= NEARLY_SILENT


def _why_collapsed(seen: TrainEvidence, *, alike: bool) -> tuple[Cause, ...]:
    """The likeliest first: labels without an optimum, the rate, replies gone through too often, too loose a hold."""
    method, passes = seen.training.objective, seen.config.get("passes", 1)
    causes = [too_fast(seen)]
    if isinstance(method, OnlineDpo) and method.labels == "hard":
        causes.insert(0, Cause("hard_labels", (seen.setting("method.labels", "soft"),)))
    if _count(passes) > 1:
        causes.append(Cause("many_passes", (seen.setting("passes", 1),)))
    causes += loose(seen)
    clips = isinstance(method, PolicyGradient) and method.ratio == "token" and method.clip_high < CLIP_HIGHER
    if alike and clips and _count(passes) * _count(seen.config.get("minibatches")) > 1:
        causes.append(Cause("clip_tight", (seen.setting("method.clip_high", CLIP_HIGHER),)))
    return tuple(causes)


# ---- no signal -----------------------------------------------------------------------------------------------------


def no_signal(seen: TrainEvidence) -> Outcome:
    """In most groups all replies scored the same, and nothing was learned from them."""
    method = seen.training.objective
    if isinstance(method, PolicyGradient) and method.compares_all:
        silent = trace(seen.training, _step_silent)
    else:
        silent = logged(seen.training, "groups/equal")
    reward = logged(seen.training, "reward")
    if silent is None or reward is None:
        return Unknown("steps")
    share = float(np.clip(silent.values_T.mean(), 0.0, 1.0))
    if share < SILENT:
        return None
    solved = bool(_rose(seen, reward) or _is_high(seen, reward)) and silent.last > silent.first
    prompts, replies = (_count(seen.config.get(key)) for key in ("prompts", "replies"))
    numbers = {"share": share, "prompts": prompts, "real": prompts * (1 - share), "reward": reward.last}
    alarm = share >= NEARLY_SILENT and not solved
    return Finding("alarm" if alarm else "remark", _why_silent(seen, share, replies, solved=solved), numbers)


def _step_silent(metrics: Mapping[str, float]) -> float | None:
    deviation = metrics.get("reward/deviation")
    return None if deviation is None else float(deviation == 0)


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 1


def _why_silent(seen: TrainEvidence, share: float, replies: int, *, solved: bool) -> tuple[Cause, ...]:
    """The likeliest first: there is nothing left to learn, the score is one number, the limit decides, the prompts or their number do."""
    more = Cause("few_replies", (seen.setting("replies", 2 * replies),))
    hard = Cause("too_hard")
    if solved:
        return Cause("solved"), hard, more
    deviation, cut = (logged(seen.training, key) for key in ("reward/deviation", "replies/cut"))
    if deviation is not None and not deviation.values_T.any():
        first = [Cause("constant_score")]
    else:
        first = []
    if cut is not None and cut.values_T.mean() >= MANY_CUT and seen.config.get("cut_replies", 0.0) != "score":
        longer = 2 * _count(seen.config.get("max_new_tokens", 256))
        first.append(Cause("limit_decides", (seen.setting("max_new_tokens", longer),)))
    return (*first, hard, more) if share >= NEARLY_SILENT else (*first, more, hard)
