"""The compared texts of a file of rows on disk, to be read in any order: greedy methods walk rows by their worth."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np

from posttrain.artifacts import write_error
from posttrain.data.rows import conversations
from posttrain.data.steps import blocks
from posttrain.data.text import Fields, compared_text


class Texts:
    """The text of every row of a file. Only the places are in memory."""

    def __init__(self, file: IO[bytes], ends: Sequence[int]) -> None:
        self._file = file
        self._ends = np.array([0, *ends], np.int64)

    def __getitem__(self, row: int) -> str:
        begin, end = int(self._ends[row]), int(self._ends[row + 1])
        self._file.seek(begin)
        return self._file.read(end - begin).decode("utf-8", "surrogatepass")


@contextmanager
def compared_texts(rows: Path, fields: Fields) -> Iterator[Texts]:
    """The chosen turns of all rows, in a temporary file. Raises RunError where that can't be written."""
    sizes: list[int] = []
    with tempfile.TemporaryFile() as file:
        try:
            for _, block in blocks(rows, ["messages"]):
                for messages in conversations(block):
                    sizes.append(file.write(compared_text(messages, fields).encode("utf-8", "surrogatepass")))
            file.flush()
        except OSError as error:
            raise write_error(error, Path(tempfile.gettempdir())) from error
        yield Texts(file, list(accumulate(sizes)))
