"""The configuration of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Lt, MinLen

from posttrain.judge.config import JudgeConfig
from posttrain.references import NamesEntry, NamesFile, NamesModel, NamesStage
from posttrain.tasks import AnyBenchmark


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Compare models: held-out likelihood or held-out preferences, replies to fixed prompts, and benchmarks."""

    models: Annotated[tuple[Annotated[str, NamesStage("model", unless_in="others")], ...], MinLen(1)]
    """``base``, names of train stages and of ``others``; later ones are compared with the first."""
    data: Annotated[str, NamesStage("rows")] | None = None
    """The data stage whose held-out rows are scored: conversations by their likelihood, pairs by which reply is favoured, single labelled replies by how well their labels are told apart; null = none."""
    others: dict[str, Annotated[str, NamesModel()]] = field(default_factory=dict)
    """Models from outside the recipe by name: a folder, an adapter, ``runs/NAME/STAGE``, an asset or a hub name. They answer prompts and benchmarks; held-out rows are not scored under them (their tokens differ)."""
    reference: Annotated[str, NamesEntry("models")] | None = None
    """Pairs only: the model whose log-probabilities rewards are measured from; null = the first of ``models``."""
    prompts: Annotated[str, NamesFile(builtin="tasks/prompts.yaml")] | None = "builtin"
    """``builtin`` (posttrain's own 36+ prompts), a YAML file of the same form, or null for no replies."""
    max_new_tokens: Annotated[int, Ge(1)] = 96
    """Longest reply to these prompts in tokens."""
    benchmarks: dict[str, AnyBenchmark] = field(default_factory=dict)
    """What else is measured, each under a name of yours (letters, digits, ``-`` and ``_``); see docs/benchmarks.md."""
    judge: JudgeConfig | None = None
    """Who judges replies, where a benchmark asks a judge."""
    slots: Annotated[int, Ge(1)] = 64
    """Replies that are written at once."""
    batch_tokens: Annotated[int, Ge(1)] = 4096
    """Tokens computed at once when scoring held-out rows."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    resamples: Annotated[int, Ge(100)] = 10_000
    """Bootstrap resamples."""
    max_length: Annotated[int, Ge(2)] = 1024
    """Longest held-out conversation in tokens; longer ones are dropped and counted."""
    template: Annotated[str, NamesFile()] | None = None
    """A Jinja chat template file for all models of the recipe; null = each is given rows and prompts as it was trained."""
    device: str = "auto"
