"""Objectives: one small file each, the equation beside the code.

To add one, write its file (a configuration with ``name``, ``row_kind`` and ``loss``, like ``dpo.py``) and name it in the
union below. Recipes accept it and the contract tests (tests/contract/test_objectives.py) try it from then on.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Discriminator

from posttrain.objectives.dpo import DpoObjective
from posttrain.objectives.hinge import HingeObjective
from posttrain.objectives.ipo import IpoObjective
from posttrain.objectives.kto import KtoObjective
from posttrain.objectives.orpo import OrpoObjective
from posttrain.objectives.reward import RewardObjective
from posttrain.objectives.sft import SftObjective
from posttrain.objectives.simpo import SimpoObjective
from posttrain.types import RowKind

Objective = Annotated[
    SftObjective
    | DpoObjective
    | IpoObjective
    | SimpoObjective
    | OrpoObjective
    | HingeObjective
    | KtoObjective
    | RewardObjective,
    Discriminator("name"),
]
"""What ``objective`` of a train stage may be, told apart by ``name``."""


def default_objective(row_kind: RowKind = "conversations") -> Objective:
    """The first of the union that learns from rows of this kind, with its own defaults."""
    objective: Objective = next(kind() for kind in get_args(get_args(Objective)[0]) if kind.row_kind == row_kind)
    return objective
