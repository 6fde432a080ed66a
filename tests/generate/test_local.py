"""The engine for a model in this process: the protocol's promises on a real tokenizer, by comparison with decoding itself."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from decoding import replies
from posttrain.encode.template import ChatTemplate, load_template, load_tokenizer
from posttrain.encode.tokens import encode_prompt
from posttrain.generate import local
from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.decode import NewToken
from posttrain.generate.engine import Completion, Failure, Outcome, Request, Sampling, Usage, complete
from posttrain.generate.local import LocalEngine
from posttrain.model.load import load_model
from posttrain.types import Message

STOPS = [(2,)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> nn.Module:
    return load_model(tiny_model, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> ChatTemplate:
    return load_template(load_tokenizer(tiny_model), None)


@pytest.fixture
def engine(model: nn.Module, template: ChatTemplate) -> LocalEngine:
    return LocalEngine(model, template, STOPS, "tiny", slots=3)


def ask(text: str, **sampling: Any) -> Request:
    return Request((Message("user", text),), Sampling(**{"max_tokens": 6} | sampling))


def scripted(texts: list[str], template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let decoding say given texts, each ended by the stop, with limits obeyed as decoding does."""

    def decode(model: Any, prompts: Any, stops: Any, samplings: Any, slots: int) -> Any:
        for place, text in enumerate(texts):
            ids: list[int] = []
            for token in [*template.tokenizer(text, add_special_tokens=False)["input_ids"], 2]:
                ids.append(token)
                finish = "stop" if token == 2 else "length" if len(ids) == samplings[place].max_tokens else None
                yield NewToken(place, token, finish)
                if finish:
                    break

    monkeypatch.setattr(local, "decode", decode)


def texts_of(outcomes: list[Outcome]) -> list[str]:
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    return [outcome.text for outcome in outcomes if isinstance(outcome, Completion)]


def test_outcomes_are_what_decoding_says(engine: LocalEngine, model: nn.Module, template: ChatTemplate) -> None:
    requests = [
        ask("Hi"),
        ask("你好，世界", max_tokens=9),
        ask("Why?", temperature=1.0, seed=5),
        ask("Hi", max_tokens=1),
    ]
    outcomes = complete(engine, requests)
    for request, outcome in zip(requests, outcomes, strict=True):
        assert isinstance(request.prompt, tuple)
        prompt = encode_prompt(request.prompt, template)
        (reply,) = replies(model, [prompt], STOPS, [replace(request.sampling, seed=request.sampling.seed or 0)])
        assert isinstance(outcome, Completion)
        assert outcome.text == template.tokenizer.decode(reply.ids, skip_special_tokens=True)
        assert outcome.finish == reply.finish
        assert outcome.usage == Usage(len(prompt), len(reply.ids) + (reply.finish == "stop"))


def test_draws_differ_by_sample_and_repeat_by_seed(engine: LocalEngine) -> None:
    requests = [replace(ask("Say something", temperature=1.5, max_tokens=12, seed=3), sample=k) for k in range(4)]
    first = texts_of(complete(engine, requests))
    assert first == texts_of(complete(engine, requests))
    assert first == texts_of(complete(engine, [*requests, ask("x")]))[:4]
    assert len(set(first)) == 4


def test_think_blocks_and_limits(engine: LocalEngine, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [
        "<think>hm 🎉</think>The answer.",
        "a long reply that is cut",
        "<think>never ends",
    ]
    scripted(said, template, monkeypatch)
    outcomes = complete(
        engine,
        [
            ask("2", max_tokens=99),
            ask("3", max_tokens=3),
            ask("4", max_tokens=4),
        ],
    )
    found = [o for o in outcomes if isinstance(o, Completion)]
    assert (found[0].text, found[0].reasoning) == ("The answer.", "hm 🎉")
    assert [o.finish for o in found] == ["stop", "length", "length"]
    assert said[1].startswith(found[1].text)
    assert (found[2].text, found[2].reasoning) == ("", "never ends"[: len(found[2].reasoning or "")])


def test_logprobs(engine: LocalEngine) -> None:
    (outcome,) = complete(engine, [ask("Hi", logprobs=2)])
    assert isinstance(outcome, Completion)
    assert outcome.logprobs is not None
    assert "".join(token.token for token in outcome.logprobs) == outcome.text
    assert all(token.logprob == token.top[0][1] <= 0 and len(token.top) == 2 for token in outcome.logprobs)
    (plain,) = complete(engine, [ask("Hi")])
    assert isinstance(plain, Completion)
    assert plain.logprobs is None


def test_a_prompt_without_room_is_a_failure_and_the_others_are_answered(engine: LocalEngine) -> None:
    room = engine._room()
    assert room is not None
    outcomes = complete(engine, [ask("word " * (room + 5)), ask("Hi")])
    assert isinstance(outcomes[0], Failure)
    assert outcomes[0].reason == "invalid_request"
    assert f"context {room}" in outcomes[0].detail
    assert isinstance(outcomes[1], Completion)


def test_what_the_model_can_not_answer_is_a_typed_failure_of_that_request(
    engine: LocalEngine, model: nn.Module, tiny_model: Path, template: ChatTemplate
) -> None:
    alone = texts_of(complete(engine, [ask("Hi"), ask("Ho")]))
    poisoned = load_model(tiny_model, torch.float32, torch.device("cpu")).requires_grad_(False)
    zebra = template.tokenizer(" zebra", add_special_tokens=False)["input_ids"][0]
    poisoned.set_input_embeddings(copy.deepcopy(poisoned.get_input_embeddings()))  # no longer tied to the head
    poisoned.get_input_embeddings().weight[zebra] = torch.nan
    outcomes = complete(
        LocalEngine(poisoned, template, STOPS, "x", slots=2), [ask("Hi"), ask("a zebra"), ask("Ho", max_tokens=6)]
    )
    assert texts_of([outcomes[0], outcomes[2]]) == alone
    assert isinstance(outcomes[1], Failure)
    assert outcomes[1].reason == "not_finite"
    poisoned.set_input_embeddings(nn.Embedding(200, 48))  # a model of another tokenizer
    (outcome,) = complete(LocalEngine(poisoned, template, STOPS, "x"), [ask("你好，世界")])
    assert isinstance(outcome, Failure)
    assert outcome.reason == "invalid_request"
    assert "the model knows 0 to 199" in outcome.detail


def test_a_cached_engine_asks_once(engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RequestCache(tmp_path / "cache.sqlite") as cache:
        first = complete(CachedEngine(engine, cache), [ask("Hi"), ask("Ho")])
        monkeypatch.setattr(local, "decode", None)  # nothing may be decoded again
        again = complete(CachedEngine(engine, cache), [ask("Ho"), ask("Hi")])
    assert texts_of(again) == texts_of(first)[::-1]
    assert all(isinstance(outcome, Completion) and outcome.cached for outcome in again)


def test_the_fingerprint_tells_models_templates_and_types_apart(
    engine: LocalEngine, model: nn.Module, tiny_model: Path, template: ChatTemplate
) -> None:
    same = LocalEngine(model, load_template(load_tokenizer(tiny_model), None), STOPS, "tiny")
    assert engine.fingerprint == same.fingerprint
    thinking = ChatTemplate(template.tokenizer, "{{ messages }}", template.name)
    other = load_model(tiny_model, torch.bfloat16, torch.device("cpu"))
    prints = {
        engine.fingerprint,
        LocalEngine(model, template, STOPS, "other").fingerprint,
        LocalEngine(model, thinking, STOPS, "tiny").fingerprint,
        LocalEngine(other, template, STOPS, "tiny").fingerprint,
    }
    assert len(prints) == 4


def test_closing_stops_the_work(engine: LocalEngine, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def endless(model: Any, prompts: Any, *rest: Any) -> Any:
        nonlocal made
        yield NewToken(0, 5, "length")
        made += 1
        yield NewToken(1, 5, "length")

    monkeypatch.setattr(local, "decode", endless)
    outcomes = engine.generate([ask("a"), ask("b")])
    index, _ = next(outcomes)
    outcomes.close()
    assert (index, made) == (0, 0)
