"""Write what was trained in the ecosystem's formats: a merged or full HF model folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from posttrain.errors import ModelError
from posttrain.model.load import causal_lm, quiet_transformers

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "generation_config.json",
)


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """The plain model with W + scale B A in place of every adapted matrix.

    Merge in fp32: in bf16 an update smaller than 2^-8 of a weight would vanish. Raises ModelError for an adapted output
    head that is tied to the input embedding, because merging would change the embedding as well.
    """
    inner = causal_lm(model)
    head, tied = inner.get_output_embeddings(), inner.config.get_text_config().tie_word_embeddings
    if tied and hasattr(head, "lora_A"):
        raise ModelError(
            "the output head is adapted and tied to the input embedding: merging would change both",
            fix="leave lm_head out of adapter.targets",
        )
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged


def save_model(model: PreTrainedModel, folder: Path, dtype: torch.dtype, tokenizer_from: Path) -> None:
    """Write a HF model folder (safetensors, config, tokenizer files) into an existing folder, weights as ``dtype``."""
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    config = model.config
    kept, implementation = config.dtype, config._attn_implementation
    try:
        config._attn_implementation = None  # ours is not known to those who load this folder
        with quiet_transformers():
            model.save_pretrained(folder, state_dict=state)
    finally:
        config.dtype, config._attn_implementation = kept, implementation
    # save_pretrained writes the type the model has in memory, not the one of the tensors it was given
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    copy_tokenizer(tokenizer_from, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer and generation files of a model folder."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
