"""The oracle: llama.cpp itself, asked for ids and likely tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


class Llama:
    """A GGUF file in llama.cpp; a LoRA adapter with it where one is given."""

    def __init__(self, path: Path, adapter: Path | None = None, context: int = 512) -> None:
        xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp (package xllamacpp) is not here")
        from posttrain.generate.llamacpp import _quiet

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_parallel, parameters.n_ctx, parameters.n_gpu_layers, parameters.verbosity = 1, context, 0, 0
        # otherwise keys and values are kept in 16 bit, which moves a micro model's log-probabilities by some percent
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.swa_full = True  # so that a prompt is found again whatever the window
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        if adapter is not None:
            found = xllamacpp.CommonAdapterLoraInfo()
            found.path, found.scale = str(adapter), 1.0
            parameters.lora_adapters = [found]
        with _quiet():
            self.server = xllamacpp.Server(parameters)
            self.server.handle_completions({"prompt": "a", "max_tokens": 1})

    def greedy(self, ids: Sequence[int], count: int, without: Sequence[int] = ()) -> tuple[list[int], dict[int, float]]:
        """The next tokens, and the log-probabilities of the likeliest first ones.

        without: tokens that are never taken. Those that end inside a character must be: llama.cpp does not tell them.
        """
        body = {"prompt": [int(i) for i in ids], "n_predict": count, "temperature": 0, "n_probs": 50}
        body |= {"logit_bias": [[int(i), False] for i in without]}
        answer = self.server.handle_completions(body)
        content = (answer["choices"][0]["logprobs"] or {}).get("content") or []
        first = content[0]["top_logprobs"] if content else []
        return [token["id"] for token in content], {token["id"]: token["logprob"] for token in first}

    def same_ids(self, text: str, ids: Sequence[int]) -> bool:
        """Whether it cuts a text into these ids: a prompt it has just read is found again in its cache."""
        self.greedy(ids, 1)
        usage: dict[str, Any] = self.server.handle_completions({"prompt": text, "n_predict": 1, "temperature": 0})[
            "usage"
        ]
        return usage["prompt_tokens"] == len(ids) and usage["prompt_tokens_details"]["cached_tokens"] == len(ids) - 1

    def chat(self, text: str, count: int) -> tuple[int, int]:
        """Of a question in its own template: tokens of the prompt, and how many of them it found again in its cache."""
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": count}
        usage = self.server.handle_chat_completions(body)["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
