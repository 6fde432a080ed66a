"""What a synthesis writes beside its rows: facts.json, and a line of dropped.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from posttrain.generate.engine import Fingerprint
from posttrain.synth.variety import Topic, Variety

FACTS, DROPPED = "facts.json", "dropped.jsonl"
Ending = Literal["wanted", "budget", "exhausted", "idle"]
ENDS: Mapping[Ending, str] = {
    "wanted": "as many rows as were wanted",
    "budget": "the budget was spent",
    "exhausted": "there was nothing more to ask",
    "idle": "several rounds in a row kept no row",
}


class Loss(NamedTuple):
    """What gave no row: at which step, why, the detail of this case, the text, and the number of its thread."""

    step: str
    reason: str
    detail: str
    text: str
    thread: int


@dataclass(frozen=True, slots=True)
class Round:
    """What there was after a round."""

    round: int
    threads: int
    requests: int
    kept: int
    dropped: dict[str, int]
    """By reason, so far."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Diversity of the rows, beside a real set."""

    made: Variety
    topics: tuple[Topic, ...] = ()
    yardstick: Variety | None = None
    yardstick_name: str = ""


@dataclass(frozen=True, slots=True)
class SynthFacts:
    """facts.json."""

    pipeline: str
    language: str
    rows_wanted: int
    kept: int
    stopped: Ending
    threads: int
    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    unknown_usage: int
    """Answers without a count of tokens."""
    engines: dict[str, Fingerprint]
    """By role."""
    money: float | None = None
    """In the currency of the prices; None = no prices."""
    servers: dict[str, int] = field(default_factory=dict)
    """Answers by server; empty where all came from one, or from none."""
    history: tuple[Round, ...] = field(default=())
    variety: Compared | None = None
