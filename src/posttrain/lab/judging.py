"""``posttrain judge pairs | single | calibrate``: items in; verdicts.jsonl, summary.json and a table out.

    options -> JudgeConfig; items -> judges -> judgments -> win rates, ratings, bias report, calibration

Answers are kept in ``requests.sqlite`` as they arrive: a command that is stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_type_hints

from posttrain.artifacts import RunDir, atomic_path, plain, write_json
from posttrain.config import Document, build, override, read_yaml, sections
from posttrain.errors import ConfigError, DataError, InterruptedRunError, RunError
from posttrain.generate.cache import RequestCache
from posttrain.judge.bias import main_judgments
from posttrain.judge.calibrate import calibrate, calibrate_ratings
from posttrain.judge.config import JUDGES, JudgeConfig, JudgePrompt, JudgeSource, PanelFile, Plan
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
from posttrain.judge.scores import model_ratings, panel_ratings
from posttrain.judge.summary import (
    BadLines,
    BadPlace,
    JudgeSummary,
    PromptMark,
    References,
    by_category,
    pair_outcomes,
    panel_of,
    weighted,
)
from posttrain.lab.display import Display
from posttrain.lab.options import option_line, split_arguments
from posttrain.stats.intervals import IntervalSettings
from posttrain.table import did_you_mean

SHOWN_BAD_LINES = 20
WHERE = "posttrain judge"
Task = Literal["pair", "single"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class JudgeCommand:
    """What a command line says."""

    file: Path
    out: Path
    kind: str
    """One of posttrain's judges, or a YAML file."""
    judges: JudgeConfig
    check: bool = True
    """Try a judge of a file on three calls first."""
    cache: Path | None = None
    """None = requests.sqlite in ``out``."""
    confidence: float = 0.95
    resamples: int = 10_000

    @property
    def own_file(self) -> bool:
        """The prompt is of a YAML file."""
        return self.kind.endswith((".yaml", ".yml"))

    @property
    def intervals(self) -> IntervalSettings:
        """How intervals are made."""
        return IntervalSettings(self.confidence, self.resamples)


# ---- the command line ----------------------------------------------------------------------------------------------

_SECTIONS = {owner: sections(owner)[0] for owner in (JudgeSource, Plan, JudgeConfig)}
OPTIONS: dict[str, type] = {
    key.name: owner
    for owner, section in _SECTIONS.items()
    for key in section.keys
    if key.name not in ("judges", "plan", "check")
}
"""Every option of a judge -> the configuration it is a key of: the keys of a recipe's ``judge``, without a level."""


def parse_options(arguments: Sequence[str], panel: Path | None) -> tuple[Path, JudgeConfig]:
    """The items' file and the judges of a command line.

    Raises:
        ConfigError: no file or several, an unknown option or a wrong value; nobody judges, or several do without a panel.

    """
    files, options = split_arguments(arguments)
    if len(files) != 1:
        raise ConfigError(
            f"one file of items is needed, not {len(files)}",
            where=WHERE,
            fix="posttrain judge pairs pairs.jsonl -o out",
        )
    return Path(files[0]), judge_config(options, panel)


def judge_config(options: Sequence[str], panel: Path | None = None) -> JudgeConfig:
    """The judges that ``key=value`` options (`OPTIONS`) and a panel's file describe. Raises ConfigError as `parse_options`."""
    chosen: dict[type, list[str]] = {owner: [] for owner in _SECTIONS}
    for option in options:
        key, _, text = option.partition("=")
        owner = OPTIONS.get(key)
        if owner is None:
            raise ConfigError(
                f"unknown option --{key.replace('_', '-')}{did_you_mean(key, OPTIONS)}",
                where=WHERE,
                fix="posttrain judge pairs --help lists them",
            )
        chosen[owner].append(f"{key}={_text_quoted(owner, key, text)}")
    plan = _built(Plan, {}, chosen[Plan])
    plan = replace(plan, criteria=_criteria_text(plan.criteria))
    sources = _sources(chosen[JudgeSource], panel)
    return _built(JudgeConfig, {"judges": plain(sources), "plan": plain(plan)}, chosen[JudgeConfig])


def options_help() -> str:
    """Every option, for ``--help``: name, allowed values, default, meaning."""
    lines = ["Options of judges (the keys of a judge in a recipe):", ""]
    for owner, section in _SECTIONS.items():
        lines += [option_line(key.name, key) for key in section.keys if OPTIONS.get(key.name) is owner]
    return "\n".join(lines)


def _text_quoted(owner: type, key: str, text: str) -> str:
    """Where a text is wanted, whatever was typed is one: also a number, or what would be YAML."""
    return json.dumps(text) if get_type_hints(owner)[key] in (str, str | None) else text


def _built(owner: type[T], value: dict[str, Any], options: Sequence[str]) -> T:
    document = Document(WHERE, value, {(): WHERE})
    try:
        return build(owner, override(document, options, owner, called="option"))
    except ConfigError as error:
        raise ConfigError(error.problem.removeprefix("(top level): "), where=error.where, fix=error.fix) from None


def _sources(options: Sequence[str], panel: Path | None) -> tuple[JudgeSource, ...]:
    if panel is not None:
        if options:
            raise ConfigError(
                "a panel's file names all judges", where="--panel", fix="leave --endpoint, --local ... away"
            )
        return build(PanelFile, read_yaml(panel)).judges
    if not any(option.partition("=")[0] in JUDGES for option in options):
        raise ConfigError(
            "who judges?",
            where=WHERE,
            fix="give --endpoint URL --model NAME, --local TARGET, --gguf FILE, --reward TARGET or --panel FILE",
        )
    return (_built(JudgeSource, {}, options),)


def _criteria_text(given: str) -> str:
    """Criteria as written on the command line, or the content of the text file it names."""
    if len(given) > 255 or "\n" in given or not Path(given).is_file():
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the criteria: {error}", where=given, fix="give a text file in UTF-8") from error


# ---- the three commands --------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """What was judged, and what every summary says of it."""

    items: tuple[Item, ...]
    prompt: JudgePrompt
    judged: list[Judged]
    summary: JudgeSummary


def judge_pairs(command: JudgeCommand, display: Display) -> JudgeSummary:
    """Judge pairs: writes verdicts.jsonl and summary.json, returns the summary."""
    _refuse_ignored(command, "pair")
    items, prompt, judged, summary = _judged(command, read_items(command.file, "pair"), "pair", display)
    by_judge = [outcomes(main_judgments(one.judgments)) for one in judged]
    final = by_judge[0] if len(judged) == 1 else panel_outcomes(by_judge)
    settings, logprobs = command.intervals, PARSERS[prompt.parser].logprobs
    summary = replace(
        summary,
        win_rates=pair_outcomes(items, final, settings),
        win_rates_by_category=by_category(items, final, settings),
        weighted={one.name: weighted(items, one.judgments, settings) for one in judged} if logprobs else {},
        panel=panel_of(by_judge, final, settings) if len(judged) > 1 else None,
    )
    return _written(command, items, judged, summary)


def judge_single(command: JudgeCommand, display: Display) -> JudgeSummary:
    """Rate single replies: writes verdicts.jsonl and summary.json, returns the summary."""
    _refuse_ignored(command, "single")
    items, prompt, judged, summary = _judged(command, read_items(command.file, "single"), "single", display)
    settings, several = command.intervals, len(judged) > 1
    judgments = panel_ratings([one.judgments for one in judged]) if several else judged[0].judgments
    summary = replace(
        summary,
        scale=(prompt.lowest, prompt.highest),
        ratings=model_ratings(items, judgments, settings),
        ratings_by_judge={one.name: model_ratings(items, one.judgments, settings) for one in judged} if several else {},
    )
    return _written(command, items, judged, summary)


def judge_calibrate(command: JudgeCommand, display: Display) -> JudgeSummary:
    """Judge labelled pairs in both orders, or labelled single replies, and compare: writes verdicts.jsonl and summary.json."""
    task = _task(command)
    _refuse_ignored(command, task, labelled=True)
    plan = replace(command.judges.plan, turns="last")
    command = replace(command, judges=replace(command.judges, plan=plan))
    read = read_items(command.file, task, labelled=True)
    if task == "single":
        _check_labels(read.items, load_prompt(command.kind, task, command.judges.language))
    items, prompt, judged, summary = _judged(command, read, task, display)
    compare = calibrate if task == "pair" else calibrate_ratings
    summary = replace(
        summary,
        scale=(prompt.lowest, prompt.highest) if task == "single" else None,
        calibration={one.name: compare(items, one.judgments, settings=command.intervals) for one in judged},
    )
    return _written(command, items, judged, summary)


def _task(command: JudgeCommand) -> Task:
    """What the kind of judge is for, where the command leaves it open."""
    task = build(JudgePrompt, read_yaml(command.kind)).task if command.own_file else ""
    return "single" if task == "single" or command.kind in KINDS["single"] else "pair"


def _check_labels(items: Sequence[Item], prompt: JudgePrompt) -> None:
    for item in items:
        if item.rating is not None and not prompt.lowest <= item.rating <= prompt.highest:
            raise DataError(
                f"label {item.rating:g} is off the judge's scale of {prompt.lowest:g} to {prompt.highest:g}",
                where=str(item.origin),
                fix="bring the labels to this scale, or judge with a prompt of their scale (docs/judges.md)",
            )


def _judged(command: JudgeCommand, read: ItemsRead, task: Task, display: Display) -> _Found:
    """Ask all judges everything."""
    prompt = load_prompt(command.kind, task, command.judges.language)
    plan, ledger = command.judges.plan, command.out / "ledger.jsonl"
    try:
        with (
            RunDir(command.out).lock(),
            RequestCache(command.cache or command.out / "requests.sqlite") as cache,
            JudgePool(replace(command.judges, check=command.check), cache, ledger, display) as pool,
        ):
            session = pool.session()
            if command.check and command.own_file:
                session.try_out(read.items, prompt, plan, command.kind)
            judged = session.ask(read.items, prompt, plan)
            record, failed = session.record(command.intervals), session.failed()
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted", where=str(command.out), fix="run the same command again: answers are kept"
        ) from None
    assert record is not None, "there are items"
    if failed is not None:
        _written(command, read.items, judged, _summary(command, read, prompt, record))
        raise RunError(failed, where=str(command.out), fix="mend the server, and run the same command again")
    return _Found(read.items, prompt, judged, _summary(command, read, prompt, record))


def _refuse_ignored(command: JudgeCommand, task: Task, *, labelled: bool = False) -> None:
    """An option that would be ignored without a word is an error."""
    plan, sources = command.judges.plan, command.judges.judges
    if (task == "single" or labelled) and plan.orders != "both":
        what = "single replies have no order" if task == "single" else "labels are compared with both orders"
        raise ConfigError(what, where=f"{WHERE} --orders", fix="leave it away")
    if labelled and plan.turns != "each":
        raise ConfigError("labels are about the last turn", where=f"{WHERE} --turns", fix="leave it away")
    if command.own_file and command.judges.language != "en":
        raise ConfigError("a judge's file says its own language", where=f"{WHERE} --language", fix="leave it away")
    if all(source.reward is not None for source in sources):
        if task == "single":
            raise ConfigError("a reward model judges pairs", where=f"{WHERE} --reward", fix="use posttrain judge pairs")
        if plan != Plan(turns=plan.turns) or command.kind != "pair" or command.judges.language != "en":
            raise ConfigError(
                "a reward model has no prompt, order or samples: only --turns means something to it",
                where=f"{WHERE} --reward",
                fix="leave the other options away",
            )
    if task == "single" and any(source.reward is not None for source in sources):
        raise ConfigError("a reward model judges pairs", where=f"{WHERE} --panel", fix="take it out of the panel")


def _summary(command: JudgeCommand, read: ItemsRead, prompt: JudgePrompt, record: JudgeRecord) -> JudgeSummary:
    plan, language = command.judges.plan, None if command.own_file else command.judges.language
    worded = any(source.reward is None for source in command.judges.judges)
    asks = asks_of(read.items, plan, prompt.task)
    questions = {(ask.item, ask.turn) for ask in asks}
    needed = [q for q in questions if (c := read.items[q[0]].category) is not None and needs_reference(c)]
    with_reference = {q for q in questions if shows_reference(read.items[q[0]], q[1], plan)}
    return JudgeSummary(
        task=prompt.task,
        file=str(command.file),
        items=len(read.items),
        questions=len(questions),
        bad_lines=BadLines(
            len(read.bad), tuple(BadPlace(str(bad.origin), bad.problem) for bad in read.bad[:SHOWN_BAD_LINES])
        ),
        references=References(len(with_reference), sum(q not in with_reference for q in needed)),
        judges=record.judges,
        prompt=PromptMark(command.kind, language, prompt.parser, prompt_digest(prompt, plan)) if worded else None,
        sampling=sampling_of(prompt, plan) if worded else None,
        plan=plan,
        confidence=command.confidence,
        resamples=command.resamples,
        spent=record.spent,
        bias=record.bias,
    )


def _written(
    command: JudgeCommand, items: Sequence[Item], judged: Sequence[Judged], summary: JudgeSummary
) -> JudgeSummary:
    with atomic_path(command.out / "verdicts.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        for one in judged:
            for judgment in one.judgments:
                file.write(json.dumps(judgment_record(judgment, items, one.name), ensure_ascii=False) + "\n")
    write_json(command.out / "summary.json", plain(summary))
    return summary
