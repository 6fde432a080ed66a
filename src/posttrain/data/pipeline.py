"""The data stage: read -> format -> exact duplicates -> chain of steps -> split, every row accounted for in the ledger."""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import polars as pl

from posttrain.artifacts import Ledger, LedgerStep, Reject, StageDir
from posttrain.data.config import DataSettings, Source, WantedRowKind
from posttrain.data.engine import map_blocks
from posttrain.data.formats import FORMATS, NoFormatError
from posttrain.data.formats.columns import check_columns
from posttrain.data.formats.drafts import PairRule
from posttrain.data.mix import MixStep
from posttrain.data.places import SIDES, DataFile, HubSet, Resolve, locate, stem
from posttrain.data.profile import profile
from posttrain.data.reading import Outcome, RawBlock, Reading, known_format, parse, part_path, read_block
from posttrain.data.rows import (
    BLOCK_ROWS,
    LINEAGE,
    REQUIRED,
    SCHEMA,
    conversations,
    disagreement,
    scan_rows,
    shared_row_kind,
    write_rows,
)
from posttrain.data.sniff import EmptyFileError
from posttrain.data.sources import Raw, read_raw
from posttrain.data.split import SplitStep, held_out_prompts, prompt_key
from posttrain.data.steps import SHOWN_REJECTS, Progress, StepRun, blocks, count_rows, run_step, run_steps
from posttrain.data.streams import Tick, printable
from posttrain.errors import ConfigError, DataError
from posttrain.types import Origin, Row, RowKind, SftRow


def prepare(
    stage: DataSettings,
    out: StageDir,
    seed: int,
    resolve: Resolve,
    progress: Progress = lambda what, done, total: None,
    held_out_files: Sequence[Path] = (),
) -> dict[str, Any]:
    """Read all sources, drop what can't be used and exact duplicates, run the steps, split, and write the stage's files.

    Writes ``read/rows.parquet``, a folder for every step, ``rows/train.parquet``, ``rows/held_out.parquet`` (with a split
    step that takes test rows also ``rows/test.parquet``), ``profile.json`` and ``ledger.json`` into ``out`` and returns the stage's
    ``result``: {``train_rows``, ``held_out_rows``, ``sources`` {name: rows}}. Text is in memory in blocks only. What is
    finished in ``out`` already is not done again: a killed stage goes on at the step where it was. ``held_out_files``: rows that were
    held out before, which are held out here, and no others.

    Raises DataError where a source can't be read, no row is left, or the rows can't be split as asked; ConfigError for
    an unknown format; RunError where ``out`` can't be written. The ledger is written also where no row is left.
    """
    _check_split(stage)
    run = StepRun(resolve, stage.workers, stage.engine, progress)
    rows_file, ledger = gather(stage.sources, out.file("read"), run, stage.rows)
    if not ledger.steps[-1].rows_out:
        ledger.write(out.file("ledger.json"))
        raise nothing_usable(ledger, [source.path for source in stage.sources], out.file("ledger.json"))
    rows_file, lines = run_steps(stage.steps, rows_file, out.file("steps"), seed, run)
    ledger.steps += lines
    if held_out_files:
        before = [Source(path=str(path), name=path.parents[1].name) for path in held_out_files if count_rows(path)]
        if before and stage.rows != "auto":
            held_out_files = [gather(before, out.file("read_held_out"), run, stage.rows)[0]]
        _keep_held_out(rows_file, held_out_files, out, ledger)
    elif not stage.splits:
        ledger.steps.append(hold_out(rows_file, stage.held_out_amount, seed, out))
    else:
        _write_sides(scan_rows(rows_file), out)
    if stage.mix is not None:
        ledger.steps.append(_mix(stage.mix, out, seed, run))
    result = _result(out, [source.name or stem(source.path) for source in stage.sources])
    ledger.write(out.file("ledger.json"))
    if stage.profile:
        profile(list(_sides(out).values()), out.path, chain=out.path, workers=stage.workers, progress=run.progress)
    return result


def gather(sources: Sequence[Source], out: Path, run: StepRun, wanted: WantedRowKind = "auto") -> tuple[Path, Ledger]:
    """One file with the good rows of all sources, and the account of the reading.

    Rows that a step of the data chain has written are taken with what they carry (scores, clusters, verdicts), if they are of the kind
    that is wanted; all others are read in their format and become that kind (`read_sources`). Exact duplicates are dropped, the first
    stays.
    """
    finished = {
        place: paths
        for place, source in enumerate(sources)
        if (paths := _finished_rows(source, run.resolve)) and wanted in ("auto", shared_row_kind(paths))
    }
    raw = [source for place, source in enumerate(sources) if place not in finished]
    if not finished:
        return read_sources(raw, out, run, wanted)
    files = [path for paths in finished.values() for path in paths]
    ledger = Ledger()
    if raw:
        read, ledger = read_sources(raw, out, run, wanted)
        files += [read] if ledger.steps[-1].rows_out else []
    shared_row_kind(files)  # they are of one
    fresh = _account_finished(ledger, files, sum(len(paths) for paths in finished.values()))
    names = {path: name for place, paths in finished.items() if (name := sources[place].name) for path in paths}
    if len(files) == 1 and not names and fresh.all():
        return files[0], ledger
    named = [
        scan_rows(path)
        .select(*SCHEMA, *LINEAGE)
        .with_columns(source=pl.lit(names[path]) if path in names else pl.col("source"))
        for path in files
    ]
    rows = out / "all.parquet"
    write_rows(rows, _only(pl.concat(named), fresh))
    return rows, ledger


def _only(rows: pl.LazyFrame, wanted: pl.Series) -> pl.LazyFrame:
    """The rows where a series is true. It stands beside them, since a join would hold their text."""
    beside = wanted.alias("wanted").to_frame().lazy()
    return pl.concat([rows, beside], how="horizontal").filter("wanted").drop("wanted")


def _account_finished(ledger: Ledger, files: Sequence[Path], finished: int) -> pl.Series:
    """Enter the rows of the first ``finished`` files into the account of the reading. Of every row: whether it is new."""
    columns = [pl.scan_parquet(path, glob=False).select("id", "file", "line") for path in files]
    places = pl.concat(columns).with_columns(fresh=pl.col("id").is_first_distinct()).collect()
    total = sum(count_rows(path) for path in files[:finished])
    for step in ledger.steps or [ledger.step("read"), ledger.step("deduplicate")]:
        step.rows_in += total
        step.rows_out += total
    last = ledger.steps[-1]
    for _, file, line, _ in places.filter(~pl.col("fresh")).iter_rows():
        ledger.drop(last, Origin(file, line), "exact_duplicate", "of a row that stands before it")
        last.rows_out -= 1
    return places["fresh"]


def _finished_rows(source: Source, resolve: Resolve) -> list[Path]:
    """The files of a source where all are rows that a step of the data chain has written."""
    if not Path(source.path).exists() or source.max_rows is not None:
        return []
    parts = source.parts(resolve)
    paths = [part.path for part in parts if isinstance(part, DataFile) and _is_rows(part.path)]
    return paths if len(paths) == len(parts) else []


def _is_rows(path: Path) -> bool:
    """Whether this is a Parquet file that a step of the data chain has written."""
    if path.suffix != ".parquet" or not path.is_file() or printable(str(path)) != str(path):
        return False
    try:
        return pl.read_parquet_schema(path).keys() >= REQUIRED
    except (OSError, pl.exceptions.PolarsError):
        return False


def read_sources(sources: Sequence[Source], out: Path, run: StepRun, wanted: WantedRowKind) -> tuple[Path, Ledger]:
    """One file with the good rows of all sources, and the account of the reading: ``rows.parquet``, ``ledger.json`` in ``out``.

    All rows are of one kind. Exact duplicates are dropped here, the first stays. A reading that is finished in ``out`` is not
    done again.
    """
    path = out / "rows.parquet"
    if (out / "ledger.json").exists():
        return path, Ledger.read(out / "ledger.json")
    names = source_names(sources)
    for source in sources:
        if source.format != "auto":
            FORMATS[source.format]  # an unknown one is told before any file is read
        check_columns(source.columns or {}, source.path)
    parts = (out / "parts").absolute()
    shutil.rmtree(parts, ignore_errors=True)
    reading = _Reading(run, wanted, parts)
    kept = [
        reading.account(outcome)
        for source, name in zip(sources, names, strict=True)
        for outcome in reading.read(source, name)
    ]
    fresh = pl.Series(list(itertools.chain.from_iterable(kept)), dtype=pl.Boolean)
    if fresh.any():
        rows = pl.scan_parquet([part_path(parts, number) for number in range(len(kept))], glob=False)
        write_rows(path, rows if fresh.all() else _only(rows, fresh))
    shutil.rmtree(parts, ignore_errors=True)
    reading.ledger.write(out / "ledger.json")
    return path, reading.ledger


def _check_split(stage: DataSettings) -> None:
    if not stage.splits:
        return
    if not isinstance(stage.steps[-1], SplitStep) or sum(isinstance(step, SplitStep) for step in stage.steps) > 1:
        raise ConfigError("a split step comes once and last", where="steps", fix="move it to the end of the steps")
    if stage.held_out is not None:
        raise ConfigError(
            "held_out and a split step both say which rows are held out", where="held_out", fix="remove one of them"
        )


def hold_out(rows_file: Path, held_out: float, seed: int, out: StageDir) -> LedgerStep:
    """Write the two sides of a simple split and return its line of the ledger."""
    frame = scan_rows(rows_file)
    if not held_out:  # nothing is drawn, and rows are not looked at twice: a second for every 60,000
        train = frame.with_columns(split=pl.lit(SIDES["train"]))
        for side, part in (("train", train), ("held_out", train.head(0))):
            write_rows(out.file("rows", f"{side}.parquet"), part)
        count = count_rows(rows_file)
        return LedgerStep("split", rows_in=count, rows_out=count, notes={"train": count, "held_out": 0})
    prompts = list(_prompt_keys(rows_file))
    chosen = held_out_prompts(prompts, held_out, seed)
    split = pl.Series("split", [SIDES["held_out" if prompt in chosen else "train"] for prompt in prompts], pl.String)
    _write_sides(pl.concat([frame.drop("split"), split.to_frame().lazy()], how="horizontal"), out)
    notes = {side: int((split == SIDES[side]).sum()) for side in ("train", "held_out")}
    return LedgerStep("split", rows_in=len(prompts), rows_out=len(prompts), notes=notes)


def _keep_held_out(rows: Path, held_out_files: Sequence[Path], out: StageDir, ledger: Ledger) -> None:
    """Write the rows as training rows beside those that were held out before; a row whose prompt was held out is not trained on."""
    held_out = pl.concat([scan_rows(path) for path in held_out_files]).unique("id", keep="first", maintain_order=True)
    write_rows(out.file("rows", "held_out.parquet"), held_out)
    kept = {key for path in held_out_files for key in _prompt_keys(path)}
    train = pl.Series([key not in kept for key in _prompt_keys(rows)], dtype=pl.Boolean)
    write_rows(out.file("rows", "train.parquet"), _only(scan_rows(rows), train).with_columns(split=pl.lit("train")))
    line = ledger.step("split", rows_in=len(train))
    places = pl.scan_parquet(rows, glob=False).select("file", "line").collect().filter(~train)
    for file, number in places.iter_rows():
        ledger.drop(line, Origin(file, number), "prompt_is_held_out", "a row with this prompt is held out")
    line.rows_out = int(train.sum())
    line.notes = {"train": line.rows_out, "held_out_before": count_rows(out.file("rows", "held_out.parquet"))}


def _prompt_keys(rows_file: Path) -> Iterator[Any]:
    """The prompt of every row, equal where prompts are."""
    return (prompt_key(turns) for _, block in blocks(rows_file, ["messages"]) for turns in conversations(block))


def _mix(step: MixStep, out: StageDir, seed: int, run: StepRun) -> LedgerStep:
    """Apply a mix to rows/train.parquet; its own files (facts, rejects) go to ``mix/``."""
    train = out.file("rows", "train.parquet")
    line = run_step(step, train, out.file("mix"), seed, run)
    os.replace(out.file("mix", "rows.parquet"), train)
    if not line.rows_out:
        raise DataError("the mix leaves no row to train on", where="mix", fix="raise its counts, caps or share")
    others = sum(count_rows(path) for side, path in _sides(out).items() if side != "train")
    return replace(line, rows_in=line.rows_in + others, rows_out=line.rows_out + others)


def _write_sides(rows: pl.LazyFrame, out: StageDir) -> None:
    """The files of a stage whose rows carry their split; test rows have a file where there are any."""
    for side, split in SIDES.items():
        part = rows.filter(pl.col("split") == split)
        if side != "test" or len(part.select("id").head(1).collect()):
            write_rows(out.file("rows", f"{side}.parquet"), part)


def _sides(out: StageDir) -> dict[str, Path]:
    """The rows files of a stage that are there."""
    paths = {side: out.file("rows", f"{side}.parquet") for side in SIDES}
    return {side: path for side, path in paths.items() if path.exists()}


def _result(out: StageDir, names: Sequence[str]) -> dict[str, Any]:
    """The fields of :class:`posttrain.data.profile_records.DataResult` that there are."""
    sides = _sides(out)
    sources = pl.concat([pl.scan_parquet(path, glob=False).select("source") for path in sides.values()])
    rows = Counter(dict(sources.group_by("source").len().collect().iter_rows()))
    counts = {f"{side}_rows": count_rows(path) for side, path in sides.items()}
    return {**counts, "sources": {name: rows[name] for name in [*names, *sorted(rows.keys() - set(names))]}}


def row_at(source: Source, index: int, resolve: Resolve) -> SftRow:
    """Row ``index`` (0 = the first) of a source, bad ones counted, as a conversation. Raises DataError as :func:`rows_at`."""
    row = rows_at(source, index, resolve, "conversations")[0]
    assert isinstance(row, SftRow)
    return row


def rows_at(source: Source, index: int, resolve: Resolve, wanted: WantedRowKind = "auto") -> Sequence[Row]:
    """What record ``index`` (0 = the first) of a source gives, bad ones counted: one row, or several (:func:`gather`).

    Raises DataError where there are fewer records, or where that one can't be used, with its reason.
    """
    check_columns(source.columns or {}, source.path)
    count, kind = 0, _Kind(wanted)
    for part in source.parts(resolve):
        reading, records = _opened(source, "rows", part, kind)
        for record in records:
            if count == index:
                found = parse(record, reading)
                if isinstance(found, Reject):
                    raise DataError(
                        f"row {index} can't be used: {found.reason}: {found.detail}", where=str(found.origin)
                    )
                return found
            count += 1
    raise DataError(f"no row {index}: there are {count}", where=source.path, fix="rows count from 0")


class _Kind:
    """What the rows of a stage say: what is wanted, or what the first file says."""

    def __init__(self, wanted: WantedRowKind) -> None:
        self.wanted = wanted
        self.first: tuple[str, RowKind] | None = None
        """The first file, and what its rows say."""

    def of(self, label: str, format_name: str) -> RowKind:
        """The kind of the rows that are made of a file. Raises DataError where it is another than is wanted."""
        kind = FORMATS[format_name].kind
        if self.wanted == "auto":
            self.first = self.first or (label, kind)
            if kind != self.first[1]:
                raise disagreement(label, kind, *self.first)
            return kind
        replies = kind != "prompts"
        made = {"prompts": True, "conversations": replies, "feedback": kind == "pairs"}.get(self.wanted, False)
        if made or kind == self.wanted:
            return self.wanted
        raise DataError(
            f"these rows are {kind} (read as {format_name!r}), and no {self.wanted} can be made of them",
            where=label,
            fix=f"give a source of {self.wanted}, name its format, or leave out rows: {self.wanted};"
            " see docs/data-preferences.md",
        )


def _opened(
    source: Source, name: str, part: DataFile | HubSet, kind: _Kind, tick: Tick | None = None
) -> tuple[Reading, Iterator[Raw]]:
    """How a part of a source is read, and its records.

    Raises DataError where its rows are of the wrong kind or a rule for pairs has no use, NoFormatError where no format fits.
    """
    format_name, records = known_format(read_raw(part, tick), part.label, source.format, source.columns)
    rule = source.pairs or PairRule()
    if format_name is None:
        return Reading(part.label, None, "conversations", name, rule), records
    if source.pairs is not None and not FORMATS[format_name].rated:
        rated = ", ".join(known for known in FORMATS if FORMATS[known].rated)
        raise DataError(
            f"a rule for pairs is given, and these rows (read as {format_name!r}) are not rated answers",
            where=part.label,
            fix=f"leave out pairs, or name one of the formats that it is for: {rated}",
        )
    wanted = kind.of(part.label, format_name)
    columns, detected = source.columns or {}, source.format == "auto"
    return Reading(part.label, format_name, wanted, name, rule, columns, detected), records


def source_names(sources: Sequence[Source]) -> list[str]:
    """The name of every source, as rows carry it. Raises DataError where two have one name."""
    names = [source.name or stem(source.path) for source in sources]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"two sources are called {twice[0]!r}",
            where="sources",
            fix="give each source a name of its own (name: ..., on the command line NAME=FILE)",
        )
    return names


class _Reading:
    """The three steps of reading, all open at once because rows flow through them one by one."""

    def __init__(self, run: StepRun, wanted: WantedRowKind, parts: Path) -> None:
        self.run, self.kind, self.parts = run, _Kind(wanted), parts
        self.ledger = Ledger([LedgerStep(name) for name in ("read", "format", "deduplicate")])
        self.seen: dict[str, Origin] = {}
        """Content id of every kept row and where it stood first."""
        self.numbers = itertools.count()
        """Of the blocks of all sources."""

    def note(self, what: str) -> None:
        """Count something about the reading that concerns no row."""
        notes = self.ledger.steps[0].notes
        notes[what] = notes.get(what, 0) + 1

    def read(self, source: Source, name: str) -> Iterator[Outcome]:
        """What became of the records of a source, block by block; its good rows, at most ``max_rows``, are in the parts."""
        located = locate(source.path, self.run.resolve, source.split, config=source.config)
        for ignored in located.ignored:
            self.note(f"ignored file {printable(source.path).rstrip('/')}/{ignored}")
        run, left = self.run, source.max_rows
        if left is not None:
            run = replace(run, workers=1, engine="local")  # where to stop is known only block after block

        def raw_blocks(records: Iterator[Raw]) -> Iterator[RawBlock]:
            while left != 0 and (batch := list(itertools.islice(records, BLOCK_ROWS))):
                yield RawBlock(next(self.numbers), left, batch)

        for part in located.parts:
            if left == 0:
                self.note(f"not read (max_rows) {part.label}")
                continue
            tick, found = partial(run.progress, part.label), 0
            try:
                try:
                    reading, records = _opened(source, name, part, self.kind, tick)
                except NoFormatError as error:
                    if len(located.parts) == 1:
                        raise
                    records = read_raw(part, tick)
                    reading = Reading(part.label, None, "conversations", name, PairRule(), unfit=error.problem)
                for outcome in map_blocks(partial(read_block, self.parts, reading), raw_blocks(records), run):
                    found += outcome.records
                    if left is not None:
                        left -= outcome.used
                    yield outcome
            except EmptyFileError:
                if len(located.parts) == 1:
                    raise
            if not found:
                self.note(f"no rows in {part.label}")

    def account(self, outcome: Outcome) -> list[bool]:
        """Enter the records of a block into the ledger. Of every good row: whether its content had not been seen."""
        read, form, deduplicate = self.ledger.steps
        fresh: list[bool] = []
        dropped: list[tuple[int, LedgerStep, Origin, str, str]] = [
            (place, read if bad.step == "read" else form, bad.origin, bad.reason, bad.detail)
            for place, bad in outcome.unusable
        ]
        for row_id, line, place in zip(outcome.ids, outcome.lines, outcome.places, strict=True):
            origin = Origin(outcome.label, line)
            first = self.seen.setdefault(row_id, origin)
            fresh.append(first is origin)
            if first is not origin:
                dropped.append((place, deduplicate, origin, "exact_duplicate", f"same as {first}"))
        for _, step, origin, reason, detail in sorted(dropped, key=itemgetter(0)):
            self.ledger.drop(step, origin, reason, printable(detail))
        records = outcome.records - sum(bad.step == "read" for _, bad in outcome.unusable)
        form.added += len(fresh) - outcome.used
        counts = (outcome.records, records, len(fresh), sum(fresh))
        for step, (rows_in, rows_out) in zip(self.ledger.steps, itertools.pairwise(counts), strict=True):
            step.rows_in += rows_in
            step.rows_out += rows_out
        return fresh


def nothing_usable(ledger: Ledger, paths: Sequence[str], told_in: Path | None = None) -> DataError:
    """The error of a reading that left no row: the main reasons with their counts, and the first examples."""
    where = ", ".join(paths)
    rows_in = ledger.steps[0].rows_in
    if not rows_in:
        return DataError("no rows in it", where=where, fix="give a file with rows")
    counts = ", ".join(f"{reason} {count:,}" for reason, count in Counter(ledger.dropped).most_common(3))
    examples = "".join(f"\n  {r.origin}: {r.reason}: {r.detail}" for r in ledger.rejects[:SHOWN_REJECTS])
    return DataError(
        f"no usable rows: {'the only row was' if rows_in == 1 else f'all {rows_in:,} rows were'} dropped ({counts}){examples}",
        where=where,
        fix="mend the rows, or name their format; see docs/data-formats.md"
        + ("" if told_in is None else f", and {told_in} for every row"),
    )
