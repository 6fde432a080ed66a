"""Write what was trained in the ecosystem's formats: a merged or full HF model folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from posttrain.errors import ModelError
from posttrain.model.forward import causal_lm
from posttrain.model.load import quiet_transformers


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


def save_model(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a HF model (safetensors, config) into an existing folder, weights as ``dtype``."""
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
