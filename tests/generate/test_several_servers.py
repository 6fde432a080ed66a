"""One engine over several servers on loopback: who is asked, what becomes of those that fail, and one budget for all of them."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.cost import Caps, read_calls, totals
from posttrain.generate.engine import Completion, Failure, Request, Sampling, complete
from posttrain.generate.openai import Endpoint, OpenAIEngine
from posttrain.generate.source import ModelSource
from posttrain.types import Message
from servers import reply_of, seeded_faults

Serve = Callable[..., Any]
QUICK: dict[str, Any] = {"request_timeout": 10.0, "first_backoff": 0.002, "longest_backoff": 0.02}


def asked(number: int, **sampling: Any) -> list[Request]:
    return [Request((Message("user", f"question {n}"),), Sampling(**sampling)) for n in range(number)]


def over(*servers: Any, **how: Any) -> Endpoint:
    return Endpoint(url=tuple(server.url for server in servers), model="m", **(QUICK | how))


def texts(outcomes: list[Any]) -> list[str]:
    return [outcome.text if isinstance(outcome, Completion) else str(outcome) for outcome in outcomes]


ANSWERS = [reply_of(f"question {n}") for n in range(1_000)]


@pytest.fixture
def nobody() -> str:
    """A URL where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/v1"


def test_two_servers_of_unlike_speed_share_the_load(serve: Serve, tmp_path: Path) -> None:
    slow, fast = serve(think_time=0.3), serve(think_time=0.02)
    engine = OpenAIEngine(over(slow, fast, concurrency=4), ledger=tmp_path / "ledger.jsonl")
    assert texts(complete(engine, asked(60))) == ANSWERS[:60]
    assert (slow.most_at_once, fast.most_at_once) == (4, 4)
    assert len(slow.asked) + len(fast.asked) == 60
    assert len(fast.asked) > 2 * len(slow.asked) >= 8
    assert totals(read_calls(tmp_path / "ledger.jsonl")).servers == {
        slow.url: len(slow.asked),
        fast.url: len(fast.asked),
    }


def test_few_requests_are_spread(serve: Serve) -> None:
    three = [serve(think_time=0.05) for _ in range(3)]
    complete(OpenAIEngine(over(*three)), asked(6))
    assert [len(server.asked) for server in three] == [2, 2, 2]


def test_one_that_dies_on_the_way_loses_nothing(serve: Serve, tmp_path: Path) -> None:
    dying, stays = serve(think_time=0.02), serve(think_time=0.02)
    engine = OpenAIEngine(over(dying, stays, concurrency=4), ledger=tmp_path / "ledger.jsonl")
    found = []
    for place, outcome in engine.generate(asked(100)):
        found.append((place, outcome))
        if len(found) == 20:
            dying.__exit__()
    assert texts([outcome for _, outcome in sorted(found)]) == ANSWERS[:100]
    assert 3 < len(dying.billed) < 60
    # what was answered is not asked again; only what was under way when it died may be at both
    received = {call.key for call in read_calls(tmp_path / "ledger.jsonl") if call.outcome == "answer"}
    assert len(received) == 100
    both = set(dying.billed) & set(stays.billed)
    assert len(both) <= 4
    assert len(stays.asked) <= 100 - len(dying.billed) + 4


def test_one_that_is_not_there_is_tried_once_in_a_while(serve: Serve, nobody: str, tmp_path: Path) -> None:
    server = serve(think_time=0.002)
    endpoint = Endpoint(url=(nobody, server.url), model="m", concurrency=4, **QUICK)
    engine = OpenAIEngine(endpoint, ledger=tmp_path / "ledger.jsonl")
    for _ in range(3):  # also from batch to batch
        assert texts(complete(engine, asked(60))) == ANSWERS[:60]
    refused = [call for call in read_calls(tmp_path / "ledger.jsonl") if call.outcome == "connection"]
    assert 1 <= len(refused) <= 15
    assert {call.server for call in refused} == {nobody}


def test_one_that_only_fails_hands_its_requests_on(serve: Serve, tmp_path: Path) -> None:
    broken, works = serve(does=lambda name, attempt: "500"), serve(think_time=0.005)
    engine = OpenAIEngine(over(broken, works, concurrency=4), ledger=tmp_path / "ledger.jsonl")
    assert texts(complete(engine, asked(80))) == ANSWERS[:80]
    assert len(broken.asked) <= 16


def test_where_all_are_away_the_error_is_that_of_one(serve: Serve, nobody: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        other = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ConfigError, match="no connection to the server") as caught:
            complete(OpenAIEngine(Endpoint(url=(nobody, other), model="m", **QUICK)), asked(20))
    assert nobody in str(caught.value)
    assert other in str(caught.value)
    one, two = serve(think_time=0.05), serve(think_time=0.05)
    engine = OpenAIEngine(over(one, two, concurrency=1, attempts=4))
    found = []
    for _, outcome in engine.generate(asked(20)):
        found.append(outcome)
        if len(found) == 1:
            one.__exit__()
            two.__exit__()
    failures = [outcome for outcome in found if isinstance(outcome, Failure)]
    assert len(failures) >= 3
    assert {(outcome.reason, outcome.attempts) for outcome in failures} == {("connection", 4)}


def test_a_server_that_asks_for_silence_is_left_alone_and_the_other_goes_on(serve: Serve) -> None:
    silent = serve(does=lambda name, attempt: "429 retry-after", retry_after="30")
    works = serve(think_time=0.005)
    start = time.monotonic()
    assert texts(complete(OpenAIEngine(over(silent, works, concurrency=2)), asked(40))) == ANSWERS[:40]
    assert len(silent.asked) <= 2
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_storms_over_three_servers_lose_nothing(serve: Serve, tmp_path: Path) -> None:
    three = [serve(does=seeded_faults(0.2, seed, billed=False), think_time=0.003) for seed in range(3)]
    engine = OpenAIEngine(over(*three, concurrency=8, request_timeout=1.5), ledger=tmp_path / "ledger.jsonl", seed=0)
    assert texts(complete(engine, asked(500))) == ANSWERS[:500]
    answers = Counter(call.key for call in read_calls(tmp_path / "ledger.jsonl") if call.outcome == "answer")
    assert set(answers.values()) == {1}
    assert len(answers) == 500


def test_which_server_answers_is_no_part_of_an_answer(serve: Serve, tmp_path: Path) -> None:
    first, second = serve(think_time=0.005), serve(think_time=0.005)
    alone, both = OpenAIEngine(over(first)), OpenAIEngine(over(first, second, concurrency=3))
    assert alone.fingerprint == both.fingerprint
    with RequestCache(tmp_path / "cache.sqlite") as cache:
        complete(CachedEngine(both, cache), asked(30))
        assert first.billed
        assert second.billed
        before = len(first.asked)
        again = complete(CachedEngine(alone, cache), asked(30))
        assert len(first.asked) == before
    assert all(isinstance(outcome, Completion) and outcome.cached for outcome in again)


@pytest.mark.parametrize("caps", [Caps(calls=25), Caps(tokens=9_000)], ids=["calls", "tokens"])
def test_a_cap_is_for_all_servers_together(serve: Serve, caps: Caps, tmp_path: Path) -> None:
    two = [serve(think_time=0.005), serve(think_time=0.002)]
    engine = OpenAIEngine(over(*two), caps=caps, ledger=tmp_path / "ledger.jsonl")
    found = complete(engine, asked(400, max_tokens=16))
    assert {outcome.reason for outcome in found if isinstance(outcome, Failure)} == {"budget"}
    sums = totals(read_calls(tmp_path / "ledger.jsonl"))
    assert all(server.billed for server in two)
    if caps.calls is not None:
        assert sum(len(server.asked) for server in two) == caps.calls
    if caps.tokens is not None:
        assert caps.tokens - 450 < sums.counted_tokens <= caps.tokens


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ((("m",), ("other",)), r"the servers hold different models: \S+ has 'm', and \S+ has 'other'"),
        ((("a.gguf",), ("b.gguf",)), "has 'a.gguf', and .* has 'b.gguf'"),
        ((("m", "x"), ("m",)), None),
        ((("a.gguf",), ("a.gguf",)), None),
        ((("m",), None), None),
    ],
)
def test_servers_with_different_models_are_told(serve: Serve, models: Any, words: str | None) -> None:
    two = [serve(models=names) for names in models]
    engine = OpenAIEngine(over(*two))
    if words is None:
        assert texts(complete(engine, asked(4))) == ANSWERS[:4]
        return
    with pytest.raises(ConfigError, match=words) as caught:
        complete(engine, asked(4))
    assert all(server.url in str(caught.value) for server in two)
    assert not any(server.asked for server in two)


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        ((), "the list of URLs is empty"),
        (("http://localhost:8000", "http://localhost:8000/v1/"), "the same server twice: http://localhost:8000/v1"),
        (("http://localhost:8000", "localhost:8001"), "not a web address: 'localhost:8001'"),
    ],
)
def test_a_wrong_list_is_named_before_anything_is_asked(urls: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Endpoint(url=urls, model="m")
    with pytest.raises(ValueError, match=words):
        ModelSource(endpoint=urls, model="m")
