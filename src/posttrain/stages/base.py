"""What a kind of stage is, and what it is given to run.

A kind is one class in one file: a frozen dataclass whose fields are its keys in a recipe, and what it does with them. Fields that
name something carry a marker (`posttrain.references`); graph, checks, paths and identity of a stage follow from the markers alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, get_args, get_type_hints

from posttrain import assets
from posttrain.artifacts import RunDir, StageDir, read_json, write_json
from posttrain.config import Problem
from posttrain.errors import ConfigError, PosttrainError, RunError
from posttrain.parallel.peers import ALONE, Peers
from posttrain.references import Gives, NamesFile, NamesStage, Reference, with_references
from posttrain.types import Display

if TYPE_CHECKING:
    from posttrain.model.lineage import Lineage
    from posttrain.report.reading import Gap, Stage
    from posttrain.report.values import Section

K = TypeVar("K")

THREADS_FILE = ".threads.json"
"""In the run folder: how many threads it computes with."""
GoOn = Callable[[StageDir, int], bool]
"""(folder of a train stage, step) -> whether to go on."""
BASE = "base"
"""The recipe's model, wherever a stage that hands on a model could be named."""


def always(out: StageDir, step: int) -> bool:
    """Go on, whatever was measured."""
    return True


class Wanted(NamedTuple):
    """A variation of a recipe that is asked for: as far as ``stage`` needs it."""

    stage: str
    changes: Mapping[str, Any]
    """Settings that are other than in the recipe: ``sft.learning_rate``: 1e-4."""
    seed: int | None = None
    """Of the trainings that what is varied reaches, and of what reads them; None = the recipe's."""
    varied: frozenset[str] = frozenset()
    """The stages that a search varies, in this variation or in others."""


class Variation(Protocol):
    """The recipe with other settings, as far as one stage of it needs: its stages that differ stand in folders of their own."""

    @property
    def run(self) -> RunDir:
        """Where each of its stages stands."""

    def check(self) -> None:
        """Find out before anything runs what can't work. Raises a PosttrainError."""

    def execute(self, go_on: GoOn = always) -> None:
        """Run what is not finished. Raises a PosttrainError; EndedEarlyError where ``go_on`` says no."""


class Variations(Protocol):
    """Makes and runs variations of a recipe."""

    def of(self, wanted: Wanted) -> Variation:
        """The recipe with the wanted settings. Raises ConfigError."""

    def side_by_side(self, several: Sequence[Wanted], processes: int) -> Iterator[tuple[int, PosttrainError | None]]:
        """Run several at once, what they share before that; yield the place of each that ended, with its error."""


@dataclass(frozen=True)
class Context:
    """What a stage is run in."""

    name: str
    run: RunDir
    seed: int
    identity: str
    """Digest of all that decides the stage's result."""
    model: str
    """The recipe's model, as the recipe names it."""
    stages: Mapping[str, StageKind]
    """All stages of the recipe."""
    display: Display
    base_folder: Callable[[], Path]
    """The local folder of the recipe's model, fetched and checked at its first use."""
    variations: Variations
    """The recipe with other settings, for stages that search."""
    go_on: GoOn = always
    """Asked after every measurement of held-out rows whether the training is worth going on with."""
    peers: Peers = ALONE
    """The processes that work on the run with this one."""

    @property
    def out(self) -> StageDir:
        """The stage's own folder."""
        return self.run.stage(self.name)

    def lineage(self, name: str) -> Lineage:
        """What a model name of the recipe means: the base, what a stage has written, or a model from outside."""
        from posttrain.model.lineage import Lineage, stage_lineage
        from posttrain.model.targets import continued

        if name == BASE:
            return Lineage(self.base_folder())
        inside = name in self.stages
        return stage_lineage(self.run.stage(name), self.base_folder) if inside else continued(name, self.model)

    def located(self, stage: K) -> K:
        """A configuration whose texts all name things on this disk: files of the hub are fetched, stages are their folders."""

        def place(one: Reference) -> str:
            if isinstance(one.marker, NamesFile) and assets.is_hub_file(one.text):
                return str(assets.hub_file(one.text))
            if not isinstance(one.marker, NamesStage) or one.marker.or_outside is None:
                return one.text
            if one.marker.or_base and one.text == BASE:
                return str(self.base_folder())
            inside = one.text in self.stages and one.text != self.name
            return str(self.run.stage(one.text).path) if inside else one.text

        return with_references(stage, place)

    def check_device(self, name: str) -> None:
        """Raise ConfigError where a device is not here."""
        from posttrain.model.hardware import resolve_device

        if name in ("auto", "cpu"):
            return
        try:
            resolve_device(name)
        except ConfigError as error:
            raise ConfigError(error.problem, where=f"stages.{self.name}.device", fix=error.fix) from error

    def settle_threads(self) -> None:
        """Compute with as many threads as are fastest here now. Measured once a run and kept with it, because the last bits depend on them.

        ``OMP_NUM_THREADS`` decides where it is set.
        """
        if "OMP_NUM_THREADS" in os.environ:
            return
        import torch

        from posttrain.model.hardware import thread_speeds

        kept = self.run.path / THREADS_FILE
        if not kept.exists():
            speeds = thread_speeds(torch.get_num_threads())
            threads = min(speeds, key=lambda number: speeds[number])
            write_json(kept, {"threads": threads})
            if threads < max(speeds):
                faster = speeds[max(speeds)] / speeds[threads]
                self.display.note(
                    f"computing with {threads} of {max(speeds)} threads: {faster:.1f} times as fast here now, where others are at work too"
                )
        torch.set_num_threads(read_json(kept)["threads"])

    def check_template(self, folder: Path, template: str | None) -> None:
        """Raise ModelError or TemplateError where a model's tokenizer or chat template can't be used."""
        from posttrain.encode.template import load_template, load_tokenizer  # a second to import

        load_template(load_tokenizer(folder), None if template is None else Path(template))

    def resolve_data(self, name: str) -> Path | None:
        """The file of a demo data set, fetched with progress; None where the name is none."""
        return assets.resolve_data(name, self.display.tick)


@dataclass(frozen=True, kw_only=True)
class StageKind:
    """A stage of a recipe; every kind says what concerns it."""

    kind: str

    reads_all: ClassVar[bool] = False
    """Whether it reads what all other stages have written, is never unchanged, and stands alone in its recipe."""

    goes_through: ClassVar[bool] = False
    """Whether what it runs is finished or not by itself, so that it is always gone through, and what is there is kept."""

    compares_models: ClassVar[bool] = False
    """Whether its section says how models differ."""

    accounts_for_rows: ClassVar[bool] = False
    """Whether it keeps a ledger, whatever its configuration."""

    is_shared: ClassVar[bool] = False
    """Whether several processes work on it: then the others `join` it while rank 0 runs it."""

    @classmethod
    def kind_name(cls) -> str:
        """Return what ``kind`` is in a recipe."""
        name: str = get_args(get_type_hints(cls)["kind"])[0]
        return name

    @classmethod
    def keeps_ledger(cls, config: Mapping[str, Any]) -> bool:
        """Whether a stage with this configuration has to account for rows."""
        return cls.accounts_for_rows

    @classmethod
    def sections(cls, stages: Sequence[Stage], gaps: list[Gap]) -> tuple[Section, ...]:
        """What the report says of all stages of this kind, which have begun; what is absent or damaged becomes a gap.

        A kind that only has something to say of each stage for itself says it in ``section``.
        """
        from posttrain.report.reading import Gap

        found = []
        for stage in stages:
            try:
                found.append(cls.section(stage.folder))
            except (RunError, OSError) as error:
                if stage.status == "complete":
                    gaps.append(Gap(stage.name, "damaged", f"Stage {stage.name} can't be shown: {error}"))
        return tuple(section for section in found if section is not None)

    @property
    def gives(self) -> Gives | None:
        """What other stages may name it for."""
        return None

    def problems(self, stages: Mapping[str, StageKind]) -> Iterable[Problem]:
        """What is wrong with its settings beside what their types and markers say; paths begin at the stage."""
        return ()

    def settled(self) -> Self:
        """The stage with what depends on other settings written out."""
        return self

    def check(self, context: Context) -> None:
        """Find out before any stage runs what can't work. Raises a PosttrainError."""

    def run(self, context: Context) -> Mapping[str, Any]:
        """Do it, or go on where it was cut, and return the stage's ``result`` (docs/run-folder.md)."""
        raise NotImplementedError

    def join(self, context: Context) -> None:
        """Do the part of a process beside rank 0. ``context.out`` is a folder that nobody reads and that is removed."""
        raise NotImplementedError

    @staticmethod
    def section(out: StageDir) -> Section | None:
        """What a page says of a stage of this kind, from its artefacts only; None where it has no part of its own."""
        return None
