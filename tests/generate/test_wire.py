"""The OpenAI format: bodies written by hand, answers of several servers, errors, and anything at all without a crash."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.generate.engine import Completion, Failure, Ids, Request, Sampling, SplitReply, TokenLogprob, Usage
from posttrain.generate.voice import Piece
from posttrain.generate.wire import (
    Answer,
    body_of,
    logprobs_of_text,
    most_tokens,
    read_answer,
    read_chunk,
    read_error,
    read_ids,
)
from posttrain.types import Message

# ---- writing -------------------------------------------------------------------------------------------------------


def test_a_chat_body_written_by_hand() -> None:
    request = Request(
        (Message("system", "Be brief."), Message("user", "Where?", weight=0.5)),
        Sampling(temperature=0.7, top_p=0.9, max_tokens=5, seed=7, logprobs=3),
    )
    assert body_of(request, "m", "max_completion_tokens", {"chat_template_kwargs": {"enable_thinking": False}}) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_completion_tokens": 5,
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 3,
        "chat_template_kwargs": {"enable_thinking": False},
    }


IDS = {
    "model": "m-3",
    "prompt": [5, 2, 9],
    "temperature": 0.7,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "max_tokens": 3,
    "ignore_eos": True,
    "stop_token_ids": [2, 7],
    "return_token_ids": True,
    "seed": 11,
    "logprobs": 0,
}


def test_a_body_of_token_ids_written_by_hand() -> None:
    """What the model's own settings of a server would cut, punish or end is said, so that nothing is."""
    sampling = Sampling(temperature=0.7, top_p=1.0, max_tokens=3, seed=11, logprobs=0)
    assert body_of(Request((), sampling, tokens=Ids((5, 2, 9), (2, 7))), "m-3", "max_tokens", {}) == IDS


def test_an_extra_field_of_null_takes_a_field_away() -> None:
    request = Request((Message("user", "x"),))
    body = body_of(request, "m", "max_tokens", {"temperature": None, "top_p": None, "reasoning_effort": "low"})
    messages = [{"role": "user", "content": "x"}]
    assert body == {"model": "m", "messages": messages, "max_tokens": 1024, "reasoning_effort": "low"}


def test_the_most_tokens_are_bytes_and_room_for_a_template() -> None:
    body = {"prompt": "\u4f60\u597d"}
    assert most_tokens(body, 7) == Usage(len('{"prompt": ""}') + 6 + 256, 7)
    assert most_tokens({"prompt": "\ud83d"}, 7).prompt_tokens > 256


# ---- reading -------------------------------------------------------------------------------------------------------


def ids_answer(**changes: Any) -> dict[str, Any]:
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1.25], "top_logprobs": [{"a": -0.5}, {"b": -1.25}]}
    choice = {"token_ids": [4, 7], "finish_reason": "stop", "logprobs": logprobs, "prompt_token_ids": [5, 2, 9]}
    return {"model": "m-3", "choices": [choice | changes], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def test_a_reply_by_its_ids() -> None:
    outcome = read_ids(json.dumps(ids_answer()).encode(), IDS).outcome
    assert isinstance(outcome, Completion)
    assert (outcome.ids, outcome.finish, outcome.usage) == ((4, 7), "stop", Usage(3, 2))
    assert [token.logprob for token in outcome.logprobs or ()] == [-0.5, -1.25]
    cut = ids_answer(token_ids=[4, 4, 4], finish_reason="length", prompt_token_ids=None)
    asked = {name: value for name, value in IDS.items() if name != "logprobs"}
    outcome = read_ids(json.dumps(cut).encode(), asked).outcome
    assert isinstance(outcome, Completion)
    assert (outcome.ids, outcome.finish, outcome.logprobs) == ((4, 4, 4), "length", None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (ids_answer() | {"model": "m-2"}, "'m-2', and 'm-3' was asked"),
        (ids_answer(token_ids=None), "return_token_ids"),
        (ids_answer(token_ids=[]), "return_token_ids"),
        (ids_answer(token_ids=["4", "7"]), "return_token_ids"),
        (ids_answer(prompt_token_ids=[1, 5, 2, 9]), "in the place of the prompt"),
        (ids_answer(token_ids=[4, 8]), "something else than its stop"),
        (ids_answer(token_ids=[7, 7]), "something else than its stop"),
        (ids_answer(finish_reason="length"), "something else than its stop"),
        (ids_answer(finish_reason="abort"), "something else than its stop"),
        (ids_answer(token_ids=[4, 4], finish_reason="length"), "less room"),
        (ids_answer(token_ids=[4, 4, 4, 7]), "to be the limit"),
        (ids_answer(logprobs=None), "log-probability"),
        (ids_answer(token_ids=[4, 4, 7]), "log-probability"),
        (ids_answer(logprobs={"tokens": ["a", "b"], "token_logprobs": [-0.5, None]}), "log-probability"),
        (ids_answer(logprobs={"tokens": ["a", "b"], "token_logprobs": [-0.5, float("nan")]}), "log-probability"),
        ({"error": {"message": "no"}}, "an error"),
    ],
)
def test_what_must_not_be_trained_on(wrong: dict[str, Any], said: str) -> None:
    answer = read_ids(json.dumps(wrong).encode(), IDS)
    assert isinstance(answer.outcome, Failure)
    assert answer.outcome.reason == "bad_response"
    assert said in answer.outcome.detail
    assert not answer.again, "it was computed and paid for"


def chat(choice: dict[str, Any], **body: Any) -> bytes:
    return json.dumps({"choices": [choice], **body}).encode()


def said(content: Any, finish: Any = "stop", **message: Any) -> bytes:
    return chat({"message": {"content": content, **message}, "finish_reason": finish})


def read(content: bytes, **how: Any) -> Completion:
    outcome = read_answer(content, **how).outcome
    assert isinstance(outcome, Completion), outcome
    return outcome


def reason_of(answer: Answer) -> str:
    assert isinstance(answer.outcome, Failure)
    return answer.outcome.reason


def detail_of(answer: Answer) -> str:
    assert isinstance(answer.outcome, Failure)
    return answer.outcome.detail


def test_an_answer_with_everything() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    body = chat({"message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}, usage=usage)
    assert read_answer(body) == Answer(Completion("Paris.", usage=Usage(5, 2)), Usage(5, 2))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (said("Paris.", "length"), Completion("Paris.", "length")),
        (said(None, "content_filter"), Completion("", "content_filter")),
        (said("x", None), Completion("x", "other")),
        (said("x", "eos"), Completion("x", "stop")),
        (said("x", ["odd"]), Completion("x", "other")),
        (said("<think>hm</think>\nParis."), Completion("Paris.", reasoning="hm")),
        (said("<think>hm", "length"), Completion("", "length", reasoning="hm")),
        (said("Paris.", reasoning_content="hm"), Completion("Paris.", reasoning="hm")),  # DeepSeek, vLLM
        (said("Paris.", reasoning="hm"), Completion("Paris.", reasoning="hm")),  # newer vLLM, OpenRouter, Ollama
        (said(None, "length", reasoning_content="hm"), Completion("", "length", reasoning="hm")),
        (said("a </think> tag", reasoning_content="hm"), Completion("a </think> tag", reasoning="hm")),
        (said("Paris.", reasoning_content=None), Completion("Paris.")),
        (said("Paris.", reasoning_content="", reasoning=""), Completion("Paris.")),
        (said([{"type": "text", "text": "Par"}, {"type": "text", "text": "is."}]), Completion("Paris.")),
        (
            said([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "P"}]),
            Completion("P", reasoning="hm"),
        ),
        (said(None, refusal="I can't."), Completion("I can't.")),
    ],
)
def test_answers_of_several_servers(body: bytes, expected: Completion) -> None:
    assert read(body) == expected


@pytest.mark.parametrize(
    "usage", [None, {}, [], {"prompt_tokens": 5}, {"prompt_tokens": -1, "completion_tokens": 2}, 7]
)
def test_usage_that_is_not_told_is_none(usage: Any) -> None:
    answer = read_answer(chat({"message": {"content": "x"}, "finish_reason": "stop"}, usage=usage))
    assert answer == Answer(Completion("x"), None)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "an empty body"),
        (b"<html>It works!</html>", "not JSON .*: <html>It works!</html>"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"choices": []}', "no choices"),
        (b'{"choices": {"0": 1}}', "no choices"),
        (b'{"choices": [null]}', "no choices"),
        (b'{"choices": [{}]}', "without message"),
        (b'{"choices": [{"message": {"content": 5}}]}', "content that is not text"),
        (b'{"choices": [{"message": {"content": "x", "reasoning": {"a": 1}}}]}', "reasoning that is not text"),
        (b'{"error": {"message": "upstream"}}', "an error in the place of an answer.*upstream"),
    ],
)
def test_a_whole_body_that_is_no_answer_says_why(body: bytes, words: str) -> None:
    outcome = read_answer(body).outcome
    assert isinstance(outcome, Failure)
    assert outcome.reason == "bad_response"
    assert re.search(words, outcome.detail)


def test_usage_of_an_unreadable_answer_is_read_all_the_same() -> None:
    body = json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}).encode()
    answer = read_answer(body)
    assert isinstance(answer.outcome, Failure)
    assert answer.usage == Usage(5, 2)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["choices", "message", "content", "text", "logprobs", "tokens", "tool_calls", "usage", "error", "reasoning"]
odd_bodies = st.recursive(
    json_values,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(NAMES), odd_bodies, max_size=5) | odd_bodies)
def test_any_json_is_an_outcome(value: Any) -> None:
    content = json.dumps(value).encode()
    assert isinstance(read_answer(content, wants_logprobs=True).outcome, Completion | Failure)
    assert read_error(500, content).outcome


@settings(max_examples=50)
@given(odd_bodies, odd_bodies)
def test_any_choice_is_an_outcome(content: Any, logprobs: Any) -> None:
    body = chat({"message": {"content": content}, "logprobs": logprobs})
    assert isinstance(read_answer(body, wants_logprobs=True).outcome, Completion | Failure)


@given(st.binary())
def test_any_bytes_are_an_outcome(content: bytes) -> None:
    assert isinstance(read_answer(content).outcome, Failure)
    assert reason_of(read_error(404, content)) == "invalid_request"


# ---- log-probabilities ---------------------------------------------------------------------------------------------

CHAT_FORM = {
    "content": [
        {
            "token": "m",
            "logprob": -0.1,
            "top_logprobs": [{"token": "M", "logprob": -2.4}, {"token": "m", "logprob": -0.1}],
        },
        {"token": "!", "logprob": -0.5, "top_logprobs": []},
    ]
}
RAW_FORM = {"tokens": ["m", "!"], "token_logprobs": [-0.1, -0.5], "top_logprobs": [{"M": -2.4, "m": -0.1}, None]}
READ = (TokenLogprob("m", -0.1, (("m", -0.1), ("M", -2.4))), TokenLogprob("!", -0.5))


@pytest.mark.parametrize("form", [CHAT_FORM, RAW_FORM])
def test_both_forms_are_read_best_first(form: dict[str, Any]) -> None:
    body = chat({"message": {"content": "m!"}, "finish_reason": "stop", "logprobs": form})
    assert read(body, wants_logprobs=True).logprobs == READ
    assert read(body).logprobs is None


@pytest.mark.parametrize(
    "form",
    [None, {}, {"content": None}, {"content": [{"token": "x"}]}, {"tokens": ["a"], "token_logprobs": [None]}, [1]],
)
def test_logprobs_that_are_not_there_or_unreadable_are_none_and_the_text_stays(form: Any) -> None:
    found = read(chat({"message": {"content": "m!"}, "finish_reason": "stop", "logprobs": form}), wants_logprobs=True)
    assert (found.text, found.logprobs) == ("m!", None)


def tokens(*texts: str) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(text, -float(number)) for number, text in enumerate(texts))


@pytest.mark.parametrize(
    ("spelt", "split", "kept"),
    [
        (("<think>", "m", "</think>", "\n\n", "m", "<|end|>"), SplitReply("m", "m"), ["m"]),
        (("hm", "</think>", "\nA", "B"), SplitReply("AB", "hm"), ["\nA", "B"]),
        (("A", "B"), SplitReply("AB", "apart"), ["A", "B"]),
        (("<think>", "hm"), SplitReply("", "hm"), []),
        (("hm", "</think>", "\ufffd", "\ufffd"), SplitReply("\u4f60", "hm"), None),
        (("A", "B"), SplitReply("other", None), ["A", "B"]),
    ],
)
def test_logprobs_are_those_of_the_text(spelt: tuple[str, ...], split: SplitReply, kept: list[str] | None) -> None:
    found = logprobs_of_text(tokens(*spelt), split)
    assert (None if found is None else [t.token for t in found]) == kept


# ---- errors --------------------------------------------------------------------------------------------------------


def error(code: str | None = None, message: str = "no", kind: str = "x") -> bytes:
    return json.dumps({"error": {"message": message, "code": code, "type": kind}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "reason", "again"),
    [
        (429, error("rate_limit_exceeded"), "rate_limited", True),
        (429, error("insufficient_quota"), "refused", False),
        (429, b"", "rate_limited", True),
        (500, b"<html>", "server_error", True),
        (503, error(), "server_error", True),
        (529, error(kind="overloaded_error"), "server_error", True),
        (408, error(), "timeout", True),
        (400, error("context_length_exceeded"), "invalid_request", False),
        (400, error("content_filter"), "refused", False),
        (400, error(kind="content_policy_violation"), "refused", False),
        (422, b'{"detail": "no such field"}', "invalid_request", False),
        (401, error(), "refused", False),
        (402, error(), "refused", False),
        (403, error(), "refused", False),
        (404, error(), "invalid_request", False),
    ],
)
def test_what_an_error_means(status: int, body: bytes, reason: str, again: bool) -> None:
    found = read_error(status, body)
    assert (reason_of(found), found.again) == (reason, again)
    assert f"status {status}" in detail_of(found)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (error(message="too\nlong"), "too long"),
        (b'{"error": "plain"}', "plain"),
        (b'{"message": "llama.cpp"}', "llama.cpp"),
        (b'{"detail": "FastAPI"}', "FastAPI"),
        (b"x" * 5_000, "x" * 200 + "..."),
        (b'{"error": {"message": "\\ud83d"}}', "?"),
    ],
)
def test_the_servers_words_are_kept(body: bytes, words: str) -> None:
    assert detail_of(read_error(400, body)) == f"status 400: {words}"


# ---- fields that a server refuses ----------------------------------------------------------------------------------

SENT = ("model", "messages", "temperature", "top_p", "max_tokens", "seed", "chat_template_kwargs")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (
            {
                "error": {
                    "message": "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported.",
                    "param": "temperature",
                    "code": "unsupported_value",
                }
            },
            "temperature",
        ),
        (
            {
                "error": {
                    "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
                    "param": "max_tokens",
                }
            },
            "max_tokens",
        ),
        (
            {
                "detail": [
                    {"type": "extra_forbidden", "loc": ["body", "top_p"], "msg": "Extra inputs are not permitted"}
                ]
            },
            "top_p",
        ),
        ({"error": {"message": "Unrecognized request argument supplied: seed", "param": None}}, "seed"),
        (
            {"message": "[{'type': 'extra_forbidden', 'loc': ('body', 'chat_template_kwargs')}] Extra inputs"},
            "chat_template_kwargs",
        ),
        ({"error": "temperature is deprecated for this model"}, "temperature"),
        # a value that is too large, another model, or somebody else's field is no refusal of a field
        (
            {
                "error": {
                    "message": "max_tokens is too large: 9000. This model supports at most 4096 completion tokens",
                    "param": "max_tokens",
                }
            },
            None,
        ),
        (
            {
                "error": {
                    "message": "This model's maximum context length is 4096 tokens, max_tokens is not allowed to exceed it"
                }
            },
            None,
        ),
        ({"error": {"message": "unknown model: j", "param": "model"}}, None),
        ({"error": {"message": "the field tool_choice is not supported", "param": "tool_choice"}}, None),
        ({"error": {"message": "bad request"}}, None),
    ],
)
def test_a_refused_field_is_named(body: Any, field: str | None) -> None:
    assert read_error(400, json.dumps(body).encode(), SENT).refused_field == field
    assert read_error(500, json.dumps(body).encode(), SENT).refused_field is None


# ---- chunks of a stream ----------------------------------------------------------------------------------------------


def of_chat(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


@pytest.mark.parametrize(
    ("chunk", "piece"),
    [
        (of_chat(role="assistant", content=None), Piece()),
        (of_chat(content="a"), Piece("a")),
        (of_chat(reasoning_content="b"), Piece("", "b")),
        ({"choices": [{"text": "c", "finish_reason": None}]}, Piece("c")),
        ({"choices": [{"delta": {}, "finish_reason": "length"}]}, Piece(finish="length")),
        ({"choices": [{"delta": {}, "finish_reason": "weird"}]}, Piece(finish="other")),
        ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}, Piece(usage=Usage(3, 2))),
        ({"choices": None, "usage": None}, Piece()),
        ({}, Piece()),
    ],
)
def test_a_chunk_is_what_a_reply_becomes_longer_by(chunk: dict[str, Any], piece: Piece) -> None:
    assert read_chunk(chunk) == piece


def test_log_probabilities_of_a_chunk_are_those_that_were_asked_for() -> None:
    likely = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]
    told = [{"token": "a", "logprob": -0.5, "top_logprobs": likely}, {"token": "", "logprob": -3.0}]
    chunk = {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": told}}]}
    assert read_chunk(chunk).logprobs == ()  # type: ignore[union-attr]
    assert read_chunk(chunk, 1).logprobs == (TokenLogprob("a", -0.5, (("a", -0.5),)),)  # type: ignore[union-attr]
    assert read_chunk(chunk, 0).logprobs == (TokenLogprob("a", -0.5, ()),)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": 400, "message": "too long"}, "invalid_request"),
        ({"code": None, "message": "m", "type": "server_error"}, "server_error"),
        ("words", "server_error"),
    ],
)
def test_an_error_in_a_stream_is_a_failure(error: Any, reason: str) -> None:
    found = read_chunk({"error": error})
    assert isinstance(found, Failure)
    assert found.reason == reason


@settings(max_examples=40)
@given(odd_bodies, odd_bodies, json_values, odd_bodies)
def test_any_chunk_is_a_piece_or_a_failure(delta: Any, logprobs: Any, finish: Any, whole: Any) -> None:
    choice = {"delta": delta, "text": whole, "logprobs": logprobs, "finish_reason": finish}
    for chunk in (whole, {"choices": [choice]}, {"choices": whole}, {"choices": [whole]}, {"error": whole}):
        assert isinstance(read_chunk(chunk, 2), Piece | Failure)
