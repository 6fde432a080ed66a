"""The few lines a run ends with in the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from posttrain.artifacts import RunDir
from posttrain.report import wording
from posttrain.report.facts import read_run
from posttrain.report.verdicts import Verdict
from posttrain.report.words import VERDICT_TEXT

STYLES: dict[Verdict, str] = {"improved": "bold blue", "worse": "bold yellow", "differs": "bold", "not shown": "dim"}


def terminal_summary(run: RunDir) -> RenderableType:
    """Return the headline numbers, the verdicts and what is missing, for ``rich.print``.

    Raises RunError where there is no run or no stage has started.
    """
    facts = read_run(run)
    table = Table.grid(padding=(0, 2))
    for tile in wording.tiles(facts):
        verdict = Text(VERDICT_TEXT[tile.verdict], STYLES[tile.verdict]) if tile.verdict else Text()
        table.add_row(Text(tile.label, "dim"), Text(tile.value, "bold"), Text(tile.note), verdict)
    lines: list[RenderableType] = [Text(f"{facts.title}: {facts.status}", "bold"), Padding(table, (0, 0, 0, 2))]
    lines += [Text(f"! {gap.text}", "yellow") for gap in facts.gaps]
    return Group(*lines)
