"""An endpoint as clients meet it: the official client over a socket, and whoever should not get in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from posttrain.encode.template import load_template, load_tokenizer
from posttrain.generate import decode
from posttrain.generate.engine import Completion, Request, Sampling, complete
from posttrain.generate.local import LocalEngine
from posttrain.generate.openai import Endpoint, OpenAIEngine
from posttrain.generate.voice import Voice
from posttrain.generate.voices import LocalVoice
from posttrain.lab import chat
from posttrain.lab.chat import open_voice
from posttrain.lab.serve.app import Door, create_app
from posttrain.model.targets import resolve_target
from posttrain.types import Message

pytestmark = pytest.mark.demo_model
NAME = "runs/tiny/sft"
LOOPBACK = Door(loopback=True)
SAY = [{"role": "user", "content": "What comes after 1? 你好"}]


@contextlib.contextmanager
def served(voice: Voice, door: Door = LOOPBACK) -> Iterator[str]:
    """The URL of a running endpoint."""
    server = uvicorn.Server(uvicorn.Config(create_app(voice, NAME, door), port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def voice(tiny_model: Path) -> Iterator[LocalVoice]:
    with contextlib.closing(open_voice(str(tiny_model), None, None, slots=3)) as voice:
        assert isinstance(voice, LocalVoice)
        yield voice


@pytest.fixture(scope="module")
def url(voice: LocalVoice) -> Iterator[str]:
    with served(voice) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none needed", max_retries=0, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def engine(voice: LocalVoice, tiny_model: Path) -> LocalEngine:
    lineage = resolve_target(str(tiny_model))
    return LocalEngine(voice._model, lineage.template, lineage.stops, "tiny")


def reply_of(engine: LocalEngine, **sampling: Any) -> Completion:
    (outcome,) = complete(engine, [Request((Message("user", SAY[0]["content"]),), Sampling(**sampling))])
    assert isinstance(outcome, Completion)
    return outcome


# ---- the official client ---------------------------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "posttrain"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_replies_are_those_of_the_local_engine_and_the_chat(
    temperature: float, client: openai.OpenAI, engine: LocalEngine, voice: LocalVoice
) -> None:
    own = reply_of(engine, temperature=temperature, max_tokens=24, seed=5, logprobs=3)
    found = client.chat.completions.create(
        model=NAME, messages=SAY, temperature=temperature, max_tokens=24, seed=5, logprobs=True, top_logprobs=3
    )  # fmt: skip
    (choice,) = found.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (own.text, "assistant", own.finish)
    assert own.usage is not None
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == own.usage
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    told = [(t.token, t.logprob, tuple((o.token, o.logprob) for o in t.top_logprobs)) for t in choice.logprobs.content]
    assert told == [tuple(token) for token in own.logprobs or ()]
    sampling = Sampling(temperature, max_tokens=24, seed=5)
    assert "".join(chat.stream(voice, [Message("user", SAY[0]["content"])], sampling)) == own.text


def test_our_own_client_reads_it_for_judging(url: str, engine: LocalEngine) -> None:
    asked = Request((Message("user", SAY[0]["content"]),), Sampling(temperature=1.0, max_tokens=8, seed=2, logprobs=2))
    (own,) = complete(engine, [asked])
    (found,) = complete(OpenAIEngine(Endpoint(url=url, model=NAME)), [asked])
    assert found == own


def test_a_stream_is_the_same_reply_in_pieces(client: openai.OpenAI, engine: LocalEngine) -> None:
    own = reply_of(engine, temperature=1.0, max_tokens=24, seed=5, logprobs=0)
    with client.chat.completions.create(
        model=NAME, messages=SAY, temperature=1.0, max_completion_tokens=24, seed=5, logprobs=True, stream=True,
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        chunks = list(stream)
    *said, usage = chunks
    assert usage.choices == []
    assert usage.usage is not None
    assert own.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == own.usage
    assert all(chunk.usage is None for chunk in said)
    assert said[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == own.text
    assert [chunk.choices[0].finish_reason for chunk in said] == [None] * (len(said) - 1) + [own.finish]
    told = [t for c in said for t in (c.choices[0].logprobs.content if c.choices[0].logprobs else None) or ()]
    assert [(t.token, t.logprob) for t in told] == [(t.token, t.logprob) for t in own.logprobs or ()]
    assert len(said) > 5


def test_a_text_is_gone_on_with(client: openai.OpenAI, tiny_model: Path) -> None:
    ids = load_tokenizer(tiny_model)("Once upon")["input_ids"]
    ask: dict[str, Any] = {"model": NAME, "max_tokens": 8, "temperature": 1.0, "seed": 1, "logprobs": 2}
    text = client.completions.create(prompt="Once upon", **ask)
    by_ids = client.completions.create(prompt=ids, **ask)
    with client.completions.create(prompt="Once upon", stream=True, **ask) as stream:
        pieces = list(stream)
    assert text.choices[0].text
    assert text.choices[0].text == by_ids.choices[0].text == "".join(piece.choices[0].text for piece in pieces)
    assert text.usage is not None
    assert (text.usage.prompt_tokens, text.usage.completion_tokens) == (len(ids), 8)
    assert text.choices[0].logprobs is not None
    assert "".join(text.choices[0].logprobs.tokens or ()) == text.choices[0].text
    assert [len(top) for top in text.choices[0].logprobs.top_logprobs or ()] == [2] * 8


def test_a_text_ends_a_reply(client: openai.OpenAI, engine: LocalEngine) -> None:
    own = reply_of(engine, temperature=1.0, max_tokens=24, seed=5).text
    stop = own[len(own) // 2 :][:5]
    ask: dict[str, Any] = {"model": NAME, "messages": SAY, "temperature": 1.0, "max_tokens": 24, "seed": 5}
    found = client.chat.completions.create(stop=[stop], **ask)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == (own[: own.index(stop)], "stop")
    with client.chat.completions.create(stop=stop, stream=True, **ask) as stream:
        assert "".join(c.choices[0].delta.content or "" for c in stream) == own[: own.index(stop)]


def test_several_at_once_are_the_same_as_one_by_one(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        said = [{"role": "user", "content": "word " * (1 + 7 * (seed % 5))}]
        found = client.chat.completions.create(
            model=NAME, messages=said, max_tokens=4 + 3 * seed, temperature=1.0, seed=seed  # type: ignore[arg-type]
        )  # fmt: skip
        return found.choices[0].message.content

    alone = [ask(seed) for seed in range(9)]
    with ThreadPoolExecutor(9) as threads:
        assert list(threads.map(ask, range(9))) == alone
    assert len(set(alone)) == 9


def test_a_short_reply_does_not_wait_for_a_long_one(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=NAME, messages=SAY, max_tokens=1900, temperature=1.0, stream=True
    ) as long:
        assert next(iter(long))
        client.chat.completions.create(model=NAME, messages=SAY, max_tokens=2)
        assert next(iter(long)).choices[0].finish_reason is None


@pytest.mark.parametrize("streams", [False, True])
def test_who_goes_away_ends_the_reply(streams: bool, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    choose = decode._choose
    monkeypatch.setattr(decode, "_choose", lambda *of: (passes.append(1), choose(*of))[1])
    body = {"model": NAME, "messages": SAY, "max_tokens": 1900, "temperature": 1.0, "seed": 3, "stream": streams}
    with httpx.Client() as client:
        if streams:
            with client.stream("POST", f"{url}/chat/completions", json=body) as response:
                lines = response.iter_lines()
                assert [json.loads(next(lines)[6:]) for _ in range(1)]
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{url}/chat/completions", json=body, timeout=httpx.Timeout(300, read=1))
    before = -1
    while before != len(passes):  # until no token comes any more
        before = len(passes)
        time.sleep(0.5)
    assert 0 < before < 1890


def test_nothing_is_left_when_the_process_ends(tiny_model: Path) -> None:
    with contextlib.closing(open_voice(str(tiny_model), None, None)) as voice, served(voice) as url:
        body = {"model": NAME, "messages": SAY, "max_tokens": 1900, "stream": True}
        with httpx.stream("POST", f"{url}/chat/completions", json=body) as response:
            assert next(response.iter_lines())
    assert isinstance(voice, LocalVoice)
    assert not voice._thread.is_alive()


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_is_not_supported_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=SAY, n=2)
    assert (caught.value.param, caught.value.type) == ("n", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=SAY)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="context 2048") as long:
            client.completions.create(model=NAME, prompt=[5] * 2048, stream=stream)
        assert long.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="knows 0 to"):
        client.completions.create(model=NAME, prompt=[10**6])


def test_a_model_without_a_template_goes_on_with_texts(tiny_model: Path, voice: LocalVoice) -> None:
    tokenizer = load_tokenizer(tiny_model)
    base = LocalVoice(voice._model, tokenizer, None, [(2,)], 1)
    with (
        contextlib.closing(base),
        served(base) as url,
        openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client,
    ):
        assert client.completions.create(model=NAME, prompt="Once", max_tokens=3).usage
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model=NAME, messages=SAY)


def test_a_template_that_refuses_is_told(tiny_model: Path, voice: LocalVoice, tmp_path: Path) -> None:
    (tmp_path / "refusing.jinja").write_text("{{ raise_exception('never') }}")
    template = load_template(load_tokenizer(tiny_model), tmp_path / "refusing.jinja")
    own = LocalVoice(voice._model, template.tokenizer, template, [(2,)], 1)
    with contextlib.closing(own), served(own) as url, openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="never") as caught:
            client.chat.completions.create(model=NAME, messages=SAY, stream=True)
        assert caught.value.param == "messages"


def test_a_failure_on_the_way_ends_a_stream_with_an_error_and_others_go_on(
    client: openai.OpenAI, voice: LocalVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: decode.Decoding) -> Any:
        raise RuntimeError("out of memory")

    with client.chat.completions.create(
        model=NAME, messages=SAY, max_tokens=1900, temperature=1.0, stream=True
    ) as stream:
        assert next(iter(stream))
        with monkeypatch.context() as patch:
            patch.setattr(decode.Decoding, "step", failing)
            with pytest.raises(openai.APIError, match="out of memory"):
                list(stream)
    assert client.chat.completions.create(model=NAME, messages=SAY, max_tokens=2).choices[0].finish_reason == "length"


ASK = {"model": NAME, "messages": SAY, "max_tokens": 1}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8000"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_no_web_page_gets_in(headers: dict[str, str], status: int, url: str) -> None:
    sent = {"Content-Type": "application/json"} | headers
    found = httpx.post(f"{url}/chat/completions", content=json.dumps(ASK), headers=sent, timeout=300)
    assert found.status_code == status, found.text
    if status != 200:
        assert found.json()["error"]["message"]
        assert "access-control-allow-origin" not in found.headers


def test_bodies_that_can_not_be_read(url: str) -> None:
    headers = {"Content-Type": "application/json"}
    for content, status in ((b"{", 400), (b"", 400), (b"[" * 100_000, 400), (b"\xff", 400), (b" " * (9 << 20), 413)):
        found = httpx.post(f"{url}/chat/completions", content=content, headers=headers, timeout=300)
        assert (found.status_code, found.json()["error"]["type"]) == (status, "invalid_request_error")
    assert httpx.get(f"{url}/chat/completions").status_code == 405
    assert httpx.get(f"{url}/nothing").json()["error"]["message"]


def test_a_key_is_asked_for(voice: LocalVoice) -> None:
    with served(voice, Door(loopback=False, key="secret")) as url:
        with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as client:
            assert list(client.models.list())
        for key in ("Secret", "secre", "secrets"):
            wrong = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
            with wrong, pytest.raises(openai.AuthenticationError):
                wrong.models.list()
        found = httpx.get(f"{url}/models", headers={"Authorization": b"Bearer \xe4"})
        assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")
        named = httpx.get(f"{url}/models", headers={"Authorization": "Bearer secret", "Host": "a-machine:8000"})
        assert named.status_code == 200


# ---- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_url() -> Iterator[tuple[str, str]]:
    """The URL of an endpoint over a GGUF file, and what its engine answers by itself."""
    pytest.importorskip("xllamacpp")
    from posttrain.assets import MODELS, fetch
    from posttrain.generate.voices import LlamaCppVoice

    voice = open_voice(str(fetch(MODELS["smollm2-135m-instruct"])), None, None, slots=2)
    assert isinstance(voice, LlamaCppVoice)
    request = Request((Message("user", "What is the capital of France?"),), Sampling(max_tokens=16, logprobs=2))
    with contextlib.closing(voice):
        (own,) = complete(voice._engine, [request])
        assert isinstance(own, Completion)
        with served(voice) as url:
            yield url, own.text


def test_a_gguf_file_streams_the_same(gguf_url: tuple[str, str]) -> None:
    url, own = gguf_url
    said = [{"role": "user", "content": "What is the capital of France?"}]
    ask: dict[str, Any] = {"model": NAME, "messages": said, "max_tokens": 16, "temperature": 0}
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        whole = client.chat.completions.create(logprobs=True, top_logprobs=0, **ask)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (own, "length")
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 16
        assert whole.choices[0].logprobs is not None
        assert "".join(t.token for t in whole.choices[0].logprobs.content or ()) == own
        with client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask) as stream:
            chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == own
        assert len(chunks) > 10
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 16
        cut = client.chat.completions.create(stop=["never", own[8:12]], **ask)
        assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (own[: own.index(own[8:12])], "stop")
        text = client.completions.create(model=NAME, prompt="Once upon a", max_tokens=4, temperature=0, logprobs=1)
        assert text.choices[0].text
        with pytest.raises(openai.BadRequestError, match="context"):
            client.completions.create(model=NAME, prompt="word " * 6000)


def test_a_gguf_reply_ends_with_its_client(gguf_url: tuple[str, str]) -> None:
    url, _ = gguf_url
    body = {"model": NAME, "messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 3000}
    for _ in range(3):  # more than there are slots: the last would wait for minutes
        with httpx.stream("POST", f"{url}/chat/completions", json=body | {"stream": True}, timeout=300) as response:
            assert next(response.iter_lines())
    start = time.monotonic()
    assert httpx.post(f"{url}/chat/completions", json=body | {"max_tokens": 1}, timeout=300).status_code == 200
    assert time.monotonic() - start < 200
