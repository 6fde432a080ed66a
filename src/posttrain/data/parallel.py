"""The same work on every block of a file of rows, in one process or several, with the results in the order of the blocks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from posttrain.data.steps import BLOCK_ROWS, blocks, count_rows

R = TypeVar("R")

_work: list[Callable[[pl.DataFrame], Any]] = []
"""The work of this worker process, sent once instead of with every block."""


def map_blocks(
    work: Callable[[pl.DataFrame], R], rows: Path, columns: Sequence[str], workers: int = 1, size: int = BLOCK_ROWS
) -> Iterator[tuple[int, R]]:
    """(place of the first row, result) of every block of rows.

    ``work`` is a pure function; with several workers it and its results travel between processes (pickle), and every
    worker reads its own blocks.
    """
    begins = range(0, count_rows(rows), size)
    if workers == 1 or len(begins) < 2:
        for begin, block in blocks(rows, columns, size):
            yield begin, work(block)
        return
    # spawn: polars has threads, and a forked child would inherit their locks but not the threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(begins)), context, _start, (work,)) as pool:
        yield from zip(begins, pool.map(_block, [(rows, begin, tuple(columns), size) for begin in begins]), strict=True)


def _start(work: Callable[[pl.DataFrame], Any]) -> None:
    _work[:] = [work]


def _block(task: tuple[Path, int, tuple[str, ...], int]) -> Any:
    rows, begin, columns, size = task
    return _work[0](pl.scan_parquet(rows).select(columns).slice(begin, size).collect())
