"""``kind: tune``: learning rate, epochs, rank and effective batch of a training, one after the other, each on what the one before kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from posttrain.artifacts import StageDir, plain, read_json, write_json
from posttrain.config import Problem
from posttrain.encode.lengths import Lengths
from posttrain.errors import RunError
from posttrain.model.config import LoraAdapter
from posttrain.plan.guidance import Guidance, guidance, method_of
from posttrain.references import NamesStage
from posttrain.report import numbers
from posttrain.report.reading import parse
from posttrain.report.words import plural
from posttrain.stages.base import Context, StageKind
from posttrain.stages.sweep import Search
from posttrain.sweep.config import Changes, SweepSettings
from posttrain.sweep.records import SweepRecord, SweepSetting, Tries, written
from posttrain.sweep.steps import (
    STEPS,
    TUNE_FILE,
    StepName,
    TuneRecord,
    TuneStep,
    batches,
    batches_of,
    epochs_at,
    more_rates,
    ranks_of,
    rates,
    turn,
)
from posttrain.train.config import TrainSettings
from posttrain.train.records import read_losses

if TYPE_CHECKING:
    from posttrain.report.values import Section


@dataclass(frozen=True, kw_only=True)
class TuneStage(StageKind):
    """Search the settings of a training in four steps by its held-out loss; clearly dominated runs are ended early."""

    kind: Literal["tune"]
    stage: Annotated[str, NamesStage(None)]
    """The train stage."""
    steps: tuple[StepName, ...] = STEPS
    """Which of the steps, in this order."""
    learning_rates: tuple[Annotated[float, Gt(0)], ...] = ()
    """Rates of the first grid; empty = the range that is advised for the objective and the method. More are tried around the best."""
    epochs: Annotated[float, Ge(1)] | None = None
    """The longest training tried; null = what is advised for so many rows."""
    ranks: tuple[Annotated[int, Ge(1)], ...] = ()
    """Ranks of the adapter, at one alpha; empty = 8 to 64."""
    rank_with_alpha: bool = True
    """Whether the same ranks are shown at alpha = 2 rank too, which changes the step with the rank; nothing is chosen by it."""
    batch_sizes: tuple[Annotated[int, Ge(1)], ...] = ()
    """Effective batches; empty = 8 to 64. Those that leave fewer than 8 steps are left out."""
    seeds: tuple[Annotated[int, Ge(0), Lt(2**32)], ...] = ()
    """Seeds of every setting; empty = the recipe's."""

    goes_through: ClassVar[bool] = True
    compares_models: ClassVar[bool] = True

    def problems(self, stages: Mapping[str, StageKind]) -> Iterable[Problem]:
        """It is a training that is searched, and the steps are there."""
        stage = stages.get(self.stage)
        if stage is not None and stage.kind != "train":
            yield Problem(("stage",), f"{self.stage!r} is a stage of kind {stage.kind}; name a train stage")
        if not self.steps or len(set(self.steps)) < len(self.steps):
            yield Problem(("steps",), f"name each step once, of {', '.join(STEPS)}")

    def tries(self, settings: StageKind, rows: int) -> Tries:
        """What the steps try at first, of a training on so many rows."""
        assert isinstance(settings, TrainSettings), "checked by problems()"
        tried = planned_steps(self, settings, rows)
        lines = tuple((name.replace("_", " "), ", ".join(map(written, values))) for name, values in tried.items())
        return Tries(lines, number_of_runs(self, tried))

    def run(self, context: Context) -> Mapping[str, Any]:
        """Go through the steps."""
        record = _Tuning(self, context).record()
        write_json(context.out.file(TUNE_FILE), plain(record))
        return {"kept": record.kept}

    @staticmethod
    def section(out: StageDir) -> Section:
        """The steps, what each kept and why."""
        from posttrain.sweep.section import tune_section

        path = out.file(TUNE_FILE)
        return tune_section(parse(TuneRecord, read_json(path), path), out.path.name)


def planned_steps(stage: TuneStage, settings: TrainSettings, rows: int) -> dict[StepName, tuple[float, ...]]:
    """Step -> what it tries at first."""
    advice = guidance(settings.objective, method_of(settings.adapter), rows)
    ranks = (stage.ranks or ranks_of(advice)) if isinstance(settings.adapter, LoraAdapter) else ()
    sizes = batches(stage.batch_sizes or batches_of(advice), rows, settings.epochs)
    found: dict[StepName, tuple[float, ...]] = {
        "learning_rate": stage.learning_rates or rates(advice.learning_rate),
        "epochs": (settings.epochs, stage.epochs or max(advice.epochs.high, settings.epochs)),
        "rank": tuple(sorted(ranks)),
        "batch_size": tuple(size for size in sizes if size != settings.batch_size),
    }
    return {name: found[name] for name in stage.steps}


def number_of_runs(stage: TuneStage, tried: Mapping[StepName, tuple[float, ...]]) -> int:
    """About how many runs that takes: more rates are tried around the best, and ranks are shown at two alphas."""
    again = {"learning_rate": 2, "rank": len(tried.get("rank", ())) * stage.rank_with_alpha}
    return sum(len(values) + again.get(name, 0) for name, values in tried.items()) * max(1, len(stage.seeds))


@dataclass
class _Tuning:
    """A search while it goes."""

    stage: TuneStage
    context: Context
    kept: Changes = field(default_factory=dict)

    def record(self) -> TuneRecord:
        ways: Mapping[StepName, Callable[[], TuneStep | None]] = {
            "learning_rate": self._learning_rate,
            "epochs": self._epochs,
            "rank": self._rank,
            "batch_size": self._batch_size,
        }
        self.context.display.note(self._cost())
        steps = []
        for name in self.stage.steps:
            self.context.display.note(f"step: {name.replace('_', ' ')}")
            step = ways[name]()
            if step is not None:
                self.context.display.note(step.why)
                self.kept = step.kept
                steps.append(step)
        final = self._search([self.kept], beside_written=True)
        return TuneRecord(stage=self.stage.stage, steps=tuple(steps), final=final, kept=dict(self.kept))

    # ---- what is known before ----------------------------------------------------------------------------------

    @property
    def _settings(self) -> TrainSettings:
        found = self.context.stages[self.stage.stage]
        assert isinstance(found, TrainSettings), "checked by problems()"
        return found

    @cached_property
    def _rows(self) -> int:
        """Examples of an epoch, as the recipe as it is written encoded them."""
        path = self.context.run.stage(self.stage.stage).file("lengths.json")
        lengths = parse(Lengths, read_json(path), path)
        return sum(length <= self._settings.max_length for length in lengths.conversation.values)

    @cached_property
    def _guidance(self) -> Guidance:
        return guidance(self._settings.objective, method_of(self._settings.adapter), self._rows)

    @cached_property
    def _tried(self) -> Mapping[StepName, tuple[float, ...]]:
        return planned_steps(self.stage, self._settings, self._rows)

    def _cost(self) -> str:
        """How many runs there will be, and how long they take if none is ended early."""
        number = number_of_runs(self.stage, self._tried)
        seconds = (self.context.run.stage(self.stage.stage).manifest() or {}).get("seconds") or 0.0
        took, whole = (numbers.in_unit(value, "seconds") for value in (seconds, seconds * number))
        return f"about {plural(number, 'run')}; the recipe as written took {took}: about {whole} if none is ended early"

    # ---- the steps -------------------------------------------------------------------------------------------------

    def _search(self, listed: Sequence[Changes], *, beside_written: bool = False) -> SweepRecord:
        """Run these settings, the simplest first."""
        search = Search(SweepSettings(stage=self.stage.stage, seeds=self.stage.seeds, end_dominated=True), self.context)
        search.listed(listed, beside_written=beside_written)
        found = search.record()
        if found.best is None:
            errors = [run.error for one in found.settings for run in one.runs if run.error]
            raise RunError(
                f"no setting finished: {errors[0] if errors else found.notes}", where=str(self.context.out.path)
            )
        return found

    def _with(self, more: Changes) -> dict[str, Any]:
        """What was kept with more settings of the stage: ``adapter.rank``: 8."""
        return {**self.kept, **{f"{self.stage.stage}.{path}": value for path, value in more.items()}}

    def _learning_rate(self) -> TuneStep:
        path = f"{self.stage.stage}.learning_rate"
        tried, extensions = set(self._tried["learning_rate"]), 0
        while True:
            found = self._search([self._with({"learning_rate": rate}) for rate in sorted(tried)], beside_written=True)
            best = _at(found, found.best)
            known = sorted({float(one.changes[path]) for one in found.settings})
            more = more_rates(known, best.changes[path], extensions)
            extensions += any(rate < known[0] or rate > known[-1] for rate in more)
            if not more:
                break
            tried |= set(more)
        rate = best.changes[path]
        low, high = self._guidance.learning_rate.low, self._guidance.learning_rate.high
        outside = (
            ""
            if self._guidance.learning_rate.holds(rate)
            else f"; published advice is {low:g} to {high:g} ({self._guidance.learning_rate.source})"
        )
        why = f"learning rate {rate:g}: the lowest {found.metric} ({_value(found, best)}) of {len(known)} rates from {known[0]:g} to {known[-1]:g}{outside}"
        return TuneStep(name="learning_rate", record=found, kept=self._with({"learning_rate": rate}), why=why)

    def _epochs(self) -> TuneStep:
        more: dict[str, Any] = {} if self._settings.max_steps is None else {"max_steps": None}
        longest = self._tried["epochs"][-1]
        whole = self._search([self._with({"epochs": longest, **more})])
        run = whole.settings[0].runs[0]
        out = self.context.run.path / run.folder
        losses, steps = read_losses(StageDir(out)), run.curve[-1][0]
        step = turn(losses)
        wanted = sorted({epochs_at(step, steps, longest), min(self._settings.epochs, longest), longest})
        found = self._search([self._with({"epochs": epochs, **more}) for epochs in wanted])
        chosen = _at(found, found.chosen)
        epochs = chosen.changes[f"{self.stage.stage}.epochs"]
        why = (
            f"{epochs:g} epochs: in {longest:g} epochs the {found.metric} stops falling at step {step} of {steps}; "
            f"{_because(found, 'the fewest epochs')}"
        )
        return TuneStep(name="epochs", record=found, kept=self._with({"epochs": epochs, **more}), why=why)

    def _rank(self) -> TuneStep | None:
        ranks = [int(rank) for rank in self._tried["rank"]]
        if not ranks:
            return None
        found = self._search([self._with({"adapter.rank": rank}) for rank in ranks])
        beside = None
        if self.stage.rank_with_alpha:
            beside = self._search([self._with({"adapter.rank": rank, "adapter.alpha": 2 * rank}) for rank in ranks])
        chosen = _at(found, found.chosen)
        rank = chosen.changes[f"{self.stage.stage}.adapter.rank"]
        alpha = getattr(self._settings.adapter, "alpha", None)
        why = f"rank {rank} at alpha {alpha:g}: {_because(found, 'the smallest rank')}"
        return TuneStep(name="rank", record=found, kept=self._with({"adapter.rank": rank}), why=why, beside=beside)

    def _batch_size(self) -> TuneStep | None:
        others = [int(size) for size in self._tried["batch_size"]]
        if not others:
            return None
        sizes = [self._settings.batch_size, *others]
        found = self._search([self._with({"batch_size": size}) for size in sizes])
        chosen = _at(found, found.chosen)
        size = chosen.changes[f"{self.stage.stage}.batch_size"]
        why = f"effective batch {size}: {_because(found, 'the first of them, as it is written')}"
        return TuneStep(name="batch_size", record=found, kept=self._with({"batch_size": size}), why=why)


def _at(record: SweepRecord, place: int | None) -> SweepSetting:
    assert place is not None
    return record.settings[place]


def _value(record: SweepRecord, one: SweepSetting) -> str:
    return "none" if one.value is None else numbers.in_unit(one.value.estimate, record.unit, 4)


def _because(record: SweepRecord, simplest: str) -> str:
    best, chosen = _at(record, record.best), _at(record, record.chosen)
    if best is chosen:
        return f"the lowest {record.metric} ({_value(record, best)})"
    return f"{simplest} within one standard error of the lowest {record.metric} ({_value(record, chosen)} against {_value(record, best)})"
