"""``kind: sweep``: the recipe under many settings; which is best, which is good enough, and what is only noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain.artifacts import StageDir, plain
from posttrain.config import Problem
from posttrain.errors import ConfigError, EndedEarlyError, InterruptedRunError, PosttrainError, RunError
from posttrain.references import references
from posttrain.stages.base import Context, GoOn, StageKind, Variation, Wanted, always
from posttrain.sweep.config import AshaSearch, Changes, Grid, SweepSettings
from posttrain.sweep.records import (
    SweepRecord,
    SweepRun,
    SweepSetting,
    Tries,
    label_of,
    read_record,
    write_record,
    written,
)

if TYPE_CHECKING:
    from posttrain.report.values import Section
    from posttrain.sweep.outcome import Outcome, Rows

LOSS = "loss"
MEMORY_SHARE = 0.8
"""Of the free memory that runs side by side may take together."""


@dataclass(frozen=True, kw_only=True)
class SweepStage(SweepSettings, StageKind):
    """Run a stage, and all that it reads, under many settings; what they share is run once. The recipe as it is written is one of them."""

    kind: Literal["sweep"]

    goes_through: ClassVar[bool] = True
    compares_models: ClassVar[bool] = True

    def problems(self, stages: Mapping[str, StageKind]) -> Iterable[Problem]:
        """What is measured can be, and the settings can be compared by it."""
        yield from self.own_problems()
        measured = stages.get(self.stage)
        if measured is None:
            return
        if measured.kind not in ("train", "eval"):
            yield Problem(
                ("stage",), f"{self.stage!r} is a stage of kind {measured.kind}; name a train or an eval stage"
            )
        trains = measured.kind == "train"
        if (self.end_dominated or isinstance(self.search, AshaSearch)) and not trains:
            key = "end_dominated" if self.end_dominated else "search"
            yield Problem(
                (key,), f"trainings are ended by their held-out loss; {self.stage!r} is a stage of kind {measured.kind}"
            )
        if trains and self.metric not in (None, LOSS):
            yield Problem(
                ("metric",), f"a train stage gives its held-out {LOSS}, not {self.metric!r}; measure with an eval stage"
            )
        if "seed" in self.paths:
            yield Problem(("over", "seed"), "the rows would be others in every run; give seeds: [0, 1, 2] instead")
        if trains and (losses := sorted(path for path in self.paths if "objective" in path.split("."))):
            yield Problem(
                ("stage",),
                f"losses of different objectives can't be compared ({', '.join(losses)}); measure with an eval stage",
            )

    def tries(self, settings: StageKind, rows: int) -> Tries:
        """What will be run."""
        if isinstance(self.search, Grid):
            lines = [(str(place), label_of(changes)) for place, changes in enumerate(self.listed(), 1)]
            return Tries(tuple(lines), len(lines) * max(1, len(self.seeds)))
        ranges = tuple((path, written(plain(values))) for path, values in self.over.items())
        return Tries(ranges, self.search.trials * max(1, len(self.seeds)))

    def check(self, context: Context) -> None:
        """Every setting of a list makes a recipe that can run, and no two of them are the same work."""
        if not isinstance(self.search, Grid):
            from posttrain.sweep.search import trials

            next(trials(self.search, self.over, context.seed, minimize=True))
            return
        places: dict[Any, Changes] = {}
        for changes in self.listed():
            variation = context.variations.of(Wanted(self.stage, changes))
            variation.check()
            place = variation.run.stage(self.stage).path
            if place in places:
                raise ConfigError(
                    f"({label_of(places[place])}) and ({label_of(changes)}) are the same work for {self.stage!r}",
                    where=f"stages.{context.name}",
                    fix="vary what that stage reads, and every value once",
                )
            places[place] = changes

    def run(self, context: Context) -> Mapping[str, Any]:
        """Run what is not finished, setting by setting, and say what came of it."""
        from posttrain.sweep.outcome import outcome

        outcome(context.run.stage(self.stage), self.metric, self.model)  # before hours are spent: it gives what decides
        begun = Search(self, context)
        if isinstance(self.search, Grid):
            begun.listed(self.listed())
        else:
            begun.searched()
        record = begun.record()
        write_record(context.out.path, record)
        chosen = None if record.chosen is None else record.settings[record.chosen]
        if chosen is not None and chosen.value is not None:
            context.display.note(f"chosen: {chosen.label}, {record.metric} {chosen.value.estimate:.4g}")
        return {
            "runs": sum(len(one.runs) for one in record.settings),
            "chosen": None if chosen is None else chosen.changes,
            "value": None if chosen is None or chosen.value is None else chosen.value.estimate,
        }

    @staticmethod
    def section(out: StageDir) -> Section:
        """The settings side by side."""
        from posttrain.sweep.section import sweep_section

        return sweep_section(read_record(out.file("sweep.json")), out.path.name)


@dataclass
class Search:
    """Runs under many settings while they go: the settings so far, and what their runs gave."""

    stage: SweepSettings
    context: Context
    varied: frozenset[str] = frozenset()
    """The stages that are varied."""
    settings: list[Changes] = field(default_factory=list)
    runs: dict[tuple[int, int], SweepRun] = field(default_factory=dict)
    outcomes: dict[tuple[int, int], Outcome] = field(default_factory=dict)
    best_curve: tuple[float, Mapping[int, Rows]] | None = None
    """Value and measurements of the best finished training."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of every setting."""
        return self.stage.seeds or (self.context.seed,)

    def listed(self, listed: Sequence[Changes], *, beside_written: bool = True) -> None:
        """Run these settings in their order; ``beside_written``: the recipe as it is written before, where it is not among them."""
        self.varied = self._stages_of(listed)
        among = not beside_written or any(self._is_written(changes) for changes in listed)
        self.settings = [*([] if among else [self._written(listed)]), *listed]
        errors = self._side_by_side() if self.stage.side_by_side > 1 else {}
        judge = self._not_dominated if self.stage.end_dominated else always
        for place in range(len(self.settings)):
            for seed in self.seeds:
                self._run(place, seed, judge, errors.get((place, seed)))

    def searched(self) -> None:
        """Run what a search asks for, the recipe as it is written before."""
        from posttrain.sweep.search import trials

        over = [dict.fromkeys(self.stage.over)]
        self.varied = self._stages_of(over)
        self.settings.append(self._written(over))
        for seed in self.seeds:
            self._run(0, seed, always)
        lower = next(iter(self.outcomes.values())).metric.better == "lower" if self.outcomes else True
        assert not isinstance(self.stage.search, Grid)
        for trial in trials(self.stage.search, self.stage.over, self.context.seed, minimize=lower):
            place = len(self.settings)
            self.settings.append(trial.changes)
            first, *others = self.seeds
            self._run(place, first, _by_rung(trial.seen))
            found = self.outcomes.get((place, first))
            trial.tell(None if found is None else found.value)
            for seed in others if found is not None else ():
                self._run(place, seed, always)

    def record(self) -> SweepRecord:
        """Everything that was found. Raises RunError where no setting finished with all its seeds."""
        from posttrain.sweep.compared import compared

        if not self.outcomes:
            errors = "\n".join(f"  {label_of(self.settings[k])}: {one.error}" for (k, _), one in self.runs.items())
            raise RunError(f"no run of this sweep finished:\n{errors}", where=str(self.context.out.path))
        settings = [
            SweepSetting(
                changes=dict(changes),
                as_written=self._is_written(changes),
                runs=tuple(self.runs[k, s] for s in self.seeds if (k, s) in self.runs),
            )
            for k, changes in enumerate(self.settings)
        ]
        stage = self.stage
        return compared(settings, self.outcomes, self.seeds, stage.stage, stage.search.name, stage.confidence)

    # ---- one run ---------------------------------------------------------------------------------------------------

    def _wanted(self, changes: Changes, seed: int | None) -> Wanted:
        return Wanted(self.stage.stage, changes, seed, self.varied)

    def _stages_of(self, listed: Sequence[Changes]) -> frozenset[str]:
        """The stages that any setting varies; where only seeds are, the measured one and those it reads."""
        if any(listed):
            return frozenset(path.removeprefix("stages.").partition(".")[0] for one in listed for path in one)
        measured, stages = self.stage.stage, self.context.stages
        return frozenset({measured, *(one.text for one in references(stages[measured]) if one.text in stages)})

    def _variation(self, changes: Changes, seed: int | None) -> Variation:
        return self.context.variations.of(self._wanted(changes, seed))

    def _is_written(self, changes: Changes) -> bool:
        """Whether they change nothing of the recipe."""
        stage = self.stage.stage
        return self.context.variations.of(Wanted(stage, changes)).run.stage(stage) == self.context.run.stage(stage)

    def _written(self, listed: Sequence[Changes]) -> Changes:
        """What the recipe says itself of all that is varied; what it has no value of is left out."""
        found: dict[str, Any] = {}
        for path in dict.fromkeys(path for one in listed for path in one):
            value: Any = self.context.stages
            for part in path.removeprefix("stages.").split("."):
                if isinstance(value, Mapping):
                    value = value.get(part)
                elif isinstance(value, tuple):
                    value = value[int(part)] if part.isdigit() and int(part) < len(value) else None
                else:
                    value = getattr(value, part, None)
            if value is not None:
                found[path] = plain(value)
        return found

    def _run(self, place: int, seed: int, judge: GoOn, error: PosttrainError | None = None) -> None:
        """Run a setting with a seed, or go on with it; what it gave, or why it gave nothing, is kept."""
        from posttrain.sweep.outcome import outcome

        changes = self.settings[place]
        variation = self._variation(changes, seed)
        out = variation.run.stage(self.stage.stage)
        self.context.display.note(f"setting {place + 1}: {label_of(changes)}, seed {seed}")
        parts: dict[str, Any] = {"seed": seed, "folder": str(out.path.relative_to(self.context.run.path))}
        try:
            if error is not None:
                raise error
            _judge_anew(judge, out)
            variation.execute(judge)
            found = outcome(out, self.stage.metric, self.stage.model)
        except EndedEarlyError as ended:
            self.runs[place, seed] = SweepRun(**parts, status="ended", curve=_curve(out), error=ended.problem)
        except InterruptedRunError:
            raise
        except PosttrainError as failed:
            self.context.display.note(f"this run failed: {failed}")
            self.runs[place, seed] = SweepRun(**parts, status="failed", error=str(failed))
        else:
            self.outcomes[place, seed] = found
            self.runs[place, seed] = SweepRun(
                **parts, status="complete", value=found.value, curve=found.curve, seconds=found.seconds
            )
            self._remember(out, found)

    def _remember(self, out: StageDir, found: Outcome) -> None:
        from posttrain.train.records import read_losses

        if found.curve and (self.best_curve is None or found.value < self.best_curve[0]):
            self.best_curve = (found.value, read_losses(out))

    def _not_dominated(self, out: StageDir, step: int) -> bool:
        from posttrain.sweep.outcome import dominated
        from posttrain.train.records import read_losses

        if self.best_curve is None:
            return True
        steps = next(line["total_steps"] for line in out.metrics() if line["split"] == "train")
        return not dominated(read_losses(out), self.best_curve[1], step, steps)

    def _side_by_side(self) -> dict[tuple[int, int], PosttrainError | None]:
        """Run all at once, as many as the memory holds by what the recipe as it is written took."""
        import psutil

        manifest = self.context.run.stage(self.stage.stage).manifest() or {}
        taken, free = float(manifest.get("peak_memory_bytes") or 0), psutil.virtual_memory().available
        processes = self.stage.side_by_side
        if taken and (fitting := max(1, int(MEMORY_SHARE * free / taken))) < processes:
            processes = fitting
            self.context.display.note(f"{processes} at once: one takes {taken / 1e9:.1f} GB of {free / 1e9:.1f} GB")
        keys = [(place, seed) for place in range(len(self.settings)) for seed in self.seeds]
        wanted = [self._wanted(self.settings[place], seed) for place, seed in keys]
        found: dict[tuple[int, int], PosttrainError | None] = {}
        for place, error in self.context.variations.side_by_side(wanted, processes):
            found[keys[place]] = error
            self.context.display.tick("runs", len(found), len(keys))
        return found


def _by_rung(seen: Callable[[int, float], bool]) -> GoOn:
    """Ask a search about the held-out loss of each measurement, once."""
    from posttrain.sweep.outcome import curve_of
    from posttrain.train.records import read_losses

    asked: set[int] = set()

    def go_on(out: StageDir, step: int) -> bool:
        if step in asked:
            return True
        asked.add(step)
        return seen(step, dict(curve_of(read_losses(out)))[step])

    return go_on


def _judge_anew(judge: GoOn, out: StageDir) -> None:
    """Decide again what was decided before about a run that was begun. Raises EndedEarlyError."""
    if judge is always:
        return
    for step, _ in _curve(out)[1:-1] if _complete(out) else _curve(out)[1:]:
        if not judge(out, step):
            raise EndedEarlyError(f"ended after step {step}", where=str(out.path))


def _complete(out: StageDir) -> bool:
    return (out.manifest() or {}).get("status") == "complete"


def _curve(out: StageDir) -> tuple[tuple[int, float], ...]:
    from posttrain.sweep.outcome import curve_of
    from posttrain.train.records import read_losses

    return curve_of(read_losses(out))
