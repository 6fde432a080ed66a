"""Shared by the tests of several processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from forking import ForkServer
from rank_groups import Groups


@pytest.fixture(scope="session")
def groups(small_model: Path) -> Iterator[Groups]:
    """Processes that have imported everything already."""
    server = ForkServer(Path(__file__).with_name("rank_server.py"), small_model)
    yield Groups(server)
    server.close()
