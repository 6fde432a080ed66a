"""``posttrain data STEP FILES... -o DIR``: one step of the data chain alone, on files of any known format."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import polars as pl
import yaml
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from posttrain import assets
from posttrain.artifacts import Ledger, LedgerStep, RunDir, digest, read_json, remove_leftovers, write_json
from posttrain.config import Document, Section, build, override, parse_yaml, sections
from posttrain.data.config import ChainStep, DataSettings, Source
from posttrain.data.mix import MixStep
from posttrain.data.pipeline import SIDES, gather, inputs_digest, nothing_usable, step_inputs
from posttrain.data.places import DataFile, locate
from posttrain.data.profile import COMPARISON, profile
from posttrain.data.rows import LINEAGE, REQUIRED, SCHEMA, row_kind_of, scan_rows, shared_row_kind, write_rows
from posttrain.data.steps import Step, StepRun, count_rows, nothing_left, run_step
from posttrain.data.streams import printable
from posttrain.errors import ConfigError, DataError, InterruptedRunError
from posttrain.lab.display import Display
from posttrain.lab.options import option_line
from posttrain.types import RowKind

STEPS: dict[str, type] = {
    get_args(get_type_hints(variant)["kind"])[0]: variant for variant in (*get_args(get_args(ChainStep)[0]), MixStep)
}
"""Name of every step -> its configuration."""
FORMER, UNFINISHED, READ, STEP = "command.json", ".unfinished", ".read", "step"
SHOWN_COUNTS = 12


@dataclass(frozen=True, kw_only=True)
class DataCommand:
    """What a command line says besides the options of the step."""

    files: tuple[str, ...]
    """Each a path, or ``NAME=PATH`` where its rows should carry another name than that of the file."""
    out: Path
    row_format: str = "auto"
    columns: dict[str, str] | None = None
    split: str | None = None
    config: str | None = None
    workers: int = 1
    engine: str = "local"
    seed: int = 0


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


def run_data_command(kind: str, options: Sequence[str], command: DataCommand, console: Console) -> dict[str, Any]:
    """Run one step and return its facts with the ledger; everything is written into ``command.out``.

    rows.parquet, rejects.parquet, the step's tables, facts.json and ledger.json, whose first lines are those of the reading.
    A killed command goes on where it was, a finished one is not run again, the same step with other options replaces it: once it
    is done. Until then, and where it fails, what was there stays.
    """
    step = step_of(kind, options)
    out = command.out
    _keep_other(kind, out)
    sources = sources_of(command.files, command.row_format, command.columns, command.split, command.config)
    if not sources:
        raise ConfigError("no files", where=f"posttrain data {kind}", fix=f"posttrain data {kind} rows.jsonl -o out")
    stage = DataSettings(sources=sources)
    with RunDir(out).lock(), Display(console) as display:
        remove_leftovers(out)
        inputs = [inputs_digest(stage, assets.resolve_data), step_inputs(step, assets.resolve_data)]
        identity = digest([inputs, stage, step, command.seed])
        former = read_json(out / FORMER) if (out / FORMER).exists() else {}
        former = former if isinstance(former, dict) else {}  # once it was the identity alone
        if former.get("identity") != identity:
            try:
                _run(step, sources, command, display, identity)
                _replace(out, former.get("files", ()), identity)
            except KeyboardInterrupt:
                raise InterruptedRunError(
                    "interrupted", where=str(out), fix="run the same command again: what is finished is kept"
                ) from None
    ledger = Ledger.read(out / "ledger.json")
    if not ledger.steps[-1].rows_out:
        raise nothing_left(ledger.steps[-1], out)
    return {"ledger": ledger.as_dict(), "facts": read_json(out / "facts.json")}


def _keep_other(kind: str, out: Path) -> None:
    """Raise ConfigError where the folder holds what something else has made: it would be replaced."""
    ledger = out / "ledger.json"
    made = Ledger.read(ledger).steps[-1:] if (out / "rows.parquet").exists() and ledger.exists() else []
    other = (
        "a stage of a run" if (out / "manifest.json").exists() else next((f"posttrain data {s.name}" for s in made), "")
    )
    if other not in ("", f"posttrain data {kind}"):
        raise ConfigError(
            f"this folder holds the result of {other}", where=str(out), fix="give each step a folder of its own with -o"
        )


def _run(step: Step, sources: Sequence[Source], command: DataCommand, display: Display, identity: str) -> None:
    """Run the step beside what is there, or go on with what is unfinished."""
    out = command.out / UNFINISHED
    if not (out / FORMER).exists() or read_json(out / FORMER) != identity:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        write_json(out / FORMER, identity)
    account = (out if (command.out / FORMER).exists() else command.out) / "ledger.json"
    rows, ledger = gather_rows(sources, out / READ, display, command.workers, command.engine, account)
    run = StepRun(assets.resolve_data, command.workers, command.engine, display.tick)
    try:
        line = run_step(step, rows, out / STEP, command.seed, run)
    except DataError as error:  # the user knows the files, not what was read from them
        where = error.where and error.where.replace(str(rows), ", ".join(command.files))
        raise DataError(error.problem, where=where, fix=error.fix) from error
    Ledger([*ledger.steps, line], ledger.rejects).write(out / STEP / "ledger.json")


def _replace(out: Path, former: Sequence[str], identity: str) -> None:
    """Put what the step has written in the place of what a former command wrote."""
    (out / FORMER).unlink(missing_ok=True)
    for name in former:
        (out / name).unlink(missing_ok=True)
    files = sorted(path.name for path in (out / UNFINISHED / STEP).iterdir())
    for name in files:
        os.replace(out / UNFINISHED / STEP / name, out / name)
    write_json(out / FORMER, {"identity": identity, "files": files})
    shutil.rmtree(out / UNFINISHED)


def sources_of(
    files: Sequence[str], row_format: str, columns: dict[str, str] | None, split: str | None, config: str | None
) -> tuple[Source, ...]:
    """The sources that a command line names."""
    found: list[Source] = []
    for file in files:
        name, equals, path = file.partition("=")
        if not equals or Path(file).exists() or "/" in name:
            name, path = "", file
        found.append(
            Source(path=path, format=row_format, columns=columns, name=name or None, split=split, config=config)
        )
    return tuple(found)


def gather_rows(
    sources: Sequence[Source],
    out: Path,
    display: Display,
    workers: int = 1,
    engine: str = "local",
    account: Path | None = None,
) -> tuple[Path, Ledger]:
    """One file with the rows of all sources and the account of the reading.

    A rows.parquet of an earlier step is taken as it is, with what its rows carry; other files are read in their format. Where no
    row is left, the account is written to ``account`` (default: beside ``out``). Raises DataError where the rows are not all of one kind, or none is left.
    """
    finished = [(source, paths) for source in sources if (paths := _finished_rows(source))]
    raw = [source for source in sources if all(source is not other for other, _ in finished)]
    files = [path for _, paths in finished for path in paths]
    ledger = Ledger()
    if raw:
        read, ledger = gather(raw, out, assets.resolve_data, display.tick, workers, engine)
        if not ledger.steps[-1].rows_out and not files:
            account = account or out.parent / "ledger.json"
            ledger.write(account)
            raise nothing_usable(ledger, [source.path for source in raw], account)
        files += [read] if ledger.steps[-1].rows_out else []
    if finished:
        _account_finished(ledger, finished)
    if len(files) == 1 and not any(source.name for source, _ in finished):
        return files[0], ledger
    shared_row_kind(files)
    rows = out / "all.parquet"
    names = {path: source.name for source, paths in finished for path in paths if source.name}
    frames = [scan_rows(path).select(*SCHEMA, *LINEAGE) for path in files]
    named = [
        frame.with_columns(source=pl.lit(names[path])) if path in names else frame
        for path, frame in zip(files, frames, strict=True)
    ]
    write_rows(rows, pl.concat(named))
    return rows, ledger


def _finished_rows(source: Source) -> list[Path]:
    """The files of a source where all are rows that a step of the data chain has written."""
    if not Path(source.path).exists():
        return []
    parts = locate(source.path, assets.resolve_data, source.split, config=source.config).parts
    paths = [part.path for part in parts if isinstance(part, DataFile) and is_rows(part.path)]
    return paths if len(paths) == len(parts) else []


def _account_finished(ledger: Ledger, finished: Sequence[tuple[Source, Sequence[Path]]]) -> None:
    """Enter rows that are taken as they are into the account of the reading, which may be empty so far."""
    total = sum(count_rows(path) for _, paths in finished for path in paths)
    for step in ledger.steps or [ledger.step("read")]:
        step.rows_in += total
        step.rows_out += total


def is_rows(path: Path) -> bool:
    """Whether this is a Parquet file that a step of the data chain has written."""
    if path.suffix != ".parquet" or not path.is_file() or printable(str(path)) != str(path):
        return False
    try:
        return pl.read_parquet_schema(path).keys() >= REQUIRED
    except (OSError, pl.exceptions.PolarsError):
        return False


def run_profile(
    sources: Sequence[Source], out: Path, model: str | None, workers: int, console: Console
) -> tuple[Path, RenderableType]:
    """Profile files of rows, or the data stage of a run with its chain; returns the page and the table for the terminal."""
    from posttrain.data.section import profile_page, write_profile_page  # steps draw no charts
    from posttrain.report import terminal

    stage = Path(sources[0].path)
    chain = stage if len(sources) == 1 and (stage / "ledger.json").exists() else None
    counter = COMPARISON
    if model is not None:
        from posttrain.lab.lengths import model_counter
        from posttrain.model.targets import resolve_target

        counter = model_counter(resolve_target(model).template, model)
    with RunDir(out).lock(), Display(console) as display:
        if chain is not None:
            rows = [path for path in (chain / "rows" / f"{side}.parquet" for side in SIDES) if path.exists()]
            rows = rows or [chain / "rows.parquet"]
        else:
            chain = out / READ
            shutil.rmtree(chain, ignore_errors=True)
            path, ledger = gather_rows(sources, chain, display)
            rows = [path]
            ledger.write(chain / "ledger.json")
            if not any((out / name).exists() for name in (FORMER, "rows.parquet", "manifest.json")):
                ledger.write(out / "ledger.json")
        found = profile(rows, out, counter=counter, chain=chain, workers=workers, progress=display.tick)
        shutil.rmtree(out / READ, ignore_errors=True)
    title = printable(", ".join(Path(source.path).name for source in sources))
    shown = profile_page(found, title)
    return write_profile_page(out, title), Group(terminal.page(shown), *map(terminal.section, shown.sections))


# ---- what is shown -------------------------------------------------------------------------------------------------


def summary(kind: str, told: Mapping[str, Any], out: Path) -> RenderableType:
    """The account of a command as a table: every step with what came in, what was dropped and why, what is left."""
    table = Table(title=f"posttrain data {kind}", title_justify="left")
    for heading in ("step", "rows in", "dropped", "rows out"):
        table.add_column(heading, justify="left" if heading in ("step", "dropped") else "right")
    for line in (LedgerStep(**step) for step in told["ledger"]["steps"]):
        dropped = ", ".join(
            f"{reason} {count:,}" for reason, count in sorted(line.dropped.items(), key=lambda i: -i[1])
        )
        table.add_row(line.name, f"{line.rows_in:,}", dropped or "-", f"{line.rows_out:,}")
    facts = {key: _rounded(value) for key, value in told["facts"].items() if _is_plain(value) or _is_counts(value)}
    shown = yaml.safe_dump(facts, allow_unicode=True, sort_keys=False).strip() if facts else ""
    rejects = f"{out / 'rejects.parquet'} lists what was dropped; {out / 'facts.json'} says how it was decided"
    warnings = [Text(f"warning: {warning}", "yellow") for warning in told["facts"].get("warnings", ())]
    return Group(
        table,
        Text(shown, "dim"),
        *_counts_of_named(told["facts"]),
        *warnings,
        Text(f"Rows ({_KINDS[row_kind_of(out / 'rows.parquet')]}) are in {out / 'rows.parquet'}; {rejects}"),
    )


_KINDS: dict[RowKind | None, str] = {
    "conversations": "conversations",
    "pairs": "pairs of replies",
    "feedback": "judged replies",
    "prompts": "prompts without replies",
    None: "none",
}


def _counts_of_named(facts: Mapping[str, Any]) -> list[Table]:
    """A table for every list of named things with counts, such as benchmarks and their prompts."""
    tables = []
    for key, things in facts.items():
        if (
            isinstance(things, list)
            and things
            and all(isinstance(thing, Mapping) and "name" in thing for thing in things)
        ):
            counts = [name for name, value in things[0].items() if isinstance(value, int)]
            tables.append(table := Table(key, box=None, style="dim"))
            for name in counts:
                table.add_column(name.replace("_", " "), justify="right")
            for thing in things:
                table.add_row(printable(str(thing["name"])), *(f"{thing[name]:,}" for name in counts))
    return tables


def _rounded(value: Any) -> Any:
    """Numbers with the digits that say something; facts.json has them all."""
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def _is_counts(value: Any) -> bool:
    """Whether a fact is a few numbers by name, such as the sizes of the splits."""
    return isinstance(value, Mapping) and 0 < len(value) <= SHOWN_COUNTS and all(map(_is_plain, value.values()))


def options_help(kind: str) -> str:
    """Every option of a step, for ``--help``: name, allowed values, default, meaning."""
    found: tuple[Section, ...] = sections(STEPS[kind])
    lines = ["Options of the step (the keys of a recipe; --a.b for a key b inside of a):", ""]
    for section in found:
        path = section.path.lstrip(".").replace("[]", ".0")
        for key in section.keys:
            name = ".".join(part for part in (path, key.name) if part)
            if name == "kind":
                continue
            lines.append(option_line(name, key, section.choice))
    return "\n".join(lines)
