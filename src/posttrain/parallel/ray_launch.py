"""Start a command once for every device or share of the processors of a Ray cluster, and end when it has ended.

Ray finds the machines and says when one of them is lost. What runs there is the same ``posttrain run`` that torchrun would start: a
process of its own under each of Ray's workers, told in its environment which rank it is. Ray Train is not used, and why stands in
docs/decisions/025-ray-places-processes.md. torch is loaded by the worker of rank 0 only, whose store the processes meet at.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from posttrain.errors import ConfigError, LostPeerError, PosttrainError, RunError
from posttrain.holder import hearing
from posttrain.parallel.peers import GO_ON, LAUNCHED
from posttrain.parallel.ray_cluster import connected

HANDED_ON = ("POSTTRAIN_", "HF_", "NCCL_", "GLOO_", "TORCH_", "OMP_NUM_THREADS", "PYTHONPATH")
"""What the variables begin with that the processes get from whoever starts them; all else is their own machine's."""
GRACE = 5.0
"""Seconds in which processes end by themselves, or as they are asked to, once one has ended badly."""
_LOOK = 0.2
_TAIL = 4096
"""Bytes that are kept of what a rank other than 0 says: it is shown only where rank 0 does not say why all end."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one of Ray's workers is."""

    node: str
    """Ray's id of the machine."""
    address: str
    host: str
    devices: tuple[str, ...] = ()
    """The CUDA devices that Ray gave it."""
    processors: int = 1
    """Of the machine, as Ray counts them."""

    def __str__(self) -> str:
        return f"{self.host} ({self.address})"


def launch_on_ray(processes: int | None, backend: str, arguments: Sequence[str], note: Callable[[str], None]) -> int:
    """Run ``posttrain`` with these arguments in so many processes of a Ray cluster; returns how they ended, as `launch.launch` does.

    ``processes``: None = one a GPU; without GPUs one a machine. ``note`` is told what the user should know meanwhile. Ctrl-C and SIGTERM are handed on to rank 0, which ends after its step
    and lets the others end. Raises LostPeerError, which names rank and machine, where a process or a machine was lost; ConfigError
    where Ray is missing or the cluster is smaller; RunError where a process can't begin.
    """
    ray = connected(os.cpu_count() or 1, "--engine ray", note)
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    on_devices = backend != "gloo" and any(machine.get("GPU", 0) for machine in machines)
    wanted = processes or int(sum(machine.get("GPU", 0) for machine in machines) if on_devices else len(machines))
    share = processors_each(
        [(int(machine.get("CPU", 0)), int(machine.get("GPU", 0)) if on_devices else None) for machine in machines],
        wanted,
    )
    bundle = {"CPU": 1, "GPU": 1} if on_devices else {"CPU": share}
    with _workers(ray, wanted, bundle, note) as found:
        order = in_ranks([place for _, place in found], os.uname().nodename)
        workers, places = [found[one][0] for one in order], [found[one][1] for one in order]
        try:
            port = ray.get(workers[0].open_store.remote())
            spare = sum(machine.get("CPU", 0) for machine in machines) - wanted * bundle["CPU"]
            cluster = ray.get_runtime_context().gcs_address if spare >= 1 else "local"  # they would wait for ever
            variables = environments(places, port, cluster)
            begun = [
                worker.begin.remote(list(arguments), mine, os.getcwd())
                for worker, mine in zip(workers, variables, strict=True)
            ]
            for problem in filter(None, ray.get(begun)):
                raise RunError(problem, where="--engine ray", fix="start it in a folder that all machines share")
        except ray.exceptions.RayError as error:
            raise _not_begun(error) from error
        return _Watch(ray, workers, places).to_the_end()


# ---- who goes where --------------------------------------------------------------------------------------------------


def processors_each(machines: Sequence[tuple[int, int | None]], processes: int) -> int:
    """The largest equal share of processors that so many processes can have, none of them on two machines.

    ``machines``: processors and CUDA devices of each, where a process has a device of its own; None where it needs none. Raises
    ConfigError where there are fewer devices, or processors, than processes.
    """

    def hold(share: int) -> int:
        rooms = ((cpus // share, devices) for cpus, devices in machines)
        return sum(room if devices is None else min(room, devices) for room, devices in rooms)

    for share in range(max((cpus for cpus, _ in machines), default=0), 0, -1):
        if 0 < processes <= hold(share):
            return share
    what = "processors" if all(devices is None for _, devices in machines) else "CUDA devices"
    problem = f"{processes} processes on {hold(1)} {what} of the Ray cluster"
    raise ConfigError(problem, where="--processes", fix=f"--processes 1 to {hold(1)}, or add machines (ray start)")


def in_ranks(places: Sequence[Place], first: str) -> list[int]:
    """Workers by number in the order of their ranks: those of a machine side by side, those of the host ``first`` before all."""
    seen = list(dict.fromkeys(place.node for place in sorted(places, key=lambda place: place.host != first)))
    return sorted(range(len(places)), key=lambda one: (seen.index(places[one].node), places[one].devices))


def environments(places: Sequence[Place], port: int, cluster: str) -> list[dict[str, str]]:
    """What each rank is told in its environment, as torchrun does. All devices of a machine are visible to all ranks there.

    ``cluster``: where data stages with ``engine: ray`` run.
    """
    found: list[dict[str, str]] = []
    for rank, place in enumerate(places):
        beside = [number for number, other in enumerate(places) if other.node == place.node]
        mine = {
            "RANK": rank,
            "WORLD_SIZE": len(places),
            "LOCAL_RANK": beside.index(rank),
            "LOCAL_WORLD_SIZE": len(beside),
            "MASTER_ADDR": places[0].address,
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": True,  # the store is that of rank 0's worker, and outlives rank 0
            "RAY_ADDRESS": cluster,
            LAUNCHED: 1,
        }
        devices = [device for other in beside for device in places[other].devices]
        if devices:
            mine["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        mine["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or max(1, place.processors // len(beside))
        found.append({name: str(value) for name, value in mine.items()})
    return found


@contextlib.contextmanager
def _workers(
    ray: Any, count: int, bundle: Mapping[str, int], note: Callable[[str], None]
) -> Iterator[list[tuple[Any, Place]]]:
    """So many of Ray's workers with these resources each, and where they are; they end with the block."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([dict(bundle)] * count, strategy="PACK")
    handed_on = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
    workers: list[Any] = []
    try:
        if not group.wait(GRACE):
            note(f"the Ray cluster is busy: waiting for {count} x {dict(bundle)}")
            ray.get(group.ready())
        kind = ray.remote(Worker)
        for number in range(count):
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
            worker = kind.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                max_concurrency=4,
                scheduling_strategy=strategy,
                runtime_env={"env_vars": handed_on},
            )
            workers.append(worker.remote())
        places = [Place(**told) for told in ray.get([worker.place.remote() for worker in workers])]
        yield list(zip(workers, places, strict=True))
    except ray.exceptions.RayError as error:
        raise _not_begun(error) from error
    finally:
        for worker in workers:
            ray.kill(worker)
        remove_placement_group(group)


def _not_begun(error: Exception) -> RunError:
    """What to say where one of Ray's workers can't begin."""
    reason = str(error).strip().splitlines()[-1].strip()
    return RunError(
        f"a worker of Ray can't begin: {reason}",
        where="--engine ray",
        fix="install the same on all machines of the cluster",
    )


# ---- one of Ray's workers -------------------------------------------------------------------------------------------


class Worker:
    """On a machine of the cluster: starts one rank, hands on what it says, and ends it when whoever started all is gone."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._store: object = None

    def place(self) -> dict[str, Any]:
        """Where this is, a `Place`."""
        import ray

        context = ray.get_runtime_context()
        node, mine = context.get_node_id(), tuple(map(str, context.get_accelerator_ids().get("GPU", ())))
        processors = next(int(one["Resources"].get("CPU", 1)) for one in ray.nodes() if one["NodeID"] == node)
        return asdict(Place(node, ray.util.get_node_ip_address(), socket.gethostname(), mine, processors))

    def open_store(self) -> int:
        """Let the processes meet here; returns the port, which is nobody else's."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)
        self._store = store
        return int(store.port)

    def begin(self, arguments: Sequence[str], mine: Mapping[str, str], folder: str) -> str | None:
        """Start the process; returns what hinders it."""
        if not Path(folder).is_dir():
            return f"the folder {folder} is not on {socket.gethostname()}"
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray blocks Ctrl-C in all it starts
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "posttrain", *arguments],
                cwd=folder,
                env={**os.environ, **mine},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return None

    def follow(self) -> Iterator[tuple[str, Any]]:
        """``("out" or "err", bytes)`` whenever it says something, then ``("end", how it ended)``."""
        process = self._process
        assert process is not None
        with selectors.DefaultSelector() as pipes:
            for name, pipe in (("out", process.stdout), ("err", process.stderr)):
                assert pipe is not None
                pipes.register(pipe, selectors.EVENT_READ, name)
            while pipes.get_map():
                for key, _ in pipes.select():
                    said = os.read(key.fd, 1 << 16)
                    if said:
                        yield key.data, said
                    else:
                        pipes.unregister(key.fileobj)
        yield "end", process.wait()

    def send(self, number: int) -> None:
        """Send a signal to the process, where it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


# ---- whoever started them ---------------------------------------------------------------------------------------------


@dataclass
class _Watch:
    """The ranks from their start to their end."""

    ray: Any
    workers: Sequence[Any]
    places: Sequence[Place]
    ended: dict[int, int | str] = field(default_factory=dict)
    """How ranks ended by themselves, in the order of their ends: exit code, or why the worker is lost."""
    asked: int = 0
    """Which signals the rest was sent since one ended badly: 0, 1 (SIGTERM), 2 (SIGKILL)."""
    tails: dict[int, bytes] = field(default_factory=dict)

    def to_the_end(self) -> int:
        """Hand on what rank 0 says, until all have ended."""
        streams = {
            worker.follow.options(num_returns="streaming").remote(): rank for rank, worker in enumerate(self.workers)
        }
        until = float("inf")
        caught: list[int] = []
        with hearing(lambda number, frame: caught.append(number)):
            while streams:
                for stream in self.ray.wait(list(streams), timeout=_LOOK)[0]:
                    if self._hear(stream, streams[stream]):
                        del streams[stream]
                while caught:
                    self.workers[0].send.remote(caught.pop(0))
                if any(self.ended.values()) and streams:
                    until = min(until, time.monotonic() + (0 if self._lost() is not None else GRACE))
                if time.monotonic() >= until:
                    self._ask(streams.values())
                    until = time.monotonic() + GRACE
        return self._verdict()

    def _hear(self, stream: Any, rank: int) -> bool:
        """Take in what a rank says; whether it was the last."""
        try:
            kind, content = self.ray.get(next(stream))
        except StopIteration:
            return True
        except self.ray.exceptions.RayError as error:
            kind, content = "end", type(error).__name__
        if kind != "end":
            if rank == 0 and self._lost() is None:
                _write(sys.stdout if kind == "out" else sys.stderr, content)
            self.tails[rank] = (self.tails.get(rank, b"") + content)[-_TAIL:]
            return False
        if not self.asked:
            self.ended[rank] = content
        return isinstance(content, str)

    def _ask(self, ranks: Iterable[int]) -> None:
        """Let the rest end: first as Ctrl-C would, then at once."""
        for rank in ranks:
            self.workers[rank].send.remote(signal.SIGKILL if self.asked else signal.SIGTERM)
            if self.asked > 1:
                self.ray.kill(self.workers[rank])
        self.asked += 1

    def _lost(self) -> int | None:
        """The first rank that was killed, or whose machine is gone."""
        return next((rank for rank, how in self.ended.items() if isinstance(how, str) or how < 0), None)

    def _verdict(self) -> int:
        """How all ended: what rank 0 says counts, but where it can't know."""
        size, lost = len(self.workers), self._lost()
        if lost is not None:
            how = self.ended[lost]
            what = (
                f"was lost with its worker of Ray ({how})"
                if isinstance(how, str)
                else f"was ended by {signal.Signals(-how).name}"
            )
            raise LostPeerError(f"rank {lost} of {size} on {self.places[lost]} {what}", fix=GO_ON)
        codes = {rank: code for rank, code in self.ended.items() if isinstance(code, int) and code}
        if not codes:
            return 0
        crashed = [rank for rank, code in codes.items() if rank and code not in (PosttrainError.exit_code, 130)]
        if 0 in codes and not crashed:
            return codes[0]
        rank = crashed[0] if crashed else next(iter(codes))
        said = self.tails.get(rank, b"").decode(errors="replace").strip().splitlines() or ["nothing was said"]
        begin = next((number for number, line in enumerate(said) if line.startswith("error: ")), len(said) - 1)
        reason = "\n".join(said[begin:]).removeprefix("error: ")
        raise RunError(f"rank {rank} of {size} on {self.places[rank]} ended with exit code {codes[rank]}: {reason}")


def _write(file: TextIO, content: bytes) -> None:
    file.flush()
    file.buffer.write(content)
    file.buffer.flush()
