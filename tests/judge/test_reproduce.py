"""``make reproduce``: one table of published numbers beside ours, whose exit code tells the truth."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("published")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "evaluation").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("published_value", "ours", "tolerance", "reproduced"),
    [
        (66.0, 65.9717, 0.05, True),
        (66.0, 65.94, 0.05, False),
        (12.3, 12.25, 0.05, True),  # half a digit, although the subtraction gives a little more
        (380, 380, 0, True),
        (380, 381, 0, False),
        (1.0, 1.0 + 2e-12, 1e-12, False),
        (1.0, float("nan"), 0.5, False),
    ],
)
def test_a_row_is_reproduced_within_its_tolerance(
    published: ModuleType, published_value: float, ours: float, tolerance: float, reproduced: bool
) -> None:
    assert published.Row("x", published_value, ours, tolerance).reproduced is reproduced


def test_the_table_is_aligned_and_marks_what_differs(published: ModuleType) -> None:
    head, first, second = published.table([published.Row("a", 66, 66.04, 0.05), published.Row("long name", 1, 2, 0.5)])
    assert "DIFFERS" not in first
    assert second.endswith("  DIFFERS")
    assert head.index("ours") + len("ours") == first.index("66.04") + len("66.04") == second.index(" 2 ") + 2


def test_the_exit_code_and_the_last_line_tell(
    published: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = published.Row("good", 1, 1, 0), published.Row("bad", 1, 3, 1)
    assert published.print_sections({"One": lambda folder: [good], "Two": lambda folder: iter([good, good])}, data) == 0
    printed = capsys.readouterr().out
    assert printed.index("== One ==") < printed.index("== Two ==")
    assert printed.endswith("\n3 of 3 reproduced\n")
    assert published.print_sections({"One": lambda folder: [good, bad]}, data) == 1
    printed = capsys.readouterr().out
    assert printed.endswith("\n1 of 2 reproduced\n")
    assert printed.count("DIFFERS") == 1


def test_an_incomplete_folder_is_one_sentence(
    published: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(folder: Path):
        return [folder.joinpath("evaluation", "votes.jsonl").read_text()]

    assert published.print_sections({"Votes": rows}, data) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("Votes: the data folder is not complete: ")
    assert "votes.jsonl" in told.err


def test_without_the_folder_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    for script in ("reproduce", "reproduce_votes"):
        command = [sys.executable, BENCHMARKS / f"{script}.py", tmp_path / "nowhere"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, ""), script
        assert done.stderr.count("\n") == 1
        assert "nowhere" in done.stderr


@pytest.mark.shared
def test_all_published_numbers_in_one_command(shared_data: Path) -> None:
    command = [sys.executable, BENCHMARKS / "reproduce.py", shared_data]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "360 of 360 reproduced"
    assert "DIFFERS" not in done.stdout
    rows = [line for line in lines if line and not line.startswith(("==", " ")) and line != lines[-1]]
    assert len(rows) == 360
