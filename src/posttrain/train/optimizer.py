"""AdamW with decay on matrices only, and gradient clipping without a host synchronisation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from posttrain.train.config import TrainSettings


def decayed(name: str, parameter: Tensor, embeddings: set[int]) -> bool:
    """Whether a parameter gets weight decay: matrices do; biases, norms and embeddings do not."""
    return parameter.dim() >= 2 and id(parameter) not in embeddings


def build_optimizer(model: nn.Module, trained: Mapping[str, Tensor], settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101) in two groups, fused where torch has a fused kernel."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups = [
        {"params": [p for n, p in trained.items() if decayed(n, p, embeddings)], "weight_decay": settings.weight_decay},
        {"params": [p for n, p in trained.items() if not decayed(n, p, embeddings)], "weight_decay": 0.0},
    ]
    device = next(iter(trained.values())).device
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.peak_learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=device.type in ("cpu", "cuda"),
    )


def clip_gradients(parameters: list[Tensor], max_norm: float | None) -> Tensor:
    """Scale all gradients so that their global 2-norm is at most ``max_norm``; returns the norm before, on the device."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    if max_norm is not None:
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
