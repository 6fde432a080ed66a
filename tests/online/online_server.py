"""A process that has imported everything and forks one online training per line of its standard input; see tests/forking.py.

Input: JSON {"model", "out", "die": [phase, call] or null, ...settings}; the job dies of SIGKILL at the given call of the phase.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from forking import serve_forks
from own_replies import learn
from posttrain.objectives.policy_gradient import Rloo
from posttrain.online import loop, rollout
from posttrain.train import checkpoint

PHASES: dict[str, tuple[Any, str]] = {
    "sampling": (rollout, "decode"),
    "scoring": (loop, "score"),
    "learning": (loop, "optimizer_step"),
    "saving": (checkpoint, "save_file"),
}


def work(order: dict[str, Any]) -> None:
    """One online training, from its start to its end or to its death."""
    torch.set_num_threads(1)
    if order["die"]:
        phase, call = order["die"]
        _die_at(*PHASES[phase], call)
    learn(
        Path(order["model"]),
        Path(order["out"]),
        method=Rloo(beta=0.02),
        steps=order["steps"],
        passes=2,
        minibatches=2,
        evaluate_every=3,
        checkpoint_every=1,
    )


def _die_at(module: Any, name: str, call: int) -> None:
    real, count = getattr(module, name), 0

    def deadly(*given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if name == "decode":
            return _half(real(*given, **named)) if count == call else real(*given, **named)
        found = real(*given, **named)  # after the work, before what follows it
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(module, name, deadly)


def _half(tokens: Any) -> Any:
    """Some tokens of a reply, and death."""
    for number, new in enumerate(tokens):
        if number == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        yield new


serve_forks(work)
