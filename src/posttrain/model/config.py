"""What of a model is trained. No torch here: recipes are parsed without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt


@dataclass(frozen=True, kw_only=True)
class FullWeights:
    """Train every weight (fp32 master weights, whatever the compute type)."""

    name: Literal["full"] = "full"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Weights, gradients and optimizer divided among the processes of a run (FSDP2); one process has them whole."""

    reshard_after_forward: bool = True
    """Gather a layer's weights again for its backward pass: less memory, half as much communication more."""
    cpu_offload: bool = False
    """Keep this process's part in the computer's memory (CUDA only)."""


@dataclass(frozen=True, kw_only=True)
class LoraAdapter:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), defined, saved and loaded in PEFT's format."""

    name: Literal["lora"] = "lora"
    rank: Annotated[int, Ge(1)] = 16
    """Rank r of the update B A."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """Numerator of the scale: alpha / r, or alpha / sqrt(r) with rslora."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout on the input of A."""
    targets: str | tuple[str, ...] = "all-linear"
    """``all-linear`` (every linear layer but the output head and the routers of experts) or a list of module name endings."""
    rslora: bool = False
    """Rank-stabilised scale (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Weight-decomposed update (Liu et al. 2024, arXiv:2402.09353)."""
    quantize: Literal["nf4"] | None = None
    """``nf4`` keeps the frozen weights under the adapter in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314; extra ``qlora``)."""

    def __post_init__(self) -> None:
        if self.quantize is not None and self.dora:
            raise ValueError(
                "dora needs the norms of the weights at every step, which 4 bits do not give: leave out dora or quantize"
            )
