"""A process that has imported what a training needs, and forks a group of them per line of its standard input; see conftest.py.

Input: JSON {"model", "out", "size", "what", "steps", "stop_at", "blind", ...}; output: the pid of the process that starts the group (as torchrun would), then its
exit status. ``out``/ranks.json: the pids of the ranks as they begin, ``out``/ended.json: their exit codes. Only rank 0 writes into ``out``/stage.
``what``: a training of `SETTINGS`, or ``run``: the whole command line, with ``words``; rank ``broken`` can't make replies, rank ``blind`` does not see what rank 0 writes.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers.models.llama.modeling_llama
from torch import distributed
from torch.distributed import TCPStore

from forking import serve_forks
from posttrain.artifacts import StageDir
from posttrain.cli import main
from posttrain.encode.preferences import FeedbackTokens, PairTokens, with_reply_of
from posttrain.errors import InterruptedRunError, ModelError, PosttrainError
from posttrain.generate import shared
from posttrain.lab import engine
from posttrain.model.config import FullWeights, LoraAdapter, Shard
from posttrain.objectives import (
    DpoObjective,
    IpoObjective,
    KtoObjective,
    OrpoObjective,
    RewardObjective,
    SftObjective,
    SimpoObjective,
)
from posttrain.parallel import joined
from posttrain.train.config import TrainSettings
from posttrain.train.loop import Reference, TrainInputs, train
from posttrain.types import Tokens

LOADED = (transformers, engine._joins())
SETTINGS: dict[str, dict[str, Any]] = {
    "sft-full": {"objective": SftObjective(), "adapter": FullWeights()},
    "sft-lora": {"objective": SftObjective()},
    "dpo": {"objective": DpoObjective()},
    "kto": {"objective": KtoObjective()},
    "reward": {"objective": RewardObjective()},
    "ipo": {"objective": IpoObjective()},
    "simpo": {"objective": SimpoObjective()},
    "orpo": {"objective": OrpoObjective()},
    "qlora": {"objective": SftObjective(), "adapter": LoraAdapter(rank=4, alpha=8, quantize="nf4")},
}


def units_of(kind: str) -> list[Any]:
    """Forty rows of a kind, of many lengths."""
    draw = np.random.default_rng(0)
    rows = []
    for number, length in enumerate(draw.integers(6, 60, 41)):
        weights_T = np.zeros(length, np.float32)
        weights_T[length // 2 :] = draw.choice([1.0, 0.5]) if kind == "conversations" else 1
        rows.append(Tokens(draw.integers(3, 199, length).astype(np.int32), weights_T, str(number)))
    if kind == "conversations":
        return rows
    if kind == "feedback":
        return [FeedbackTokens(row, number % 2 == 0) for number, row in enumerate(rows)]
    return [PairTokens(a, with_reply_of(a, b), a.row_id) for a, b in itertools.pairwise(rows)]


def train_as(rank: int, order: dict[str, Any], out: Path) -> None:
    """Be one rank of a training, from its start to its end."""
    if order.get("other_code") == rank:
        joined._code = lambda: "of another release"
    peers = joined.joined()
    assert (peers.rank, peers.size) == (rank, order["size"])
    (out / f"joined{rank}").touch()
    settings = TrainSettings(
        **{
            "adapter": LoraAdapter(rank=4, alpha=8),
            "dtype": "fp32",
            "device": "cpu",
            "batch_size": 8,
            "micro_batch_tokens": 120,
            "epochs": 100,
            "max_steps": order["steps"],
            "evaluate_every": 5,
            "checkpoint_every": 1000,
            "learning_rate": 1e-3,
        }
        | SETTINGS[order["what"]]
    )
    if order.get("shard"):
        settings = replace(settings, shard=Shard())
    settings = replace(settings, **order.get("settings", {}))
    units = units_of(settings.objective.row_kind)
    reference = Reference(out / "reference.safetensors", "base")
    inputs = TrainInputs(Path(order["model"]), units[:33], held_out=units[33:], reference=reference)
    done, sums = 0, counted()

    def observed(record: Any) -> None:
        nonlocal done
        done = max(done, record["step"])

    with TemporaryDirectory() as aside, peers.whole():
        folder = out / "stage" if peers.leads else Path(aside)
        stop = order.get("stop_at")
        try:
            train(
                settings,
                inputs,
                StageDir(folder),
                seed=1,
                digest="d",
                observer=observed,
                stop_asked=lambda: stop is not None and done >= stop,
                peers=peers,
            )
        except InterruptedRunError:
            assert stop is not None
    if peers.leads:
        (out / "reductions.json").write_text(json.dumps(sums))
    if peers.size > 1:
        distributed.destroy_process_group()


def counted() -> list[int]:
    """From here on the numbers of tensors' elements that were reduced, one for each reduction."""
    found: list[int] = []
    real: Callable[..., Any] = distributed.all_reduce

    def counting(tensor: torch.Tensor, *rest: Any, **more: Any) -> Any:
        found.append(tensor.numel())
        return real(tensor, *rest, **more)

    distributed.all_reduce = counting
    return found


def broken(*_: object) -> Any:
    """Stands for a decoding without memory."""
    raise ModelError("no memory", fix="fewer slots")


def work(order: dict[str, Any]) -> None:
    """Start the ranks, end all when one has died, and leave how each ended."""
    torch.set_num_threads(1)
    out, size = Path(order["out"]), order["size"]
    out.mkdir(parents=True, exist_ok=True)
    keeper, port = _store()
    os.environ |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    pids = [_fork(rank, order, out) for rank in range(size)]
    (out / "ranks.tmp").write_text(json.dumps(pids))
    (out / "ranks.tmp").rename(out / "ranks.json")
    codes: dict[int, int] = {}
    while len(codes) < size:
        pid, status = os.wait()
        codes[pids.index(pid)] = os.waitstatus_to_exitcode(status)
    os.kill(keeper, signal.SIGKILL)
    (out / "ended.json").write_text(json.dumps([codes[rank] for rank in range(size)]))


def _store() -> tuple[int, int]:
    """A process that keeps the store, and its port. A thread of this process would hold locks of libc while the ranks are forked."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        parent = os.getppid()
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
        os.write(writing, f"{store.port}\n".encode())
        while os.getppid() == parent:
            time.sleep(0.1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as port:
        return pid, int(port.readline())


def _fork(rank: int, order: dict[str, Any], out: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    log = os.open(out / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        if order["what"] == "run":
            sys.argv = ["posttrain", "run", *order["words"]]
            joined.GRACE = order.get("grace", joined.GRACE)
            if order.get("blind") == rank:
                see = Path.is_file
                Path.is_file = lambda path: ".seen" not in path.name and see(path)  # type: ignore[method-assign]
            if order.get("broken") == rank:
                shared.decode = broken
            main()
        else:
            train_as(rank, order, out)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except PosttrainError as error:
        os.write(2, f"error: {error}\n".encode())
        code = 2
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    os._exit(code)


if __name__ == "__main__":
    serve_forks(work)
