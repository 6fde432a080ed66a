"""What a process knows of those beside it. A single one is `ALONE`, for whom every answer is its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Order = Mapping[str, Any]
"""What the others have to know to take part in a piece of work; JSON."""
GO_ON = "run the same command again: it goes on from what is kept"
LAUNCHED = "POSTTRAIN_LAUNCHED"
"""In the environment of processes that `posttrain run` has started: that one of them was killed is told by it."""


class Peers:
    """A single process: nothing is sent anywhere. `posttrain.parallel.joined.JoinedPeers` is several.

    All methods but ``leads`` are collective: every process calls the same ones in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, and whose word counts."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value of every process, in the order of their ranks, equal in all of them. JSON's types."""
        return [value]

    def said(self, value: T) -> T:
        """What rank 0 says. JSON's types."""
        return self.gather(value)[0]

    def decided(self, decide: Callable[[], T]) -> T:
        """What rank 0 finds out (JSON's types); a PosttrainError that it raises ends all processes alike."""
        return decide()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes: one reduction for all of a type (up to `posttrain.parallel.joined.BUCKET`)."""

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of rank 0."""

    def compute(self, items: Sequence[T], cost: Sequence[int], work: Callable[[list[T]], list[Any]]) -> list[Any]:
        """``work`` over all items, each computed by one process; the results in the order of the items, equal in all processes.

        ``work``: items -> a result each: arrays, or JSON's types. ``cost``: of every item; what each process computes costs about the same.
        """
        return work(list(items))

    def stream(self, share: Iterable[T | None]) -> Generator[T, None, None]:
        """What all processes find, each in its share, as they find it: rank 0 gets all, the others nothing. JSON's types; None: still at work.

        Inside `together`, and whoever iterates goes to the end or closes. No process waits for another to go on: where rank 0 takes
        no more, the others stop, and an error of one of them is raised in rank 0 as a RunError that names it.
        """
        yield from (found for found in share if found is not None)

    @contextlib.contextmanager
    def together(self, order: Order) -> Iterator[None]:
        """Inside, the other processes do what the order says, beside this one. Only rank 0 calls it."""
        yield

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, an error that comes from the end of another process is a RunError that names it."""
        yield

    def check_same(self, what: str, value: str) -> None:
        """Raise a RunError in every process where not all have the same value."""

    def check_shared(self, folder: Path) -> None:
        """Raise a RunError in rank 0 where not all see what it writes into a folder."""


ALONE = Peers()


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Which items every rank takes, by place, in rising order: the dearest first, each to the rank that has least.

    No rank has more than 4/3 of what the best division would give its busiest one (Graham 1969, doi:10.1137/0117039, for this rule).
    """
    if ranks == 1:
        return [list(range(len(costs)))]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        lightest = min(range(ranks), key=lambda rank: (load[rank], len(shares[rank]), rank))
        shares[lightest].append(place)
        load[lightest] += costs[place]
    return [sorted(share) for share in shares]
