"""The list of runs: a few facts of every run folder, read again only where something changed.

A run that does not run changes only when its folder does, so one look at each folder's time is enough; of one that runs the manifests and
the last lines of its metrics are read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from posttrain.artifacts import RunDir, read_json, write_json
from posttrain.board.web import is_run
from posttrain.errors import RunError
from posttrain.lab.processes import ProcessState, state
from posttrain.lab.queue import Entry, entries, keep_going

TAIL_BYTES = 8192
"""Of metrics.jsonl: the last dozen records."""
FRESH = 0.4
"""Seconds for which a look at all runs is good enough for every browser that asks."""
_DAMAGE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, OSError)
"""What reading a file raises that holds something else than it should, or can't be opened."""
BOARD_FILE = ".board.json"
"""In the run folder: what people have said of a run on the board."""


class Remarks(NamedTuple):
    """What people have said of a run on the board."""

    tags: tuple[str, ...] = ()
    note: str = ""
    archived: bool = False


class StageFacts(NamedTuple):
    """How far a stage is."""

    name: str
    kind: str
    status: Literal["not started", "running", "complete", "failed"]
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    seconds_left: float | None = None

    @property
    def share(self) -> float:
        """How much of it is done, where it can be told."""
        if self.status == "complete":
            return 1.0
        return self.step / self.steps if self.step and self.steps and self.status == "running" else 0.0


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run in the list."""

    name: str
    model: str
    state: ProcessState
    stages: tuple[StageFacts, ...]
    verdicts: Mapping[str, int]
    """How many headline numbers are ``improved``, ``worse``, ``not shown``; empty before a report."""
    started: float | None
    problem: str = ""
    """What is damaged."""
    remarks: Remarks = field(default_factory=Remarks)

    @property
    def now(self) -> StageFacts | None:
        """The stage it is at, or the last one that has anything to tell."""
        begun = [stage for stage in self.stages if stage.status == "running"]
        told = [stage for stage in self.stages if stage.loss is not None]
        return next(iter(begun + told[::-1]), None)

    @property
    def share(self) -> float:
        """How much of it is done: stages count alike."""
        return sum(stage.share for stage in self.stages) / len(self.stages) if self.stages else 0.0

    @property
    def loss(self) -> float | None:
        """The last training loss."""
        return next((stage.loss for stage in reversed(self.stages) if stage.loss is not None), None)


def run_facts(run: RunDir) -> RunFacts:
    """Read what the list says of a run. What is damaged is said, not raised."""
    problem, verdicts, started = "", {}, []
    found: dict[str, StageFacts] = {}
    model, declared = _recipe(run.path / "recipe.yaml")
    for path in run.path.glob("*/manifest.json"):
        name = path.parent.name
        try:
            manifest = run.stage(name).manifest() or {}
            found[name] = _stage(run, name, manifest)
            started += [(_moment(manifest.get("started") or 0), name)]
        except RunError as error:
            problem = str(error)
        except _DAMAGE as error:
            problem = f"{path}: damaged or not of this version ({type(error).__name__}: {error})"
    with contextlib.suppress(RunError, *_DAMAGE):
        if (path := run.path / "summary.json").exists():
            told = [one.get("verdict") for one in read_json(path)["headlines"]]
            verdicts = {one: told.count(one) for one in dict.fromkeys(told) if one}
    order = {name: place for place, (_, name) in enumerate(sorted(started))}
    names = dict.fromkeys([*declared, *sorted(found, key=lambda name: order.get(name, 0))])
    stages = [found.get(name) or StageFacts(name, declared.get(name, ""), "not started") for name in names]
    now = ProcessState("unstarted")
    try:
        now = _state(run, tuple(stages))
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    return RunFacts(
        name=run.path.name,
        model=model,
        state=now,
        stages=tuple(stages),
        verdicts=verdicts,
        started=min((when for when, _ in started), default=_begun(run)),
        problem=problem,
        remarks=remarks_of(run),
    )


def _state(run: RunDir, stages: Sequence[StageFacts]) -> ProcessState:
    """What became of the run; of one without a record of its end, what its manifests say."""
    found, statuses = state(run), {stage.status for stage in stages}
    if found.name != "unstarted" or statuses <= {"not started"}:
        return found
    if "failed" in statuses:
        return ProcessState("failed")
    return ProcessState("stopped" if "running" in statuses else "finished")


def _moment(value: Any) -> float:
    """Unix seconds that a calendar has. Raises ValueError or TypeError for others."""
    if not 0 <= float(value) < 253_402_300_800:
        raise ValueError(f"{value} is no time")
    return float(value)


def _begun(run: RunDir) -> float | None:
    """When a run began that has no stage yet: its recipe is written first."""
    with contextlib.suppress(OSError):
        return (run.path / "recipe.yaml").stat().st_mtime
    return None


def _recipe(path: Path) -> tuple[str, dict[str, str]]:
    """The model of a recipe, and its stages with their kinds; as much as can be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return "", {}
    # What the engine writes has one shape, and parsing the YAML of 300 runs takes seconds.
    head, _, rest = text.partition("\nstages:\n")
    stages = re.findall(r"^  ([\w-]+):\n    kind: ([\w-]+)$", rest, re.MULTILINE)
    model = re.search(r"^model: (.+)$", head, re.MULTILINE)
    with contextlib.suppress(yaml.YAMLError, *_DAMAGE):
        if stages:
            return (str(yaml.safe_load(model[1])) if model else ""), dict(stages)
        value = yaml.safe_load(text)
        kinds = {str(name): str(one.get("kind", "")) for name, one in value["stages"].items()}
        return str(value.get("model") or ""), kinds
    return "", {}


def _stage(run: RunDir, name: str, manifest: Mapping[str, Any]) -> StageFacts:
    facts = StageFacts(name, str(manifest["kind"]), str(manifest["status"]))  # type: ignore[arg-type]  # a word of three
    train = [one for one in tail(run.stage(name).file("metrics.jsonl")) if one.get("split") == "train"]
    if not train:
        return facts
    last, first = train[-1], train[0]
    step, steps, left = int(last["step"]), int(last["total_steps"]), None
    if facts.status == "running" and step > first["step"]:
        left = (last["seconds"] - first["seconds"]) / (step - first["step"]) * (steps - step)
    return facts._replace(step=step, steps=steps, loss=float(last["loss"]), seconds_left=left)


def tail(path: Path) -> list[dict[str, Any]]:
    """The last records of a log; what stands half-written at its end, or half-read at the beginning, is left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")[(1 if size > TAIL_BYTES else 0) : -1]
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict)]


# ---- what people say of a run --------------------------------------------------------------------------------------


def remarks_of(run: RunDir) -> Remarks:
    """What was said of a run on the board; nothing where it can't be read."""
    try:
        value = read_json(run.path / BOARD_FILE)
        return Remarks(tuple(map(str, value["tags"])), str(value["note"]), bool(value["archived"]))
    except (RunError, *_DAMAGE):
        return Remarks()


def say(run: RunDir, remarks: Remarks) -> None:
    """Keep what is said of a run. Raises RunError where its folder can't be written."""
    write_json(run.path / BOARD_FILE, remarks._asdict())


# ---- all of them ---------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """A run as it was when its folder had this time."""

    changed: int
    facts: RunFacts


class Found(NamedTuple):
    """What a look at a folder of runs found."""

    runs: tuple[RunFacts, ...] = ()
    """The newest first."""
    queue: tuple[Entry, ...] = ()


class Listing:
    """The runs of a folder, and what waits. What is remembered is only what can be read again."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._seen: dict[str, _Seen] = {}
        self._looked = 0.0
        self._found = Found()
        self._lock = threading.Lock()

    def all(self) -> Sequence[RunFacts]:
        """Every run, the newest first."""
        return self.look().runs

    def look(self) -> Found:
        """Every run, and the queue, which is kept going; the very same value as before where nothing has changed."""
        with self._lock:
            if not self._is_fresh:
                keep_going(self.runs)
                facts = [found for found in map(self._facts, self._names()) if found]
                runs = tuple(sorted(facts, key=lambda one: (-(one.started or 0.0), one.name)))
                if (found := Found(runs, tuple(entries(self.runs)))) != self._found:
                    self._found = found
                self._looked = time.monotonic()
            return self._found

    def is_still(self, found: Found) -> bool:
        """Whether a look that is good enough for everyone found the same; reads no file."""
        return self._is_fresh and found is self._found

    @property
    def _is_fresh(self) -> bool:
        return time.monotonic() - self._looked <= FRESH

    def of(self, name: str) -> RunFacts | None:
        """One run; None where it is not there."""
        with self._lock:
            return self._facts(name)

    def forget(self) -> None:
        """Look anew at the next question."""
        self._looked = 0.0

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.runs)
        except OSError:
            return []

    def _facts(self, name: str) -> RunFacts | None:
        seen = self._seen.get(name)
        try:
            changed = os.stat(os.path.join(self.runs, name)).st_mtime_ns
        except OSError:
            self._seen.pop(name, None)
            return None
        goes_on = seen is not None and (seen.facts.state.is_running or seen.facts.state.name == "lingering")
        if seen is not None and seen.changed == changed and not goes_on:
            return seen.facts
        if not is_run(self.runs, name):
            return None
        self._seen[name] = _Seen(changed, run_facts(RunDir(self.runs / name)))
        return self._seen[name].facts
