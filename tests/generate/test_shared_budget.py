"""One budget for several processes: never gone over, nearly used up, and not held by one that was killed."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, RunError
from posttrain.generate.cost import Call, Caps, Prices, Spending, append_call, read_calls, totals
from posttrain.generate.engine import Usage
from posttrain.generate.shared_budget import SharedBudget

Serve = Callable[..., Any]
SCRIPT = str(Path(__file__).with_name("spending_job.py"))


def test_two_that_open_the_file_count_together(tmp_path: Path) -> None:
    async def run() -> None:
        with (
            SharedBudget(tmp_path / "b.sqlite", Caps(tokens=100)) as one,
            SharedBudget(one.path, Caps(tokens=100)) as two,
        ):
            first = await one.reserve(Usage(30, 30))
            assert first == Spending(1, 60, 0)
            waiting = asyncio.create_task(two.reserve(Usage(0, 50)))
            await asyncio.sleep(0.15)
            assert not waiting.done()  # it may fit yet
            assert await two.reserve(Usage(0, 101)) is None
            one.settle(first, Spending(1, 20, 0))  # it was cheaper than feared
            assert await waiting == Spending(1, 50, 0)
            assert one.spent == two.spent == Spending(1, 20, 0)
            two.settle(Spending(1, 50, 0), Spending(1, 50, 0))
            assert await one.reserve(Usage(0, 31)) is None

    asyncio.run(run())
    with SharedBudget(tmp_path / "b.sqlite", Caps(tokens=100)) as later:
        assert later.spent == Spending(2, 70, 0)


def test_what_a_ledger_holds_already_counts_once(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    sent = Call("k", 1, "answer", 200, 10, 5, None, counted_tokens=15, counted_price=0.0, seconds=0.1, time="")
    append_call(ledger, sent)
    append_call(ledger, sent)
    for _ in range(2):
        with SharedBudget(tmp_path / "b.sqlite", Caps(calls=5), None, ledger) as budget:
            assert (budget.spent.calls, budget.spent.tokens) == (2, 30)


def test_wrong_files_and_caps_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs prices"):
        SharedBudget(tmp_path / "b.sqlite", Caps(money=1.0))
    (tmp_path / "text").write_text("a note, and no budget at all\n" * 100)
    with pytest.raises(RunError, match="shared budget is damaged"):
        SharedBudget(tmp_path / "text", Caps(calls=1))
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE mine (x)")
    with pytest.raises(RunError, match="not a shared budget"):
        SharedBudget(tmp_path / "other", Caps(calls=1))


# ---- processes -----------------------------------------------------------------------------------------------------


def started(urls: list[str], folder: Path, caps: dict[str, Any], name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, SCRIPT, json.dumps(urls), str(folder), json.dumps(caps), name])


def billed(*servers: Any) -> int:
    return sum(sum(server.usage_of(name).values()) for server in servers for name in server.billed)


@pytest.mark.slow
def test_two_processes_together_never_go_over_and_nearly_use_it_up(serve: Serve, tmp_path: Path) -> None:
    two = [serve(think_time=0.002), serve(think_time=0.004)]
    caps = {"tokens": 12_000, "calls": 300}
    jobs = [started([server.url for server in two], tmp_path, caps, name) for name in ("a", "b")]
    assert [job.wait(60) for job in jobs] == [0, 0]
    sums = [totals(read_calls(tmp_path / f"{name}.jsonl")) for name in ("a", "b")]
    assert all(one.calls > 20 for one in sums)
    counted, calls = sum(one.counted_tokens for one in sums), sum(one.calls for one in sums)
    assert billed(*two) <= counted <= 12_000
    assert calls == sum(len(server.asked) for server in two) <= 300
    assert counted > 12_000 - 450 or calls == 300  # one more reservation would not have fitted
    with SharedBudget(tmp_path / "budget.sqlite", Caps()) as budget:
        assert budget.spent == Spending(calls, counted, 0)


@pytest.mark.slow
def test_one_that_is_killed_leaves_the_others_their_budget(serve: Serve, tmp_path: Path) -> None:
    server = serve(think_time=0.03)
    caps = {"tokens": 12_000}
    killed, other = (started([server.url], tmp_path, caps, name) for name in ("a", "b"))
    until = time.monotonic() + 60
    while not all((tmp_path / f"{name}.jsonl").exists() for name in ("a", "b")):
        assert time.monotonic() < until
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    assert other.wait(60) == 0
    with SharedBudget(tmp_path / "budget.sqlite", Caps(tokens=12_000)) as budget:
        seen = sum(totals(read_calls(tmp_path / f"{name}.jsonl")).counted_tokens for name in ("a", "b"))
        under_way = budget.spent.tokens - seen
        assert billed(server) <= budget.spent.tokens <= 12_000
        assert 0 <= under_way <= 8 * 450  # what the killed one had sent counts at the most it can cost
        assert budget.spent.tokens > 12_000 - 450
    assert started([server.url], tmp_path, caps, "a").wait(60) == 0  # goes on at once, and finds nothing left
    assert billed(server) <= 12_000


def test_money_counts_too(tmp_path: Path) -> None:
    async def run() -> int:
        prices = Prices(prompt_per_million=0.0, completion_per_million=0.6)
        with SharedBudget(tmp_path / "b.sqlite", Caps(money=0.000024), prices) as budget:
            return sum([await budget.reserve(Usage(0, 10)) is not None for _ in range(4)])

    assert asyncio.run(run()) == 4
