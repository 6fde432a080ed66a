"""A peer and posttrain in turn, each in a process of its own that ends with one JSON line; medians and ratios."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from statistics import median
from typing import Any


def dtype_here(name: str) -> str:
    """``bf16`` or ``fp32``; ``auto`` is the one this machine multiplies faster."""
    from posttrain.model import hardware

    if name != "auto":
        return name
    chosen = hardware.choose_dtype("auto", hardware.resolve_device("auto"))
    return next(name for name, dtype in hardware.DTYPES.items() if dtype == chosen)


def last_json_line(command: Sequence[str]) -> dict[str, Any]:
    """Run a command and read the JSON line it ends with."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return line


def compare(peer: Sequence[str], own: Sequence[str], repeats: int, dtype: str) -> None:
    """Both in turn, ``repeats`` times; prints every line and one with the medians."""
    lines: dict[str, list[dict[str, Any]]] = {"peer": [], "own": []}
    for _ in range(repeats):
        for name, command in (("peer", peer), ("own", own)):
            lines[name].append(last_json_line(command))
            print(json.dumps(lines[name][-1]), flush=True)
    speed, memory = (
        {k: median(line[key] for line in v) for k, v in lines.items()} for key in ("tokens_per_second", "peak_rss_gb")
    )
    print(
        json.dumps(
            {
                "repeats": repeats,
                "dtype": dtype,
                "median_tokens_per_second": speed,
                "median_peak_rss_gb": memory,
                "speed_ratio": round(speed["own"] / speed["peer"], 2),
                "memory_ratio": round(memory["own"] / memory["peer"], 3),
            }
        )
    )
