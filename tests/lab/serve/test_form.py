"""What a body may ask of an endpoint, and what it is told otherwise: everything is obeyed or refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.generate.engine import Sampling, TokenLogprob, Usage
from posttrain.generate.voice import Piece
from posttrain.lab.serve.form import Written, wish_of
from posttrain.types import Message

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "m", "prompt": "Once"}


def test_a_whole_body() -> None:
    body = CHAT | {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
            {"role": "assistant", "content": "Hello", "name": None, "tool_calls": []},
            {"role": "user", "content": ""},
        ],
        "temperature": 0,
        "top_p": 0.5,
        "max_completion_tokens": 7,
        "seed": -3,
        "stop": "x",
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "presence_penalty": 0.0,
        "tools": None,
        "user": "somebody",
    }
    wish = wish_of(body, chat=True)
    assert wish.asked.said == (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", ""),
    )
    assert wish.asked.sampling == Sampling(0.0, 0.5, 7, -3, 2)
    assert (wish.asked.stops, wish.stream, wish.tells_usage) == (("x",), True, True)


def test_what_is_not_said() -> None:
    one, other = (wish_of(CHAT, chat=True) for _ in range(2))
    assert (one.asked.sampling.temperature, one.asked.sampling.top_p, one.asked.sampling.max_tokens) == (1.0, 1.0, 1024)
    assert one.asked.sampling.seed != other.asked.sampling.seed  # a draw each
    assert (one.stream, one.asked.sampling.logprobs) == (False, None)
    text = wish_of(TEXT | {"logprobs": 0}, chat=False)
    assert (text.asked.said, text.asked.sampling.max_tokens, text.asked.sampling.logprobs) == ("Once", 16, 0)
    assert wish_of(TEXT | {"prompt": [[5, 6]]}, chat=False).asked.said == (5, 6)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -1}, "frequency_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"tools": [{}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"top_k": 5}, "top_k"),
    ({"temprature": 0.5}, "temprature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"seed": "x"}, "seed"),
    ({"seed": 2**80}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": "\ud800"}, "stop"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options"),
    ({"model": None}, "model"),
    ({"prompt": "x"}, "prompt"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": ["Hi"]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
]


@pytest.mark.parametrize(("more", "named"), REFUSED)
def test_what_is_refused_is_named(more: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wish_of(CHAT | more, chat=True)
    assert caught.value.where == named


@pytest.mark.parametrize(
    "more", [{"prompt": ["a", "b"]}, {"prompt": []}, {"prompt": [-1]}, {"prompt": None}, {"prompt": 5}, {"echo": True}]
)
def test_prompts_that_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        wish_of(TEXT | more, chat=False)
    assert caught.value.where in more


@pytest.mark.parametrize("body", [None, [], "x", 5])
def test_a_body_that_is_no_object(body: Any) -> None:
    with pytest.raises(ConfigError, match="not a JSON object"):
        wish_of(body, chat=True)


def test_an_unknown_parameter_is_told_what_was_meant() -> None:
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        wish_of(CHAT | {"temprature": 1}, chat=True)


def test_what_can_not_happen_is_a_number_in_json() -> None:
    wish = wish_of(CHAT | {"logprobs": True}, chat=True)
    token = TokenLogprob("\ufffd", float("-inf"), ((" a", -0.5),))
    body = Written(wish, "id", 5).whole([Piece("x", "", (token,), "stop", Usage(3, 1))])
    (told,) = json.loads(json.dumps(body, allow_nan=False))["choices"][0]["logprobs"]["content"]
    assert (told["logprob"], told["bytes"]) == (-9999.0, None)
    assert told["top_logprobs"] == [{"token": " a", "logprob": -0.5, "bytes": [32, 97]}]


def test_thinking_that_a_stream_could_not_take_back_is_apart_in_a_whole_body() -> None:
    body = Written(wish_of(CHAT, chat=True), "id", 5).whole([Piece("one</think>two", "", (), "stop", Usage(1, 1))])
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("two", "one")
