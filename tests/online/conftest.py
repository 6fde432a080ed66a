"""Shared by the tests of online learning."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from own_replies import learn


@pytest.fixture(scope="session")
def online(small_model: Path) -> Callable[..., dict[str, Any]]:
    """``online(out, value, held_out=2, **changes)``: run the loop on the small model; value: what a reply is worth."""
    return partial(learn, small_model)
