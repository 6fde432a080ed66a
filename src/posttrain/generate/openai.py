"""Any OpenAI-compatible server as an engine: OpenAI, vLLM, llama.cpp, Ollama and the like.

    request -> place (limiter) -> reservation (budget) -> send -> read -> settle and ledger -> outcome, or back off and again

What is asked again: 429, 408, 5xx, timeouts, and connections that fail before a whole answer was received. An answer whose
body was received in full is final, also where it can't be read (``bad_response``): it was billed, and asking again would pay
twice.

What can't be known: a request that timed out, or whose connection broke after it was sent, may have been answered and billed
on the other side. It is asked again, its full reservation stays counted against the budget, and its line in the ledger has
no price. Every attempt carries the same ``Idempotency-Key`` (the key of the request), so a gateway that honours it bills once.
A longer ``request_timeout`` is the way to fewer such calls. A process that is killed leaves the calls under way out of the ledger:
at most ``concurrency`` of them.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import os
import random
import ssl
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
from annotated_types import Ge, Gt

from posttrain.errors import ConfigError
from posttrain.generate.cost import NOTHING, TRILLION, Budget, Call, CallOutcome, Caps, Ledger, Prices, Spending
from posttrain.generate.engine import (
    Completion,
    Failure,
    FailureReason,
    Fingerprint,
    Outcome,
    Request,
    Usage,
    request_key,
)
from posttrain.generate.limiter import Limiter, Sign, backoff, retry_after
from posttrain.generate.wire import LIMITS, OURS, body_of, most_tokens, read_answer, read_error

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible server and how to treat it."""

    url: str
    """Base URL, as ``http://localhost:8000/v1``; ``/v1`` is added where there is no path."""
    model: str
    """Name of the model as the server knows it."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; null = none is sent. The key itself is stored nowhere."""
    identity: str | None = None
    """What stands for the URL in cache keys and reports; null = the URL. For servers whose port changes from day to day."""
    concurrency: Annotated[int, Ge(1)] = 16
    """At most this many requests at once; the limiter goes below it when the server is overloaded."""
    request_timeout: Annotated[float, Gt(0)] = 300.0
    """Seconds from sending one request to its whole answer."""
    deadline: Annotated[float, Gt(0)] | None = None
    """Seconds for a whole batch; what is not answered by then is a failure. null = none."""
    attempts: Annotated[int, Ge(1)] = 12
    """At most this many times one request is sent."""
    first_backoff: Annotated[float, Gt(0)] = 0.5
    """Upper bound of the first wait in seconds; it doubles with every failure in a row."""
    longest_backoff: Annotated[float, Gt(0)] = 60.0
    """Seconds the bound never exceeds."""
    longest_silence: Annotated[float, Ge(0)] = 300.0
    """Seconds of ``Retry-After`` we are ready to wait; a longer one ends the requests as rate_limited."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the limit in chat requests; OpenAI's reasoning models want ``max_completion_tokens``."""
    opens_think: bool = False
    """The template ends the prompt inside a think block, and the server leaves the thinking in the text."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request body (``{"chat_template_kwargs": {"enable_thinking": false}}``); null takes one away (``{"temperature": null}``)."""

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"not a URL: {error}", where="url", fix="give http://host:port/v1") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"not a web address: {self.url!r}", where="url", fix="give http://host:port/v1")
        if url.userinfo or url.query:
            raise ConfigError(
                "the URL holds a user, password or query: it would be written to reports and cache keys",
                where="url",
                fix="give the address alone, and the key in an environment variable named by api_key_env",
            )
        if url.path.rstrip("/").endswith("/completions"):
            raise ConfigError(
                f"{self.url}: give the base URL", where="url", fix="leave /chat/completions or /completions away"
            )
        for name in ("concurrency", "attempts", "request_timeout", "deadline", "first_backoff", "longest_backoff"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} {value}: must be above 0", where=name, fix="correct the value")
        taken = [name for name in self.extra_body if name in OURS]
        if taken:
            raise ConfigError(
                f"{taken[0]!r} can't be set here",
                where=f"extra_body.{taken[0]}",
                fix="the request and its sampling set it",
            )

    @property
    def base(self) -> str:
        """The URL that ``/chat/completions`` is put behind."""
        url = httpx.URL(self.url)
        return str(url.copy_with(path=url.path.rstrip("/") or "/v1"))


@dataclass(slots=True)
class _Job:
    """What one batch shares while it runs."""

    limiter: Limiter
    ends: float | None
    """Time of the event loop at which the batch must be over."""
    secret: str | None
    reached: bool = False
    """There was a connection to the server in this batch."""
    answered: bool = False
    """The server has answered this batch at least once: address, key and model are right."""
    reported: set[str] = field(default_factory=set)
    """What it said when it had to be asked again."""

    @property
    def over(self) -> bool:
        """The deadline has passed."""
        return self.ends is not None and asyncio.get_running_loop().time() >= self.ends


@dataclass(slots=True)
class _Ask:
    """A request with its key, the bytes that are sent at every attempt, and the most one attempt can cost."""

    key: str
    request: Request
    body: bytes
    most: Usage
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class _Sent:
    """How one attempt ended. ``again``: asking again is allowed and can help."""

    outcome: Outcome
    again: bool
    sign: Sign
    counted: Usage | None
    """Tokens to count against the budget; None = the end was not seen: the reservation stays counted."""
    status: int | None = None
    usage: Usage | None = None
    wait: float | None = None
    """Retry-After in seconds."""
    reached: bool = True
    """There was a connection."""
    field: str | None = None
    """The field of the body that the server does not take."""


_NO_TOKENS = Usage(0, 0)
_NO_CAPS = Caps()
_TRIES_TO_REACH = 5
"""Attempts of one request after which a server that was never reached is taken for absent: some seconds, not minutes."""


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
        self.endpoint = endpoint
        self.ledger = None if ledger is None else Ledger(ledger)
        self.budget = Budget(caps, prices, NOTHING if self.ledger is None else self.ledger.spent())
        self._draw = random.Random(seed)
        self._fingerprint = _fingerprint(endpoint)

    @property
    def fingerprint(self) -> Fingerprint:
        """The model and the server; never the key."""
        return self._fingerprint

    async def generate(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Outcome], None]:
        """Outcomes as they are there; see :class:`posttrain.generate.engine.Engine`.

        Raises:
            ConfigError: the variable of the key is not set, nobody is there, or the first answers say that key, address or model is wrong.
            RunError: the ledger can't be written.

        """
        if not requests:
            return
        endpoint = self.endpoint
        secret = _secret(endpoint.api_key_env)
        arrived: asyncio.Queue[tuple[int, Outcome] | Exception] = asyncio.Queue()
        waiting = iter(enumerate(requests))
        ends = None if endpoint.deadline is None else asyncio.get_running_loop().time() + endpoint.deadline
        job = _Job(Limiter(endpoint.concurrency), ends, secret)
        tls = httpx.create_ssl_context()  # reading the certificates takes longer than a request

        async def work() -> None:
            # WHY a client each: the pool of a shared one looks at every connection at every request. At 32 connections
            # that took 5.2 ms of processor time a request; with one connection each it is 1.8 ms.
            try:
                async with _client(endpoint, secret, tls) as client:
                    for index, request in waiting:
                        arrived.put_nowait((index, await self._answer(request, client, job)))
            except Exception as error:
                arrived.put_nowait(error)

        workers = [asyncio.create_task(work()) for _ in range(min(endpoint.concurrency, len(requests)))]
        try:
            for _ in requests:
                found = await arrived.get()
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)

    async def _answer(self, request: Request, client: httpx.AsyncClient, job: _Job) -> Outcome:
        """Ask until there is an outcome."""
        endpoint = self.endpoint
        body = body_of(request, endpoint.model, endpoint.max_tokens_field, endpoint.extra_body)
        ask = _Ask(
            request_key(self._fingerprint, request),
            request,
            json.dumps(body).encode("ascii"),
            most_tokens(body, request.sampling.max_tokens),
        )
        try:
            async with asyncio.timeout_at(job.ends):
                while True:
                    if job.limiter.silence > endpoint.longest_silence:
                        problem = f"the server asks for {job.limiter.silence:.0f} s without requests"
                        return Failure("rate_limited", problem, ask.attempts)
                    sent = await self._in_turn(ask, client, job)
                    if sent is None:
                        return Failure("budget", "the next call could go over the cap", ask.attempts)
                    if isinstance(sent.outcome, Completion):
                        return sent.outcome
                    self._check_setup(sent, sent.outcome.detail, ask.attempts, job)
                    if not sent.again or ask.attempts >= endpoint.attempts:
                        return Failure(sent.outcome.reason, sent.outcome.detail, ask.attempts)
                    if sent.outcome.detail not in job.reported:  # who waits wants to know for what
                        job.reported.add(sent.outcome.detail)
                        _log.warning("%s: %s; it is asked again", endpoint.base, sent.outcome.detail)
                    if sent.wait is None or sent.wait <= endpoint.longest_silence:
                        await asyncio.sleep(self._pause(ask.attempts, sent.wait))
        except TimeoutError:  # only the deadline gets here: an attempt's own timeout is an outcome
            return Failure("deadline", f"the batch was not done within {endpoint.deadline:g} s", ask.attempts)

    async def _in_turn(self, ask: _Ask, client: httpx.AsyncClient, job: _Job) -> _Sent | None:
        """Send once when limiter and budget let it pass, and note for the batch what it shows. None = over the cap."""
        number = await job.limiter.enter()
        sign: Sign = "neither"
        try:
            if job.over:  # a timeout strikes at the next real wait, which is after sending
                raise TimeoutError
            reservation = await self.budget.reserve(ask.most)
            if reservation is None:
                return None
            ask.attempts += 1
            sent = _without_secret(await self._attempt(ask, reservation, client), job.secret)
            sign = sent.sign
        finally:
            job.limiter.leave(number, sign)
        job.reached |= sent.reached
        job.answered |= sent.sign == "answered"
        if sent.wait is not None:
            job.limiter.pause(sent.wait)
        return sent

    def _pause(self, attempts: int, retry_after: float | None) -> float:
        """Seconds before the next attempt; with Retry-After the limiter holds everyone, and the jitter spreads them."""
        jitter = backoff(attempts, self.endpoint.first_backoff, self.endpoint.longest_backoff, self._draw)
        return jitter if retry_after is None else retry_after + min(jitter, self.endpoint.first_backoff)

    async def _attempt(self, ask: _Ask, reservation: Spending, client: httpx.AsyncClient) -> _Sent:
        """Send once, settle the reservation and write the line of the ledger, however it ends."""
        start = time.monotonic()
        try:
            sent = await self._send(ask, client)
        except BaseException:  # cancelled: the batch was closed or its deadline came
            self._settle(ask, reservation, "cancelled", None, start)
            raise
        outcome: CallOutcome = "answer" if isinstance(sent.outcome, Completion) else sent.outcome.reason
        self._settle(ask, reservation, outcome, sent, start)
        return sent

    def _settle(self, ask: _Ask, reservation: Spending, outcome: CallOutcome, sent: _Sent | None, start: float) -> None:
        prices = self.budget.prices
        usage = None if sent is None else sent.usage
        if sent is None or sent.counted is None:
            counted = reservation
        else:
            counted = Spending(1, sum(sent.counted), prices.of(sent.counted) if prices else 0)
        self.budget.settle(reservation, counted)
        if self.ledger is None:
            return
        self.ledger.append(
            Call(
                key=ask.key,
                attempt=ask.attempts,
                outcome=outcome,
                status=None if sent is None else sent.status,
                prompt_tokens=None if usage is None else usage.prompt_tokens,
                completion_tokens=None if usage is None else usage.completion_tokens,
                price=None if usage is None or prices is None else prices.of(usage) / TRILLION,
                counted_tokens=counted.tokens,
                counted_price=counted.money / TRILLION,
                seconds=round(time.monotonic() - start, 6),
                time=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            )
        )

    async def _send(self, ask: _Ask, client: httpx.AsyncClient) -> _Sent:
        """One request over the wire."""
        path = "completions" if isinstance(ask.request.prompt, str) else "chat/completions"
        timeout = self.endpoint.request_timeout
        try:
            # httpx counts from byte to byte: a server that drips would never time out
            async with asyncio.timeout(timeout):
                response = await client.post(path, content=ask.body, headers={"Idempotency-Key": ask.key})
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
            return _lost("timeout", f"no whole answer within {timeout:g} s")
        except (httpx.ConnectTimeout, httpx.PoolTimeout):
            return _unsent("timeout", f"no connection within {timeout:g} s")
        except httpx.ConnectError as error:
            return _unsent("connection", f"can't connect to {self.endpoint.base}: {error}")
        except httpx.DecodingError as error:
            # The body is here and can't be unpacked: it was sent in full, so it is not asked again.
            return _Sent(Failure("bad_response", f"a body that can't be decoded: {error}"), False, "answered", None)
        except httpx.TransportError as error:
            return _lost("connection", f"{type(error).__name__}: {error or 'the connection broke'}")
        if response.is_success:
            return self._read(ask.request, response)
        return self._rejected(response, json.loads(ask.body))

    def _read(self, request: Request, response: httpx.Response) -> _Sent:
        outcome, usage = read_answer(
            response.content,
            wants_logprobs=request.sampling.logprobs is not None,
            opened=self.endpoint.opens_think,
        )
        # A whole answer is billed, whether it can be read or not; where the server does not say how much, the most counts.
        return _Sent(outcome, False, "answered", usage, response.status_code, usage)

    def _rejected(self, response: httpx.Response, sent: Iterable[str]) -> _Sent:
        status = response.status_code
        reason, detail, again, field_refused = read_error(status, response.content, sent)
        if response.is_redirect:
            detail = f"status {status}: the server redirects to {response.headers.get('location', '?')}"
        return _Sent(
            Failure(reason, detail),
            again,
            "overloaded" if again else "neither",
            _NO_TOKENS,
            status,
            wait=retry_after(response.headers) if again else None,
            field=field_refused,
        )

    def _check_setup(self, sent: _Sent, detail: str, attempts: int, job: _Job) -> None:
        """Raise what is wrong for the whole batch: nobody there, no such address or model, a key that is not accepted.

        Only while nothing better was seen in this batch. Later the same answers are failures of single requests.
        """
        endpoint = self.endpoint
        if not job.reached and attempts >= min(_TRIES_TO_REACH, endpoint.attempts):
            raise ConfigError(
                f"no connection to the server ({detail})",
                where=endpoint.base,
                fix="start the server or correct the URL",
            )
        if sent.status == 404 and not job.answered:
            raise ConfigError(
                f"the server does not know this address or the model {endpoint.model!r} ({detail})",
                where=endpoint.base,
                fix="correct the URL (most servers want it to end in /v1) or the model's name",
            )
        if sent.status == 401 and not job.answered:
            key = "send a key: set api_key_env" if endpoint.api_key_env is None else f"correct ${endpoint.api_key_env}"
            raise ConfigError(f"the server refuses access ({detail})", where=endpoint.base, fix=key)
        if sent.field is not None and not job.answered:
            raise ConfigError(
                f"the server does not take the field {sent.field!r} of a request ({detail})",
                where=endpoint.base,
                fix=_other_request(sent.field, endpoint),
            )


def _other_request(name: str, endpoint: Endpoint) -> str:
    """Which option sends a request without a field that a server refuses."""
    if name in LIMITS:
        other = LIMITS[1 - LIMITS.index(name)]
        return f"give the limit its other name: max_tokens_field: {other}"
    if name in ("logprobs", "top_logprobs"):
        return "this judge is read by its probabilities: take a server that gives them, or a prompt whose reply is read as text"
    if endpoint.extra_body.get(name) is not None:
        return f"take {name} out of extra_body"
    return f"leave it away: extra_body: {{{name}: null}}"


def _fingerprint(endpoint: Endpoint) -> Fingerprint:
    options = dict(endpoint.extra_body) | ({"opens_think": True} if endpoint.opens_think else {})
    return Fingerprint(
        engine="openai",
        model=endpoint.model,
        endpoint=endpoint.base if endpoint.identity is None else endpoint.identity,
        options=json.dumps(options, sort_keys=True) if options else "",
    )


def _lost(reason: FailureReason, detail: str) -> _Sent:
    """It was sent, or may have been, and its end was not seen."""
    return _Sent(Failure(reason, detail), True, "overloaded" if reason == "timeout" else "neither", None)


def _unsent(reason: FailureReason, detail: str) -> _Sent:
    """There was no connection: nothing can have been answered."""
    sign: Sign = "overloaded" if reason == "timeout" else "neither"
    return _Sent(Failure(reason, detail), True, sign, _NO_TOKENS, reached=False)


def _without_secret(sent: _Sent, secret: str | None) -> _Sent:
    """Servers quote keys in their messages; messages end up in reports."""
    if secret is None or isinstance(sent.outcome, Completion) or secret not in sent.outcome.detail:
        return sent
    return replace(sent, outcome=replace(sent.outcome, detail=sent.outcome.detail.replace(secret, "***")))


def _secret(variable: str | None) -> str | None:
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


def _client(endpoint: Endpoint, secret: str | None, tls: ssl.SSLContext) -> httpx.AsyncClient:
    host = httpx.URL(endpoint.url).host
    local = host in ("localhost", "::1") or host.startswith("127.")
    headers = {"Content-Type": "application/json"} | ({} if secret is None else {"Authorization": f"Bearer {secret}"})
    return httpx.AsyncClient(
        base_url=endpoint.base + "/",
        headers=headers,
        timeout=httpx.Timeout(endpoint.request_timeout),
        verify=tls,
        trust_env=not local,  # a company's proxy has no way to this machine
    )
