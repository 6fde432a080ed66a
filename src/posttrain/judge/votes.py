"""Files of votes: who was preferred to whom, row by row.

A file is JSON Lines, JSON, CSV or Parquet, compressed or not; its columns may have any names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.data.places import DataFile
from posttrain.data.sources import Record, read_whole
from posttrain.errors import DataError
from posttrain.stats.intervals import Floats
from posttrain.stats.ratings import Comparison, Comparisons, gather, winner_of
from posttrain.table import did_you_mean

_NO_VERDICT = ("", "error", "null", "none")


def read_comparisons(
    path: str | Path,
    *,
    model_a: str = "model_a",
    model_b: str = "model_b",
    winner: str = "winner",
    weight: str | None = None,
    cluster: str | None = None,
) -> Comparisons:
    """Comparisons of a file, by the names of its columns. Raises DataError with file and line where the file or a row can't be used.

    The winner is one of ``OUTCOMES`` in any case; a row whose winner is empty, null or ``error`` has no verdict and is
    counted as missing. Without ``weight`` every row weighs 1. ``cluster`` names the column (a prompt's number, say) whose equal
    values mark rows that are not independent.
    """
    rows: list[Comparison] = []
    places = []
    missing = 0
    for where, record in records(path):
        verdict = cell(record, winner, where)
        names = [_name(record, key, where) for key in (model_a, model_b)]
        if no_verdict(verdict):
            missing += 1
            continue
        mass = 1.0 if weight is None else number(record, weight, where)
        group = None if cluster is None else str(cell(record, cluster, where))
        rows.append(Comparison(names[0], names[1], winner_of(str(verdict), where), mass, group))
        places.append(where)
    if not rows:
        raise DataError("no comparison with a verdict", where=str(path), fix="give a file of judged pairs")
    return gather(rows, places, missing)


def records(path: str | Path) -> Iterator[tuple[str, Record]]:
    """(place, row) of every row of a file; DataError where there is no file, and at the first row that can't be read."""
    if not Path(path).is_file():
        raise DataError("there is no such file", where=str(path), fix="give a JSON Lines, JSON, CSV or Parquet file")
    for record in read_whole(DataFile(str(path), Path(path)), "", "mend or remove the row"):
        yield str(record.origin), record


def no_verdict(winner: Any) -> bool:
    """Whether a winner says that the judge gave none."""
    return winner is None or str(winner).strip().lower() in _NO_VERDICT


def cell(record: Record, key: str, where: str) -> Any:
    """A row's value; DataError where there is no such field."""
    if key not in record.value:
        raise DataError(
            f"no field {key!r}{did_you_mean(key, record.value)}", where=where, fix="name the columns of this file"
        )
    return record.value[key]


def number(record: Record, key: str, where: str) -> float:
    """A row's value as a number; DataError where it is none."""
    value = cell(record, key, where)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{key} {value!r} is not a number", where=where, fix="give a number") from error


def _name(record: Record, key: str, where: str) -> str:
    value = cell(record, key, where)
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise DataError(f"{key} is {value!r}, not a name", where=where, fix="give the model's name")
    return str(value)


def read_style_counts(path: str | Path, names: Sequence[str], *, winner: str = "winner") -> tuple[Floats, Floats]:
    """Counts of both replies [N, F] each, from the columns ``<name>_a`` and ``<name>_b`` of a file of comparisons.

    Rows are those of `read_comparisons`: without the ones that have no verdict. Raises DataError as it does.
    """
    rows = [
        [[number(record, f"{name}_{side}", where) for name in names] for side in "ab"]
        for where, record in records(path)
        if not no_verdict(cell(record, winner, where))
    ]
    counts_2NF = np.array(rows, dtype=np.float64).reshape(-1, 2, len(names)).transpose(1, 0, 2)
    return counts_2NF[0], counts_2NF[1]
