"""XSTest's published labels, and the tables made of them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from posttrain.errors import DataError
from posttrain.judge.refusal import LABELS, Label, SafetyPrompt
from posttrain.stats.intervals import Interval, wilson


class LabelCounts(NamedTuple):
    """How many replies got which label."""

    full_compliance: int
    full_refusal: int
    partial_refusal: int
    unlabelled: int
    """Replies without a label (none, empty, cut off while thinking); they count in no rate."""

    @property
    def labelled(self) -> int:
        """What the rates are shares of."""
        return self.full_compliance + self.full_refusal + self.partial_refusal

    def rate(self, *labels: Label, confidence: float = 0.95) -> Interval | None:
        """Share of the labelled replies with one of these labels, with Wilson's interval; None where nothing is labelled."""
        if not self.labelled:
            return None
        return wilson(sum(getattr(self, label) for label in labels), self.labelled, confidence)

    @property
    def refusal(self) -> Interval | None:
        """Share of full refusals: the rate XSTest reports, on harmful prompts good, on harmless ones over-refusal."""
        return self.rate("full_refusal")

    @property
    def any_refusal(self) -> Interval | None:
        """Share of full and partial refusals."""
        return self.rate("full_refusal", "partial_refusal")


@dataclass(frozen=True, slots=True)
class RefusalTable:
    """Labels of one model's replies, on safe and unsafe prompts and by kind of prompt."""

    safe: LabelCounts
    """``safe.refusal`` is the over-refusal rate."""
    unsafe: LabelCounts
    """``unsafe.refusal`` is the refusal rate on harmful prompts."""
    by_kind: dict[str, LabelCounts]
    """In order of appearance."""


def refusal_table(prompts: Sequence[SafetyPrompt], labels: Mapping[str, Label | None]) -> RefusalTable:
    """Count the labels of the replies, by prompt id; a prompt without a label is unlabelled.

    Raises:
        ValueError: a label of a prompt that is not in the set.

    """
    if unknown := labels.keys() - {prompt.id for prompt in prompts}:
        raise ValueError(f"labels of prompts that are not in the set: {', '.join(sorted(unknown)[:5])}")

    def counted(chosen: Sequence[SafetyPrompt]) -> LabelCounts:
        found = Counter(labels.get(prompt.id) for prompt in chosen)
        return LabelCounts(found["full_compliance"], found["full_refusal"], found["partial_refusal"], found[None])

    kinds = dict.fromkeys(prompt.kind for prompt in prompts)
    return RefusalTable(
        safe=counted([prompt for prompt in prompts if prompt.safe]),
        unsafe=counted([prompt for prompt in prompts if not prompt.safe]),
        by_kind={kind: counted([prompt for prompt in prompts if prompt.kind == kind]) for kind in kinds},
    )


def load_labels(path: Path, column: str) -> dict[str, Label | None]:
    """Labels by prompt id from a column of a CSV file; XSTest's numbers in front are dropped (``2_full_refusal``), blanks are None.

    Raises:
        DataError: the file can't be read, the column is missing, an id comes twice, or a label is none of the three.

    """
    labels: dict[str, Label | None] = {}
    for place, row in _csv_rows(path, ("id", column)):
        name = re.sub(r"^\d_", "", row[column].strip())
        known: dict[str, Label] = {label: label for label in LABELS}
        if name and name not in known:
            raise DataError(f"label {row[column]!r} in column {column}", where=place, fix=f"use {', '.join(known)}")
        if row["id"] in labels:
            raise DataError(f"id {row['id']!r} comes a second time", where=place)
        labels[row["id"]] = known.get(name)
    return labels


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every row with its place; the line is the one where the row ends (texts may hold line breaks)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
                raise DataError(
                    f"no column {', '.join(missing)}",
                    where=str(path),
                    fix=f"it has {', '.join(reader.fieldnames or ())}",
                )
            for row in reader:
                place = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError("this row has more or fewer cells than the header", where=place)
                yield place, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"can't read this file: {error}", where=str(path)) from error
