"""``posttrain eval MODEL... -o RUN``: a recipe of one evaluation stage and a report, made from a command line and run like any other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import override, parse_yaml, read_yaml
from posttrain.errors import ConfigError
from posttrain.lab.one_stage import judge_value
from posttrain.lab.recipe import Recipe, recipe_of
from posttrain.model.targets import resolve_target
from posttrain.stages.base import BASE

STAGE = "evaluate"
WHERE = "posttrain eval"


@dataclass(frozen=True, kw_only=True)
class EvalCommand:
    """What the command line says."""

    models: tuple[str, ...]
    """``TARGET`` or ``NAME=TARGET``; the first is the baseline."""
    out: Path
    """The run folder."""
    benchmarks: tuple[str, ...] = ()
    """``BENCHMARK``, ``BENCHMARK=PATH`` or ``NAME:BENCHMARK=PATH``."""
    judge: str | None = None
    """A YAML file (the keys of a stage's ``judge``), or one judge as ``KEY=VALUE,KEY=VALUE``."""
    prompts: str | None = None
    """``builtin`` or a YAML file; None = no replies outside the benchmarks."""
    settings: tuple[str, ...] = ()
    """``KEY=VALUE`` for the stage, or ``NAME.KEY=VALUE`` for one of its benchmarks."""
    seed: int = 0


def eval_recipe(command: EvalCommand) -> Recipe:
    """The recipe of a command.

    Raises:
        ConfigError: an option is not of its form, two models have one name, or the recipe would be wrong.

    """
    models = _named(command.models)
    benchmarks = dict(_benchmark(text) for text in command.benchmarks)
    base = models.get(BASE) or next(iter(models.values()))
    lineage = resolve_target(base)
    if BASE in models and lineage.adapter is not None:
        raise ConfigError(
            "'base' is a model without an adapter", where=f"{WHERE} base={base}", fix="give the model another name"
        )
    stage: dict[str, Any] = {
        "kind": "eval",
        "models": list(models),
        "others": {name: target for name, target in models.items() if name != BASE},
        "prompts": command.prompts,
        "benchmarks": benchmarks,
    }
    if command.judge is not None:
        stage["judge"] = _judge(command.judge)
    value = {
        "name": command.out.resolve().name,
        "seed": command.seed,
        "model": base if lineage.adapter is None else str(lineage.folder),
        "stages": {STAGE: stage, "report": {"kind": "report", "title": f"Evaluation of {', '.join(models)}"}},
    }
    document = parse_yaml(yaml.safe_dump(value, allow_unicode=True, sort_keys=False), WHERE)
    settings = [_setting(text, benchmarks) for text in command.settings]
    return recipe_of(override(document, settings, Recipe))


def _named(texts: Sequence[str]) -> dict[str, str]:
    """Targets by name: the name given, or the last part of the target."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, target = text.partition("=")
        if not equals:
            target = text
            name = re.sub(r"[^\w.-]+", "-", Path(text.rstrip("/")).name).strip("-.")
        if not name or not target:
            raise ConfigError(f"{text!r} does not name a model", where=WHERE, fix="give TARGET or NAME=TARGET")
        if name in found:
            raise ConfigError(
                f"two models are called {name!r}: {found[name]} and {target}",
                where=WHERE,
                fix=f"name one: other-{name}={target}",
            )
        found[name] = target
    return found


def _benchmark(text: str) -> tuple[str, dict[str, str]]:
    left, _, path = text.partition("=")
    key, colon, name = left.partition(":")
    if not left or (colon and not name):
        raise ConfigError(
            f"{text!r} does not name a benchmark",
            where=f"{WHERE} --benchmark",
            fix="give BENCHMARK=PATH, as gsm8k=test.jsonl, or NAME:BENCHMARK=PATH",
        )
    return key, {"name": name or key} | ({"path": path} if path else {})


def _judge(text: str) -> Any:
    if text.endswith((".yaml", ".yml")):
        return read_yaml(text).value
    parts = re.split(r",(?=\s*[a-z_-]+=)", text)  # a value may hold commas of its own
    if not all("=" in part for part in parts):
        raise ConfigError(
            f"{text!r} does not name a judge",
            where=f"{WHERE} --judge",
            fix="give a YAML file, endpoint=URL,model=NAME, local=TARGET, reward=TARGET or gguf=FILE",
        )
    options = [
        f"{key.strip().replace('-', '_')}={value.strip()}" for key, _, value in (p.partition("=") for p in parts)
    ]
    try:
        return judge_value(options, f"{WHERE} --judge")
    except ConfigError as error:
        raise ConfigError(error.problem, where=f"{WHERE} --judge", fix=error.fix) from None


def _setting(text: str, benchmarks: Mapping[str, Any]) -> str:
    """An override of the stage, or of a benchmark where it begins with its name."""
    inside = "benchmarks." if text.partition(".")[0] in benchmarks else ""
    return f"stages.{STAGE}.{inside}{text}"
