"""A cache of answers in one SQLite file: what was answered once is never asked or paid again.

Keyed by the sha256 of the canonical request (fingerprint with model and template, messages, sampling, number of the draw).
Successes only: a failure is tried again by the next job. Answers are written as they arrive, so a job that is stopped,
by Ctrl-C or kill -9, goes on where it was. Several processes may share a file (write-ahead log); two that ask the same thing at
the same moment both pay, and the first answer stored is the one that stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter

from posttrain.errors import RunError
from posttrain.generate.engine import (
    Completion,
    Engine,
    Fingerprint,
    Outcomes,
    Request,
    canonical_request,
    request_key,
)
from posttrain.table import grouped

_ANSWER = TypeAdapter(Completion)
_NAME = "request cache"
_APPLICATION = 0x70747263
"""``ptrc`` in SQLite's header: this file is a request cache."""
_VERSION = 1
_TABLES = (
    "CREATE TABLE answers (key TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL,"
    " checksum TEXT NOT NULL, stored REAL NOT NULL) WITHOUT ROWID",
)
_PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""


class RequestCache:
    """Answers by key. Open it once per process; close it or use it in a ``with`` block.

    Raises:
        RunError: the file is damaged, is something else, is of another version, or can't be written. Names the file.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = opened(path, _NAME, _APPLICATION, _VERSION, _TABLES)

    def get(self, key: str) -> Completion | None:
        """The answer stored under a key, marked as cached; None = there is none."""
        with explained(self.path, _NAME):
            row = self._connection.execute("SELECT answer, checksum FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if _checksum(row[0]) != row[1]:
            raise _damaged(self.path, _NAME, f"the answer under {key[:16]} is not what was stored")
        return replace(_ANSWER.validate_python(json.loads(row[0])), cached=True)

    def put(self, key: str, request: bytes, answer: Completion) -> None:
        """Store an answer with the canonical request it belongs to. An answer that is there already stays."""
        text = json.dumps(asdict(replace(answer, cached=False)), separators=(",", ":"))
        with explained(self.path, _NAME):
            self._connection.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                (key, request.decode("ascii"), text, _checksum(text), time.time()),
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> RequestCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def opened(path: Path, name: str, application: int, version: int, tables: Sequence[str]) -> sqlite3.Connection:
    """An SQLite file of ours that several processes may share, made with its tables where it is missing.

    Raises RunError, which names the file, where it is damaged, is something else, is of another version, or can't be written.
    """
    with explained(path, name):
        path.parent.mkdir(parents=True, exist_ok=True)
        # One writer at a time uses it, but a notebook runs its jobs in another thread than it opens the file in.
        connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path, name, application, version, tables)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(
    connection: sqlite3.Connection, path: Path, name: str, application: int, version: int, tables: Sequence[str]
) -> None:
    ask = connection.execute
    _write_ahead(connection)
    ask("PRAGMA synchronous = NORMAL")  # in WAL mode a killed process loses nothing, a lost power the last writes
    ask("BEGIN IMMEDIATE")
    found, of = (ask(f"PRAGMA {one}").fetchone()[0] for one in ("application_id", "user_version"))
    empty = ask("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if empty:
        for statement in (*tables, f"PRAGMA application_id = {application}", f"PRAGMA user_version = {version}"):
            ask(statement)
    ask("COMMIT")
    if not empty and found != application:
        raise RunError(f"an SQLite file, but not a {name}", where=str(path), fix="choose another file name")
    if not empty and of != version:
        raise RunError(
            f"a {name} of version {of}; this posttrain reads version {version}",
            where=str(path),
            fix="choose another file name, or use the posttrain that wrote it",
        )


@contextlib.contextmanager
def explained(path: Path, name: str) -> Iterator[None]:
    """What SQLite and the system raise, as one RunError that names the file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"can't open the {name}: {error.strerror}", where=str(path)) from error
    except sqlite3.OperationalError as error:
        raise RunError(
            f"can't use the {name}: {error}",
            where=str(path),
            fix="look at free space, permissions, and other processes that hold the file, and run again: it resumes",
        ) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, name, str(error)) from error


def _damaged(path: Path, name: str, detail: str) -> RunError:
    return RunError(
        f"the {name} is damaged: {detail}",
        where=str(path),
        fix="move the file (with its -wal and -shm beside it) away; what it holds is lost: answers are paid for again, a budget begins at nothing",
    )


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log. SQLite does not wait for others here, so we do."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


class CachedEngine:
    """Any engine behind a request cache. Equal requests of one batch are asked once."""

    def __init__(self, engine: Engine, cache: RequestCache) -> None:
        self.engine, self.cache = engine, cache

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the engine that answers."""
        return self.engine.fingerprint

    def generate(self, requests: Sequence[Request]) -> Outcomes:
        """Answers from the cache first, then the others as the engine gives them, each stored the moment it is there."""
        fingerprint = self.fingerprint
        # key -> where it is asked
        places = grouped((request_key(fingerprint, request), index) for index, request in enumerate(requests))
        missing: list[str] = []
        for key, indices in places.items():
            answer = self.cache.get(key)
            if answer is None:
                missing.append(key)
                continue
            for index in indices:
                yield index, answer
        if not missing:
            return
        wanted = [requests[places[key][0]] for key in missing]
        with contextlib.closing(self.engine.generate(wanted)) as outcomes:
            for index, outcome in outcomes:
                first, *others = places[missing[index]]
                same = outcome
                if isinstance(outcome, Completion):
                    self.cache.put(missing[index], canonical_request(fingerprint, wanted[index]), outcome)
                    same = replace(outcome, cached=True)
                yield first, outcome
                yield from ((other, same) for other in others)
