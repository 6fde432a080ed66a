"""The whole data chain on very many rows in one run: wall time, processor time and largest memory of every step.

    python benchmarks/chain_scale.py make OUT FILE.json [FILE.json ...] [--rows 1000000] [--answers 1] [--words 20] [--plant QUESTIONS.jsonl]
    python benchmarks/chain_scale.py chain OUT [--workers 1] [--engine ray] [--benchmark QUESTIONS.jsonl]
    python benchmarks/chain_scale.py select OUT RULE [RULE ...]        RULE is grape or few_but_good

``make`` varies real instruction rows: every new row is a real one in which a share of the words (Chinese: characters) of both turns is
replaced by words of other rows of that file, so that no two rows are alike; one row in twenty is a near-copy of an earlier one. Every
FILE becomes a source of its own, and OUT/<source>.jsonl has its rows in proportion to the file's. ``--answers 2`` gives every
instruction two different answers, which is what grape chooses between. ``--words`` leaves that many words (characters) of every turn. ``difficulty`` is a random number in every row. ``--plant`` adds
a source in which the first turn of every question (MT-Bench layout) stands once, word by word.

``chain`` runs reading, filter, dedup (minhash), decontaminate, select (medium), split, mix and profile as one recipe. ``select`` reads the
rows, adds a random score ``mean_logp`` and runs one rule.

Memory is the largest sum of the resident memory of all processes, looked at ten times a second; pages that processes share count
once for each. A step is over when its ledger.json is there.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from process_tree import usage

_COPIES = 0.05
_RECENT = 2_000


# ---- rows ----------------------------------------------------------------------------------------------------------


def make(out: Path, files: Sequence[Path], rows: int, answers: int, plant: Path | None, most: int | None) -> None:
    """Write one JSON Lines file for every file of real rows."""
    out.mkdir(parents=True, exist_ok=True)
    if plant is not None:
        with (out / "planted.jsonl").open("w", encoding="utf-8") as lines:
            for line in plant.open(encoding="utf-8"):
                lines.write(_line(json.loads(line)["turns"][0], "This is an answer of seven words.", 0.5))
    real = {file: json.loads(file.read_text(encoding="utf-8")) for file in files}
    total = sum(map(len, real.values()))
    for number, (file, records) in enumerate(real.items()):
        rng = random.Random(number)
        turns = [(_prompt(record), str(record.get("output") or record.get("response") or "")) for record in records]
        units = [(_units(user, most), _units(assistant, most)) for user, assistant in turns if user and assistant]
        words = {
            glue: [word for pair in units for found, g in pair if g == glue for word in found] for glue in (" ", "")
        }
        wanted = rows * len(records) // total
        recent: list[list[str]] = []
        with (out / f"{file.stem.replace('data__', '')}.jsonl").open("w", encoding="utf-8") as lines:
            for index in range(0, wanted, answers):
                (user, user_glue), (assistant, glue) = units[index // answers % len(units)]
                if recent and rng.random() < _COPIES:
                    prompt = _varied(rng.choice(recent), 0.02, words[user_glue], rng)
                else:
                    prompt = _varied(user, 0.4, words[user_glue], rng)
                    if len(prompt) > 10:
                        recent.append(prompt)
                        del recent[:-_RECENT]
                for _ in range(answers):
                    answer = _varied(assistant, 0.2, words[glue], rng)
                    lines.write(_line(user_glue.join(prompt), glue.join(answer), round(rng.random(), 4)))


def _line(user: str, assistant: str, difficulty: float) -> str:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return json.dumps({"messages": messages, "difficulty": difficulty}, ensure_ascii=False) + "\n"


def _prompt(record: dict[str, Any]) -> str:
    return "\n".join(str(record[key]) for key in ("instruction", "input") if record.get(key))


def _units(text: str, most: int | None) -> tuple[list[str], str]:
    """What is replaced (words, or Chinese characters), and what joins it."""
    chinese = len(re.findall(r"[\u3400-\u9fff]", text)) > len(text) / 3
    return (list(text)[:most], "") if chinese else (text.split(" ")[:most], " ")


def _varied(units: list[str], share: float, words: list[str], rng: random.Random) -> list[str]:
    varied = [rng.choice(words) if rng.random() < share else unit for unit in units]
    varied[rng.randrange(len(varied))] = rng.choice(words)
    return varied


# ---- measuring -----------------------------------------------------------------------------------------------------


def watched(command: list[str], last_step: str, finished: Callable[[], Sequence[str]] = tuple) -> None:
    """Run a command and print a line for every step that ``finished`` names, for what comes after them, and for all."""
    lines: list[dict[str, Any]] = []
    known: list[str] = []
    start = last = time.perf_counter()
    processor: dict[int, float] = {}
    peak, spent = 0, 0.0

    def line(name: str) -> None:
        nonlocal last, peak, spent
        now, used = time.perf_counter(), sum(processor.values())
        lines.append(
            {
                "step": name,
                "seconds": round(now - last, 1),
                "cpu_seconds": round(used - spent, 1),
                "peak_rss_gb": round(peak / 1e9, 2),
            }
        )
        print(json.dumps(lines[-1]), flush=True)
        last, peak, spent = now, 0, used

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    whole = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, usage(whole, processor))
        for name in finished():
            if name not in known:
                known.append(name)
                line(name)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    line(last_step)
    seconds, used = time.perf_counter() - start, sum(processor.values())
    whole_line = {"step": "all", "seconds": round(seconds, 1), "cpu_seconds": round(used, 1)}
    print(json.dumps(whole_line | {"peak_rss_gb": max(line["peak_rss_gb"] for line in lines)}), flush=True)


def chain(out: Path, workers: int, engine: str, benchmark: Path | None) -> None:
    """All steps in one run of a recipe."""
    steps: list[dict[str, Any]] = [
        {"kind": "filter"},
        {"kind": "dedup", "method": "minhash", "threshold": 0.7, "fields": "user"},
        {"kind": "select", "rule": {"method": "medium", "signal": "meta.difficulty", "low": 0.1, "high": 0.9}},
        {"kind": "split", "validation": 0.02, "test": 0.02, "stratify": "source"},
    ]
    if benchmark is not None:
        prompts = {"name": "mt_bench", "path": str(benchmark)}
        steps.insert(2, {"kind": "decontaminate", "benchmarks": [prompts]})
    sources = [{"path": str(path)} for path in sorted(out.glob("*.jsonl"))]
    stage = {
        "kind": "data",
        "workers": workers,
        "engine": engine,
        "sources": sources,
        "steps": steps,
        "mix": {"kind": "mix", "share": 0.9},
    }
    recipe = out / "chain.yaml"
    recipe.write_text(json.dumps({"name": "chain", "model": "smollm2-135m-instruct", "stages": {"prepare": stage}}))
    shutil.rmtree(out / "runs", ignore_errors=True)
    folder = out / "runs" / "chain" / "prepare"
    parts = ["read", *(f"steps/{number:02d}-{step['kind']}" for number, step in enumerate(steps, 1)), "mix"]
    command = [sys.executable, "-m", "posttrain", "run", str(recipe), "--runs", str(out / "runs")]
    watched(command, "profile", lambda: [part for part in parts if (folder / part / "ledger.json").exists()])
    ledger = json.loads((folder / "ledger.json").read_text())
    for step in ledger["steps"]:
        print(json.dumps({key: step[key] for key in ("name", "rows_in", "rows_out", "dropped")}))


def select(out: Path, rule: str, workers: int) -> None:
    """One rule over rows with a score."""
    import polars as pl

    from posttrain.assets import resolve_data
    from posttrain.data.config import Source
    from posttrain.data.pipeline import gather
    from posttrain.data.rows import LINEAGE, write_rows
    from posttrain.data.steps import StepRun

    scored = out / "scored.parquet"
    if not scored.exists():
        sources = [Source(path=str(path)) for path in sorted(out.glob("*.jsonl"))]
        rows, _ = gather(sources, out / "read", StepRun(resolve_data, workers))
        score = pl.struct(
            pl.lit("mean_logp").alias("name"),
            (-(pl.col("id").hash(1) % 3_000).cast(pl.Float64) / 1_000).alias("value"),
            pl.lit("random").alias("by"),
        )
        frame = pl.scan_parquet(rows, glob=False)
        write_rows(scored, frame.with_columns(scores=pl.concat_list(score).cast(LINEAGE["scores"])))
        shutil.rmtree(out / "read")
    folder = out / "selected"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "posttrain", "data", "select", str(scored), "-o", str(folder)]
    command += ["--rule", json.dumps({"method": rule}), "--workers", str(workers), "--json"]
    watched(command, rule)
    ledger = json.loads((folder / "ledger.json").read_text())
    print(json.dumps({key: ledger[key] for key in ("rows_in", "rows_kept", "dropped")}))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    making = actions.add_parser("make")
    making.add_argument("out", type=Path)
    making.add_argument("files", type=Path, nargs="+")
    making.add_argument("--rows", type=int, default=1_000_000)
    making.add_argument("--answers", type=int, default=1)
    making.add_argument("--words", type=int)
    making.add_argument("--plant", type=Path)
    running = actions.add_parser("chain")
    running.add_argument("out", type=Path)
    running.add_argument("--workers", type=int, default=1)
    running.add_argument("--engine", choices=("local", "ray"), default="local")
    running.add_argument("--benchmark", type=Path)
    selecting = actions.add_parser("select")
    selecting.add_argument("out", type=Path)
    selecting.add_argument("rule", nargs="+", choices=("grape", "few_but_good"))
    selecting.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.action == "make":
        make(options.out, options.files, options.rows, options.answers, options.plant, options.words)
    elif options.action == "chain":
        chain(options.out, options.workers, options.engine, options.benchmark)
    else:
        for rule in options.rule:
            select(options.out, rule, options.workers)


if __name__ == "__main__":
    main()
