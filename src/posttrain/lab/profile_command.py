"""``posttrain data profile FILES... -o DIR``: what rows are like, or what a data stage of a run did to them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType

from posttrain import assets
from posttrain.artifacts import RunDir
from posttrain.data.config import Source
from posttrain.data.pipeline import gather, nothing_usable
from posttrain.data.places import SIDES, written_rows
from posttrain.data.profile import COMPARISON, profile
from posttrain.data.steps import StepRun
from posttrain.data.streams import printable
from posttrain.lab.display import Display

READ = ".read"


def run_profile(
    sources: Sequence[Source], out: Path, model: str | None, workers: int, console: Console
) -> tuple[Path, RenderableType]:
    """Profile files of rows, or the data stage of a run with its chain; returns the page and the table for the terminal."""
    from posttrain.data.section import profile_page, write_profile_page  # steps draw no charts
    from posttrain.report import terminal

    stage = Path(sources[0].path)
    written = written_rows(stage, None) if len(sources) == 1 and stage.is_dir() else None
    counter = COMPARISON
    if model is not None:
        from posttrain.lab.lengths import model_counter
        from posttrain.model.targets import resolve_target

        counter = model_counter(resolve_target(model).template, model)
    with RunDir(out).lock(), Display(console) as display:
        if written is not None:
            chain = written.parents[1]
            files = [path for path in (written.with_name(f"{side}.parquet") for side in SIDES) if path.exists()]
        else:
            chain = out / READ
            shutil.rmtree(chain, ignore_errors=True)
            rows_file, ledger = gather(sources, chain, StepRun(assets.resolve_data, progress=display.tick))
            files = [rows_file]
            ledger.write(chain / "ledger.json")
            if not (out / "manifest.json").exists():
                ledger.write(out / "ledger.json")
            if not ledger.steps[-1].rows_out:
                raise nothing_usable(ledger, [source.path for source in sources], out / "ledger.json")
        found = profile(files, out, counter=counter, chain=chain, workers=workers, progress=display.tick)
        shutil.rmtree(out / READ, ignore_errors=True)
    title = printable(", ".join(Path(source.path).name for source in sources))
    page = profile_page(found, title)
    return write_profile_page(out, title), Group(terminal.page(page), *map(terminal.section, page.sections))
