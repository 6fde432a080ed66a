"""``kind: data``: rows are read, checked, filtered, split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain.data.config import DataSettings
from posttrain.references import Gives
from posttrain.stages.base import Context, StageKind

if TYPE_CHECKING:
    from posttrain.report.reading import Gap, Stage
    from posttrain.report.values import Section


@dataclass(frozen=True, kw_only=True)
class DataStage(DataSettings, StageKind):
    """Read and check rows, drop exact duplicates, run the chain of steps, and split."""

    kind: Literal["data"]

    accounts_for_rows: ClassVar[bool] = True

    @classmethod
    def sections(cls, stages: Sequence[Stage], gaps: list[Gap]) -> tuple[Section, ...]:
        """What was read and what it consists of."""
        from posttrain.data.section import data_sections

        return data_sections(stages, gaps)

    @property
    def gives(self) -> Gives:
        """Rows to train on, and held-out ones."""
        return "rows"

    def run(self, context: Context) -> Mapping[str, Any]:
        """Write the rows."""
        from posttrain.data.pipeline import prepare
        from posttrain.data.section import write_profile_page

        out, display = context.out, context.display
        held_out_files = self._held_out_before(context)
        result = prepare(context.located(self), out, context.seed, context.resolve_data, display.tick, held_out_files)
        if self.profile:
            write_profile_page(out.path, f"{context.run.path.name}: {context.name}")
        test = f", {result['test_rows']:,} to test" if "test_rows" in result else ""
        display.note(f"{result['train_rows']:,} rows to train on, {result['held_out_rows']:,} held out{test}")
        return result

    def _held_out_before(self, context: Context) -> list[Path]:
        """Rows of stages, where nothing else is read and nothing says what to hold out: what these stages held out stays so."""
        if self.held_out is not None or self.splits or any(s.path not in context.stages for s in self.sources):
            return []
        files = (context.run.stage(source.path).file("rows", "held_out.parquet") for source in self.sources)
        return [path for path in files if path.exists()]
