"""Tokens of a row from a process beside the board."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.board.tokens import TokenProcess
from posttrain.errors import ModelError
from posttrain.types import Message, Origin, PairRow, Row, RowKind, SftRow, UnpairedRow

PROMPT, GOOD, BAD = (Message("user", "Hi <b>"),), (Message("assistant", "Hello"),), (Message("assistant", "Go away"),)
PLACE = (Origin("f", 1), "s")


@pytest.fixture(scope="module")
def process() -> Iterator[TokenProcess]:
    found = TokenProcess()
    yield found
    found.close()


@pytest.mark.demo_model
@pytest.mark.parametrize(
    ("kind", "row", "supervised", "heading"),
    [
        ("conversations", SftRow(PROMPT + GOOD, *PLACE), ["Hello"], "Example 1 of 1"),
        ("pairs", PairRow(PROMPT, GOOD, BAD, *PLACE), ["Hello", "Go", " away"], "rejected: Example 1 of 1"),
        ("feedback", UnpairedRow(PROMPT, BAD, False, *PLACE), ["Go", " away"], "Example 1 of 1"),
    ],
)
def test_what_is_supervised_stands_out(
    process: TokenProcess, demo_model: Path, kind: RowKind, row: Row, supervised: list[str], heading: str
) -> None:
    html = process.html(kind, row, str(demo_model))
    assert heading in html
    for token in supervised:
        assert '<span class="supervised" title="' in html
        assert f">{token}</span>" in html
    assert "Hi <b>" not in html
    assert "&lt;b" in html or "&lt;" in html
    assert "transformers" not in sys.modules or "torch" in sys.modules  # loaded by a fixture, never by the board


@pytest.mark.demo_model
def test_a_process_that_was_killed_is_started_again(process: TokenProcess, demo_model: Path) -> None:
    row = SftRow(PROMPT + GOOD, *PLACE)
    first = process.html("conversations", row, str(demo_model))
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    assert process.html("conversations", row, str(demo_model)) == first


def test_a_model_that_is_not_there_is_one_error(process: TokenProcess, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        process.html("conversations", SftRow(PROMPT + GOOD, *PLACE), str(tmp_path / "nowhere"))
