"""Rules about what a trained model does: measured by the run's own evaluations, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from posttrain.doctor.evidence import Measured, TrainEvidence
from posttrain.doctor.findings import Cause, Finding, Outcome, Unknown
from posttrain.doctor.training import too_fast
from posttrain.report.numbers import percent
from posttrain.stats.intervals import compare, mean, wilson
from posttrain.tasks.ngrams import repetition

FORGOTTEN = 0.02
"""Share by which the loss on other rows may grow (the tolerance of Soup's probe)."""
HIGH_RANK = 16
"""Above this rank an adapter may have more room than the task needs; the guidance starts here."""
REPEATS, REPEATS_TIMES = 0.1, 3.0
"""Share of a reply's runs of four words that stood in it before; the same as a multiple of the model it is compared with."""
FEWEST_REPLIES = 10
"""Fewer replies say nothing of a model's habits. Ours."""
OFTEN_CUT = 0.3
"""Share of replies that ran into the limit of tokens, from which on a model may not know how to end. Ours."""


def writes(seen: TrainEvidence) -> bool:
    """It is a model that writes."""
    return seen.training.objective.head == "tokens"


def forgetting(seen: TrainEvidence) -> Outcome:
    """The model became worse at what it was not trained on."""
    found = [_forgotten(seen, one) for one in seen.measured if one.facts.record.baseline != seen.name]
    known = [one for one in found if not isinstance(one, Unknown)]
    if not known:
        return Unknown("other_rows")
    return next((one for one in known if one is not None), None)


def _forgotten(seen: TrainEvidence, one: Measured) -> Outcome:
    facts, other = one.facts, one.data != seen.config.get("data")
    if facts.record.task == "likelihood" and other:
        lost = facts.against_baseline(seen.name, "loss")
        base = next(
            (r.estimate for r in facts.record.results if (r.model, r.measure) == (facts.record.baseline, "loss")), None
        )
        if lost is None or lost.record.low is None or not base:
            return Unknown("other_rows")
        if lost.record.low <= 0:
            return None
        alarm, what = lost.record.difference > FORGOTTEN * base, "loss"
    elif facts.record.area in ("reasoning", "instructions"):
        worse = [
            c for c in facts.differences if c.record.b == seen.name and c.measure.headline and c.verdict == "worse"
        ]
        if not worse:
            return None
        lost, alarm, what = worse[0], True, worse[0].measure.label
    else:
        return Unknown("other_rows")
    ends = {"difference": lost.record.difference, "low": lost.record.low, "high": lost.record.high}
    numbers = {
        "what": what,
        "where": one.data if other and what == "loss" else facts.record.title,
        **ends,
        "rows": lost.record.prompts,
    }
    adapter = seen.config.get("adapter")
    rank = adapter.get("rank") if isinstance(adapter, dict) else None
    high = isinstance(rank, int) and rank > HIGH_RANK
    wide = (Cause("rank_high", (seen.setting("adapter.rank", HIGH_RANK),)),) if high else ()
    return Finding("alarm" if alarm else "remark", (too_fast(seen), *wide, Cause("no_general_rows")), numbers)


class Spoken(NamedTuple):
    """What was measured of the replies of a model and of the one it is compared with (None: it is alone), prompt by prompt."""

    own: list[float]
    base: list[float] | None


def _replies(seen: TrainEvidence) -> Iterator[Spoken]:
    """How far the replies repeat themselves, in every measurement that has some."""
    for one in seen.measured:
        record = one.facts.record
        by_model: dict[str, dict[tuple[str, int], float]] = {}
        for row in one.facts.rows:
            if row.replies and (found := repetition(" ".join(row.replies))) is not None:
                by_model.setdefault(row.model, {})[row.prompt_id, row.sample] = found[0]
        own, base = by_model.get(seen.name, {}), by_model.get(record.baseline, {})
        both = [key for key in own if key in base]
        if record.baseline != seen.name and len(both) >= FEWEST_REPLIES:
            yield Spoken([own[key] for key in both], [base[key] for key in both])
        elif len(own) >= FEWEST_REPLIES:
            yield Spoken(list(own.values()), None)


def output_repeats(seen: TrainEvidence) -> Outcome:
    """The model repeats itself."""
    spoken = next(_replies(seen), None)
    if spoken is None:
        return Unknown("replies")
    own = mean(spoken.own)
    base = None if spoken.base is None else float(np.mean(spoken.base))
    more = None if spoken.base is None else compare(spoken.base, spoken.own).interval
    much = own.estimate > REPEATS or (base is not None and own.estimate > REPEATS_TIMES * base)
    if not much or (more is not None and more.low <= 0):
        return None
    numbers: dict[str, float | str] = {"share": own.estimate, "low": own.low, "high": own.high}
    numbers["replies"] = len(spoken.own)
    numbers["base"] = percent(base, 0)
    facts = seen.examples
    uniform = facts is not None and max(facts.repetition, facts.repeated_replies / max(1, facts.long_replies)) > REPEATS
    causes = [too_fast(seen)]
    causes += [] if seen.own else [Cause("overfitting", (seen.setting("epochs", seen.epochs / 2),))]
    causes.insert(0 if uniform else len(causes), Cause("uniform_rows"))
    return Finding("alarm" if base is not None else "remark", (*causes, Cause("greedy")), numbers)


def never_stops(seen: TrainEvidence) -> Outcome:
    """Replies run into the limit of tokens."""
    for one in seen.measured:
        record = one.facts.record
        counts = {
            model: (record.replies[model].cut, sum(len(row.replies) for row in one.facts.rows if row.model == model))
            for model in (seen.name, record.baseline)
            if model in record.replies
        }
        if seen.name not in counts or any(not max(cut, FEWEST_REPLIES) <= count for cut, count in counts.values()):
            continue
        own, base = wilson(*counts[seen.name]), wilson(*counts[record.baseline]) if record.baseline in counts else None
        if own.estimate < OFTEN_CUT or (base is not None and own.low <= base.high):
            return None
        numbers: dict[str, float | str] = {"share": own.estimate, "low": own.low, "high": own.high}
        numbers["replies"] = counts[seen.name][1]
        numbers["base"] = percent(None if base is None else base.estimate, 0)
        facts = seen.examples
        trained = facts is None or facts.stops >= 0.8 * facts.replies
        long = Cause("long_replies")
        return Finding("alarm", (long, Cause("stop_lost")) if trained else (Cause("stop_lost"), long), numbers)
    return Unknown("replies")
