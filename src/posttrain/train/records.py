"""What a training stage writes of itself: the lines of metrics.jsonl and its ``result`` (docs/run-folder.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from posttrain.artifacts import StageDir, json_records
from posttrain.report.reading import parse
from posttrain.stats.intervals import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One training step. Tokens are those of its examples as rendered; ``loss`` in the unit of the objective."""

    step: int
    total_steps: int | None = None
    epoch: float | None = None
    loss: float
    grad_norm: float | None = None
    """Before clipping."""
    learning_rate: float | None = None
    tokens: int | None = None
    computed_tokens: int | None = None
    """That went through the model: common prefixes once, nothing behind the last prediction."""
    supervised_tokens: int | None = None
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    memory_bytes: float | None = None
    seconds: float | None = None
    """Of all steps so far."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means over the rows of the step, by the objective's names (``rewards/margins``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRecord:
    """One measurement of all held-out rows; step 0 is before training."""

    step: int
    loss: float
    supervised_tokens: int | None = None
    rows: int | None = None
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


Record = StepRecord | HeldOutRecord

HELD_OUT_FILE = "held_out.jsonl"
"""Of a train stage: a line of `HeldOutLosses` for every measurement of the held-out rows."""


@dataclass(frozen=True, slots=True)
class HeldOutLosses:
    """What every held-out row gave at a step: two models measured on the same rows can be compared row by row."""

    step: int
    losses: Mapping[str, float]
    """By row; their mean is the loss of all. A row of several examples has the sum of theirs, a conversation counts by its tokens."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """By pair, its reward margin."""
    longer: Mapping[str, int] = field(default_factory=dict)
    """By pair, by how many tokens its chosen reply is the longer one."""


def losses_by_row(row_ids: Sequence[str], losses: Sequence[float]) -> dict[str, float]:
    """The losses of examples, whose mean is the loss of all, as losses of rows with the same mean."""
    found: dict[str, float] = {}
    for row, loss in zip(row_ids, losses, strict=True):
        found[row] = found.get(row, 0.0) + loss
    return {row: total * len(found) / len(losses) for row, total in found.items()}


def read_held_out(path: Path) -> tuple[HeldOutLosses, ...]:
    """The evaluations of a train stage that may still be running, row by row; none where no rows are held out."""
    return tuple(parse(HeldOutLosses, line, path) for line in json_records(path)) if path.exists() else ()


def read_losses(out: StageDir) -> dict[int, dict[str, float]]:
    """Step -> row -> loss, as `read_held_out`."""
    return {one.step: dict(one.losses) for one in read_held_out(out.file(HELD_OUT_FILE))}


def line_of(record: Record) -> dict[str, Any]:
    """Return the line of metrics.jsonl: ``split`` and the fields, the objective's metrics beside them."""
    found = asdict(record)
    metrics = found.pop("metrics")
    return {"split": "train" if isinstance(record, StepRecord) else "held_out", **found, **metrics}


def fields_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the record of a line, to be checked by whoever reads it: what is no field is a metric."""
    kind = StepRecord if line.get("split") == "train" else HeldOutRecord
    own = {one.name for one in fields(kind)}
    metrics = {key: v for key, v in line.items() if key not in {*own, "split"}}
    return {**{key: value for key, value in line.items() if key in own}, "metrics": metrics}


@dataclass(frozen=True, slots=True)
class QuantisationGap:
    """The same rows by the weights of the file and by their 4 bits; losses in nats a supervised token."""

    rows: int
    tokens: int
    """Supervised ones."""
    loss: float
    """Of the weights as the file has them."""
    quantised_loss: float
    difference: Interval
    """Quantised minus file; 95%, resampled by row."""
    weight_bytes: int
    """Of the quantised layers, constants included."""
    parameters: int
    """Of the quantised layers."""

    @property
    def against(self) -> str:
        """What the quantised loss is held against."""
        d = self.difference
        return f"{d.estimate:+.3f} against the weights of the file, {d.confidence:.0%} interval {d.low:+.3f} to {d.high:+.3f}"

    @property
    def sentence(self) -> str:
        """The gap in a line."""
        return (
            f"weights in 4 bits ({self.weight_bytes / self.parameters:.3f} bytes a parameter): before training the loss of {self.rows} rows "
            f"is {self.quantised_loss:.3f} ({self.against}); the adapter starts from there"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """``result`` of a train stage. A stage that is not finished has none of it."""

    steps: int | None = None
    planned_steps: int | None = None
    epochs: float | None = None
    tokens: int | None = None
    supervised_tokens: int | None = None
    tokens_per_second: float | None = None
    """Median over the steps."""
    training_seconds: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    best_step: int | None = None
    best_held_out_loss: float | None = None
    kept: str | None = None
    """``best`` or ``last``: which weights were handed on."""
    stopped_early: bool | None = None
    quantisation: QuantisationGap | None = None
    """Where the frozen weights are kept in 4 bits."""
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    models_in_memory: int | None = None
    """Whole models that were loaded."""
    roles: tuple[str, ...] = ()
    """What they were used as: ``policy`` and ``reference``, or ``model``."""
    peak_memory_bytes: int | None = None
    matmul_share: float | None = None
    """Share of the measured matmul peak; None where the peak was measured too low."""
    matmul_peak_flops: float | None = None
    device: str | None = None
    dtype: str | None = None
