"""``posttrain new``: a complete recipe for the user's model and rows, by published guidance, with the reason beside each choice.

Rows are read once and counted; languages and token lengths are those of at most `LOOKED_AT` of them, evenly spaced, under the model's own
tokenizer and chat template.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from posttrain import assets
from posttrain.artifacts import Ledger, write_text
from posttrain.config import parse_yaml
from posttrain.data.config import Source
from posttrain.data.pipeline import gather, nothing_usable
from posttrain.data.places import locate
from posttrain.data.profile import covering, main_language
from posttrain.data.profile_records import Covering
from posttrain.data.reading import known_format
from posttrain.data.rows import read_kind, row_kind_of, scan_rows, write_rows
from posttrain.data.sources import read_raw
from posttrain.data.steps import StepRun
from posttrain.encode.preferences import encode_kind, sides_of
from posttrain.encode.template import ChatTemplate
from posttrain.errors import ConfigError, DataError, ModelError
from posttrain.lab.planning import planned_stages, shape_of
from posttrain.lab.recipe import recipe_of
from posttrain.model.lineage import Lineage
from posttrain.model.targets import model_folder
from posttrain.objectives import Objective, default_objective
from posttrain.plan.devices import device_of
from posttrain.plan.guidance import Guidance, Method, Start, guidance, start
from posttrain.report import numbers
from posttrain.report.words import plural
from posttrain.stages.base import BASE
from posttrain.table import Table
from posttrain.types import RowKind

LOOKED_AT = 2_000
"""So many rows are tokenised; more would hardly move a quantile."""
LONGEST_ASKED = 2**20
HELD_OUT_SHARE, FEWEST_HELD_OUT, MOST_HELD_OUT = 0.1, 30, 500
"""A tenth of the rows is held out, but not fewer than so many (differences would not show), nor more (time), nor over a quarter."""
COMMENT_AT = 40
YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off"}

OBJECTIVES: Table[type[Objective]] = Table("goal", {kind().name: kind for kind in get_args(get_args(Objective)[0])})


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user has and wants."""

    model: str
    data: tuple[str, ...] = ()
    """Conversations: files, folders, demo assets, hub sets."""
    pairs: tuple[str, ...] = ()
    """Preferences, or judged replies."""
    goal: str | None = None
    """Name of an objective; None: what the rows are for."""
    method: Method | None = None
    """None: LoRA, and QLoRA where that alone fits the device."""
    device: str = "auto"
    template: Path | None = None
    """A Jinja chat template file, for a model without one."""


@dataclass(frozen=True)
class Measured:
    """What is known of the rows of one stage."""

    paths: tuple[str, ...]
    formats: tuple[str, ...]
    kind: RowKind
    rows: int
    dropped: int
    looked_at: int
    languages: tuple[tuple[str, float], ...]
    """The most frequent ones, with their share."""
    covering: Covering
    longest: int
    unusable: int
    """Rows looked at that the template can't prove."""

    @property
    def held_out(self) -> int:
        """How many rows are kept for evaluation."""
        wanted = min(max(round(self.rows * HELD_OUT_SHARE), FEWEST_HELD_OUT), MOST_HELD_OUT)
        return min(wanted, max(1, self.rows // 4))


@dataclass(frozen=True)
class FirstRecipe:
    """The text of a recipe, and what the user should know of it."""

    text: str
    warnings: tuple[str, ...]


def write_first_recipe(wish: Wish, out: Path) -> FirstRecipe:
    """Write the recipe of a wish; it can be loaded, planned and run. Returns what was written.

    Raises ConfigError where the output exists or the wish contradicts itself, DataError for rows that can't be used, ModelError and
    TemplateError for a model that can't be found or spoken to.
    """
    if out.exists():
        raise ConfigError(
            "there is something of this name", where=str(out), fix="give a new file with -o, or remove it"
        )
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError("a recipe is a YAML file", where=str(out), fix=f"-o {out}.yaml")
    goals = _goals(wish)
    device_of(wish.device)
    template = Lineage(model_folder(wish.model)).spoken(wish.template).template
    wish = replace(wish, template=wish.template and Path(_from(str(wish.template), out.parent)))
    measured: dict[RowKind, Measured] = {goal.row_kind: _measured(wish, goal, template, out.parent) for goal in goals}
    written = _fitting(wish, goals, measured, out)
    write_text(out, written.text)
    return written


def _goals(wish: Wish) -> list[Objective]:
    """What is trained, one after the other. Raises ConfigError where rows are missing or of no use."""
    named = None if wish.goal is None else OBJECTIVES[wish.goal]()
    compared = [named or default_objective("pairs")] if wish.pairs else []
    imitated = [default_objective()] if wish.data else []
    if not (compared or imitated):
        raise ConfigError("no rows", where="posttrain new", fix="give files with --data, preferences with --pairs")
    if named is not None and named.row_kind == "conversations" and wish.pairs:
        fix = "leave out --pairs, or --goal to have both stages"
        raise ConfigError(f"{named.name} does not learn from pairs", where="--pairs", fix=fix)
    if named is not None and named.row_kind != "conversations" and not wish.pairs:
        fix = "give them with --pairs FILE, or leave out --goal"
        raise ConfigError(f"{named.name} learns from {named.row_kind}", where="--goal", fix=fix)
    return [*imitated, *compared]


# ---- what is measured ----------------------------------------------------------------------------------------------


def _measured(wish: Wish, goal: Objective, template: ChatTemplate, beside: Path) -> Measured:
    """Read the rows that a goal learns from."""
    imitates = goal.row_kind == "conversations"
    paths = wish.data if imitates else wish.pairs
    sources = tuple(Source(path=path) for path in paths)
    formats = tuple(dict.fromkeys(_formats(sources)))
    with tempfile.TemporaryDirectory() as folder:
        rows_file, ledger = gather(
            sources, Path(folder), StepRun(assets.resolve_data), "auto" if imitates else goal.row_kind
        )
        rows = ledger.steps[-1].rows_out
        if not rows:
            raise nothing_usable(ledger, paths)
        kind = row_kind_of(rows_file)
        if imitates and kind != "conversations":
            fix = "give preferences and judged replies with --pairs" if kind != "prompts" else "give rows with replies"
            raise DataError(f"these rows are {kind} and no conversations", where=", ".join(paths), fix=fix)
        shown = Path(folder) / "shown.parquet"
        write_rows(shown, scan_rows(rows_file).gather_every(max(1, rows // LOOKED_AT)).head(LOOKED_AT))
        looked_at = read_kind(shown, goal.row_kind)
    account = Ledger()
    encoded = encode_kind(goal.row_kind, looked_at, template, LONGEST_ASKED, "drop", account)
    if not encoded.examples:
        raise DataError(
            f"none of these rows can be encoded for {wish.model} ({', '.join(sorted(account.dropped))})",
            where=", ".join(paths),
            fix=f"posttrain show --conversations {paths[0]} --model {wish.model}",
        )
    languages = Counter(main_language(next(iter(sides_of(row).values())).messages) for row in looked_at)
    return Measured(
        paths=tuple(_from(path, beside) for path in paths),
        formats=formats,
        kind=goal.row_kind,
        rows=rows,
        dropped=ledger.steps[0].rows_in - rows,
        looked_at=len(looked_at),
        languages=tuple((name, count / len(looked_at)) for name, count in languages.most_common(3)),
        covering=covering(encoded.conversation_lengths),
        longest=int(encoded.conversation_lengths.max()),
        unusable=len(looked_at) - account.steps[-1].rows_out,
    )


def _formats(sources: Sequence[Source]) -> Iterator[str]:
    """How the parts of sources are read."""
    for source in sources:
        for part in locate(source.path, assets.resolve_data).parts:
            name, _ = known_format(read_raw(part), part.label, "auto")
            if name is not None:
                yield name


def _from(path: str, folder: Path) -> str:
    """A path as it is written in a recipe in this folder; assets and hub names stay."""
    return os.path.relpath(path, folder) if Path(path).exists() else path


# ---- what is written -----------------------------------------------------------------------------------------------


def _fitting(wish: Wish, goals: Sequence[Objective], measured: Mapping[RowKind, Measured], out: Path) -> FirstRecipe:
    """The recipe with the method that was asked for, else with the first that fits the device."""
    machine, chosen = device_of(wish.device), wish.method or "lora"
    try:
        shape = shape_of(wish.model)
    except ModelError as error:  # a family that the planner can't count
        written = _written(wish, chosen, goals, measured, out, None)
        return replace(written, warnings=(*written.warnings, f"whether it fits is not known: {error.problem}"))
    methods: tuple[Method, ...] = ("lora", "qlora") if wish.method is None else (wish.method,)
    found = {method: _written(wish, method, goals, measured, out, shape.positions) for method in methods}
    for written in found.values():
        stages = planned_stages(recipe_of(parse_yaml(written.text, str(out))), shape, machine)
        chosen_ways = [way for stage in stages for way in stage.ways if way.setup.method == stage.chosen]
        if all(way.largest_tokens is not None for way in chosen_ways):
            return written
    needed = numbers.memory(max(way.memory.peak.total for way in chosen_ways))
    text = f"it does not fit {machine.name}: {needed} are needed; posttrain plan {out} says what to change first"
    return replace(written, warnings=(*written.warnings, text))


def _written(
    wish: Wish,
    method: Method,
    goals: Sequence[Objective],
    measured: Mapping[RowKind, Measured],
    out: Path,
    positions: int | None,
) -> FirstRecipe:
    """The recipe with one method."""
    lines, trained = _head(wish, goals, out), [BASE]
    warnings: list[str] = []
    evaluations: dict[str, tuple[Objective, int]] = {}
    for goal in goals:
        lines += _data_stage(_rows_stage(goal), measured[goal.row_kind])
    for goal in goals:
        rows = measured[goal.row_kind]
        advice = guidance(goal, method, rows.rows - rows.held_out)
        begin = start(advice, rows.rows - rows.held_out)
        length = min(rows.covering.rounded, positions or rows.covering.rounded)
        lines += _train_stage(wish, goal, method, rows, advice, begin, length, trained[-1])
        warnings += _warnings(goal, rows, advice, begin)
        if goal.head == "tokens":
            trained.append(goal.name)
            evaluations[_rows_stage(goal)] = (goal, length)
    for name, (goal, length) in evaluations.items():
        imitates = goal.row_kind == "conversations"
        models = trained if imitates else [trained[trained.index(goal.name) - 1], goal.name]
        lines += _eval_stage(goal, length, models, replies=name == next(iter(evaluations)))
    lines += ["  report:", "    kind: report"]
    return FirstRecipe("\n".join(lines) + "\n", tuple(warnings))


def _head(wish: Wish, goals: Sequence[Objective], out: Path) -> list[str]:
    name = re.sub(r"[^\w.-]+", "-", out.stem).strip("-.") or "new"
    return [
        f"# {', then '.join(goal.title for goal in goals)} of {wish.model}. Written by posttrain new from published guidance: values are places to",
        "# start, and the numbers beside them were counted on these rows. Every other key has its default (docs/recipes.md).",
        "#",
        f"#   posttrain plan {out.name}                what fits, and how long it takes",
        f"#   posttrain run {out.name}",
        "",
        f"name: {_scalar(name)}",
        "seed: 0",
        f"model: {_scalar(_from(wish.model, out.parent))}",
        "",
        "stages:",
    ]


def _rows_stage(goal: Objective) -> str:
    """Name of the stage with the rows of a goal."""
    return "prepare" if goal.row_kind == "conversations" else goal.row_kind


def _data_stage(name: str, rows: Measured) -> list[str]:
    languages = ", ".join(f"{language} {numbers.percent(share, 0)}" for language, share in rows.languages)
    read = f"{plural(rows.rows, 'row')} of {' and '.join(rows.formats)}; {languages}"
    dropped = f"; {numbers.count(rows.dropped)} more can't be used or stand there twice" if rows.dropped else ""
    return [
        f"  {name}:",
        "    kind: data",
        "    sources:",
        *(f"      - path: {_scalar(path)}" for path in rows.paths),
        _line(f"    rows: {rows.kind}", read + dropped),
        _line(
            f"    held_out: {rows.held_out}",
            "never trained on: they show what was learned, and where it turns into learning by heart",
        ),
        "",
    ]


def _train_stage(
    wish: Wish,
    goal: Objective,
    method: Method,
    rows: Measured,
    advice: Guidance,
    begin: Start,
    length: int,
    begins: str,
) -> list[str]:
    settings = [(f"data: {_rows_stage(goal)}", "")]
    if begins != BASE:
        settings.append(
            (f"start_from: {begins}", "goes on with its weights, which are also the reference where one is needed")
        )
    elif wish.template is not None:
        settings.append(
            (f"template: {_scalar(str(wish.template))}", "the model has none of its own, or another is wanted")
        )
    settings.append((f"objective: {{name: {goal.name}}}", f"{goal.settings_text or goal.title}: docs/objectives.md"))
    if method == "full":
        settings.append(("adapter: {name: full}", "all weights: the most memory, and a tenth of LoRA's learning rate"))
    else:
        quantize = ", quantize: nf4" if method == "qlora" else ""
        adapter = f"adapter: {{name: lora, rank: {advice.rank.value:g}{quantize}}}"
        settings.append((adapter, advice.rank.source))
    whole = f"keeps {numbers.percent(rows.covering.rounded_share)} of the rows whole"
    limit = whole if length == rows.covering.rounded else "the longest this model can read"
    rate = advice.learning_rate
    settings += [
        (
            f"max_length: {length}",
            f"{limit}; the longest has {numbers.count(rows.longest)} tokens; what is longer is dropped and counted",
        ),
        (f"epochs: {begin.epochs:g}", advice.epochs.source),
        (f"batch_size: {begin.batch_size}", f"{plural(begin.steps, 'step')}; {advice.batch_size.source}"),
        (
            "micro_batch_tokens: auto",
            "what fits this machine, tried before the first step; moves memory, not the result",
        ),
        (f"learning_rate: {_rate(begin.learning_rate)}", f"{_rate(rate.low)} to {_rate(rate.high)}: {rate.source}"),
        ("schedule: cosine", "falls to 0, so that the last steps settle"),
        ("warmup: 0.05", "of the steps: the first gradients are the largest"),
        ("keep: best", "the weights with the lowest held-out loss, should the epochs be too many"),
    ]
    return [f"  {goal.name}:", "    kind: train", *(_line(f"    {setting}", why) for setting, why in settings), ""]


def _eval_stage(goal: Objective, length: int, models: Sequence[str], *, replies: bool) -> list[str]:
    imitates = goal.row_kind == "conversations"
    return [
        f"  {'evaluate' if imitates else 'preferences'}:",
        "    kind: eval",
        _line(
            f"    data: {_rows_stage(goal)}",
            f"its held-out rows: {'how likely they are' if imitates else 'which replies are favoured'}",
        ),
        _line(f"    models: [{', '.join(models)}]", "later ones are compared with the first"),
        f"    max_length: {length}",
        *([] if replies else [_line("    prompts: null", "replies to posttrain's prompts are compared above")]),
        "",
    ]


def _warnings(goal: Objective, rows: Measured, advice: Guidance, begin: Start) -> Iterator[str]:
    """Where the recipe is not what is advised, and why."""
    if begin.few:
        yield (
            f"{goal.name}: {plural(rows.rows - rows.held_out, 'row')} to train on give few steps ({begin.steps}): the batch is {begin.batch_size} instead of "
            f"{advice.batch_size.low:g} to {advice.batch_size.high:g}, epochs and learning rate are the highest advised"
        )
    if rows.held_out < FEWEST_HELD_OUT:
        yield f"{goal.name}: {plural(rows.held_out, 'held-out row')}: only large differences can be shown"
    if rows.unusable:
        yield f"{goal.name}: {rows.unusable} of {plural(rows.looked_at, 'row')} can't be encoded: posttrain show says why"


def _line(setting: str, why: str) -> str:
    return f"{setting:<{COMMENT_AT}} # {why}" if why else setting


def _rate(value: float) -> str:
    """``2e-4``."""
    digits, exponent = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _scalar(text: str) -> str:
    """A text as YAML; in quotes where it could be read as something else."""
    return (
        text
        if re.fullmatch(r"[A-Za-z_./][\w./-]*", text) and text.lower() not in YAML_WORDS
        else json.dumps(text, ensure_ascii=False)
    )
