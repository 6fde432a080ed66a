"""Fixtures shared by all tests: the real tokenizer, a tiny model built in code, the folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of SmolLM2-135M-Instruct in Hugging Face format."""
    folder = os.environ.get("POSTTRAIN_DEMO_MODEL")
    if not folder:
        pytest.skip("POSTTRAIN_DEMO_MODEL names no model folder")
    return Path(folder)
