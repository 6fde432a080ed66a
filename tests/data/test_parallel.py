"""The same results for one worker and several, in the order of the blocks."""

from __future__ import annotations

from operator import methodcaller
from pathlib import Path

import polars as pl
import pytest

from posttrain.data.parallel import map_blocks


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_blocks(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"number": range(10), "other": ["x"] * 10}).write_parquet(path)
    found = list(map_blocks(methodcaller("item", 0, "number"), path, ["number"], workers, size=4))
    assert found == [(0, 0), (4, 4), (8, 8)]


def test_an_empty_file_has_no_blocks(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"number": []}, schema={"number": pl.Int64}).write_parquet(path)
    assert list(map_blocks(methodcaller("item", 0, "number"), path, ["number"], 2)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_comes_out(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"number": range(4)}).write_parquet(path)
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        list(map_blocks(methodcaller("item", 0, "none"), path, ["number"], workers, size=2))
