"""The llama.cpp engine on a real model: SmolLM2-135M-Instruct as a 4-bit GGUF file, the demo asset itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.errors import ConfigError, ModelError
from posttrain.generate.cache import CachedEngine, RequestCache
from posttrain.generate.engine import Completion, Failure, Outcome, Request, Sampling, complete
from posttrain.generate.llamacpp import LlamaCppEngine
from posttrain.types import Message

pytestmark = pytest.mark.demo_model


@pytest.fixture(scope="module")
def gguf() -> Path:
    from posttrain.assets import MODELS, fetch

    return fetch(MODELS["smollm2-135m-instruct"])


@pytest.fixture(scope="module")
def engine(gguf: Path) -> Iterator[LlamaCppEngine]:
    pytest.importorskip("xllamacpp")
    with LlamaCppEngine(gguf, context=256, slots=2, threads=1) as engine:
        yield engine


SHORT = Sampling(max_tokens=8)


def ask(text: str, sampling: Sampling = SHORT) -> Request:
    return Request((Message("user", text),), sampling)


def answered(outcome: Outcome) -> Completion:
    assert isinstance(outcome, Completion), outcome
    return outcome


def test_replies_and_limits(engine: LlamaCppEngine) -> None:
    requests = [
        ask("What is the capital of France? Answer in one word."),
        ask("Count from one to ten.", Sampling(max_tokens=4)),
        ask("你好", Sampling(max_tokens=5)),
    ]
    short, cut, chinese = map(answered, complete(engine, requests))
    assert "Paris" in short.text or short.finish == "length"
    assert (cut.finish, cut.usage.completion_tokens if cut.usage else None) == ("length", 4)
    assert chinese.usage is not None
    assert chinese.usage.prompt_tokens > 5


def test_greedy_repeats_and_seeds_decide(engine: LlamaCppEngine) -> None:
    drawn = Sampling(temperature=1.5, max_tokens=12, seed=1)
    other = Sampling(temperature=1.5, max_tokens=12, seed=2)
    first = [answered(o).text for o in complete(engine, [ask("Say something.", s) for s in (drawn, other)])]
    again = [answered(o).text for o in complete(engine, [ask("Say something.", s) for s in (drawn, other)])]
    assert first == again
    assert first[0] != first[1]


def test_logprobs(engine: LlamaCppEngine) -> None:
    (found,) = complete(engine, [ask("Hello!", Sampling(max_tokens=4, logprobs=2))])
    tokens = answered(found).logprobs
    assert tokens is not None
    assert "".join(token.token for token in tokens) == answered(found).text
    assert all(token.logprob <= 0 and len(token.top) == 2 for token in tokens)
    assert all(token.logprob == token.top[0][1] for token in tokens)  # greedy takes the likeliest
    (found,) = complete(engine, [ask("Hello!", Sampling(max_tokens=4, logprobs=0))])
    alone = answered(found).logprobs or ()
    assert [(token.token, token.top) for token in alone] == [(token.token, ()) for token in tokens]


def test_a_prompt_that_does_not_fit_is_a_failure_of_its_own(engine: LlamaCppEngine) -> None:
    long, short = complete(engine, [ask("word " * 400), ask("Hi")])
    assert isinstance(long, Failure)
    assert long.reason == "invalid_request"
    assert "context" in long.detail
    assert answered(short).text


def test_the_cache_knows_the_file(engine: LlamaCppEngine, tmp_path: Path) -> None:
    with RequestCache(tmp_path / "cache.sqlite") as cache:
        (first,) = complete(CachedEngine(engine, cache), [ask("Hi")])
        (second,) = complete(CachedEngine(engine, cache), [ask("Hi")])
    assert (answered(second).text, answered(second).cached) == (answered(first).text, True)
    assert engine.fingerprint.model.startswith("SmolLM2-135M-Instruct.Q4_1.gguf:")


def test_bad_files_and_closed_engines(tmp_path: Path, gguf: Path) -> None:
    pytest.importorskip("xllamacpp")
    with pytest.raises(ModelError, match="can't read this file"):
        LlamaCppEngine(tmp_path / "none.gguf", 64, 1)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but no more")
    with pytest.raises(ModelError, match="can't load this file") as caught:
        LlamaCppEngine(broken, 64, 1)
    assert str(broken) in str(caught.value)
    engine = LlamaCppEngine(gguf, context=64, slots=1, threads=1)
    engine.close()
    with pytest.raises(ConfigError, match="closed"):
        complete(engine, [ask("Hi")])


def test_without_the_package_the_error_names_the_extra(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ConfigError, match=r"posttrain\[llamacpp\]"):
        LlamaCppEngine(gguf, 64, 1)
