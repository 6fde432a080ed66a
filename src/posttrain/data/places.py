"""Where rows are: the files of a path, of one split, in order. What is in a file is read by ``posttrain.data.sources``.

A folder may be laid out as data sets usually are: ``train.jsonl`` beside ``test.jsonl``, ``data/train-00000-of-00001.parquet``
(the hub), ``train/`` and ``test/`` (also what ``save_to_disk`` writes, with ``dataset_dict.json``), and each of these once more
in a folder for every configuration. Splits are never merged: one is named, or there is one only. Where the card of a clone (README.md)
declares configurations and their files, it decides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from posttrain.artifacts import RunDir, StageDir
from posttrain.config import read_yaml
from posttrain.data.card import configurations
from posttrain.data.formats import FORMATS, keys
from posttrain.data.sniff import KNOWN_FILES, data_suffix, is_about_rows
from posttrain.data.streams import printable, uncompressed
from posttrain.errors import DataError
from posttrain.table import did_you_mean

Resolve = Callable[[str], Path | None]
"""The path of a named demo asset, or None where there is no such name."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "held_out", "heldout"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_CANONICAL = {word: split for split, words in _SPLIT_WORDS.items() for word in words}
_SEPARATOR = re.compile(r"[-._ ]+")
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")
_UNNAMED_SHARDS = ("data", "part", "shard", "file", "chunk", "rows", "output")
_SPLIT_FILES = ("train.parquet", "validation.parquet", "test.parquet")
"""What a split step writes beside all its rows."""
_METADATA = frozenset(
    [
        *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"),
        *("croissant.json", "command.json", "facts.json", "ledger.json", "manifest.json", "profile.json"),
        *("lengths.json", "summary.json", "config.json", "generation_config.json", "tokenizer.json"),
        *("tokenizer_config.json", "special_tokens_map.json", "package.json"),
    ]
)
"""Files that stand beside rows and hold none: of data set libraries, of models, of posttrain's own steps."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to read. ``label`` is its name as the user knows it, used in every origin."""

    label: str
    path: Path


@dataclass(frozen=True, slots=True)
class HubSet:
    """A split of a data set on the Hugging Face hub, at one revision."""

    name: str
    split: str
    config: str | None = None

    @property
    def label(self) -> str:
        """The name used in origins."""
        return f"{self.name}{f'/{self.config}' if self.config else ''}[{self.split}]"


@dataclass(frozen=True, slots=True)
class Located:
    """What a source's path stands for: the parts to read, in order, and the files of a folder that are left out."""

    parts: tuple[DataFile | HubSet, ...]
    ignored: tuple[str, ...] = ()
    """Below the folder; where the reason is not that its name isn't a data file's, with the reason in brackets."""


def locate(
    path: str, resolve: Resolve, split: str | None = None, hub_split: str = "train", config: str | None = None
) -> Located:
    """Find a source: a local file or folder first, then a demo asset, then a hub data set ``org/name``.

    ``split`` chooses the files of a folder, and the split of a hub data set (``hub_split`` where none is named); ``config`` its
    configuration. Raises DataError where there is no such thing, a folder holds no data file, or holds several splits or
    configurations and none is named.
    """
    local = Path(path).expanduser()
    label = printable(path)
    if local.is_dir():
        written = written_rows(local, split)
        return _folder(label, local, split, config) if written is None else Located((DataFile(label, written),))
    if local.exists():
        if split is not None and (own := _by_words(stem(path))) not in (None, _canonical(split)):
            raise DataError(
                f"this file is {own} by its name, not {split}",
                where=label,
                fix="leave split out, or give the other file",
            )
        return Located((DataFile(label, local),))
    asset = resolve(path)
    if asset is not None:
        return Located((DataFile(label, asset),))
    if local.is_symlink():
        raise _broken_link(label, local)
    if _HUB_NAME.fullmatch(path) and not local.parent.is_dir() and data_suffix(local) is None:
        return Located((HubSet(path, split or hub_split, config),))
    siblings = [p.name for p in local.parent.iterdir()] if local.parent.is_dir() else []
    raise DataError(
        f"no such file, folder or demo asset{did_you_mean(local.name, siblings)}",
        where=label,
        fix="give the path of a file or folder, the name of a demo asset, or a hub data set as org/name",
    )


def _broken_link(label: str, link: Path) -> DataError:
    problem = f"a symbolic link to {os.readlink(link)}, which is not there"
    return DataError(problem, where=label, fix="restore its target, or remove the link")


SIDES = {"train": "train", "held_out": "validation", "test": "test"}
"""File of a stage that hands on rows -> split of its rows."""


def written_rows(folder: Path, split: str | None) -> Path | None:
    """The rows of a run or of a stage of one: those to train on, unless another split is asked for; of a run those of its last stage."""
    if (folder / "recipe.yaml").is_file():
        run, recipe = RunDir(folder), read_yaml(folder / "recipe.yaml").value
        declared = recipe.get("stages") if isinstance(recipe, dict) else None
        for name in declared if isinstance(declared, dict) else ():
            if (run.stage(name).manifest() or {}).get("status") != "complete":
                fix = "run its recipe again, or name a finished stage of it"
                raise DataError(f"stage {name} of this run is not finished", where=str(folder), fix=fix)
        stages = [name for name in run.stages() if (folder / name / "rows" / "train.parquet").is_file()]
        return written_rows(folder / stages[-1], split) if stages else None
    if not (folder / "manifest.json").is_file():
        return None
    side = next((side for side, name in SIDES.items() if name == _canonical(split or "train")), split)
    found = folder / "rows" / f"{side}.parquet"
    if not found.is_file():
        return None
    if (status := StageDir(folder).manifest()["status"]) != "complete":  # type: ignore[index]  # it is there
        fix = "run its recipe again, or name another source"
        raise DataError(f"this stage is not finished (it is {status})", where=str(folder), fix=fix)
    return found


# ---- folders -------------------------------------------------------------------------------------------------------


def _folder(label: str, folder: Path, split: str | None, config: str | None) -> Located:
    label = label.rstrip("/")
    found, notes = _walk(folder)
    data = [name for name in found if data_suffix(folder / name) is not None and _name(name) not in _METADATA]
    for name in data:
        if not (folder / name).exists():
            raise _broken_link(f"{label}/{name}", folder / name)
    beside = _beside_rows(found, data)
    about = {name for name in data if name not in beside and is_about_rows(folder / name, _is_row)}
    if len(about) < len(data) - len(beside):  # where nothing else is there, the formats say what is wrong with it
        beside |= dict.fromkeys(about, "one value that is no row")
    data = [name for name in data if name not in beside]
    if not data:
        names = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise DataError(
            f"the folder holds no data file{f' (found {names})' if found else ''}",
            where=label,
            fix=f"put rows into {KNOWN_FILES} files",
        )
    splits = _of_config(label, folder, data, config)
    beside |= {name: "not of the configuration" for name in data if name not in splits}
    chosen = _of_split(label, splits, split)
    beside |= {name: f"not of the split {split}" for name in splits if name not in chosen}
    ignored = [f"{name} ({beside[name]})" if name in beside else name for name in found if name not in chosen]
    files = tuple(DataFile(printable(f"{label}/{name}"), folder / name) for name in data if name in chosen)
    return Located(files, tuple(map(printable, [*ignored, *notes])))


def _is_row(record: Mapping[str, Any]) -> bool:
    plain = keys.plain(record)
    return any(known.detect(plain) for known in FORMATS.values())


def _name(path: str) -> str:
    return PurePosixPath(path).name.lower()


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """The files below a folder, sorted, without hidden ones; links are followed, each folder once. Then what was not."""
    files, notes = [], []
    seen = {os.path.realpath(folder)}

    def visit(place: str, inside: str) -> None:
        for entry in sorted(os.scandir(place), key=lambda e: e.name):
            name = f"{inside}{entry.name}"
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                files.append(name)
            elif (real := os.path.realpath(entry.path)) in seen:
                notes.append(f"{name} (a link to a folder that is read already)")
            else:
                seen.add(real)
                visit(entry.path, f"{name}/")

    visit(os.fspath(folder), "")
    return sorted(files), notes


def _beside_rows(found: Sequence[str], data: Sequence[str]) -> dict[str, str]:
    """The data files that a step of the data chain wrote beside its rows (rejects, tables), and why they are left out."""
    written = {_parent(name) for name in found if _name(name) == "ledger.json"}
    written &= {_parent(name) for name in data if _name(name) == "rows.parquet"}
    divided = {_parent(name) for name in data if _parent(name) in written and _name(name) == "train.parquet"}
    kept = {place: _SPLIT_FILES if place in divided else ("rows.parquet",) for place in written}
    return {
        name: "a table of the step that wrote the rows"
        for name in data
        if _parent(name) in kept and _name(name) not in kept[_parent(name)]
    }


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


# ---- splits --------------------------------------------------------------------------------------------------------


def _of_config(label: str, folder: Path, data: Sequence[str], config: str | None) -> dict[str, str | None]:
    """The data files of the wanted configuration, and the split of each (None = of none).

    The card says which they are; without one a configuration is a folder. Raises DataError where there is no such configuration,
    or none is named of several.
    """
    known = configurations(folder, data)
    declared = {one.name: {name: _canonical(split) for name, split in one.splits.items()} for one in known}
    default = [one.name for one in known if one.default]
    if config is None:
        if not declared:
            return {name: _split_of(name, folder) for name in data}
        wanted = default or list(declared)
        if len(wanted) == 1:
            return dict(declared[wanted[0]])
        problem = f"the folder holds configurations ({', '.join(declared)}), and one must be named"
    elif config in declared:
        return dict(declared[config])
    else:
        inside = {name: _split_of(name, folder) for name in data if name.split("/")[0] == config and "/" in name}
        if inside:
            return inside
        names = [*declared, *dict.fromkeys(name.split("/")[0] for name in data if "/" in name and not declared)]
        problem = f"no configuration {config!r} here{did_you_mean(config, names)}; configurations: {', '.join(names) or 'none'}"
    example = next(iter(declared), "NAME")
    raise DataError(
        problem,
        where=label,
        fix=f"name one (config: {example}, on the command line --config {example}), or give the files",
    )


def _of_split(label: str, splits: Mapping[str, str | None], split: str | None) -> frozenset[str]:
    """The data files of the wanted split. Raises DataError where there is no such split, or none is named of several."""
    known = sorted({one for one in splits.values() if one is not None}, key=lambda one: (one != "train", one))
    unnamed = next((name for name in splits if splits[name] is None), None)
    if split is None:
        if len(known) > 1 or (unnamed is not None and any(_canonical(_words(one)[0]) != "train" for one in known)):
            beside = f"; {unnamed} is of none" if unnamed is not None else ""
            named = ", ".join(f"{one}: {next(name for name in splits if splits[name] == one)}" for one in known)
            raise DataError(
                f"the folder holds splits ({named}{beside}), and splits are never merged",
                where=label,
                fix=f"name one (split: {known[0]}, on the command line --split {known[0]}), or give the files",
            )
        return frozenset(splits)
    if not known and split == "train":
        return frozenset(splits)  # as everywhere: rows that are not divided are there to train on
    fitting = [one for one in known if one == _canonical(split)]
    # train for a folder with train_sft, where no other split begins so
    fitting = fitting or [one for one in known if _canonical(_words(one)[0]) == _canonical(split)]
    if len(fitting) == 1:
        return frozenset(name for name in splits if splits[name] == fitting[0])
    raise DataError(
        f"no split {split!r} here{did_you_mean(split, known)}; splits: {', '.join(known) or 'none'}",
        where=label,
        fix="name one of these, leave split out where there is none, or give the files",
    )


def _canonical(split: str) -> str:
    return _CANONICAL.get(split.lower(), split)


def _words(name: str) -> list[str]:
    return [word for word in _SEPARATOR.split(name.lower()) if word] or [""]


def _split_of(name: str, folder: Path) -> str | None:
    """The split a data file belongs to, by its folders (the inner ones first), then by its own name; None = of none."""
    *folders, file = name.split("/")
    for depth in range(len(folders), 0, -1):
        inner = folders[depth - 1]
        listed = folder.joinpath(*folders[: depth - 1], "dataset_dict.json").exists()
        if listed or inner.lower() in _CANONICAL or _words(inner)[0] in _CANONICAL:
            return _canonical(inner)
    name_of_file = stem(file)
    shard = _SHARD.fullmatch(name_of_file)
    if shard is None or _words(shard[1])[-1] in _CANONICAL:
        return _by_words(shard[1] if shard is not None else name_of_file)
    named = _by_words(shard[1]) is not None or ("data" in folders and shard[1].lower() not in _UNNAMED_SHARDS)
    return _canonical(shard[1]) if named else None


def _by_words(name: str) -> str | None:
    """The split that a name begins or ends with."""
    words = _words(name)
    return _CANONICAL.get(name.lower()) or _CANONICAL.get(words[0]) or _CANONICAL.get(words[-1])


def stem(path: str) -> str:
    """The name of a path without folders, compression and data suffix, as it can be written anywhere."""
    return Path(uncompressed(printable(Path(path).name))).stem
