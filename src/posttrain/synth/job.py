"""A synthesis from its configuration to its files.

rows/train.parquet, rows/held_out.parquet    what passed all filters, with lineage, as any data stage writes them
dropped.jsonl                                every answer that gave no row: step, reason, detail, text
ledger.json                                  threads in -> rows kept, dropped by reason
facts.json                                   who wrote, what it cost, how it ended
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from posttrain.artifacts import Ledger, LedgerStep, StageDir, write_json, write_text
from posttrain.data.config import Source
from posttrain.data.decontaminate.benchmarks import Benchmark, load
from posttrain.data.decontaminate.step import DecontaminateStep
from posttrain.data.pipeline import gather, hold_out, nothing_usable, source_names
from posttrain.data.places import Resolve
from posttrain.data.rows import LINEAGE, SCHEMA, read_any, scan_rows, write_rows
from posttrain.data.steps import Step, StepRun, run_step
from posttrain.encode.template import ChatTemplate
from posttrain.encode.user_turn import user_turn
from posttrain.errors import DataError
from posttrain.generate.cache import RequestCache
from posttrain.generate.cost import TRILLION, Caps, read_calls, totals
from posttrain.generate.engine import Engine
from posttrain.generate.engines import Engines
from posttrain.generate.source import ModelSource
from posttrain.judge.config import JudgeSource
from posttrain.judge.reward import open_reward_judge
from posttrain.judge.verdicts import Missing
from posttrain.parallel.peers import ALONE, Peers
from posttrain.synth.base import Rate
from posttrain.synth.config import SynthSettings
from posttrain.synth.loop import Found, Limits, Loop, Rater, text_of
from posttrain.synth.preferences import Preferences
from posttrain.synth.prompts import load_prompts
from posttrain.synth.records import DROPPED, ENDS, FACTS, Compared, Loss, SynthFacts
from posttrain.synth.variety import LARGEST, drawn, topics, variety
from posttrain.tasks.prompts import load_prompts as load_fixed_prompts
from posttrain.types import Display, Message, Origin, Row, SftRow

OWN_PROMPTS = "own_prompts.jsonl"


def synthesise(
    settings: SynthSettings,
    out: StageDir,
    name: str,
    cache: Path,
    seed: int,
    resolve: Resolve,
    display: Display,
    peers: Peers = ALONE,
) -> dict[str, Any]:
    """Make the rows and write them; returns the stage's ``result``.

    cache: the request cache of the run; what was answered before is not asked again. peers: who shares the work of local models. Raises DataError where no row is kept, with the
    main reasons; ConfigError and ModelError where somebody who is asked can't be.
    """
    run = StepRun(resolve, progress=display.tick)
    prompts = load_prompts(settings.language, settings.prompts)
    read, rows = _rows_of(settings, out.file("read"), run)
    real = _yardstick(settings, out.file("yardstick"), run)
    filters = _Filters(settings, out.file("rounds"), seed, run)
    budget, calls = settings.budget, out.file("calls.jsonl")
    # of this job alone the loop counts the requests, those that the cache answers too
    caps = Caps(money=budget.money, tokens=budget.tokens, calls=None if budget.shared is None else budget.requests)
    with (
        RequestCache(cache) as answers,
        Engines(caps, budget.prices, answers, calls, display, peers, budget.shared) as opened,
    ):
        engines = {role: opened.opened(source) for role, source in sources_of(settings).items()}
        if settings.pipeline.plays_user:
            _check_user_turns(engine.engine for engine in engines.values())
        found = Loop(
            pipeline=settings.pipeline,
            engines=engines,
            prompts=prompts,
            language=settings.language,
            limits=_limits(settings),
            seed=seed,
            source=name,
            filters=filters,
            display=display,
            rater=_rater(settings, display, peers),
            rows=rows,
        ).run()
        servers = totals(read_calls(calls)).servers
        facts = _facts(settings, engines, found, servers, _compared(settings, found, real, seed))
    shutil.rmtree(out.file("rounds"), ignore_errors=True)
    found.ledger.steps[:0], found.ledger.rejects[:0] = read.steps, read.rejects
    write_text(
        out.file(DROPPED), "".join(json.dumps(loss._asdict(), ensure_ascii=False) + "\n" for loss in found.losses)
    )
    write_json(out.file(FACTS), asdict(facts))
    if not len(found.rows):
        found.ledger.write(out.file("ledger.json"))
        raise _nothing_made(found, out.file(DROPPED))
    write_rows(out.file("made.parquet"), found.rows)
    one_prompt = found.rows["messages"].list.first().n_unique() < 2
    share = 0.0 if one_prompt else settings.held_out  # a single prompt has no other side
    found.ledger.steps.append(hold_out(out.file("made.parquet"), share, seed, out))
    out.file("made.parquet").unlink()
    found.ledger.write(out.file("ledger.json"))
    if found.stopped != "wanted":
        display.note(_why_it_ended(found))
    split = found.ledger.steps[-1].notes
    result: dict[str, Any] = {f"{side}_rows": count for side, count in split.items()}
    return result | {"stopped": facts.stopped, "requests": facts.requests, "threads": facts.threads}


def _limits(settings: SynthSettings) -> Limits:
    budget = settings.budget
    return Limits(
        rows_wanted=settings.rows_wanted,
        round_size=settings.round_size,
        requests=budget.requests,
        tokens=budget.tokens,
        money=budget.money,
        prices=budget.prices,
        idle_rounds=settings.idle_rounds,
        too_similar=settings.too_similar,
    )


def sources_of(settings: SynthSettings) -> dict[str, ModelSource]:
    """Who answers, by role."""
    return {role: source or settings.writer for role, source in settings.pipeline.roles.items()}


def _check_user_turns(engines: Iterable[Engine]) -> None:
    """Refuse, before anything is asked, a template under which a model can't write the user's turn."""
    for engine in engines:
        if isinstance(template := getattr(engine, "template", None), ChatTemplate):
            user_turn(template)


def _rows_of(settings: SynthSettings, out: Path, run: StepRun) -> tuple[Ledger, Sequence[Row]]:
    """The rows that the pipeline begins with, and the account of their reading."""
    named: Source | None = getattr(settings.pipeline, "data", None)
    if named is None:
        return Ledger(), ()
    file, ledger = _gathered(named, out, run)
    return ledger, read_any(file)


def _gathered(source: Source, out: Path, run: StepRun) -> tuple[Path, Ledger]:
    """The rows of a source. Raises DataError where none can be used."""
    file, ledger = gather([source], out, run)
    if not ledger.steps[-1].rows_out:
        ledger.write(out / "ledger.json")
        raise nothing_usable(ledger, [source.path], out / "ledger.json")
    return file, ledger


def _rater(settings: SynthSettings, display: Display, peers: Peers) -> Rater | None:
    """The reward model that rates replies, where one does."""
    named = settings.pipeline.reward_model
    if named is None:
        return None
    judge = open_reward_judge(JudgeSource(reward=named.model, base=named.base), peers=peers)

    def rate(questions: Sequence[Rate]) -> list[list[float | None]]:
        rows = [
            SftRow((*one.prompt, Message("assistant", reply)), Origin("reward", 1), "reward")
            for one in questions
            for reply in one.replies
        ]
        found = iter(judge.rewards(rows, lambda done, total: display.tick("scoring replies", done, total)))
        values = [[next(found) for _ in one.replies] for one in questions]
        return [[None if isinstance(value, Missing) else value for value in own] for own in values]

    return rate


class _Filters:
    """The steps of a stage on the rows of one round."""

    def __init__(self, settings: SynthSettings, folder: Path, seed: int, run: StepRun) -> None:
        texts = [prompt.prompt for prompt in load_fixed_prompts("builtin")]
        write_text(folder / OWN_PROMPTS, "".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        own = Benchmark(name="posttrain_prompts", path=str(folder / OWN_PROMPTS))
        self._steps: list[Step] = [*settings.filters]
        self._steps.append(DecontaminateStep(kind="decontaminate", benchmarks=(own, *settings.avoid)))
        self._folder, self._seed, self._run = folder / "round", seed, run
        for benchmark in settings.avoid:
            load(benchmark, run.resolve)  # what can't be read is told before anything is asked

    def __call__(self, rows: pl.DataFrame, number: int) -> tuple[pl.DataFrame, list[LedgerStep], list[Loss]]:
        shutil.rmtree(self._folder, ignore_errors=True)
        file, lines, losses = self._folder / "rows.parquet", [], []
        write_rows(file, rows)
        for place, step in enumerate(self._steps):
            out = self._folder / f"{place}-{step.kind}"
            lines.append(run_step(step, file, out, self._seed, self._run))
            rejects = pl.read_parquet(out / "rejects.parquet").iter_rows(named=True)
            losses += [
                Loss(step.kind, row["reason"], row["detail"] or "", text_of(row), row["line"]) for row in rejects
            ]
            file = out / "rows.parquet"
            if not lines[-1].rows_out:
                break
        return scan_rows(file).select(*SCHEMA, *LINEAGE).collect(), lines, losses


def _facts(
    settings: SynthSettings,
    engines: Mapping[str, Engine],
    found: Found,
    servers: Mapping[str, int],
    compared: Compared | None,
) -> SynthFacts:
    spent = found.spent
    return SynthFacts(
        pipeline=settings.pipeline.name,
        language=settings.language,
        rows_wanted=settings.rows_wanted,
        kept=len(found.rows),
        stopped=found.stopped,
        threads=found.threads,
        requests=spent.requests,
        cached=spent.cached,
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
        unknown_usage=spent.unknown_usage,
        engines={role: engine.fingerprint for role, engine in engines.items()},
        money=spent.money / TRILLION if settings.budget.prices is not None else None,
        servers=dict(servers),
        history=tuple(found.history),
        variety=compared,
    )


def _yardstick(settings: SynthSettings, out: Path, run: StepRun) -> list[tuple[str, str]]:
    """The instructions and replies of the real set."""
    if settings.yardstick is None:
        return []
    file, _ = _gathered(settings.yardstick, out, run)
    real = _talks(scan_rows(file).collect())
    shutil.rmtree(out, ignore_errors=True)
    return real


def _compared(settings: SynthSettings, found: Found, real: Sequence[tuple[str, str]], seed: int) -> Compared | None:
    """Diversity of what was made, beside the real set at equal size."""
    made = drawn(_talks(found.rows), LARGEST, seed)
    if not made or isinstance(settings.pipeline, Preferences):  # whose prompts are the user's
        return None
    size = min(len(made), len(real)) if real else len(made)
    beside = drawn(real, size, seed)
    return Compared(
        made=variety(*zip(*drawn(made, size, seed), strict=True)),
        topics=tuple(topics([text for text, _ in made], [text for text, _ in beside])),
        yardstick=variety(*zip(*beside, strict=True)) if beside else None,
        yardstick_name=source_names([settings.yardstick])[0] if settings.yardstick is not None else "",
    )


def _talks(rows: pl.DataFrame) -> list[tuple[str, str]]:
    """(first turn of the user, first reply) of every row."""
    return [
        (
            next((turn["content"] for turn in turns if turn["role"] == "user"), ""),
            next((turn["content"] for turn in turns if turn["role"] == "assistant"), ""),
        )
        for turns in rows["messages"].to_list()
    ]


def _main_reasons(found: Found) -> str:
    reasons = sorted(found.ledger.dropped.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons)


def _why_it_ended(found: Found) -> str:
    reasons = _main_reasons(found)
    return f"ended with {len(found.rows):,} rows: {ENDS[found.stopped]}" + (f" ({reasons})" if reasons else "")


_FIXES = {
    "budget": "raise the budget: what is begun must be paid to its end",
    "cut": "raise the longest answer (max_tokens, reply_tokens, ...)",
    "unparsable": "ask a stronger model, or another prompt (prompts: my.yaml)",
    "too_similar": "raise temperature or too_similar, or give more seeds or topics",
    "tie": "take more samples or a higher temperature, or a finer score",
    "same_reply": "raise the temperature",
    "other_language": "set language, or give steps of your own",
}


def _nothing_made(found: Found, file: Path) -> DataError:
    reasons = _main_reasons(found)
    main = max(found.ledger.dropped, key=lambda reason: found.ledger.dropped[reason], default="")
    return DataError(
        f"no row was made of {found.spent.requests:,} requests: {ENDS[found.stopped]}{f' ({reasons})' if reasons else ''}",
        where=str(file),
        fix=f"{_FIXES.get(main, 'loosen the filters, raise the budget, or ask a stronger model')}; the file says why of every answer",
    )
