"""What an engine is: requests in, outcomes out, one protocol for a local model, a server and a script.

    requests -> engine.generate -> (index, Completion | Failure) as they finish

An API error is never text: whatever did not end in an answer is a ``Failure`` with a typed reason, and every request has
exactly one outcome. No torch here, so judges and reports can use these values anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from posttrain.errors import ConfigError
from posttrain.types import Message, spoken

FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "other"]
"""Why a reply ended: by itself, at ``max_tokens``, cut by the provider, to call a tool, or unknown."""

FailureReason = Literal[
    "rate_limited",
    "server_error",
    "timeout",
    "connection",
    "bad_response",
    "budget",
    "refused",
    "invalid_request",
    "not_finite",
]
"""Why there is no answer.

rate_limited: 429 to the last attempt, or the server asks for a longer silence than we are ready to wait.
server_error: 5xx to the last attempt. timeout: no whole answer within the time of a request. connection: refused or dropped
to the last attempt. bad_response: a whole answer came and can't be read (never asked again: it was paid for). budget: it
could have gone over the cap and was not sent. refused: the provider won't serve this request (content policy, permission, no
credit). invalid_request: the request itself is wrong. not_finite: a model of this process computed NaN or infinity where a
token was to be chosen.
"""


# ---- what is asked -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn and where it ends."""

    temperature: float = 0.0
    """0 = greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches this (Holtzman et al. 2019, arXiv:1904.09751)."""
    max_tokens: int = 1024
    """At most this many new tokens, thinking included."""
    seed: int | None = None
    """Seed of the draw, where the engine takes one."""
    logprobs: int | None = None
    """Log-probabilities of every token and of this many most likely tokens at its place (0 = the token alone); None = none."""

    def __post_init__(self) -> None:
        wrong = (
            f"temperature {self.temperature}: must be finite and at least 0"
            if not (math.isfinite(self.temperature) and self.temperature >= 0)
            else f"top_p {self.top_p}: must be above 0 and at most 1"
            if not 0 < self.top_p <= 1
            else f"max_tokens {self.max_tokens}: must be at least 1"
            if self.max_tokens < 1
            else f"logprobs {self.logprobs}: must be at least 0"
            if self.logprobs is not None and self.logprobs < 0
            else None
        )
        if wrong is not None:
            raise ConfigError(wrong, where="sampling", fix="correct the value")


class Ids(NamedTuple):
    """Token ids to go on with as they are, and the tokens each of which ends the reply. No other end is known."""

    ids: tuple[int, ...]
    stops: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One reply asked for."""

    prompt: tuple[Message, ...]
    """A conversation, put into the model's chat template by the engine."""
    sampling: Sampling = Sampling()
    sample: int = 0
    """Which of several draws this is. Never sent: it keeps equal requests apart in the cache."""
    speaks: Literal["assistant", "user"] = "assistant"
    """Whose turn comes next. ``user``: the model writes what a user would say (MAGPIE); the prompt may then be empty. Only a
    `posttrain.generate.local.LocalEngine` can."""
    tokens: Ids | None = None
    """What is gone on with in place of a conversation; the answer tells the ids of the reply. Only servers that take and tell ids can."""

    def __post_init__(self) -> None:
        if not self.prompt and self.speaks == "assistant" and self.tokens is None:
            raise ConfigError("an empty prompt can't be answered", where="request", fix="give a message")


# ---- what comes back -----------------------------------------------------------------------------------------------


class TokenLogprob(NamedTuple):
    """A token of the reply, its log-probability in nats, and the most likely tokens at its place, best first."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Usage(NamedTuple):
    """Tokens read and written, as counted by who answered (thinking counts as written)."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer."""

    text: str
    """The reply without its think block; empty where the thinking never ended."""
    finish: FinishReason = "stop"
    """``length`` = cut at max_tokens: the text (or the thinking) is not whole."""
    reasoning: str | None = None
    """The thinking, kept aside; None = the reply had none."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of the tokens of ``text``. None = not asked for, not given, or not to be told apart from the thinking."""
    usage: Usage | None = None
    """None = the server did not say."""
    cached: bool = False
    """True = read from the request cache, nothing was asked or paid."""
    ids: tuple[int, ...] | None = None
    """All tokens of the reply, the one that ended it included, where token ids were gone on with."""


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer, and why. ``attempts``: how many times it was sent."""

    reason: FailureReason
    detail: str
    attempts: int = 0


Outcome = Completion | Failure


# ---- who answers ---------------------------------------------------------------------------------------------------


class Fingerprint(NamedTuple):
    """What decides an answer beside the request: part of every cache key, and shown in reports. Never holds a secret."""

    engine: str
    """Kind of engine: ``openai``, ``transformers``, ``llamacpp``, ``fake``."""
    model: str
    """Name, or digest of the weights where they are at hand."""
    endpoint: str = ""
    """Where it runs, for a server."""
    template: str = ""
    """Digest of the chat template, where the engine renders it."""
    options: str = ""
    """Anything else that changes answers (precision, extra fields of the request body), as canonical JSON."""


Outcomes = Generator[tuple[int, Outcome], None, None]


class Engine(Protocol):
    """Answers batches of requests.

    ``generate`` yields ``(index, outcome)`` as outcomes are there, in any order, every index of ``requests`` exactly once.
    It raises a PosttrainError only for what spoils the whole batch (a wrong key, a full disk); a single request that can't
    be answered is a Failure. Closing the generator stops the work.
    """

    @property
    def fingerprint(self) -> Fingerprint:
        """What identifies the model and where it runs."""

    def generate(self, requests: Sequence[Request]) -> Outcomes:
        """Answer all requests."""


Progress = Callable[[int, int], None]
"""Called after every outcome with (finished, all)."""


def complete(engine: Engine, requests: Sequence[Request], progress: Progress | None = None) -> list[Outcome]:
    """The outcomes of all requests, in their order."""
    found: dict[int, Outcome] = {}
    with contextlib.closing(engine.generate(requests)) as outcomes:
        for index, outcome in outcomes:
            if index in found or not 0 <= index < len(requests):
                raise RuntimeError(f"{engine.fingerprint.engine}: request {index} of {len(requests)} came twice")
            found[index] = outcome
            if progress is not None:
                progress(len(found), len(requests))
    missing = [index for index in range(len(requests)) if index not in found]
    if missing:
        raise RuntimeError(f"{engine.fingerprint.engine}: no outcome for requests {missing[:5]}")
    return [found[index] for index in range(len(requests))]


# ---- keys and think blocks -----------------------------------------------------------------------------------------


def canonical_request(fingerprint: Fingerprint, request: Request) -> bytes:
    """The bytes that decide an answer: fingerprint, prompt, sampling, number of the draw. Equal values, equal bytes.

    ASCII JSON with sorted keys. The loss weight of a message is left out: it says nothing to a model. No request has tools or stop
    strings; they stand here because the keys of answers that are stored hold them.
    """
    sampling = request.sampling
    value = {
        "fingerprint": fingerprint._asdict(),
        "prompt": [spoken(message) for message in request.prompt],
        "tools": [],
        "sampling": {
            "temperature": float(sampling.temperature) + 0.0,  # 0, 0.0 and -0.0 are one temperature and one key
            "top_p": float(sampling.top_p),
            "max_tokens": sampling.max_tokens,
            "stop": [],
            "seed": sampling.seed,
            "logprobs": sampling.logprobs,
        },
        "sample": request.sample,
        **({"speaks": request.speaks} if request.speaks != "assistant" else {}),
        **({"tokens": request.tokens} if request.tokens is not None else {}),
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def request_key(fingerprint: Fingerprint, request: Request) -> str:
    """sha256 hex of the canonical request: its name in the cache and in the ledger."""
    return hashlib.sha256(canonical_request(fingerprint, request)).hexdigest()


THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


class SplitReply(NamedTuple):
    """A reply without its think block, and the block (None = there was none)."""

    text: str
    reasoning: str | None


def split_think(reply: str, *, opened: bool = False) -> SplitReply:
    """Part the think blocks a reply begins with from its text.

    A block is ``<think>...</think>`` at the beginning (several in a row count as one), or anything before a ``</think>``
    that was never opened in the reply: templates of reasoning models open it in the prompt. A block that never ends leaves
    no text. ``opened``: the prompt ended inside a block, so a reply without ``</think>`` is all thinking. Tags further on in
    the text are left alone: there they are quoted.
    """
    rest = reply.lstrip()
    blocks: list[str] = []
    if not rest.startswith(THINK_OPEN):
        before, closed, after = rest.partition(THINK_CLOSE)
        if opened and not closed:
            return SplitReply("", rest.strip())
        if not closed or THINK_OPEN in before:
            return SplitReply(reply, None)
        blocks, rest = [before.strip()], after.lstrip()
    while rest.startswith(THINK_OPEN):
        inside, closed, after = rest.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
        blocks.append(inside.strip())
        rest = after.lstrip() if closed else ""
    return SplitReply(rest, "\n\n".join(b for b in blocks if b))
