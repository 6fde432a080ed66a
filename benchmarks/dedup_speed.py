"""Near-duplicate removal with MinHash, the whole job from rows.jsonl to kept rows, next to datasketch and rensa.

    python benchmarks/dedup_speed.py CORPUS                       one JSON line
    python benchmarks/dedup_speed.py CORPUS --against PYTHON SCRIPT [--peers datasketch rensa] [--repeats 3]
                                                                  all in turn, then medians and ratios

CORPUS is a folder with rows.jsonl and truth.jsonl: for every planted copy the id of its source and the Jaccard similarity of
their 5-gram sets. PYTHON is an interpreter that has the peers, SCRIPT takes a peer's name and CORPUS and prints one JSON line.

posttrain runs as a user runs it: `posttrain data dedup rows.jsonl -o DIR`, start of the interpreter and of the workers
included; it also writes rejects, clusters and the ledger. ``cpu_seconds`` is the processor time of all its processes, the fairer number
on a busy machine. ``peak_rss_gb`` is the largest sum of the resident memory of all its processes.

Exactness is measured twice. ``precision`` and ``recall`` use the similarity under the tokenizer that posttrain compares with, recomputed
here with plain Python sets: dropped rows at or above the threshold to the row named as their twin; planted pairs at 0.1
above the threshold or more of which one row is gone. ``precision_by_truth`` and ``recall_by_truth`` use the numbers in truth.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import psutil
from plain_ngrams import ngrams
from process_tree import usage

from posttrain.data.text import tokens


def measured(command: list[str]) -> tuple[str, dict[str, float]]:
    """Run a command; what it prints, and its seconds, processor seconds and largest memory."""
    peak, cpu = 0, dict[int, float]()
    with tempfile.TemporaryFile("w+") as printed:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.DEVNULL, text=True)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, usage(watched, cpu))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        printed.seek(0)
        out = printed.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return out, {"seconds": seconds, "cpu_seconds": sum(cpu.values()), "peak_rss_gb": peak / 1e9}


def own(corpus: Path, threshold: float, workers: int) -> dict[str, Any]:
    """One run of posttrain."""
    with tempfile.TemporaryDirectory(dir=corpus) as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "posttrain", "data", "dedup", str(corpus / "rows.jsonl"), "-o", str(out)]
        command += ["--method", "minhash", "--threshold", str(threshold), "--workers", str(workers), "--json"]
        _, cost = measured(command)
        rows = json.loads((out / "dedup" / "ledger.json").read_text())["rows_in"]
        return {
            "peer": "posttrain",
            "rows": rows,
            "workers": workers,
            **_rounded(cost, rows),
            **exactness(corpus, out / "dedup", threshold),
        }


def _rounded(cost: dict[str, float], rows: int) -> dict[str, float]:
    return {
        "seconds": round(cost["seconds"], 1),
        "rows_per_second": round(rows / cost["seconds"]),
        "cpu_seconds": round(cost["cpu_seconds"], 1),
        "peak_rss_gb": round(cost["peak_rss_gb"], 2),
    }


def exactness(corpus: Path, out: Path, threshold: float) -> dict[str, Any]:
    """Precision and recall of a finished run."""
    texts = [json.loads(line)["messages"][0]["content"] for line in (corpus / "rows.jsonl").open(encoding="utf-8")]
    truth = [json.loads(line) for line in (corpus / "truth.jsonl").open(encoding="utf-8")]
    # rows whose whole conversation stood before go while the file is read; the others in the step
    ledger = json.loads((out / "ledger.json").read_text())
    pairs = [(r["line"] - 1, int(r["detail"].rsplit(":", 1)[1]) - 1) for r in ledger["rejects"]]
    rejects = pl.read_parquet(out / "steps" / "01-dedup" / "rejects.parquet", columns=["line", "detail"])
    pairs += [(line - 1, int(detail.rsplit(":", 1)[1]) - 1) for line, detail in rejects.iter_rows()]
    dropped = {row for row, _ in pairs}
    planted = {row: pair for pair in truth for row in (pair["id"], pair["source"])}
    by_truth = sum(row in planted and planted[row]["jaccard"] >= threshold for row in dropped)
    right = sum(jaccard(texts[row], texts[twin]) >= threshold for row, twin in pairs)

    def recall(measure: Any) -> float:
        sure = [pair for pair in truth if measure(pair) >= threshold + 0.1]
        return sum(pair["id"] in dropped or pair["source"] in dropped for pair in sure) / max(1, len(sure))

    return {
        "dropped": len(dropped),
        "precision": round(right / max(1, len(dropped)), 5),
        "recall": round(recall(lambda pair: jaccard(texts[pair["id"]], texts[pair["source"]])), 5),
        "precision_by_truth": round(by_truth / max(1, len(dropped)), 5),
        "recall_by_truth": round(recall(lambda pair: pair["jaccard"]), 5),
    }


def jaccard(left: str, right: str) -> float:
    """Of the sets of 5-grams."""
    a, b = ngrams(tokens(left), 5), ngrams(tokens(right), 5)
    return len(a & b) / len(a | b)


def peer(python: str, script: str, name: str, corpus: Path, threshold: float) -> dict[str, Any]:
    """One run of a peer; its own numbers, with the cost measured as ours."""
    out, cost = measured([python, script, name, str(corpus), "--threshold", str(threshold)])
    line: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return line | _rounded(cost, line["rows"])


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--against", nargs=2, metavar=("PYTHON", "SCRIPT"))
    parser.add_argument("--peers", nargs="+", default=["datasketch", "rensa"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not options.against:
        print(json.dumps(own(options.corpus, options.threshold, options.workers)))
        return
    lines: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeats):
        for name in ("posttrain", *options.peers):
            if name == "posttrain":
                line = own(options.corpus, options.threshold, options.workers)
            else:
                line = peer(*options.against, name, options.corpus, options.threshold)
            lines.setdefault(name, []).append(line)
            print(json.dumps(line), flush=True)
    speed = {name: median(line["rows_per_second"] for line in found) for name, found in lines.items()}
    cpu = {name: median(line["cpu_seconds"] for line in found) for name, found in lines.items()}
    others = [name for name in lines if name != "posttrain"]
    print(
        json.dumps(
            {
                "repeats": options.repeats,
                "median_rows_per_second": speed,
                "median_cpu_seconds": cpu,
                "speed_ratio": {name: round(speed["posttrain"] / speed[name], 2) for name in others},
                "cpu_ratio": {name: round(cpu[name] / cpu["posttrain"], 2) for name in others},
            }
        )
    )


if __name__ == "__main__":
    main()
