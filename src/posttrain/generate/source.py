"""Who writes: the configuration of a model that answers requests, behind a server, in this process, or in a GGUF file; and its engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from posttrain.errors import ConfigError
from posttrain.generate.cost import Caps, Prices
from posttrain.generate.engine import Engine
from posttrain.generate.wire import OURS
from posttrain.parallel.peers import ALONE, Peers
from posttrain.references import NamesFile, NamesModel, NamesStage

SERVER_CONCURRENCY, GGUF_SLOTS, GGUF_CONTEXT = 16, 4, 8192
_ONLY_FOR = (
    ("api_key_env", ("endpoint",), "a key is for a server only: leave api_key_env away"),
    ("max_tokens_field", ("endpoint",), "max_tokens_field is for servers only: leave it away"),
    ("extra_body", ("endpoint",), "extra_body is for servers only: leave it away"),
    ("request_timeout", ("endpoint",), "request_timeout is for servers only: leave it away"),
    ("concurrency", ("endpoint", "gguf"), "concurrency is for servers and GGUF files only: leave it away"),
    ("context", ("gguf",), "context is for GGUF files only: leave it away"),
    ("base", ("local", "reward"), "base is for a local or a reward model only: leave it away"),
)
"""Key, for which kinds of model it is, and what is said where another has it."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that answers: a server's (or that of several), a local one, or a GGUF file. Exactly one of them is named."""

    KINDS: ClassVar[tuple[str, ...]] = ("endpoint", "local", "gguf")

    endpoint: str | tuple[str, ...] | None = None
    """Base URL of an OpenAI-compatible server, or a list of them that serve the same model: each request goes to the least busy one.
    The first names them all in the request cache; others may join and leave."""
    model: str | None = None
    """Name of the model as the server knows it."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; null = none is sent."""
    concurrency: Annotated[int, Ge(1)] | None = None
    """At most this many requests at once (for each of several servers); null = 16 for a server, 4 for a GGUF file."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the limit in a request; OpenAI's reasoning models want ``max_completion_tokens``."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of a request, as ``{options: {num_ctx: 8192}}``; null takes one away: ``{temperature: null}`` (servers only)."""
    request_timeout: Annotated[float, Gt(0)] | None = None
    """Seconds from sending one request to its whole answer (servers only); null = 300."""
    local: Annotated[str, NamesStage("model", or_outside="model")] | None = None
    """A run's train stage, a model folder, an adapter, an asset or a hub name."""
    gguf: Annotated[str, NamesFile()] | None = None
    """A GGUF file, run in this process by llama.cpp (extra ``llamacpp``)."""
    context: Annotated[int, Ge(64)] | None = None
    """Tokens of prompt and reply together that a GGUF model has room for; null = 8192."""
    base: Annotated[str, NamesModel()] | None = None
    """Base model of an adapter folder, where it is not the one it names."""

    def __post_init__(self) -> None:
        named = self._named()
        if len(named) != 1:
            known = f"{', '.join(self.KINDS[:-1])} and {self.KINDS[-1]}"
            raise ValueError(f"one of {known} is needed, not {' and '.join(named) or 'none'}")
        if (self.model is not None) != (named == ["endpoint"]):
            raise ValueError("endpoint and model belong together: give both, or neither")
        for key, kinds, problem in _ONLY_FOR:
            if getattr(self, key) and getattr(self, key) != "max_tokens" and named[0] not in kinds:
                raise ValueError(problem)
        if self.endpoint is not None:
            from posttrain.generate.openai import bases_of  # httpx: only who names a server waits for it

            try:
                bases_of(self.endpoint)
            except ConfigError as error:
                raise ValueError(f"endpoint: {error.problem}: {error.fix}") from None
        if taken := [name for name in self.extra_body if name in OURS]:
            raise ValueError(f"{taken[0]} can't be set in extra_body: the request and its plan say it")

    def _named(self) -> list[str]:
        return [name for name in self.KINDS if getattr(self, name) is not None]

    @property
    def kind(self) -> str:
        """Which of `KINDS` it is."""
        return self._named()[0]

    @property
    def place(self) -> str:
        """The servers' addresses, as a message names them."""
        return self.endpoint or "" if isinstance(self.endpoint, str | None) else ", ".join(self.endpoint)

    @property
    def name(self) -> str:
        """The model or target, as tables show it."""
        return str(self.model if self.endpoint is not None else getattr(self, self.kind))


def check_prices(prompt_price: float | None, completion_price: float | None, money: float | None, or_cap: str) -> None:
    """Raise ValueError where one price lacks the other, or a cap on money has none. ``or_cap``: what can be capped without prices."""
    if (prompt_price is None) != (completion_price is None):
        raise ValueError("prices of read and written tokens belong together: give prompt_price and completion_price")
    if money is not None and prompt_price is None:
        raise ValueError(f"a cap on money needs prices: give prompt_price and completion_price, or cap {or_cap}")


def prices_of(prompt_price: float | None, completion_price: float | None) -> Prices | None:
    """Prices of a million tokens read and written; None where they are not given."""
    if prompt_price is None or completion_price is None:
        return None
    return Prices(prompt_per_million=prompt_price, completion_per_million=completion_price)


def open_source(source: ModelSource, caps: Caps, prices: Prices | None, ledger: Path, peers: Peers = ALONE) -> Engine:
    """The engine of a model that answers. Calls to servers are written to the ledger, and their budget goes on from it.

    peers: the processes that share the work of a local model.

    Raises ConfigError where a package is missing, ModelError where a model can't be loaded.
    """
    if source.endpoint is not None and source.model is not None:
        from posttrain.generate.openai import Endpoint, OpenAIEngine

        given: Mapping[str, Any] = {} if source.request_timeout is None else {"request_timeout": source.request_timeout}
        endpoint = Endpoint(
            url=source.endpoint,
            model=source.model,
            api_key_env=source.api_key_env,
            concurrency=source.concurrency or SERVER_CONCURRENCY,
            max_tokens_field=source.max_tokens_field,
            extra_body=source.extra_body,
            **given,
        )
        return OpenAIEngine(endpoint, prices=prices, caps=caps, ledger=ledger)
    if source.gguf is not None:
        from posttrain.generate.llamacpp import LlamaCppEngine

        return LlamaCppEngine(Path(source.gguf), source.context or GGUF_CONTEXT, source.concurrency or GGUF_SLOTS)
    return _local_engine(source, peers)


def _local_engine(source: ModelSource, peers: Peers) -> Engine:
    from posttrain.generate.local import LocalEngine
    from posttrain.model import hardware
    from posttrain.model.adapters import frozen_model
    from posttrain.model.shared import shared_model
    from posttrain.model.targets import resolve_target

    assert source.local is not None, "a reward model is no engine"
    target = resolve_target(source.local, source.base)
    device = hardware.resolve_device("auto")
    dtype = hardware.choose_dtype("auto", device)
    return LocalEngine(
        frozen_model(target.folder, target.adapter, dtype, device),
        target.template,
        target.stops,
        f"{Path(source.local).name}@{target.identity[:16]}",
        shared=shared_model(peers, target.folder, target.adapter, dtype, device),
    )
