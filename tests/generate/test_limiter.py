"""The adaptive limit worked by hand, the waiting of the limiter, Retry-After and back-off."""

from __future__ import annotations

import asyncio
import random
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.generate import limiter
from posttrain.generate.limiter import FAILURES_IN_A_ROW, Limiter, Server, Servers, Sign, backoff, retry_after

# ---- the limit -----------------------------------------------------------------------------------------------------


def starting_at(limit: float) -> Limiter:
    limiter = Limiter(most=100)
    limiter.limit = limit
    return limiter


def one_server(most: int) -> Servers:
    return Servers([Server("http://a/v1")], most)


def ends(limiter: Limiter, sign: Sign) -> None:
    """One request from its beginning to its end."""
    limiter.leave(limiter.enter(), sign)


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
    storm = [limit.enter() for _ in range(10)]
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

    for sign in found:
        limit.leave(limit.enter(), sign)
        assert 1.0 <= limit.limit <= most


# ---- waiting -------------------------------------------------------------------------------------------------------


def test_never_more_under_way_than_allowed_and_nobody_is_forgotten() -> None:
    async def run() -> tuple[int, int]:
        servers = one_server(7)
        draw = random.Random(0)
        highest = done = 0

        async def job(number: int) -> None:
            nonlocal highest, done
            place = await servers.enter()
            highest = max(highest, place.limiter.under_way)
            assert place.limiter.under_way <= 7
            await asyncio.sleep(draw.uniform(0, 0.002))
            servers.leave(place, draw.choice(signs))
            done += 1

        async with asyncio.timeout(20):
            await asyncio.gather(*(job(n) for n in range(300)))
        assert (await servers.enter()).limiter.under_way == 1
        return highest, done

    assert asyncio.run(run()) == (7, 300)


def test_a_pause_holds_everyone_and_is_not_cut_short() -> None:
    async def run() -> list[float]:
        servers = one_server(4)
        place = await servers.enter()
        start = time.monotonic()
        place.limiter.pause(0.08)
        place.limiter.pause(0.01)

        async def job() -> float:
            place = await servers.enter()
            passed = time.monotonic() - start
            servers.leave(place, "answered")
            return passed

        return await asyncio.gather(*(job() for _ in range(10)))

    assert min(asyncio.run(run())) >= 0.08


def test_one_who_gives_up_waiting_passes_the_place_on() -> None:
    async def run() -> None:
        servers = one_server(1)
        place = await servers.enter()
        first, second = asyncio.create_task(servers.enter()), asyncio.create_task(servers.enter())
        await asyncio.sleep(0)
        servers.leave(place, "answered")  # calls the first in, which is cancelled in the same breath
        first.cancel()
        async with asyncio.timeout(5):
            await second
        assert place.limiter.under_way == 1

    asyncio.run(run())


def test_one_who_gives_up_in_a_pause_passes_the_place_on() -> None:
    async def run() -> None:
        servers = one_server(1)
        place = await servers.enter()
        first, second = asyncio.create_task(servers.enter()), asyncio.create_task(servers.enter())
        await asyncio.sleep(0)
        servers.leave(place, "answered")
        place.limiter.pause(0.03)
        await asyncio.sleep(0.01)  # the first was called in and sleeps out the pause
        first.cancel()
        async with asyncio.timeout(5):
            await second

    asyncio.run(run())


# ---- several servers ----------------------------------------------------------------------------------------------


def test_the_least_busy_for_its_limit_is_asked_and_equal_ones_in_turn() -> None:
    async def run() -> str:
        a, b = Server("a"), Server("b")
        servers = Servers([a, b], 4)
        places = [await servers.enter() for _ in range(4)]
        places[1].limiter.limit = 2.0  # of b: two of two are under way now, of a two of four
        places += [await servers.enter() for _ in range(2)]
        servers.leave(places[1], "answered")
        places.append(await servers.enter())
        return "".join(place.server.base for place in places)

    assert asyncio.run(run()) == "ababaab"


def test_one_that_fails_is_set_aside_longer_each_time_and_comes_back_with_one_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(limiter, "time", SimpleNamespace(monotonic=lambda: now))  # the loop keeps its own clock

    async def run() -> None:
        nonlocal now
        a, b = Server("a"), Server("b")
        servers = Servers([a, b], 4)
        for _ in range(FAILURES_IN_A_ROW):
            assert a.absence == 0
            servers.did(a, False, reached=True)
        assert a.absence == 1.0
        servers.did(a, False, reached=True)  # was sent before
        assert a.absence == 1.0
        assert {(await servers.enter()).server.base for _ in range(4)} == {"b"}
        now += 1.0
        assert (await servers.enter()).server is a
        with pytest.raises(TimeoutError):  # b is full, and a is on trial
            await asyncio.wait_for(servers.enter(), 0.01)
        servers.did(a, False, reached=False)
        assert a.absence == 2.0
        servers.did(b, False, reached=False)
        assert (await servers.enter()).server is a  # all are away: all are asked
        servers.did(a, True, reached=True)
        assert a.absence == a.failures == a.absences == 0

    asyncio.run(run())


def test_a_single_server_is_never_set_aside() -> None:
    server = Server("a")
    Servers([server], 1).did(server, False, reached=False)
    assert server.absence == 0


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
