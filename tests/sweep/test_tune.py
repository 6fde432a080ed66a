"""The four-step search: what it tries next, where a curve turns, and a whole search on a micro model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import posttrain
from posttrain.artifacts import read_json
from posttrain.model import hardware
from posttrain.plan.guidance import Advice
from posttrain.report.reading import parse
from posttrain.sweep.steps import TuneRecord, batches, epochs_at, more_rates, rates, turn
from sweep.test_sweep import recipe


def test_the_first_grid_spans_the_advice() -> None:
    assert rates(Advice(2e-4, 2e-5, 2e-4, "")) == (2e-5, 6.3e-5, 2e-4)
    assert rates(Advice(2e-4, 1e-4, 2e-4, "")) == (1e-4, 2e-4)


@given(st.floats(-5.3, -1.5), st.floats(0.2, 3))
def test_the_rate_found_is_within_a_factor_of_two_of_the_best(at: float, width: float) -> None:
    """Over any valley in the logarithm of the rate whose floor lies within reach: the range and three further rates on each side."""

    def loss(rate: float) -> float:
        return ((math.log10(rate) - at) / width) ** 2

    tried, extensions = set(rates(Advice(2e-4, 2e-5, 2e-4, ""))), 0
    for _ in range(20):
        best = min(tried, key=loss)
        more = more_rates(sorted(tried), best, extensions)
        if not more:
            break
        extensions += any(rate > max(tried) or rate < min(tried) for rate in more)
        tried |= set(more)
    assert not more, "it ends"
    assert len(tried) <= 9
    if 6.3e-7 <= 10**at <= 6.3e-3:
        assert 0.5 <= best / 10**at <= 2


def test_a_curve_turns_where_it_is_no_longer_shown_to_fall() -> None:
    rows = {f"r{k}": 2.0 + k / 10 for k in range(10)}
    wobble = np.linspace(-0.01, 0.01, 10)

    def shifted(by: float) -> dict[str, float]:
        return {row: value + by + w for (row, value), w in zip(rows.items(), wobble * by * 10, strict=True)}

    losses = {0: shifted(1.0), 10: shifted(0.5), 20: shifted(0.0), 30: shifted(0.0), 40: shifted(0.4)}
    assert turn(losses) == 20
    assert epochs_at(20, 40, 4) == 2
    assert epochs_at(21, 40, 4) == 3
    assert batches((8, 16, 32), rows=130, epochs=1) == (8, 16)


@pytest.mark.slow
@pytest.mark.demo_model
@pytest.mark.filterwarnings("always")
def test_a_whole_search(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "matmul_flops", lambda *_: 1e9)
    path = recipe(tmp_path, tiny_model, {"seeds": [0, 1]})
    command = ("tune", path, "--runs", tmp_path / "runs", "--learning-rates", "[1e-3, 1e-2]", "--epochs", "2")
    command = (*command, "--ranks", "[2, 4]", "--batch-sizes", "[1, 2]")
    asked = posttrain(*command, "--dry-run")
    assert asked.code == 0, asked.err
    assert "Nothing was run" in asked.out
    assert not (tmp_path / "runs").exists()
    done = posttrain(*command)
    assert done.code == 0, done.err
    file = tmp_path / "runs" / "r-tune" / "tune" / "tune.json"
    found = parse(TuneRecord, read_json(file), file)
    assert [step.name for step in found.steps] == ["learning_rate", "epochs", "rank", "batch_size"]
    kept: dict[str, object] = {}
    for step in found.steps:
        assert kept.items() <= step.kept.items(), "each step goes on from what was kept"
        assert all(kept.items() <= one.changes.items() for one in step.record.settings if not one.as_written)
        kept = step.kept
    assert found.kept == kept
    assert found.steps[2].beside is not None
    alphas = {one.changes["sft.adapter.alpha"] for one in found.steps[2].beside.settings}
    assert alphas == {4, 8}
    assert (tmp_path / "runs" / "r-tune" / "report" / "index.html").is_file()
    with_another = posttrain("tune", path, "--runs", tmp_path / "runs", "--stage", "sft", "--ranks", "[2]")
    assert with_another.code == 0, "the same stage: it goes on, with other ranks"
