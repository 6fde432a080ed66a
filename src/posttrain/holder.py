"""Who holds a lock: which process of which machine, told apart from a later one with the same number, whatever the clock says.

A lock is the kernel's (flock): it ends with the process, however that ends, also where a dead process stays in the table because
nobody asks for it. What the file holds only says who took it, and stays when the lock is given back: who took it last.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

PATIENCE = 0.5
"""Seconds that a lock is tried for, because who only looks at it holds it for a moment."""
LOOK_INTERVAL = 1.0
"""Seconds between two looks of a process at whether the one that started it is still there."""
_LOOKS = 5
_PAUSE = 0.01
"""Looks, and seconds between them, at a lock whose holder has not yet written who it is."""
_TICK_TOLERANCE = 100
"""Hundredths of a second between two answers on when a process began, where the kernel does not count them (not Linux)."""
_STATUS = Path("/proc/self/stat")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process as a lock file names it."""

    pid: int
    """0: whoever holds the lock did not say who it is (an older version)."""
    boot_id: str
    """Which start of the machine; empty where the system has none to tell."""
    started_ticks: int
    """When the process began, counted from the start of the machine. With ``boot_id`` and ``pid`` it names one process for ever."""
    group: int
    """Its process group; the pid where it leads one."""
    host: str
    argv: tuple[str, ...]
    since: float
    """When it took the lock (Unix seconds), to be read by people only: clocks are set back."""
    folder: str
    """Its working folder."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is a process of another machine, of which nothing can be told here. A container on this machine is not."""
        return self.pid != 0 and self.host != socket.gethostname() and not (self.boot_id and self.boot_id == boot_id())

    def is_alive(self) -> bool:
        """Whether it runs on this machine now: neither gone, nor dead and not asked for, nor another one with its number."""
        if self.pid == 0 or self.is_elsewhere or self.boot_id != boot_id():
            return False
        found = started_ticks(self.pid)
        tolerance = 0 if _STATUS.exists() else _TICK_TOLERANCE
        return found is not None and abs(found - self.started_ticks) <= tolerance

    def __str__(self) -> str:
        if self.pid == 0:
            return "unknown process"
        place = f" on {self.host}" if self.is_elsewhere else ""
        return f"pid {self.pid}{place} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"


UNKNOWN = Holder(0, "", 0, 0, "", (), 0.0, "")


def this_process() -> Holder:
    """Who this process is."""
    pid = os.getpid()
    folder = ""
    with contextlib.suppress(OSError):  # somebody removed it
        folder = os.getcwd()
    parts = (boot_id(), started_ticks(pid) or 0, os.getpgrp(), socket.gethostname(), tuple(sys.orig_argv))
    return Holder(pid, *parts, time.time(), folder)


@functools.cache
def boot_id() -> str:
    """What this start of the machine is called; empty where the system does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def started_ticks(pid: int) -> int | None:
    """When a process began (field 22 of its stat, or hundredths of a second); None where it is gone, or dead and not asked for."""
    if _STATUS.exists():
        try:
            text = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = text[text.rindex(b")") + 2 :].split()  # the name before may hold anything
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() * 100)
    except psutil.NoSuchProcess:
        return None


def end_with(parent: int) -> None:
    """Let this process end within `LOOK_INTERVAL` of its parent, which may be killed without a word to those it started."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_INTERVAL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def hearing(handler: Callable[[int, object], object]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM go to this handler, (number, frame). Outside the main thread they stay with whoever owns them."""
    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


# ---- locks ---------------------------------------------------------------------------------------------------------

_taken: set[int] = set()
"""Descriptors of the locks this process holds."""


def _forget_all() -> None:
    """Close the locks in a process that was forked: it would hold them after the one that took them has ended."""
    for file in _taken:
        os.close(file)
    _taken.clear()


os.register_at_fork(after_in_child=_forget_all)


@contextlib.contextmanager
def lock_of(path: Path, patience: float = PATIENCE) -> Iterator[int | None]:
    """Hold the lock of a file, which is made where it is missing; yields its descriptor, or None where another holds it.

    It is tried for ``patience`` seconds. Whoever gets it says who it is with `sign`. No process that is started or forked from
    here inherits it. Raises OSError where the file can't be opened.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _taken.add(file)
    try:
        yield file if _lock(file, patience) else None
    finally:
        if file in _taken:  # not in a process that was forked meanwhile
            _taken.discard(file)
            os.close(file)


def _lock(file: int, patience: float) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(2 * _PAUSE)


def sign(file: int) -> None:
    """Write into a lock that is held who holds it."""
    text = json.dumps(asdict(this_process()), ensure_ascii=False).encode("utf-8", "surrogateescape")
    os.pwrite(file, text, 0)  # at once, so that whoever reads now finds the one before or this one
    os.ftruncate(file, len(text))


def holder_of(path: Path) -> Holder | None:
    """Who holds the lock of a file now; None where it is free, or there is no such file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        for _ in range(_LOOKS):
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                found = _holder(os.pread(file, 1 << 20, 0))
            if found.is_alive() or found.is_elsewhere:
                break
            time.sleep(_PAUSE)  # it may be just about to write who it is
        return found
    finally:
        os.close(file)


def last_holder(path: Path) -> Holder | None:
    """Who took the lock of a file last, whether it is held or not; None where nobody said so."""
    try:
        found = _holder(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if found == UNKNOWN else found


def _holder(content: bytes) -> Holder:
    """The holder that a lock file names; what stands behind (of a longer name before) is left out."""
    try:
        found, _ = json.JSONDecoder().raw_decode(content.decode("utf-8", "surrogateescape"))
        return Holder(**found | {"argv": tuple(found["argv"])})
    except (ValueError, TypeError, KeyError):
        return UNKNOWN
