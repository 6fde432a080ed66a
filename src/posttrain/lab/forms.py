"""Prove that a model is the same in every form it can be taken home in: ``posttrain verify TARGET``.

The merged weights against the adapter on its base, and GGUF files of every type, computed by llama.cpp, against the merged weights:
the same greedy replies to prompts in several languages, each rendered and cut into tokens by llama.cpp itself.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from posttrain.encode.template import ChatTemplate
from posttrain.encode.tokens import encode_prompt
from posttrain.errors import ModelError
from posttrain.generate.decode import decode, without_stop
from posttrain.generate.engine import Completion, Request, Sampling, complete
from posttrain.generate.llamacpp import LlamaCppEngine
from posttrain.lab.verify import VALUE_TOLERANCE, Check, tell
from posttrain.model.adapters import saved_model
from posttrain.model.agreement import agreement, all_logits
from posttrain.model.export import merge_adapter
from posttrain.model.gguf.architectures import architecture_of
from posttrain.model.gguf.file import FileType, write_gguf
from posttrain.model.lineage import Lineage
from posttrain.model.targets import resolve_target
from posttrain.types import Message

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Add 1234 and 5678.",
    "List three colours.",
    "Explain gravity to a child.",
    "Translate into French: Good morning, my friend.",
    "Write a Python function that returns the square of x.",
    "Who wrote Hamlet?",
    "What is 17 * 23? Show each step.",
    "Give me a recipe for pancakes.",
    "Summarise: The quick brown fox jumps over the lazy dog.",
    "Is 97 a prime number?",
    "Was ist der h\u00f6chste Berg Deutschlands?",
    "\u00bfCu\u00e1l es la capital de Espa\u00f1a?",
    "\u8bf7\u7528\u4e00\u53e5\u8bdd\u4ecb\u7ecd\u5317\u4eac\u3002",
    "\u4f60\u597d\uff0c\u4f60\u662f\u8c01\uff1f",
    "\u628a\u8fd9\u53e5\u8bdd\u7ffb\u8bd1\u6210\u82f1\u6587\uff1a\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
    "1\u523010\u4e4b\u95f4\u6709\u54ea\u4e9b\u8d28\u6570\uff1f",
    "\u5199\u4e00\u9996\u5173\u4e8e\u79cb\u5929\u7684\u77ed\u8bd7\u3002",
    "\u65e5\u672c\u306e\u9996\u90fd\u306f\u3069\u3053\u3067\u3059\u304b\uff1f",
)
"""Twenty questions, five of them in Chinese."""
REPLY_TOKENS = 24
CONTEXT = 1024
ORDER: tuple[FileType, ...] = ("f32", "bf16", "q8_0", "f16")
"""fp16 comes last: the model is rounded to it."""
SAME_TEXT: tuple[FileType, ...] = ("f32", "f16")
"""Types whose greedy replies must be those of a folder with the same weights; the others are compared with the weights in fp32."""


class Expected(NamedTuple):
    """What the merged weights say, computed in fp32."""

    prompts: Sequence[NDArray[np.int32]]
    texts: Sequence[str]
    logps_V: Sequence[Tensor]
    """Log-probabilities of the first token of each reply."""


def verify_forms(target: str, template: Path | None, as_json: bool, console: Console) -> bool:
    """Run all checks on a model, print them as a table or as JSON, and return whether all hold. target: see `resolve_target`."""
    checks = []
    with console.status("computing replies") as status:
        for check in form_checks(resolve_target(target).spoken(template)):
            if not as_json:
                status.update(f"{check.name} done")
            checks.append(check)
    basis = f"{len(PROMPTS)} prompts; keys and values of llama.cpp in fp32"
    return tell(checks, "Forms of the model", basis, {"model": target, "prompts": len(PROMPTS)}, as_json, console)


def form_checks(lineage: Lineage) -> Iterator[Check]:
    """All checks, one after the other; one model is in memory at a time, and one GGUF file on the disk."""
    template = lineage.template
    prompts = [encode_prompt([Message("user", prompt)], template) for prompt in PROMPTS]
    model = saved_model(lineage.folder, lineage.adapter, torch.float32, torch.device("cpu"))
    if lineage.adapter is not None:
        before = all_logits(model, prompts)
        model = merge_adapter(model)
        found = agreement(before, all_logits(model, prompts))
        meaning = "the adapter merged into the weights, in fp32, is the same model"
        yield Check("merged = adapter", meaning, found.relative, VALUE_TOLERANCE, str(found))
    if (why := _no_gguf(model)) is not None:
        yield Check("GGUF", "not checked", 0.0, 0.0, why)
        return
    for file_type in ORDER:
        if file_type in SAME_TEXT:
            _round(model, file_type)
            firsts = [logits_TV[-1].log_softmax(-1) for logits_TV in all_logits(model, prompts)]
            expected = Expected(prompts, _replies(model, template, lineage.stops, prompts), firsts)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "model.gguf")
            write_gguf(model, lineage, path, file_type, "verified")
            with LlamaCppEngine(path, CONTEXT, 1, torch.get_num_threads(), exact=True) as engine:
                yield check_gguf(engine, file_type, expected)


@torch.no_grad()
def _round(model: nn.Module, file_type: FileType) -> None:
    """Give the matrices of a model the values that they have in a file of this type."""
    if file_type == "f16":
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.half())


def _no_gguf(model: nn.Module) -> str | None:
    """Why GGUF files can't be checked here."""
    try:
        architecture_of(model.config)
    except ModelError as error:
        return error.problem
    return (
        None
        if importlib.util.find_spec("xllamacpp")
        else "xllamacpp is not installed: pip install 'posttrain[llamacpp]'"
    )


@torch.no_grad()
def _replies(
    model: nn.Module, template: ChatTemplate, stops: Sequence[tuple[int, ...]], prompts: Sequence[NDArray[np.int32]]
) -> list[str]:
    """Greedy replies as text, without their stop."""
    ids: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for new in decode(model, prompts, stops, [Sampling(max_tokens=REPLY_TOKENS)] * len(prompts)):
        ids[new.prompt].append(new.token)
        ended[new.prompt] |= new.finish == "stop"
    kept = [without_stop(one, stops) if end else one for one, end in zip(ids, ended, strict=True)]
    return [str(template.tokenizer.decode(one, skip_special_tokens=True)) for one in kept]


def check_gguf(engine: LlamaCppEngine, file_type: FileType, expected: Expected) -> Check:
    """A GGUF file in llama.cpp against the merged weights: how far first tokens are apart, and replies where they must be the same."""
    first, divergence = [], []
    for ids_T, logps_V in zip(expected.prompts, expected.logps_V, strict=True):
        told = engine.next_logprobs(ids_T.tolist(), len(logps_V))
        if told is not None:
            first.append(max(told, key=told.__getitem__) == int(logps_V.argmax()))
            kept, theirs = torch.tensor(list(told)), torch.tensor(list(told.values())).log_softmax(-1)
            divergence.append(float((logps_V[kept].exp() * (logps_V[kept] - theirs)).sum()))
    apart = "no first token was told"
    if first:
        apart = f"first token: {sum(first)} of {len(first)} the same, KL mean {np.mean(divergence):.1e}, largest {np.max(divergence):.1e}"
    name, count = f"GGUF {file_type} = folder", len(expected.prompts)
    if file_type not in SAME_TEXT:
        meaning = "rounded weights: the share of first tokens that differ (nothing is required)"
        return Check(name, meaning, 1 - float(np.mean(first)) if first else math.nan, 1.0, apart)
    requests = [Request((Message("user", prompt),), Sampling(max_tokens=REPLY_TOKENS)) for prompt in PROMPTS]
    texts = [one.text if isinstance(one, Completion) else None for one in complete(engine, requests)]
    other = [ours for ours, theirs in zip(expected.texts, texts, strict=True) if not _same(ours, theirs)]
    meaning = "llama.cpp's greedy replies are those of the folder with weights of this type, computed in fp32"
    same = f"{count - len(other)} of {count} greedy replies of {REPLY_TOKENS} tokens are the same"
    return Check(name, meaning, len(other) / count, 0.0, f"{same}; {apart}")


def _same(ours: str, theirs: str | None) -> bool:
    """Whether two replies are one text; where a limit cuts a character, what stands before it counts."""
    return theirs is not None and ours.rstrip("\ufffd").strip() == theirs.rstrip("\ufffd").strip()
