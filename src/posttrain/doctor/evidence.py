"""What the rules look at: the artefacts of a run, read through the record classes of who wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from posttrain.artifacts import LedgerStep
from posttrain.doctor.course import share_right
from posttrain.encode.facts import EXAMPLES_FILE, ExampleFacts
from posttrain.errors import RunError
from posttrain.judge.bias import BiasReport
from posttrain.judge.calibrate import JudgeCalibration, RatingCalibration
from posttrain.judge.summary import JudgeSummary
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.online.records import Measured as Answered
from posttrain.online.section import read_online, read_samples
from posttrain.plan.guidance import Advice, guidance, method_of
from posttrain.report.reading import Gap, Stage, json_value, optional, parse
from posttrain.stats.intervals import Interval
from posttrain.tasks.facts import TaskFacts, read_stage
from posttrain.train.records import HELD_OUT_FILE, HeldOutLosses, read_held_out
from posttrain.train.section import Training, UnknownObjective, read_training

T = TypeVar("T")
PAIRWISE = "pairwise"
"""The score of a judge that compares replies."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement of an eval stage, and the stage whose held-out rows it looked at."""

    facts: TaskFacts
    data: str | None


@dataclass(frozen=True, slots=True)
class TrainEvidence:
    """One train or online stage, the rows it was given, and what was measured of its model."""

    training: Training
    examples: ExampleFacts | None = None
    by_row: tuple[HeldOutLosses, ...] = ()
    """The evaluations of the held-out rows, row by row."""
    measured: tuple[Measured, ...] = ()
    """Measurements of the run that hold this model."""
    answered: tuple[Answered, ...] = ()
    """Of a stage that learns from its own replies: the measurements of its held-out prompts."""

    @property
    def name(self) -> str:
        """Of the stage."""
        return self.training.name

    @property
    def own(self) -> bool:
        """Whether it learns from replies of its own, and so has no rows but prompts."""
        return self.training.objective.row_kind == "prompts"

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the stage."""
        return self.training.stage.config

    @property
    def scores(self) -> list[Mapping[str, Any]]:
        """Of a stage that learns from its own replies: what they are worth, as it is configured."""
        found = self.config.get("scores")
        return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list | tuple) else []

    @property
    def relative(self) -> bool:
        """Whether its rewards say who is better among the replies of a step: their mean is the same whatever is learned."""
        return any(one.get("name") == PAIRWISE and one.get("weight", 1.0) for one in self.scores)

    @property
    def encoded(self) -> LedgerStep | None:
        """What became of the rows when they were turned into tokens."""
        ledger = self.training.stage.ledger
        return next((step for step in ledger.steps if step.name == "encode"), None) if ledger else None

    @property
    def rate(self) -> float | None:
        """The highest learning rate."""
        return self.training.learning_rate

    @property
    def epochs(self) -> float:
        """Passes over the rows."""
        found = self.config.get("epochs")
        return float(found) if isinstance(found, int | float) else 1.0

    @property
    def advice(self) -> Advice | None:
        """What published work advises for the rate; None where the method is not known here."""
        objective, adapter = self.training.objective, self.config.get("adapter")
        if isinstance(objective, UnknownObjective) or not isinstance(adapter, Mapping):
            return None
        try:
            known = parse(LoraAdapter | FullWeights, dict(adapter), Path(self.name))  # type: ignore[arg-type]
        except RunError:
            return None
        ledger = self.training.stage.ledger
        rows = ledger.rows_kept if ledger else 1
        return guidance(objective, method_of(known), max(1, rows)).learning_rate

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
        return f"{self.facts.stage} {self.facts.record.key}"


@dataclass(frozen=True, slots=True)
class JudgeEvidence:
    """One judge of a judge or eval stage."""

    name: str
    bias: BiasReport | None = None
    calibration: JudgeCalibration | RatingCalibration | None = None
    held_out: Interval | None = None
    """Of a reward model of this run: its accuracy on the pairs it was not trained on."""
    pairs: int = 0
    """... and how many those were."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the rules are asked about, in the order of the run."""

    trainings: list[TrainEvidence] = field(default_factory=list)
    online: list[TrainEvidence] = field(default_factory=list)
    """The stages that learn from replies of their own."""
    evaluations: list[EvalEvidence] = field(default_factory=list)
    judges: list[JudgeEvidence] = field(default_factory=list)


def read_evidence(stages: Sequence[Stage], gaps: list[Gap]) -> Evidence:
    """Read the artefacts of stages; what is absent or damaged becomes a gap, and the rules say what they lack."""
    begun = [stage for stage in stages if stage.manifest is not None]
    measured = [
        Measured(facts, stage.config.get("data"))
        for stage in begun
        if stage.kind == "eval"
        for facts in read_stage(stage, gaps)
    ]
    trainings = [_training(stage, measured, gaps) for stage in begun if stage.kind == "train"]
    online = [_online(stage, measured, gaps) for stage in begun if stage.kind == "online"]
    judges = [one for each in measured for one in _judges_of(each.facts, trainings)]
    for stage in begun:
        if stage.kind == "judge" and (summary := _read(JudgeSummary, stage, "summary.json", gaps)) is not None:
            judges += [
                JudgeEvidence(
                    f"{stage.name} {entry.name}", summary.bias.get(entry.name), summary.calibration.get(entry.name)
                )
                for entry in summary.judges
            ]
    return Evidence(trainings, online, [EvalEvidence(one.facts) for one in measured], judges)


def _training(stage: Stage, measured: Sequence[Measured], gaps: list[Gap]) -> TrainEvidence:
    return TrainEvidence(
        read_training(stage, gaps),
        _read(ExampleFacts, stage, EXAMPLES_FILE, gaps),
        _by_row(stage, gaps),
        tuple(one for one in measured if stage.name in one.facts.record.models),
    )


def _online(stage: Stage, measured: Sequence[Measured], gaps: list[Gap]) -> TrainEvidence:
    own = tuple(one for one in measured if stage.name in one.facts.record.models)
    return TrainEvidence(read_online(stage, gaps), measured=own, answered=read_samples(stage, gaps))


def _read(kind: type[T], stage: Stage, name: str, gaps: list[Gap]) -> T | None:
    """A record that older runs lack; a damaged one is a gap."""
    path = stage.folder.file(name)
    if not path.exists():
        return None
    return optional(gaps, stage, path, "some rules can't be asked", lambda found: parse(kind, json_value(found), found))


def _by_row(stage: Stage, gaps: list[Gap]) -> tuple[HeldOutLosses, ...]:
    path = stage.folder.file(HELD_OUT_FILE)
    return (optional(gaps, stage, path, "some rules can't be asked", read_held_out) or ()) if path.exists() else ()


def _judges_of(facts: TaskFacts, trainings: Sequence[TrainEvidence]) -> Iterator[JudgeEvidence]:
    """The judges of a measurement; of a reward model of this run with what its own training says of it."""
    record = facts.record.judge
    for entry in record.judges if record else ():
        assert record is not None
        own = entry.fingerprint.engine == "reward"
        held_out, pairs = _accuracy(Path(entry.name.replace("\\", "/")).name, trainings) if own else (None, 0)
        yield JudgeEvidence(f"{facts.stage} {entry.name}", record.bias.get(entry.name), None, held_out, pairs)


def _accuracy(name: str, trainings: Sequence[TrainEvidence]) -> tuple[Interval | None, int]:
    last = next((one.training.held_out[-1:] for one in trainings if one.name == name), ())
    for record in last:
        accuracy = record.metrics.get("rewards/accuracies")
        if accuracy is not None and record.rows:
            return share_right(accuracy, record.rows), record.rows
    return None, 0
