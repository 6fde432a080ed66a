"""Weights that are divided among processes: FSDP2 (Zhao et al. 2023, arXiv:2304.11277), each layer a unit, gathered while it computes.

All that computes with a model asks `forward.through`, and so goes through one module around it, the root unit: it gathers what lies
outside the layers (embeddings, last norm, output head), which our own code reads past the model's forward.

Every forward pass of a divided model is a collective: all processes make the same number of them (`forward.rounds`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from posttrain.errors import TrainingError
from posttrain.model.config import Shard
from posttrain.model.forward import Shell, body, causal_lm, set_shell, shell_of
from posttrain.parallel.peers import Peers


class _Root(nn.Module):
    """The unit around a model: whatever it is asked to do, it does while its own weights are whole."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        """Do it."""
        return work()


def divide(
    model: nn.Module, shard: Shard, compute_dtype: torch.dtype, device: torch.device, peers: Peers, *, adapter: bool
) -> None:
    """Divide the weights of a model among the processes, in place. fp32 weights are gathered, and computed with, in the compute type.

    ``adapter``: whether an adapter trains; then gradients are reduced once a step, because they are small. Those of all weights are
    reduced and divided in every micro-batch: whole ones would take the memory that dividing saves.
    """
    from torch.distributed.device_mesh import init_device_mesh  # half a second to import
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    if shard.cpu_offload:
        _check_room(model, peers.size)
    mesh = init_device_mesh(device.type, (peers.size,), mesh_dim_names=("processes",))
    masters = all(p.dtype == torch.float32 for p in model.parameters())
    narrow = compute_dtype if masters and compute_dtype != torch.float32 else None
    how: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32),
        "offload_policy": CPUOffloadPolicy() if shard.cpu_offload else OffloadPolicy(),
    }
    for layer in _layers(model):
        fully_shard(layer, reshard_after_forward=shard.reshard_after_forward, **how)
    root = fully_shard(_Root(model), reshard_after_forward=False, **how)
    set_shell(model, Shell(root, peers, reduces_at_end=adapter))


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the decoder: the units that are gathered one after the other."""
    names = set(getattr(causal_lm(model), "_no_split_modules", None) or ())
    found = [module for module in body(model).modules() if type(module).__name__ in names]
    if found:
        return found
    lists = [module for module in body(model).modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda one: sum(p.numel() for p in one.parameters()), default=[]))


def _check_room(model: nn.Module, processes: int) -> None:
    """Raise TrainingError where the computer's memory can't take what is kept out of the device's."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    needed = sum(p.nbytes for p in model.parameters()) + 3 * 4 * trained  # gradients and the two moments
    free = psutil.virtual_memory().available
    if needed / processes > free:
        raise TrainingError(
            f"shard.cpu_offload keeps {needed / processes / 1e9:.1f} GB a process in this computer's memory, and {free / 1e9:.1f} GB are free",
            fix="more processes, an adapter instead of all weights, or no cpu_offload",
        )


def reduce_after(model: nn.Module, *, last: bool) -> None:
    """Before a micro-batch: whether its backward pass reduces the gradients."""
    shell = shell_of(model)
    if shell is not None:
        shell.root.set_requires_gradient_sync(last or not shell.reduces_at_end)


def unaveraged(model: nn.Module, loss: Tensor) -> Tensor:
    """The loss to differentiate: FSDP2 takes the mean of the processes' gradients where the step's is their sum."""
    shell = shell_of(model)
    return loss if shell is None else loss * shell.peers.size


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts; collective where it is divided."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


@torch.no_grad()
def whole_on_cpu(tensors: Mapping[str, Tensor], *, keeps: bool = True) -> dict[str, Tensor]:
    """All of them whole, in the computer's memory, where ``keeps`` says so; one after the other, so that no device holds more than one. Collective."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keeps:
            found[name] = full.cpu().contiguous()
    return found
