"""The curves of a run: columns of numbers from metrics.jsonl, read on from where a reader left off."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.artifacts import RunDir
from posttrain.errors import RunError

MOST_POINTS = 2000
"""Of one curve that is sent; more would not be seen."""
KEYS = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "memory_bytes", "kl")
PREFERENCE_KEYS = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")


class Part(NamedTuple):
    """What was written to a log since an offset, and where the next look begins. ``fresh``: the log was begun anew."""

    records: list[dict[str, Any]]
    offset: int
    fresh: bool = False


def read_on(path: Path, offset: int) -> Part:
    """The whole lines after an offset in bytes. A line that is being written waits; a damaged one is passed over."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            fresh = size < offset  # a resumed run has cut what it computes again
            file.seek(0 if fresh else offset)
            text = file.read()
    except OSError:
        return Part([], 0, offset > 0)
    whole = text[: text.rfind(b"\n") + 1]
    records = []
    for line in whole.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return Part(records, (0 if fresh else offset) + len(whole), fresh)


def trained(run: RunDir) -> list[str]:
    """The stages of a run that have metrics, in the order of their start; a damaged manifest hides none."""

    def started(name: str) -> float:
        with contextlib.suppress(RunError, TypeError, ValueError):
            return float((run.stage(name).manifest() or {}).get("started") or 0)
        return 0.0

    return sorted(
        (path.parent.name for path in run.path.glob("*/metrics.jsonl")), key=lambda name: (started(name), name)
    )


def columns(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Records as columns, one set for each split: {split: {"step": [...], "loss": [...]}}; what is no number is null."""
    found: dict[str, Any] = {}
    for split in ("train", "held_out"):
        own = [one for one in records if one.get("split") == split]
        keys = [key for key in (*KEYS, *PREFERENCE_KEYS) if any(key in one for one in own)]
        found[split] = {key: [_number(one.get(key)) for one in own] for key in ("step", *keys)}
    return found


def thinned(split: dict[str, list[float | None]], most: int = MOST_POINTS) -> dict[str, list[float | None]]:
    """No more than ``most`` points, the lowest and the highest loss of every stretch among them, so that no spike is lost."""
    steps, losses = split["step"], split.get("loss", [])
    if len(steps) <= most or len(losses) != len(steps):
        return split
    stretch = math.ceil(len(steps) / (most // 2))
    kept = set()
    for start in range(0, len(steps), stretch):
        places = range(start, min(start + stretch, len(steps)))
        known = [place for place in places if losses[place] is not None] or list(places)
        kept |= {min(known, key=lambda at: losses[at] or 0.0), max(known, key=lambda at: losses[at] or 0.0)}
    kept |= {0, len(steps) - 1}
    return {key: [values[place] for place in sorted(kept)] for key, values in split.items()}


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else None
