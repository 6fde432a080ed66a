"""Reading artefacts as typed values: a file that is absent, damaged or unfinished becomes a ``Gap``, and the rest is read all the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from posttrain.artifacts import Ledger, Manifest, StageDir
from posttrain.errors import RunError

T = TypeVar("T")

StageStatus = Literal["not started", "running", "complete", "failed"]
GapKind = Literal["not started", "running", "failed", "missing", "damaged"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Something this report can't show, and why."""

    stage: str
    kind: GapKind
    text: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage as the run folder has it, whatever its kind."""

    name: str
    kind: str
    status: StageStatus
    manifest: Manifest | None
    ledger: Ledger | None
    folder: StageDir

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration; empty where the stage has not started."""
        return self.manifest.config if self.manifest else {}

    @property
    def seconds(self) -> float | None:
        """Its time from the manifest, which doesn't know of sessions that were killed, or from its metrics, where that is more."""
        known = [self.manifest.seconds if self.manifest else None]
        with contextlib.suppress(RunError):
            known += [line.get("seconds") for line in self.folder.metrics()]
        return max((seconds for seconds in known if isinstance(seconds, int | float)), default=None)

    def result(self, kind: type[T], gaps: list[Gap]) -> T:
        """Return the typed ``result`` of the stage; an empty one where it is absent, or damaged, which is a gap."""
        value = self.manifest.result if self.manifest else None
        try:
            return parse(kind, value or {}, self.folder.file("manifest.json"))
        except RunError as error:
            gaps.append(Gap(self.name, "damaged", f"Stage {self.name}: its result can't be read ({error.problem})."))
            return kind()


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # building one is much slower than using it


def parse(kind: type[T], value: Any, path: Path) -> T:
    """``value`` as ``kind``; RunError that names the file and the place inside it where it does not fit."""
    try:
        parsed: T = _adapter(cast(Hashable, kind)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole value"
        raise RunError(f"{place}: {first['msg']}", where=str(path)) from error
    return parsed


def json_lines(path: Path) -> list[Any]:
    """Return the value of every line; RunError where a line is not JSON."""
    lines = path.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise RunError(f"a line is not JSON: {error}", where=str(path)) from error


def json_value(path: Path) -> Any:
    """Return the value of a file; RunError where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"not JSON: {error}", where=str(path)) from error


def optional(gaps: list[Gap], stage: Stage, path: Path, lacks: str, read: Callable[[Path], T]) -> T | None:
    """``read(path)``, or None with a gap where the file is absent (of a finished stage) or damaged."""
    if not path.exists():
        if stage.status == "complete":
            gaps.append(Gap(stage.name, "missing", f"Stage {stage.name}: {path.name} is missing, so {lacks}."))
        return None
    try:
        return read(path)
    except (RunError, OSError) as error:
        problem = error.problem if isinstance(error, RunError) else str(error)
        gaps.append(
            Gap(stage.name, "damaged", f"Stage {stage.name}: {path.name} can't be read ({problem}), so {lacks}.")
        )
        return None


def read_ledger(path: Path) -> Ledger:
    """Return a ledger whose steps sum up; RunError where they don't, or it is of another shape."""
    try:
        ledger = Ledger.read(path)
        ledger.check()
    except (AssertionError, KeyError, TypeError) as error:
        raise RunError(f"{type(error).__name__}: {error}", where=str(path)) from error
    return ledger
