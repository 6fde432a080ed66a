"""Processes joined by torch.distributed, as torchrun (or SLURM, or Ray) has started them.

What they compute goes through collectives: tensors over NCCL on CUDA, everything else over gloo. What they are to do, and what
became of them, goes through the store of the rendezvous, where nobody waits for anybody. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

import posttrain
from posttrain.errors import ConfigError, LostPeerError, PosttrainError, RunError
from posttrain.holder import end_with
from posttrain.parallel.peers import ALONE, GO_ON, LAUNCHED, Order, Peers, deal

T = TypeVar("T")
BACKENDS = ("auto", "gloo", "nccl")
NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells every process in its environment."""
BUCKET = 1 << 29
"""Bytes that are reduced at once: the gradients of any usual adapter, and a bounded copy of those of all weights."""
PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others within a collective: rank 0 may have a model to write meanwhile."""
GRACE = 10.0
"""Seconds in which processes come to the same end where one has failed."""
HASTE = 1.0
"""Seconds in which they may come to it where Ctrl-C has ended the work."""
SIGN = 0.2
"""Seconds between two looks of one that works at what the others have found, and whether they are there."""
MEETING = timedelta(minutes=5)
"""How long the first processes wait for the last to begin."""
_LOOK = 0.05
_OF_A_CONNECTION = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe")
"""What stands in the errors of torch.distributed that come from the end of another process."""


def joined(backend: str = "auto") -> Peers:
    """The group that this process was started in; `ALONE` where it was started by itself.

    Raises ConfigError for a backend that is not here, and RunError where the others can't be reached or run other code.
    """
    check_backend(backend)
    if any(name not in os.environ for name in NAMES):
        return ALONE
    if LAUNCHED in os.environ or os.environ["WORLD_SIZE"] != "1":
        end_with(os.getppid())
    if os.environ["WORLD_SIZE"] == "1":
        return ALONE
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() and backend != "gloo"
    if cuda:
        if local >= torch.cuda.device_count():
            problem = f"process {local} of this machine has no CUDA device: there are {torch.cuda.device_count()}"
            raise ConfigError(problem, where="--processes", fix="start one process a device, or --backend gloo")
        torch.cuda.set_device(local)
    try:
        with _silence():
            store, rank, size = next(rendezvous("env://", timeout=MEETING))
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=PrefixStore("collectives", store),
                rank=rank,
                world_size=size,
                timeout=PATIENCE,
            )
            store.set_timeout(PATIENCE)
        peers = JoinedPeers(PrefixStore("orders", store), rank, size)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        fix = "give another port (torchrun --master-port), and the address of rank 0's machine, which all reach"
        raise RunError(f"the processes can't be joined: {str(error).splitlines()[0]}", where=where, fix=fix) from error
    with peers.whole():
        peers.check_same("version of posttrain", f"{posttrain.__version__} ({_code()[:8]})")
        peers.check_same("version of torch", torch.__version__)
    return peers


def check_backend(backend: str) -> None:
    """Raise ConfigError for one that is unknown or not here."""
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}", where="--backend", fix=f"known: {', '.join(BACKENDS)}")
    if backend == "nccl" and not (torch.cuda.is_available() and distributed.is_nccl_available()):
        raise ConfigError("nccl needs a CUDA device, and there is none here", where="--backend", fix="--backend auto")


def _code() -> str:
    """Digest of the package's own code."""
    state, root = hashlib.sha256(), Path(posttrain.__file__).parent
    for path in sorted(root.rglob("*.py")):
        state.update(path.read_bytes())
    return state.hexdigest()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Inside, what gloo's C++ code prints of its connections goes nowhere."""
    with open(os.devnull, "w") as nowhere:
        kept = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in kept:
                os.dup2(nowhere.fileno(), number)
            yield
        finally:
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)


class JoinedPeers(Peers):
    """Several processes; this one is ``rank`` of ``size``."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank, self.size, self._store = rank, size, store
        self._number, self._current, self._apart, self._broken = count(), 0, False, False
        me = {"pid": os.getpid(), "host": socket.gethostname()}
        self._members: list[Mapping[str, Any]] = self.gather(me)

    # ---- what is computed --------------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """See `Peers.gather`."""
        return [json.loads(part) for part in self._gather_bytes(json.dumps(value).encode())]

    def _gather_bytes(self, content: bytes) -> list[bytes]:
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(sizes, torch.tensor([len(content)]))
        longest = max(int(size) for size in sizes)
        own = torch.zeros(longest, dtype=torch.uint8)
        own[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(parts, own)
        return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def decided(self, decide: Callable[[], T]) -> T:
        """See `Peers.decided`."""
        answer: tuple[T | None, str | None] = (None, None)
        error: PosttrainError | None = None
        if self.leads:
            try:
                answer = (decide(), None)
            except PosttrainError as raised:
                error, answer = raised, (None, raised.problem)
        value, problem = self.said(answer)
        if problem is not None:
            raise error or RunError(problem)
        found: Any = value
        return found  # type: ignore[no-any-return]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """See `Peers.add`."""
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            distributed.all_reduce(flat)
            _put_back(flat, bucket)

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """See `Peers.spread`."""
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            distributed.broadcast(flat, 0)
            _put_back(flat, bucket)

    def compute(self, items: Sequence[T], cost: Sequence[int], work: Callable[[list[T]], list[Any]]) -> list[Any]:
        """See `Peers.compute`."""
        shares = deal(cost, self.size)
        found = work([items[place] for place in shares[self.rank]])
        if any(self.gather(any(isinstance(one, np.ndarray) for one in found))):
            own: dict[str, NDArray[Any]] = {str(place): one for place, one in enumerate(found)}
            parts = [load(part) for part in self._gather_bytes(save(own))]
            by_rank: list[list[Any]] = [[part[str(place)] for place in range(len(part))] for part in parts]
        else:
            by_rank = self.gather(found)
        placed = {
            place: one
            for share, part in zip(shares, by_rank, strict=True)
            for place, one in zip(share, part, strict=True)
        }
        return [placed[place] for place in range(len(items))]

    def check_same(self, what: str, value: str) -> None:
        """See `Peers.check_same`."""
        found = self.gather(value)
        for rank, other in enumerate(found):
            if other != found[0]:
                problem = f"the processes have not the same {what}: rank 0 has {found[0]}, rank {rank} {other}"
                raise RunError(problem, fix="install the same on all machines, and start them with the same command")

    def check_shared(self, folder: Path) -> None:
        """See `Peers.check_shared`."""
        place, seen = Path(self.said(str(folder.absolute()))), True
        token = place / self.said(f".seen-by-all-{uuid4().hex}")
        with self.whole():
            problem = self.said(_touch(token) if self.leads else None)
            if problem is None:
                until = time.monotonic() + (GRACE if place.is_dir() else 0)
                while not (seen := token.is_file()) and time.monotonic() < until:
                    time.sleep(_LOOK)
            blind = [rank for rank, sees in enumerate(self.gather(seen)) if not sees]
        if self.leads:
            with contextlib.suppress(OSError):  # a file may stand where the folder should
                token.unlink(missing_ok=True)
        if not self.leads:
            return
        if problem is not None:
            raise RunError(
                f"can't write: {problem}", where=str(place), fix="give --runs a folder that can be written to"
            )
        if blind:
            where = f"rank {blind[0]} of {self.size} on {self._members[blind[0]]['host']}"
            fix = "give --runs a folder on a file system that all machines share, under the same path"
            raise RunError(f"{where} does not see what rank 0 writes there", where=str(place), fix=fix)

    def stream(self, share: Iterable[T | None]) -> Generator[T, None, None]:
        """See `Peers.stream`. What is found goes through the store, some at a time."""
        return self._collected(share, self._current) if self.leads else self._handed_in(share, self._current)

    def _handed_in(self, share: Iterable[T | None], order: int) -> Generator[T, None, None]:
        """Send what this process finds to rank 0, where that still takes it. Yields nothing."""
        numbers, due = count(), time.monotonic()

        def send(message: Mapping[str, Any]) -> None:
            self._store.set(f"found/{order}/{self.rank}/{next(numbers)}", json.dumps(message))

        found: list[T] = []
        try:
            for one in share:
                if one is not None:
                    found.append(one)
                if time.monotonic() >= due:
                    self._check_led()
                    if self._store.check([f"ended/{order}"]):
                        return
                    send({"found": found})  # also where there is nothing: a sign of life
                    found, due = [], time.monotonic() + SIGN
            send({"found": found, "last": True})
        except (PosttrainError, RuntimeError) as error:
            told = [error.problem, error.fix] if isinstance(error, PosttrainError) else [_line_of(error), None]
            send({"failed": told})
            raise
        yield from ()

    def _collected(self, share: Iterable[T | None], order: int) -> Generator[T, None, None]:
        """What all processes find, in rank 0."""
        heard = {rank: _Heard(f"found/{order}/{rank}") for rank in range(1, self.size)}
        due = time.monotonic()
        for one in share:
            if one is not None:
                yield one
            if time.monotonic() >= due:
                yield from self._news(heard)
                due = time.monotonic() + SIGN
        while heard:
            yield from self._news(heard)
            if heard:
                time.sleep(_LOOK)

    def _news(self, heard: dict[int, _Heard]) -> Iterator[Any]:
        """What has come from ranks since they were heard last; those that are ready leave. Raises RunError for one that is lost or failed."""
        for rank, last in list(heard.items()):
            while self._store.check([key := f"{last.keys}/{last.messages}"]):
                message = json.loads(self._store.get(key))
                self._store.delete_key(key)
                last.messages, last.when = last.messages + 1, time.monotonic()
                if "failed" in message:
                    raise self._failed(rank, *message["failed"])
                yield from message["found"]
                if message.get("last"):
                    del heard[rank]
                    break
            else:
                if time.monotonic() - last.when > PATIENCE.total_seconds():
                    raise LostPeerError(f"nothing was heard of rank {rank} of {self.size}", fix=GO_ON)
        if heard and (lost := self._lost()) is not None:
            raise lost

    # ---- who does what -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def together(self, order: Order) -> Iterator[None]:
        """See `Peers.together`. All processes have come to its end when this one leaves it."""
        if self._apart:
            problem = "after an error the processes did not come to the same place, and can't go on together"
            raise RunError(problem, fix=GO_ON)
        number = self._current = next(self._number)
        self._store.set(f"order/{number}", json.dumps(order))
        patience = GRACE
        try:
            yield
            patience = PATIENCE.total_seconds()  # nobody has failed: whoever is slow is only slow
        except KeyboardInterrupt:
            patience = HASTE
            raise
        finally:
            self._store.set(f"ended/{number}", "")
            ends = [f"done/{number}/{rank}" for rank in range(1, self.size)]
            self._apart = not self._appears(ends, patience)
            if self._apart and (gone := self._lost()) is not None:
                raise gone
            if not self._apart:
                self._store.delete_key(f"order/{number}")  # all have read it

    def orders(self) -> Iterator[Order]:
        """The orders of rank 0 as they come, to its end. Whoever iterates calls `report` or `fail` after each."""
        for number in self._number:
            while not self._store.check([f"order/{number}"]):
                if self._store.check(["end"]):
                    return
                self._check_led()
                time.sleep(_LOOK)
            self._current = number
            yield json.loads(self._store.get(f"order/{number}"))

    def report(self) -> None:
        """The order at hand is done here."""
        self._store.set(f"done/{self._current}/{self.rank}", "")

    def fail(self, problem: str, fix: str | None) -> None:
        """The order at hand has failed here: so it did for all, or, where they go on, this is said to rank 0 and the process ends at once."""
        if self._appears([f"ended/{self._current}"], GRACE):
            self.report()
            return
        self._store.set(f"failed/{self.rank}", json.dumps([problem, fix]))
        os._exit(2)  # no good-bye: who waits for this process must learn of it

    def end(self) -> None:
        """Let the other processes end, and wait until they have, where they are at a place to hear of it."""
        with contextlib.suppress(distributed.DistError):  # the store has ended with whoever started the processes
            self._store.set("end", "")
            if not self._apart:
                self._appears([f"left/{rank}" for rank in range(1, self.size)], GRACE)

    def leave(self) -> None:
        """This process is about to end, because rank 0 does."""
        self._store.set(f"left/{self.rank}", "")

    def _appears(self, keys: Sequence[str], seconds: float) -> bool:
        """Whether all these keys are in the store within some seconds."""
        until = time.monotonic() + seconds
        while not self._store.check(list(keys)):
            if self._broken or time.monotonic() > until or self._gone():
                return False
            time.sleep(_LOOK)
        return True

    # ---- what became of the others -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """See `Peers.whole`."""
        try:
            yield
        except (RuntimeError, PosttrainError, KeyboardInterrupt) as error:
            patience = 1.0 if isinstance(error, RuntimeError) else 0.0
            until = time.monotonic() + patience
            while (lost := self._lost()) is None and time.monotonic() < until:
                time.sleep(_LOOK)
            if lost is None and isinstance(error, RuntimeError):
                lost = self._out_of_reach(error)
            if lost is None:
                raise
            self._broken = True
            raise lost from None

    def _out_of_reach(self, error: RuntimeError) -> RunError | None:
        """What to say where a connection has broken and every process of this machine is there; None for any other error."""
        if not isinstance(error, distributed.DistError) and not any(word in str(error) for word in _OF_A_CONNECTION):
            return None
        here = socket.gethostname()
        others = [f"rank {rank} on {one['host']}" for rank, one in enumerate(self._members) if one["host"] != here]
        if not others:
            return None
        problem = (
            f"the connection to another machine is broken: one of {', '.join(others)} has ended or can't be reached"
        )
        return LostPeerError(problem, fix=f"see what was said there, then {GO_ON}")

    def _gone(self, ranks: Iterable[int] | None = None) -> list[int]:
        """Which of these ranks (None: of all) are on this machine, and their process is no more."""
        members = {rank: self._members[rank] for rank in (range(self.size) if ranks is None else ranks)}
        here = socket.gethostname()
        return [
            rank for rank, member in members.items() if member["host"] == here and not _is_alive(int(member["pid"]))
        ]

    def _lost(self) -> RunError | None:
        """What to say of a process that has ended in the middle of the work; None where all are there."""
        for rank in range(self.size):
            if self._store.check([f"failed/{rank}"]):
                return self._failed(rank, *json.loads(self._store.get(f"failed/{rank}")))
        for rank in self._gone():
            pid = self._members[rank]["pid"]
            problem = f"rank {rank} of {self.size} (pid {pid}) was ended in the middle of the work"
            return LostPeerError(problem, fix=GO_ON)
        return None

    def _check_led(self) -> None:
        """Raise LostPeerError where rank 0 is no more."""
        if self._gone(ranks=(0,)) and (lost := self._lost()) is not None:
            raise lost

    def _failed(self, rank: int, problem: str, fix: str | None) -> RunError:
        """What to say of a process that could not go on."""
        return RunError(f"rank {rank} of {self.size} failed: {problem}", fix=fix or GO_ON)


@dataclass
class _Heard:
    """What rank 0 has heard of another rank in one piece of work. Mutable: it goes on."""

    keys: str
    """Where in the store its messages are."""
    messages: int = 0
    when: float = field(default_factory=time.monotonic)
    """The last one came."""


def _line_of(error: BaseException) -> str:
    """An error nobody foresaw, in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _touch(path: Path) -> str | None:
    """Write an empty file; returns what hinders it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return None


def _is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of one type and at most `BUCKET` bytes, in an order that is the same for all processes."""
    bucket: list[Tensor] = []
    for tensor in sorted(tensors, key=lambda tensor: str(tensor.dtype)):
        full = sum(one.nbytes for one in bucket) + tensor.nbytes > BUCKET
        if bucket and (full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _put_back(flat: Tensor, bucket: Sequence[Tensor]) -> None:
    """Copy a flat tensor into those it was made of."""
    for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(part.view_as(tensor))
