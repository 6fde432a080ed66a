"""The live part of the terminal, what a person sees while a recipe runs: one line a stage, progress with loss, speed, ETA and memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from posttrain.report.terminal import clean

PLAIN_INTERVAL = 10.0
"""Seconds of silence before a line of progress where the output is no terminal."""
LOOK_INTERVAL = 4.0
"""Seconds between two looks at whether it has been silent for too long while one piece of work goes on."""
TRAINING = "training"
NUMBERS_WIDTH = 40
"""Columns for everything beside the label and the bar: the longest count, times and spaces."""
WIDE = 100
"""Columns from which on the progress bar is long."""


@dataclass
class _Work:
    """One piece of work in progress. ``first``: what was done when it was first seen (a resumed run starts late)."""

    label: str
    done: int
    total: int
    first: int
    begun: float
    facts: str = ""
    spinner: Spinner = field(default_factory=lambda: Spinner("dots"))

    def count(self) -> str:
        """``12/34``, or ``3.1M/95.4M`` for large numbers (bytes); nothing where the total is not known."""
        return f"{_short(self.done, self.total)}/{_short(self.total, self.total)}" if self.total else ""

    def eta(self) -> str:
        """Time left at the average speed so far, as ``0:12`` or ``1:02:03``; empty where it can't be told yet."""
        advanced = self.done - self.first
        if not self.total or advanced <= 0:
            return ""
        return f"eta {_clock((time.monotonic() - self.begun) / advanced * (self.total - self.done))}"

    def line(self) -> str:
        """It in words: what, how far, how long still. Where nothing is counted: how long it has gone on."""
        if self.facts:
            return f"step {self.done}/{self.total}  {self.facts}  {self.eta()}".rstrip()
        return f"{self.label} {self.count() or _clock(time.monotonic() - self.begun)}  {self.eta()}".rstrip()


class Display:
    """Progress of a run on a terminal; on anything else a plain line whenever it has been silent for `PLAIN_INTERVAL`.

    While it is open there, a thread looks that no work, however long it takes and whatever it tells, is silent for more than
    `PLAIN_INTERVAL` + `LOOK_INTERVAL`.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._work: dict[str, _Work] = {}
        self._held_out: float | None = None
        self._stage = ""
        self._begun = time.monotonic()
        self._spoke: float | None = None
        self._closed = threading.Event()
        self._watch: threading.Thread | None = None
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(get_renderable=self._render, console=console, transient=True, refresh_per_second=5)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        else:
            self._spoke = time.monotonic()
            self._watch = threading.Thread(target=self._speak_now_and_then, daemon=True)
            self._watch.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        if self._watch is not None:
            self._watch.join()
        self._work.clear()
        if self._live is not None:
            self._live.stop()

    def stage(self, name: str, kind: str, state: str) -> None:
        """Announce a stage: ``running``, ``unchanged``, ``resuming``; ``would run``, ``would resume`` in a rehearsal."""
        self._held_out = None
        self._work.clear()
        self._stage, self._begun = name, time.monotonic()
        self._spoke = self._begun
        style = "dim" if state == "unchanged" else "bold"
        self.console.print(Text.assemble((name, style), (f" ({kind}) ", "dim"), (state, "dim")))

    def note(self, text: str) -> None:
        """One line about what was done."""
        self._spoke = time.monotonic()
        self.console.print(f"  {clean(text)}", highlight=False, markup=False)

    def tick(self, label: str, done: int, total: int) -> None:
        """Progress of one piece of work; it disappears when done. ``total`` 0 = not known."""
        work = self._advance(label, done, total, first=0)
        if total and done >= total:
            del self._work[label]
        elif self._plain_line_due():
            self.note(work.line())

    def record(self, record: Mapping[str, Any]) -> None:
        """One metrics record of a training stage; what went before it (loading, encoding) is over then."""
        self._work = {label: work for label, work in self._work.items() if label == TRAINING}
        if record["split"] == "held_out":
            if "reward" in record:
                self.note(f"step {record['step']}: held-out reward {record['reward']:.3f}")
                return
            self._held_out = record["loss"]
            self.note(f"step {record['step']}: held-out loss {record['loss']:.4f}{_preference(record)}")
            return
        step, total = record["step"], record["total_steps"]
        work = self._advance(TRAINING, step, total, first=step - 1)
        if work.first == step - 1 and not work.facts:  # the first step took its own time
            work.begun = time.monotonic() - record["tokens"] / record["tokens_per_second"]
        held_out = f"  held-out {self._held_out:.3f}" if self._held_out is not None else ""
        told = f"reward {record['reward']:.3f}  " if "reward" in record else ""
        work.facts = (
            f"{told}loss {record['loss']:.3f}{held_out}{_preference(record)}  {record['tokens_per_second']:,.0f} tok/s  "
            f"{record['memory_bytes'] / 1e9:.2f} GB"
        )
        if self._live is None and (step in (work.first + 1, total) or self._plain_line_due()):
            self.note(work.line())
        if step == total:
            del self._work[TRAINING]

    def _advance(self, label: str, done: int, total: int, first: int) -> _Work:
        """The piece of work of this label, new or brought up to date."""
        if label not in self._work:
            now = time.monotonic()
            self._spoke = now if self._spoke is None else self._spoke
            self._work[label] = _Work(label, done, total, first, begun=now)
        work = self._work[label]
        work.done, work.total = done, total
        return work

    def _plain_line_due(self) -> bool:
        quiet = 0.0 if self._spoke is None else time.monotonic() - self._spoke
        return self._live is None and quiet >= PLAIN_INTERVAL

    def _speak_now_and_then(self) -> None:
        while not self._closed.wait(LOOK_INTERVAL):
            if self._plain_line_due():
                work = next(reversed(tuple(self._work.values())), None)
                name = f"{self._stage}: " if self._stage else ""
                self.note(f"{name}working, {_clock(time.monotonic() - self._begun)}" if work is None else work.line())

    def _render(self) -> RenderableType:
        """The live part: a line for each piece of work, a second one where it has facts to tell."""
        bar_width = 32 if self.console.width >= WIDE else 16
        lines: list[RenderableType] = []
        for work in tuple(self._work.values()):
            line = Table.grid(*(Column(no_wrap=True) for _ in range(6)), padding=(0, 1))
            label = Text(clean(work.label))
            label.truncate(max(10, self.console.width - bar_width - NUMBERS_WIDTH), overflow="ellipsis")
            bar = ProgressBar(total=work.total or None, completed=work.done, width=bar_width, pulse=not work.total)
            elapsed = _clock(time.monotonic() - work.begun)
            line.add_row(work.spinner, label, bar, work.count(), elapsed, Text(work.eta(), "cyan"))
            lines.append(line)
            if work.facts:
                lines.append(Text(f"  {work.facts}", "cyan", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


def _preference(record: Mapping[str, Any]) -> str:
    """How far chosen and rejected replies are apart, where a record says so."""
    if "rewards/margins" not in record:
        return ""
    accuracy = f"  accuracy {record['rewards/accuracies']:.0%}" if "rewards/accuracies" in record else ""
    return f"  margin {record['rewards/margins']:+.3f}{accuracy}"


def _short(number: int, scale: int) -> str:
    return f"{number / 1e6:.1f}M" if scale >= 1_000_000 else f"{number:,}"


def _clock(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
