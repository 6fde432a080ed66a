"""The engine over HTTP, one behaviour at a time, against a real server on loopback. The storms are in test_faults.py."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, RunError
from posttrain.generate.cost import Caps, Prices, read_calls, totals
from posttrain.generate.engine import (
    Completion,
    Engine,
    Failure,
    Fingerprint,
    Outcome,
    Request,
    Sampling,
    Usage,
    complete,
    request_key,
)
from posttrain.generate.openai import Endpoint, OpenAIEngine
from posttrain.types import Message

Serve = Callable[..., Any]
PRICES = Prices(prompt_per_million=1.0, completion_per_million=2.0)


def ask(text: str, **sampling: Any) -> Request:
    return Request((Message("user", text),), Sampling(**sampling))


def endpoint(server: Any, **how: Any) -> Endpoint:
    quick: dict[str, Any] = {"request_timeout": 10.0, "first_backoff": 0.002, "longest_backoff": 0.01}
    return Endpoint(url=server.url, model="m", **(quick | how))


def script(*does: str) -> Callable[[str, int], str]:
    """What the server does at the first, second ... attempt of every request; the last one stays."""
    return lambda name, attempt: does[min(attempt, len(does)) - 1]


# ---- what is sent and read -----------------------------------------------------------------------------------------


def test_a_chat_request_and_its_answer(serve: Serve) -> None:
    server = serve()
    engine: Engine = OpenAIEngine(endpoint(server, extra_body={"min_p": 0.1}))
    request = ask("Where?", temperature=0.5, max_tokens=7)
    assert complete(engine, [request]) == [
        Completion("reply to Where?", usage=Usage(**server.usage_of("Where?"))),
    ]
    [asked] = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Where?"}],
        "temperature": 0.5,
        "top_p": 1.0,
        "max_tokens": 7,
        "min_p": 0.1,
    }
    assert asked.headers["idempotency-key"] == request_key(engine.fingerprint, request)
    assert asked.headers["content-type"] == "application/json"
    assert "authorization" not in asked.headers


def test_logprobs_are_asked_for_and_read(serve: Serve) -> None:
    form = {"content": [{"token": "m", "logprob": -0.1, "top_logprobs": [{"token": "M", "logprob": -2.4}]}]}
    server = serve(bodies=lambda body: {"choices": [{"message": {"content": "m"}, "logprobs": form}]})
    [found] = complete(OpenAIEngine(endpoint(server)), [ask("x", logprobs=5)])
    assert isinstance(found, Completion)
    assert found.logprobs == (("m", -0.1, (("M", -2.4),)),)
    assert (server.asked[0].body["logprobs"], server.asked[0].body["top_logprobs"]) == (True, 5)


def test_a_think_block_that_never_ends_is_a_completion_without_text(serve: Serve) -> None:
    server = serve(bodies=lambda body: server.chat_body("x", "<think>on and on", finish_reason="length"))
    [found] = complete(OpenAIEngine(endpoint(server)), [ask("x")])
    assert found == Completion("", "length", reasoning="on and on", usage=Usage(**server.usage_of("x")))


def test_text_of_any_kind_goes_there_and_back(serve: Serve) -> None:
    server = serve()
    texts = ["\u4f60\u597d", "\U0001f600", 'a "quoted" \\ line\nend', "\ud83d", "\x00\u2028"]
    found = complete(OpenAIEngine(endpoint(server)), [ask(text) for text in texts])
    assert [o.text for o in found if isinstance(o, Completion)] == [f"reply to {text}" for text in texts]


def test_no_requests_need_no_server() -> None:
    assert complete(OpenAIEngine(Endpoint(url="http://localhost:1", model="m")), []) == []


def test_one_engine_serves_batch_after_batch(serve: Serve) -> None:
    server = serve()
    engine = OpenAIEngine(endpoint(server))
    for batch in range(3):
        found = complete(engine, [ask(f"{batch}/{n}") for n in range(4)])
        assert all(isinstance(o, Completion) for o in found)
    assert len(server.asked) == 12


def test_outcomes_come_as_they_are_there(serve: Serve) -> None:
    server = serve(does=lambda name, attempt: "late 0.3" if name == "slow" else "answer")
    order = [i for i, _ in OpenAIEngine(endpoint(server)).generate([ask("slow"), ask("a"), ask("b")])]
    assert order[-1] == 0


@pytest.mark.parametrize("most", [1, 5])
def test_never_more_at_once_than_allowed(serve: Serve, most: int) -> None:
    server = serve(think_time=0.01)
    complete(OpenAIEngine(endpoint(server, concurrency=most)), [ask(str(n)) for n in range(20)])
    assert server.most_at_once == most


def test_it_works_where_an_event_loop_runs(serve: Serve) -> None:
    server = serve()

    async def notebook() -> list[Outcome]:
        return complete(OpenAIEngine(endpoint(server)), [ask("x")])

    [found] = asyncio.run(notebook())
    assert isinstance(found, Completion)


def test_ctrl_c_stops_the_work(serve: Serve, tmp_path: Path) -> None:
    server = serve(does=lambda name, attempt: "answer" if name == "0" else "hang")
    engine = OpenAIEngine(endpoint(server, concurrency=2), ledger=tmp_path / "ledger.jsonl")
    main = threading.main_thread().ident  # where a terminal's Ctrl-C arrives; os.kill may choose another thread
    assert main is not None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            complete(
                engine, [ask(str(n)) for n in range(9)], lambda done, all_: signal.pthread_kill(main, signal.SIGINT)
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert {c.outcome for c in read_calls(tmp_path / "ledger.jsonl")} <= {"answer", "cancelled"}
    assert engine.budget.reserved.calls == 0


# ---- what is asked again -------------------------------------------------------------------------------------------

AGAIN = ["429", "429 retry-after", "408", "500", "502", "503 retry-after", "529", "half", "drop", "reset", "garbage"]


@pytest.mark.parametrize("fault", AGAIN)
def test_it_is_asked_again_until_it_is_answered(serve: Serve, fault: str) -> None:
    server = serve(does=script(fault, fault, "answer"))
    [found] = complete(OpenAIEngine(endpoint(server)), [ask("x")])
    assert isinstance(found, Completion)
    assert [asked.does for asked in server.asked] == [fault, fault, "answer"]
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1


@pytest.mark.parametrize("fault", ["hang", "stall", "late 3600"])
def test_a_timeout_is_asked_again(serve: Serve, fault: str) -> None:
    server = serve(does=script(fault, "answer"))
    [found] = complete(OpenAIEngine(endpoint(server, request_timeout=0.4)), [ask("x")])
    assert isinstance(found, Completion)
    assert [asked.does for asked in server.asked] == [fault, "answer"]


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        ("429", "rate_limited", "status 429: scripted 429"),
        ("503", "server_error", "status 503: scripted 503"),
        ("hang", "timeout", "no whole answer within 0.25 s"),
        ("half", "connection", "RemoteProtocolError"),
        ("drop", "connection", "RemoteProtocolError"),
    ],
)
def test_what_never_gets_better_is_a_failure_with_its_last_reason(
    serve: Serve, fault: str, reason: str, detail: str
) -> None:
    server = serve(does=script(fault))
    [found] = complete(
        OpenAIEngine(endpoint(server, attempts=3, request_timeout=0.25 if fault == "hang" else 10.0)), [ask("x")]
    )
    assert isinstance(found, Failure)
    assert (found.reason, found.attempts, len(server.asked)) == (reason, 3, 3)
    assert detail in found.detail


def test_nobody_there_stops_the_batch_and_names_the_address(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        engine = OpenAIEngine(Endpoint(url=url, model="m", first_backoff=0.001), ledger=tmp_path / "ledger.jsonl")
        with pytest.raises(ConfigError, match=f"{url}/v1: no connection to the server") as caught:
            complete(engine, [ask(str(n)) for n in range(40)])
    assert "start the server" in str(caught.value)
    refused = [c for c in read_calls(tmp_path / "ledger.jsonl") if c.outcome == "connection"]
    assert max(c.attempt for c in refused) == 5
    assert {c.counted_tokens for c in refused} == {0}  # nothing was sent, so nothing can have been billed


def test_a_server_that_goes_away_is_a_failure_of_what_is_left(serve: Serve) -> None:
    gone = serve(think_time=0.05)  # so that it is stopped before the second request arrives, or while that one waits
    engine = OpenAIEngine(endpoint(gone, attempts=6, concurrency=1))

    found = []
    for _, outcome in engine.generate([ask("a"), ask("b")]):
        found.append(outcome)
        gone.__exit__()
    assert isinstance(found[0], Completion)
    assert isinstance(found[1], Failure)
    assert (found[1].reason, found[1].attempts) == ("connection", 6)
    assert "can't connect" in found[1].detail


@pytest.mark.parametrize("fault", ["not json", "no choices"])
def test_a_whole_answer_that_cannot_be_read_is_never_asked_again(serve: Serve, fault: str, tmp_path: Path) -> None:
    server = serve(does=script(fault, "answer"))
    engine = OpenAIEngine(endpoint(server), ledger=tmp_path / "ledger.jsonl")
    [found] = complete(engine, [ask("x")])
    assert isinstance(found, Failure)
    assert (found.reason, found.attempts) == ("bad_response", 1)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("does", "reason"), [("400", "invalid_request"), ("422", "invalid_request"), ("403", "refused"), ("402", "refused")]
)
def test_what_asking_again_cannot_mend_is_asked_once(serve: Serve, does: str, reason: str) -> None:
    server = serve(does=script(does))
    [found] = complete(OpenAIEngine(endpoint(server)), [ask("x")])
    assert isinstance(found, Failure)
    assert (found.reason, found.attempts, len(server.asked)) == (reason, 1, 1)


def test_no_credit_left_is_not_waited_for(serve: Serve) -> None:
    server = serve(does=script("429"), errors={429: {"error": {"code": "insufficient_quota", "message": "pay first"}}})
    [found] = complete(OpenAIEngine(endpoint(server)), [ask("x")])
    assert found == Failure("refused", "status 429: pay first", 1)


def test_a_redirect_is_not_followed_with_the_key(serve: Serve) -> None:
    server = serve(does=script("302"))
    [found] = complete(OpenAIEngine(endpoint(server)), [ask("x")])
    assert isinstance(found, Failure)
    assert "redirects" in found.detail
    assert len(server.asked) == 1


def test_retry_after_silences_everyone(serve: Serve) -> None:
    stamps: list[float] = []

    def does(name: str, attempt: int) -> str:
        stamps.append(time.monotonic())
        return "429 retry-after" if len(stamps) == 1 else "answer"

    server = serve(does=does, retry_after="0.4")
    requests = [ask(str(n)) for n in range(6)]
    found = complete(OpenAIEngine(endpoint(server, concurrency=1)), requests)
    assert all(isinstance(o, Completion) for o in found)
    assert stamps[1] - stamps[0] >= 0.4
    assert len(stamps) == 7


def test_a_silence_longer_than_we_wait_ends_the_requests_without_asking(serve: Serve) -> None:
    server = serve(does=script("429 retry-after"), retry_after="3600")
    requests = [ask(str(n)) for n in range(20)]
    found = complete(OpenAIEngine(endpoint(server, concurrency=1, longest_silence=5.0)), requests)
    assert {o.reason for o in found if isinstance(o, Failure)} == {"rate_limited"}
    assert len(found) == 20
    assert len(server.asked) == 1


# ---- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://example.org/v1beta/openai", "https://example.org/v1beta/openai"),
    ],
)
def test_the_base_url(url: str, base: str) -> None:
    assert Endpoint(url=url, model="m").base == base


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"url": "localhost:8000"}, "not a web address"),
        ({"url": "ftp://example.org"}, "not a web address"),
        ({"url": "http://localhost:port"}, "not a URL"),
        ({"url": "http://user:secret@example.org"}, "user, password or query"),
        ({"url": "http://example.org/v1?key=secret"}, "user, password or query"),
        ({"url": "http://example.org/v1/chat/completions"}, "give the base URL"),
        ({"extra_body": {"max_tokens": 5}}, "'max_tokens' can't be set here"),
        ({"extra_body": {"n": 4}}, "'n' can't be set here"),
    ],
)
def test_a_wrong_endpoint_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Endpoint(**({"url": "http://localhost", "model": "m"} | values))
    assert "secret" not in str(caught.value)


def test_the_fingerprint_says_what_decides_answers() -> None:
    plain = Endpoint(url="http://localhost:8000", model="m")
    assert OpenAIEngine(plain).fingerprint == Fingerprint("openai", "m", "http://localhost:8000/v1")
    more = dataclasses.replace(plain, extra_body={"b": 1, "a": None})
    assert OpenAIEngine(more).fingerprint.options == '{"a": null, "b": 1}'
    other_limits = dataclasses.replace(plain, concurrency=3, attempts=1, request_timeout=1.0, api_key_env="KEY")
    assert OpenAIEngine(other_limits).fingerprint == OpenAIEngine(plain).fingerprint


@pytest.mark.parametrize(("does", "words"), [("401", "refuses access"), ("404", r"or the model 'm'")])
def test_a_wrong_key_or_address_stops_the_batch_at_once(serve: Serve, does: str, words: str, tmp_path: Path) -> None:
    server = serve(does=script(does))
    engine = OpenAIEngine(endpoint(server, concurrency=2), ledger=tmp_path / "ledger.jsonl", caps=Caps(tokens=10_000))
    with pytest.raises(ConfigError, match=words):
        complete(engine, [ask(str(n)) for n in range(50)])
    assert len(server.asked) <= 2
    first = read_calls(tmp_path / "ledger.jsonl")[0]
    assert (first.status, first.counted_tokens) == (int(does), 0)


def test_one_that_comes_after_answers_is_a_failure_of_its_own(serve: Serve) -> None:
    server = serve(does=lambda name, attempt: "404" if name == "b" else "answer")
    found = complete(OpenAIEngine(endpoint(server, concurrency=1)), [ask("a"), ask("b"), ask("c")])
    assert [type(o) for o in found] == [Completion, Failure, Completion]
    assert isinstance(found[1], Failure)
    assert found[1].reason == "invalid_request"


# ---- the key -------------------------------------------------------------------------------------------------------

SECRET = "sk-very-secret-0123456789"


def test_the_key_goes_to_the_server_and_nowhere_else(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OUR_KEY", SECRET + "\n")
    caplog.set_level(logging.DEBUG)
    told = {"error": {"message": f"not with {SECRET}"}}
    server = serve(does=lambda name, attempt: "403" if name == "bad" else "answer", errors={403: told})
    engine = OpenAIEngine(endpoint(server, api_key_env="OUR_KEY"), ledger=tmp_path / "ledger.jsonl", prices=PRICES)
    found = complete(engine, [ask("good"), ask("bad")])
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {SECRET}"}
    assert found[1] == Failure("refused", "status 403: not with ***", 1)
    seen = [caplog.text, repr(found), repr(engine.endpoint), repr(engine.fingerprint), repr(vars(engine))]
    assert SECRET not in "".join(seen) + (tmp_path / "ledger.jsonl").read_text()
    monkeypatch.setenv("OUR_KEY", "another")
    assert request_key(engine.fingerprint, ask("good")) == server.asked[0].headers["idempotency-key"] or (
        request_key(engine.fingerprint, ask("good")) == server.asked[1].headers["idempotency-key"]
    )


def test_an_error_that_stops_the_batch_does_not_show_the_key(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", SECRET)
    server = serve(does=script("401"), errors={401: {"error": {"message": f"wrong key {SECRET}"}}})
    with pytest.raises(ConfigError, match=r"wrong key \*\*\*") as caught:
        complete(OpenAIEngine(endpoint(server, api_key_env="OUR_KEY")), [ask("x")])
    assert "correct $OUR_KEY" in str(caught.value)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_key_that_is_not_set_is_named_before_anything_is_sent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    server = serve()
    monkeypatch.delenv("OUR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("OUR_KEY", value)
    with pytest.raises(ConfigError, match="OUR_KEY is not set"):
        complete(OpenAIEngine(endpoint(server, api_key_env="OUR_KEY")), [ask("x")])
    assert server.asked == []


@pytest.mark.parametrize("value", ["sk-\u00e9t\u00e9", "sk-a\nb", "sk-a b"])
def test_a_key_no_header_can_hold_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OUR_KEY", value)
    with pytest.raises(ConfigError, match="can't be a key") as caught:
        complete(OpenAIEngine(Endpoint(url="http://localhost", model="m", api_key_env="OUR_KEY")), [ask("x")])
    assert value not in str(caught.value)


# ---- cost ----------------------------------------------------------------------------------------------------------


def test_the_ledger_has_a_line_for_every_call(serve: Serve, tmp_path: Path) -> None:
    server = serve(does=script("500", "drop", "answer"))
    engine = OpenAIEngine(endpoint(server), prices=PRICES, ledger=tmp_path / "ledger.jsonl")
    request = ask("x", max_tokens=10)
    complete(engine, [request])
    refused, dropped, answered = read_calls(tmp_path / "ledger.jsonl")
    usage = Usage(**server.usage_of("x"))
    price = (usage.prompt_tokens * 1 + usage.completion_tokens * 2) / 1e6
    assert {c.key for c in (refused, dropped, answered)} == {request_key(engine.fingerprint, request)}
    assert [c.attempt for c in (refused, dropped, answered)] == [1, 2, 3]
    assert (refused.outcome, refused.status, refused.counted_tokens, refused.price) == ("server_error", 500, 0, None)
    assert (dropped.outcome, dropped.status, dropped.price) == ("connection", None, None)
    assert dropped.counted_tokens > 10 + 256  # it may have been billed: all of its reservation counts
    assert (answered.outcome, answered.status, answered.prompt_tokens, answered.completion_tokens) == (
        "answer",
        200,
        *usage,
    )
    assert answered.price == pytest.approx(price, abs=1e-15)
    assert (answered.counted_tokens, answered.counted_price) == (sum(usage), answered.price)
    assert engine.budget.spent.calls == 3
    assert engine.budget.spent.tokens == dropped.counted_tokens + sum(usage)


def test_usage_that_is_not_told_counts_with_the_most_it_can_be(serve: Serve, tmp_path: Path) -> None:
    server = serve(does=script("no usage"))
    engine = OpenAIEngine(endpoint(server), prices=PRICES, ledger=tmp_path / "ledger.jsonl")
    [found] = complete(engine, [ask("x", max_tokens=10)])
    assert found == Completion("reply to x")
    [line] = read_calls(tmp_path / "ledger.jsonl")
    assert (line.outcome, line.prompt_tokens, line.completion_tokens, line.price) == ("answer", None, None, None)
    assert line.counted_tokens > 266


def test_an_answer_that_is_dearer_than_asked_for_counts_in_full_and_stops_the_rest(serve: Serve) -> None:
    def greedy(body: dict[str, Any]) -> dict[str, Any]:
        return server.chat_body("x") | {"usage": {"prompt_tokens": 5, "completion_tokens": 5_000}}

    server = serve(bodies=greedy)
    engine = OpenAIEngine(endpoint(server, concurrency=1), caps=Caps(tokens=2_000))
    found = complete(engine, [ask("a", max_tokens=10), ask("b", max_tokens=10)])
    assert [type(o) for o in found] == [Completion, Failure]
    assert engine.budget.spent.tokens == 5_005


@pytest.mark.parametrize(
    "caps", [Caps(calls=10), Caps(tokens=4_000), Caps(money=0.004)], ids=["calls", "tokens", "money"]
)
def test_a_cap_is_never_gone_over_by_calls_side_by_side(serve: Serve, caps: Caps, tmp_path: Path) -> None:
    server = serve(think_time=0.002)
    engine = OpenAIEngine(endpoint(server), prices=PRICES, caps=caps, ledger=tmp_path / "ledger.jsonl")
    found = complete(engine, [ask(f"question {n}", max_tokens=16) for n in range(400)])
    answered = [o for o in found if isinstance(o, Completion)]
    refused = [o for o in found if isinstance(o, Failure)]
    assert {o.reason for o in refused} == {"budget"}
    assert len(answered) == len(server.billed) >= 10
    sums = totals(read_calls(tmp_path / "ledger.jsonl"))
    billed = [server.usage_of(name) for name in server.billed]
    assert sums.prompt_tokens == sum(u["prompt_tokens"] for u in billed)
    assert sums.completion_tokens == sum(u["completion_tokens"] for u in billed)
    if caps.calls is not None:
        assert len(server.asked) == caps.calls
    if caps.tokens is not None:
        assert caps.tokens - 450 < sums.counted_tokens <= caps.tokens  # one more reservation would not have fitted
    if caps.money is not None:
        assert caps.money - 0.0005 < sums.counted_price <= caps.money


def test_a_retry_that_could_go_over_the_cap_is_not_sent(serve: Serve) -> None:
    server = serve(does=script("500"))
    [found] = complete(OpenAIEngine(endpoint(server), caps=Caps(calls=3)), [ask("x")])
    assert found == Failure("budget", "the next call could go over the cap", 3)
    assert len(server.asked) == 3


def test_a_cap_holds_over_a_restart_with_the_same_ledger(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    for _ in range(3):
        engine = OpenAIEngine(endpoint(server), caps=Caps(calls=5), ledger=tmp_path / "ledger.jsonl")
        complete(engine, [ask(str(n)) for n in range(3)])
    assert len(server.asked) == 5


def test_a_cap_on_money_needs_prices(serve: Serve) -> None:
    with pytest.raises(ConfigError, match="needs prices"):
        OpenAIEngine(Endpoint(url="http://localhost", model="m"), caps=Caps(money=1.0))


def test_a_ledger_that_cannot_be_written_stops_the_batch(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    (tmp_path / "file").write_text("")
    engine = OpenAIEngine(endpoint(server, concurrency=2), ledger=tmp_path / "file" / "ledger.jsonl")
    with pytest.raises(RunError, match="file"):
        complete(engine, [ask(str(n)) for n in range(20)])
    assert len(server.asked) <= 4


def test_closing_early_stops_asking_and_says_so_in_the_ledger(serve: Serve, tmp_path: Path) -> None:
    server = serve(does=lambda name, attempt: "answer" if name == "0" else "hang")
    engine = OpenAIEngine(endpoint(server, concurrency=4), ledger=tmp_path / "ledger.jsonl", caps=Caps(tokens=10**6))

    outcomes = engine.generate([ask(str(n)) for n in range(50)])
    index, _ = next(outcomes)
    while len(server.asked) < 5:
        time.sleep(0.01)
    outcomes.close()
    assert index == 0
    calls = read_calls(tmp_path / "ledger.jsonl")
    assert sorted(c.outcome for c in calls) == ["answer", *["cancelled"] * 4]
    assert all(c.counted_tokens > 1_000 for c in calls if c.outcome == "cancelled")
    assert engine.budget.reserved.tokens == 0
    assert len(server.asked) == 5
