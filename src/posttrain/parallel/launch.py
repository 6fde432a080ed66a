"""Start a command once for every device or share of the processors, by torchrun's own launcher, and end when it has ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from uuid import uuid4

import psutil
import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from posttrain.errors import ConfigError, LostPeerError
from posttrain.holder import hearing
from posttrain.parallel.joined import check_backend
from posttrain.parallel.peers import GO_ON, LAUNCHED


def launch(processes: int, backend: str, arguments: Sequence[str]) -> int:
    """Run ``posttrain`` with these arguments in so many processes of this machine; returns how the first ended that ended badly, else 0.

    Ctrl-C and SIGTERM are handed on: a training ends after its step. Raises LostPeerError where a process was killed, and
    ConfigError where there are fewer CUDA devices, or processors, than processes.
    """
    check_backend(backend)
    devices = torch.cuda.device_count() if backend != "gloo" else 0
    most = devices or os.cpu_count() or 1
    if not 1 <= processes <= most:
        what = "CUDA devices" if devices else "processors"
        fix = f"--processes 1 to {most}" + (", or --backend gloo and device: cpu" if devices else "")
        raise ConfigError(f"{processes} processes on {most} {what}", where="--processes", fix=fix)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid4().hex,
        max_restarts=0,
    )
    # The others are handed on, without a limit in time. Older versions of torch read it from the environment.
    config.signals_to_handle = os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP"
    heard: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        heard.append(number)
        for child in psutil.Process().children():  # which know how to end
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    try:
        with hearing(hand_on), _marked(), _silence():
            elastic_launch(config, sys.executable)("-m", "posttrain", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)  # rank 0 has said why
        if -failure.exitcode in heard:
            return 130  # the second one, at its very end
        raise LostPeerError(
            f"rank {rank} of {processes} (pid {failure.pid}) was ended by {signal.Signals(-failure.exitcode).name}",
            fix=GO_ON,
        ) from None
    except SignalException as error:  # the terminal was closed, under them too
        return 128 + int(error.sigval)
    return 0


@contextlib.contextmanager
def _marked() -> Iterator[None]:
    """Inside, processes that are started know from where."""
    os.environ[LAUNCHED] = "1"
    try:
        yield
    finally:
        del os.environ[LAUNCHED]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Inside, torch does not log: what became of the processes is told once, by us."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
