"""One run after another: a folder of what waits, and a process that starts the next when one has ended.

``<runs>/.queue/`` holds a JSON file for each entry, in the order of their names. The process that works through it (``python -m
posttrain.lab.queue RUNS``) holds ``.lock`` there, is started when something is queued or looked at while none holds it, outlives
whoever started it, and ends when nothing waits. The runs are processes of their own: they outlive it in turn.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from posttrain.artifacts import LOCK_FILE, RunDir, read_json, write_error, write_json
from posttrain.errors import PosttrainError, RunError
from posttrain.holder import holder_of, lock_of, sign
from posttrain.lab.ending import Told, read_exit
from posttrain.lab.processes import detached, open_log, own_recipe, start, state, store_text, until_held

QUEUE = ".queue"
_EDIT = ".edit"
"""The lock of who changes the order or an entry; held for a moment."""
_PATIENCE = 10.0
_LOOK = 0.25


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that waits for its turn, is at it, or failed at it."""

    key: str
    """What it is called in `move` and `remove`."""
    name: str
    """Of its run folder."""
    recipe: str
    """The recipe's file in full."""
    overrides: tuple[str, ...]
    folder: str
    """The working folder, which relative paths are taken from."""
    queued: float
    """Unix seconds."""
    status: Literal["waiting", "running", "failed"] = "waiting"
    pid: int | None = None
    """Of the process that runs it, or ran it."""
    error: Told | None = None
    """Why it failed. It stays until it is removed."""


def entries(runs: Path) -> list[Entry]:
    """The entries of the queue of a folder of runs, in their order; a damaged one is left out."""
    return [entry for _, entry in _listed(runs)]


def _listed(runs: Path) -> list[tuple[Path, Entry]]:
    found: dict[str, tuple[Path, Entry]] = {}
    for path in sorted((runs / QUEUE).glob("[0-9]*.json")):
        with contextlib.suppress(RunError, TypeError, KeyError):
            value = read_json(path)
            parts = {"overrides": tuple(value["overrides"]), "error": value["error"] and Told(**value["error"])}
            found.setdefault(value["key"], (path, Entry(**value | parts)))  # twice where a move was killed
    return list(found.values())


def start_text(text: str, runs: Path, *, queue: bool) -> RunDir:
    """Run the recipe that a text holds now, or queue it; returns where it runs. Raises as `start` and `enqueue`."""
    recipe = store_text(text, runs)
    return RunDir(runs / enqueue(recipe, (), runs).name) if queue else start(recipe, (), runs).run


# ---- changes -------------------------------------------------------------------------------------------------------


def enqueue(recipe: str | Path, overrides: Sequence[str], runs: Path, folder: Path | None = None) -> Entry:
    """Put a recipe behind what waits, and see that it is worked on. Raises ConfigError as `load_recipe`."""
    from posttrain.lab.recipe import load_recipe

    name = load_recipe(recipe, overrides).name
    file, place = str(Path(recipe).expanduser().absolute()), str((folder or Path()).absolute())
    entry = Entry(secrets.token_hex(4), name, file, tuple(overrides), place, time.time())
    with _editing(runs):
        _arrange(runs, [*_listed(runs), (None, entry)])
    keep_going(runs)
    return entry


def enqueue_again(run: RunDir) -> Entry:
    """Put a run behind what waits, to be gone on with from its own recipe. Raises as `enqueue`."""
    return enqueue(*own_recipe(run))


def move(runs: Path, key: str, place: int) -> None:
    """Put a waiting entry at a place among those that wait (0 = next). Raises RunError where it does not wait."""
    with _editing(runs):
        listed = _listed(runs)
        own = _waiting(listed, key, runs)
        waiting = [one for one in listed if one[1].status == "waiting" and one != own]
        waiting.insert(max(0, place), own)
        _arrange(runs, [*(one for one in listed if one[1].status != "waiting"), *waiting])


def remove(runs: Path, key: str) -> None:
    """Take an entry that waits or has failed off the queue. Raises RunError where it is neither."""
    with _editing(runs):
        listed = _listed(runs)
        if not any(entry.key == key and entry.status == "failed" for _, entry in listed):
            _waiting(listed, key, runs)
        _drop(runs, key)


def _drop(runs: Path, key: str) -> None:
    for path in (runs / QUEUE).glob(f"[0-9]*-{key}.json"):
        path.unlink(missing_ok=True)


def _waiting(listed: Sequence[tuple[Path, Entry]], key: str, runs: Path) -> tuple[Path, Entry]:
    found = next((one for one in listed if one[1].key == key), None)
    if found is None:
        raise RunError("this entry is not in the queue any more", where=str(runs / QUEUE))
    if found[1].status != "waiting":
        fix = f"stop its run: posttrain stop {runs / found[1].name}" if found[1].status == "running" else "remove it"
        raise RunError(f"the run {found[1].name} does not wait: it is {found[1].status}", where=str(runs), fix=fix)
    return found


@contextlib.contextmanager
def _editing(runs: Path) -> Iterator[None]:
    """Be the only one who changes the queue."""
    folder = runs / QUEUE
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(lock_of(folder / _EDIT, _PATIENCE))
        except OSError as error:
            raise write_error(error, folder) from error
        if lock is None:
            raise RunError("another process is changing the queue", where=str(folder), fix="try again")
        yield


def _arrange(runs: Path, listed: Sequence[tuple[Path | None, Entry]]) -> None:
    """Give the entries the names of their order. Killed in between, each is there once or twice and none is missing."""
    names = [runs / QUEUE / f"{place:06d}-{entry.key}.json" for place, (_, entry) in enumerate(listed)]
    for name, (path, entry) in zip(names, listed, strict=True):
        if name != path:
            write_json(name, asdict(entry))
    for path, _ in listed:
        if path is not None and path not in names:
            path.unlink(missing_ok=True)


def _change(runs: Path, key: str, changed: Entry | None) -> None:
    """Write an entry anew, or take it off."""
    with _editing(runs):
        if changed is None:
            _drop(runs, key)
        else:
            write_json(next(path for path, entry in _listed(runs) if entry.key == key), asdict(changed))


# ---- the process that works through it -----------------------------------------------------------------------------


def keep_going(runs: Path) -> None:
    """See that a process works through the queue where something waits. To be called by whoever looks at it."""
    folder = (runs / QUEUE).absolute()
    if _next(runs) is None or holder_of(folder / LOCK_FILE) is not None:
        return
    with _editing(runs), open_log(folder / "queue.log") as log:
        if holder_of(folder / LOCK_FILE) is None:
            child = detached(__name__, (str(runs.absolute()),), log)
            until_held(child, lambda: holder_of(folder / LOCK_FILE))


def work(runs: Path) -> None:
    """Run what is queued, one after another, until nothing waits; nothing where another process does."""
    while _next(runs) is not None:
        with lock_of(runs / QUEUE / LOCK_FILE) as lock:
            if lock is None:
                return
            sign(lock)
            while (entry := _next(runs)) is not None:
                _run(runs, entry)
        # what was queued after the last look, by one who saw the lock held, is seen by the next


def _next(runs: Path) -> Entry | None:
    """The entry that was at hand when the process before was killed, or else the first that waits."""
    found = [entry for entry in entries(runs) if entry.status != "failed"]
    return min(found, key=lambda entry: entry.status != "running", default=None)


def _run(runs: Path, entry: Entry) -> None:
    """Run one entry to its end. What failed stays, with its error; everything else leaves the queue."""
    run = RunDir(runs / entry.name)
    _until_over(run)  # started by the process before this one, or by somebody else
    ended = read_exit(run)
    if entry.status == "waiting" or ended is None or ended.pid != entry.pid:
        entry = replace(entry, status="running")
        _change(runs, entry.key, entry)
        try:
            started = start(entry.recipe, entry.overrides, runs, Path(entry.folder))
        except PosttrainError as error:
            _change(runs, entry.key, replace(entry, status="failed", error=Told.of(error)))
            return
        run, entry = started.run, replace(entry, name=started.run.path.name, pid=started.pid)
        _change(runs, entry.key, entry)
        _until_over(run)
    end = state(run)
    if end.name in ("finished", "stopped"):
        _change(runs, entry.key, None)
        return
    died = Told(f"its process {end.name} without a word", str(run.path), "see run.log; start it again: it goes on")
    why = died if end.exit is None else end.exit.error
    _change(runs, entry.key, replace(entry, status="failed", error=why))


def _until_over(run: RunDir) -> None:
    while state(run).is_running:
        time.sleep(_LOOK)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
