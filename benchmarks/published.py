"""Published numbers beside ours: the row, the table, and what a script that prints them does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from posttrain.errors import PosttrainError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Where the data folder is unless it is named. It is not part of the project."""


class Row(NamedTuple):
    """One published number and ours."""

    name: str
    published: float
    ours: float
    tolerance: float
    """The largest difference allowed: half of the last published digit, what an own draw may do, or 0 for counts."""

    @property
    def reproduced(self) -> bool:
        """Exactly half a digit off is allowed, whatever the last bits of a subtraction say; NaN never is."""
        return abs(self.published - self.ours) <= self.tolerance * (1 + 1e-9)


Rows = Callable[[Path], Iterable[Row]]
"""All rows that the data folder lets a script compute."""


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table: name, published, ours, allowed difference, and a mark where the difference is larger."""
    width = max((len(row.name) for row in rows), default=0)
    yield f"{'':{width}}  {'published':>12}  {'ours':>12}  allowed"
    for row in rows:
        mark = "" if row.reproduced else "  DIFFERS"
        yield f"{row.name:{width}}  {row.published:12.8g}  {row.ours:12.8g}  {row.tolerance:7.2g}{mark}"


def print_sections(sections: Mapping[str, Rows], folder: Path) -> int:
    """Print every section as it is computed and how many numbers are reproduced in all.

    The exit code: 0, 1 where a number is off, 2 (and one sentence on stderr) where the data are not there.
    """
    if not (folder / "evaluation").is_dir():
        print(f"there is no data folder with evaluation/ in it at {folder}: name the one that has it", file=sys.stderr)
        return 2
    reproduced, count = 0, 0
    for title, rows in sections.items():
        try:
            found = list(rows(folder))
        except (FileNotFoundError, PosttrainError) as error:
            print(f"{title}: the data folder is not complete: {error}", file=sys.stderr)
            return 2
        print(f"{title}\n" if len(sections) == 1 else f"== {title} ==\n")
        print(*table(found), sep="\n", end="\n\n", flush=True)
        reproduced += sum(row.reproduced for row in found)
        count += len(found)
    print(f"{reproduced} of {count} reproduced")
    return int(reproduced < count)


def run_script(sections: Mapping[str, Rows]) -> int:
    """What a script does: the data folder is its argument, or the one beside the project."""
    return print_sections(sections, Path(sys.argv[1]) if len(sys.argv) > 1 else SHARED)
