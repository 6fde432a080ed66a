"""The engine for a GGUF file in this process, through llama.cpp's own server code (package xllamacpp, extra ``llamacpp``).

No port is opened and nothing is sent: requests are the same bodies a llama.cpp server reads, handed over as values. llama.cpp
renders the chat template of the file, batches continuously over its slots, and counts tokens itself.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.artifacts import file_digest
from posttrain.errors import ConfigError, ModelError
from posttrain.generate.engine import Failure, Fingerprint, Outcome, Outcomes, Request
from posttrain.generate.wire import body_of, read_answer, read_error


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

    def _answer(self, server: Any, request: Request) -> Outcome:
        body = body_of(request, self._path.name, "max_tokens", {})
        try:
            found = server.handle_chat_completions(body)
        except ValueError as error:  # a body it can't read, a template that refuses
            return Failure("invalid_request", str(error), attempts=1)
        content = json.dumps(found).encode()
        if "error" in found:
            outcome = read_error(int(found["error"].get("code", 500)), content).outcome
        else:
            outcome = read_answer(content, wants_logprobs=request.sampling.logprobs is not None).outcome
        return replace(outcome, attempts=1) if isinstance(outcome, Failure) else outcome


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
