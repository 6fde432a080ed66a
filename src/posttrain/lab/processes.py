"""Runs as processes of their own: what became of one, and how it is started and stopped. They outlive whoever started them.

Nothing is remembered here: a run is found by its folder, and its lock, which the kernel takes from a dead process, says whether it
goes on (`posttrain.holder`). A process id alone decides nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from posttrain.artifacts import LOCK_FILE, STOP_FILE, RunDir, digest, write_error, write_json, write_text
from posttrain.errors import RunError
from posttrain.holder import Holder, last_holder
from posttrain.lab.ending import Exit, read_exit

RUN_LOG = "run.log"
"""In the run folder: what its processes have printed."""
RECIPES = ".recipes"
"""In the folder of runs: recipes that were started from text."""
SILENCE = 600.0
"""Seconds in which a running process writes nothing, after which it may be stalled."""
GRACE = 30.0
"""Seconds that a process asked to stop now is given before it is killed."""
LETTING_GO = 5.0
"""Seconds between what a process writes of its end and the end itself, on a busy machine."""
_LOOK = 0.05

Running = Literal["running", "stopping", "stalled"]
Ended = Literal["finished", "failed", "stopped", "died"]
StateName = Literal[Running, Ended, "lingering", "remote", "unstarted"]
When = Literal["after step", "now"]


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What became of the process of a run.

    ``running``; ``stopping``, because it was asked to; ``stalled``, it runs and has written nothing for long. ``finished``; ``failed``, with its
    error; ``stopped``, on demand; ``died`` without a word (killed, out of memory, power): the last two go on with `resume`.
    ``lingering``: it died, and a process that it started still holds the run. ``remote``: a process of another machine, of which
    nothing is known here. ``unstarted``: by no version that leaves a record.
    """

    name: StateName
    holder: Holder | None = None
    """Who works on it, or did last."""
    exit: Exit | None = None
    silence: float | None = field(default=None, compare=False, repr=False)
    """Of a running process: seconds since it wrote something."""

    @property
    def is_running(self) -> bool:
        """Whether a process of this machine works on it."""
        return self.name in ("running", "stopping", "stalled")


def state(run: RunDir, silence: float = SILENCE) -> ProcessState:
    """What became of the process of a run; ``silence``: seconds after which one that runs is said to be stalled."""
    holder, ended = _seen(run)
    last = holder or last_holder(run.path / LOCK_FILE)
    if ended is not None:
        names: dict[int, Ended] = {0: "finished", 130: "stopped"}
        return ProcessState(names.get(ended.code, "failed"), last, ended)
    if last is None:
        return ProcessState("unstarted")
    if last.is_elsewhere:
        return ProcessState("remote", last)
    if holder is None:
        return ProcessState("stopped" if _asked(run) == "now" else "died", last)
    if holder.pid and not holder.is_alive():
        return ProcessState("lingering", holder)
    silent = _silence(run)
    if run.stop_asked():
        return ProcessState("stopping", holder, silence=silent)
    return ProcessState("stalled" if silent > silence else "running", holder, silence=silent)


def _seen(run: RunDir) -> tuple[Holder | None, Exit | None]:
    """Who holds the run and how the last one ended, of one moment: a start or an end in between is looked at again."""
    holder = run.holder()
    while True:
        ended, again = read_exit(run), run.holder()
        if again == holder:
            return holder, ended
        holder = again


def _silence(run: RunDir) -> float:
    """Seconds since something in the run folder or in a stage's was written; 0 where the clock was set back."""
    newest = 0.0
    for folder in (run.path, *(path for path in run.path.iterdir() if path.is_dir() and not path.name.startswith("."))):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a temporary file that has its name by now
                newest = max(newest, path.stat().st_mtime)
    return max(0.0, time.time() - newest)


# ---- start ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """A run that was started: its folder and its process, which may have finished already."""

    run: RunDir
    pid: int


def start(recipe: str | Path, overrides: Sequence[str], runs: Path, folder: Path | None = None) -> Started:
    """Run a recipe in a process of its own, whose words go to ``run.log``; returns when it holds its run.

    ``folder``: the working folder, which relative paths are taken from. Raises ConfigError as `load_recipe`, and RunError where
    another process works on this run or where it ended before it held it.
    """
    from posttrain.lab.recipe import load_recipe

    run = RunDir((runs / load_recipe(recipe, overrides).name).absolute())
    until = time.monotonic() + LETTING_GO
    while (holder := run.holder()) is not None:
        if read_exit(run) is None or time.monotonic() > until:
            raise run.taken_by(holder)
        time.sleep(_LOOK)
    if folder is not None and not folder.is_dir():
        raise RunError("there is no such working folder any more", where=str(folder), fix="start it from another one")
    words = ("run", "--runs", str(runs.absolute()), "--", str(Path(recipe).expanduser().absolute()), *overrides)
    with open_log(run.path / RUN_LOG) as log:
        begin = log.tell()
        child = detached("posttrain", words, log, folder)
    until_held(child, run.holder)
    while child.poll() is None:
        if (run.path / "recipe.yaml").exists():  # what makes it a run for everybody else
            return Started(run, child.pid)
        time.sleep(_LOOK)
    ended, holder = read_exit(run), run.holder()
    if ended is not None and ended.pid == child.pid:  # it was quick
        if ended.error is not None:
            raise ended.error.error()
        return Started(run, child.pid)
    if holder is not None:
        raise run.taken_by(holder)
    with (run.path / RUN_LOG).open("rb") as file:
        file.seek(begin)
        said = file.read().decode("utf-8", "replace").strip() or "it said nothing: is the disk full?"
    raise RunError(f"the run ended before it began:\n{said[-2000:]}", where=str(run.path))


def resume(run: RunDir) -> Started:
    """Go on with a run from its own recipe, where its last process worked. Raises as `start`."""
    return start(*own_recipe(run))


def own_recipe(run: RunDir) -> tuple[Path, list[str], Path, Path | None]:
    """What `start` needs to go on with a run: its recipe, what has to be changed in it, the folder of runs, and the working folder."""
    last = last_holder(run.path / LOCK_FILE)
    folder = Path(last.folder) if last is not None and os.path.isdir(last.folder) else None
    path = run.path.absolute()
    return path / "recipe.yaml", [f"name={json.dumps(path.name, ensure_ascii=False)}"], path.parent, folder


def store_text(text: str, runs: Path) -> Path:
    """Keep the recipe that a text holds below the folder of runs, and return its file. Raises ConfigError where it is wrong.

    The file is named by its content too, so what waits to be run is never another recipe than the one that was given.
    """
    from posttrain.config import parse_yaml
    from posttrain.lab.recipe import recipe_of

    recipe = recipe_of(parse_yaml(text, "recipe"))
    path = runs / RECIPES / f"{recipe.name}.{digest(text)[:8]}.yaml"
    write_text(path, text)
    return path


def open_log(path: Path) -> IO[bytes]:
    """A file that what processes print is added to, made where it is missing. Raises RunError where it can not be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("ab")
    except OSError as error:
        raise write_error(error, path) from error
    log.seek(0, os.SEEK_END)
    return log


def detached(module: str, words: Sequence[str], log: IO[bytes], folder: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a module of this package as a process in a session of its own, without terminal or pipe."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *words],  # -P: no module is taken from the working folder
        cwd=folder,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        close_fds=True,
    )
    threading.Thread(target=child.wait, daemon=True).start()  # so that it does not stay in the table when it has ended
    return child


def until_held(child: subprocess.Popen[bytes], holder: Callable[[], Holder | None]) -> None:
    """Return when a process that was started holds its lock, or has ended."""
    while child.poll() is None:
        found = holder()
        if found is not None and found.pid == child.pid:
            return
        time.sleep(_LOOK)


# ---- stop ----------------------------------------------------------------------------------------------------------


def stop(run: RunDir, when: When, grace: float = GRACE) -> None:
    """Ask a run to stop, and return at once; to ask again is harmless.

    ``after step``: a training ends after the step it is at, with a checkpoint; other stages are finished. ``now``: as Ctrl-C does, and what
    has not ended after ``grace`` seconds is killed, by a process of its own. Raises RunError where it can't be stopped from here.
    """
    found = state(run)
    if found.name == "remote" and found.holder is not None:
        raise RunError(f"this run is on another machine ({found.holder})", where=str(run.path), fix="stop it there")
    if found.name == "lingering":
        _end_lingering(run)
        return
    if not found.is_running or found.holder is None:
        raise RunError("no process works on this run", where=str(run.path), fix=f"it is {found.name}")
    if found.holder.pid == 0:
        raise RunError("the process that works on this run did not say which it is", where=str(run.path), fix="end it")
    if _asked(run) in (when, "now"):
        return
    write_json(run.path / STOP_FILE, {"when": when})
    if when == "now":
        _signal(found.holder, signal.SIGTERM)
        with open_log(run.path / RUN_LOG) as log:
            words = (str(run.path.absolute()), str(found.holder.pid), str(found.holder.started_ticks), str(grace))
            detached(__name__, words, log)


def _asked(run: RunDir) -> str | None:
    """When the run was asked to stop, or None."""
    try:
        found = json.loads((run.path / STOP_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return str(found.get("when")) if isinstance(found, dict) else None


def _signal(holder: Holder, number: signal.Signals) -> None:
    """Signal the process that holds a run, with its group where it leads one; never one that was given its number since."""
    with contextlib.suppress(ProcessLookupError), _pinned(holder.pid) as process:
        if not holder.is_alive():
            return
        if holder.group == holder.pid:
            os.killpg(holder.group, number)
        elif process is not None:
            signal.pidfd_send_signal(process, number)
        else:
            os.kill(holder.pid, number)


@contextlib.contextmanager
def _pinned(pid: int) -> Iterator[int | None]:
    """A descriptor that means this process whatever becomes of its number; None where the system has none. Raises ProcessLookupError."""
    if not hasattr(os, "pidfd_open"):
        yield None
        return
    file = os.pidfd_open(pid)
    try:
        yield file
    finally:
        os.close(file)


def _end_lingering(run: RunDir) -> None:
    """Kill what a dead process has left behind: those of its group that have the run's lock open."""
    last = last_holder(run.path / LOCK_FILE)
    assert last is not None, "who lingers has a name"
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        with contextlib.suppress(OSError), _pinned(pid) as process:
            of_run = os.getpgid(pid) == last.group and any(
                file.exists() and file.samefile(run.path / LOCK_FILE) for file in (path / "fd").iterdir()
            )
            if process is not None and of_run:
                signal.pidfd_send_signal(process, signal.SIGKILL)


def _kill_after(run: RunDir, pid: int, started_ticks: int, grace: float) -> None:
    """Kill the process that holds a run unless it ends by itself in time."""
    until = time.monotonic() + grace
    while True:
        holder = run.holder()
        if holder is None or (holder.pid, holder.started_ticks) != (pid, started_ticks):
            return
        if time.monotonic() >= until:
            _signal(holder, signal.SIGKILL)
            return
        time.sleep(4 * _LOOK)


if __name__ == "__main__":
    _kill_after(RunDir(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
