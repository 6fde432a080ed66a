"""``kind: profile``: what rows are like, or what a data stage did to them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, MinLen

from posttrain.artifacts import StageDir
from posttrain.data.config import Source
from posttrain.references import NamesModel
from posttrain.stages.base import Context, StageKind

if TYPE_CHECKING:
    from posttrain.report.values import Section

READ = ".read"


@dataclass(frozen=True, kw_only=True)
class ProfileStage(StageKind):
    """Look at rows without changing them: lengths, turns, languages, sources, and of a data stage what every step removed."""

    kind: Literal["profile"]
    sources: Annotated[tuple[Source, ...], MinLen(1)]
    """Rows of any known format; a data stage alone is shown with its chain of steps."""
    model: Annotated[str, NamesModel()] | None = None
    """Count tokens with this model's tokenizer and chat template; null = with one that is the same for all."""
    workers: Annotated[int, Ge(1)] = 1
    """Processes; the result is the same."""

    def run(self, context: Context) -> Mapping[str, Any]:
        """Write profile.json and profile.html."""
        from posttrain.data.pipeline import gather, nothing_usable
        from posttrain.data.places import SIDES, written_rows
        from posttrain.data.profile import COMPARISON, profile
        from posttrain.data.section import write_profile_page
        from posttrain.data.steps import StepRun
        from posttrain.data.streams import printable

        out, sources, counter = context.out, context.located(self).sources, COMPARISON
        if self.model is not None:
            from posttrain.data.token_lengths import model_counter
            from posttrain.model.targets import resolve_target

            counter = model_counter(resolve_target(self.model).template, self.model)
        folder = Path(sources[0].path)
        written = written_rows(folder, None) if len(sources) == 1 and folder.is_dir() else None
        chain = out.file(READ) if written is None else written.parents[1]
        if written is None:
            shutil.rmtree(chain, ignore_errors=True)
            rows_file, ledger = gather(sources, chain, StepRun(context.resolve_data, progress=context.display.tick))
            ledger.write(chain / "ledger.json")
            ledger.write(out.file("ledger.json"))
            if not ledger.steps[-1].rows_out:
                raise nothing_usable(ledger, [source.path for source in sources], out.file("ledger.json"))
            files = [rows_file]
        else:
            files = [path for path in (written.with_name(f"{side}.parquet") for side in SIDES) if path.exists()]
        found = profile(
            files, out.path, counter=counter, chain=chain, workers=self.workers, progress=context.display.tick
        )
        shutil.rmtree(out.file(READ), ignore_errors=True)
        write_profile_page(out.path, printable(", ".join(Path(source.path).name for source in self.sources)))
        return {"rows": found.rows}

    @staticmethod
    def section(out: StageDir) -> Section:
        """The rows in a few sentences, and every table and chart of the profile."""
        from posttrain.data.section import counted, paragraph, read_profile, sections
        from posttrain.report.values import Section, Text

        found, name = read_profile(out.path), out.path.name
        return Section(
            f"Profile: {name}",
            name,
            (Text(counted(found), "aside"), *sections(found, f"{name}-")),
            summary=paragraph(found),
        )
