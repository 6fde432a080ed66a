"""An online training that is killed with SIGKILL while it samples, scores, learns or saves ends in the same bits as one that is not."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forking import ForkServer

STEPS = 24
KILLS = 20
TIMES = ("seconds", "tokens_per_second", "flops_per_second", "memory_bytes", "seconds/sampling", "seconds/learning")


@pytest.fixture(scope="module")
def server(small_model: Path) -> Iterator[ForkServer]:
    server = ForkServer(Path(__file__).with_name("online_server.py"), small_model)
    yield server
    server.close()


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.mark.slow
def test_killed_twenty_times(server: ForkServer, tmp_path: Path) -> None:
    server.start(tmp_path / "whole", steps=STEPS, die=None)
    assert server.status() == 0
    draw, phases = random.Random(0), ["sampling", "scoring", "learning", "saving"]
    for number in range(KILLS):
        phase = phases[number % len(phases)]
        server.start(tmp_path / "cut", steps=STEPS, die=[phase, draw.randint(1, 6 if phase == "learning" else 2)])
        assert os.WTERMSIG(server.status()) == signal.SIGKILL
    assert len(records(tmp_path / "cut")) < len(records(tmp_path / "whole")), "no life reached the end"
    server.start(tmp_path / "cut", steps=STEPS, die=None)
    assert server.status() == 0
    for file in sorted(p.name for p in (tmp_path / "whole" / "adapter").iterdir()):
        one, other = (tmp_path / name / "adapter" / file for name in ("cut", "whole"))
        assert one.read_bytes() == other.read_bytes(), file
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
