"""What `test_second_device.py` runs in a process of its own: the same work on the CPU and on a pretended second device.

    PYTHONPATH=tests:benchmarks python tests/train/second_device_checks.py [NAME ...]        one JSON object: check -> "" or what went wrong

Every check computes the same numbers twice and wants them equal to the bit, but where it says how near; what a GPU would wait for is counted.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
from gpu_check import example, gradients, task_of, units_of
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

import second_device
from families import micro_folder
from posttrain.artifacts import StageDir
from posttrain.generate.decode import decode
from posttrain.generate.engine import Sampling
from posttrain.model import hardware, packed_kernels
from posttrain.model.adapters import frozen_model
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.model.score import score
from posttrain.objectives import Objective, SftObjective
from posttrain.train import loop
from posttrain.train.config import TrainSettings
from posttrain.train.loop import TrainInputs, optimizer_step, prepare_model, train
from posttrain.train.optimizer import build_optimizer
from varlen import documented

SECOND = f"{second_device.NAME}:0"
OBJECTIVES: tuple[type[Any], ...] = get_args(get_args(Objective)[0])
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt-oss", "phi3", "mistral", "olmo2", "smollm3")
"""Grouped queries, windows, norms of heads, capped scores and logits, sinks: each with its own path through attention."""
ONE_A_STEP = ["aten._to_copy.default to the host"]
"""What an optimizer step waits for: loss and gradient norm, to see that they are finite."""
NEAR, ROUGH = 1e-5, 0.1
"""Of the largest number: what attention in another order rounds away, in fp32 and in bf16."""
VOCABULARY = 199
LENGTHS = (30, 7, 64, 21)


def settings_for(device: str, **changes: Any) -> TrainSettings:
    """A small stage."""
    options: dict[str, Any] = {
        "adapter": LoraAdapter(rank=4, alpha=8),
        "batch_size": 4,
        "micro_batch_tokens": 96,
        "learning_rate": 5e-3,
        "adam_epsilon": 1e-3,  # with none a small gradient is divided by its own size, and so is what was rounded away
        "dtype": "fp32",
        "device": device,
    }
    return TrainSettings(**options | changes)


def on_both(work: Callable[[str], Any]) -> tuple[Any, Any]:
    """What some work gives on the CPU, with nobody looking on, and on the second device."""
    with _disable_current_modes():
        found = work("cpu")
    return found, work(SECOND)


def equal(first: Any, second: Any, near: float = 0.0) -> None:
    """Raise AssertionError where numbers or tensors differ by more than ``near`` of the largest."""
    for a, b in zip(first, second, strict=True):
        a, b = (torch.as_tensor(x.cpu() if isinstance(x, Tensor) else x).detach().double() for x in (a, b))
        apart = float((a - b).abs().max()) if a.numel() else 0.0
        assert apart <= near * float(a.abs().max()), f"{a.shape}: {apart:.3g} apart, of {float(a.abs().max()):.3g}"


@contextlib.contextmanager
def no_waits(allowed: Sequence[str] = ()) -> Iterator[None]:
    """Inside, nothing may wait for the device but what is allowed, in this order."""
    second_device.waits.clear()
    yield
    found = second_device.waits.found
    assert [wait.partition(" (")[0] for wait in found] == list(allowed), found


def check_step(folder: Path, objective: Any, name: str = "llama", near: float = NEAR, **changes: Any) -> None:
    """A step of two micro-batches: loss, norm, gradients and the weights after it; the micro-batches wait for nothing."""
    model = folder / name
    if not model.exists():
        micro_folder(name, model)

    def work(device: str) -> tuple[list[Any], list[Tensor]]:
        settings = settings_for(device, objective=objective, **changes)
        trainee = prepare_model(settings, model, None, seed=0)
        optimizer = build_optimizer(trainee.model, trainee.trained, settings)
        units = units_of(objective, LENGTHS, VOCABULARY)
        task, groups = task_of(objective, units), (units[:2], units[2:])
        context = loop.step_context(trainee, task, units, 96)
        gradients(trainee, task, groups, context)  # what is made once for a layout and kept is made the first time
        with no_waits():
            results = gradients(trainee, task, groups, context)
        results = [tensor.clone() for tensor in results]
        trainee.model.zero_grad()
        steps = ONE_A_STEP if not task.beside(units) else None
        with no_waits(steps) if steps and device != "cpu" else contextlib.nullcontext():
            torch.manual_seed(0)
            found = optimizer_step(trainee, optimizer, task, groups, 1e-3, 1.0)
        kinds = {(p.device.type, p.dtype) for p in trainee.trained.values()}
        assert kinds == {(torch.device(device).type, torch.float32)}, kinds
        return [found.loss, found.grad_norm, *found.metrics.values(), *results], list(trainee.trained.values())

    (found, weights), (found_second, weights_second) = on_both(work)
    equal(found, found_second, near)
    if near == NEAR:
        equal(weights, weights_second, 1e-3)


def check_one_call(folder: Path) -> None:
    """The same where all segments are one call: what torch documents stands for its kernel, and may wait."""

    def kernel(*arguments: Any, **options: Any) -> Tensor:
        before = len(second_device.waits.found)
        out = documented(*arguments, **options)
        del second_device.waits.found[before:]
        return out

    dpo = next(kind for kind in OBJECTIVES if kind.__name__ == "DpoObjective")()
    with (
        mock.patch.object(packed_kernels, "_varlen_attn", kernel),
        mock.patch.object(packed_kernels, "chosen", return_value="varlen"),
    ):
        for name in ("llama", "mistral"):
            check_step(folder, dpo, name)


def check_stage(folder: Path, **changes: Any) -> None:
    """A whole DPO stage: reference, evaluation, checkpoints, written adapter; killed after two steps and resumed."""
    model = micro_folder("llama", folder / "model")
    objective: Any = next(kind for kind in OBJECTIVES if kind.__name__ == "DpoObjective")()
    units = units_of(objective, LENGTHS, VOCABULARY)

    def work(device: str) -> list[Any]:
        losses: list[float] = []
        out = folder / device.replace(":", "-")
        out.mkdir()
        for steps in (2, None):
            settings = settings_for(device, objective=objective, epochs=2, batch_size=2, max_steps=steps, **changes)
            train(
                settings,
                TrainInputs(model, units, held_out=units[:2]),
                StageDir(out),
                seed=0,
                digest="check",
                observer=lambda record: losses.append(record["loss"]),
            )
        assert len(losses) == 4 + 5, losses  # steps; evaluations before the first, and after each
        return losses

    equal(*on_both(work), near=NEAR)


def check_generation(folder: Path, name: str) -> None:
    """Greedy and sampled tokens; choosing them waits for the device, computing them does not."""
    model = micro_folder(name, folder / "model")
    prompts = [np.arange(3, 3 + n, dtype=np.int32) for n in (5, 30, 12)]
    samplings = [
        Sampling(max_tokens=12),
        Sampling(max_tokens=9, temperature=0.8, top_p=0.9, seed=1),
        Sampling(max_tokens=5),
    ]

    def work(device: str) -> list[Any]:
        loaded = frozen_model(model, None, torch.float32, hardware.resolve_device(device))
        list(decode(loaded, prompts, [(2,)], samplings))  # the ways to decode are proven the first time
        second_device.waits.clear()
        found = [(new.prompt, new.token) for new in decode(loaded, prompts, [(2,)], samplings)]
        waited = {wait.partition(" (")[2].partition(":")[0] for wait in second_device.waits.found}
        assert waited <= {"generate/decode.py"}, second_device.waits.found
        return found

    equal(*on_both(work), near=NEAR)


def check_scoring(folder: Path) -> None:
    """Likelihoods without gradient; a pass is waited for once, when it is read."""
    model = micro_folder("llama", folder / "model", vocab_size=4500)  # three tiles of the vocabulary

    def work(device: str) -> list[Any]:
        loaded = frozen_model(model, None, torch.float32, hardware.resolve_device(device))
        rows = [example(n, seed, 2, VOCABULARY) for seed, n in enumerate(LENGTHS)]
        with no_waits(ONE_A_STEP if device != "cpu" else ()):
            return list(score(loaded, rows, 1000, torch.float32).nll_N)

    equal(*on_both(work), near=NEAR)


def checks(folder: Path) -> dict[str, Callable[[Path], None]]:
    """All checks by name."""
    sft = SftObjective()
    found: dict[str, Callable[[Path], None]] = {
        f"objective {kind().name}": partial(check_step, objective=kind()) for kind in OBJECTIVES
    }
    found |= {f"family {name}": partial(check_step, objective=sft, name=name) for name in FAMILIES}
    found["all weights"] = partial(check_step, objective=sft, adapter=FullWeights())
    found["all weights, bf16 products"] = partial(
        check_step, objective=sft, adapter=FullWeights(), dtype="bf16", near=ROUGH
    )
    found["adapter, bf16"] = partial(check_step, objective=sft, dtype="bf16", near=ROUGH)
    found["4 bits"] = partial(check_step, objective=sft, adapter=LoraAdapter(rank=4, quantize="nf4"))
    found["DoRA"] = partial(check_step, objective=sft, adapter=LoraAdapter(rank=4, dora=True))
    found["dropout"] = partial(check_step, objective=sft, adapter=LoraAdapter(rank=4, dropout=0.3))
    found["checkpointing"] = partial(check_step, objective=sft, gradient_checkpointing=True)
    found["one call"], found["stage"] = check_one_call, check_stage
    found["stage, planned"] = partial(check_stage, micro_batch_tokens="auto")
    found |= {f"generation {name}": partial(check_generation, name=name) for name in ("llama", "gemma2", "gpt-oss")}
    found["scoring"] = check_scoring
    return found


def main() -> None:
    """Run the named checks, or all."""
    second_device.device()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what the imports have made: every stage's collections would go through it
    found = {}
    for name, check in checks(Path()).items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder, second_device.pretended(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                check(Path(folder))
                found[name] = ""
            except Exception:
                found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
