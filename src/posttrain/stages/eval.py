"""``kind: eval``: models are compared on held-out rows, prompts and benchmarks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain.artifacts import Manifest, StageDir
from posttrain.config import Problem
from posttrain.report.reading import Gap, Stage, parse
from posttrain.report.values import Section
from posttrain.stages.base import BASE, Context, StageKind
from posttrain.tasks.config import EvalSettings

if TYPE_CHECKING:
    from posttrain.model.lineage import Lineage


@dataclass(frozen=True, kw_only=True)
class EvalStage(EvalSettings, StageKind):
    """Compare models: held-out likelihood or held-out preferences, replies to fixed prompts, and benchmarks."""

    kind: Literal["eval"]

    compares_models: ClassVar[bool] = True

    @classmethod
    def keeps_ledger(cls, config: Mapping[str, Any]) -> bool:
        """Where held-out rows are scored."""
        return config.get("data", "") is not None

    @classmethod
    def sections(cls, stages: Sequence[Stage], gaps: list[Gap]) -> tuple[Section, ...]:
        """How models differ on held-out rows, on prompts and on benchmarks."""
        from posttrain.tasks.section import evaluation_sections

        return evaluation_sections(stages, gaps, {stage.name: _selection_notes(stage) for stage in stages})

    def problems(self, stages: Mapping[str, StageKind]) -> Iterable[Problem]:
        """Nothing to measure, a model named twice, a name that means two models or can't be used."""
        if self.data is None and self.prompts is None and not self.benchmarks:
            yield Problem((), "nothing to measure: give data, prompts or benchmarks")
        if self.data is not None and getattr(stages.get(self.data), "held_out_amount", None) == 0:
            yield Problem(("data",), f"{self.data!r} holds out no rows to measure on")
        for place, name in enumerate(self.models):
            if name in self.models[:place]:
                yield Problem(("models", place), f"{name!r} is listed twice")
        for name in self.others:
            if name == BASE or name in stages:
                wrong = f"{name!r} is a name of this recipe; give the model another one"
                yield Problem(("others", name), wrong)
            elif name not in self.models:
                yield Problem(("others", name), f"{name!r} is not one of this stage's models; add it to models")
        for where, names in (("benchmarks", self.benchmarks), ("others", self.others)):
            for name in names:
                if not re.fullmatch(r"\w[\w.-]{0,99}", name):
                    wrong = f"the name {name!r} can't be used; use letters, digits, '-', '_' and '.', starting with a letter or digit"
                    yield Problem((where, name), wrong)

    def check(self, context: Context) -> None:
        """Models and judges are what the benchmarks need; prompts, device and template can be used."""
        from posttrain.tasks.benchmarking import check_benchmarks
        from posttrain.tasks.prompts import load_prompts

        check_benchmarks(self.benchmarks, self.models, self.judge, f"stages.{context.name}")
        if self.prompts is not None:
            load_prompts(self.prompts)
        context.check_device(self.device)
        if self.template is not None:
            context.check_template(context.base_folder(), self.template)

    def run(self, context: Context) -> Mapping[str, Any]:
        """Measure all models."""
        from posttrain.tasks.evaluation import evaluate

        context.settle_threads()
        rows = None if self.data is None else context.run.stage(self.data).file("rows", "held_out.parquet")
        # read when their turn comes, and once: an identity is a hash over all weights
        contenders = {name: cache(partial(self._contender, context, name)) for name in self.models}
        requests = context.run.path / ".requests.sqlite"
        stage, display = context.located(self), context.display
        return evaluate(stage, context.out, rows, contenders, requests, context.seed, display, context.peers)

    def _contender(self, context: Context, name: str) -> Lineage:
        """What a model name means; a base without a template is spoken to as the stages that were trained from it."""
        from posttrain.model.companions import TEMPLATE_FILE
        from posttrain.model.targets import resolve_target

        if name in self.others:
            return resolve_target(self.others[name])
        lineage = context.lineage(name).spoken(self.template)
        if name != BASE or lineage.has_template:
            return lineage
        trained = (context.lineage(other).home / TEMPLATE_FILE for other in self.models if other in context.stages)
        own: Path | None = next((file for file in trained if file.is_file()), None)
        return lineage.spoken(own)


def _trained(stage: Stage, name: str) -> Stage | None:
    """Return a stage of the same run whose weights a stage has used; None where it did not train them."""
    folder = StageDir(stage.folder.path.parent / name)
    raw = folder.manifest()
    if raw is None or raw.get("kind") != "train":
        return None
    manifest = parse(Manifest, raw, folder.file("manifest.json"))
    return Stage(name, manifest.kind, manifest.status, manifest, None, folder)


def _selection_notes(stage: Stage) -> list[str]:
    """Return a caution for each compared model whose weights were chosen on the rows it is now judged by."""
    from posttrain.train.section import read_training

    trained = [found for name in list(stage.config.get("models") or ())[1:] if (found := _trained(stage, str(name)))]
    return [
        f"The weights of {one.name} were chosen by their loss on these same rows, which flatters it a little."
        for one in trained
        if one.config.get("keep") == "best"
        and one.config.get("data") == stage.config.get("data")
        and len(read_training(one, []).held_out) > 2
    ]
