"""Sets of prompts with two replies that people compare: made once, never changed (`posttrain.board.labelling` has what they answer)."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from posttrain.artifacts import plain, read_json, write_error, write_json, write_text
from posttrain.errors import ConfigError, RunError
from posttrain.report.reading import json_lines, parse
from posttrain.table import did_you_mean
from posttrain.types import Message, PairRow

SCHEMA = 1
FOLDER = ".labels"
SET, ITEMS, ANSWERS = "set.json", "items.jsonl", "answers.jsonl"
MOST_ITEMS = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Side = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with two replies."""

    id: str
    prompt: tuple[Message, ...]
    a: tuple[Message, ...]
    b: tuple[Message, ...]
    name_a: str
    """Who wrote it, or what the source says of it (``chosen``). Never shown to who labels."""
    name_b: str
    tools: tuple[Mapping[str, Any], ...] = ()
    place: str = ""
    """Where it comes from."""

    def side(self, side: Side) -> tuple[Message, ...]:
        """One of the replies."""
        return self.a if side == "a" else self.b


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSet:
    """What is asked, and of what: ``set.json``."""

    schema: int = SCHEMA
    name: str
    question: str
    source: str
    seed: int
    overlap: float
    """Share of the items that every annotator gets."""
    created: float
    items: int
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> rows of the source that gave no item."""


def item_of(row: PairRow, name_a: str = "chosen", name_b: str = "rejected") -> Item:
    """A pair as something to label: its two sides without what the source prefers."""
    return Item(row.id, row.prompt, row.chosen, row.rejected, name_a, name_b, row.tools, str(row.origin))


def create(
    runs: Path,
    name: str,
    question: str,
    source: str,
    found: Sequence[Item],
    *,
    seed: int = 0,
    overlap: float = 0.2,
    left_out: Mapping[str, int] | None = None,
) -> LabelSet:
    """Write a new set of these items in an order drawn from the seed.

    Raises ConfigError for a name that can't be used or is taken, an overlap that is no share, and where there is nothing to label.
    """
    if not _NAME.fullmatch(name):
        fix = "letters, digits, dots, dashes and underscores, a letter or digit first"
        raise ConfigError(f"a set can't be called {name!r}", where="name", fix=fix)
    if not 0 <= overlap <= 1:
        raise ConfigError(f"{overlap:g} is no share", where="overlap", fix="give a number from 0 to 1")
    items = list({one.id: one for one in found}.values())
    gone = Counter(left_out or {})
    if len(items) < len(found):
        gone["exact_duplicate"] += len(found) - len(items)
    if not items:
        counts = ", ".join(f"{reason} {number:,}" for reason, number in gone.most_common(3))
        raise ConfigError(
            f"nothing to label{f' (left out: {counts})' if counts else ''}",
            where=source,
            fix="choose rows with two different replies to a prompt",
        )
    random.Random(seed).shuffle(items)
    folder = runs / FOLDER / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if (folder / SET).exists() or (folder / ANSWERS).exists():
            raise ConfigError("there is a set of this name", where=name, fix="give another name") from None
    except OSError as error:
        raise write_error(error, folder) from error
    about = LabelSet(
        name=name,
        question=question,
        source=source,
        seed=seed,
        overlap=overlap,
        created=time.time(),
        items=len(items),
        left_out=dict(gone),
    )
    write_text(folder / ITEMS, "".join(json.dumps(plain(one), ensure_ascii=False) + "\n" for one in items))
    write_json(folder / SET, asdict(about))  # last: where it is, all is
    return about


def set_names(runs: Path) -> list[str]:
    """The sets there are, links out of the folder left out."""
    folder = runs / FOLDER
    if not folder.is_dir():
        return []
    return sorted(one.name for one in folder.iterdir() if not one.is_symlink() and (one / SET).is_file())


def folder_of(runs: Path, name: str) -> Path:
    """The folder of a set. Raises RunError where a look into the folder finds none of this name."""
    names = set_names(runs)
    if name not in names:
        raise RunError(
            f"there is no set of preferences {name!r}{did_you_mean(name, names)}", fix="choose one of the list"
        )
    return runs / FOLDER / name


def read_set(folder: Path) -> LabelSet:
    """What is asked. Raises RunError where the file is damaged."""
    return parse(LabelSet, read_json(folder / SET), folder / SET)


def read_items(folder: Path) -> Mapping[str, Item]:
    """The items by their ids, in the order of the set. Raises RunError where the file is damaged."""
    path = folder / ITEMS
    return _items(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _items(path: Path, changed: int) -> Mapping[str, Item]:
    return {one.id: one for one in parse(tuple[Item, ...], json_lines(path), path)}
