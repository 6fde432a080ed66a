"""What a new run can start from: the recipes of some folders, earlier runs, and a first recipe where there is neither."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from posttrain.board.web import Settings, is_run
from posttrain.board.yaml_edit import patched
from posttrain.board.yaml_values import value_at, with_value
from posttrain.config import MAX_BYTES, parse_yaml, read_yaml
from posttrain.errors import ConfigError, PosttrainError
from posttrain.lab.recipe import recipe_of, with_whole_paths
from posttrain.references import references

MOST_RECIPES = 200
"""Of a folder."""
FIRST = """\
# A first run: learn from some instructions, compare with the model as it was, and report.
name: first
model: smollm2-135m-instruct
stages:
  rows:
    kind: data
    sources:
      - path: alpaca_en_demo
        max_rows: 200
    held_out: 0.1

  sft:
    kind: train
    data: rows
    learning_rate: 2e-4
    max_length: 512

  evaluate:
    kind: eval
    data: rows
    models: [base, sft]

  report:
    kind: report
"""


class Start(NamedTuple):
    """Something to start from."""

    key: str
    """What an address calls it: a run by its name, a recipe with slashes, ``recipe/0/dpo.yaml``."""
    name: str
    about: str
    """The first line of comment in it."""
    file: Path | None

    @property
    def is_run(self) -> bool:
        """Whether it is an earlier run."""
        return "/" not in self.key


def starts(settings: Settings) -> list[Start]:
    """All there is, recipes first."""
    runs = settings.runs
    names = sorted(path.name for path in runs.iterdir() if is_run(runs, path.name)) if runs.is_dir() else []
    found = (_of_run(runs, name) for name in names)
    return [*_recipes(settings.recipes), _FIRST, *(one for one in found if one is not None)]


def start_of(settings: Settings, key: str) -> Start | None:
    """The start that a key names, found by looking at what there is; None where there is none (any more)."""
    if "/" not in key:
        return _of_run(settings.runs, key) if is_run(settings.runs, key) else None
    known = [_FIRST, *(_start(*one) for one in _files(settings.recipes) if one[0] == key)]
    return next((one for one in known if one.key == key), None)


def text_of(start: Start) -> str:
    """Its YAML, with the paths that lie beside it in full. Raises ConfigError where it can't be read."""
    if start.file is None:
        return FIRST
    text = start.file.read_text(encoding="utf-8-sig") if _is_readable(start.file) else ""
    if not text.strip():
        read_yaml(start.file)  # says what is wrong
    with contextlib.suppress(PosttrainError):
        return _with_whole_paths(text, str(start.file))
    return text


def free_name(name: str, runs: Path) -> str:
    """``name-2``, or the first number after it that no run has; the name itself where no run has it."""
    stem = re.sub(r"-\d+$", "", name)
    numbered = (f"{stem}-{number}" for number in count(2))
    return next(one for one in chain([name], numbered) if not (runs / one).exists())


def _files(folders: Sequence[Path]) -> Iterator[tuple[str, str, Path]]:
    """(key, name, path) of every YAML file, those of the folder itself first."""
    for number, folder in enumerate(folders):
        found = (path for pattern in ("*.yaml", "*.yml") for path in folder.rglob(pattern))
        for path in sorted(found, key=lambda one: (len(one.parts), one))[:MOST_RECIPES]:
            inside = path.relative_to(folder).as_posix()
            yield f"recipe/{number}/{inside}", inside.rpartition(".")[0], path


def _recipes(folders: Sequence[Path]) -> Iterator[Start]:
    for key, name, path in _files(folders):
        if re.search(r"(?m)^stages:", _head(path)):
            yield _start(key, name, path)


def _start(key: str, name: str, path: Path) -> Start:
    return Start(key, name, _about(_head(path)), path)


def _of_run(runs: Path, name: str) -> Start | None:
    path = runs / name / "recipe.yaml"
    return Start(name, name, "", path) if path.is_file() else None


def _is_readable(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return False
    return path.stat().st_size <= MAX_BYTES


def _head(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig") if _is_readable(path) else ""


def _about(text: str) -> str:
    first = text.partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _with_whole_paths(text: str, file: str) -> str:
    """A recipe that means the same wherever it lies."""
    document = parse_yaml(text, file)
    wanted = document.value
    for one in references(with_whole_paths(recipe_of(document))):
        written = value_at(document.value, one.path)
        if isinstance(written, str) and written != one.text and Path(one.text).is_absolute():
            wanted = with_value(wanted, one.path, one.text)
    try:
        return patched(text, wanted, file)
    except ConfigError:
        return text


_FIRST = Start("recipe/first", "first", _about(FIRST), None)
