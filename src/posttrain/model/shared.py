"""A model that several processes hold, each its own copy, so that what is asked of it is shared out.

    rank 0:      items -> share_out(shared, model, kind, items, ...) -> (place, result) as they are there
    the others:  order of rank 0 -> take_share: the model is loaded, a share of the items computed and handed in

What is computed for an item is a `Work`: the same function in all processes, between JSON and JSON. The items of one order are dealt by
their cost; who computes one decides no more than rounding. Rank 0 alone reads templates, draws seeds, writes and keeps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from posttrain.encode.collate import Batch
from posttrain.model.adapters import frozen_model, saved_model
from posttrain.model.hardware import resolve_device
from posttrain.model.own import in_fp32
from posttrain.model.score import batch_logps, packed_outputs, sequence_logps
from posttrain.parallel.peers import Order, Peers, deal
from posttrain.types import Tokens

Work = Callable[[nn.Module, Sequence[Any], Mapping[str, Any]], Iterator[tuple[int, Any] | None]]
"""(model, items, settings) -> (place of an item, its result) in any order; None: still at work. All JSON's types."""
LIKELIHOODS = "likelihoods"
"""Kind of an order for `likelihoods`."""


@dataclass(frozen=True, eq=False)
class SharedModel:
    """Where the other processes find a model that this one, rank 0 of ``peers``, has loaded."""

    peers: Peers
    folder: Path
    adapter: Path | None
    dtype: torch.dtype
    device: torch.device
    head: Literal["tokens", "score"] = "tokens"
    beside: str = ""
    """The others keep models with the same word beside each other, and give up all those with another one."""

    def load(self) -> nn.Module:
        """The model in this process."""
        if self.head == "score":
            return saved_model(self.folder, self.adapter, self.dtype, self.device, head="score")
        return frozen_model(self.folder, self.adapter, self.dtype, self.device)

    def record(self) -> dict[str, Any]:
        """What another process needs to load it."""
        return {
            "folder": str(self.folder.absolute()),
            "adapter": None if self.adapter is None else str(self.adapter.absolute()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "head": self.head,
        }


def shared_model(
    peers: Peers,
    folder: Path,
    adapter: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    head: Literal["tokens", "score"] = "tokens",
    beside: str = "",
) -> SharedModel | None:
    """Where the others find a model; None where there are none."""
    return SharedModel(peers, folder, adapter, dtype, device, head, beside) if peers.size > 1 else None


class KeptModels:
    """The models that a process beside rank 0 has loaded for orders. Mutable: they come and go."""

    def __init__(self) -> None:
        self._beside = ""
        self._models: dict[str, nn.Module] = {}

    def of(self, peers: Peers, order: Order) -> nn.Module:
        """The model of an order, loaded at its first one."""
        if order["beside"] != self._beside:
            self.clear()
            self._beside = order["beside"]
        key = str(sorted(order["model"].items(), key=str))
        if key not in self._models:
            said = order["model"]
            adapter = None if said["adapter"] is None else Path(said["adapter"])
            dtype, device = getattr(torch, said["dtype"]), resolve_device(said["device"])
            self._models[key] = SharedModel(peers, Path(said["folder"]), adapter, dtype, device, said["head"]).load()
        return self._models[key]

    def clear(self) -> None:
        """Give all up."""
        self._models.clear()


def share_out(
    shared: SharedModel,
    model: nn.Module,
    kind: str,
    work: Work,
    items: Sequence[Any],
    cost: Sequence[int],
    settings: Mapping[str, Any],
) -> Iterator[tuple[int, Any]]:
    """What ``work`` gives for all items, from all processes, as it is there. In rank 0, where the model is loaded; see `Work` for the types."""
    peers = shared.peers
    order = {
        "kind": kind,
        "model": shared.record(),
        "beside": shared.beside,
        "shares": deal(cost, peers.size),
        "items": items,
        "settings": settings,
    }
    with peers.together(order), contextlib.closing(peers.stream(_share(lambda: model, work, order, 0))) as found:
        yield from found


def take_share(peers: Peers, order: Order, kept: KeptModels, work: Work) -> None:
    """The part of another process in an order of `share_out`."""
    for _ in peers.stream(_share(lambda: kept.of(peers, order), work, order, peers.rank)):
        pass


def _share(model: Callable[[], nn.Module], work: Work, order: Order, rank: int) -> Iterator[tuple[int, Any] | None]:
    """What ``work`` gives for the share of one process, at the places of the whole order."""
    places = order["shares"][rank]
    if not places:
        return
    for one in work(model(), [order["items"][place] for place in places], order["settings"]):
        yield None if one is None else (places[one[0]], one[1])


# ---- likelihoods -----------------------------------------------------------------------------------------------------


def written(sequence: Tokens) -> list[list[float]]:
    """A sequence as JSON: ids and weights."""
    return [sequence.ids_T.tolist(), sequence.weights_T.tolist()]


def read(record: Sequence[Sequence[float]]) -> Tokens:
    """What `written` wrote."""
    return Tokens(np.array(record[0], np.int32), np.array(record[1], np.float32), "")


def likelihoods(
    model: nn.Module, items: Sequence[Any], settings: Mapping[str, Any]
) -> Iterator[tuple[int, Any] | None]:
    """Groups of sequences -> log p of the supervised tokens of each. A `Work`."""
    groups = [[read(one) for one in group] for group in items]
    with in_fp32(model) if settings["exact"] else contextlib.nullcontext(False) as exact:
        dtype = torch.float32 if exact else getattr(torch, settings["dtype"])

        @torch.no_grad()
        def forward(batch: Batch) -> Tensor:
            return batch_logps(model, batch, dtype).logps_S

        for pack_of in packed_outputs(model, groups, settings["budget"], forward):
            for index, parts in pack_of:
                yield index, [part.tolist() for part in parts]


def group_logps(
    shared: SharedModel | None,
    model: nn.Module,
    groups: Sequence[Sequence[Tokens]],
    budget: int,
    dtype: torch.dtype,
    progress: Callable[[int], None] | None = None,
    *,
    exact: bool = False,
) -> list[NDArray[np.float32]]:
    """`posttrain.model.score.sequence_logps`, by several processes where the model is shared. ``exact``: in fp32 where its weights allow it."""
    if shared is None or len(groups) < 2:
        with in_fp32(model) if exact else contextlib.nullcontext(False) as widened:
            return sequence_logps(model, groups, budget, torch.float32 if widened else dtype, progress)
    settings = {"budget": budget, "dtype": str(dtype).removeprefix("torch."), "exact": exact}
    items = [[written(sequence) for sequence in group] for group in groups]
    cost = [sum(map(len, group)) for group in groups]
    found: list[list[NDArray[np.float32]]] = [[] for _ in groups]
    for index, parts in share_out(shared, model, LIKELIHOODS, likelihoods, items, cost, settings):
        found[index] = [np.array(part, np.float32) for part in parts]
        if progress is not None:
            progress(1)
    return [part for parts in found for part in parts]
