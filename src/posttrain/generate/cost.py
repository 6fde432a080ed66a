"""What answers cost: prices, a cap that can't be gone over, and a ledger with one line for every call.

Money is counted in whole trillionths of the user's currency, so sums are exact in any order.

A call whose end was not seen (timeout, dropped connection, cancelled) may have been answered and billed; nobody on this side
can know. Its whole reservation stays counted against the cap, and its line in the ledger says so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from posttrain.artifacts import write_error
from posttrain.errors import ConfigError, RunError
from posttrain.generate.engine import FailureReason, Usage

TRILLION = 10**12

# ---- prices and caps -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What the provider takes, per million tokens. Discounts (cached prompts, batches) are not known here."""

    prompt_per_million: float
    completion_per_million: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} {value}: must be finite and at least 0", where="prices", fix="correct it")

    def of(self, usage: Usage) -> int:
        """Price in trillionths of the currency."""
        prompt, completion = (
            round(price * 1_000_000) for price in (self.prompt_per_million, self.completion_per_million)
        )
        return usage.prompt_tokens * prompt + usage.completion_tokens * completion


@dataclass(frozen=True, kw_only=True)
class Caps:
    """What must not be gone over. None = no cap."""

    money: float | None = None
    """In the currency of the prices."""
    tokens: int | None = None
    """Read and written together."""
    calls: int | None = None
    """Requests sent over the wire, retries included."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} {value}: must be finite and at least 0", where="budget", fix="correct it")


class Spending(NamedTuple):
    """Calls, tokens, and money in trillionths of the currency."""

    calls: int = 0
    tokens: int = 0
    money: int = 0

    def plus(self, other: Spending) -> Spending:
        """Both together."""
        return Spending(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Spending) -> Spending:
        """This without the other."""
        return Spending(*(a - b for a, b in zip(self, other, strict=True)))


NOTHING = Spending()


class Budget:
    """Counts what is spent and what could still be spent by calls under way; a call is sent only if both stay below the caps.

    Every call reserves the most it can cost before it is sent, so calls side by side can't go over together. The caps hold
    as long as the server keeps to ``max_tokens`` and the reservation covers the prompt; a server that bills more than it was
    asked for is counted in full, and nothing more is sent once the cap is reached.
    """

    def __init__(self, caps: Caps = Caps(), prices: Prices | None = None, spent: Spending = NOTHING) -> None:
        if caps.money is not None and prices is None:
            raise ConfigError(
                "a cap on money needs prices",
                where="budget",
                fix="give prices per million tokens, or cap tokens or calls",
            )
        self.caps, self.prices, self.spent = caps, prices, spent
        self.reserved = NOTHING
        self._settled: list[asyncio.Future[None]] = []

    def _most(self) -> Spending:
        caps = self.caps
        money = None if caps.money is None else round(caps.money * TRILLION)
        return Spending(*(2**100 if cap is None else cap for cap in (caps.calls, caps.tokens, money)))

    def _fits(self, amount: Spending, beside: Spending) -> bool:
        total = self.spent.plus(beside).plus(amount)
        return all(one <= cap for one, cap in zip(total, self._most(), strict=True))

    async def reserve(self, most: Usage) -> Spending | None:
        """Set aside the most a call can cost; waits for calls under way to settle where that may make room. None = no room."""
        amount = Spending(1, sum(most), self.prices.of(most) if self.prices else 0)
        while not self._fits(amount, self.reserved):
            if not self._fits(amount, NOTHING):
                return None
            settled = asyncio.get_running_loop().create_future()
            self._settled.append(settled)
            await settled
        self.reserved = self.reserved.plus(amount)
        return amount

    def settle(self, reservation: Spending, counted: Spending) -> None:
        """Replace a reservation by what the call is counted with."""
        self.reserved = self.reserved.minus(reservation)
        self.spent = self.spent.plus(counted)
        waiting, self._settled = self._settled, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


# ---- the ledger ----------------------------------------------------------------------------------------------------

CallOutcome = Literal["answer", "cancelled"] | FailureReason


@dataclass(frozen=True, slots=True)
class Call:
    """One line of the ledger: one request that was sent, however it ended."""

    key: str
    """sha256 of the canonical request."""
    attempt: int
    """1 for the first time it was sent by this job."""
    outcome: CallOutcome
    status: int | None
    """HTTP status, None where no answer's head was seen."""
    prompt_tokens: int | None
    completion_tokens: int | None
    """As the server counted them; None = it did not say."""
    price: float | None
    """Of those tokens in the user's currency; None = tokens or prices not known."""
    counted_tokens: int
    counted_price: float
    """What the cap counts: the price where it is known, the most it can be where the end was not seen, 0 where an error came back."""
    seconds: float
    time: str
    """When it ended, UTC."""


class Totals(NamedTuple):
    """Sums over a ledger. ``price`` is what is known, ``counted_price`` also holds what may have been billed unseen."""

    calls: int
    answers: int
    outcomes: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int
    price: float
    counted_tokens: int
    counted_price: float


class Ledger:
    """A JSONL file that calls are appended to, by one process or several. Opened and closed for every line.

    A last line that a crash left unfinished is removed before the next one is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, call: Call) -> None:
        """Write one line.

        Raises:
            RunError: the disk is full or the file can't be written.

        """
        line = (json.dumps(dataclasses.asdict(call)) + "\n").encode("ascii")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                _remove_unfinished_line(descriptor)
                written = os.write(descriptor, line)
                if written < len(line):  # a disk that is nearly full takes a part; the second call says why
                    os.write(descriptor, line[written:])
            finally:
                os.close(descriptor)
        except OSError as error:
            raise write_error(error, self.path) from error

    def calls(self) -> list[Call]:
        """All lines; none where there is no file yet.

        Raises:
            RunError: a line that is not a call; names the file and the line.

        """
        if not self.path.exists():
            return []
        try:
            *lines, _unfinished = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise RunError(f"can't read the ledger: {error.strerror}", where=str(self.path)) from error
        return [self._call(number, line) for number, line in enumerate(lines, 1)]

    def _call(self, number: int, line: bytes) -> Call:
        try:
            return Call(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"not a line of the cost ledger: {error}",
                where=f"{self.path}:{number}",
                fix="remove the line, or move the file away and start a new ledger",
            ) from error

    def totals(self) -> Totals:
        """Sums over all lines."""
        return totals(self.calls())

    def spent(self) -> Spending:
        """What a budget that goes on from this ledger starts with."""
        found = self.totals()
        return Spending(found.calls, found.counted_tokens, round(found.counted_price * TRILLION))


def _remove_unfinished_line(descriptor: int) -> None:
    end = os.fstat(descriptor).st_size
    if end == 0 or os.pread(descriptor, 1, end - 1) == b"\n":
        return
    start = max(0, end - 65_536)  # far longer than any line
    os.ftruncate(descriptor, start + os.pread(descriptor, end - start, start).rfind(b"\n") + 1)


def totals(calls: Iterable[Call]) -> Totals:
    """Sums over calls; money is summed in trillionths."""
    found = list(calls)
    return Totals(
        calls=len(found),
        answers=sum(c.outcome == "answer" for c in found),
        outcomes=dict(sorted(Counter(c.outcome for c in found).items())),
        prompt_tokens=sum(c.prompt_tokens or 0 for c in found),
        completion_tokens=sum(c.completion_tokens or 0 for c in found),
        price=_sum(c.price for c in found),
        counted_tokens=sum(c.counted_tokens for c in found),
        counted_price=_sum(c.counted_price for c in found),
    )


def _sum(amounts: Iterable[Any]) -> float:
    return sum(round((amount or 0.0) * TRILLION) for amount in amounts) / TRILLION
