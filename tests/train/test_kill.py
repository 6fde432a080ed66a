"""A run that is killed with SIGKILL again and again ends in the same bits as one that is not."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forking import ForkServer

STEPS_PER_LIFE = 6
TIMES = ("seconds", "tokens_per_second", "flops_per_second", "memory_bytes")


@pytest.fixture(scope="module")
def server(small_model: Path) -> Iterator[ForkServer]:
    server = ForkServer(Path(__file__).with_name("training_server.py"), small_model)
    yield server
    server.close()


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def assert_same(cut: Path, whole: Path) -> None:
    for name in ("adapter", "last"):
        files = sorted(p.name for p in (whole / name).glob("*"))
        assert files == sorted(p.name for p in (cut / name).glob("*"))
        for file in files:
            assert (cut / name / file).read_bytes() == (whole / name / file).read_bytes(), f"{name}/{file}"
    assert records(cut) == records(whole)


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "kills"), [("sft", 6), ("dpo", 3)])
def test_kills_at_random_moments(objective: str, kills: int, server: ForkServer, tmp_path: Path) -> None:
    """Every life ends after a random number of records and a random moment more: in a step, a write, an evaluation."""
    steps = kills * STEPS_PER_LIFE + 12
    server.start(tmp_path / "whole", max_steps=steps, objective=objective)
    assert server.status() == 0
    draw, log = random.Random(0), tmp_path / "cut" / "metrics.jsonl"
    reached = []
    for _ in range(kills):
        pid = server.start(tmp_path / "cut", max_steps=steps, objective=objective)
        target = lines_of(log) + draw.randrange(STEPS_PER_LIFE)
        deadline = time.monotonic() + 60
        while lines_of(log) < target and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(server.status()) == signal.SIGKILL
        reached.append(lines_of(log))
    assert max(reached) < lines_of(tmp_path / "whole" / "metrics.jsonl")
    server.start(tmp_path / "cut", max_steps=steps, objective=objective)
    assert server.status() == 0
    assert_same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(server: ForkServer, tmp_path: Path) -> None:
    """At the very first checkpoint, at later ones, half-way through the file and just before it takes its name."""
    server.start(tmp_path / "whole", max_steps=12)
    assert server.status() == 0
    for which, where in ((1, "half"), (1, "whole"), (2, "half"), (4, "half"), (3, "whole"), (1, "half")):
        server.start(tmp_path / "cut", max_steps=12, die_in_save=(which, where))
        assert os.WTERMSIG(server.status()) == signal.SIGKILL
    server.start(tmp_path / "cut", max_steps=12)
    assert server.status() == 0
    assert_same(tmp_path / "cut", tmp_path / "whole")
