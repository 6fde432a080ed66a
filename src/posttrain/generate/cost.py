"""What answers cost: prices, a cap that can't be gone over, and a ledger with one line for every call.

Money is counted in whole trillionths of the user's currency, so sums are exact in any order.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

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
        _check_amounts(self, "prices")

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
        _check_amounts(self, "budget")


def _check_amounts(amounts: Prices | Caps, where: str) -> None:
    for name, value in vars(amounts).items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} {value}: must be finite and at least 0", where=where, fix="correct it")


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


Limits = tuple[int | None, int | None, int | None]
"""Caps in the units of a `Spending`."""


def limits_of(caps: Caps, prices: Prices | None) -> Limits:
    """Raises ConfigError where money is capped and there are no prices."""
    if caps.money is not None and prices is None:
        raise ConfigError(
            "a cap on money needs prices",
            where="budget",
            fix="give prices per million tokens, or cap tokens or calls",
        )
    return caps.calls, caps.tokens, None if caps.money is None else round(caps.money * TRILLION)


def within(total: Spending, limits: Limits) -> bool:
    """Whether nothing is over its limit."""
    return all(limit is None or one <= limit for one, limit in zip(total, limits, strict=True))


class Budget:
    """Counts what is spent and what could still be spent by calls under way; a call is sent only if both stay below the caps.

    Every call reserves the most it can cost before it is sent, so calls side by side can't go over together. The caps hold
    as long as the server keeps to ``max_tokens`` and the reservation covers the prompt; a server that bills more than it was
    asked for is counted in full, and nothing more is sent once the cap is reached.
    """

    def __init__(self, caps: Caps = Caps(), prices: Prices | None = None, spent: Spending = NOTHING) -> None:
        self._limits = limits_of(caps, prices)
        self.prices, self.spent = prices, spent
        self.reserved = NOTHING
        self._settled = asyncio.Event()

    def _fits(self, amount: Spending, beside: Spending) -> bool:
        return within(self.spent.plus(beside).plus(amount), self._limits)

    async def reserve(self, most: Usage) -> Spending | None:
        """Set aside the most a call can cost; waits for calls under way to settle where that may make room. None = no room."""
        amount = Spending(1, sum(most), self.prices.of(most) if self.prices else 0)
        while not self._fits(amount, self.reserved):
            if not self._fits(amount, NOTHING):
                return None
            await self._settled.wait()
        self.reserved = self.reserved.plus(amount)
        return amount

    def settle(self, reservation: Spending, counted: Spending) -> None:
        """Replace a reservation by what the call is counted with."""
        self.reserved = self.reserved.minus(reservation)
        self.spent = self.spent.plus(counted)
        self._settled.set()
        self._settled = asyncio.Event()


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
    server: str = ""
    """Base URL of the one that was asked; empty in older ledgers."""


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
    servers: Mapping[str, int] = {}
    """Answers by server; empty where all came from one."""


def append_call(ledger: Path, call: Call) -> None:
    """Write one line of the ledger, a JSONL file that several processes may append to. Opened and closed for every line.

    A last line that a crash left unfinished is removed before. Raises RunError where the file can't be written.
    """
    line = (json.dumps(dataclasses.asdict(call)) + "\n").encode("ascii")
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(ledger, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _remove_unfinished_line(descriptor)
            written = os.write(descriptor, line)
            if written < len(line):  # a disk that is nearly full takes a part; the second call says why
                os.write(descriptor, line[written:])
        finally:
            os.close(descriptor)
    except OSError as error:
        raise write_error(error, ledger) from error


def _remove_unfinished_line(descriptor: int) -> None:
    end = os.fstat(descriptor).st_size
    if end == 0 or os.pread(descriptor, 1, end - 1) == b"\n":
        return
    start = max(0, end - 65_536)  # far longer than any line
    os.ftruncate(descriptor, start + os.pread(descriptor, end - start, start).rfind(b"\n") + 1)


def read_calls(ledger: Path) -> list[Call]:
    """All whole lines of a ledger; none where there is no file yet. Raises RunError for a line that is not a call."""
    if not ledger.exists():
        return []
    try:
        *lines, _unfinished = ledger.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"can't read the ledger: {error.strerror}", where=str(ledger)) from error
    calls = []
    for number, line in enumerate(lines, 1):
        try:
            calls.append(Call(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"not a line of the cost ledger: {error}",
                where=f"{ledger}:{number}",
                fix="remove the line, or move the file away and start a new ledger",
            ) from error
    return calls


def totals(calls: Sequence[Call]) -> Totals:
    """Sums over calls; money is summed in trillionths."""
    servers = Counter(call.server for call in calls if call.outcome == "answer")
    return Totals(
        calls=len(calls),
        answers=sum(c.outcome == "answer" for c in calls),
        outcomes=dict(sorted(Counter(c.outcome for c in calls).items())),
        prompt_tokens=sum(c.prompt_tokens or 0 for c in calls),
        completion_tokens=sum(c.completion_tokens or 0 for c in calls),
        price=_sum(c.price for c in calls),
        counted_tokens=sum(c.counted_tokens for c in calls),
        counted_price=_sum(c.counted_price for c in calls),
        servers=dict(sorted(servers.items())) if len(servers) > 1 else {},
    )


def by_server(answers: Mapping[str, int]) -> str:
    """``120 from http://a:8000/v1, 118 from http://b:8000/v1``."""
    return ", ".join(f"{number:,} from {base}" for base, number in answers.items())


def spent(calls: Sequence[Call]) -> Spending:
    """What a budget that goes on from these calls starts with."""
    sums = totals(calls)
    return Spending(sums.calls, sums.counted_tokens, round(sums.counted_price * TRILLION))


def _sum(amounts: Iterable[float | None]) -> float:
    return sum(round((amount or 0.0) * TRILLION) for amount in amounts) / TRILLION
