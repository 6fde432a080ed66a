"""Prompts and benchmarks of an evaluation stage: every model answers, one in memory at a time; then programs and judges say how well.

Answers are kept the moment they are there (the run's request cache), and per model and benchmark when all are there
(``parts/``): a killed stage goes on where it was, and a judge is never paid twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.artifacts import StageDir, digest, file_digest, plain, read_json, write_json
from posttrain.errors import ConfigError, RunError
from posttrain.generate.cache import RequestCache
from posttrain.generate.engine import Engine
from posttrain.judge.config import JudgeConfig
from posttrain.judge.pool import JudgePool, Judges
from posttrain.parallel.peers import ALONE, Peers
from posttrain.stats.intervals import IntervalSettings
from posttrain.tasks import Benchmark
from posttrain.tasks.answers import answer_all, answer_of, answer_record
from posttrain.tasks.base import Needs, Task
from posttrain.tasks.measuring import cost_of, findings_of, reply_rows, task_record
from posttrain.tasks.prompts import FixedPrompts
from posttrain.tasks.records import Source, TaskRecord, TaskRow, read_record, write_record
from posttrain.tasks.rows import BUILTIN
from posttrain.types import Display


@dataclass(frozen=True)
class Prepared:
    """A benchmark with its tasks read."""

    key: str
    """The recipe's name for it; its files are called so."""
    benchmark: Benchmark
    tasks: tuple[Task, ...]
    folder: str = "benchmarks"
    """Where its files are, from the stage's folder on."""


def prepare(benchmarks: Mapping[str, Benchmark], prompts: FixedPrompts | None) -> list[Prepared]:
    """Read the tasks of the prompts and of all benchmarks, before anything is computed. Raises DataError as their ``tasks`` do."""
    own = [] if prompts is None else [Prepared(prompts.name, prompts, prompts.tasks(), "")]
    return own + [Prepared(key, one, one.tasks()) for key, one in benchmarks.items()]


def tasks_digest(benchmark: Benchmark) -> str:
    """Identity of what a benchmark asks. What is expected of a reply counts where it is a plain value; files have digests of their own."""
    tasks = benchmark.tasks()
    plain_values = {task.id: task.expected for task in tasks if isinstance(task.expected, str | float)}
    return digest([[t.id, t.turns, t.sampling, t.samples, t.system, plain_values.get(t.id)] for t in tasks])


def answer(
    model_name: str,
    prepared: Sequence[Prepared],
    engine: Callable[[], Engine],
    parts: Path,
    seed: int,
    display: Display,
) -> None:
    """One model's answers to all benchmarks, each written to ``parts`` when whole. ``engine`` is called where one is missing."""
    for one in prepared:
        part = _part(parts, model_name, one)
        if part.exists():
            continue

        def tick(done: int, total: int, key: str = one.key) -> None:
            display.tick(f"{key}: replies of {model_name}", done, total)

        tick(0, len(one.tasks))
        begin = time.perf_counter()
        answers = answer_all(engine(), one.tasks, seed, tick)
        seconds = time.perf_counter() - begin
        write_json(part, {"seconds": seconds, "answers": [answer_record(answer) for answer in answers]})


def _part(parts: Path, model_name: str, one: Prepared) -> Path:
    return parts / model_name / one.folder / f"{one.key}.json"


def measure(
    prepared: Sequence[Prepared],
    models: Sequence[str],
    judge: JudgeConfig | None,
    cache: RequestCache,
    parts: Path,
    out: StageDir,
    settings: IntervalSettings,
    display: Display,
    peers: Peers = ALONE,
) -> list[tuple[Prepared, TaskRecord]]:
    """Score and judge all answers; writes ``<key>.json`` and ``<key>.rows.jsonl`` of each (docs/run-folder.md)."""
    found = []
    with JudgePool(judge, cache, out.file("judge.jsonl"), display, peers) as pool:
        for one in prepared:
            file = out.file(one.folder, f"{one.key}.json")
            if not file.exists():
                read = {model: read_json(_part(parts, model, one)) for model in models}
                judges = pool.session(one.key) if one.benchmark.needs.judge else None
                record, rows = _measured(one, read, judges, out, settings)
                write_record(out.file(one.folder), record, rows)
                tell(record, display)
            found.append((one, read_record(file)))
    return found


def _measured(
    one: Prepared, read: Mapping[str, Any], judges: Judges | None, out: StageDir, settings: IntervalSettings
) -> tuple[TaskRecord, Iterable[TaskRow]]:
    benchmark, tasks = one.benchmark, {task.id: task for task in one.tasks}
    answers = {model: [answer_of(record, tasks) for record in found["answers"]] for model, found in read.items()}
    findings = findings_of(benchmark, answers, judges, settings)
    if judges is not None and (failed := judges.failed()) is not None:
        raise RunError(
            f"{one.key}: {failed}",
            where=str(out.path),
            fix="mend the server, and run the same command again: replies are kept",
        )
    path = getattr(benchmark, "path", BUILTIN)
    identity = tasks_digest(benchmark) if path == BUILTIN else file_digest(Path(path))
    record = task_record(
        benchmark,
        one.key,
        Source(path, identity, len(one.tasks)),
        findings,
        answers,
        settings,
        config=plain(benchmark),
        cost={model: cost_of(answers[model], read[model]["seconds"]) for model in read},
        judge=None if judges is None else judges.record(settings),
    )
    return record, reply_rows(answers, findings)


def tell(record: TaskRecord, display: Display) -> None:
    """Tell the headline numbers of a record."""
    for measure, values in headlines(record).items():
        label = next(one.label for one in record.measures if one.key == measure)
        of_models = ", ".join(f"{model} {value:.4g}" for model, value in values.items())
        display.note(f"{record.key}: {label}: {of_models or 'no values'}")


def headlines(record: TaskRecord) -> dict[str, dict[str, float | None]]:
    """Headline measure -> model -> its value over all prompts."""
    return {
        measure.key: {
            one.model: one.estimate for one in record.results if one.measure == measure.key and one.category is None
        }
        for measure in record.measures
        if measure.headline
    }


def check_benchmarks(
    benchmarks: Mapping[str, Benchmark], models: Sequence[str], judge: JudgeConfig | None, where: str
) -> None:
    """Models and judges are what the benchmarks need; told before a reply is made. Raises ConfigError."""
    judged, rated, compared = (
        [key for key, benchmark in benchmarks.items() if getattr(benchmark.needs, need)] for need in Needs._fields
    )
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
            fix="leave them away, or use posttrain judge single --prompt rubric",
        )
    if rated and any(source.reward is not None for source in judge.judges):
        raise ConfigError(
            f"{', '.join(rated)}: the judge reads single replies, and a reward model judges pairs",
            where=f"{where}.judge",
            fix="let another judge do it, in a stage of its own",
        )
