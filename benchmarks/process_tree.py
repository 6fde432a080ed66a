"""What a process and its children use while they run."""

from __future__ import annotations

import psutil


def usage(root: psutil.Process, processor: dict[int, float]) -> int:
    """Resident bytes of a process and all below it; their processor seconds so far go into ``processor`` by process number.

    One that ends while it is looked at keeps what it had used; pages that processes share count once for each.
    """
    resident = 0
    for one in [root, *_children(root)]:
        try:
            times = one.cpu_times()
            processor[one.pid] = times.user + times.system
            resident += one.memory_info().rss
        except psutil.Error:
            continue
    return resident


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []
