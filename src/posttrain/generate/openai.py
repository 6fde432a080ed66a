"""Any OpenAI-compatible server as an engine: OpenAI, vLLM, llama.cpp, Ollama and the like; or several that serve the same model.

    request -> place at a server (limiter) -> reservation (budget) -> send -> read -> settle and ledger -> outcome, or back off and again

What is asked again: 429, 408, 5xx, timeouts, and connections that fail before a whole answer was received. An answer whose
body was received in full is final, also where it can't be read (``bad_response``): it was billed, and asking again would pay
twice.

A request that timed out, or whose connection broke after it was sent, may have been answered and billed on the other side. It is
asked again, its full reservation stays counted against the budget, and its line in the ledger has no price. Every attempt
carries the same ``Idempotency-Key`` (the key of the request), so a gateway that honours it bills once. A process that is killed
leaves the calls under way out of the ledger: at most ``concurrency`` of them a server.

Of several servers the least busy one is asked, and what has to be asked again goes to another one. The first of the list names them
all in fingerprint and cache: which one answered is nobody's business, and others may join or leave while it stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import json
import logging
import os
import queue
import random
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx

from posttrain.errors import ConfigError
from posttrain.generate import cost
from posttrain.generate.cost import Budget, Call, CallOutcome, Caps, Prices, Spending
from posttrain.generate.engine import (
    Completion,
    Failure,
    FailureReason,
    Fingerprint,
    Outcome,
    Outcomes,
    Request,
    Usage,
    request_key,
)
from posttrain.generate.limiter import Server, Servers, Sign, backoff, retry_after
from posttrain.generate.shared_budget import SharedBudget
from posttrain.generate.voice import LOOK_INTERVAL
from posttrain.generate.wire import (
    LIMITS,
    OURS,
    UNCUT,
    Answer,
    body_of,
    most_tokens,
    read_answer,
    read_error,
    read_ids,
    read_models,
)

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible server, or several with the same model, and how to treat each of them."""

    url: str | tuple[str, ...]
    """Base URL, as ``http://localhost:8000/v1``; ``/v1`` is added where there is no path. Of several servers all; the first names them."""
    model: str
    """Name of the model as the server knows it."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; None = none is sent. The key itself is stored nowhere."""
    concurrency: int = 16
    """At most this many requests at once for each server; the limiter goes below it when the server is overloaded."""
    request_timeout: float = 300.0
    """Seconds from sending one request to its whole answer."""
    attempts: int = 12
    """At most this many times one request is sent."""
    first_backoff: float = 0.5
    """Upper bound of the first wait in seconds; it doubles with every failure in a row."""
    longest_backoff: float = 60.0
    """Seconds the bound never exceeds."""
    longest_silence: float = 300.0
    """Seconds of ``Retry-After`` we are ready to wait; a longer one ends the requests as rate_limited."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the limit in chat requests; OpenAI's reasoning models want ``max_completion_tokens``."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request body (``{"chat_template_kwargs": {"enable_thinking": false}}``); None takes one away (``{"temperature": None}``)."""

    def __post_init__(self) -> None:
        bases_of(self.url)
        for name in self.extra_body:
            if name in OURS:
                fix = "the request and its sampling set it"
                raise ConfigError(f"{name!r} can't be set here", where=f"extra_body.{name}", fix=fix)

    @property
    def bases(self) -> tuple[str, ...]:
        """The URLs that ``/chat/completions`` is put behind, one of each server."""
        return bases_of(self.url)

    @property
    def base(self) -> str:
        """That of the first server."""
        return self.bases[0]


def bases_of(urls: str | Sequence[str]) -> tuple[str, ...]:
    """Base URLs as they are used, all different and at least one. Raises ConfigError where one is none, or they are not."""
    bases = [_base_of(url) for url in ([urls] if isinstance(urls, str) else urls)]
    if not bases:
        raise ConfigError("no server: the list of URLs is empty", where="url", fix="give http://host:port/v1")
    if twice := [base for place, base in enumerate(bases) if base in bases[:place]]:
        raise ConfigError(f"the same server twice: {twice[0]}", where="url", fix="name every server once")
    return tuple(bases)


def _base_of(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ConfigError(f"not a URL: {error}", where="url", fix="give http://host:port/v1") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"not a web address: {text!r}", where="url", fix="give http://host:port/v1")
    if url.userinfo or url.query:
        raise ConfigError(
            "the URL holds a user, password or query: it would be written to reports and cache keys",
            where="url",
            fix="give the address alone, and the key in an environment variable named by api_key_env",
        )
    if url.path.rstrip("/").endswith("/completions"):
        raise ConfigError(f"{text}: give the base URL", where="url", fix="leave /chat/completions or /completions away")
    return str(url.copy_with(path=url.path.rstrip("/") or "/v1"))


class _Connections:
    """Clients by server, each with one connection; whoever is done with one leaves it to the next.

    WHY a client each: the pool of a shared one looks at every connection at every request. At 32 connections that took 5.2 ms of
    processor time a request; with one connection each it is 1.8 ms.
    """

    def __init__(self, endpoint: Endpoint, secret: str | None) -> None:
        self._endpoint, self._secret = endpoint, secret
        self._tls = {base: _tls(base) for base in endpoint.bases}
        self._free: dict[str, list[httpx.AsyncClient]] = {base: [] for base in endpoint.bases}

    @contextlib.contextmanager
    def to(self, base: str) -> Iterator[httpx.AsyncClient]:
        """A client that nobody else uses meanwhile."""
        free = self._free[base]
        client = free.pop() if free else self._opened(base)
        try:
            yield client
        finally:
            free.append(client)

    def _opened(self, base: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(**_connection(self._endpoint, base, self._secret), verify=self._tls[base])

    async def close(self) -> None:
        """Close those that are free."""
        for client in itertools.chain(*self._free.values()):
            await client.aclose()


@dataclass(slots=True)
class _Job:
    """What one batch shares while it runs."""

    servers: Servers
    connections: _Connections
    secret: str | None
    reached: bool = False
    """There was a connection to a server in this batch."""
    answered: set[str] = field(default_factory=set)
    """The servers that have answered this batch at least once: address, key and model are right."""
    reported: set[str] = field(default_factory=set)
    """What it said when it had to be asked again."""


@dataclass(slots=True)
class _Ask:
    """A request with its key, the body that is sent at every attempt, and the most one attempt can cost."""

    key: str
    request: Request
    body: dict[str, Any]
    most: Usage
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class _Sent:
    """How one attempt ended."""

    answer: Answer
    sign: Sign
    counted: Usage | None
    """Tokens to count against the budget; None = the end was not seen: the reservation stays counted."""
    status: int | None = None
    wait: float | None = None
    """Retry-After in seconds."""
    reached: bool = True
    """There was a connection."""

    @property
    def well(self) -> bool:
        """Whether it shows a server that is there and works, however it answers."""
        outcome = self.answer.outcome
        return isinstance(outcome, Completion) or outcome.reason not in ("timeout", "connection", "server_error")


_NO_TOKENS = Usage(0, 0)
_NO_CAPS = Caps()
_TRIES_TO_REACH = 5
"""Attempts of one request after which a server that was never reached is taken for absent: some seconds, not minutes."""
_LISTS_WITHIN = 10.0
"""Seconds that one of several servers is given to list its models."""


class OpenAIEngine:
    """Answers requests over HTTP. Budget and ledger last as long as the engine; connections as long as a batch.

    ``caps`` need ``prices`` where they cap money. With a ``ledger`` the budget goes on from what the ledger holds, so a job
    that is restarted keeps its cap. ``seed`` fixes the jitter of the waits.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        prices: Prices | None = None,
        caps: Caps = _NO_CAPS,
        ledger: Path | None = None,
        seed: int | None = None,
    ) -> None:
        self.endpoint, self.ledger = endpoint, ledger
        self.budget: Budget | SharedBudget = Budget(
            caps, prices, cost.spent([] if ledger is None else cost.read_calls(ledger))
        )
        self._servers = [Server(base) for base in endpoint.bases]
        self._draw = random.Random(seed)

    @property
    def fingerprint(self) -> Fingerprint:
        """The model and the server, of several the first; never the key."""
        endpoint = self.endpoint
        options = json.dumps(dict(endpoint.extra_body), sort_keys=True) if endpoint.extra_body else ""
        return Fingerprint(engine="openai", model=endpoint.model, endpoint=self._servers[0].base, options=options)

    def generate(self, requests: Sequence[Request]) -> Outcomes:
        """Outcomes as they are there; see :class:`posttrain.generate.engine.Engine`.

        Raises:
            ConfigError: the variable of the key is not set, nobody is there, several servers hold different models, or the first
                answers say that key, address or model is wrong.
            RunError: the ledger can't be written.

        """
        if not requests:
            return
        endpoint = self.endpoint
        secret = secret_of(endpoint.api_key_env)
        if len(self._servers) > 1:
            self._check_models(secret)
        connections = _Connections(endpoint, secret)
        job = _Job(Servers(self._servers, endpoint.concurrency), connections, secret)
        waiting = iter(enumerate(requests))
        arrived: queue.SimpleQueue[tuple[int, Outcome] | Exception] = queue.SimpleQueue()

        async def work() -> None:
            try:
                for index, request in waiting:
                    arrived.put((index, await self._answer(request, job)))
            except Exception as error:
                arrived.put(error)

        at_once = endpoint.concurrency * len(self._servers)
        with _in_background([work] * min(at_once, len(requests)), connections.close):
            for _ in requests:
                found = _next_of(arrived)
                if isinstance(found, Exception):
                    raise found
                yield found

    async def _answer(self, request: Request, job: _Job) -> Outcome:
        """Ask until there is an outcome."""
        endpoint = self.endpoint
        body = body_of(request, endpoint.model, endpoint.max_tokens_field, endpoint.extra_body)
        ask = _Ask(
            request_key(self.fingerprint, request), request, body, most_tokens(body, request.sampling.max_tokens)
        )
        server: Server | None = None
        while True:
            if job.servers.silence > endpoint.longest_silence:
                problem = f"the server asks for {job.servers.silence:.0f} s without requests"
                return Failure("rate_limited", problem, ask.attempts)
            server, sent = await self._in_turn(ask, job, server)
            if sent is None:
                return Failure("budget", "the next call could go over the cap", ask.attempts)
            outcome = sent.answer.outcome
            if isinstance(outcome, Completion):
                return outcome
            self._check_setup(sent, outcome.detail, ask.attempts, server, job)
            if not sent.answer.again or ask.attempts >= endpoint.attempts:
                return replace(outcome, attempts=ask.attempts)
            if outcome.detail not in job.reported:  # who waits wants to know for what
                job.reported.add(outcome.detail)
                _log.warning("%s: %s; it is asked again", server.base, outcome.detail)
            elsewhere = job.servers.others(server)
            wait = None if elsewhere else sent.wait
            if (sent.reached or not elsewhere) and (wait is None or wait <= endpoint.longest_silence):
                await asyncio.sleep(self._pause(ask.attempts, wait))

    async def _in_turn(self, ask: _Ask, job: _Job, last: Server | None) -> tuple[Server, _Sent | None]:
        """Send once when limiter and budget let it pass, and note for the batch what it shows. None = over the cap."""
        place = await job.servers.enter(but=last)
        sign: Sign = "neither"
        try:
            reservation = await self.budget.reserve(ask.most)
            if reservation is None:
                return place.server, None
            ask.attempts += 1
            sent = _without_secret(await self._attempt(ask, reservation, place.server.base, job), job.secret)
            sign = sent.sign
        finally:
            job.servers.leave(place, sign)
        job.reached |= sent.reached
        job.servers.did(place.server, sent.well, reached=sent.reached)
        if sent.sign == "answered":
            job.answered.add(place.server.base)
        if sent.wait is not None:
            place.limiter.pause(sent.wait)
        return place.server, sent

    def _pause(self, attempts: int, retry_after: float | None) -> float:
        """Seconds before the next attempt; with Retry-After the limiter holds everyone, and the jitter spreads them."""
        jitter = backoff(attempts, self.endpoint.first_backoff, self.endpoint.longest_backoff, self._draw)
        return jitter if retry_after is None else retry_after + min(jitter, self.endpoint.first_backoff)

    async def _attempt(self, ask: _Ask, reservation: Spending, base: str, job: _Job) -> _Sent:
        """Send once, settle the reservation and write the line of the ledger, however it ends."""
        start = time.monotonic()
        try:
            with job.connections.to(base) as client:
                sent = await self._send(ask, client, base)
        except BaseException:  # cancelled: the batch was closed
            self._settle(ask, reservation, base, None, start)
            raise
        self._settle(ask, reservation, base, sent, start)
        return sent

    def _settle(self, ask: _Ask, reservation: Spending, base: str, sent: _Sent | None, start: float) -> None:
        prices = self.budget.prices
        usage = None if sent is None else sent.answer.usage
        if sent is None or sent.counted is None:
            counted = reservation
        else:
            counted = Spending(1, sum(sent.counted), prices.of(sent.counted) if prices else 0)
        self.budget.settle(reservation, counted)
        if self.ledger is None:
            return
        call = Call(
            key=ask.key,
            attempt=ask.attempts,
            outcome="cancelled" if sent is None else _named(sent.answer.outcome),
            status=None if sent is None else sent.status,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
            price=None if usage is None or prices is None else prices.of(usage) / cost.TRILLION,
            counted_tokens=counted.tokens,
            counted_price=counted.money / cost.TRILLION,
            seconds=round(time.monotonic() - start, 6),
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            server=base,
        )
        cost.append_call(self.ledger, call)

    async def _send(self, ask: _Ask, client: httpx.AsyncClient, base: str) -> _Sent:
        """One request over the wire."""
        content, timeout = json.dumps(ask.body).encode("ascii"), self.endpoint.request_timeout
        path = "chat/completions" if ask.request.tokens is None else "completions"
        try:
            # httpx counts from byte to byte: a server that drips would never time out
            async with asyncio.timeout(timeout):
                response = await client.post(path, content=content, headers={"Idempotency-Key": ask.key})
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
            return _failed("timeout", f"no whole answer within {timeout:g} s")
        except (httpx.ConnectTimeout, httpx.PoolTimeout):
            return _failed("timeout", f"no connection within {timeout:g} s", reached=False)
        except httpx.ConnectError as error:
            return _failed("connection", f"can't connect to {base}: {error}", reached=False)
        except httpx.DecodingError as error:
            # The body is here and can't be unpacked: it was sent in full, so it is not asked again.
            return _Sent(Answer(Failure("bad_response", f"a body that can't be decoded: {error}")), "answered", None)
        except httpx.TransportError as error:
            return _failed("connection", f"{type(error).__name__}: {error or 'the connection broke'}")
        status = response.status_code
        if response.is_success:
            if ask.request.tokens is not None:
                answer = read_ids(response.content, ask.body)
            else:
                answer = read_answer(response.content, wants_logprobs=ask.request.sampling.logprobs is not None)
            # A whole answer is billed, whether it can be read or not; where the server does not say how much, the most counts.
            return _Sent(answer, "answered", answer.usage, status)
        answer = read_error(status, response.content, ask.body)
        if response.is_redirect:
            detail = f"status {status}: the server redirects to {response.headers.get('location', '?')}"
            answer = Answer(Failure("invalid_request", detail))
        if not answer.again:
            return _Sent(answer, "neither", _NO_TOKENS, status)
        return _Sent(answer, "overloaded", _NO_TOKENS, status, wait=retry_after(response.headers))

    def _check_models(self, secret: str | None) -> None:
        """Raise where two servers say that they hold different models. One that says nothing is believed."""
        for server in self._servers:
            if server.models is None:
                server.models = _models_of(self.endpoint, server.base, secret)
        model, listed = self.endpoint.model, [server for server in self._servers if server.models]
        for one, other in itertools.combinations(listed, 2):
            held, beside = set(one.models or ()), set(other.models or ())
            if (model in held) != (model in beside) or (model not in held and not held & beside):
                here, there = (", ".join(repr(name) for name in sorted(names)[:3]) for names in (held, beside))
                problem = f"the servers hold different models: {one.base} has {here}, and {other.base} has {there}"
                fix = f"start the same model on both under the name {model!r}, or take one out of the list"
                raise ConfigError(problem, where="endpoint", fix=fix)

    def _check_setup(self, sent: _Sent, detail: str, attempts: int, server: Server, job: _Job) -> None:
        """Raise what is wrong for the whole batch: nobody there, no such address or model, a key that is not accepted.

        Only while nothing better was seen in this batch. Later the same answers are failures of single requests.
        """
        endpoint, field_refused, where = self.endpoint, sent.answer.refused_field, server.base
        if not job.reached and attempts >= min(_TRIES_TO_REACH, endpoint.attempts):
            problem, fix = f"no connection to the server ({detail})", "start the server or correct the URL"
            where = ", ".join(endpoint.bases)
        elif server.base in job.answered:
            return
        elif sent.status == 404:
            problem = f"the server does not know this address or the model {endpoint.model!r} ({detail})"
            fix = "correct the URL (most servers want it to end in /v1) or the model's name"
        elif sent.status == 401:
            problem, key = f"the server refuses access ({detail})", endpoint.api_key_env
            fix = "send a key: set api_key_env" if key is None else f"correct ${key}"
        elif field_refused is not None:
            problem = f"the server does not take the field {field_refused!r} of a request ({detail})"
            fix = _other_request(field_refused, endpoint)
        else:
            return
        raise ConfigError(problem, where=where, fix=fix)


@contextlib.contextmanager
def _in_background(
    work: Sequence[Callable[[], Coroutine[Any, Any, None]]], close: Callable[[], Coroutine[Any, Any, None]]
) -> Iterator[None]:
    """Work in the event loop of another thread, so that it also goes on beside a notebook's, and close.

    What is left at the end is cancelled.
    """
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(one()) for one in work]

    def run() -> None:
        with contextlib.closing(loop):
            loop.run_until_complete(asyncio.wait(tasks))
            loop.run_until_complete(close())

    with ThreadPoolExecutor(1) as thread:
        thread.submit(int).result()  # it is up before the work begins: an interrupted start would leave it running
        try:
            thread.submit(run)
            yield
        finally:
            for task in tasks:
                with contextlib.suppress(RuntimeError):  # the loop is closed: all work is done
                    loop.call_soon_threadsafe(task.cancel)


def _next_of(arrived: queue.SimpleQueue[T]) -> T:
    while True:
        with contextlib.suppress(queue.Empty):
            return arrived.get(timeout=LOOK_INTERVAL)


def _other_request(name: str, endpoint: Endpoint) -> str:
    """Which option sends a request without a field that a server refuses."""
    if name in LIMITS:
        other = LIMITS[1 - LIMITS.index(name)]
        return f"give the limit its other name: max_tokens_field: {other}"
    if name in ("logprobs", "top_logprobs"):
        return "this judge is read by its probabilities: take a server that gives them, or a prompt whose reply is read as text"
    if name in ("return_token_ids", "stop_token_ids", "ignore_eos", *UNCUT):
        return "take a server that goes on with token ids and tells ids, as vLLM does"
    if endpoint.extra_body.get(name) is not None:
        return f"take {name} out of extra_body"
    return f"leave it away: extra_body: {{{name}: null}}"


def _failed(reason: FailureReason, detail: str, *, reached: bool = True) -> _Sent:
    """No answer was seen. Where there was a connection, it was sent, or may have been; else nothing can have been billed."""
    sign: Sign = "overloaded" if reason == "timeout" else "neither"
    return _Sent(Answer(Failure(reason, detail), again=True), sign, None if reached else _NO_TOKENS, reached=reached)


def _named(outcome: Outcome) -> CallOutcome:
    return "answer" if isinstance(outcome, Completion) else outcome.reason


def _without_secret(sent: _Sent, secret: str | None) -> _Sent:
    """Servers quote keys in their messages; messages end up in reports."""
    outcome = sent.answer.outcome
    if secret is None or isinstance(outcome, Completion):
        return sent
    hidden = replace(outcome, detail=outcome.detail.replace(secret, "***"))
    return replace(sent, answer=sent.answer._replace(outcome=hidden))


def secret_of(variable: str | None) -> str | None:
    """The key that an environment variable holds. Raises ConfigError where it holds none."""
    if variable is None:
        return None
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(
            f"the environment variable {variable} is not set", where="api_key_env", fix=f"export {variable}=<your key>"
        )
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise ConfigError(
            f"what the environment variable {variable} holds can't be a key: it has characters no header may have",
            where="api_key_env",
            fix=f"export {variable} again, without spaces, line ends or quotes",
        )
    return value


def _models_of(endpoint: Endpoint, base: str, secret: str | None) -> tuple[str, ...] | None:
    """See `Server.models`."""
    how = _connection(endpoint, base, secret) | {"timeout": httpx.Timeout(min(_LISTS_WITHIN, endpoint.request_timeout))}
    try:
        with httpx.Client(**how, verify=_tls(base)) as client:
            response = client.get("models")
    except httpx.ConnectError:
        return None
    except httpx.RequestError:
        return ()
    return read_models(response.content) or () if response.is_success else ()


def _tls(base: str) -> ssl.SSLContext | bool:
    """How a server's certificate is verified. Reading the certificates takes longer than a request: not where none is shown."""
    return httpx.URL(base).scheme == "https" and httpx.create_ssl_context()


def _connection(endpoint: Endpoint, base: str, secret: str | None) -> dict[str, Any]:
    """How every client reaches a server."""
    host = httpx.URL(base).host
    local = host in ("localhost", "::1") or host.startswith("127.")
    headers = {"Content-Type": "application/json"} | ({} if secret is None else {"Authorization": f"Bearer {secret}"})
    return {
        "base_url": base + "/",
        "headers": headers,
        "timeout": httpx.Timeout(endpoint.request_timeout),
        "trust_env": not local,  # a company's proxy has no way to this machine
    }


def command(endpoint: Endpoint, path: str, body: Mapping[str, Any] | None = None) -> bytes | Failure:
    """The body of what a server (of several the first) answers to a request for no reply, a GET where it has no body itself. What can be asked again is, for some seconds.

    Raises ConfigError where the variable of the key is not set.
    """
    secret, draw, attempts = secret_of(endpoint.api_key_env), random.Random(), min(_TRIES_TO_REACH, endpoint.attempts)
    with httpx.Client(**_connection(endpoint, endpoint.base, secret), verify=_tls(endpoint.base)) as client:
        for attempt in itertools.count(1):
            sent = _commanded(client, path, body)
            if isinstance(sent, bytes):
                return sent
            outcome, silence = _without_secret(sent, secret).answer.outcome, sent.wait or 0.0
            assert isinstance(outcome, Failure), "there was no answer"
            if not sent.answer.again or attempt == attempts or silence > endpoint.longest_silence:
                return replace(outcome, attempts=attempt)
            time.sleep(silence + backoff(attempt, endpoint.first_backoff, endpoint.longest_backoff, draw))
    raise AssertionError("the attempts end")


def _commanded(client: httpx.Client, path: str, body: Mapping[str, Any] | None) -> bytes | _Sent:
    """One command over the wire."""
    try:
        response = client.get(path) if body is None else client.post(path, json=dict(body))
    except httpx.RequestError as error:
        return _failed("connection", str(error) or type(error).__name__)
    if response.is_success:
        return response.content
    answer = read_error(response.status_code, response.content)
    return _Sent(answer, "neither", _NO_TOKENS, response.status_code, retry_after(response.headers))
