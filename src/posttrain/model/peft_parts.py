"""What is used of PEFT, loaded without torch's compiler.

PEFT loads bitsandbytes where that is installed, which hands functions to ``torch.compile`` while it is loaded, and the first such call loads
the compiler: a second of the six that a training takes to start. Here they are compiled when they are first called, if they ever are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch


def _later(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """In place of ``torch.compile``: a function that is compiled at its first call."""
    if function is None:
        return functools.partial(_later, **options)
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if not compiled:
            compiled.append(torch.compile(function, **options))
        return compiled[0](*arguments, **named)

    return call


@contextlib.contextmanager
def compiled_later() -> Iterator[None]:
    """Inside, functions that are handed to ``torch.compile`` are compiled at their first call."""
    now = torch.compile
    torch.compile = _later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = now


with compiled_later():
    from peft import (
        LoraConfig,
        PeftConfig,
        PeftModel,
        get_peft_model,
        get_peft_model_state_dict,
        set_peft_model_state_dict,
    )
    from peft.tuners.lora import Linear as LoraLinear
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

__all__ = [
    "LoraConfig",
    "LoraLinear",
    "PeftConfig",
    "PeftModel",
    "convert_peft_config_for_transformers",
    "get_peft_model",
    "get_peft_model_state_dict",
    "set_peft_model_state_dict",
]
