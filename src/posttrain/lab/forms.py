"""Prove that a model is the same in every form it can be taken home in: ``posttrain verify TARGET``.

The merged weights against the adapter on its base, and GGUF files of every type, computed by llama.cpp, against the merged weights:
the same greedy replies to prompts in several languages, each rendered and cut into tokens by llama.cpp itself.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from posttrain.encode.tokens import encode_prompt
from posttrain.errors import ModelError
from posttrain.generate import gguf_replies
from posttrain.generate.gguf_replies import GgufReplies
from posttrain.lab.verify import VALUE_TOLERANCE, Check, tell
from posttrain.model.adapters import saved_model
from posttrain.model.agreement import agreement, all_logits
from posttrain.model.export import merge_adapter
from posttrain.model.gguf.architectures import architecture_of
from posttrain.model.gguf.file import FileType, write_gguf
from posttrain.model.lineage import Lineage
from posttrain.model.targets import resolve_target
from posttrain.types import Message

ORDER: tuple[FileType, ...] = ("f32", "bf16", "q8_0", "f16")
"""fp16 comes last: the model is rounded to it."""
SAME_TEXT: tuple[FileType, ...] = ("f32", "f16")
"""Types whose greedy replies must be those of a folder with the same weights; the others are compared with the weights in fp32."""


def verify_forms(target: str, template: Path | None, as_json: bool, console: Console) -> bool:
    """Run all checks on a model, print them as a table or as JSON, and return whether all hold. target: see `resolve_target`."""
    checks, count = [], len(gguf_replies.QUESTIONS)
    with console.status("computing replies") as status:
        for check in form_checks(resolve_target(target).spoken(template)):
            if not as_json:
                status.update(f"{check.name} done")
            checks.append(check)
    basis = f"{count} prompts; keys and values of llama.cpp in fp32"
    return tell(checks, "Forms of the model", basis, {"model": target, "prompts": count}, as_json, console)


def form_checks(lineage: Lineage) -> Iterator[Check]:
    """All checks, one after the other; one model is in memory at a time, and one GGUF file on the disk."""
    model = saved_model(lineage.folder, lineage.adapter, torch.float32, torch.device("cpu"))
    if lineage.adapter is not None:
        texts = [encode_prompt([Message("user", one)], lineage.template) for one in gguf_replies.QUESTIONS]
        before = all_logits(model, texts)
        model = merge_adapter(model)
        found = agreement(before, all_logits(model, texts))
        meaning = "the adapter merged into the weights, in fp32, is the same model"
        yield Check("merged = adapter", meaning, found.relative, VALUE_TOLERANCE, str(found))
    if (why := _no_gguf(model)) is not None:
        yield Check("GGUF", "not checked", 0.0, 0.0, why)
        return
    for file_type in ORDER:
        if file_type in SAME_TEXT:
            _round(model, file_type)
            expected = gguf_replies.spoken(model, lineage, gguf_replies.QUESTIONS)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "model.gguf")
            write_gguf(model, lineage, path, file_type, "verified")
            yield _check(file_type, gguf_replies.replies(path, expected))


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
    return gguf_replies.missing()


def _check(file_type: FileType, found: GgufReplies) -> Check:
    """Replies must be the same where the type promises it, but for ties; of other types nothing is required."""
    name = f"GGUF {file_type} = folder"
    if file_type in SAME_TEXT:
        meaning = "llama.cpp's greedy replies are those of the folder with weights of this type, computed in fp32"
        return Check(name, meaning, found.other / found.replies, 0.0, str(found))
    meaning = "rounded weights: the share of first tokens that differ (nothing is required)"
    apart = 1 - found.same_first_tokens / found.first_tokens if found.first_tokens else math.nan
    return Check(name, meaning, apart, 1.0, found.first)
