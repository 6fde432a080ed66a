"""Checkpoints of weights that are divided: a safetensors file of every process, which any number of processes can go on from.

torch's own format of distributed checkpoints holds a pickle; its writer for Hugging Face's files does not. Two folders take turns
(``checkpoints/a`` and ``b``), each written beside its place and given its name when it is whole, with a ``state.json`` that says how
far the run was and what every file must be.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.artifacts import file_digest, read_json, write_json
from posttrain.errors import RunError
from posttrain.parallel.peers import Peers
from posttrain.train.checkpoint import DamagedError, Progress, Slots, optimizer_tensors

SLOTS = ("a", "b")
STATE_FILE = "state.json"


class DividedCheckpoints:
    """The checkpoints of one training stage whose weights are divided. All methods but ``exist`` are collective."""

    def __init__(self, folder: Path, digest: str, peers: Peers) -> None:
        self.digest, self.peers, self._slots = digest, peers, Slots(folder, SLOTS, STATE_FILE)

    def exist(self) -> bool:
        """Whether there is a checkpoint to go on from, sound or not."""
        return self._slots.exist()

    def save(self, progress: Progress, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> float:
        """Write the next checkpoint over the older slot; returns the seconds it took."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        begin = time.perf_counter()
        target = self._slots.folder / self.peers.said(self._slots.older().name)
        aside = target.with_name(f".{target.name}.writing")
        if self.peers.leads:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self.peers.said(0)  # the folder is there
        with _quiet():
            save(_flat(weights, optimizer), storage_writer=HuggingFaceStorageWriter(str(aside), save_distributed=True))
        if self.peers.leads:
            files = {path.name: file_digest(path) for path in sorted(aside.glob("*.safetensors"))}
            write_json(aside / STATE_FILE, {"digest": self.digest, "progress": asdict(progress), "files": files})
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
        return time.perf_counter() - begin

    def restore(
        self, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, names: Mapping[int, str]
    ) -> Progress:
        """Put the newest whole checkpoint into what is trained and its optimizer; a fresh Progress where there is none."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        found = self.peers.decided(self._newest)
        if found is None:
            return Progress()
        name, state = found
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
        tensors = _flat(trained, optimizer_tensors(optimizer, names))
        with torch.no_grad(), _quiet():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(self._slots.folder / name)))
        return Progress(**state["progress"])

    def _newest(self) -> tuple[str, Any] | None:
        """The slot with the newest whole checkpoint and what it says of itself; see `Slots.newest` for what it raises."""
        return self._slots.newest(self._read, lambda found: int(found[1]["progress"]["step"]))

    def _read(self, folder: Path) -> tuple[str, Any]:
        try:
            state = read_json(folder / STATE_FILE)
            for file, expected in state["files"].items():
                if not (folder / file).is_file():
                    raise ValueError(f"{file} is missing")
                if file_digest(folder / file) != expected:
                    raise ValueError(f"{file} is not what was written")
            Progress(**state["progress"])
        except (RunError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"this checkpoint is damaged ({error})", where=str(folder)) from error
        self._slots.check_own(folder, state["digest"], self.digest)
        return folder.name, state


def _flat(weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both under one name each. What every process has whole (the count of steps) gets a dimension, which files need."""
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer.items()}
    return {name: tensor.detach() if tensor.dim() else tensor.view(1) for name, tensor in tensors.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns that its files' format is a trial, and that a process works alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
