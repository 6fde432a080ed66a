"""Where the work on blocks runs: in this process, in a pool of processes, or on a Ray cluster. The results are the same.

A function of one item is all an engine knows; it must be a pure, picklable one (a function of a module, or a
``functools.partial`` of one). Results come in the order of the items, whatever was finished first.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from posttrain.errors import ConfigError, RunError
from posttrain.holder import end_with
from posttrain.parallel.ray_cluster import connected

if TYPE_CHECKING:
    import polars as pl

    from posttrain.data.steps import StepRun

Item = TypeVar("Item")
Result = TypeVar("Result")
_Part = tuple[int, NDArray[np.int64] | None]
"""Where a block begins, and the places of the wanted rows in it (None: all)."""

ENGINES = ("local", "ray")
_AHEAD = 2
"""Items sent ahead for each worker: enough to keep it busy, few enough that results do not pile up."""


def map_blocks(function: Callable[[Item], Result], items: Iterable[Item], run: StepRun) -> Iterator[Result]:
    """``function(item)`` for every item, in their order, on the engine that ``run`` names.

    Raises ConfigError for an unknown engine, and for ``ray`` where it is not installed; RunError where a worker process is
    killed; what ``function`` raises comes through.
    """
    if run.engine not in ENGINES:
        raise ConfigError(f"unknown engine {run.engine!r}", where="engine", fix=f"known: {', '.join(ENGINES)}")
    if run.engine == "ray":
        return _on_ray(function, items, run.workers)
    if run.workers > 1:
        return _in_processes(function, items, run.workers)
    return map(function, items)


def map_rows(
    work: Callable[[pl.DataFrame], Result],
    rows_file: Path,
    columns: Sequence[str],
    run: StepRun,
    what: str,
    only: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[int, Result]]:
    """(place of the first row, result of ``work``) for every block of a file of rows; ``what`` names it to the progress bar.

    ``only``: bool [rows of the file], the rows that are wanted; blocks without one are left out. Each worker reads its own
    blocks, so on a cluster every node must see the file under the same path.
    """
    from posttrain.data.steps import BLOCK_ROWS, count_rows

    total = count_rows(rows_file)
    items: list[_Part] = [
        (begin, None if only is None else np.flatnonzero(only[begin : begin + BLOCK_ROWS]))
        for begin in range(0, total, BLOCK_ROWS)
    ]
    items = [(begin, places) for begin, places in items if places is None or len(places)]
    function = partial(_work_on_rows, work, rows_file.absolute(), tuple(columns), BLOCK_ROWS)
    for (begin, _), result in zip(items, map_blocks(function, items, run), strict=True):
        yield begin, result
        run.progress(what, min(begin + BLOCK_ROWS, total), total)


def _work_on_rows(
    work: Callable[[pl.DataFrame], Result], rows_file: Path, columns: tuple[str, ...], size: int, part: _Part
) -> Result:
    from posttrain.data.rows import scan_rows

    begin, places = part
    block = scan_rows(rows_file).select(columns).slice(begin, size).collect()
    return work(block if places is None else block[places])


# ---- processes -----------------------------------------------------------------------------------------------------


def _in_processes(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    pool = _pool(workers)
    try:
        yield from _in_order(lambda item: pool.submit(function, item), items, _AHEAD * workers)
    except BrokenProcessPool as error:
        _pool.cache_clear()
        raise RunError(
            "a worker process was killed (out of memory?)",
            where="workers",
            fix="run again with fewer workers; what was finished is kept",
        ) from error


def _in_order(send: Callable[[Item], Future[Result]], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """The results in the order of their items, of which so many are sent ahead."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(send(item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """The workers of this process. They stay for later work, because starting one takes as long as thousands of rows."""
    # spawn: polars has threads, and a forked child would inherit their locks but not the threads
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker, (os.getpid(),))


def _begin_worker(parent: int) -> None:
    """Prepare a worker before it loads polars: one thread, for the pool uses all cores it was given, and an end when its parent ends."""
    end_with(parent)
    for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"


# ---- Ray -----------------------------------------------------------------------------------------------------------


def _on_ray(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    ray = connected(workers, "engine")
    task, shared = ray.remote(num_cpus=1)(_apply), ray.put(function)
    ahead = _AHEAD * int(ray.cluster_resources().get("CPU", workers))
    return _in_order(lambda item: task.remote(shared, item).future(), items, ahead)


def _apply(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)
