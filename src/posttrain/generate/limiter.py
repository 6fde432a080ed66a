"""How many requests may be under way, learnt from how the server takes them; and which of several servers is asked next.

Additive increase, multiplicative decrease (Chiu and Jain 1989; the congestion avoidance of TCP, RFC 5681 section 3.1): every
answer raises the limit by ``1 / limit``, so by one for a whole round of answers; a sign of overload multiplies it by 0.7
(the factor of CUBIC, RFC 9438 section 4.6; halving would crawl where single requests fail at random). All requests sent
before a cut belong to the round that caused it, so one storm cuts once. A ``Retry-After`` silences everyone.

Each of several servers has a limit of its own, and a request goes to the one that is least busy for its limit. One that nobody can
connect to, or that fails several times in a row, is set aside, longer each time; back again it is tried with one request until that is
answered. Where all are away all are asked: then the retries of the engine decide, as with a single one.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

DECREASE = 0.7
Sign = Literal["answered", "overloaded", "neither"]
"""What the end of a request says about the server's load."""


FAILURES_IN_A_ROW = 5
"""After so many a server is set aside; one that can't be connected to is at once."""
FIRST_ABSENCE, LONGEST_ABSENCE = 1.0, 60.0
"""Seconds that a server is set aside for; they double with every time in a row."""


class Limiter:
    """Lets requests pass while fewer than ``limit`` are under way and no pause is on.

    ``most``: the limit begins there and never goes above; it never goes below 1.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(most)
        self.under_way = self.sent = 0
        self._last_of_round = 0
        self._silent_until = 0.0

    @property
    def silence(self) -> float:
        """Seconds until the server may be asked again."""
        return max(0.0, self._silent_until - time.monotonic())

    @property
    def busy(self) -> float:
        """Share of the limit that is under way; 1 and more: there is no place."""
        return self.under_way / int(self.limit)

    def enter(self) -> int:
        """Take a place; gives the number of the request, to be handed to `leave`."""
        self.under_way += 1
        self.sent += 1
        return self.sent

    def leave(self, number: int, sign: Sign) -> None:
        """Give the place back, and learn from how the request ended."""
        self.under_way -= 1
        if sign == "answered":
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
        elif sign == "overloaded" and number > self._last_of_round:
            self.limit = max(1.0, self.limit * DECREASE)
            self._last_of_round = self.sent

    def pause(self, seconds: float) -> None:
        """Let no one pass for this long; a pause that is on is never cut short."""
        self._silent_until = max(self._silent_until, time.monotonic() + seconds)


@dataclass(slots=True)
class Server:
    """A server, and how it has done so far; kept from batch to batch."""

    base: str
    models: tuple[str, ...] | None = None
    """The names it lists; empty = it lists none, None = it was not there when it was asked."""
    failures: int = 0
    """In a row."""
    absences: int = 0
    """How often in a row it was set aside."""
    back_at: float = 0.0

    @property
    def absence(self) -> float:
        """Seconds until it is tried again."""
        return max(0.0, self.back_at - time.monotonic())

    def did(self, well: bool, *, reached: bool) -> None:
        """Note how a request ended; what was sent before it was set aside says nothing new."""
        if well:
            self.failures = self.absences = 0
            self.back_at = 0.0
        elif not self.absence:
            self.failures += 1
            if self.failures >= FAILURES_IN_A_ROW or not reached:
                seconds = min(LONGEST_ABSENCE, FIRST_ABSENCE * 2.0**self.absences)
                self.absences, self.back_at = min(self.absences + 1, 30), time.monotonic() + seconds


class Place(NamedTuple):
    """Where a request is under way."""

    server: Server
    limiter: Limiter
    number: int


class Servers:
    """Gives every request a server, and waits while none has a place. For one event loop; ``most`` at once for each server."""

    def __init__(self, servers: Sequence[Server], most: int) -> None:
        self._limiters = [(server, Limiter(most)) for server in servers]
        self._left = asyncio.Event()

    def _present(self) -> list[tuple[Server, Limiter]]:
        return [one for one in self._limiters if not one[0].absence] or self._limiters

    @property
    def silence(self) -> float:
        """Seconds until one may be asked again."""
        return min(limiter.silence for _, limiter in self._present())

    def others(self, server: Server) -> bool:
        """Whether another one may be asked now."""
        return any(one is not server and not one.absence and not limiter.silence for one, limiter in self._limiters)

    async def enter(self, but: Server | None = None) -> Place:
        """Wait for a place at the server that is least busy. ``but``: where another one is as good."""
        while True:
            free = [one for one in self._present() if _may_enter(*one)]
            if free:
                server, limiter = min(free, key=lambda one: (one[0] is but, one[1].busy, one[1].sent))
                return Place(server, limiter, limiter.enter())
            waits = [
                seconds for one, limiter in self._limiters for seconds in (one.absence, limiter.silence) if seconds
            ]
            try:
                async with asyncio.timeout(min(waits, default=None)):
                    await self._left.wait()
            except TimeoutError:
                continue

    def did(self, server: Server, well: bool, *, reached: bool) -> None:
        """Note how a request ended. A single server is never set aside."""
        if len(self._limiters) > 1:
            server.did(well, reached=reached)

    def leave(self, place: Place, sign: Sign) -> None:
        """Give the place back."""
        place.limiter.leave(place.number, sign)
        self._left.set()
        self._left = asyncio.Event()


def _may_enter(server: Server, limiter: Limiter) -> bool:
    on_trial = server.absences and not server.absence
    return not limiter.silence and (limiter.under_way == 0 if on_trial else limiter.busy < 1)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds the server asks to wait, or None.

    Reads ``retry-after-ms`` and ``Retry-After`` as seconds or as a date (RFC 9110 section 10.2.3). A date that is over is 0;
    what can't be read is None. ``now``: seconds since 1970, the clock's by default.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, date.timestamp() - (time.time() if now is None else now))


def backoff(failures: int, first: float, longest: float, draw: random.Random) -> float:
    """Seconds to wait after the nth failure in a row: uniform between 0 and ``min(longest, first * 2^(n-1))`` ("full jitter").

    Source: Brooker 2015, "Exponential Backoff And Jitter" (AWS Architecture Blog): of the variants compared there the one
    that finishes the work with the fewest calls. ``failures`` counts from 1.
    """
    return draw.uniform(0.0, min(longest, first * 2.0 ** min(failures - 1, 60)))
