"""``kind: judge``: models judge a file of items: pairs, single replies, or labelled ones that say how good the judges are.

    items -> judges -> judgments -> win rates, ratings, bias report, calibration

Answers are kept in the run's request cache as they arrive: a stage that is stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Lt

from posttrain.artifacts import StageDir, atomic_path, plain, write_json
from posttrain.config import build, read_yaml
from posttrain.errors import ConfigError, DataError, RunError
from posttrain.generate.cache import RequestCache
from posttrain.judge.bias import main_judgments
from posttrain.judge.calibrate import calibrate, calibrate_ratings
from posttrain.judge.config import JudgeConfig, JudgePrompt, Plan
from posttrain.judge.items import Item, ItemsRead, needs_reference, read_items
from posttrain.judge.judge import (
    asks_of,
    judgment_record,
    outcomes,
    panel_outcomes,
    prompt_digest,
    sampling_of,
    shows_reference,
)
from posttrain.judge.parsers import PARSERS
from posttrain.judge.pool import Judged, JudgePool, JudgeRecord
from posttrain.judge.prompts import KINDS, load_prompt
from posttrain.judge.section import summary_section
from posttrain.judge.summary import (
    BadLines,
    JudgeSummary,
    PromptMark,
    References,
    by_category,
    model_ratings,
    pair_outcomes,
    panel_of,
    panel_ratings,
    weighted,
)
from posttrain.references import NamesFile
from posttrain.report.reading import json_value, parse
from posttrain.report.values import Section
from posttrain.stages.base import Context, StageKind
from posttrain.stats.intervals import IntervalSettings

SHOWN_BAD_LINES = 20
Task = Literal["pair", "single"]
OWN_PROMPTS = (*KINDS["pair"], *KINDS["single"])


@dataclass(frozen=True, kw_only=True)
class JudgeStage(StageKind):
    """Judge pairs of replies or single ones, or measure judges against labels."""

    kind: Literal["judge"]
    items: Annotated[str, NamesFile()]
    """The file of items (docs/judges.md)."""
    task: Literal["pairs", "single", "calibrate"] = "pairs"
    """``pairs``: which of two replies is better. ``single``: how good one is. ``calibrate``: how far judges agree with labels."""
    prompt: Annotated[str, NamesFile(builtin="judge/en.yaml", words=OWN_PROMPTS)] = "pair"
    """``pair``, ``five`` or ``binary``; for single replies ``single`` or ``rubric``; or a YAML file."""
    judge: JudgeConfig
    """Who judges, how they are asked, and what may be spent on it."""
    cache: str | None = None
    """A request cache that several runs share; null = that of the run."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    resamples: Annotated[int, Ge(100)] = 10_000
    """Bootstrap resamples."""

    @property
    def own_file(self) -> bool:
        """The prompt is of a YAML file."""
        return self.prompt.endswith((".yaml", ".yml"))

    @property
    def intervals(self) -> IntervalSettings:
        """How intervals are made."""
        return IntervalSettings(self.confidence, self.resamples)

    @property
    def asks(self) -> Task:
        """What the judges are asked for, where calibration leaves it open."""
        if self.task != "calibrate":
            return "single" if self.task == "single" else "pair"
        own = build(JudgePrompt, read_yaml(self.prompt)).task if self.own_file else ""
        return "single" if own == "single" or self.prompt in KINDS["single"] else "pair"

    def check(self, context: Context) -> None:
        """No setting would be ignored without a word, and the prompt can be used."""
        _refuse_ignored(self, f"stages.{context.name}")
        load_prompt(self.prompt, self.asks, self.judge.language)

    def run(self, context: Context) -> Mapping[str, Any]:
        """Judge: writes verdicts.jsonl and summary.json."""
        found = _judged(context.located(self), context)
        summarised = {"pairs": _win_rates, "single": _mean_ratings, "calibrate": _calibration}[self.task]
        summary = replace(found.summary, **summarised(self.intervals, found))
        _write(context.out, found.items, found.judged, summary)
        return {"items": summary.items, "questions": summary.questions, "spent": plain(summary.spent)}

    @staticmethod
    def section(out: StageDir) -> Section:
        """The summary as tables."""
        return summary_section(parse(JudgeSummary, json_value(path := out.file("summary.json")), path))


class _Found(NamedTuple):
    """What was judged, and what every summary says of it."""

    items: tuple[Item, ...]
    prompt: JudgePrompt
    judged: list[Judged]
    summary: JudgeSummary


def _win_rates(settings: IntervalSettings, found: _Found) -> dict[str, Any]:
    """What judged pairs say of the models."""
    items, prompt, judged, _ = found
    by_judge = [outcomes(main_judgments(one.judgments)) for one in judged]
    final, logprobs = panel_outcomes(by_judge), PARSERS[prompt.parser].logprobs
    return {
        "win_rates": pair_outcomes(items, final, settings),
        "win_rates_by_category": by_category(items, final, settings),
        "weighted": {one.name: weighted(items, one.judgments, settings) for one in judged} if logprobs else {},
        "panel": panel_of(by_judge, final, settings) if len(judged) > 1 else None,
    }


def _mean_ratings(settings: IntervalSettings, found: _Found) -> dict[str, Any]:
    """What rated replies say of the models."""
    items, prompt, judged, _ = found
    own = {one.name: model_ratings(items, one.judgments, settings) for one in judged} if len(judged) > 1 else {}
    judgments = panel_ratings([one.judgments for one in judged])
    scale = prompt.lowest, prompt.highest
    return {"scale": scale, "ratings": model_ratings(items, judgments, settings), "ratings_by_judge": own}


def _calibration(settings: IntervalSettings, found: _Found) -> dict[str, Any]:
    """How far the judges agree with the labels."""
    items, prompt, judged, _ = found
    compare = calibrate if prompt.task == "pair" else calibrate_ratings
    calibration = {one.name: compare(items, one.judgments, settings=settings) for one in judged}
    scale = (prompt.lowest, prompt.highest) if prompt.task == "single" else None
    return {"scale": scale, "calibration": calibration}


def _check_labels(items: Sequence[Item], prompt: JudgePrompt) -> None:
    for item in items:
        if item.rating is not None and not prompt.lowest <= item.rating <= prompt.highest:
            raise DataError(
                f"label {item.rating:g} is off the judge's scale of {prompt.lowest:g} to {prompt.highest:g}",
                where=str(item.origin),
                fix="bring the labels to this scale, or judge with a prompt of their scale (docs/judges.md)",
            )


def _judged(stage: JudgeStage, context: Context) -> _Found:
    """Ask all judges everything; of labelled items the last turns, which the labels are about."""
    task, labelled = stage.asks, stage.task == "calibrate"
    read = read_items(Path(stage.items), task, labelled=labelled)
    prompt = load_prompt(stage.prompt, task, stage.judge.language)
    if labelled:
        _check_labels(read.items, prompt)
        stage = replace(stage, judge=replace(stage.judge, plan=replace(stage.judge.plan, turns="last")))
    plan, out = stage.judge.plan, context.out
    kept = Path(stage.cache) if stage.cache is not None else context.run.path / ".requests.sqlite"
    # what was paid for counts for the caps also when other settings begin the stage anew
    calls = context.run.path / ".calls" / f"{context.name}.jsonl"
    calls.parent.mkdir(exist_ok=True)
    with RequestCache(kept) as cache, JudgePool(stage.judge, cache, calls, context.display, context.peers) as pool:
        session = pool.session()
        if stage.judge.check and stage.own_file:
            session.try_out(read.items, prompt, plan, stage.prompt)
        judged = session.ask(read.items, prompt, plan)
        record, failed = session.record(stage.intervals), session.failed()
    assert record is not None, "there are items"
    if failed is not None:
        _write(out, read.items, judged, _summary(stage, read, prompt, record))
        raise RunError(failed, where=str(out.path), fix="mend the server, and run the same command again")
    return _Found(read.items, prompt, judged, _summary(stage, read, prompt, record))


def _refuse_ignored(stage: JudgeStage, where: str) -> None:
    """A setting that would be ignored without a word is an error."""
    task, labelled = stage.asks, stage.task == "calibrate"
    plan, sources = stage.judge.plan, stage.judge.judges
    if (task == "single" or labelled) and plan.orders != "both":
        what = "single replies have no order" if task == "single" else "labels are compared with both orders"
        raise ConfigError(what, where=f"{where}.judge.plan.orders", fix="leave it away")
    if labelled and plan.turns != "each":
        raise ConfigError("labels are about the last turn", where=f"{where}.judge.plan.turns", fix="leave it away")
    if stage.own_file and stage.judge.language != "en":
        raise ConfigError("a judge's file says its own language", where=f"{where}.judge.language", fix="leave it away")
    if all(source.reward is not None for source in sources):
        if task == "single":
            raise ConfigError("a reward model judges pairs", where=f"{where}.judge.judges", fix="judge pairs")
        if plan != Plan(turns=plan.turns) or stage.prompt != "pair" or stage.judge.language != "en":
            raise ConfigError(
                "a reward model has no prompt, order or samples: only turns means something to it",
                where=f"{where}.judge.judges",
                fix="leave the other options away",
            )
    if task == "single" and any(source.reward is not None for source in sources):
        raise ConfigError("a reward model judges pairs", where=f"{where}.judge.judges", fix="take it out of the panel")


def _summary(stage: JudgeStage, read: ItemsRead, prompt: JudgePrompt, record: JudgeRecord) -> JudgeSummary:
    plan, language = stage.judge.plan, None if stage.own_file else stage.judge.language
    worded = any(source.reward is None for source in stage.judge.judges)
    asks = asks_of(read.items, plan, prompt.task)
    questions = {(ask.item, ask.turn) for ask in asks}
    needed = [q for q in questions if (c := read.items[q[0]].category) is not None and needs_reference(c)]
    with_reference = {q for q in questions if shows_reference(read.items[q[0]], q[1], plan)}
    return JudgeSummary(
        task=prompt.task,
        file=stage.items,
        items=len(read.items),
        questions=len(questions),
        bad_lines=BadLines(len(read.bad), read.bad[:SHOWN_BAD_LINES]),
        references=References(len(with_reference), sum(q not in with_reference for q in needed)),
        judges=record.judges,
        prompt=PromptMark(stage.prompt, language, prompt.parser, prompt_digest(prompt, plan)) if worded else None,
        sampling=sampling_of(prompt, plan) if worded else None,
        plan=plan,
        confidence=stage.confidence,
        resamples=stage.resamples,
        spent=record.spent,
        bias=record.bias,
    )


def _write(out: StageDir, items: Sequence[Item], judged: Sequence[Judged], summary: JudgeSummary) -> None:
    with atomic_path(out.file("verdicts.jsonl")) as temporary, temporary.open("w", encoding="utf-8") as file:
        for one in judged:
            for judgment in one.judgments:
                file.write(json.dumps(judgment_record(judgment, items, one.name), ensure_ascii=False) + "\n")
    write_json(out.file("summary.json"), plain(summary))
