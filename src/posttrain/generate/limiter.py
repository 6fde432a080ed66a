"""How many requests may be under way, learnt from how the server takes them.

Additive increase, multiplicative decrease (Chiu and Jain 1989; the congestion avoidance of TCP, RFC 5681 section 3.1): every
answer raises the limit by ``1 / limit``, so by one for a whole round of answers; a sign of overload multiplies it by 0.7
(the factor of CUBIC, RFC 9438 section 4.6; halving would crawl where single requests fail at random). All requests sent
before a cut belong to the round that caused it, so one storm cuts once. A ``Retry-After`` silences everyone.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping
from typing import Literal

DECREASE = 0.7
Sign = Literal["answered", "overloaded", "neither"]
"""What the end of a request says about the server's load."""


class Limiter:
    """Lets requests pass while fewer than ``limit`` are under way and no pause is on. For one event loop.

    ``most``: the limit begins there and never goes above; it never goes below 1.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(most)
        self.under_way = 0
        self._sent = self._last_of_round = 0
        self._silent_until = 0.0
        self._left = asyncio.Event()

    @property
    def silence(self) -> float:
        """Seconds until the server may be asked again."""
        return max(0.0, self._silent_until - time.monotonic())

    async def enter(self) -> int:
        """Wait for a place; gives the number of the request, to be handed to `leave`."""
        while True:
            if self.silence > 0:
                await asyncio.sleep(self.silence)
            elif self.under_way < int(self.limit):
                self.under_way += 1
                self._sent += 1
                return self._sent
            else:
                await self._left.wait()

    def leave(self, number: int, sign: Sign) -> None:
        """Give the place back, and learn from how the request ended."""
        self.under_way -= 1
        if sign == "answered":
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
        elif sign == "overloaded" and number > self._last_of_round:
            self.limit = max(1.0, self.limit * DECREASE)
            self._last_of_round = self._sent
        self._left.set()
        self._left = asyncio.Event()

    def pause(self, seconds: float) -> None:
        """Let no one pass for this long; a pause that is on is never cut short."""
        self._silent_until = max(self._silent_until, time.monotonic() + seconds)


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
