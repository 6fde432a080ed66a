"""The same results on every engine, in the order of the blocks."""

from __future__ import annotations

import subprocess
import sys
import time
from operator import methodcaller
from pathlib import Path

import polars as pl
import pytest

from posttrain.data.engine import map_rows
from posttrain.data.steps import StepRun
from posttrain.errors import ConfigError
from posttrain.holder import started_ticks


def run(workers: int = 1, engine: str = "local") -> StepRun:
    return StepRun(lambda name: None, workers, engine)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.data.steps.BLOCK_ROWS", 4)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_blocks(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"number": range(10), "other": ["x"] * 10}).write_parquet(path)
    found = list(map_rows(methodcaller("item", 0, "number"), path, ["number"], run(workers), "work"))
    assert found == [(0, 0), (4, 4), (8, 8)]


def test_an_empty_file_has_no_blocks(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"number": []}, schema={"number": pl.Int64}).write_parquet(path)
    assert list(map_rows(methodcaller("item", 0, "number"), path, ["number"], run(2), "work")) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_comes_out(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"number": range(8)}).write_parquet(path)
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        list(map_rows(methodcaller("item", 0, "none"), path, ["number"], run(workers), "work"))


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"number": range(4)}).write_parquet(path)
    with pytest.raises(ConfigError, match="unknown engine 'spark'"):
        list(map_rows(methodcaller("item", 0, "number"), path, ["number"], run(engine="spark"), "work"))


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(
        "import os, time\nfrom posttrain.data.engine import _pool\n"
        "if __name__ == '__main__':\n"
        "    pool = _pool(2)\n    list(pool.map(os.path.basename, ['a/b', 'c/d']))\n"
        "    print(*pool._processes, flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers
    assert all(started_ticks(pid) for pid in workers)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while any(started_ticks(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
