"""Rules about the rows that were learned from."""

from __future__ import annotations

from posttrain.doctor.evidence import TrainEvidence
from posttrain.doctor.findings import Cause, Finding, Outcome, Unknown

MANY_DROPPED = 0.2
"""From this share of dropped rows on a training learns from a selection. Ours."""


def rows_dropped(seen: TrainEvidence) -> Outcome:
    """Many rows never reached the training."""
    step = seen.encoded
    if step is None or not step.rows_in:
        return Unknown("ledger")
    lost = sum(step.dropped.values())
    if lost <= MANY_DROPPED * step.rows_in:
        return None
    reasons = sorted(step.dropped.items(), key=lambda item: -item[1])
    text = ", ".join(f"{reason} {number}" for reason, number in reasons)
    numbers = {"lost": lost, "rows": step.rows_in, "share": lost / step.rows_in, "reasons": text}
    lengths = seen.training.lengths
    longer = Cause("max_length", (seen.setting("max_length", int(lengths.conversation.p95)),) if lengths else ())
    return Finding("alarm", (longer if reasons[0][0] == "too_long" else Cause("rejected_rows"),), numbers)
