"""What a person sees while a recipe runs: one line a stage, live progress with loss, speed, ETA and memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display:
    """Progress of a run on a terminal; on anything else one plain line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", style="cyan"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._held_out: float | None = None
        self._last_plain_line = 0.0

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def stage(self, name: str, kind: str, state: str) -> None:
        """Announce a stage: ``running``, ``unchanged``, ``resuming``."""
        self._held_out = None
        style = "dim" if state == "unchanged" else "bold"
        self.console.print(f"[{style}]{name}[/] [dim]({kind})[/] {state}")

    def note(self, text: str) -> None:
        """One line about what was done."""
        self.console.print(f"  {text}", highlight=False, markup=False)

    def tick(self, label: str, done: int, total: int) -> None:
        """Progress of one piece of work; it disappears when done."""
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total or None, facts="")
        self._progress.update(self._tasks[label], completed=done, total=total or None)
        if total and done >= total:
            self._progress.remove_task(self._tasks.pop(label))

    def record(self, record: Mapping[str, Any]) -> None:
        """One metrics record of a training stage."""
        if record["split"] == "held_out":
            self._held_out = record["loss"]
            self.note(f"step {record['step']}: held-out loss {record['loss']:.4f}")
            return
        held_out = f" held-out {self._held_out:.3f}" if self._held_out is not None else ""
        facts = (
            f"loss {record['loss']:.3f}{held_out}  {record['tokens_per_second']:,.0f} tok/s  "
            f"{record['memory_bytes'] / 1e9:.2f} GB"
        )
        label, step, total = "training", record["step"], record["total_steps"]
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total, facts="")
        self._progress.update(self._tasks[label], completed=step, total=total, facts=facts)
        if step == total:
            self._progress.remove_task(self._tasks.pop(label))
        if self._progress.disable and (step in (1, total) or time.monotonic() - self._last_plain_line > 10):
            self._last_plain_line = time.monotonic()
            remaining = record["seconds"] / step * (total - step)
            self.note(f"step {step}/{total}  {facts}  eta {remaining:.0f} s")
