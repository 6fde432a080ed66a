"""What a person sees: plain lines without a terminal, live lines that fit with one."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from posttrain.report import live
from posttrain.report.live import Display


def train_record(step: int, total: int = 40, **changes: Any) -> dict[str, Any]:
    return {
        "split": "train",
        "step": step,
        "total_steps": total,
        "loss": 1.23456,
        "tokens": 1000,
        "tokens_per_second": 3456.7,
        "memory_bytes": 2_345_000_000,
    } | changes


def plain() -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(Console(file=out, width=80, soft_wrap=True)), out


def live_text(shown: Display, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, record=True)
    console.print(shown._render())
    return console.export_text().splitlines()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_now_and_then(clock: list[float]) -> None:
    shown, out = plain()
    with shown:
        shown.stage("sft", "train", "running")
        shown.record({"split": "held_out", "step": 0, "loss": 2.0})
        for step in range(1, 41):
            clock[0] += 1.5
            shown.record(train_record(step))
    lines = out.getvalue().splitlines()
    assert lines[0] == "sft (train) running"
    assert lines[1] == "  step 0: held-out loss 2.0000"
    assert lines[2] == "  step 1/40  loss 1.235  held-out 2.000  3,457 tok/s  2.35 GB  eta 0:11"
    assert lines[-1].startswith("  step 40/40  loss 1.235")
    steps = [int(re.search(r"step (\d+)/", line)[1]) for line in lines[2:]]  # type: ignore[index]
    assert steps == [1, 8, 15, 22, 29, 36, 40]
    assert "\x1b" not in out.getvalue()


def test_long_work_without_a_terminal(clock: list[float]) -> None:
    shown, out = plain()
    for done in range(0, 30):
        clock[0] += 1
        shown.tick("file.gz", done * 1_000_000, 30_000_000)
    shown.tick("file.gz", 30_000_000, 30_000_000)
    assert out.getvalue().splitlines() == ["  file.gz 10.0M/30.0M  eta 0:20", "  file.gz 20.0M/30.0M  eta 0:10"]


@pytest.mark.parametrize("width", [80, 120])
def test_live_lines_fit(width: int, clock: list[float]) -> None:
    shown = Display(Console(file=io.StringIO(), width=width, force_terminal=True))
    shown.record({"split": "held_out", "step": 0, "loss": 2.0})
    shown.record(train_record(998, 12_345))
    clock[0] += 20
    shown.record(train_record(999, 12_345))
    lines = live_text(shown, width)
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert "999/12,345" in lines[0]
    assert re.search(r"eta \d+:\d\d:\d\d", lines[0])
    assert lines[1].rstrip() == "  loss 1.235  held-out 2.000  3,457 tok/s  2.35 GB"


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_name_is_cut_and_the_numbers_stay(width: int, clock: list[float]) -> None:
    shown = Display(Console(file=io.StringIO(), width=width, force_terminal=True))
    shown.tick("a very long label of some file " * 5, 1, 100)
    clock[0] += 1
    shown.tick("a very long label of some file " * 5, 50, 100)
    (line,) = live_text(shown, width)
    assert len(line) <= width
    assert "50/100" in line
    assert "eta 0:01" in line


def test_finished_work_disappears() -> None:
    shown = Display(Console(file=io.StringIO(), force_terminal=True))
    shown.tick("a", 1, 2)
    shown.tick("loading", 0, 0)
    assert len(live_text(shown, 80)) == 2
    shown.tick("a", 2, 2)
    shown.record(train_record(1))  # what went before training is over
    assert len(live_text(shown, 80)) == 2  # training and its facts
    shown.record(train_record(40))
    assert live_text(shown, 80) == []
    shown.record(train_record(39))
    shown.stage("next", "eval", "running")  # early stopping never reaches the last step
    assert live_text(shown, 80) == []


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert live._clock(seconds) == text


def test_foreign_text_is_not_markup() -> None:
    shown, out = plain()
    shown.note("[bold]row[/bold] 3")
    shown.stage("[red]x", "data", "unchanged")
    assert out.getvalue() == "  [bold]row[/bold] 3\n[red]x (data) unchanged\n"


def test_work_that_tells_nothing_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PLAIN_INTERVAL", 0.2)
    monkeypatch.setattr(live, "LOOK_INTERVAL", 0.02)
    shown, out = plain()
    with shown:
        shown.stage("evaluate", "eval", "running")
        wait_for(out, "evaluate: working, 0:0")
        shown.tick("replies of base", 0, 30)
        shown.tick("replies of base", 10, 30)
        wait_for(out, "replies of base 10/30  eta 0:0")
        shown.tick("loading", 0, 0)
        wait_for(out, "loading 0:0")
    said = out.getvalue()
    time.sleep(0.3)
    assert out.getvalue() == said  # nobody speaks after the end


def wait_for(out: io.StringIO, text: str) -> None:
    until = time.monotonic() + 30
    while text not in out.getvalue():
        assert time.monotonic() < until, out.getvalue()
        time.sleep(0.02)


def test_many_short_pieces_of_work_are_not_silent_together(clock: list[float]) -> None:
    shown, out = plain()
    shown.stage("evaluate", "eval", "running")
    for number in range(12):
        for done in range(3):
            shown.tick(f"part {number}", done, 4)
            clock[0] += 1
        shown.tick(f"part {number}", 4, 4)
    assert [line.split("/")[0] for line in out.getvalue().splitlines()[1:]] == [
        "  part 3 1",
        "  part 6 2",
        "  part 10 0",
    ]
