"""``kind: synth``: rows are made by a model (docs/synthesis.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain.artifacts import StageDir
from posttrain.config import Problem
from posttrain.references import Gives
from posttrain.stages.base import BASE, Context, StageKind
from posttrain.synth.config import SynthSettings

if TYPE_CHECKING:
    from posttrain.report.values import Section


@dataclass(frozen=True, kw_only=True)
class SynthStage(SynthSettings, StageKind):
    """Make rows with a model: instructions from seeds, topics or nothing, or preferences among replies."""

    kind: Literal["synth"]

    accounts_for_rows: ClassVar[bool] = True

    @property
    def gives(self) -> Gives:
        """The rows."""
        return "rows"

    def problems(self, stages: Mapping[str, StageKind]) -> Iterable[Problem]:
        """Who is asked can do what is asked."""
        yield from self.pipeline.problems(self.writer)

    def check(self, context: Context) -> None:
        """Prompts, seeds and topics can be read, and the recipe's own model is there where it is asked."""
        from posttrain.synth.job import sources_of
        from posttrain.synth.prompts import load_prompts

        load_prompts(self.language, self.prompts)
        self.pipeline.seeds(self.language)
        if any(source.local == BASE for source in sources_of(self).values()):
            context.base_folder()

    def run(self, context: Context) -> Mapping[str, Any]:
        """Make the rows."""
        from posttrain.synth.job import synthesise

        context.settle_threads()
        requests = context.run.path / ".requests.sqlite"
        return synthesise(
            context.located(self),
            context.out,
            context.name,
            requests,
            context.seed,
            context.resolve_data,
            context.display,
            context.peers,
        )

    @staticmethod
    def section(out: StageDir) -> Section:
        """What was made, and what became of every answer."""
        from posttrain.synth.section import synth_section

        return synth_section(out)
