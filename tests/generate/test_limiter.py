"""The adaptive limit worked by hand, the waiting of the limiter, Retry-After and back-off."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.generate.limiter import Limiter, Sign, backoff, retry_after

# ---- the limit -----------------------------------------------------------------------------------------------------


def starting_at(limit: float) -> Limiter:
    limiter = Limiter(most=100)
    limiter.limit = limit
    return limiter


def ends(limiter: Limiter, sign: Sign) -> None:
    """One request from its beginning to its end."""
    limiter.leave(asyncio.run(limiter.enter()), sign)


def test_a_cut_takes_three_tenths_and_answers_give_one_back_a_round() -> None:
    limit = starting_at(10)
    ends(limit, "overloaded")
    assert limit.limit == pytest.approx(7.0)
    for _ in range(7):
        ends(limit, "answered")
    # (L + 1/L)^2 = L^2 + 2 + 1/L^2: after seven steps 49 + 14 + about 7/56
    assert limit.limit**2 == pytest.approx(63.125, abs=0.01)


def test_one_storm_cuts_once() -> None:
    limit = starting_at(10)
    storm = [asyncio.run(limit.enter()) for _ in range(10)]
    for number in storm:
        limit.leave(number, "overloaded")
    assert limit.limit == pytest.approx(7.0)
    ends(limit, "overloaded")  # sent after the cut: a storm of its own
    assert limit.limit == pytest.approx(4.9)


def test_what_says_nothing_about_load_changes_nothing() -> None:
    limit = starting_at(4)
    ends(limit, "neither")
    assert limit.limit == 4.0


signs: list[Sign] = ["answered", "overloaded", "neither"]


@given(st.integers(1, 50), st.lists(st.sampled_from(signs), max_size=200))
def test_the_limit_starts_at_the_most_and_never_leaves_its_bounds(most: int, found: list[Sign]) -> None:
    limit = Limiter(most)
    assert limit.limit == most

    async def run() -> None:
        for sign in found:
            limit.leave(await limit.enter(), sign)
            assert 1.0 <= limit.limit <= most

    asyncio.run(run())


# ---- waiting -------------------------------------------------------------------------------------------------------


def test_never_more_under_way_than_allowed_and_nobody_is_forgotten() -> None:
    async def run() -> tuple[int, int]:
        limiter = Limiter(most=7)
        draw = random.Random(0)
        highest = done = 0

        async def job(number: int) -> None:
            nonlocal highest, done
            place = await limiter.enter()
            highest = max(highest, limiter.under_way)
            assert limiter.under_way <= 7
            await asyncio.sleep(draw.uniform(0, 0.002))
            limiter.leave(place, draw.choice(signs))
            done += 1

        async with asyncio.timeout(20):
            await asyncio.gather(*(job(n) for n in range(300)))
        assert limiter.under_way == 0
        return highest, done

    assert asyncio.run(run()) == (7, 300)


def test_a_pause_holds_everyone_and_is_not_cut_short() -> None:
    async def run() -> list[float]:
        limiter = Limiter(most=4)
        start = time.monotonic()
        limiter.pause(0.08)
        limiter.pause(0.01)

        async def job() -> float:
            place = await limiter.enter()
            passed = time.monotonic() - start
            limiter.leave(place, "answered")
            return passed

        return await asyncio.gather(*(job() for _ in range(10)))

    assert min(asyncio.run(run())) >= 0.08


def test_one_who_gives_up_waiting_passes_the_place_on() -> None:
    async def run() -> None:
        limiter = Limiter(most=1)
        place = await limiter.enter()
        first, second = asyncio.create_task(limiter.enter()), asyncio.create_task(limiter.enter())
        await asyncio.sleep(0)
        limiter.leave(place, "answered")  # calls the first in, which is cancelled in the same breath
        first.cancel()
        async with asyncio.timeout(5):
            await second
        assert limiter.under_way == 1

    asyncio.run(run())


def test_one_who_gives_up_in_a_pause_passes_the_place_on() -> None:
    async def run() -> None:
        limiter = Limiter(most=1)
        place = await limiter.enter()
        first, second = asyncio.create_task(limiter.enter()), asyncio.create_task(limiter.enter())
        await asyncio.sleep(0)
        limiter.leave(place, "answered")
        limiter.pause(0.03)
        await asyncio.sleep(0.01)  # the first was called in and sleeps out the pause
        first.cancel()
        async with asyncio.timeout(5):
            await second

    asyncio.run(run())


# ---- Retry-After and back-off --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 9.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=784_111_777.0 - 9.0) == seconds


def test_backoff_doubles_its_bound_up_to_the_longest() -> None:
    draw = random.Random(0)
    waits = {n: [backoff(n, 0.5, 8.0, draw) for _ in range(2_000)] for n in (1, 2, 3, 5, 6, 5_000)}
    bounds = {1: 0.5, 2: 1.0, 3: 2.0, 5: 8.0, 6: 8.0, 5_000: 8.0}
    for n, bound in bounds.items():
        assert 0.95 * bound < max(waits[n]) <= bound
        assert sum(waits[n]) / 2_000 == pytest.approx(bound / 2, rel=0.05)


def test_backoff_is_the_same_for_a_seed() -> None:
    assert backoff(3, 1.0, 60.0, random.Random(5)) == backoff(3, 1.0, 60.0, random.Random(5))
