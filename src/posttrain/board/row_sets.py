"""Which files hold rows: of a run, and below the folders of data.

A file is opened only if a look into these folders found it: what a browser asks for is compared with the names found, never made into a
path. Links that lead out of their folder, and what is no plain file, are not found.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posttrain.assets import DATA, cached
from posttrain.board.votes import votes_file
from posttrain.data.places import DataFile
from posttrain.data.sniff import data_suffix
from posttrain.data.streams import printable
from posttrain.errors import DataError
from posttrain.table import did_you_mean

Role = Literal["rows", "dropped", "replies", "table"]
"""Rows that are handed on, rows that went and why, what models said, anything else with records."""

MOST_FILES = 5_000
"""Of one folder of data: beyond it the search of a file manager is the better tool."""
_WEIGHTS = frozenset({"adapter", "model", "last", "checkpoints", "files", "figures", "report"})
"""Folders of a stage that hold no rows."""
_LOGS = frozenset({"metrics.jsonl", "held_out.jsonl", "calls.jsonl", "judge.jsonl"})
_NO_REJECTS = b'"rejects": []'


@dataclass(frozen=True, slots=True)
class RowSet:
    """A file with rows, as it is listed."""

    name: str
    """Below what was listed, with slashes: ``prepare/rows/train.parquet``. Different for all that are listed together."""
    path: Path
    role: Role
    group: str
    """The stage, or the folder of data."""
    size: int
    """Bytes."""
    changed: int
    """When, in nanoseconds: with the size what a file is known by."""

    @property
    def file(self) -> DataFile:
        """The file as the data chain reads it."""
        return DataFile(self.name, self.path)


def sets_of_run(run: Path) -> list[RowSet]:
    """Everything in a run folder that holds rows: stage by stage, what is handed on before what was dropped and the rest."""
    found = []
    for stage in sorted(entry.name for entry in os.scandir(run) if entry.is_dir(follow_symlinks=False)):
        if not stage.startswith(".") and stage not in _WEIGHTS:
            for inside, one in _files(run / stage, leave_out=_WEIGHTS):
                if (role := _role(inside, one)) is not None:
                    found.append(_row_set(f"{stage}/{inside}", one, role, stage))
    order: dict[Role, int] = {"rows": 0, "replies": 1, "dropped": 2, "table": 3}
    return sorted(found, key=lambda one: (one.group, order[one.role], not _is_last(one), one.name))


def _is_last(one: RowSet) -> bool:
    """Whether these are the rows that a stage hands on, not those between two of its steps."""
    return one.name.split("/")[1] == "rows"


def _role(inside: str, file: Path) -> Role | None:
    """What a file of a stage holds; None = no rows."""
    if file.name == "ledger.json":
        return "dropped" if "/" not in inside and not _ends_with(file, _NO_REJECTS) else None
    if file.name in ("rejects.parquet", "dropped.jsonl"):
        return "dropped"
    if file.name.endswith(".rows.jsonl"):
        return "replies"
    if file.suffix == ".parquet":
        return "rows" if file.parent.name in ("rows", "read") or file.name == "rows.parquet" else "table"
    return "table" if file.suffix == ".jsonl" and file.name not in _LOGS else None


def _ends_with(file: Path, text: bytes) -> bool:
    """Whether a text stands in the last bytes of a file."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 64))
        return text in opened.read()


def sets_of_folders(folders: Sequence[Path]) -> list[RowSet]:
    """The data files below some folders, each under the name of its folder."""
    found, names = [], set[str]()
    for folder in folders:
        name = folder.name or "data"
        while name in names:
            name += "'"
        names.add(name)
        for number, (inside, one) in enumerate(_files(folder, leave_out=frozenset())):
            if number == MOST_FILES:
                break
            if data_suffix(one) is not None:
                found.append(_row_set(f"{name}/{inside}", one, "table" if one.name in _LOGS else "rows", name))
    return found


def votes_of(runs: Path) -> list[RowSet]:
    """The file of blind votes of the chat, where there is one."""
    path = votes_file(runs)
    there = runs.is_dir() and _plain_file(path, [runs.resolve()])
    return [_row_set("votes.jsonl", path, "table", "votes")] if there else []


def _row_set(name: str, path: Path, role: Role, group: str) -> RowSet:
    seen = path.stat()
    return RowSet(printable(name), path, role, printable(group), seen.st_size, seen.st_mtime_ns)


def _files(root: Path, leave_out: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """(name below the root, path) of the plain files below a folder, in order, without hidden ones and links out of it."""
    try:
        real = root.resolve(strict=True)
        yield from _walk(root, "", real, leave_out)
    except OSError:
        return  # gone meanwhile, or not ours to read


def _walk(folder: Path, inside: str, real: Path, leave_out: frozenset[str]) -> Iterator[tuple[str, Path]]:
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in leave_out and os.access(entry.path, os.R_OK | os.X_OK):
                yield from _walk(Path(entry.path), f"{inside}{entry.name}/", real, leave_out)
        elif _plain_file(Path(entry.path), [real]):
            yield f"{inside}{entry.name}", Path(entry.path)


def _plain_file(path: Path, roots: Iterable[Path]) -> bool:
    """Whether a path is a file, not a device or a pipe, that lies, links followed, below one of some resolved folders."""
    try:
        real = path.resolve(strict=True)
        return stat.S_ISREG(real.stat().st_mode) and any(real.is_relative_to(root) for root in roots)
    except OSError:
        return False


def find(sets: Sequence[RowSet], name: str) -> RowSet:
    """The one of this name. Raises DataError where there is none."""
    for one in sets:
        if one.name == name:
            return one
    raise DataError(
        f"no file of rows {name!r} here{did_you_mean(name, [one.name for one in sets])}", fix="choose one of the list"
    )


def original(label: str, folders: Sequence[Path]) -> RowSet | None:
    """The file that a ledger names, where it is still there: a demo asset, or one that lies below one of these folders."""
    if label in DATA:
        path = cached(DATA[label])
        return _row_set(label, path, "rows", "") if path.is_file() else None
    path, roots = Path(label), [folder.resolve() for folder in folders if folder.is_dir()]
    return _row_set(label, path, "rows", "") if path.is_absolute() and _plain_file(path, roots) else None
