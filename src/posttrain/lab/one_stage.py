"""Commands as recipes: one stage of work on files, run like any other, its keys the options of the command."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from posttrain.artifacts import Ledger, RunDir, plain, read_json
from posttrain.config import build, read_yaml
from posttrain.data.config import ChainStep, Source
from posttrain.data.mix import MixStep
from posttrain.data.rows import row_kind_of
from posttrain.errors import ConfigError
from posttrain.judge.config import JUDGES, JudgeConfig, JudgeSource, PanelFile, Plan
from posttrain.lab.options import Keys, configured, options_help, split_arguments
from posttrain.lab.recipe import Recipe, recipe_of
from posttrain.references import NamesFile
from posttrain.report import values as report
from posttrain.stages.arena import ArenaStage
from posttrain.stages.data import DataStage
from posttrain.stages.judge import JudgeStage
from posttrain.stages.profile import ProfileStage
from posttrain.stages.score import ScoreStage
from posttrain.types import RowKind


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Several judges."""

    panel: Annotated[str, NamesFile()] | None = None
    """YAML file with several judges; the majority decides."""


STEPS: dict[str, type] = {
    get_args(get_type_hints(variant)["kind"])[0]: variant for variant in (*get_args(get_args(ChainStep)[0]), MixStep)
}
"""Name of every step -> its configuration."""
READ = "read"
"""The stage that reads files for another one."""
SOURCE_KEYS = ("format", "columns", "split", "config")
JUDGE_OPTIONS = (
    Keys(Panel, ()),
    Keys(JudgeSource, ("judges.0.",)),
    Keys(Plan, ("plan.",)),
    Keys(JudgeConfig, ("",), without=("judges", "plan")),
)
"""Options of a judge: the keys of a recipe's ``judge``, without a level."""
SHOWN_COUNTS = 12


@dataclass(frozen=True, kw_only=True)
class OneStage:
    """A command of one stage."""

    name: str
    """As it is typed: ``data filter``."""
    stage: str
    """The stage in the run folder."""
    stages: Mapping[str, Any]
    """The stages of its recipe, as in YAML."""
    keys: Sequence[Keys]
    """Its options."""
    options: Sequence[str]
    """``key=value``, as typed."""
    record: str = ""
    """The file with its numbers; empty = ledger and facts of a data step."""
    files: tuple[str, ...] = ()
    """The files to look at besides."""

    def recipe(self, out: Path) -> Recipe:
        """Its recipe. Raises ConfigError as for a recipe, and where the folder holds the run of another one: its stages would be left behind."""
        name = re.sub(r"[^\w.-]+", "-", out.resolve().name).strip("-.") or "run"
        recipe = configured(
            Recipe, recipe_of, f"posttrain {self.name}", {"name": name, "stages": self.stages}, self.keys, self.options
        )
        if (out / "recipe.yaml").is_file():
            fix = "give each command a folder of its own with -o"
            try:
                former = list(read_yaml(out / "recipe.yaml").value["stages"])
            except (ConfigError, TypeError, KeyError) as error:
                raise ConfigError(
                    f"recipe.yaml of this folder is damaged ({error})", where=str(out), fix=fix
                ) from error
            if former != list(recipe.stages):
                names = ", ".join(map(str, former))
                raise ConfigError(f"this folder holds the run of other stages ({names})", where=str(out), fix=fix)
        return recipe

    def json(self, out: Path) -> str:
        """The numbers of what was done, as JSON."""
        if not self.record:
            return json.dumps(step_record(self.stage, out), ensure_ascii=False)
        return (out / self.stage / self.record).read_text(encoding="utf-8").rstrip("\n")

    def section(self, out: Path, recipe: Recipe) -> report.Section:
        """What was done, for the terminal."""
        if not self.record:
            return step_section(self.stage, out)
        found = recipe.stages[self.stage].section(RunDir(out).stage(self.stage))
        assert found is not None, "such a stage says something"
        written = ", ".join(str(out / self.stage / name) for name in (*self.files, self.record))
        opening = (report.Text(found.summary, "lead"),) if found.summary else ()
        return replace(found, blocks=(*opening, *found.blocks, report.Text(f"Written: {written}")))


def options_of(name: str) -> str:
    """Every option of a command, for ``--help``."""
    needed = {"judge": ["--local=-"], "score": ["--model=-"]}.get(name.partition(" ")[0], [])
    return options_help(one_stage(name, ["-", *needed]).keys)


def one_stage(name: str, words: Sequence[str]) -> OneStage:
    """A command with the words that stand behind its name. Raises ConfigError where there is no file, or no judge."""
    group, _, verb = name.rpartition(" ")
    files, options = split_arguments(words)
    at = f"stages.{verb}."
    if group == "judge":
        return _judge(name, verb, files, options)
    if verb == "arena":
        stages: dict[str, Any] = {
            verb: {"kind": "arena", "file": _only_file(name, files)},
            "report": {"kind": "report"},
        }
        keys = [Keys(ArenaStage, (at,), without=("file",))]
        return OneStage(name=name, stage=verb, stages=stages, keys=keys, options=options, record="ratings.json")
    if not files:
        raise ConfigError("no files", where=f"posttrain {name}", fix=f"posttrain {name} rows.jsonl -o out")
    read = READ if verb == "score" else verb
    sources = [_source(file) for file in files]
    keys = [Keys(Source, tuple(f"stages.{read}.sources.{k}." for k in range(len(sources))), only=SOURCE_KEYS)]
    data = {"kind": "data", "sources": sources, "held_out": 0, "profile": False}
    if verb == "score":
        if not any(option.startswith("model=") for option in options):
            raise ConfigError("whose scores?", where=f"posttrain {name}", fix="give --model MODEL")
        keys.append(Keys(ScoreStage, (at,), without=("data",)))
        stages = {READ: data, verb: {"kind": "score", "data": READ}}
        found = OneStage(
            name=name,
            stage=verb,
            stages=stages,
            keys=keys,
            options=options,
            record="facts.json",
            files=("rows/train.parquet",),
        )
    elif verb == "profile":
        keys.append(Keys(ProfileStage, (at,), without=("sources",)))
        stages = {verb: {"kind": "profile", "sources": sources}}
        found = OneStage(
            name=name,
            stage=verb,
            stages=stages,
            keys=keys,
            options=options,
            record="profile.json",
            files=("profile.html",),
        )
    else:
        mix = verb == "mix"
        keys += [
            Keys(DataStage, (at,), only=("workers", "engine")),
            Keys(Recipe, ("",), only=("seed",)),
            Keys(STEPS[verb], (f"{at}mix." if mix else f"{at}steps.0.",)),
        ]
        stage = data | ({"mix": {"kind": verb}} if mix else {"steps": [{"kind": verb}]})
        if verb == "split":
            del stage["held_out"]
        found = OneStage(name=name, stage=verb, stages={verb: stage}, keys=keys, options=options)
    return found


def _source(file: str) -> dict[str, str]:
    """A path, or ``NAME=PATH`` where its rows should carry another name than that of the file."""
    name, equals, path = file.partition("=")
    return (
        {"path": path, "name": name}
        if equals and name and not Path(file).exists() and "/" not in name
        else {"path": file}
    )


def _only_file(name: str, files: Sequence[str]) -> str:
    if len(files) == 1:
        return files[0]
    where = f"posttrain {name}"
    raise ConfigError(f"one file is needed, not {len(files)}", where=where, fix=f"{where} pairs.jsonl -o out")


# ---- judges --------------------------------------------------------------------------------------------------------


def _judge(name: str, verb: str, files: Sequence[str], options: Sequence[str]) -> OneStage:
    """``posttrain judge pairs | single | calibrate``."""
    own = Keys(JudgeStage, (f"stages.{verb}.",), without=("items", "task", "judge"))
    of_judge = [option for option in options if not own.has(option.partition("=")[0])]
    stage = {"kind": "judge", "task": verb, "items": _only_file(name, files)}
    stage |= {"judge": judge_value(of_judge, f"posttrain {name}")} | ({"prompt": "single"} if verb == "single" else {})
    return OneStage(
        name=name,
        stage=verb,
        stages={verb: stage},
        keys=[own, *JUDGE_OPTIONS],
        options=[option for option in options if option not in of_judge],
        record="summary.json",
        files=("verdicts.jsonl",),
    )


def judge_value(options: Sequence[str], where: str) -> Any:
    """A recipe's ``judge`` from the options of a judge: a panel's file names several, criteria may be those of a text file.

    Raises ConfigError where nobody judges, or an option is unknown or wrong.
    """
    panel = [option.partition("=")[2] for option in options if option.startswith("panel=")]
    given = [_with_criteria(option) for option in options if not option.startswith("panel=")]
    named = [option for option in given if JUDGE_OPTIONS[1].has(option.partition("=")[0])]
    if panel and named:
        raise ConfigError("a panel's file names all judges", where="--panel", fix="leave --endpoint, --local ... away")
    if not panel and not any(option.partition("=")[0] in JUDGES for option in named):
        raise ConfigError(
            "who judges?",
            where=where,
            fix="give --endpoint URL --model NAME, --local TARGET, --gguf FILE, --reward TARGET or --panel FILE",
        )
    judges = plain(build(PanelFile, read_yaml(panel[-1])).judges) if panel else [{}]
    value: dict[str, Any] = {"judges": judges, "plan": {}}
    return plain(configured(JudgeConfig, partial(build, JudgeConfig), where, value, JUDGE_OPTIONS, given))


def _with_criteria(option: str) -> str:
    """Criteria as written on the command line, or the content of the text file they name."""
    key, _, given = option.partition("=")
    if key != "criteria" or len(given) > 255 or "\n" in given or not Path(given).is_file():
        return option
    try:
        return f"{key}={Path(given).read_text(encoding='utf-8')}"
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the criteria: {error}", where=given, fix="give a text file in UTF-8") from error


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
