"""A thousand requests to a server that fails one in five, and a job that is killed five times: nothing lost, nothing double."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.cost import Prices, read_calls, spent, totals
from posttrain.generate.engine import Completion, Failure, Request, Usage, complete, request_key
from posttrain.generate.openai import Endpoint, OpenAIEngine
from posttrain.types import Message
from servers import seeded_faults, stored_keys

Serve = Callable[..., Any]
PRICES = Prices(prompt_per_million=1.0, completion_per_million=2.0)
BILLED_AND_UNREADABLE = {"not json", "no choices"}
END_UNSEEN = {"timeout", "connection", "cancelled"}
SEEN_AS = {
    "answer": "answer",
    "not json": "bad_response",
    "no choices": "bad_response",
    "429": "rate_limited",
    "429 retry-after": "rate_limited",
    "500": "server_error",
    "503": "server_error",
    "hang": "timeout",
    "stall": "timeout",
    "half": "connection",
    "drop": "connection",
    "reset": "connection",
    "garbage": "connection",
}


def requests_named(names: list[str]) -> list[Request]:
    return [Request((Message("user", name),)) for name in names]


@pytest.mark.slow
def test_a_thousand_requests_at_twenty_percent_faults(serve: Serve, tmp_path: Path) -> None:
    server = serve(does=seeded_faults(0.2, seed=0))
    endpoint = Endpoint(
        url=server.url, model="m", concurrency=32, request_timeout=1.5, first_backoff=0.002, longest_backoff=0.02
    )
    engine = OpenAIEngine(endpoint, prices=PRICES, ledger=tmp_path / "ledger.jsonl", seed=0)
    names = [f"question {n}" for n in range(1_000)]
    requests = requests_named(names)
    with RequestCache(tmp_path / "cache.sqlite") as cache:
        outcomes = complete(CachedEngine(engine, cache), requests)
    stored = stored_keys(tmp_path / "cache.sqlite")
    calls = read_calls(tmp_path / "ledger.jsonl")
    name_of = {request_key(engine.fingerprint, request): name for request, name in zip(requests, names, strict=True)}

    # Nothing lost: every request was answered, but those whose whole answer was unreadable.
    does = {(asked.name, asked.attempt): asked.does for asked in server.asked}
    last = {name: does[name, attempt] for name, attempt in sorted(does)}
    for name, outcome in zip(names, outcomes, strict=True):
        if last[name] in BILLED_AND_UNREADABLE:
            assert isinstance(outcome, Failure)
            assert outcome.reason == "bad_response"
        else:
            assert isinstance(outcome, Completion)
            assert outcome.text == f"reply to {name}"
    answers = {name for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, Completion)}
    assert len(answers) > 950
    assert {name_of[key] for key in stored} == answers

    # Exact ledger: a line for every request the server got, with the outcome it was given. A starved machine may add calls
    # that timed out before the server had read them, or while its answer was on the way: the only ones that may differ, and
    # one pause of the machine meets at most what is in flight.
    asked = Counter((name, SEEN_AS[what]) for (name, _), what in does.items())
    lines = Counter((name_of[c.key], c.outcome) for c in calls)
    starved = lines - asked
    assert {outcome for _, outcome in starved} <= {"timeout"}
    assert sum((asked - lines).values()) <= sum(starved.values()) <= endpoint.concurrency
    assert len(does) == len(server.asked)

    # Nothing double: the server has billed every request once, but for answers that came after such a timeout.
    billed = Counter(server.billed)
    assert set(billed) == set(names)
    assert all(times - 1 <= starved[name, "timeout"] for name, times in billed.items())

    # Its tokens and prices are those of the answers, no more and no less.
    sums = totals([c for c in calls if c.outcome == "answer"])
    usages = [outcome.usage for outcome in outcomes if isinstance(outcome, Completion)]
    expected = [Usage(**server.usage_of(name)) for name in sorted(answers)]
    assert sorted(u for u in usages if u is not None) == sorted(expected)
    assert sums.prompt_tokens == sum(u.prompt_tokens for u in expected)
    assert sums.completion_tokens == sum(u.completion_tokens for u in expected)
    assert sums.price == pytest.approx(sums.prompt_tokens / 1e6 + 2 * sums.completion_tokens / 1e6, abs=1e-12)
    assert engine.budget.spent == spent(read_calls(tmp_path / "ledger.jsonl"))
    assert engine.budget.reserved == (0, 0, 0)

    # Every kind of fault was met.
    assert set(does.values()) == set(SEEN_AS)


def test_a_second_job_asks_only_for_what_failed(serve: Serve, tmp_path: Path) -> None:
    server = serve(does=lambda name, attempt: "not json" if attempt == 1 and name.endswith("7") else "answer")
    engine = OpenAIEngine(Endpoint(url=server.url, model="m"))
    requests = requests_named([str(n) for n in range(50)])
    with RequestCache(tmp_path / "cache.sqlite") as cache:
        first = complete(CachedEngine(engine, cache), requests)
        second = complete(CachedEngine(engine, cache), requests)
    assert sum(isinstance(o, Failure) for o in first) == 5
    assert all(isinstance(o, Completion) for o in second)
    assert sorted(asked.name for asked in server.asked[50:]) == ["17", "27", "37", "47", "7"]


@pytest.mark.parametrize("fault", ["429 retry-after", "429", "503"])
def test_a_storm_passes_without_loss(serve: Serve, fault: str) -> None:
    # The server takes two at once and refuses everyone else, as an overloaded one does.
    def does(name: str, attempt: int) -> str:
        return fault if server.at_once >= 2 else "answer"

    server = serve(does=does, think_time=0.004, retry_after="0.01")
    names = [str(n) for n in range(100)]
    endpoint = Endpoint(
        url=server.url, model="m", concurrency=32, first_backoff=0.002, longest_backoff=0.02, attempts=40
    )
    outcomes = complete(OpenAIEngine(endpoint, seed=0), requests_named(names))
    assert all(isinstance(o, Completion) for o in outcomes)
    assert sorted(server.billed) == sorted(names)
    if "retry-after" in fault:  # without it the back-off alone thins out the attempts
        assert len(server.asked) < 400  # a limiter that learns nothing was seen to need 700


@pytest.mark.slow
def test_a_job_killed_five_times_ends_as_one_that_was_not(serve: Serve, tmp_path: Path) -> None:
    number = 175
    names = [f"question {n}" for n in range(number)]
    script = str(Path(__file__).with_name("killed_job.py"))
    server = serve(does=seeded_faults(0.2, seed=3, billed=False), think_time=0.01)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, script, server.url, str(tmp_path), str(number)], env=environment)

    def stored() -> set[str]:
        path = tmp_path / "cache.sqlite"
        return stored_keys(path) if path.exists() else set()

    lives: list[tuple[int, set[str]]] = []  # what had been asked, and what was in the cache, when a life began
    for life in range(5):
        lives.append((len(server.asked), stored()))
        job = start()
        wanted = (life + 1) * number // 7
        until = time.monotonic() + 60
        while len(set(server.billed)) < wanted:
            assert job.poll() is None, "it ended before it was killed"
            assert time.monotonic() < until
            time.sleep(0.005)
        job.send_signal(signal.SIGKILL)
        assert job.wait(30) == -signal.SIGKILL
    lives.append((len(server.asked), stored()))
    assert start().wait(60) == 0
    ends = [begin for begin, _ in lives[1:]] + [len(server.asked)]

    # Nothing in the cache was asked again.
    for (begin, cached), end in zip(lives, ends, strict=True):
        asked = {asked.headers["idempotency-key"] for asked in server.asked[begin:end]}
        assert asked
        assert not asked & cached
    assert [len(cached) for _, cached in lives] == sorted(len(cached) for _, cached in lives)

    # The same result as an unbroken job, and nobody missing.
    assert json.loads((tmp_path / "result.json").read_text()) == [f"reply to {name}" for name in names]
    assert len(stored()) == number
    assert set(server.billed) == set(names)

    # The ledger has a line for every answer that was received; what the kills cut off was in flight, eight at a time.
    calls = read_calls(tmp_path / "ledger.jsonl")
    answers = Counter(c.key for c in calls if c.outcome == "answer")
    assert answers.keys() == stored()
    assert len(server.asked) - len(calls) <= 5 * 8
    unseen = sum(c.outcome in END_UNSEEN for c in calls)
    assert len(server.billed) - number <= 5 * 8 + unseen
    # An answer is twice in the ledger only where a kill fell between its line and the cache; all in flight may stand there.
    assert sum(times - 1 for times in answers.values()) <= 5 * 8
