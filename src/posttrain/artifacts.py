"""The run folder: atomic writes, manifests, metrics, the ledger and the lock. See docs/run-folder.md.

Every later step and every report reads these files and nothing else. No torch here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TextIO

import psutil
from safetensors import SafetensorError

from posttrain.errors import RunError
from posttrain.holder import UNKNOWN, Holder, holder_of, last_holder, lock_of, sign
from posttrain.types import Origin

SCHEMA = 1
LOCK_FILE = ".lock"
"""In the run folder: held by the process that works on the run (`posttrain.holder`)."""
EXIT_FILE = ".exit.json"
"""In the run folder: how the last process that worked on it ended; absent while one works, and where it was killed."""
STOP_FILE = ".stop"
"""In the run folder: there while the process that works on it is asked to stop."""


# ---- digests -------------------------------------------------------------------------------------------------------


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and plain dataclasses: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_jsonable)


def digest(value: Any) -> str:
    """sha256 hex of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 hex of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # numpy scalars
        return value.item()
    raise TypeError(f"not JSON: {type(value).__name__}")


def plain(value: Any) -> Any:
    """Dataclasses and NamedTuples as dictionaries, tuples as lists, NaN as null: what JSON can hold."""
    if hasattr(value, "_asdict"):
        return {key: plain(found) for key, found in value._asdict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(found) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return [plain(found) for found in value]
    return None if isinstance(value, float) and value != value else value


# ---- atomic files --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling path that replaces ``path`` when the block ends well, and is removed otherwise.

    A full disk or a read-only folder becomes a RunError that names the path, also where a library raises a type of its
    own for it (safetensors).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir():  # a folder can't be replaced in one call; the new one is complete before the old one goes
            shutil.rmtree(path)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise write_error(error, path) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    """Remove a file or folder if it is there and can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written below a folder. Only for who holds the run's lock."""
    for path in folder.rglob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            _remove(path)


def remove_killed(path: Path) -> None:
    """Remove what processes that are gone left half-written of a path."""
    for found in path.parent.glob(f".{path.name}.*.tmp"):
        number = found.name.split(".")[-2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            _remove(found)


_ELSEWHERE = "choose another place (--runs DIR, -o DIR)"
_WRITE_ERRORS = (
    ((errno.ENOSPC, errno.EDQUOT), "the disk is full", "free some space and run the same command again: it resumes"),
    ((errno.EACCES, errno.EPERM, errno.EROFS), "can't write here (read-only or no permission)", _ELSEWHERE),
    (
        (errno.EEXIST, errno.ENOTDIR),
        "can't write here: a file stands where a folder is needed",
        f"move that file away, or {_ELSEWHERE}",
    ),
)


def write_error(error: Exception, path: Path) -> RunError:
    """The RunError of a failed write, with the reason in words.

    ``error``: an OSError (numpy's have no number), or the error of a library that names the system's (``os error 28``).
    """
    named = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
    if number is None and re.search(r"\d+ requested and \d+ written", str(error)):
        number = errno.ENOSPC  # numpy does not say why fewer bytes were written
    for numbers, problem, fix in _WRITE_ERRORS:
        if number in numbers:
            return RunError(problem, where=str(path), fix=fix)
    reason = os.strerror(number) if number is not None else str(error)
    fix = "run the same command again once that is fixed: it resumes"
    return RunError(f"can't write: {reason}", where=str(path), fix=fix)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_jsonable) + "\n")


_in_a_line = json.JSONEncoder(ensure_ascii=False).encode


def append_json(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a log, on disk when this returns. What a kill left half-written becomes a line of its own."""
    with path.open("ab+") as file:
        half = b""
        if file.tell():
            file.seek(-1, os.SEEK_END)
            half = b"" if file.read(1) == b"\n" else b"\n"
        file.write(half + json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """Read a JSON artefact; a damaged one is a RunError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"can't read this artefact: {error}", where=str(path)) from error


# ---- the ledger ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reject:
    """One dropped row: which, at which step, why (a short fixed reason) and the detail of this case."""

    origin: Origin
    step: str
    reason: str
    detail: str = ""


@dataclass(slots=True)
class LedgerStep:
    """Counts of one step. ``rows_in == rows_out + sum(dropped) - added`` always holds."""

    name: str
    rows_in: int = 0
    rows_out: int = 0
    added: int = 0
    """Rows created here (one conversation expanded into several examples)."""
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    """Rows changed but kept, by what happened (for example ``system_folded``)."""


@dataclass(slots=True)
class Ledger:
    """The account of rows through a stage: what came in, what was kept, what was dropped and why."""

    steps: list[LedgerStep] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def step(self, name: str, rows_in: int = 0) -> LedgerStep:
        """Open a new step."""
        self.steps.append(LedgerStep(name, rows_in=rows_in))
        return self.steps[-1]

    def drop(self, step: LedgerStep, origin: Origin, reason: str, detail: str = "") -> None:
        """Record one dropped row."""
        step.dropped[reason] = step.dropped.get(reason, 0) + 1
        self.rejects.append(Reject(origin, step.name, reason, detail[:500]))

    def check(self) -> None:
        """Assert that every step sums up; a mismatch is a bug in posttrain."""
        for s in self.steps:
            if s.rows_in + s.added != s.rows_out + sum(s.dropped.values()):
                raise AssertionError(f"ledger step {s.name!r} does not sum up: {s}")

    @property
    def rows_in(self) -> int:
        """Rows that came into the first step."""
        return self.steps[0].rows_in if self.steps else 0

    @property
    def rows_kept(self) -> int:
        """Rows that left the last step."""
        return self.steps[-1].rows_out if self.steps else 0

    @property
    def dropped(self) -> dict[str, int]:
        """Rows dropped by reason, over all steps."""
        dropped: Counter[str] = Counter()
        for s in self.steps:
            dropped.update(s.dropped)
        return dict(dropped)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: ``rows_in``, ``rows_kept``, ``dropped`` by reason, ``truncated``, ``steps``, ``rejects``."""
        self.check()
        return {
            "schema": SCHEMA,
            "rows_in": self.rows_in,
            "rows_kept": self.rows_kept,
            "added": sum(s.added for s in self.steps),
            "dropped": self.dropped,
            "truncated": sum(s.truncated for s in self.steps),
            "steps": [dataclasses.asdict(s) for s in self.steps],
            "rejects": [
                {"file": r.origin.file, "line": r.origin.line, "step": r.step, "reason": r.reason, "detail": r.detail}
                for r in self.rejects
            ],
        }

    def write(self, path: Path) -> None:
        """Write ledger.json atomically, a line for each reject: a set may have many, and indenting takes ten times as long."""
        content = self.as_dict()
        rejects = ",".join(f"\n    {_in_a_line(reject)}" for reject in content.pop("rejects"))
        head = json.dumps(content, indent=2, ensure_ascii=False).removesuffix("\n}")
        write_text(path, f'{head},\n  "rejects": [{rejects}]\n}}\n')

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """The account that `write` wrote."""
        content = read_json(path)
        rejects = [
            Reject(Origin(r["file"], r["line"]), r["step"], r["reason"], r["detail"]) for r in content["rejects"]
        ]
        return cls([LedgerStep(**step) for step in content["steps"]], rejects)


# ---- provenance ----------------------------------------------------------------------------------------------------


@cache
def provenance() -> dict[str, Any]:
    """Versions of what computes, the git commit of the working folder and whether it is dirty, and the machine."""
    versions = {"python": platform.python_version()}
    for name in ("posttrain", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "polars"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    commit = _git("rev-parse", "HEAD")
    return {
        "versions": versions,
        "git_commit": commit,
        "git_dirty": bool(_git("status", "--porcelain")) if commit else None,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
    }


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# ---- the run folder ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json. Only ``kind`` and ``status`` are needed; a stage that was killed may lack the rest."""

    kind: str
    status: Literal["running", "complete", "failed"]
    config: dict[str, Any] = field(default_factory=dict)
    digest: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    finished: float | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    device: str | None = None
    dtype: str | None = None
    provenance: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class StageDir:
    """The folder of one stage."""

    path: Path

    def file(self, *parts: str) -> Path:
        """A path below the stage folder."""
        return self.path.joinpath(*parts)

    def manifest(self) -> dict[str, Any] | None:
        """The stage's manifest, or None where the stage never started. Raises RunError where it is damaged."""
        path = self.file("manifest.json")
        found = read_json(path) if path.exists() else None
        if found is not None and not isinstance(found, dict):
            raise RunError(
                "this is no manifest: a JSON object is needed", where=str(path), fix="remove the stage's folder"
            )
        return found

    def write_manifest(self, fields: Mapping[str, Any]) -> None:
        """Write manifest.json with the schema number in front."""
        write_json(self.file("manifest.json"), {"schema": SCHEMA, **fields})

    def metrics(self) -> list[dict[str, Any]]:
        """All records of metrics.jsonl; a half-written last line (a kill) is left out."""
        path = self.file("metrics.jsonl")
        return list(json_records(path)) if path.exists() else []


def json_records(path: Path) -> Iterator[dict[str, Any]]:
    """The record of every whole line of a log; a half-written last one (a kill) is left out. Raises RunError where another is damaged."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"this line can't be read as JSON: {error}", where=f"{path}:{number}", fix="remove the line"
            ) from error
        if not isinstance(record, dict):
            raise RunError("this line is no JSON object", where=f"{path}:{number}", fix="remove the line")
        yield record


class MetricsLog:
    """Appends JSON objects to metrics.jsonl, one a line, flushed at once.

    ``resume_after`` keeps only the records whose ``step`` is at most that number: what a killed run logged after its
    last checkpoint is computed again, so it must not stand twice.
    """

    def __init__(self, path: Path, resume_after: int = -1) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                kept = [record for record in json_records(path) if record.get("step", 0) <= resume_after]
                write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise write_error(error, path) from error
        self._path = path

    def write(self, **record: Any) -> None:
        """Append one record."""
        try:
            self._file.write(json.dumps(record, ensure_ascii=False, default=_jsonable) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_error(error, self._path) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class RunDir:
    """The folder of one run: ``runs/<name>``."""

    path: Path
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    """Stages that stand in another folder than the one of their name: those of a variation of the recipe."""

    def stage(self, name: str) -> StageDir:
        """The folder of a stage (not created)."""
        return StageDir(self.elsewhere.get(name, self.path / name))

    def stages(self) -> list[str]:
        """Names of the stages that have a manifest, in order of their start."""
        found = {p.parent.name: self.stage(p.parent.name).manifest() or {} for p in self.path.glob("*/manifest.json")}

        def started(name: str) -> float:
            when = found[name].get("started")
            return when if isinstance(when, int | float) else 0.0

        return sorted(found, key=started)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; a second process gets a RunError that names the holder.

        What was left of the end of the process before (`EXIT_FILE`, `STOP_FILE`) is removed.
        """
        try:
            os.fspath(self.path).encode()
        except UnicodeEncodeError:
            raise RunError(
                "the name of this folder is not UTF-8, and Parquet files can't be written into it",
                where=os.fsencode(self.path).decode("utf-8", "backslashreplace"),
                fix="give another folder",
            ) from None
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(lock_of(self.path / LOCK_FILE))
                if lock is not None:
                    for name in (EXIT_FILE, STOP_FILE):
                        (self.path / name).unlink(missing_ok=True)
                    sign(lock)  # last: who reads this name finds nothing of the one before
            except OSError as error:
                raise write_error(error, self.path) from error
            if lock is None:
                raise self.taken_by(last_holder(self.path / LOCK_FILE) or UNKNOWN)
            yield

    def holder(self) -> Holder | None:
        """The process that works on this run now; None where none does."""
        return holder_of(self.path / LOCK_FILE)

    def taken_by(self, holder: Holder) -> RunError:
        """The refusal to work on this run, because another process does."""
        return RunError(
            f"another process is working on this run ({holder})",
            where=str(self.path),
            fix="wait for it, stop it, or give this run another name=...",
        )

    def stop_asked(self) -> bool:
        """Whether the process that works on this run was asked to stop after the step it is at."""
        return (self.path / STOP_FILE).exists()
