"""``kind: data``: rows are read, checked, filtered, split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.data.config import DataSettings
from posttrain.references import Gives
from posttrain.stages.base import Context, StageKind


@dataclass(frozen=True, kw_only=True)
class DataStage(DataSettings, StageKind):
    """Read and check rows, drop exact duplicates, run the chain of steps, and split."""

    kind: Literal["data"]

    @property
    def gives(self) -> Gives:
        """Rows to train on, and held-out ones."""
        return "rows"

    def run(self, context: Context) -> Mapping[str, Any]:
        """Write the rows."""
        from posttrain.data.pipeline import prepare
        from posttrain.data.section import write_profile_page

        out, display = context.out, context.display
        result = prepare(self, out, context.seed, context.resolve_data, display.tick)
        if self.profile:
            write_profile_page(out.path, f"{context.run.path.name}: {context.name}")
        test = f", {result['test_rows']:,} to test" if "test_rows" in result else ""
        display.note(f"{result['train_rows']:,} rows to train on, {result['held_out_rows']:,} held out{test}")
        return result
