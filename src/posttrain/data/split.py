"""Train and held-out rows: decided by content and seed alone, never by the order of the rows.

Rows that belong together stay together: equal prompts (:func:`prompt_key`), equal compared texts after normalising, and one cluster of
near-duplicates where the rows carry clusters. Whole groups are taken in the order of a seeded hash, stratum by stratum.
Then the held-out rows are treated like a benchmark: a training row that holds more than ``max_overlap`` of the n-grams of
one of them is dropped (or the split fails), and what is left is checked again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le

from posttrain.data.text import Fields
from posttrain.errors import DataError
from posttrain.types import Message, content_id

if TYPE_CHECKING:
    from posttrain.data.steps import Decisions, StepRun

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class SplitStep:
    """Split into train, validation and test, whole groups at a time, and prove that nothing stands on both sides."""

    kind: Literal["split"]
    validation: Annotated[float, Ge(0)] = 0.05
    """Validation rows: a share of all rows below 1, otherwise a number."""
    test: Annotated[float, Ge(0)] = 0.0
    """Test rows: a share of all rows below 1, otherwise a number. They are taken first."""
    train: Annotated[float, Gt(0)] | None = None
    """Training rows, where not all that is left should be used: a share of all rows below 1, otherwise a number."""
    stratify: Literal["none", "source", "topic"] = "none"
    """Take the same share of every source, or of every topic, instead of a share of all rows."""
    topic: str = "cluster"
    """Where a row's topic stands: ``cluster`` (then clusters are topics, and no longer kept whole), or a key of ``meta``."""
    compare: Fields = "user"
    """The turns that must not match across splits."""
    ngram: Annotated[int, Ge(1)] = 8
    """Length in tokens of the n-grams that are compared; shorter texts match where they are equal."""
    max_overlap: Annotated[float, Ge(0), Le(1)] = 0.5
    """A row matches a held-out row when it holds more than this share of that row's n-grams."""
    on_match: Literal["drop", "error"] = "drop"
    """What happens to a training row that matches a held-out one (or a validation row that matches a test row)."""

    def decide(self, rows: Path, seed: int, run: StepRun) -> Decisions:
        """The split of every row. Raises DataError where the rows can't be split as asked."""
        from posttrain.data.split_rows import decide  # here: reading a recipe needs no polars

        return decide(self, rows, seed, run)


def write_splits(rows: Path, out: Path) -> dict[str, int]:
    """Write train.parquet, validation.parquet and test.parquet of rows that carry a split; rows of each.

    A split without rows gets no file, and an old file of that name is removed.
    """
    import polars as pl

    from posttrain.data.rows import scan_rows, write_rows

    frame = scan_rows(rows)
    counts = dict(frame.group_by("split").len().collect().iter_rows())
    for name in SPLITS:
        path = out / f"{name}.parquet"
        if counts.get(name):
            write_rows(path, frame.filter(pl.col("split") == name))
        else:
            path.unlink(missing_ok=True)
    return {name: int(counts.get(name, 0)) for name in SPLITS}


def prompt_key(messages: Sequence[Message]) -> str:
    """16 hex digits that are equal for equal prompts: role and content of all turns before the first assistant turn."""
    prompt = takewhile(lambda message: message.role != "assistant", messages)
    return content_id(tuple(Message(message.role, message.content) for message in prompt))


def held_out_prompts(prompts: Sequence[str], held_out: float, seed: int) -> Set[str]:
    """Which prompts to hold out; ``prompts`` has the :func:`prompt_key` of every row.

    ``held_out`` below 1 is a share of the rows (rounded, at least one row), otherwise a number of rows. Prompts are
    taken in the order of a seeded hash as long as all their rows fit into the number; where not even one fits, the
    smallest alone is taken. Raises DataError where the rows can't be split so.
    """
    wanted = wanted_rows(len(prompts), held_out, "held_out")
    if wanted == 0:
        return frozenset()
    sizes = Counter(prompts)
    if len(sizes) == 1:
        raise DataError(
            f"all {len(prompts)} rows have the same prompt, and rows with the same prompt stay together",
            where="held_out",
            fix="set held_out: 0 and hold out rows of another source",
        )
    return {group for group, fits in room_of(sizes, wanted, seed).items() if fits[1]} or {smallest(sizes, seed)}


def room_of(sizes: Mapping[str, int], wanted: int, seed: int) -> dict[str, tuple[int, bool]]:
    """Group -> (rows still wanted at its turn, whether all its rows fit into them), in the order of a seeded hash."""
    found, left = {}, wanted
    for group in hash_order(sizes, seed):
        fits = sizes[group] <= left
        found[group] = (left, fits)
        left -= sizes[group] if fits else 0
    return found


def hash_order(groups: Iterable[str], seed: int) -> list[str]:
    """The groups in an order that the seed and their names alone decide."""
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())


def smallest(sizes: Mapping[str, int], seed: int) -> str:
    """The smallest group, the first of equal ones."""
    return min(hash_order(sizes, seed), key=lambda group: sizes[group])


def wanted_rows(rows: int, amount: float, where: str) -> int:
    """The number of rows of a share (below 1) or number; DataError where it is neither, or leaves nothing."""
    if amount >= 1 and amount != int(amount):
        raise DataError(
            f"{amount} is neither a share below 1 nor a number of rows", where=where, fix="give 0.05 or 200"
        )
    wanted = int(amount) if amount >= 1 else max(1, round(rows * amount)) if amount > 0 else 0
    if wanted and wanted >= rows:
        raise DataError(
            f"can't hold out {wanted} of {rows} row{'s' if rows != 1 else ''}: nothing is left to train on",
            where=where,
            fix=f"hold out less, or set {where}: 0",
        )
    return wanted
