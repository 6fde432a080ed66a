"""HF model folders: what was trained, merged or whole, and what a GGUF file holds."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from posttrain.artifacts import write_json
from posttrain.errors import ModelError
from posttrain.model.companions import read_object
from posttrain.model.folder import in_a_line, predictors
from posttrain.model.forward import causal_lm
from posttrain.model.load import check_read_back, quiet_transformers
from posttrain.model.peft_parts import PeftModel
from posttrain.model.quantise import dequantise


def merge_adapter(model: nn.Module) -> PreTrainedModel:
    """The plain model with W + scale B A in place of every adapted matrix; a model without an adapter as it is.

    Merge in fp32: in bf16 an update smaller than 2^-8 of a weight would vanish. Raises ModelError for an adapted output
    head that is tied to the input embedding, because merging would change the embedding as well.
    """
    inner = causal_lm(model)
    if not isinstance(model, PeftModel):
        return inner
    head, tied = inner.get_output_embeddings(), inner.config.get_text_config().tie_word_embeddings
    if tied and hasattr(head, "lora_A"):
        raise ModelError(
            "the output head is adapted and tied to the input embedding: merging would change both",
            fix="leave lm_head out of adapter.targets",
        )
    # PEFT's own merge into 4 bits quantises the sum, and the update is lost in the rounding
    dequantise(model, torch.float32)
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged


SHARD = "5GB"
"""Largest file of weights: what the hub advises."""


def save_model(model: PreTrainedModel, folder: Path, dtype: torch.dtype, shard: str = SHARD) -> None:
    """Write a HF model (safetensors, config) into an existing folder, weights as ``dtype``, and read it back.

    shard: largest file of weights. Raises ModelError where plain transformers reads something else than what is in memory
    (see `check_written`), and where a weight is beyond the range of ``dtype``.
    """
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if dtype == torch.float16 and not bool(tensor.isfinite().all()):
            raise ModelError(f"{name} has weights beyond the range of fp16 (65,504)", fix="write it as bf16 or fp32")
    config = model.config
    kept, implementation = config.dtype, config._attn_implementation
    try:
        config._attn_implementation = None  # ours is not known to those who load this folder
        with quiet_transformers():
            model.save_pretrained(folder, state_dict=state, max_shard_size=shard)
    finally:
        config.dtype, config._attn_implementation = kept, implementation
    # save_pretrained writes the type the model has in memory, not the one of the tensors it was given
    written = read_object(folder / "config.json")
    written["dtype"] = str(dtype).removeprefix("torch.")
    for part in (written, written.get("text_config") or {}):
        part |= dict.fromkeys(predictors(part), 0)  # they were left out when it was loaded
    write_json(folder / "config.json", written)
    check_written(model, folder, dtype)


@torch.no_grad()
def check_written(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Hold a written folder against memory, tensor by tensor and bit for bit, as anyone would load it.

    What the format can't say of a model (some quantisations, tensors that are laid out anew) is a ModelError here, and not a
    folder that computes something else. Needs room for the weights once more.
    """
    with quiet_transformers():
        read, report = type(model).from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    odd = {*report["unexpected_keys"], *report["missing_keys"]}
    fix = "train an adapter (adapter: {name: lora}), which is written by itself"
    check_read_back(f"this {type(model).__name__}", model.state_dict(), read.state_dict(), odd, fix, dtype)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to fp32 safetensors with config and tokenizer in an existing folder. Raises ModelError where that can't be.

    fp32, because Q4 blocks (scale * q + minimum, fp16 scales) are exact in fp32 and in nothing smaller.
    """
    # transformers' progress bar of the conversion can only be silenced at its stream
    with quiet_transformers(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
            )
        except Exception as error:  # transformers raises its own types here, for damage and for what it can't read
            raise ModelError(
                f"this GGUF file can't be read: {in_a_line(error)}",
                where=str(gguf),
                fix="give the model as a HF folder",
            ) from error
        tokenizer.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    config = model.config.to_dict()
    for origin in ("quantization_config", "_name_or_path"):
        config.pop(origin, None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    write_json(folder / "config.json", config)
    tied = config.get("tie_word_embeddings", False)
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
