"""The engine for a GGUF file in this process, through llama.cpp's own server code (package xllamacpp, extra ``llamacpp``).

Nothing is sent: requests are the same bodies a llama.cpp server reads, handed over as values. llama.cpp renders the chat template of the file, batches
continuously over its slots, and counts tokens itself. It also opens a port on loopback that nobody asked for, and lets every web page use it; a key that is told
to nobody closes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.artifacts import file_digest
from posttrain.errors import ConfigError, ModelError
from posttrain.generate.engine import Failure, Fingerprint, Outcome, Outcomes, Request
from posttrain.generate.voice import Asked, Hear, Piece
from posttrain.generate.wire import body_of, read_answer, read_chunk, read_error
from posttrain.types import Message


class LlamaCppEngine:
    """Answers with a GGUF file in this process.

    context: tokens of prompt and reply that one sequence may have. slots: replies made at once. threads: of the processor; 0 =
    llama.cpp's own choice. exact: keys and values in fp32, without flash attention; otherwise llama.cpp keeps them in 16 bit.
    Raises ConfigError where xllamacpp is not installed, ModelError where the file is missing or can't be loaded. A prompt that does
    not fit the context is a Failure ``invalid_request``. Close it, or use it in a ``with`` block, to free the model.
    """

    def __init__(self, path: Path, context: int, slots: int, threads: int = 0, exact: bool = False) -> None:
        self._path, self._digest, self._context, self._slots = path, _digest(path), context, slots
        self._server = _load(path, context, slots, threads, exact)

    def __enter__(self) -> LlamaCppEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self._server = None

    @property
    def fingerprint(self) -> Fingerprint:
        """Digest of the file, and the context, which decides what is cut."""
        return Fingerprint(
            engine="llamacpp",
            model=f"{self._path.name}:{self._digest[:16]}",
            options=json.dumps({"context": self._context}),
        )

    def generate(self, requests: Sequence[Request]) -> Outcomes:
        """Answer all requests, as many at once as there are slots. What llama.cpp has begun when this is closed is finished unseen."""
        server = self._server
        if server is None:
            raise ConfigError("this engine is closed", where="LlamaCppEngine", fix="make a new one")
        with ThreadPoolExecutor(self._slots) as threads:
            places = {threads.submit(self._answer, server, request): index for index, request in enumerate(requests)}
            try:
                for answer in as_completed(places):
                    yield places[answer], answer.result()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def next_logprobs(self, ids: Sequence[int], most: int) -> dict[int, float] | None:
        """Log-probabilities of the ``most`` likeliest tokens behind a prompt of ids.

        None where the likeliest one ends inside a character: llama.cpp does not tell it then.
        """
        if self._server is None:
            raise ConfigError("this engine is closed", where="LlamaCppEngine", fix="make a new one")
        body = {"prompt": [int(i) for i in ids], "max_tokens": 1, "temperature": 0, "n_probs": most}
        told = (self._server.handle_completions(body)["choices"][0]["logprobs"] or {}).get("content")
        return {one["id"]: one["logprob"] for one in told[0]["top_logprobs"]} if told else None

    def speak(self, asked: Asked, hear: Hear, over: Callable[[], bool]) -> None:
        """Make one reply and tell it as it comes, in this thread; ends within a token where it is ``over``."""
        server = self._server
        if server is None:
            hear(Failure("server_error", "this engine is closed"))
            return
        sampling = asked.sampling
        shared = {"stream": True, "stream_options": {"include_usage": True}, "stop": list(asked.stops)}
        if isinstance(asked.said, tuple) and asked.said and isinstance(asked.said[0], Message):
            handle = server.handle_chat_completions
            body = body_of(Request(asked.said, sampling), self._path.name, "max_tokens", shared)
        else:
            handle = server.handle_completions
            body = body_of(Request(_ANY, sampling), self._path.name, "max_tokens", {**shared, "messages": None})
            body["prompt"] = asked.said if isinstance(asked.said, str) else list(asked.said)
        if sampling.logprobs is not None:  # 0 would be none at all
            body |= {"logprobs": True, "top_logprobs": max(1, sampling.logprobs), "n_probs": max(1, sampling.logprobs)}

        ending = Piece()  # the usage of a chat comes behind its end

        def each(chunk: dict[str, Any]) -> bool:
            nonlocal ending
            found = read_chunk(chunk, sampling.logprobs)
            if isinstance(found, Failure):
                hear(found)
                return True
            ending = Piece(finish=ending.finish or found.finish, usage=ending.usage or found.usage)
            said = found._replace(finish=None, usage=None)
            if said != Piece():
                hear(said)
            return over()

        try:
            handle(body, each)
        except (ValueError, RuntimeError) as error:  # a body it can't read, a template that refuses
            hear(Failure("invalid_request", str(error)))
        if ending.finish is not None:
            hear(ending)

    def _answer(self, server: Any, request: Request) -> Outcome:
        body = body_of(request, self._path.name, "max_tokens", {})
        alone = request.sampling.logprobs == 0
        if alone:
            body["top_logprobs"] = 1  # with 0 llama.cpp tells none at all
        try:
            found = server.handle_chat_completions(body)
        except ValueError as error:  # a body it can't read, a template that refuses
            return Failure("invalid_request", str(error), attempts=1)
        content = json.dumps(found).encode()
        if "error" in found:
            outcome = read_error(int(found["error"].get("code", 500)), content).outcome
        else:
            outcome = read_answer(content, wants_logprobs=request.sampling.logprobs is not None).outcome
        if isinstance(outcome, Failure):
            return replace(outcome, attempts=1)
        if alone and outcome.logprobs is not None:
            return replace(outcome, logprobs=tuple(token._replace(top=()) for token in outcome.logprobs))
        return outcome


_ANY = (Message("user", ""),)
"""Stands for a conversation in a request that has none."""


def _load(path: Path, context: int, slots: int, threads: int, exact: bool) -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise ConfigError(
            "the llama.cpp engine needs the package xllamacpp", fix="pip install 'posttrain[llamacpp]'"
        ) from error
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = slots
    parameters.n_ctx = context * slots  # llama.cpp divides it among the slots
    parameters.n_gpu_layers = 0
    parameters.verbosity = 0
    parameters.api_keys = [secrets.token_urlsafe(32)]
    parameters.ui = False
    if exact:
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if threads:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    try:
        with _quiet():
            server = xllamacpp.Server(parameters)
            # One token, so that its loop surely runs: a server that is freed before waits for its end for ever (2026.10).
            server.handle_completions({"prompt": "a", "max_tokens": 1})
            return server
    except RuntimeError as error:
        raise ModelError(
            "llama.cpp can't load this file", where=str(path), fix="give a GGUF model that this llama.cpp knows"
        ) from error


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise ModelError(f"can't read this file: {error.strerror}", where=str(path), fix="give a GGUF file") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """llama.cpp logs its loading to the process's standard error whatever it is told."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
