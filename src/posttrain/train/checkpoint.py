"""Checkpoints for exact resume: everything a step depends on, in one safetensors file, never pickle.

Two files take turns (``checkpoints/a.safetensors`` and ``b``), so a damaged newest one falls back to the one
before. What is not here is derived: the order of the data and the random numbers of a step are functions of the seed
and the step (see plan.py and loop.py).
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from posttrain.artifacts import atomic_path
from posttrain.errors import CheckpointError
from posttrain.parallel.peers import Peers

T = TypeVar("T")
SLOTS = ("a.safetensors", "b.safetensors")


@dataclass(frozen=True)
class Progress:
    """The small numbers of a run between two steps."""

    step: int = 0
    """Finished optimizer steps."""
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    """Training time so far, over all processes that worked on the run."""
    best_step: int = -1
    best_loss: float = float("inf")
    loss_to_beat: float = float("inf")
    """The held-out loss that the next one must undercut by ``min_improvement`` to count as improvement."""
    evaluations_without_improvement: int = 0
    stopped_early: bool = False


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimizer's state as flat names: ``exp_avg/<parameter>`` and so on. ``names``: id(parameter) -> name."""
    return {
        f"{key}/{names[id(parameter)]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], names: Mapping[int, str]
) -> None:
    """The inverse of `optimizer_tensors`."""
    states: dict[str, dict[str, Tensor]] = {}
    for flat, value in tensors.items():
        key, _, name = flat.partition("/")
        states.setdefault(name, {})[key] = value
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in states.get(names[id(parameter)], {}).items()
            }


def share_state(
    peers: Peers,
    trained: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    names: Mapping[int, str],
) -> None:
    """Put what rank 0 has restored, or begins with, into all processes."""
    if peers.size == 1:
        return
    with torch.no_grad():
        peers.spread(list(trained.values()))
    for optimizer in optimizers:
        kept = optimizer_tensors(optimizer, names)
        shapes = peers.said({flat: list(tensor.shape) for flat, tensor in kept.items()})
        state = {flat: kept.get(flat, torch.zeros(shape)) for flat, shape in sorted(shapes.items())}
        if not peers.leads:
            restore_optimizer(optimizer, state, names)
            state = optimizer_tensors(optimizer, names)
        peers.spread([state[flat] for flat in sorted(shapes)])


class DamagedError(CheckpointError):
    """This file is unreadable or not what was written; the other slot may still serve."""


@dataclass(frozen=True)
class Slots:
    """Places in a folder that take turns, so a damaged newest one falls back to the one before."""

    folder: Path
    names: tuple[str, ...]
    """Of files or folders."""
    dated: str = ""
    """The file of a folder whose time is its age."""

    @property
    def paths(self) -> list[Path]:
        """Where they are, written to or not."""
        return [self.folder / name for name in self.names]

    def exist(self) -> bool:
        """Whether there is a checkpoint to go on from, sound or not."""
        return any(path.exists() for path in self.paths)

    def older(self) -> Path:
        """The place to write to."""

        def age(path: Path) -> int:
            dated = path / self.dated
            return dated.stat().st_mtime_ns if dated.exists() else -1

        return min(self.paths, key=age)

    def newest(self, read: Callable[[Path], T], step: Callable[[T], int]) -> T | None:
        """What ``read`` gives for the newest whole checkpoint, which raises DamagedError for one that is not; None where there is none.

        A damaged one is passed over with a warning. Raises CheckpointError where all are damaged.
        """
        found: list[T] = []
        damaged: list[DamagedError] = []
        for path in self.paths:
            try:
                found += [read(path)] if path.exists() else []
            except DamagedError as error:
                damaged.append(error)
        if not found and damaged:
            fix = f"remove {self.folder} to start this stage again"
            raise CheckpointError(f"no usable checkpoint: {damaged[0]}", fix=fix)
        for damage in damaged:
            warnings.warn(f"{damage}; going on from the checkpoint before it", stacklevel=3)
        return max(found, key=step, default=None)

    def check_own(self, path: Path, digest: str, own: str) -> None:
        """Raise CheckpointError where a checkpoint has another digest than this run."""
        if digest != own:
            raise CheckpointError(
                "this checkpoint belongs to another configuration, model or data",
                where=str(path),
                fix=f"remove {self.folder} to start this stage again, or restore the configuration it was made with",
            )


class Checkpoints:
    """The checkpoint files of one training stage."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.digest, self._slots = digest, Slots(folder, SLOTS)

    def exist(self) -> bool:
        """Whether there is a checkpoint to go on from, sound or not."""
        return self._slots.exist()

    def save(self, progress: Progress, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> float:
        """Write the next checkpoint atomically over the older slot; returns the seconds it took."""
        begin = time.perf_counter()
        tensors = {f"weights/{k}": v.detach().cpu().contiguous() for k, v in weights.items()}
        tensors |= {f"optimizer/{k}": v.detach().cpu().contiguous() for k, v in optimizer.items()}
        metadata = {"progress": json.dumps(asdict(progress)), "digest": self.digest}
        metadata["content"] = content_digest(tensors, metadata)
        with atomic_path(self._slots.older()) as temporary:
            save_file(tensors, temporary, metadata)
        return time.perf_counter() - begin

    def load(self) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]] | None:
        """The newest whole checkpoint as (progress, weights, optimizer), or None where there is none.

        A damaged one is passed over with a warning. Raises CheckpointError where all are damaged or where one belongs
        to another configuration.
        """
        return self._slots.newest(self._read, lambda found: found[0].step)

    def _read(self, path: Path) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]]:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            progress = Progress(**json.loads(metadata["progress"]))
            content, digest = metadata.pop("content"), metadata["digest"]
        except Exception as error:  # safetensors' own type, OSError, KeyError: all mean the same to the user
            raise DamagedError(f"this checkpoint is damaged ({error})", where=str(path)) from error
        if content != content_digest(tensors, metadata):
            raise DamagedError("this checkpoint is damaged (its content does not match its checksum)", where=str(path))
        self._slots.check_own(path, digest, self.digest)
        kinds = ("weights/", "optimizer/")
        weights, optimizer = (
            {name.removeprefix(kind): v for name, v in tensors.items() if name.startswith(kind)} for kind in kinds
        )
        return progress, weights, optimizer


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """xxh3 of the metadata and of all tensors, with their types and shapes, in the order of their names."""
    state = xxhash.xxh3_128(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
