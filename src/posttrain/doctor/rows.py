"""Rules about the rows that were learned from."""

from __future__ import annotations

import math

from posttrain.doctor.evidence import TrainEvidence
from posttrain.doctor.findings import Cause, Finding, Outcome, Unknown

MANY_DROPPED = 0.2
"""From this share of dropped rows on a training learns from a selection. Ours."""
SOME_CUT, MANY_CUT = 0.05, 0.2
"""Share of cut examples that is named, and that is an alarm. Ours."""
FEW_STOPS = 0.8
"""Below this share of replies with a trained stop a model may not learn to end. Ours."""
FEW_SUPERVISED = 0.1
"""A share of supervised tokens below this is waste. Ours."""
SOME_AGAIN, MANY_AGAIN = 0.1, 0.3
"""Share of replies that stood before that is named, and that is an alarm. Ours."""


def of_conversations(seen: TrainEvidence) -> bool:
    """It imitates conversations."""
    return not seen.training.compares


def longer(seen: TrainEvidence) -> Cause:
    """The limit of tokens is too low for these rows."""
    lengths = seen.training.lengths
    if lengths is None or not lengths.conversation.values:
        return Cause("max_length")
    return Cause("max_length", (seen.setting("max_length", math.ceil(lengths.conversation.p95 / 64) * 64),))


def longer_prompts(seen: TrainEvidence) -> Cause:
    """The limit of tokens is too low for these prompts."""
    limit = seen.config.get("max_prompt_tokens")
    return Cause("max_prompt_tokens", (seen.setting("max_prompt_tokens", 2 * limit),) if isinstance(limit, int) else ())


def rows_dropped(seen: TrainEvidence) -> Outcome:
    """Many rows never reached the training."""
    step = seen.encoded
    if step is None or not step.rows_in:
        return Unknown("ledger")
    lost, rows = sum(step.dropped.values()), step.rows_in + step.added
    if lost <= MANY_DROPPED * rows:
        return None
    reasons = sorted(step.dropped.items(), key=lambda item: -item[1])
    text = ", ".join(f"{reason} {number}" for reason, number in reasons)
    too_long = longer_prompts(seen) if seen.own else longer(seen)
    cause = {"too_long": too_long, "equal_tokens": Cause("source_pairs")}.get(reasons[0][0], Cause("rejected_rows"))
    return Finding("alarm", (cause,), {"lost": lost, "rows": rows, "share": lost / rows, "reasons": text})


def rows_truncated(seen: TrainEvidence) -> Outcome:
    """Many examples were cut at the limit."""
    step = seen.encoded
    if step is None or not step.rows_out:
        return Unknown("ledger")
    share = step.truncated / step.rows_out
    if share <= SOME_CUT:
        return None
    numbers = {"cut": step.truncated, "rows": step.rows_out, "share": share}
    return Finding("alarm" if share > MANY_CUT else "remark", (longer(seen),), numbers)


def stop_untrained(seen: TrainEvidence) -> Outcome:
    """Many replies end without a stop that is learned."""
    facts = seen.examples
    if facts is None or not facts.replies:
        return Unknown("examples")
    share = facts.stops / facts.replies
    if share >= FEW_STOPS:
        return None
    step = seen.encoded
    cut = step is not None and step.truncated > 0
    causes = [longer(seen)] if cut else []
    drop = (Cause("cut_replies", (seen.setting("over_length", "drop"),)),) if cut else (Cause("template_without_stop"),)
    return Finding("alarm", (*causes, *drop), {"stops": facts.stops, "replies": facts.replies, "share": share})


def wasted_tokens(seen: TrainEvidence) -> Outcome:
    """Nearly all that is computed teaches nothing."""
    known = [(r.supervised_tokens, r.tokens) for r in seen.training.steps if r.supervised_tokens and r.tokens]
    if not known:
        return Unknown("steps")
    supervised, tokens = (sum(one[side] or 0 for one in known) for side in (0, 1))
    if supervised >= FEW_SUPERVISED * tokens:
        return None
    numbers = {"supervised": supervised, "tokens": tokens, "share": supervised / tokens}
    return Finding("remark", (Cause("long_prompts"), Cause("short_replies")), numbers)


def duplicates(seen: TrainEvidence) -> Outcome:
    """The same replies are learned again and again."""
    facts = seen.examples
    if facts is None or not facts.examples:
        return Unknown("examples")
    whole = facts.repeated / facts.examples
    again = facts.repeated_replies / facts.long_replies if facts.long_replies else 0.0
    if max(whole, again) <= SOME_AGAIN:
        return None
    ledger = seen.training.stage.ledger
    meant = ledger is not None and any(step.name == "repeat" and step.added for step in ledger.steps)
    numbers = {
        "whole": facts.repeated,
        "examples": facts.examples,
        "again": facts.repeated_replies,
        "replies": facts.long_replies,
    }
    causes = (Cause("repeated_by_mix"),) if meant else (Cause("no_dedup"), Cause("one_template"))
    return Finding("alarm" if max(whole, again) > MANY_AGAIN and not meant else "remark", causes, numbers)
