"""How many threads a run computes with: measured once, kept with the run, said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.artifacts import RunDir
from posttrain.model import hardware
from posttrain.stages.base import Context


class Notes(list[str]):
    """A display that keeps what is said."""

    note = list.append


def context(run: Path, notes: Notes) -> Context:
    display: Any = notes
    return Context("sft", RunDir(run), 0, "", "", {}, display, lambda: run, display)


def test_threads_are_measured_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, speeds, notes = torch.get_num_threads(), iter([{1: 0.09, 2: 0.7}]), Notes()
    monkeypatch.setattr(hardware, "thread_speeds", lambda most: next(speeds))
    try:
        context(tmp_path, notes).settle_threads()
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        context(tmp_path, notes).settle_threads()  # a resumed run: the same bits
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert notes == ["computing with 1 of 2 threads: 7.8 times as fast here now, where others are at work too"]


def test_the_environment_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(hardware, "thread_speeds", lambda most: pytest.fail("nothing is measured"))
    context(tmp_path, Notes()).settle_threads()


def test_the_measurement_leaves_everything_as_it_was() -> None:
    before, drawn = torch.get_num_threads(), torch.get_rng_state()
    speeds = hardware.thread_speeds(3)
    assert list(speeds) == [1, 2, 3]
    assert min(speeds.values()) > 0
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), drawn)
