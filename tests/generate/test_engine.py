"""The values of the protocol: keys, think blocks, limits of sampling, the synchronous door."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import ConfigError
from posttrain.generate.engine import (
    Completion,
    Engine,
    Failure,
    Fingerprint,
    Outcome,
    Outcomes,
    Request,
    Sampling,
    canonical_request,
    complete,
    request_key,
    split_think,
)
from posttrain.types import Message, ToolCall

MODEL = Fingerprint("fake", "m")
QUESTION = (Message("user", "Where?"),)


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_the_canonical_request_written_by_hand() -> None:
    request = Request((Message("user", "Caf\u00e9?"),), Sampling(max_tokens=5, seed=7))
    expected = (
        b'{"fingerprint":{"endpoint":"","engine":"fake","model":"m","options":"","template":""},'
        b'"prompt":[["user","Caf\\u00e9?",null,[]]],"sample":0,'
        b'"sampling":{"logprobs":null,"max_tokens":5,"seed":7,"stop":[],"temperature":0.0,"top_p":1.0},"tools":[]}'
    )
    assert canonical_request(MODEL, request) == expected
    assert request_key(MODEL, request) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        Request((Message("system", "Where?"),)),
        Request((Message("user", "Where"),)),
        Request((Message("user", "Where?", reasoning="hm"),)),
        Request((*QUESTION, Message("assistant", "", tool_calls=(ToolCall("f", "{}"),)))),
        Request(QUESTION, sample=1),
        *(
            Request(QUESTION, dataclasses.replace(Sampling(), **change))
            for change in (
                {"temperature": 0.5},
                {"top_p": 0.9},
                {"max_tokens": 9},
                {"seed": 0},
                {"logprobs": 0},
            )
        ),
    ],
    ids=repr,
)
def test_everything_that_decides_an_answer_changes_the_key(other: Request) -> None:
    assert request_key(MODEL, other) != request_key(MODEL, Request(QUESTION))


@pytest.mark.parametrize("field", Fingerprint._fields)
def test_every_field_of_the_fingerprint_changes_the_key(field: str) -> None:
    other = MODEL._replace(**{field: "other"})
    assert request_key(other, Request(QUESTION)) != request_key(MODEL, Request(QUESTION))


def test_what_does_not_decide_an_answer_does_not_change_the_key() -> None:
    weighted = Request((Message("user", "Where?", weight=0.5),), Sampling(temperature=0, top_p=1))
    assert request_key(MODEL, weighted) == request_key(MODEL, Request(QUESTION))
    negative_zero = Request(QUESTION, Sampling(temperature=-0.0))
    assert request_key(MODEL, negative_zero) == request_key(MODEL, Request(QUESTION))


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_two_texts_have_a_key_and_different_texts_different_keys(a: str, b: str) -> None:
    keys = {request_key(MODEL, Request((Message("user", text),))) for text in (a, b, a + "\ud83d")}
    assert len(keys) == len({a, b, a + "\ud83d"})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"logprobs": -1}, "logprobs -1"),
    ],
)
def test_impossible_sampling_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Sampling(**values)


def test_impossible_requests_are_named() -> None:
    with pytest.raises(ConfigError, match="empty prompt"):
        Request(())


# ---- think blocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "opened", "text", "reasoning"),
    [
        ("Paris.", False, "Paris.", None),
        (" Paris. ", False, " Paris. ", None),
        ("<think>hm</think>\n\nParis.", False, "Paris.", "hm"),
        ("\n<think>\nhm\n</think>Paris.\n", False, "Paris.\n", "hm"),
        ("<think>\n\n</think>\n\nParis.", False, "Paris.", ""),
        ("<think>a</think><think>b</think>c", False, "c", "a\n\nb"),
        ("<think>still thinking", False, "", "still thinking"),
        ("<think>a</think> <think>still", False, "", "a\n\nstill"),
        ("hm\n</think>\nParis.", False, "Paris.", "hm"),
        ("hm", True, "", "hm"),
        ("hm</think>Paris.", True, "Paris.", "hm"),
        ("Write <think>x</think> around it.", False, "Write <think>x</think> around it.", None),
        ("<think>quote: <think></think>Paris. </think>", False, "Paris. </think>", "quote: <think>"),
        ("", False, "", None),
    ],
)
def test_think_blocks_are_kept_aside(reply: str, opened: bool, text: str, reasoning: str | None) -> None:
    assert split_think(reply, opened=opened) == (text, reasoning)


@given(st.text(), st.text(alphabet="ab <>/think\n"))
def test_a_text_behind_a_think_block_comes_out_whole(inside: str, text: str) -> None:
    if "<think>" in inside or "</think>" in inside or text.lstrip().startswith("<think>"):
        return
    split = split_think(f"<think>{inside}</think>{text}")
    assert split == (text.lstrip(), inside.strip())


# ---- the synchronous door ------------------------------------------------------------------------------------------


class Scripted:
    """Yields what it is told to."""

    fingerprint = MODEL

    def __init__(self, yields: Sequence[tuple[int, Outcome]]) -> None:
        self.yields = yields
        self.closed = False

    def generate(self, requests: Sequence[Request]) -> Outcomes:
        try:
            yield from self.yields
        finally:
            self.closed = True


A, B = Completion("a"), Failure("timeout", "b", 3)
TWO = [Request((Message("user", text),)) for text in "xy"]


def test_outcomes_come_back_in_the_order_of_the_requests() -> None:
    engine: Engine = Scripted([(1, B), (0, A)])
    seen: list[tuple[int, int]] = []
    assert complete(engine, TWO, lambda done, all_: seen.append((done, all_))) == [A, B]
    assert seen == [(1, 2), (2, 2)]


def test_no_requests_no_outcomes() -> None:
    assert complete(Scripted([]), []) == []


@pytest.mark.parametrize("yields", [[(0, A)], [(0, A), (0, B)], [(0, A), (2, B)], [(0, A), (-1, B)]])
def test_an_engine_that_loses_or_doubles_a_request_is_found_out(yields: list[tuple[int, Outcome]]) -> None:
    with pytest.raises(RuntimeError):
        complete(Scripted(yields), TWO)


def test_an_error_in_the_progress_call_closes_the_engine() -> None:
    engine = Scripted([(0, A), (1, B)])

    def fail(done: int, all_: int) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        complete(engine, TWO, fail)
    assert engine.closed
