"""Prices, caps that can't be gone over, and the ledger."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import multiprocessing
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import ConfigError, RunError
from posttrain.generate.cost import (
    Budget,
    Call,
    Caps,
    Prices,
    Spending,
    append_call,
    by_server,
    read_calls,
    spent,
    totals,
)
from posttrain.generate.engine import Usage

PRICES = Prices(prompt_per_million=0.15, completion_per_million=0.6)

# ---- prices --------------------------------------------------------------------------------------------------------


def test_a_price_worked_by_hand() -> None:
    # 1,000 tokens at 0.15 per million = 0.00015; 200 at 0.60 = 0.00012; in trillionths
    assert PRICES.of(Usage(1_000, 200)) == 270_000_000
    assert PRICES.of(Usage(0, 0)) == 0


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=20))
def test_prices_add_up_exactly(counts: list[tuple[int, int]]) -> None:
    usages = [Usage(*pair) for pair in counts]
    together = Usage(sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages))
    assert sum(PRICES.of(u) for u in usages) == PRICES.of(together)


def test_wrong_prices_and_caps_are_named() -> None:
    with pytest.raises(ConfigError, match="prompt_per_million -1"):
        Prices(prompt_per_million=-1, completion_per_million=0)
    with pytest.raises(ConfigError, match="completion_per_million nan"):
        Prices(prompt_per_million=0, completion_per_million=float("nan"))
    with pytest.raises(ConfigError, match="tokens -5"):
        Caps(tokens=-5)
    with pytest.raises(ConfigError, match="needs prices"):
        Budget(Caps(money=1.0))


# ---- the budget ----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_not_reserved() -> None:
    async def run() -> None:
        budget = Budget(Caps(tokens=100))
        assert await budget.reserve(Usage(60, 41)) is None
        assert await budget.reserve(Usage(60, 40)) == Spending(1, 100, 0)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("caps", "fits"),
    [(Caps(calls=3), 3), (Caps(tokens=35), 3), (Caps(money=0.000024), 4), (Caps(), 10), (Caps(calls=0), 0)],
)
def test_every_cap_counts(caps: Caps, fits: int) -> None:
    # A call of 10 tokens costs 10 * 0.60 / 1e6 = 0.000006.
    async def run() -> int:
        budget = Budget(caps, PRICES)
        done = 0
        for _ in range(10):
            reservation = await budget.reserve(Usage(0, 10))
            if reservation is None:
                break
            budget.settle(reservation, reservation)
            done += 1
        return done

    assert asyncio.run(run()) == fits


def test_a_call_waits_for_those_under_way_where_they_may_make_room() -> None:
    async def run() -> None:
        budget = Budget(Caps(tokens=100))
        first = await budget.reserve(Usage(0, 80))
        assert first is not None
        second = asyncio.create_task(budget.reserve(Usage(0, 50)))
        await asyncio.sleep(0.01)
        assert not second.done()
        budget.settle(first, Spending(1, 30, 0))  # it was cheaper than feared
        assert await second == Spending(1, 50, 0)
        assert budget.spent == Spending(1, 30, 0)
        assert budget.reserved == Spending(1, 50, 0)

    asyncio.run(run())


def test_a_call_that_waited_in_vain_is_refused() -> None:
    async def run() -> None:
        budget = Budget(Caps(tokens=100))
        first = await budget.reserve(Usage(0, 80))
        assert first is not None
        second = asyncio.create_task(budget.reserve(Usage(0, 50)))
        await asyncio.sleep(0)
        budget.settle(first, first)
        assert await second is None

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(5))
def test_concurrent_calls_never_go_over_a_cap(seed: int) -> None:
    async def run() -> tuple[Budget, int]:
        draw = random.Random(seed)
        budget = Budget(Caps(tokens=2_000, money=0.001), PRICES)
        refused = 0

        async def call() -> None:
            nonlocal refused
            most = Usage(draw.randint(1, 100), draw.randint(1, 100))
            reservation = await budget.reserve(most)
            if reservation is None:
                refused += 1
                return
            await asyncio.sleep(draw.uniform(0, 0.003))
            used = Usage(draw.randint(0, most.prompt_tokens), draw.randint(0, most.completion_tokens))
            budget.settle(reservation, Spending(1, sum(used), PRICES.of(used)))
            assert budget.spent.tokens + budget.reserved.tokens <= 2_000
            assert budget.spent.money + budget.reserved.money <= 10**9

        async with asyncio.timeout(20):
            await asyncio.gather(*(call() for _ in range(100)))
        assert budget.reserved == Spending()
        return budget, refused

    budget, refused = asyncio.run(run())
    assert 0 < refused < 100
    assert budget.spent.calls == 100 - refused
    assert budget.spent.tokens > 1_500  # waiting uses what others left


# ---- the ledger ----------------------------------------------------------------------------------------------------


def call(number: int = 0, **values: object) -> Call:
    base = Call(
        key=f"{number:064x}",
        attempt=1,
        outcome="answer",
        status=200,
        prompt_tokens=100,
        completion_tokens=10,
        price=0.000021,
        counted_tokens=110,
        counted_price=0.000021,
        seconds=0.5,
        time="2026-01-01T00:00:00.000+00:00",
    )
    return dataclasses.replace(base, **values)  # type: ignore[arg-type]


UNSEEN = {"outcome": "timeout", "status": None, "prompt_tokens": None, "completion_tokens": None, "price": None}


def test_calls_come_back_as_they_were_written(tmp_path: Path) -> None:
    ledger = tmp_path / "deep" / "ledger.jsonl"
    assert read_calls(ledger) == []
    calls = [call(1), call(2, **UNSEEN, counted_tokens=500, counted_price=0.0003)]
    for one in calls:
        append_call(ledger, one)
    assert read_calls(ledger) == calls
    first = json.loads(ledger.read_text().splitlines()[0])
    assert list(first) == [f.name for f in dataclasses.fields(Call)]


def test_totals_worked_by_hand(tmp_path: Path) -> None:
    found = totals([call(1), call(2), call(3, **UNSEEN, counted_tokens=500, counted_price=0.0003)])
    assert found._asdict() == {
        "calls": 3,
        "answers": 2,
        "outcomes": {"answer": 2, "timeout": 1},
        "prompt_tokens": 200,
        "completion_tokens": 20,
        "price": 0.000042,
        "counted_tokens": 720,
        "counted_price": 0.000342,
        "servers": {},
    }
    two = [
        call(1, server="http://a/v1"),
        call(2, server="http://b/v1"),
        call(3, server="http://b/v1"),
        call(4, **UNSEEN),
    ]
    assert by_server(totals(two).servers) == "1 from http://a/v1, 2 from http://b/v1"


def test_a_budget_goes_on_from_the_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    append_call(ledger, call(1))
    append_call(ledger, call(2, **UNSEEN, counted_tokens=500, counted_price=0.0003))
    assert spent(read_calls(ledger)) == Spending(calls=2, tokens=610, money=321_000_000)


def test_a_line_a_crash_left_unfinished_is_not_counted_and_then_removed(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    append_call(ledger, call(1))
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + b'{"key": "00')
    assert read_calls(ledger) == [call(1)]
    append_call(ledger, call(2))
    assert read_calls(ledger) == [call(1), call(2)]
    ledger.write_bytes(b'{"key"')
    append_call(ledger, call(3))
    assert read_calls(ledger) == [call(3)]


@pytest.mark.parametrize("line", ["{}", "[1]", "not json", '{"key": "a", "more": 1}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    ledger = tmp_path / "ledger.jsonl"
    append_call(ledger, call(1))
    with ledger.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match=r"ledger\.jsonl:2: not a line of the cost ledger"):
        read_calls(ledger)


def test_a_ledger_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        append_call(tmp_path / "file" / "ledger.jsonl", call())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_named() -> None:
    with pytest.raises(RunError, match="the disk is full"):
        append_call(Path("/dev/full"), call())


def _append(path: Path, start: int) -> None:
    for number in range(start, start + 200):
        append_call(path, call(number))


def test_several_processes_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_append, args=(path, start)) for start in (0, 1_000, 2_000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    expected = sorted(f"{start + n:064x}" for start in (0, 1_000, 2_000) for n in range(200))
    assert sorted(c.key for c in read_calls(path)) == expected
