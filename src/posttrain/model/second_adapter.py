"""Another adapter over weights that are in memory already: a reward model that was trained on a policy's base is its adapter and its head.

While it computes, the policy's adapter is off and every layer under the other one adds that one's product to its own,
y = W x + s B A x: it may have other ranks, scales and targets than the policy's. Nothing trains here.

Shapes: T tokens, D input size, O output size, R rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from posttrain.errors import ModelError
from posttrain.model import quantise
from posttrain.model.adapters import adapter_off, quantised_base
from posttrain.model.folder import in_a_line
from posttrain.model.forward import causal_lm
from posttrain.model.fused import Lora
from posttrain.model.lineage import model_digest
from posttrain.model.peft_parts import LoraConfig, PeftConfig, PeftModel

BEFORE, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
"""What PEFT writes around the name of a layer."""
HEAD = "base_model.model.score.weight"
_MORE = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
)
"""Settings of PEFT that make an adapter more than one scale times B A in every layer; biases show in its tensors."""


class InMemory(NamedTuple):
    """A model in memory whose base others may compute on."""

    model: nn.Module
    folder: Path
    """Of the weights under its adapter."""
    dtype: torch.dtype
    """What it computes in."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return causal_lm(self.model).get_input_embeddings().weight.device  # type: ignore[no-any-return]


class Apart(NamedTuple):
    """Not over these weights, and why."""

    why: str


@dataclass(frozen=True)
class SecondAdapter:
    """An adapter with a score head, in the compute type of the model that it shares the base of; the head in fp32."""

    model: nn.Module
    layers: tuple[tuple[nn.Module, Lora], ...]
    """Layers of the base, and what is added to each."""
    head: nn.Linear

    @contextlib.contextmanager
    def playing(self) -> Iterator[None]:
        """Inside, the model computes the hidden states of this adapter; without gradients."""
        training = self.model.training
        with contextlib.ExitStack() as undo:
            undo.callback(self.model.train, training)
            self.model.eval()
            undo.enter_context(adapter_off(self.model))
            undo.enter_context(torch.no_grad())
            for layer, lora in self.layers:
                undo.callback(layer.register_forward_hook(partial(_added, lora)).remove)
            yield


def second_adapter(on: InMemory, folder: Path, adapter: Path | None) -> SecondAdapter | Apart:
    """A reward model over the weights of a model in memory, where that is the same as a model of its own.

    folder: of the weights that the reward model was trained on. Raises ModelError for an adapter that can't be read.
    """
    if adapter is None:
        return Apart("all weights of the reward model were trained")
    if not isinstance(on.model, PeftModel):
        return Apart("all weights of the policy train")
    if folder.resolve() != on.folder.resolve() and model_digest(folder) != model_digest(on.folder):
        return Apart(f"it lies on other weights ({folder})")
    if (quantised_base(adapter) is not None) != bool(quantise.layers(on.model)):
        return Apart("only one of the two lies on weights in 4 bits")
    try:
        settings, tensors = PeftConfig.from_pretrained(str(adapter)), load_file(adapter / "adapter_model.safetensors")
    except Exception as error:  # PEFT and safetensors each raise their own types here
        raise ModelError(f"this adapter can't be read: {in_a_line(error)}", where=str(adapter)) from error
    if not isinstance(settings, LoraConfig) or any(getattr(settings, name, None) for name in _MORE):
        return Apart("its adapter is more than plain LoRA (dora, ranks by layer, or stacked experts)")
    return _read(on, settings.lora_alpha / (settings.r**0.5 if settings.use_rslora else settings.r), tensors)


def _read(on: InMemory, scale: float, tensors: Mapping[str, Tensor]) -> SecondAdapter | Apart:
    """The adapter with its layers found in the model."""
    inner, found = causal_lm(on.model), []
    paths = sorted(name.removeprefix(BEFORE).removesuffix(A) for name in tensors if name.endswith(A))
    known = {HEAD, *(f"{BEFORE}{path}{end}" for path in paths for end in (A, B))}
    if odd := sorted({*tensors} ^ known):
        return Apart(f"its adapter is more than plain LoRA and a score head ({odd[0]})")
    for path in paths:
        layer = _layer(inner, path)
        a_RD, b_OR = (tensors[f"{BEFORE}{path}{end}"].to(on.device, on.dtype) for end in (A, B))
        if layer is None or (layer.in_features, layer.out_features) != (a_RD.shape[1], b_OR.shape[0]):
            return Apart(f"the policy has no layer {path} of its size")
        found.append((layer, Lora(a_RD, b_OR, scale)))
    weight = tensors[HEAD].to(on.device, torch.float32)
    head = nn.Linear(weight.shape[1], 1, bias=False, device="meta").requires_grad_(False)
    head.weight = nn.Parameter(weight, requires_grad=False)
    return SecondAdapter(on.model, tuple(found), head)


def _layer(model: nn.Module, path: str) -> Any:
    """The linear layer of this name, under the policy's adapter where it has one there; None where there is none."""
    try:
        found: Any = model.get_submodule(path)
    except AttributeError:
        return None
    found = getattr(found, "base_layer", found)
    return found if type(found) in quantise.KINDS else None


def _added(lora: Lora, layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
    """y + s (x A^T) B^T, in place: y was made by this layer for this call."""
    x_TD = inputs[0].reshape(-1, inputs[0].shape[-1])
    y.view(-1, y.shape[-1]).addmm_(x_TD @ lora.a_RD.T, lora.b_OR.T, alpha=lora.scale)
    return y
