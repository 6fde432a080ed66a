"""Objectives: one small file each, the equation beside the code.

To add one, write its file (a configuration with ``name``, ``rows`` and ``loss``, like ``dpo.py``) and name it in one of the
two unions below. Recipes accept it and the contract tests (tests/contract/test_objectives.py) try it from then on.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator

from posttrain.objectives.dpo import DpoObjective
from posttrain.objectives.hinge import HingeObjective
from posttrain.objectives.ipo import IpoObjective
from posttrain.objectives.kto import KtoObjective
from posttrain.objectives.orpo import OrpoObjective
from posttrain.objectives.reward import RewardObjective
from posttrain.objectives.sft import SftObjective
from posttrain.objectives.simpo import SimpoObjective

PairObjective = DpoObjective | IpoObjective | SimpoObjective | OrpoObjective | HingeObjective
"""Those that compare the log-probabilities of two replies: ``loss(policy, reference, step_pairs)``."""

Objective = Annotated[SftObjective | PairObjective | KtoObjective | RewardObjective, Discriminator("name")]
"""What ``objective`` of a train stage may be, told apart by ``name``."""

__all__ = [
    "DpoObjective",
    "HingeObjective",
    "IpoObjective",
    "KtoObjective",
    "Objective",
    "OrpoObjective",
    "PairObjective",
    "RewardObjective",
    "SftObjective",
    "SimpoObjective",
]
