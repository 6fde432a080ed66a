"""``posttrain judge pairs | single | calibrate`` as a recipe of one stage, and judges as options of a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from posttrain.artifacts import plain
from posttrain.config import Document, build, override, read_yaml, sections
from posttrain.errors import ConfigError
from posttrain.judge.config import JUDGES, JudgeConfig, JudgeSource, PanelFile, Plan
from posttrain.lab.one_stage import recipe_of_stages
from posttrain.lab.options import option_line, split_arguments
from posttrain.lab.recipe import Recipe
from posttrain.stages.judge import JudgeStage
from posttrain.table import did_you_mean

WHERE = "posttrain judge"
T = TypeVar("T")


def judge_recipe(
    verb: Literal["pairs", "single", "calibrate"],
    arguments: Sequence[str],
    panel: Path | None,
    out: Path,
    prompt: str,
    cache: Path | None,
    check: bool,
) -> Recipe:
    """The recipe of a command. Raises ConfigError as `parse_options`."""
    file, judge = parse_options(arguments, panel)
    stage = JudgeStage(
        kind="judge",
        items=str(file),
        task=verb,
        prompt=prompt,
        judge=replace(judge, check=judge.check and check),
        cache=None if cache is None else str(cache),
    )
    return recipe_of_stages(out, {verb: stage}, 0)


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
