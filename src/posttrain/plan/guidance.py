"""What published work advises, by what is trained and from how many rows: where a recipe begins, a search looks and a diagnosis draws its lines.

Nothing here is measured on the user's model: a value is a place to start, a range says what has been seen to work. Every range names its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from posttrain.errors import ConfigError
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.objectives.base import BaseObjective

Method = Literal["full", "lora", "qlora"]
"""Which weights are trained: all, an adapter, an adapter over 4-bit weights."""

LORA_GAIN = 10.0
"""An adapter's best learning rate over that of all weights: 9.8 fitted over 14 models (LoRA Without Regret, Schulman et al. 2025)."""
FEW_STEPS = 100
"""Below so many optimizer steps a run is short: an adapter's best rate is higher still (about 15 times that of all weights, same source)."""
SMALL_BATCH = 8
"""What is left of the batch where more would leave too few steps."""

_FULL_SFT = "a tenth of LoRA's (LoRA Without Regret, 2025); Tulu 3 (arXiv:2411.15124) 5e-6, Pareja et al. (arXiv:2412.13337) 2e-5"
_LORA_SFT = "Biderman et al. (arXiv:2405.09673): the highest stable rate within 1e-5 to 5e-4; LoRA Without Regret (2025) 2e-4 to 5e-4"
_QLORA_SFT = "Dettmers et al. (arXiv:2305.14314): 2e-4 up to 13B, 1e-4 above"
_PREFERENCES = "Tulu 3 (arXiv:2411.15124) 5e-7, SimPO (arXiv:2405.14734) 3e-7 to 1e-6 and incoherent at 1e-5, all weights; ten times that for an adapter"
_REWARD = "Llama 2 (arXiv:2307.09288) 5e-6 to 1e-5, all weights; ten times that for an adapter, as TRL's 1e-4"
_GRADIENTS = (
    "Tulu 3 (arXiv:2411.15124) 3e-7, Dr. GRPO (arXiv:2503.20783) 1e-6, PPO (arXiv:2403.17031) 3e-6, all weights; ten times that for an "
    "adapter (LoRA Without Regret, 2025), TRL's example 5e-5"
)
_ONLINE_PAIRS = "TRL's online DPO 5e-7, open-instruct's 8e-7 and 3e-6, all weights; ten times that for an adapter"
_EPOCHS = "under 5,000 rows 3 to 5, up to 50,000 1 to 3, above 1: Tulu 3 (arXiv:2411.15124) found 2 enough; watch the held-out loss"
_ONE_EPOCH = "one pass over comparisons, as in Tulu 3 (arXiv:2411.15124), SimPO (arXiv:2405.14734) and InstructGPT (arXiv:2203.02155)"
_BATCH = "an adapter loses at large batches, hardly at 32 (LoRA Without Regret, 2025); of small sets more would leave few steps"
_RANK = (
    "all linear layers matter more than the rank (arXiv:2305.14314); 8 to 64 is ample for sets below a million tokens"
)


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting: where to begin, between which values others worked, and who says so."""

    value: float
    low: float
    high: float
    source: str

    def holds(self, value: float) -> bool:
        """Whether a value lies in the range, its ends included (and what rounding does to them)."""
        return self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)


@dataclass(frozen=True, slots=True)
class Guidance:
    """Where to begin with one objective, one method and so many rows."""

    learning_rate: Advice
    epochs: Advice
    batch_size: Advice
    """Examples per optimizer step."""
    rank: Advice
    """Of an adapter; alpha stays 32 at every rank, so that rank and learning rate do not change together (LoRA Without Regret, 2025)."""


def method_of(adapter: LoraAdapter | FullWeights) -> Method:
    """Which weights a configuration trains."""
    if isinstance(adapter, FullWeights):
        return "full"
    return "lora" if adapter.quantize is None else "qlora"


def guidance(objective: BaseObjective, method: Method, rows: int) -> Guidance:
    """What published work advises.

    rows: training rows. Raises ConfigError where there are none.
    """
    if rows < 1:
        raise ConfigError("there is no guidance for no rows", fix="give rows to train on")
    compares = objective.row_kind != "conversations"
    return Guidance(
        learning_rate=_learning_rate(objective, method),
        epochs=Advice(1, 1, 1, _ONE_EPOCH) if compares else _epochs(rows),
        batch_size=Advice(16, 16, 32, _BATCH),
        rank=Advice(16, 8, 64, _RANK),
    )


def _learning_rate(objective: BaseObjective, method: Method) -> Advice:
    if objective.row_kind == "conversations":
        match method:
            case "full":
                return Advice(1e-5, 2e-6, 2e-5, _FULL_SFT)
            case "lora":
                return Advice(2e-4, 2e-5, 2e-4, _LORA_SFT)
            case "qlora":
                return Advice(2e-4, 1e-4, 2e-4, _QLORA_SFT)
    gain = 1.0 if method == "full" else LORA_GAIN
    if objective.row_kind == "prompts":
        if objective.needs_reference:
            return Advice(5e-7 * gain, 5e-7 * gain, 3e-6 * gain, _ONLINE_PAIRS)
        return Advice(1e-6 * gain, 3e-7 * gain, 3e-6 if method == "full" else 5e-5, _GRADIENTS)
    if objective.head == "score":
        return Advice(1e-5 * gain, 5e-6 * gain, 1e-5 * gain, _REWARD)
    return Advice(1e-6 * gain, 5e-7 * gain, 5e-6 * gain, _PREFERENCES)


def _epochs(rows: int) -> Advice:
    if rows < 5_000:
        return Advice(3, 3, 5, _EPOCHS)
    return Advice(2, 1, 3, _EPOCHS) if rows <= 50_000 else Advice(1, 1, 1, _EPOCHS)


def steps(rows: int, epochs: float, batch_size: int) -> int:
    """Optimizer steps of a run, as the training loop counts them: a last batch may be smaller."""
    return math.ceil(rows * epochs / batch_size)


@dataclass(frozen=True, slots=True)
class Start:
    """Where one run begins: the advice, bent where so few rows would give too few optimizer steps to learn anything."""

    learning_rate: float
    epochs: float
    batch_size: int
    steps: int
    few: bool
    """Whether it was bent: the batch may be smaller than advised, epochs and rate are the highest of their ranges."""


def start(advice: Guidance, rows: int) -> Start:
    """Where a run with so many rows begins."""
    rate, epochs, batch = advice.learning_rate.value, advice.epochs.value, int(advice.batch_size.value)
    found = steps(rows, epochs, batch)
    if found >= FEW_STEPS:
        return Start(rate, epochs, batch, found, few=False)
    epochs, batch = advice.epochs.high, SMALL_BATCH
    return Start(advice.learning_rate.high, epochs, batch, steps(rows, epochs, batch), few=True)
