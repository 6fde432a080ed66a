"""A process that has imported everything and forks one training process per line of its standard input.

Run by test_kill.py: a fork costs milliseconds where a fresh interpreter would cost seconds of imports, and the test
kills the forks with SIGKILL. Input: JSON {"model", "out", "max_steps", "die_in_save", "objective"}; output: the pid, then the exit status.
"""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forking import serve_forks
from posttrain.artifacts import StageDir
from posttrain.encode.preferences import PairTokens, with_reply_of
from posttrain.model.config import LoraAdapter
from posttrain.objectives import DpoObjective, SftObjective
from posttrain.train import checkpoint
from posttrain.train.config import TrainSettings
from posttrain.train.loop import TrainInputs, train
from posttrain.train.tasks import Unit
from posttrain.types import Tokens


def work(order: dict[str, Any]) -> None:
    """One training process, from its start to its end or to its death."""
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    examples = []
    for number, length in enumerate(draw.integers(4, 30, 50)):
        weights_T = np.zeros(length, np.float32)
        weights_T[length // 2 :] = 1
        examples.append(Tokens(draw.integers(3, 199, length).astype(np.int32), weights_T, str(number)))
    name = order.get("objective", "sft")
    objective = {"sft": SftObjective(), "dpo": DpoObjective()}[name]
    units: list[Unit] = [*examples]
    if name == "dpo":  # the next example's reply to the same prompt is the rejected one
        units = [PairTokens(a, with_reply_of(a, b), a.row_id) for a, b in itertools.pairwise(examples)]
    stage = TrainSettings(
        objective=objective,
        adapter=LoraAdapter(rank=8, dropout=0.1 if name == "sft" else 0.0),
        dtype="fp32",
        device="cpu",
        batch_size=4,
        micro_batch_tokens=40,
        epochs=10_000,
        max_steps=order["max_steps"],
        evaluate_every=7,
        checkpoint_every=1,
        learning_rate=3e-3,
    )
    if order.get("die_in_save"):
        _die_in_save(*order["die_in_save"])
    inputs = TrainInputs(Path(order["model"]), units[:45], held_out=units[45:])
    train(stage, inputs, StageDir(Path(order["out"])), seed=1, digest="d")


def _die_in_save(which: int, where: str) -> None:
    """Die of SIGKILL in the given checkpoint write (counted from 1): ``half`` of the file written, or all ``whole``."""
    real, count = checkpoint.save_file, 0

    def save(tensors: Any, path: Path, metadata: Any) -> None:
        nonlocal count
        count += 1
        real(tensors, path, metadata)
        if count == which:
            if where == "half":
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = save


serve_forks(work)
