"""Frozen weights in 4 bits: NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3).

A block of 64 weights is kept as 64 of 16 values times its largest magnitude; these magnitudes, less their mean, are 8-bit numbers in blocks
of 256. That is 4 + 8/64 + 32/(64 * 256) = 4.127 bits a weight. bitsandbytes packs and unpacks; layer and gradient are ours, because
its own layer unpacks into another type than was trained with, and repacks its weights in place on some processors.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.artifacts import write_json
from posttrain.errors import ConfigError, ModelError
from posttrain.model.companions import copy_tokenizer, read_object
from posttrain.model.folder import check_model_folder
from posttrain.model.forward import score_head

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
BLOCK = 64
"""Weights that share one magnitude."""


def _bitsandbytes() -> Any:
    """bitsandbytes' functions. Raises ConfigError where it is not installed."""
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ConfigError(
            "weights in 4 bits need the package bitsandbytes",
            where="adapter.quantize",
            fix="pip install 'posttrain[qlora]'",
        ) from error
    return functional


def check_installed() -> None:
    """Raise ConfigError where bitsandbytes is not installed."""
    _bitsandbytes()


class Nf4Linear(nn.Linear):
    """A frozen linear layer whose weight [O, D] is kept in NF4; it computes with `dense`, in the type of its input.

    ``weight`` is what bitsandbytes packs: uint8 [O D / 2, 1], two weights a byte along the rows.
    """

    original_OD: Tensor | None = None
    """The weight before it was quantised, wherever it was loaded to; kept until `forget_originals`."""
    shows_original = False

    @torch.no_grad()
    def __init__(self, layer: nn.Linear, compute_dtype: torch.dtype, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.compute_dtype = layer.in_features, layer.out_features, compute_dtype
        self.original_OD = layer.weight.detach()
        weight_OD = layer.weight.detach().to(device).contiguous()
        packed, self.state = _bitsandbytes().quantize_4bit(
            weight_OD, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(device), requires_grad=False)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [O, D] that the 4 bits stand for; inside `originals` the one they were made of."""
        if self.shows_original and self.original_OD is not None:
            return self.original_OD.to(self.weight.device, dtype)
        return _dense_of(self.weight, self.state, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] W^T + bias [..., O]; nothing of W is kept for the backward pass but its 4 bits."""
        y: Tensor = _Product.apply(x, self)
        return y

    @property
    def nbytes(self) -> int:
        """What the weight takes: 4 bits each, and the constants of its blocks."""
        inner = self.state.state2
        tensors = (self.weight, self.state.absmax, self.state.code, inner.absmax, inner.code, self.state.offset)
        return sum(tensor.nbytes for tensor in tensors)

    def _apply(self, fn: Any, recurse: bool = True) -> Nf4Linear:
        super()._apply(fn, recurse)
        self.state.to(self.weight.device)
        return self


def _dense_of(packed: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """The weights that 4 bits stand for, in their own shape.

    They are unpacked as one row: on processors with AVX-512 bitsandbytes (0.50) takes the magnitudes of wrong blocks where the rows of a
    matrix are no whole number of blocks.
    """
    flat = copy.copy(state)
    flat.dtype, flat.shape = dtype, torch.Size([state.shape.numel()])
    weights: Tensor = _bitsandbytes().dequantize_4bit(packed, flat)
    return weights.view(state.shape)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dense(grads[0].dtype), None


KINDS = (nn.Linear, Nf4Linear)
"""Linear layers whose weight may be frozen, whichever way it is kept."""


def layers(model: nn.Module) -> list[Nf4Linear]:
    """The layers of a model that are kept in 4 bits."""
    return [module for module in model.modules() if isinstance(module, Nf4Linear)]


def dense_weight(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The weight [O, D] of a linear layer, whichever way it is kept."""
    return layer.dense(dtype) if isinstance(layer, Nf4Linear) else layer.weight


def compute_dtype(layer: nn.Linear) -> torch.dtype:
    """The type a linear layer computes in."""
    return layer.compute_dtype if isinstance(layer, Nf4Linear) else layer.weight.dtype


@contextlib.contextmanager
def originals(model: nn.Module) -> Iterator[None]:
    """Inside, a model computes with its weights as they were before they were quantised, one layer at a time on the device."""
    for layer in layers(model):
        layer.shows_original = True
    try:
        yield
    finally:
        for layer in layers(model):
            layer.shows_original = False


def forget_originals(model: nn.Module) -> None:
    """Free the weights that the 4 bits were made of."""
    for layer in layers(model):
        layer.original_OD = None


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)


def quantise(model: nn.Module, names: Collection[str], dtype: torch.dtype, device: torch.device) -> None:
    """Keep the named linear layers in NF4 from now on; everything else moves to ``device`` as ``dtype``.

    One layer after the other, so that the device never holds more than the 4 bits and one layer. The 4 bits are those of the weights as they
    stand in the model: load it in the type of its file, so that they do not depend on the type that is computed in.
    """
    for name in names:
        _replace(model, name, Nf4Linear(model.get_submodule(name), dtype, device))  # type: ignore[arg-type]
    scores = score_head(model)
    as_they_are = set() if scores is None else {id(p) for p in scores.parameters()}
    as_they_are |= {id(layer.weight) for layer in layers(model)}
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, parameter.dtype if id(parameter) in as_they_are else dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


@torch.no_grad()
def dequantise(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every layer in 4 bits the weight that it computes with, as a plain linear layer."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Nf4Linear):
            plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(module.dense(dtype), requires_grad=False)
            plain.bias = module.bias
            _replace(model, name, plain.train(module.training))


def number_of_parameters(model: nn.Module) -> int:
    """Parameters of a model; a packed weight counts as what it stands for."""
    packed = sum(layer.in_features * layer.out_features - layer.weight.numel() for layer in layers(model))
    return packed + sum(p.numel() for p in model.parameters())


# ---- folders of bitsandbytes -----------------------------------------------------------------------------------------


def unpack(source: Path, folder: Path) -> None:
    """Write a folder of bitsandbytes' 4 or 8 bits out as plain weights, in the type they were made to compute in, into an existing folder.

    transformers reads such a folder with another package only, and none of its weights could be trained or merged.
    """
    check_model_folder(source)
    config = read_object(source / "config.json")
    del config["quantization_config"]
    dtype = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
    tensors: dict[str, Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= load_file(file)
    try:
        plain = dict(_unpacked(tensors, dtype))
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"these packed weights can't be read: {error}", where=str(source), fix="give the model in 16 bits"
        ) from error
    save_file(plain, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", config)
    copy_tokenizer(source, folder)


def _unpacked(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        scales = tensors.get(f"{name.removesuffix('weight')}SCB")
        if own:  # 4 bits
            state = _bitsandbytes().QuantState.from_dict(own, tensor.device)
            yield name, _dense_of(tensor, state, torch.float32).to(dtype)
        elif tensor.dtype == torch.int8 and scales is not None:  # 8 bits, one scale a row
            yield name, (tensor.float() * (scales.float()[:, None] / 127)).to(dtype)
        elif ".weight." not in name and not name.endswith((".SCB", ".weight_format")):
            yield name, tensor
