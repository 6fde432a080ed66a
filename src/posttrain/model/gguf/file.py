"""A model, or a LoRA adapter alone, as one GGUF file. Tensors are converted one at a time, so that they need no room twice."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig

from posttrain.errors import ModelError
from posttrain.model.adapters import misfit
from posttrain.model.folder import in_a_line, weight_shapes
from posttrain.model.forward import causal_lm
from posttrain.model.gguf.architectures import (
    Names,
    architecture_of,
    describe,
    laid_out,
    rotary_factors,
    tensors,
)
from posttrain.model.gguf.vocabulary import read_vocabulary, write_vocabulary
from posttrain.model.lineage import Lineage
from posttrain.model.peft_parts import PeftConfig

FileType = Literal["f32", "f16", "bf16", "q8_0"]
"""Type of the matrices; vectors and norms are always fp32."""
_TYPES: Mapping[FileType, tuple[gguf.LlamaFileType, gguf.GGMLQuantizationType]] = {
    "f32": (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
    "f16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    "bf16": (gguf.LlamaFileType.MOSTLY_BF16, gguf.GGMLQuantizationType.BF16),
    "q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0),
}
_MATRICES = (".weight", ".lora_a", ".lora_b")


def write_gguf(
    model: nn.Module, lineage: Lineage, path: Path, file_type: FileType, name: str, licence: str | None = None
) -> tuple[str, ...]:
    """Write a whole model with its tokenizer and chat template; returns what a user must know of the file.

    model: without an adapter, as `posttrain.model.load.load_model` gives it. Raises ModelError where llama.cpp can't compute the same
    (see `posttrain.model.gguf.architectures` and ``vocabulary``), or a weight is beyond the range of the type.
    """
    config = causal_lm(model).config
    architecture = architecture_of(config)
    found = tensors(model) | rotary_factors(config)
    vocabulary = read_vocabulary(lineage, found["token_embd.weight"].shape[0])
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[architecture.key])
    writer.add_type(gguf.GGUFType.MODEL)
    # where "phi-3" stands in the name, llama.cpp lets special tokens take the white space behind them
    plain = re.sub("phi-?3", "phi 3", name, flags=re.IGNORECASE)
    writer.add_name(f"{plain} (Phi-3)" if vocabulary.as_phi3 else plain)
    if licence is not None:
        writer.add_license(licence)
    notes = describe(writer, config)
    write_vocabulary(writer, vocabulary, lineage)
    _write(writer, path, found, file_type, config)
    return notes


def _write(
    writer: gguf.GGUFWriter, path: Path, found: Mapping[str, Tensor], file_type: FileType, config: Any | None
) -> None:
    """The file with these tensors. config: of the model whose tensors are laid out on the way."""
    kind, wanted = _TYPES[file_type]
    writer.add_file_type(kind)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in found.items():
        type_ = _type_of(name, tensor, wanted)
        block, size = gguf.GGML_QUANT_SIZES[type_]
        nbytes = tensor.numel() // block * size
        writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.float32), nbytes, type_)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in found.items():
            plain = tensor.float() if config is None else laid_out(name, tensor, config)
            writer.write_tensor_data(_quantised(name, plain, wanted))
    finally:
        writer.close()


def _type_of(name: str, tensor: Tensor, wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """The type of one tensor: rows that blocks don't fill stay in 16 bit."""
    if tensor.dim() < 2 or name.endswith("_norm.weight") or not name.endswith(_MATRICES):
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _quantised(name: str, tensor: Tensor, wanted: gguf.GGMLQuantizationType) -> NDArray[Any]:
    type_ = _type_of(name, tensor, wanted)
    numbers = np.ascontiguousarray(tensor.numpy())
    with np.errstate(over="ignore"):
        found: NDArray[Any] = gguf.quants.quantize(numbers, type_)
    if found.dtype == np.float16 and not np.isfinite(found).all():
        raise ModelError(
            f"{name} has weights beyond the range of 16-bit floating point (65,504)",
            fix="export with --type bf16 or f32",
        )
    return found


# ---- a LoRA adapter alone --------------------------------------------------------------------------------------------


def write_gguf_adapter(lineage: Lineage, path: Path, file_type: FileType, name: str) -> None:
    """Write a LoRA adapter for the GGUF file of its base model.

    llama.cpp computes W x + alpha / rank * B A x with one alpha for all. So alpha is sqrt(rank) times as large for rsLoRA, and where a
    layer has a rank or an alpha of its own, B holds what is left. Raises ModelError for what the format has no place for: DoRA, layers
    that were trained whole, biases, embeddings and the output head.
    """
    assert lineage.adapter is not None
    folder, config = lineage.adapter, AutoConfig.from_pretrained(lineage.folder, local_files_only=True)
    try:
        lora = PeftConfig.from_pretrained(str(folder))
        state = load_file(folder / "adapter_model.safetensors")
    except Exception as error:  # PEFT, safetensors and json each raise their own types here
        raise ModelError(f"this adapter can't be read: {in_a_line(error)}", where=str(folder)) from error
    odd = [key for key in state if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
    refused = (
        "DoRA"
        if lora.use_dora
        else f"layers trained whole ({', '.join(lora.modules_to_save)})"
        if lora.modules_to_save
        else "biases"
        if lora.bias != "none"
        else f"{odd[0]}"
        if odd
        else "an adapted output head or embedding"
        if any("lm_head" in key or "embed_tokens" in key for key in state)
        else None
    )
    if refused is not None:
        raise ModelError(
            f"a GGUF adapter can't hold {refused}", where=str(folder), fix="export the merged model: --to gguf"
        )
    names, shapes = Names(config), weight_shapes(lineage.folder)
    alpha = lora.lora_alpha * (math.sqrt(lora.r) if lora.use_rslora else 1.0)
    found: dict[str, Tensor] = {}
    for key, a_RI in sorted(state.items()):
        if not key.endswith(".lora_A.weight"):
            continue
        layer = key.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
        b_OR, rank = state[key.replace("lora_A", "lora_B")], a_RI.shape[0]
        own = _of_layer(lora.alpha_pattern, layer, lora.lora_alpha)
        scale = own / (math.sqrt(rank) if lora.use_rslora else rank)
        target, shape = names(f"{layer}.weight"), (b_OR.shape[0], a_RI.shape[1])
        if (own_shape := shapes.get(f"{layer}.weight", shape)) != shape:
            raise misfit(folder, f"it changes a {layer} of {[*shape]}, where this model has {[*own_shape]}")
        found[f"{target}.lora_a"] = a_RI
        found[f"{target}.lora_b"] = laid_out(target, b_OR, config) * (scale / (alpha / rank))
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[architecture_of(config).key])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    _write(writer, path, found, file_type, None)


def _of_layer(pattern: Mapping[str, float], layer: str, otherwise: float) -> float:
    """What a pattern of PEFT says of a layer: its keys match ends of names."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), otherwise)
