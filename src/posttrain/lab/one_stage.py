"""Commands as recipes: one stage of work on files, run like any other, its keys the options of the command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from posttrain.artifacts import RunDir, atomic_path, plain, read_json, remove_killed
from posttrain.config import build, read_yaml
from posttrain.data.config import ChainStep, Source
from posttrain.data.mix import MixStep
from posttrain.errors import ConfigError, PosttrainError, RunError
from posttrain.generate.source import ModelSource
from posttrain.judge.config import JUDGES, JudgeConfig, JudgeSource, PanelFile, Plan
from posttrain.lab.options import Keys, configured, options_help, split_arguments
from posttrain.lab.recipe import Recipe, recipe_of
from posttrain.lab.step_account import step_record, step_section
from posttrain.references import NamesFile
from posttrain.report import values as report
from posttrain.stages.arena import ArenaStage
from posttrain.stages.base import BASE
from posttrain.stages.data import DataStage
from posttrain.stages.eval import EvalStage
from posttrain.stages.export import ExportStage
from posttrain.stages.judge import JudgeStage
from posttrain.stages.profile import ProfileStage
from posttrain.stages.score import ScoreStage
from posttrain.stages.synth import SynthStage
from posttrain.synth import AnyPipeline


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Several judges."""

    panel: Annotated[str, NamesFile()] | None = None
    """YAML file with several judges; the majority decides."""


STEPS: dict[str, type] = {
    get_args(get_type_hints(variant)["kind"])[0]: variant for variant in (*get_args(get_args(ChainStep)[0]), MixStep)
}
"""Name of every step -> its configuration."""
EVAL = "posttrain eval"
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
    top: Mapping[str, Any] = field(default_factory=dict)
    """Keys of its recipe beside the stages."""
    record: str = ""
    """The file with its numbers; empty = ledger and facts of a data step."""
    files: tuple[str, ...] = ()
    """The files to look at besides."""
    hands_over: str = ""
    """The folder of the stage that is all ``-o DIR`` is to hold, which must be new; empty = DIR is the run folder."""

    @contextlib.contextmanager
    def run_folder(self, out: Path) -> Iterator[Path]:
        """The folder to run in: ``out`` itself, or one beside it that is gone when what was made has become ``out``."""
        if not self.hands_over:
            yield out
            return
        remove_killed(out)
        with (
            atomic_path(out) as whole,
            tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=f".{os.getpid()}.tmp") as folder,
        ):
            made = Path(folder, self.stage, self.hands_over)
            try:
                yield Path(folder)
            except PosttrainError as error:  # who reads it knows the folder that was asked for
                where = error.where and error.where.replace(str(made), str(out)).replace(folder, str(out))
                raise type(error)(error.problem, where=where, fix=error.fix) from error
            os.replace(made, whole)

    def recipe(self, out: Path) -> Recipe:
        """Its recipe. Raises ConfigError as for a recipe, and where the folder holds the run of another one: its stages would be left behind."""
        name = re.sub(r"[^\w.-]+", "-", out.resolve().name).strip("-.") or "run"
        recipe = configured(
            Recipe,
            recipe_of,
            f"posttrain {self.name}",
            {"name": name, **self.top, "stages": self.stages},
            self.keys,
            self.options,
        )
        if self.hands_over:
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                fix = "name a new folder: -o DIR"
                raise RunError("there is something at this place already", where=str(out), fix=fix)
        elif (out / "recipe.yaml").is_file():
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

    def json(self, folder: Path) -> str:
        """The numbers of what was done in a run folder, as JSON."""
        if self.hands_over:
            return json.dumps(read_json(folder / self.stage / "manifest.json")["result"], ensure_ascii=False)
        if not self.record:
            return json.dumps(step_record(self.stage, folder), ensure_ascii=False)
        return (folder / self.stage / self.record).read_text(encoding="utf-8").rstrip("\n")

    def section(self, folder: Path, recipe: Recipe, out: Path) -> report.Section:
        """What was done in a run folder, for the terminal."""
        if not self.record and not self.hands_over:
            return step_section(self.stage, folder)
        found = recipe.stages[self.stage].section(RunDir(folder).stage(self.stage))
        assert found is not None, "such a stage says something"
        several = [str(out / self.stage / name) for name in (*self.files, self.record)]
        written = str(out) if self.hands_over else ", ".join(several)
        opening = (report.Text(found.summary, "lead"),) if found.summary else ()
        return replace(found, blocks=(*opening, *found.blocks, report.Text(f"Written: {written}")))


def options_of(name: str) -> str:
    """Every option of a command, for ``--help``."""
    needed = {"judge": ["-", "--local=-"], "score": ["-", "--model=-"], "synth": ["--local=-"], "eval": []}
    needed |= {"export": ["-", "--to=hf"], "synth evolve": ["-", "--local=-"]}
    return options_help(one_stage(name, needed.get(name, needed.get(name.partition(" ")[0], ["-"]))).keys)


def one_stage(name: str, words: Sequence[str]) -> OneStage:
    """A command with the words that stand behind its name. Raises ConfigError where there is no file, or no judge."""
    group, _, verb = name.rpartition(" ")
    files, options = split_arguments(words)
    at, command = f"stages.{verb}.", partial(OneStage, name=name, stage=verb, options=options)
    if group == "judge":
        return _judge(name, verb, files, options)
    if group == "synth":
        return _synth(name, verb.replace("-", "_"), files, options)
    if verb == "eval":
        return _eval(files, options)
    if verb == "export":
        return _export(name, files, options)
    if verb == "arena":
        stages: dict[str, Any] = {
            verb: {"kind": "arena", "file": _only_file(name, files)},
            "report": {"kind": "report"},
        }
        keys = [Keys(ArenaStage, (at,), without=("file",))]
        return command(stages=stages, keys=keys, record="ratings.json")
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
        return command(stages=stages, keys=keys, record="facts.json", files=("rows/train.parquet",))
    if verb == "profile":
        keys.append(Keys(ProfileStage, (at,), without=("sources",)))
        stages = {verb: {"kind": "profile", "sources": sources}}
        return command(stages=stages, keys=keys, record="profile.json", files=("profile.html",))
    mix = verb == "mix"
    keys += [
        Keys(DataStage, (at,), only=("workers", "engine")),
        Keys(Recipe, ("",), only=("seed",)),
        Keys(STEPS[verb], (f"{at}mix." if mix else f"{at}steps.0.",)),
    ]
    stage = data | ({"mix": {"kind": verb}} if mix else {"steps": [{"kind": verb}]})
    if verb == "split":
        del stage["held_out"]
    return command(stages={verb: stage}, keys=keys)


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


def _export(name: str, models: Sequence[str], options: Sequence[str]) -> OneStage:
    """``posttrain export TARGET``."""
    from posttrain.model.targets import EXPORTED

    where = f"posttrain {name}"
    if len(models) != 1:
        raise ConfigError("one model is needed", where=where, fix=f"{where} runs/NAME/STAGE --to hf -o DIR")
    if not any(option.startswith("to=") for option in options):
        raise ConfigError("in which form?", where=where, fix="give --to hf, adapter, gguf, gguf-adapter or ollama")
    model = f"./{models[0]}" if models[0] in (BASE, name) else models[0]  # a folder, whatever the recipe calls so
    return OneStage(
        name=name,
        stage=name,
        stages={name: {"kind": "export", "model": model}},
        keys=[Keys(ExportStage, (f"stages.{name}.",), without=("model",))],
        options=options,
        hands_over=EXPORTED,
    )


# ---- synthesis -----------------------------------------------------------------------------------------------------


PIPELINES: dict[str, type] = {
    get_args(get_type_hints(variant)["name"])[0]: variant for variant in get_args(get_args(AnyPipeline)[0])
}
"""Name of every pipeline -> its configuration."""


def _synth(name: str, verb: str, files: Sequence[str], options: Sequence[str]) -> OneStage:
    """``posttrain synth PIPELINE [ROWS]``."""
    where, reads = f"posttrain {name}", {one.name: one.default is MISSING for one in fields(PIPELINES[verb])}
    pipeline = {"name": verb} | ({"data": _source(_only_file(name, files))} if files else {})
    if files and "data" not in reads:
        raise ConfigError(f"{verb} reads no rows", where=where, fix="leave the file away")
    if not files and reads.get("data"):
        raise ConfigError("no rows", where=where, fix=f"{where} rows.jsonl ... -o out")
    at = f"stages.{verb}."
    writer = Keys(ModelSource, (f"{at}writer.",))
    if not any(writer.has(option.partition("=")[0]) for option in options) and not any(
        option.startswith("models") for option in options
    ):
        fix = "give --local MODEL, --endpoint URL --model NAME, or --gguf FILE"
        raise ConfigError("who writes?", where=where, fix=fix)
    return OneStage(
        name=name,
        stage=verb,
        stages={verb: {"kind": "synth", "pipeline": pipeline, "writer": {}}},
        keys=[
            writer,
            Keys(PIPELINES[verb], (f"{at}pipeline.",), without=("name", "data")),
            *([Keys(Source, (f"{at}pipeline.data.",), only=SOURCE_KEYS)] if files else []),
            Keys(SynthStage, (at,), without=("pipeline", "writer")),
            Keys(Recipe, ("",), only=("seed",)),
        ],
        options=options,
        record="facts.json",
        files=("rows/train.parquet", "dropped.jsonl"),
    )


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


# ---- evaluation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured, and by whom."""

    benchmark: tuple[str, ...] = ()
    """BENCHMARK=PATH, as gsm8k=test.jsonl, BENCHMARK alone where it has prompts of its own, or NAME:BENCHMARK=PATH; may be repeated. Its keys are ``--NAME.KEY``, as ``--gsm8k.max-prompts 50``."""
    judge: str | None = None
    """endpoint=URL,model=NAME, local=TARGET, reward=TARGET, gguf=FILE, or a YAML file (a panel)."""


def _eval(models: Sequence[str], options: Sequence[str]) -> OneStage:
    """``posttrain eval MODEL...``: an evaluation of models from anywhere, and a report. The first is the baseline."""
    given = [tuple(option.split("=", 1)) for option in options]
    benchmarks = dict(_benchmark(text) for key, text in given if key == "benchmark")
    judge = [text for key, text in given if key == "judge"]
    known = {name.replace("-", "_"): name for name in benchmarks}
    rest = []
    for key, text in given:
        name, dot, inner = key.partition(".")
        if key not in ("benchmark", "judge"):
            rest.append(f"benchmarks.{known[name]}.{inner}={text}" if dot and name in known else f"{key}={text}")
    targets = _named(models)
    base = targets.get(BASE) or next(iter(targets.values()), None)
    top: dict[str, Any] = {}
    if base is not None:
        from posttrain.model.targets import resolve_target  # torch: seconds that other commands need not wait

        lineage = resolve_target(base)
        if BASE in targets and lineage.adapter is not None:
            fix = "give the model another name"
            raise ConfigError("'base' is a model without an adapter", where=f"{EVAL} base={base}", fix=fix)
        top = {"model": base if lineage.adapter is None else str(lineage.folder)}
    stage = {
        "kind": "eval",
        "models": list(targets),
        "others": {name: target for name, target in targets.items() if name != BASE},
        "prompts": None,
        "benchmarks": benchmarks,
    } | ({"judge": _judge_of(judge[-1])} if judge else {})
    return OneStage(
        name="eval",
        stage="evaluate",
        stages={"evaluate": stage, "report": {"kind": "report", "title": f"Evaluation of {', '.join(targets)}"}},
        keys=[
            Keys(Measured, ()),
            Keys(EvalStage, ("stages.evaluate.",), without=("models", "others", "data", "reference", "judge")),
            Keys(Recipe, ("",), only=("seed",)),
        ],
        options=rest,
        top=top,
        record="../summary.json",
    )


def _named(texts: Sequence[str]) -> dict[str, str]:
    """Targets by name: the name given, or the last part of the target."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, target = text.partition("=")
        if not equals:
            target = text
            name = re.sub(r"[^\w.-]+", "-", Path(text.rstrip("/")).name).strip("-.")
        if not name or not target:
            raise ConfigError(f"{text!r} does not name a model", where=EVAL, fix="give TARGET or NAME=TARGET")
        if name in found:
            problem = f"two models are called {name!r}: {found[name]} and {target}"
            raise ConfigError(problem, where=EVAL, fix=f"name one: other-{name}={target}")
        found[name] = target
    return found


def _benchmark(text: str) -> tuple[str, dict[str, str]]:
    left, _, path = text.partition("=")
    key, colon, name = left.partition(":")
    if not left or (colon and not name):
        raise ConfigError(
            f"{text!r} does not name a benchmark",
            where=f"{EVAL} --benchmark",
            fix="give BENCHMARK=PATH, as gsm8k=test.jsonl, or NAME:BENCHMARK=PATH",
        )
    return key, {"name": name or key} | ({"path": path} if path else {})


def _judge_of(text: str) -> Any:
    """A judge's YAML file, or its options with commas between them."""
    if text.endswith((".yaml", ".yml")):
        return read_yaml(text).value
    where = f"{EVAL} --judge"
    parts = [part.partition("=") for part in re.split(r",(?=\s*[a-z_-]+=)", text)]  # a value may hold commas of its own
    if not all(equals for _, equals, _ in parts):
        fix = "give a YAML file, endpoint=URL,model=NAME, local=TARGET, reward=TARGET or gguf=FILE"
        raise ConfigError(f"{text!r} does not name a judge", where=where, fix=fix)
    try:
        return judge_value([f"{key.strip().replace('-', '_')}={value.strip()}" for key, _, value in parts], where)
    except ConfigError as error:
        raise ConfigError(error.problem, where=where, fix=error.fix) from None
