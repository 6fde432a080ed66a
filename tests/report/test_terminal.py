from __future__ import annotations

import io

import pytest
from rich.console import Console

from posttrain.artifacts import RunDir
from posttrain.errors import RunError
from posttrain.report.terminal import terminal_summary


def printed(run: RunDir) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal_summary(run))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_headline_numbers_and_verdicts(run: RunDir) -> None:
    text = printed(run)
    for part in ("quickstart: complete", "−0.235", "improved", "7 → 11 of 13", "no difference shown", "3.12 GB"):
        assert part in text


def test_what_is_missing_is_named_and_markup_is_not_read(run: RunDir) -> None:
    run.stage("sft").write_manifest({"kind": "train", "status": "failed", "error": "[bold]disk[/bold] full"})
    text = printed(run)
    assert "! Stage sft failed: [bold]disk[/bold] full" in text


def test_no_run_is_an_error(run: RunDir) -> None:
    with pytest.raises(RunError, match="no run folder"):
        terminal_summary(RunDir(run.path / "absent"))
