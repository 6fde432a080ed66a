"""Run a recipe: stages in the order of their references, each finished once, resumed where it was cut.

A stage's identity is the digest of its configuration, the recipe's seed and the content of everything that its configuration names
(`posttrain.references`): other stages, models, rows, files. A stage that is complete under the same identity is not run again; one
that was running goes on; one whose identity changed starts anew, and the old folder is kept under ``.replaced/``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from posttrain import assets
from posttrain.artifacts import (
    RunDir,
    StageDir,
    digest,
    file_digest,
    provenance,
    read_json,
    remove_leftovers,
    write_error,
    write_json,
    write_text,
)
from posttrain.config import dotted, parse_yaml, resolved_yaml
from posttrain.encode.template import clock, stopped_at
from posttrain.errors import ConfigError, DataError, InterruptedRunError, PosttrainError
from posttrain.holder import end_with
from posttrain.lab.ending import recorded_end
from posttrain.lab.recipe import (
    Recipe,
    execution_order,
    named_stage,
    on_disk,
    recipe_of,
    stage_inputs,
    stage_references,
)
from posttrain.lab.variations import changed, reseeded, stage_keys
from posttrain.model.lineage import Lineage
from posttrain.parallel.peers import ALONE, Order, Peers
from posttrain.references import NamesFile, NamesModel, NamesRows, NamesStage, Reference, is_builtin, package_file
from posttrain.report.live import Display
from posttrain.stages.base import BASE, Context, GoOn, StageKind, Wanted, always
from posttrain.table import did_you_mean

if TYPE_CHECKING:
    from posttrain.parallel.joined import JoinedPeers

CLOCK_FILE = "clock.json"
"""The file of a run that says what time its chat templates are told."""
RESULTS_VERSION = 4
"""Raised when a stage's results would differ for the same configuration, so that old runs are computed again."""


@dataclass(frozen=True)
class Experiment:
    """A recipe with its run folder and its display."""

    recipe: Recipe
    run: RunDir
    display: Display
    seeds: Mapping[str, int] = field(default_factory=dict)
    """Stages with another seed than the recipe's."""
    varies: bool = False
    """Whether it is a variation of another recipe, of which stages that are unchanged are not told."""
    peers: Peers = ALONE
    """The processes that work on the run with this one, which is rank 0 of them."""

    def execute(self, only: Sequence[str] | None = None) -> None:
        """Run all stages, or the named ones with everything they read. Holds the run's lock, and leaves how it ended."""
        order = execution_order(self.recipe, only)
        with self.run.lock(), recorded_end(self.run), self.peers.whole():
            write_text(self.run.path / "recipe.yaml", resolved_yaml(self.recipe))
            remove_leftovers(self.run.path)
            self.check(order)
            with stopped_at(self.clock()):
                for name in order:
                    self.run_stage(name)

    def rehearse(self) -> None:
        """Check what is checked before a run and tell of every stage whether it would run. Computes nothing and writes nothing."""
        order = execution_order(self.recipe)
        self.check(order)
        whole: set[str] = set()
        for name in order:
            stage, manifest, state = self.recipe.stages[name], self._earlier(name), "new"
            if manifest is not None and whole.issuperset(stage_inputs(self.recipe, name).values()):
                state = self._standing(name, manifest, self._identity(name, self._inputs(name, stage)))
            if state == "whole":
                whole.add(name)
            said = {"whole": "unchanged", "begun": "would resume", "new": "would run"}
            self.display.stage(name, stage.kind, said[state])

    @cached_property
    def _base_folder(self) -> Path:
        """The local folder of the recipe's model, fetched where needed."""
        from posttrain.model.folder import check_model_folder
        from posttrain.model.targets import model_folder

        if self.recipe.model is None:
            raise ConfigError("this recipe has no model", where="model", fix="name one: model=ORG/NAME")
        folder = model_folder(self.recipe.model, self.display.tick)
        check_model_folder(folder)
        return folder

    def context(self, name: str, identity: str = "", go_on: GoOn = always) -> Context:
        """What a stage is run in."""
        return Context(
            name=name,
            run=self.run,
            seed=self.seeds.get(name, self.recipe.seed),
            identity=identity,
            model=self.recipe.model or "",
            stages=self.recipe.stages,
            display=self.display,
            base_folder=lambda: self._base_folder,
            variations=RecipeVariations(self, name),
            go_on=go_on,
            peers=self.peers,
        )

    def clock(self) -> datetime:
        """The time chat templates are told in this run, however often it is resumed: that of its first start."""
        path = self.run.path / CLOCK_FILE
        if not path.is_file():
            write_json(path, {"now": clock().isoformat(timespec="seconds")})
        return datetime.fromisoformat(read_json(path)["now"])

    def check_files(self, names: Sequence[str]) -> None:
        """Raise DataError or ConfigError where a file or rows that stages name are missing, or stand where they would be replaced."""
        for name in names:
            for one in stage_references(self.recipe, name):
                local = isinstance(one.marker, NamesFile) and not is_builtin(one) and not assets.is_hub_file(one.text)
                if local and not Path(one.text).is_file():
                    raise DataError(f"no such {dotted(one.path[2:])} file", where=f"{dotted(one.path)}: {one.text}")
                if named_stage(self.recipe, one) is None and on_disk(one) and self._is_own(name, Path(one.text)):
                    raise ConfigError(
                        "this is where the stage writes: it would be replaced before it is read",
                        where=f"{dotted(one.path)}: {one.text}",
                        fix="write into another folder, or name another source",
                    )
                self._check_outside(one, models=False)

    def check(self, names: Sequence[str]) -> None:
        """Find out before anything runs that the model, a file or a device is missing, or that a template is broken."""
        self.check_files(names)
        for name in names:
            self.recipe.stages[name].check(self.context(name))
        for name in names:
            for one in stage_references(self.recipe, name):
                self._check_outside(one, models=True)

    def _check_outside(self, one: Reference, *, models: bool) -> None:
        """Raise a DataError or ModelError where rows (or models) from outside are missing, or a reward model has no score head."""
        from posttrain.judge.reward import check_score_head

        if named_stage(self.recipe, one) is not None:
            return
        try:
            match one.marker:
                case NamesRows() | NamesStage(or_outside="rows") if not models:
                    one.owner.parts(self.context(str(one.path[1])).resolve_data)
                case NamesModel() | NamesStage(or_outside="model") if models:
                    found = self._outside_model(one)
                    if isinstance(one.marker, NamesStage) and one.marker.gives == "reward_model":
                        check_score_head(found.adapter or found.folder, one.text)
                case _:
                    return
        except PosttrainError as error:
            near = did_you_mean(one.text, self.recipe.stages)
            if near and isinstance(one.marker, NamesStage):
                raise type(error)(f"{error.problem}{near}", where=dotted(one.path), fix=error.fix) from error
            raise

    def _outside_model(self, one: Reference) -> Lineage:
        """A model from outside the recipe."""
        from posttrain.model.targets import continued, resolve_target

        if isinstance(one.marker, NamesStage) and one.marker.goes_on:
            return continued(one.text, self.recipe.model or "")
        return resolve_target(one.text, getattr(one.owner, "base", None))

    def _is_own(self, name: str, path: Path) -> bool:
        """Whether a path is this run, or in the folder of this stage."""
        path, own = path.resolve(), self.run.stage(name).path.resolve()
        return path == self.run.path.resolve() or own in (path, *path.parents)

    def run_stage(self, name: str, go_on: GoOn = always) -> None:
        """Run a stage that is not finished yet, without a lock: whoever calls holds the run."""
        out, stage = self.run.stage(name), self.recipe.stages[name]
        inputs = self._inputs(name, stage)
        identity = self._identity(name, inputs)
        manifest = self._earlier(name)
        standing = self._standing(name, manifest, identity)
        if standing == "whole":
            if not self.varies:
                self.display.stage(name, stage.kind, "unchanged")
            return
        same = standing == "begun"
        if self.run.stop_asked():
            fix = "run the same command again to go on from here"
            raise InterruptedRunError(f"stopped before stage {name}", where=str(self.run.path), fix=fix)
        self.display.stage(name, stage.kind, "resuming" if same else "running")
        if manifest is not None and not same:
            self._set_aside(out, manifest)
        before = (manifest or {}).get("seconds") or 0.0 if same else 0.0  # of the sessions before
        account = _Manifest(out, stage, identity, inputs, before)
        try:
            with self._shared(name, identity), self.peers.whole():
                result = stage.run(self.context(name, identity, go_on))
            with self.peers.together({"kind": REST}):
                pass
        except Exception as error:
            account.fail(error)
            raise
        account.finish(result)

    def _shared(self, name: str, identity: str) -> contextlib.AbstractContextManager[object]:
        """Inside, the other processes take part in a stage that is shared."""
        if self.peers.size == 1 or not self.recipe.stages[name].is_shared:
            return contextlib.nullcontext()
        order = {
            "kind": STAGE,
            "stage": name,
            "identity": identity,
            "recipe": resolved_yaml(self.recipe),
            "run": str(self.run.path.absolute()),
            "elsewhere": {one: str(path.absolute()) for one, path in self.run.elsewhere.items()},
            "seeds": dict(self.seeds),
            "now": self.clock().isoformat(timespec="seconds"),
        }
        return self.peers.together(order)

    def _earlier(self, name: str) -> dict[str, Any] | None:
        """The manifest that a stage goes on from; None where it is made anew every time: reading artefacts is cheap, and shows what is there now."""
        stage = self.recipe.stages[name]
        return None if stage.reads_all or stage.goes_through else self.run.stage(name).manifest()

    def _standing(
        self, name: str, manifest: Mapping[str, Any] | None, identity: str
    ) -> Literal["new", "begun", "whole"]:
        """What is there of the stage of this identity; a complete one that lacks files is new."""
        if manifest is None or manifest["digest"] != identity:
            return "new"
        if manifest["status"] != "complete":
            return "begun"
        return "whole" if _is_whole(self.recipe.stages[name], self.run.stage(name)) else "new"

    def _identity(self, name: str, inputs: Mapping[str, str]) -> str:
        """Of a stage: what it is set to, and what it reads."""
        seed = self.seeds.get(name, self.recipe.seed)
        return digest({"stage": self.recipe.stages[name], "seed": seed, "inputs": inputs, "code": RESULTS_VERSION})

    def _inputs(self, name: str, stage: StageKind) -> dict[str, str]:
        """What the stage reads, by content: complete, for a configuration names nothing without a marker."""
        if stage.reads_all:
            return {}
        found = {key: self._stage_digest(other) for key, other in stage_inputs(self.recipe, name).items()}
        for one in stage_references(self.recipe, name):
            content = self._content(one)
            if content is not None:
                found[dotted(one.path[2:])] = content
        return found

    def _content(self, one: Reference) -> str | None:
        """Digest of what a reference names, where that is no stage that is run."""
        named = named_stage(self.recipe, one)
        if named == BASE:
            return self._base_digest
        if named is not None:
            return None
        match one.marker:
            case NamesFile() as marker:
                if is_builtin(one):
                    return file_digest(package_file(marker))
                return file_digest(assets.hub_file(one.text) if assets.is_hub_file(one.text) else Path(one.text))
            case NamesModel() | NamesStage(or_outside="model"):
                return self._outside_model(one).identity
            case NamesRows() | NamesStage(or_outside="rows"):
                from posttrain.data.sources import content_of

                return content_of(one.owner.parts(self.context(str(one.path[1])).resolve_data))
            case _:
                return None

    @cached_property
    def _base_digest(self) -> str:
        from posttrain.model.lineage import model_digest

        return model_digest(self._base_folder)

    def _stage_digest(self, name: str) -> str:
        manifest = self.run.stage(name).manifest()
        assert manifest is not None, f"{name} comes before those that read it"
        return str(manifest["digest"])

    def _set_aside(self, out: StageDir, manifest: Mapping[str, Any]) -> None:
        target = self.run.path / ".replaced" / f"{out.path.name}-{manifest['digest'][:8]}"
        try:
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            os.replace(out.path, target)
        except OSError as error:
            raise write_error(error, target) from error
        self.display.note(f"its configuration, inputs or files changed; the old results are in {target}")


def follow(peers: JoinedPeers) -> None:
    """Take part in what rank 0 runs, to its end; writes nothing that stays."""
    warnings.simplefilter("ignore")  # rank 0 says the same
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # rank 0 hears them too, and when it ends, so does this process
    joins = _joins()
    for order in peers.orders():
        try:
            joins[order["kind"]](peers, order)
            peers.report()
        except PosttrainError as error:
            peers.fail(error.problem, error.fix)
        except (RuntimeError, KeyboardInterrupt) as error:
            peers.fail(f"{type(error).__name__}: {error}", None)
    peers.leave()


STAGE, REST = "stage", "rest"
"""Kinds of orders: to join a stage, and to give up the models that were kept for the orders of one."""


def _joins() -> dict[str, Callable[[Peers, Order], None]]:
    """What another process does for an order of rank 0, by its kind."""
    from posttrain.generate.shared import REPLIES, replies
    from posttrain.judge.reward import REWARDS, rewards_of
    from posttrain.model.shared import LIKELIHOODS, KeptModels, likelihoods, take_share

    kept = KeptModels()
    works = {REPLIES: replies, LIKELIHOODS: likelihoods, REWARDS: rewards_of}
    shares = {kind: partial(take_share, kept=kept, work=work) for kind, work in works.items()}
    return {STAGE: _join, REST: lambda peers, order: kept.clear(), **shares}


def _join(peers: Peers, order: Order) -> None:
    """Do the part of this process in a stage; what it would write goes into a folder that is removed."""
    recipe, name = recipe_of(parse_yaml(order["recipe"], "the recipe of rank 0")), order["stage"]
    with TemporaryDirectory() as aside, stopped_at(datetime.fromisoformat(order["now"])):
        elsewhere = {one: Path(path) for one, path in order["elsewhere"].items()}
        run = RunDir(Path(order["run"]), elsewhere | {name: Path(aside) / name})
        experiment = Experiment(recipe, run, Display(Console(quiet=True)), order["seeds"], peers=peers)
        recipe.stages[name].join(experiment.context(name, order["identity"]))


# ---- the recipe with other settings --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeVariation:
    """One variation: the stages of it that are needed, and where each stands."""

    experiment: Experiment
    order: tuple[str, ...]
    """The stages, each after what it reads."""

    @property
    def run(self) -> RunDir:
        """Where each of its stages stands."""
        return self.experiment.run

    def check(self) -> None:
        """Find out before anything runs what can't work. Raises a PosttrainError."""
        self.experiment.check(self.order)

    def execute(self, go_on: GoOn = always) -> None:
        """Run what is not finished, inside a run whose lock and clock are held."""
        for name in self.order:
            self.experiment.run_stage(name, go_on)


@dataclass(frozen=True)
class RecipeVariations:
    """The variations that a stage makes of the recipe it is in (`posttrain.stages.base.Variations`).

    What a variation has in common with the recipe is used where it stands; what differs stands below the stage that made it, as
    ``<stage>-<key>``, where ``key`` is a digest of its settings and all they rest on. So variations share what is the same, however they
    were made, and one that was run before is found again.
    """

    experiment: Experiment
    own: str
    """The stage that makes them."""

    def of(self, wanted: Wanted) -> RecipeVariation:
        """The recipe as far as the wanted stage needs, with other settings."""
        recipe, run = self.experiment.recipe, self.experiment.run
        other = changed(recipe, wanted.changes, where=f"stages.{self.own}")
        seeds = {} if wanted.seed is None else dict.fromkeys(reseeded(other, wanted.varied), wanted.seed)
        order = execution_order(other, [wanted.stage])
        as_written, keys, out = stage_keys(recipe, {}), stage_keys(other, seeds), run.stage(self.own).path
        elsewhere = {one: out / f"{one}-{keys[one][:10]}" for one in order if keys[one] != as_written[one]}
        other = replace(other, stages={one: other.stages[one] for one in other.stages if one in order})
        run = RunDir(run.path, elsewhere)
        return RecipeVariation(replace(self.experiment, recipe=other, run=run, seeds=seeds, varies=True), order)

    def side_by_side(self, several: Sequence[Wanted], processes: int) -> Iterator[tuple[int, PosttrainError | None]]:
        """Run several at once; yield the place of each that ended, with its error.

        What two of them need is run before, here, so that no two processes work on one folder. A process ends with this one.
        """
        variations = [self.of(wanted) for wanted in several]
        shared = Counter(path for one in variations for path in {one.run.stage(read).path for read in one.order})
        for one in variations:
            for read in one.order:
                if shared[one.run.stage(read).path] > 1:
                    one.experiment.run_stage(read)
        start, now = (os.getpid(), max(1, (os.cpu_count() or 1) // processes)), self.experiment.clock()
        with ProcessPoolExecutor(processes, get_context("spawn"), _begin_process, start) as pool:
            parts = ((one.experiment.recipe, one.run, one.experiment.seeds, one.order, now) for one in variations)
            waiting = {pool.submit(_run_silently, *part): place for place, part in enumerate(parts)}
            for done in as_completed(waiting):
                error = done.exception()
                if error is not None and not isinstance(error, PosttrainError):
                    raise error
                yield waiting[done], error


def _begin_process(parent: int, threads: int) -> None:
    """Prepare a process that runs variations: its share of the threads, and an end when its parent ends."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the parent decides
    end_with(parent)


def _run_silently(recipe: Recipe, run: RunDir, seeds: Mapping[str, int], order: Sequence[str], now: datetime) -> None:
    """Run stages in a process of their own."""
    with stopped_at(now):
        experiment = Experiment(recipe, run, Display(Console(quiet=True)), seeds)
        for name in order:
            experiment.run_stage(name)


def _is_whole(stage: StageKind, out: StageDir) -> bool:
    """Whether what a finished stage hands on is still there."""
    if stage.gives == "rows":
        return out.file("rows", "train.parquet").is_file()
    return stage.gives is None or out.file("adapter").is_dir() or out.file("model").is_dir()


class _Manifest:
    """The manifest of a stage from its start to its end."""

    def __init__(
        self, out: StageDir, stage: StageKind, identity: str, inputs: Mapping[str, str], before: float
    ) -> None:
        self._out = out
        self._begin = time.perf_counter() - before
        self._fields: dict[str, Any] = {
            "kind": stage.kind,
            "status": "running",
            "config": stage,
            "digest": identity,
            "inputs": inputs,
            "started": time.time(),
            "provenance": provenance(),
        }
        out.write_manifest(self._fields | ({"seconds": before} if before else {}))

    def finish(self, result: Mapping[str, Any]) -> None:
        """The stage is complete."""
        of_result = {key: result.get(key) for key in ("peak_memory_bytes", "device", "dtype")}
        self._write(status="complete", finished=time.time(), **of_result, result=result)

    def fail(self, error: Exception) -> None:
        """The stage was interrupted, or failed."""
        if isinstance(error, InterruptedRunError):
            self._write()
            return
        message = str(error) if isinstance(error, PosttrainError) else traceback.format_exc()
        self._write(status="failed", error=message, finished=time.time())

    def _write(self, **more: Any) -> None:
        self._out.write_manifest(self._fields | {"seconds": time.perf_counter() - self._begin} | more)
