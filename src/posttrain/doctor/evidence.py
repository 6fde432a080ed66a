"""What the rules look at: the artefacts of a run, read through the record classes of who wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.artifacts import Ledger, LedgerStep
from posttrain.report.reading import Gap, Stage
from posttrain.tasks.facts import TaskFacts, read_stage
from posttrain.train.section import Training, read_training


@dataclass(frozen=True, slots=True)
class TrainEvidence:
    """One train stage, the rows it was given, and what was measured of its model."""

    training: Training
    data: Ledger | None
    """The account of the data stage."""
    measured: tuple[TaskFacts, ...]
    """Records of the run that hold this model."""

    @property
    def name(self) -> str:
        """Of the stage."""
        return self.training.name

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the stage."""
        return self.training.stage.config

    @property
    def over(self) -> bool:
        """Whether the stage has ended, well or not."""
        return self.training.stage.status != "running"

    @property
    def encoded(self) -> LedgerStep | None:
        """What became of the rows when they were turned into tokens."""
        ledger = self.training.stage.ledger
        return next((step for step in ledger.steps if step.name == "encode"), None) if ledger else None

    def setting(self, key: str, value: Any) -> str:
        """A change of this stage: ``sft.learning_rate=0.0002``."""
        return f"{self.name}.{key}={f'{value:.2g}' if isinstance(value, float) else value}"


@dataclass(frozen=True, slots=True)
class EvalEvidence:
    """One measurement of an eval stage."""

    facts: TaskFacts

    @property
    def name(self) -> str:
        """Of the stage, and which of its measurements it is."""
        return f"{self.facts.stage}: {self.facts.record.key}"


Evidence = TrainEvidence | EvalEvidence


def read_evidence(stages: Sequence[Stage], gaps: list[Gap]) -> list[Evidence]:
    """Everything the rules are asked about, in the order of the run; what is absent or damaged becomes a gap."""
    begun = [stage for stage in stages if stage.manifest is not None]
    by_name = {stage.name: stage for stage in begun}
    facts = [one for stage in begun if stage.kind == "eval" for one in read_stage(stage, gaps)]
    found: list[Evidence] = []
    for stage in begun:
        if stage.kind == "train":
            data = by_name.get(str(stage.config.get("data")))
            own = tuple(one for one in facts if stage.name in one.record.models)
            found.append(TrainEvidence(read_training(stage, gaps), data.ledger if data else None, own))
        found += [EvalEvidence(one) for one in facts if one.stage == stage.name]
    return found
