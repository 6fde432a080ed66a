"""A GGUF file as a HF model folder."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.model.load import quiet_transformers


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to fp32 safetensors with config and tokenizer in an existing folder.

    fp32, because Q4 blocks (scale * q + minimum, fp16 scales) are exact in fp32 and in nothing smaller.
    """
    # transformers' progress bar of the conversion can only be silenced at its stream
    with quiet_transformers(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    config = model.config.to_dict()
    for origin in ("quantization_config", "_name_or_path"):
        config.pop(origin, None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tied = config.get("tie_word_embeddings", False)
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
