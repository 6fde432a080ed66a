"""Benchmarks of an evaluation stage: every model answers, one in memory at a time; then programs and judges say how well.

Answers are kept the moment they are there (the run's request cache), and per model and benchmark when all are there
(``parts/``): a killed stage goes on where it was, and a judge is never paid twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.artifacts import StageDir, digest, file_digest, plain, read_json, write_json, write_text
from posttrain.errors import ConfigError, RunError
from posttrain.generate.cache import RequestCache
from posttrain.generate.engine import Engine
from posttrain.judge.config import JudgeConfig
from posttrain.judge.pool import JudgePool
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks import Benchmark
from posttrain.tasks.answers import answer_all, answer_of, answer_record
from posttrain.tasks.base import Answer, Task
from posttrain.tasks.measures import benchmark_record, reply_rows
from posttrain.tasks.rows import BUILTIN
from posttrain.types import Display

SCHEMA = 1


@dataclass(frozen=True)
class PreparedBenchmark:
    """A benchmark with its tasks read."""

    key: str
    """The recipe's name for it."""
    benchmark: Benchmark
    tasks: tuple[Task, ...]


def prepare_benchmarks(benchmarks: Mapping[str, Benchmark]) -> list[PreparedBenchmark]:
    """Read the tasks of all benchmarks, before anything is computed. Raises DataError as their ``tasks`` do."""
    return [PreparedBenchmark(key, one, one.tasks()) for key, one in benchmarks.items()]


def tasks_digest(benchmark: Benchmark) -> str:
    """Identity of what a benchmark asks. What is expected of a reply counts where it is a plain value; files have digests of their own."""
    return digest(
        [
            [
                t.id,
                t.turns,
                t.sampling,
                t.samples,
                t.system,
                t.expected if isinstance(t.expected, str | float) else None,
            ]
            for t in benchmark.tasks()
        ]
    )


def answer_benchmarks(
    model_name: str,
    prepared: Sequence[PreparedBenchmark],
    engine: Callable[[], Engine],
    parts: Path,
    seed: int,
    display: Display,
) -> None:
    """One model's answers to all benchmarks, each written to ``parts`` when whole. ``engine`` is called where one is missing."""
    for one in prepared:
        part = _part(parts, model_name, one.key)
        if part.exists():
            continue

        def tick(done: int, total: int, key: str = one.key) -> None:
            display.tick(f"{key}: replies of {model_name}", done, total)

        tick(0, len(one.tasks))
        begin = time.perf_counter()
        answers = answer_all(engine(), one.tasks, seed, tick)
        seconds = time.perf_counter() - begin
        write_json(part, {"seconds": seconds, "answers": [answer_record(answer) for answer in answers]})


def _part(parts: Path, model_name: str, key: str) -> Path:
    return parts / model_name / "benchmarks" / f"{key}.json"


def measure_benchmarks(
    prepared: Sequence[PreparedBenchmark],
    models: Sequence[str],
    judge: JudgeConfig | None,
    cache: RequestCache,
    parts: Path,
    out: StageDir,
    settings: IntervalSettings,
    display: Display,
) -> dict[str, Any]:
    """Score and judge all answers; writes benchmarks/<key>.json and .rows.jsonl (docs/run-folder.md), returns the headline numbers."""
    found: dict[str, Any] = {}
    with JudgePool(judge, cache, out.file("judge.jsonl"), display) as pool:
        for one in prepared:
            file = out.file("benchmarks", f"{one.key}.json")
            if not file.exists():
                _measure(one, models, pool, parts, out, settings, display)
            record = read_json(file)
            headlines = {measure["key"] for measure in record["measures"] if measure["headline"]}
            found[one.key] = {
                key: {
                    r["model"]: r["estimate"]
                    for r in record["results"]
                    if r["measure"] == key and r["category"] is None
                }
                for key in headlines
            }
    return found


def _measure(
    one: PreparedBenchmark,
    models: Sequence[str],
    pool: JudgePool,
    parts: Path,
    out: StageDir,
    settings: IntervalSettings,
    display: Display,
) -> None:
    benchmark, tasks = one.benchmark, {task.id: task for task in one.tasks}
    read = {model: read_json(_part(parts, model, one.key)) for model in models}
    answers = {model: [answer_of(record, tasks) for record in found["answers"]] for model, found in read.items()}
    judges = pool.session(one.key) if benchmark.needs.judge else None
    findings = benchmark.score(answers, judges, settings)
    if judges is not None and (failed := judges.failed()) is not None:
        raise RunError(
            f"{one.key}: {failed}",
            where=str(out.path),
            fix="mend the server, and run the same command again: replies are kept",
        )
    record = {
        "schema": SCHEMA,
        "key": one.key,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "area": benchmark.area,
        "source": _source(benchmark, len(one.tasks)),
        "config": plain(benchmark),
        **benchmark_record(benchmark.measures(), findings, answers, settings),
        "cost": {model: _cost(answers[model], read[model]["seconds"]) for model in models},
        "judge": None if judges is None else plain(judges.record(settings)),
    }
    rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in reply_rows(answers, findings))
    write_text(out.file("benchmarks", f"{one.key}.rows.jsonl"), "".join(rows))
    write_json(out.file("benchmarks", f"{one.key}.json"), record)  # last: where it is, all is
    for measure in benchmark.measures():
        if measure.headline:
            told = ", ".join(
                f"{r['model']} {r['estimate']:.4g}"
                for r in record["results"]
                if r["measure"] == measure.key and r["category"] is None
            )
            display.note(f"{one.key}: {measure.label}: {told or 'no values'}")


def _source(benchmark: Benchmark, prompts: int) -> dict[str, Any]:
    path = getattr(benchmark, "path", BUILTIN)
    own = path == BUILTIN
    return {"path": path, "digest": tasks_digest(benchmark) if own else file_digest(Path(path)), "prompts": prompts}


def _cost(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    usages = [usage for answer in answers for usage in answer.usages if usage is not None]
    return {
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        # of a resumed stage the time is not known: an earlier life took part of it
        "seconds": None if any(answer.cached for answer in answers) else seconds,
    }


def check_benchmarks(
    benchmarks: Mapping[str, Benchmark], models: Sequence[str], judge: JudgeConfig | None, where: str
) -> None:
    """Models and judges are what the benchmarks need; told before a reply is made. Raises ConfigError."""
    judged = [key for key, benchmark in benchmarks.items() if benchmark.needs.judge]
    rated = [key for key, benchmark in benchmarks.items() if benchmark.needs.ratings]
    compared = [key for key, benchmark in benchmarks.items() if benchmark.needs.two_models]
    if compared and len(models) < 2:
        raise ConfigError(
            f"{', '.join(compared)}: models are compared with each other, but there is one model only",
            where=f"{where}.models",
            fix="add another model, or compare with the replies of a file where the benchmark takes one",
        )
    if judge is None:
        if judged:
            raise ConfigError(
                f"{', '.join(judged)}: replies of this benchmark are judged, but there is no judge",
                where=f"{where}.judge",
                fix="add judge: {judges: [{endpoint: URL, model: NAME}]}, or local: TARGET, reward: TARGET, gguf: FILE",
            )
        return
    if not judged:
        raise ConfigError("no benchmark of this stage asks a judge", where=f"{where}.judge", fix="leave it away")
    if judge.plan.criteria.strip():
        raise ConfigError(
            "the prompts of these benchmarks have no place for criteria",
            where=f"{where}.judge.plan.criteria",
            fix="leave them away, or use posttrain judge single --kind rubric",
        )
    if rated and any(source.reward is not None for source in judge.judges):
        raise ConfigError(
            f"{', '.join(rated)}: the judge reads single replies, and a reward model judges pairs",
            where=f"{where}.judge",
            fix="let another judge do it, in a stage of its own",
        )
