"""Prompts and replies of numbers, for tests of online learning on the small model, which has no tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.artifacts import StageDir
from posttrain.model.config import LoraAdapter
from posttrain.objectives.policy_gradient import Rloo
from posttrain.online.config import OnlineSettings
from posttrain.online.loop import OnlineInputs, train_online
from posttrain.online.prompts import Prompt
from posttrain.online.rollout import Drawing
from posttrain.online.scores import LengthScore, Scorer, Written, scorer_of
from posttrain.types import Message

END, PAD = 2, 2
"""As in SmolLM2: the token that ends a reply is also the one that others pad with."""


def text_of(ids: Sequence[int]) -> str:
    """The ids, but for the end."""
    return " ".join(str(token) for token in ids if token != END)


def number_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of three to twelve random ids, the end token among them as in templates that show a turn before."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        ids_T = draw.integers(3, 199, int(draw.integers(3, 13))).astype(np.int32)
        ids_T[1] = END
        found.append(Prompt(f"row-{number}", (Message("user", text_of(ids_T.tolist())),), ids_T))
    return found


def drawing_of(settings: OnlineSettings) -> Drawing:
    return Drawing([(END,)], text_of, settings.temperature, settings.max_new_tokens)


def make_settings(**changes: Any) -> OnlineSettings:
    """A small fp32 stage on the CPU, with changes by keyword."""
    options: dict[str, Any] = {
        "method": Rloo(beta=0.02),
        "scores": (LengthScore(name="length"),),
        "cut_replies": "score",
        "adapter": LoraAdapter(rank=4, alpha=8),
        "steps": 3,
        "prompts": 3,
        "replies": 3,
        "max_new_tokens": 8,
        "micro_batch_tokens": 60,
        "learning_rate": 5e-3,
        "dtype": "fp32",
        "device": "cpu",
    }
    return OnlineSettings(**options | changes)


def small_ids(one: Written) -> float:
    """Share of a reply's numbers that are below 60; 0 of an empty one."""
    numbers = [int(word) for word in one.reply.split()]
    return sum(number < 60 for number in numbers) / max(1, len(numbers))


def learn(
    model: Path, out: Path, value: Callable[[Written], Any] | Scorer = small_ids, held_out: int = 2, **changes: Any
) -> dict[str, Any]:
    """Run the loop over eight prompts of numbers. value: what a reply is worth."""
    settings, prompts = make_settings(**changes), number_prompts(8)
    scorer = value if isinstance(value, Scorer) else scorer_of({"own": value})
    kept = prompts[: len(prompts) - held_out]
    inputs = OnlineInputs(model, kept, drawing_of(settings), lambda policy: scorer, held_out=prompts[len(kept) :])
    return train_online(settings, inputs, StageDir(out), seed=1, digest="d")
