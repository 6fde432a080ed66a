"""One budget for processes that work at the same time, in one small SQLite file.

    total = what was spent + the most that calls under way can still cost, of all processes

A call is sent only where the total with it stays below the caps; that is decided and written in one transaction, so processes
together can't go over. A process that is killed leaves its calls under way in the total: they may have been billed, and nobody on this
side can know. SQLite rolls back what it had half written, and its locks end with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from posttrain.generate.cache import explained, opened
from posttrain.generate.cost import Caps, Prices, Spending, limits_of, read_calls, spent, within
from posttrain.generate.engine import Usage
from posttrain.holder import Holder, this_process

_NAME = "shared budget"
_APPLICATION = 0x70747362
"""``ptsb`` in SQLite's header: this file is a shared budget."""
_VERSION = 1
_AMOUNTS = "calls INTEGER NOT NULL, tokens INTEGER NOT NULL, money INTEGER NOT NULL"
_TABLES = (
    f"CREATE TABLE total ({_AMOUNTS})",
    "INSERT INTO total VALUES (0, 0, 0)",
    f"CREATE TABLE under_way (pid INTEGER, boot_id TEXT, started_ticks INTEGER, host TEXT, {_AMOUNTS},"
    " PRIMARY KEY (pid, boot_id, started_ticks, host))",
    "CREATE TABLE ledgers (path TEXT PRIMARY KEY)",
)
_ADDED = "calls = calls + ?, tokens = tokens + ?, money = money + ?"
_MINE = "pid = ? AND boot_id = ? AND started_ticks = ? AND host = ?"
_LOOK_INTERVAL = 0.1
"""Seconds between two looks at whether calls under way have left room."""


class SharedBudget:
    """A `Budget` of all processes of this machine that open the same file. Close it or use it in a ``with`` block.

    Every process holds the sum of all to its own caps. What a ``ledger`` holds when it is first named to the file is counted once.

    Raises:
        RunError: the file is damaged, is something else, or can't be written. Names the file.

    """

    def __init__(self, path: Path, caps: Caps, prices: Prices | None = None, ledger: Path | None = None) -> None:
        self.path, self.prices = path, prices
        self._limits = limits_of(caps, prices)
        me = this_process()
        self._me = (me.pid, me.boot_id, me.started_ticks, me.host)
        self._connection = opened(path, _NAME, _APPLICATION, _VERSION, _TABLES)
        with self._transaction() as ask:
            ask("INSERT OR IGNORE INTO under_way VALUES (?, ?, ?, ?, 0, 0, 0)", self._me)
            join = "INSERT OR IGNORE INTO ledgers VALUES (?)"
            if ledger is not None and ask(join, (str(ledger.resolve()),)).rowcount:
                ask(f"UPDATE total SET {_ADDED}", spent(read_calls(ledger)))

    @property
    def spent(self) -> Spending:
        """What all processes have spent."""
        with self._transaction():
            return self._total().minus(self._under_way())

    async def reserve(self, most: Usage) -> Spending | None:
        """Set aside the most a call can cost; waits for calls of any process where they may leave room. None = no room."""
        amount = Spending(1, sum(most), self.prices.of(most) if self.prices else 0)
        while not self._take(amount):
            if not self._may_fit(amount):
                return None
            await asyncio.sleep(_LOOK_INTERVAL)
        return amount

    def settle(self, reservation: Spending, counted: Spending) -> None:
        """Replace a reservation by what the call is counted with."""
        with self._transaction() as ask:
            ask(f"UPDATE total SET {_ADDED}", counted.minus(reservation))
            ask(f"UPDATE under_way SET {_ADDED} WHERE {_MINE}", (*Spending().minus(reservation), *self._me))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> SharedBudget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, amount: Spending) -> bool:
        """Add a call to the total where it fits."""
        with self._transaction() as ask:
            if not within(self._total().plus(amount), self._limits):
                return False
            ask(f"UPDATE total SET {_ADDED}", amount)
            ask(f"UPDATE under_way SET {_ADDED} WHERE {_MINE}", (*amount, *self._me))
            return True

    def _may_fit(self, amount: Spending) -> bool:
        """Whether a call would fit if those under way cost nothing; those of processes that are gone have cost the most."""
        with self._transaction() as ask:
            for pid, boot_id, ticks, host in ask("SELECT pid, boot_id, started_ticks, host FROM under_way").fetchall():
                holder = Holder(pid, boot_id, ticks, pid, host, (), 0.0, "")
                if not (holder.is_alive() or holder.is_elsewhere):
                    ask(f"DELETE FROM under_way WHERE {_MINE}", (pid, boot_id, ticks, host))
            return within(self._total().minus(self._under_way()).plus(amount), self._limits)

    def _total(self) -> Spending:
        return Spending(*self._connection.execute("SELECT calls, tokens, money FROM total").fetchone())

    def _under_way(self) -> Spending:
        sums = "SELECT sum(calls), sum(tokens), sum(money) FROM under_way"
        return Spending(*(amount or 0 for amount in self._connection.execute(sums).fetchone()))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        with explained(self.path, _NAME):
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:  # commits, or rolls back where it is left by an error
                yield self._connection.execute
