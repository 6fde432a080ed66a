"""``posttrain data STEP`` and ``posttrain score`` as recipes: one stage of work on files, run like any other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from posttrain.artifacts import Ledger, read_json
from posttrain.config import Document, Section, build, override, parse_yaml, read_yaml, sections
from posttrain.data.config import ChainStep, Source
from posttrain.data.mix import MixStep
from posttrain.data.rows import row_kind_of
from posttrain.data.split import SplitStep
from posttrain.data.steps import Step
from posttrain.errors import ConfigError
from posttrain.lab.options import option_line
from posttrain.lab.recipe import Recipe
from posttrain.report import values as report
from posttrain.stages.base import StageKind
from posttrain.stages.data import DataStage
from posttrain.stages.score import ScoreStage
from posttrain.table import Table
from posttrain.types import RowKind

ENGINES: Table[Literal["local", "ray"]] = Table("engine", {"local": "local", "ray": "ray"})

STEPS: dict[str, type] = {
    get_args(get_type_hints(variant)["kind"])[0]: variant for variant in (*get_args(get_args(ChainStep)[0]), MixStep)
}
"""Name of every step -> its configuration."""
READ = "read"
"""The stage that reads files for another one."""
SHOWN_COUNTS = 12


def data_recipe(
    kind: str, options: Sequence[str], sources: tuple[Source, ...], out: Path, seed: int, workers: int, engine: str
) -> Recipe:
    """One step of the data chain on these sources, as the stage ``kind``. Raises ConfigError as for a recipe."""
    step: Any = step_of(kind, options)
    if not sources:
        raise ConfigError("no files", where=f"posttrain data {kind}", fix=f"posttrain data {kind} rows.jsonl -o out")
    data = DataStage(kind="data", sources=sources, workers=workers, engine=ENGINES[engine], profile=False)
    if isinstance(step, MixStep):
        stage = replace(data, mix=step, held_out=0)
    else:
        stage = replace(data, steps=(step,), held_out=None if isinstance(step, SplitStep) else 0)
    return recipe_of_stages(out, {kind: stage}, seed)


def score_recipe(sources: Sequence[Source], score: Mapping[str, Any], out: Path) -> Recipe:
    """The rows of files, scored. ``score``: keys of a score stage."""
    stages: dict[str, StageKind] = {
        READ: DataStage(kind="data", sources=tuple(sources), held_out=0, profile=False),
        "score": ScoreStage(kind="score", data=READ, **score),
    }
    return recipe_of_stages(out, stages, 0)


def recipe_of_stages(out: Path, stages: Mapping[str, StageKind], seed: int) -> Recipe:
    """The recipe of a command. Raises ConfigError where the folder holds the run of another one: its stages would be left behind."""
    if (out / "recipe.yaml").is_file():
        fix = "give each command a folder of its own with -o"
        try:
            former = list(read_yaml(out / "recipe.yaml").value["stages"])
        except (ConfigError, TypeError, KeyError) as error:
            raise ConfigError(f"recipe.yaml of this folder is damaged ({error})", where=str(out), fix=fix) from error
        if former != list(stages):
            names = ", ".join(map(str, former))
            raise ConfigError(f"this folder holds the run of other stages ({names})", where=str(out), fix=fix)
    name = re.sub(r"[^\w.-]+", "-", out.resolve().name).strip("-.")
    return Recipe(name=name or "run", seed=seed, stages=dict(stages))


def sources_of(
    files: Sequence[str], row_format: str, columns: dict[str, str] | None, split: str | None, config: str | None
) -> tuple[Source, ...]:
    """The sources that a command line names, each a path, or ``NAME=PATH`` where its rows should carry another name than that of the file."""
    found: list[Source] = []
    for file in files:
        name, equals, path = file.partition("=")
        if not equals or Path(file).exists() or "/" in name:
            name, path = "", file
        found.append(
            Source(path=path, format=row_format, columns=columns, name=name or None, split=split, config=config)
        )
    return tuple(found)


def step_of(kind: str, options: Sequence[str]) -> Step:
    """The configuration of a step from ``key=value`` options. Raises ConfigError as for a recipe."""
    where = f"posttrain data {kind}"
    document = Document(where, {"kind": kind}, {(): where})
    given = [_quoted(option) for option in options]
    step: Step = build(STEPS[kind], override(document, given, STEPS[kind], called="option"))
    return step


def _quoted(option: str) -> str:
    """An option whose value is no YAML (a path with a colon, say) is a text."""
    key, _, value = option.partition("=")
    try:
        parse_yaml(f"value: {value}", "option")
    except ConfigError:
        return f"{key}={json.dumps(value)}"
    return option


def options_help(kind: str) -> str:
    """Every option of a step, for ``--help``: name, allowed values, default, meaning."""
    found: tuple[Section, ...] = sections(STEPS[kind])
    lines = ["Options of the step (the keys of a recipe; --a.b for a key b inside of a):", ""]
    for section in found:
        path = section.path.lstrip(".").replace("[]", ".0")
        for key in section.keys:
            name = ".".join(part for part in (path, key.name) if part)
            if name != "kind":
                lines.append(option_line(name, key, section.choice))
    return "\n".join(lines)


# ---- what a command ends with --------------------------------------------------------------------------------------


def step_folder(kind: str, out: Path) -> Path:
    """The folder of a step in the run of its command."""
    return out / kind / ("mix" if kind == "mix" else f"steps/01-{kind}")


def step_record(kind: str, out: Path) -> dict[str, Any]:
    """Ledger and facts of a command's step."""
    return {
        "ledger": Ledger.read(out / kind / "ledger.json").as_dict(),
        "facts": read_json(step_folder(kind, out) / "facts.json"),
    }


def step_section(kind: str, out: Path) -> report.Section:
    """The account of a command: every step with what came in, was dropped and why, and is left; then what the step found."""
    record = step_record(kind, out)
    account: list[tuple[report.Cell, ...]] = [
        (
            line["name"],
            report.Number(line["rows_in"], "count"),
            ", ".join(f"{reason} {count:,}" for reason, count in sorted(line["dropped"].items(), key=lambda i: -i[1]))
            or "-",
            report.Number(line["rows_out"], "count"),
        )
        for line in record["ledger"]["steps"]
        if line["name"] != "split" or kind == "split"  # nothing is held out
    ]
    facts = record["facts"]
    plain = tuple((key, _number(value)) for key, value in facts.items() if isinstance(value, str | int | float))
    counts = tuple(
        (f"{key}: {name}", _number(value))
        for key, inner in facts.items()
        if isinstance(inner, Mapping) and len(inner) <= SHOWN_COUNTS
        for name, value in inner.items()
        if isinstance(value, str | int | float)
    )
    named = [
        _named_table(key, things)
        for key, things in facts.items()
        if isinstance(things, list) and things and all(isinstance(t, Mapping) and "name" in t for t in things)
    ]
    warnings = tuple(map(str, facts.get("warnings", ())))
    rows_file = out / kind / "rows" / "train.parquet"
    where = (
        f"Rows ({_KINDS[row_kind_of(rows_file)]}) are in {rows_file}; {step_folder(kind, out) / 'rejects.parquet'} lists"
        " what was dropped, facts.json beside it says how it was decided"
    )
    blocks: list[report.Block] = [
        report.Table("", ("step", "rows in", "dropped", "rows out"), tuple(account)),
        report.Facts((*plain, *counts)),
        *named,
        *([report.Notice("warning", "warning", warnings)] if warnings else []),
        report.Text(where),
    ]
    return report.Section(f"posttrain data {kind}", kind, tuple(blocks))


def _number(value: str | int | float) -> report.Cell:
    """A fact as YAML writes it, floats with the digits that say something: facts.json has them all."""
    if isinstance(value, bool | str):
        return str(value).lower() if isinstance(value, bool) else value
    return report.Number(value, "count") if isinstance(value, int) else f"{value:.4g}"


def _named_table(key: str, things: Sequence[Mapping[str, Any]]) -> report.Table:
    """A table of named things with counts, such as benchmarks and their prompts."""
    names = [name for name, value in things[0].items() if isinstance(value, int)]
    rows: tuple[tuple[report.Cell, ...], ...] = tuple(
        (str(t["name"]), *(report.Number(t[name], "count") for name in names)) for t in things
    )
    return report.Table(key, ("", *(name.replace("_", " ") for name in names)), rows)


_KINDS: dict[RowKind | None, str] = {
    "conversations": "conversations",
    "pairs": "pairs of replies",
    "feedback": "judged replies",
    "prompts": "prompts without replies",
    None: "none",
}
