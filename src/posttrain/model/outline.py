"""A model without memory: of a configuration, with as many layers as wanted, on tensors that have shapes and no values.

What a step keeps and needs follows from shapes alone; so it can be traced for a model that no machine here could hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from posttrain.errors import ModelError
from posttrain.model import attention
from posttrain.model.folder import in_a_line
from posttrain.model.forward import Path, set_path
from posttrain.model.load import quiet_transformers


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Inside, new tensors have no values; those that are kept from one pass to the next are forgotten before and after."""
    attention.forget()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        attention.forget()


def outline_model(config: Mapping[str, Any], layers: int, dtype: torch.dtype, where: str) -> PreTrainedModel:
    """A language model of a ``config.json`` with so many layers, taken to compute packed passes; on the meta device.

    Raises ModelError where transformers can't build it.
    """
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    assert isinstance(text, Mapping)
    known = {
        key: value for key, value in text.items() if key not in ("model_type", "layer_types", "dtype", "torch_dtype")
    }
    try:
        with quiet_transformers(), torch.device("meta"):
            whole = AutoConfig.for_model(
                text.get("model_type", config.get("model_type")), **known | {"num_hidden_layers": layers}
            )
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                whole, dtype=dtype, attn_implementation=attention.IMPLEMENTATION, trust_remote_code=False
            )
    except Exception as error:  # foreign code: whatever it raises is what it says of this configuration
        raise ModelError(f"this model can't be built to trace it: {in_a_line(error)}", where=where) from error
    set_path(model, Path("packed", shares=True))
    return model


def on_no_memory(model: nn.Module) -> nn.Module:
    """The model of the meta device as one of the CPU, on tensors without values. Inside of `without_memory`."""
    known: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fresh = known.setdefault(id(parameter), nn.Parameter(_empty(parameter), parameter.requires_grad))
                module._parameters[name] = fresh  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = known.setdefault(id(buffer), _empty(buffer))
    return model


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="cpu")
