"""The kinds of stages. To add one, write its file (`posttrain.stages.base.StageKind`) and name it in this table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Discriminator

from posttrain.stages.arena import ArenaStage
from posttrain.stages.base import StageKind
from posttrain.stages.data import DataStage
from posttrain.stages.eval import EvalStage
from posttrain.stages.export import ExportStage
from posttrain.stages.judge import JudgeStage
from posttrain.stages.online import OnlineStage
from posttrain.stages.profile import ProfileStage
from posttrain.stages.report import ReportStage
from posttrain.stages.score import ScoreStage
from posttrain.stages.sweep import SweepStage
from posttrain.stages.synth import SynthStage
from posttrain.stages.train import TrainStage
from posttrain.stages.tune import TuneStage

KINDS: tuple[type[StageKind], ...] = (
    DataStage,
    ProfileStage,
    ScoreStage,
    SynthStage,
    TrainStage,
    OnlineStage,
    EvalStage,
    JudgeStage,
    ArenaStage,
    ExportStage,
    SweepStage,
    TuneStage,
    ReportStage,
)

if TYPE_CHECKING:
    AnyStage = StageKind
else:
    AnyStage = Annotated[Union[KINDS], Discriminator("kind")]  # noqa: UP007 - of a tuple
    """A stage in a recipe, told apart by ``kind``."""
