"""Shared by the tests of the training room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from posttrain.model.config import LoraAdapter
from posttrain.train.config import TrainSettings


@pytest.fixture(scope="session")
def make_stage() -> Callable[..., TrainSettings]:
    """A small fp32 stage on the CPU, with changes by keyword."""

    def make(**changes: Any) -> TrainSettings:
        options: dict[str, Any] = {
            "adapter": LoraAdapter(rank=4, alpha=8),
            "batch_size": 4,
            "micro_batch_tokens": 64,
            "learning_rate": 5e-3,
            "dtype": "fp32",
            "device": "cpu",
        }
        return TrainSettings(**options | changes)

    return make
