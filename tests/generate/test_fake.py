"""The scripted engine, and what every engine owes: each request one outcome."""

from __future__ import annotations

import pytest

from posttrain.errors import ConfigError
from posttrain.generate.engine import Completion, Engine, Failure, Request, Usage, complete
from posttrain.generate.fake import FakeEngine, Script
from posttrain.types import Message


def ask(text: str) -> Request:
    return Request((Message("system", "Be brief."), Message("user", text)))


def test_a_list_is_used_up_in_the_order_of_the_requests() -> None:
    engine: Engine = FakeEngine(["one", Failure("refused", "scripted"), Completion("three", finish="length")])
    assert complete(engine, [ask("a"), ask("b")]) == [
        Completion("one", usage=Usage(3, 1)),
        Failure("refused", "scripted"),
    ]
    assert complete(engine, [ask("c")]) == [Completion("three", finish="length")]
    with pytest.raises(ConfigError, match="request 4 came, but the script has 3 replies"):
        complete(engine, [ask("d")])


def test_the_first_pattern_that_is_found_answers() -> None:
    engine = FakeEngine({"France": "Paris", "(?i)capital": "Which?", "broken": Failure("timeout", "scripted")})
    found = complete(engine, [ask("Capital of France?"), ask("Capital?"), ask("broken\nline")])
    assert [o.text if isinstance(o, Completion) else o.reason for o in found] == ["Paris", "Which?", "timeout"]
    with pytest.raises(ConfigError, match="no pattern of the script fits 'Hello'"):
        complete(engine, [ask("Hello")])


def test_patterns_look_at_the_last_message_only() -> None:
    engine = FakeEngine({"brief": "system", ".*": "other"})
    [found] = complete(engine, [ask("Hello")])
    assert isinstance(found, Completion)
    assert found.text == "other"


def test_a_function_sees_the_whole_request() -> None:
    engine = FakeEngine(lambda r: f"{r.prompt[0].content} {r.sampling.max_tokens}")
    [found] = complete(engine, [ask("x")])
    assert isinstance(found, Completion)
    assert found.text == "Be brief. 1024"


def test_think_blocks_are_parted_as_for_real_engines() -> None:
    [found] = complete(FakeEngine(["<think>hm</think>Paris"]), [ask("x y")])
    assert found == Completion("Paris", reasoning="hm", usage=Usage(4, 1))


def test_it_remembers_what_was_asked() -> None:
    engine = FakeEngine({".*": "x"})
    requests = [ask("a"), ask("b")]
    complete(engine, requests)
    assert engine.requests == requests


@pytest.mark.parametrize("script", [["x"] * 7, {".*": "x"}, lambda request: "x"])
def test_every_request_has_one_outcome(script: Script) -> None:
    assert len(complete(FakeEngine(script), [ask(str(n)) for n in range(7)])) == 7


def test_a_text_is_no_script() -> None:
    with pytest.raises(ConfigError, match="not a script"):
        FakeEngine("hello")
