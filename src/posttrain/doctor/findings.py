"""What a rule is, and the three things it can say: a finding, nothing, or that it can't be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

Severity = Literal["alarm", "remark"]
"""An ``alarm`` says that the run should not be used as it is; a ``remark`` is worth knowing before it is."""
E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Cause:
    """A likely cause, by the name of its words (``words.yaml``), and the settings that would mend it."""

    name: str
    change: tuple[str, ...] = ()
    """As they are given to ``posttrain run``: ``sft.learning_rate=0.0002``."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A symptom with its evidence and its likely causes, the likeliest first."""

    severity: Severity
    causes: tuple[Cause, ...]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """What the words of the symptom are filled in with."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """It can't be told. ``lacks``: the name of the words that say what would tell."""

    lacks: str


Outcome = Finding | Unknown | None
"""None = it was looked at, and nothing was found."""


def always(evidence: Any) -> bool:
    """Every run of this kind can have it."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Generic[E]):
    """One thing that can be wrong."""

    examine: Callable[[E], Outcome]
    threshold: str
    """When it is found, in a line."""
    source: str
    """Who says so: a paper, an issue; ``ours`` where the threshold was calibrated on seeded faults (docs/doctor.md)."""
    applies: Callable[[E], bool] = always
    """Whether it means anything here; where it does not, the rule says nothing at all."""
