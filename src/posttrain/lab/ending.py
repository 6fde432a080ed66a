"""How the process of a run ends: what it leaves to be read of its end, and how it is asked to end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from posttrain.artifacts import EXIT_FILE, STOP_FILE, RunDir, read_json, write_json
from posttrain.errors import InterruptedRunError, PosttrainError, RunError


@dataclass(frozen=True, slots=True)
class Told:
    """A PosttrainError in a file."""

    problem: str
    where: str | None = None
    fix: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Told:
        """What an error says; one that was not foreseen says its kind too."""
        if isinstance(error, PosttrainError):
            return cls(
                _written(error.problem), error.where and _written(error.where), error.fix and _written(error.fix)
            )
        return cls(_written(f"{type(error).__name__}: {error}"), fix="see the end of run.log, and please report it")

    def error(self) -> RunError:
        """It as an error again."""
        return RunError(self.problem, where=self.where, fix=self.fix)


def _written(text: str) -> str:
    """A text with what can't be written as UTF-8 (names of files may be broken) spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Exit:
    """``.exit.json``: how the last process of a run ended."""

    code: int
    """0: all is done. 2: an error that names its fix. 130: stopped. 1: an error nobody foresaw."""
    error: Told | None
    ended: float
    """Unix seconds."""
    pid: int


def read_exit(run: RunDir) -> Exit | None:
    """How the last process of a run ended; None while one works, where it was killed, and where the file is damaged."""
    try:
        found = read_json(run.path / EXIT_FILE)
        told = found["error"] and Told(**{key: value and str(value) for key, value in found["error"].items()})
        return Exit(int(found["code"]), told, float(found["ended"]), int(found["pid"]))
    except (RunError, TypeError, KeyError, ValueError, AttributeError):
        return None


@contextlib.contextmanager
def recorded_end(run: RunDir) -> Iterator[None]:
    """Inside the run's lock: SIGTERM is taken as Ctrl-C, and how the block ends is written. Raises InterruptedRunError for both."""
    code, told = 0, None
    with _terminable():
        try:
            yield
        except KeyboardInterrupt:
            error = interrupted(run)
            code, told = error.exit_code, Told.of(error)
            raise error from None
        except BaseException as raised:
            code, told = raised.exit_code if isinstance(raised, PosttrainError) else 1, Told.of(raised)
            raise
        finally:
            with contextlib.suppress(RunError):  # a full disk: it has been told, or what it hinders will be
                write_json(run.path / EXIT_FILE, asdict(Exit(code, told, time.time(), os.getpid())))
            (run.path / STOP_FILE).unlink(missing_ok=True)


def interrupted(run: RunDir) -> InterruptedRunError:
    """What Ctrl-C says where no stage has more to say."""
    return InterruptedRunError(
        "interrupted", where=str(run.path), fix="run the same command again: what is finished is kept"
    )


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, once: what follows is the end, and must not be disturbed."""

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
