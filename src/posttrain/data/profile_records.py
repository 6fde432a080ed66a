"""What a data stage writes of itself: its ``result``, and profile.json (docs/data-profile.md describes every key)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.artifacts import LedgerStep
from posttrain.types import Message, RowKind

Feature = Callable[[Sequence[Message], Sequence[Any]], bool]

FEATURES: Mapping[str, tuple[str, Feature]] = {
    "system": ("With a system turn", lambda turns, tools: any(turn.role == "system" for turn in turns)),
    "several_exchanges": (
        "With several user turns",
        lambda turns, tools: sum(turn.role == "user" for turn in turns) > 1,
    ),
    "tools": ("With tools", lambda turns, tools: bool(tools)),
    "tool_calls": ("With tool calls", lambda turns, tools: any(turn.tool_calls for turn in turns)),
    "reasoning": ("With reasoning", lambda turns, tools: any(turn.reasoning for turn in turns)),
    "last_turn_not_assistant": ("Not ending with the assistant", lambda turns, tools: turns[-1].role != "assistant"),
    "weighted_turns": ("With weighted turns", lambda turns, tools: any(turn.weight is not None for turn in turns)),
}
"""Counted properties of a conversation: what they are called, and whether its turns and tools have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataResult:
    """``result`` of a data stage; of a side that the rows were not split into there is no number."""

    train_rows: int | None = None
    held_out_rows: int | None = None
    test_rows: int | None = None
    sources: dict[str, int] = field(default_factory=dict)
    """Rows by source."""


@dataclass(frozen=True, slots=True)
class ProfiledFile:
    """One file that was looked at."""

    file: str
    rows: int


@dataclass(frozen=True, slots=True)
class CounterName:
    """What lengths are counted in."""

    name: str
    is_model: bool


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the rows files."""

    name: str
    type: str
    nulls: int


@dataclass(frozen=True, slots=True)
class MetaKey:
    """One key of the rows' ``meta``, with frequent values."""

    key: str
    rows: int
    types: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TurnCount:
    """Conversations of so many turns."""

    turns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Turns:
    """Turns of a conversation, the system turn left out."""

    mean: float
    max: int
    counts: tuple[TurnCount, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Rows between neighbouring ``edges``; ``beyond`` lie past the last one and are counted nowhere else."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    beyond: int


@dataclass(frozen=True, slots=True)
class OverLimit:
    """Rows longer than a limit."""

    limit: int
    rows: int
    share: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token lengths of one part of the conversations; ``percentiles`` are the 0th to the 100th."""

    count: int
    total: int
    mean: float
    min: int
    p50: int
    p90: int
    p95: int
    max: int
    percentiles: tuple[int, ...]
    histogram: Histogram
    over: tuple[OverLimit, ...]


@dataclass(frozen=True, slots=True)
class Covering:
    """The sequence length that covers ``share`` of the conversations, and the same rounded up to a multiple of 64."""

    share: float
    length: int
    rounded: int
    rounded_share: float


@dataclass(frozen=True, slots=True)
class LanguageShare:
    """Rows in one language."""

    language: str
    rows: int
    share: float


@dataclass(frozen=True, slots=True)
class Part:
    """One source or split; ``rows_counted`` counts repeated rows as often as they are trained on."""

    name: str
    rows: int
    share: float
    rows_counted: float
    tokens: int
    token_share: float | None
    turns: float
    user_p50: int
    assistant_p50: int
    p95: int
    languages: tuple[LanguageShare, ...]


@dataclass(frozen=True, slots=True)
class ReplyLengths:
    """Tokens of the replies of one kind."""

    rows: int
    p50: int
    p90: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class RepliesCompared:
    """Of pairs and of judged replies: lengths by kind of reply, and how often the good ones are the longer or the more."""

    kind: RowKind
    rows: int
    replies: dict[str, ReplyLengths]
    chosen_longer: float | None
    desirable: float | None


@dataclass(frozen=True, slots=True)
class FunnelLine:
    """One step of the chain before."""

    step: str
    rows_in: int
    added: int
    rows_out: int
    dropped: dict[str, int]
    notes: dict[str, int]
    kept_share: float | None
    share_of_start: float | None
    folder: str | None = None

    def as_step(self) -> LedgerStep:
        """The line as a step of a ledger."""
        return LedgerStep(self.step, self.rows_in, self.rows_out, self.added, dropped=self.dropped, notes=self.notes)


@dataclass(frozen=True, slots=True)
class RemovedExample:
    """One dropped row; a ledger alone knows no text."""

    file: str
    line: int
    detail: str | None = None
    id: str | None = None
    twin: str | None = None
    prompt: str | None = None
    reply: str | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """Rows dropped by one step for one reason."""

    step: str
    reason: str
    rows: int
    examples: tuple[RemovedExample, ...]


@dataclass(frozen=True, slots=True)
class ClusterMember:
    """One row of a cluster, with its similarity to the one that stands for it."""

    id: str
    similarity: float | None
    kept: bool
    prompt: str | None
    reply: str | None


@dataclass(frozen=True, slots=True)
class Cluster:
    """Some rows of one cluster."""

    cluster: str | int
    size: int
    members: tuple[ClusterMember, ...]


@dataclass(frozen=True, slots=True)
class ClusterSize:
    """Clusters of so many rows."""

    size: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Clusters:
    """Clusters of near-duplicates with more than one row."""

    clusters: int
    rows: int
    dropped: int
    sizes: tuple[ClusterSize, ...]
    examples: tuple[Cluster, ...]


@dataclass(frozen=True, slots=True)
class Contamination:
    """The table of benchmarks of a decontamination, as it was written."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """The whole of profile.json."""

    schema: int
    rows: int
    files: tuple[ProfiledFile, ...]
    tokenizer: CounterName
    columns: tuple[Column, ...]
    distinct_ids: int
    rows_counted: float
    features: dict[str, int]
    meta_keys: tuple[MetaKey, ...]
    turns: Turns
    lengths: dict[str, Lengths]
    covering: Covering
    languages: tuple[LanguageShare, ...]
    language_rule: str
    sources: tuple[Part, ...]
    splits: tuple[Part, ...]
    funnel: tuple[FunnelLine, ...]
    removed: tuple[Removed, ...]
    clusters: Clusters | None
    contamination: Contamination | None
    preferences: RepliesCompared | None = None

    @property
    def removed_rows(self) -> int:
        """Rows that the whole chain dropped."""
        return sum(sum(line.dropped.values()) for line in self.funnel)
