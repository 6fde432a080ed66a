"""The board over 300 runs of 5,000 records each: how fast pages come, how soon news arrives, what watching costs.

    python benchmarks/board.py             prints JSON; about a minute

Each page is asked for eleven times; the first answer is told apart, of the others the median. News: the time from a record being written
to its arrival in an open stream. Idle: processor time of the server while a page is open on the list and one on a run, and nothing changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

RUNS, RECORDS, BROWSERS, TIMES = 300, 5000, 50, 10


def record(step: int) -> dict[str, Any]:
    return {
        "split": "train", "step": step, "total_steps": RECORDS, "epoch": step / RECORDS, "loss": 2.0 + 1.0 / step, "grad_norm": 1.0 / step,
        "learning_rate": 1e-4, "tokens": 900, "computed_tokens": 900, "supervised_tokens": 400, "tokens_per_second": 250.0,
        "memory_bytes": 2_000_000_000, "seconds": step * 0.4,
    }  # fmt: skip


def write_runs(folder: Path) -> None:
    lines = "".join(json.dumps(record(step)) + "\n" for step in range(1, RECORDS + 1))
    for number in range(RUNS):
        run = folder / f"run-{number:03}"
        stages = {"prepare": "data", "sft": "train", "evaluate": "eval"}
        text = "".join(f"  {name}:\n    kind: {kind}\n    seed: 0\n" for name, kind in stages.items())
        (run / "sft").mkdir(parents=True)
        (run / "recipe.yaml").write_text(f"name: {run.name}\nmodel: tiny\nseed: 0\nstages:\n{text}")
        for name, kind in stages.items():
            (run / name).mkdir(exist_ok=True)
            value = {
                "schema": 1,
                "kind": kind,
                "status": "complete",
                "digest": "d",
                "started": 1.7e9 + number,
                "config": {},
            }
            (run / name / "manifest.json").write_text(json.dumps(value))
        (run / "sft" / "metrics.jsonl").write_text(lines)


def timed(client: httpx.Client, address: str) -> dict[str, float]:
    found = []
    for _ in range(TIMES + 1):
        begun = time.perf_counter()
        client.get(address).raise_for_status()
        found.append(1000 * (time.perf_counter() - begun))
        time.sleep(0.5)  # as a person would: nothing is remembered from the answer before
    return {"first_ms": round(found[0], 1), "median_ms": round(statistics.median(found[1:]), 1)}


def arrivals(client: httpx.Client, address: str, run: Path) -> float:
    """Median seconds from a record being written to its arrival."""
    found, written = [], 0.0
    with client.stream("GET", address, timeout=30) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith("event: head"))
        for step in range(RECORDS + 1, RECORDS + 6):
            time.sleep(0.7)
            with (run / "sft" / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record(step)) + "\n")
            written = time.perf_counter()
            next(line for line in lines if line.startswith("event: records"))
            found.append(time.perf_counter() - written)
    return statistics.median(found)


def idle_share(process: psutil.Process, addresses: list[str], seconds: float = 10.0) -> float:
    """Share of one core that the server takes with these streams open and nothing to tell."""
    end = threading.Event()

    def listen(address: str) -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.Client(timeout=60) as client,
            client.stream("GET", address) as answer,
        ):
            for _ in answer.iter_raw():
                if end.is_set():
                    return

    threads = [threading.Thread(target=listen, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    time.sleep(4)
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    used = sum(process.cpu_times()[:2]) - before
    end.set()
    return used / seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch)
        write_runs(runs)
        begun = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-m", "posttrain", "board", "--runs", str(runs), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert server.stderr is not None
        board = server.stderr.readline().split()[-1]
        found: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        try:
            with httpx.Client(timeout=60) as client:
                client.get(board).raise_for_status()
                found["opens_s"] = round(time.perf_counter() - begun, 2)
                for name in ("", "runs/run-007", "runs/run-007/curves", "compare?run=run-001&run=run-002"):
                    found[name or "list"] = timed(client, f"{board}{name}")
                lock = (runs / "run-007" / ".lock").open("w")
                fcntl.flock(lock, fcntl.LOCK_EX)
                (runs / "run-007" / ".started").touch()
                at = json.loads(client.get(f"{board}runs/run-007/curves").text)["at"]
                live = f"{board}runs/run-007/live?at={at}"
                found["news_s"] = round(arrivals(client, live, runs / "run-007"), 2)
                lock.close()
            process = psutil.Process(server.pid)
            found["idle_two_pages"] = round(idle_share(process, [f"{board}live", f"{board}runs/run-008/live"]), 4)
            found[f"idle_{BROWSERS}_pages"] = round(idle_share(process, [f"{board}live"] * BROWSERS), 4)
            found["memory_mb"] = round(process.memory_info().rss / 1e6)
        finally:
            server.terminate()
            server.wait(10)
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
