"""Several processes compute what one computes: losses, gradient norms, held-out rows, going on; and none waits for one that has died."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rank_groups import Groups, Trained

METHODS = ("sft-full", "sft-lora", "dpo", "kto", "reward")


def assert_alike(found: Trained, expected: Trained, relative: float = 1e-6) -> None:
    """Loss and gradient norm of every step (AdamW hides a wrong factor from the loss alone), and the held-out losses."""
    for split, names in (("train", ("loss", "grad_norm", "tokens", "supervised_tokens")), ("held_out", ("loss",))):
        got, wanted = found.numbers(split, *names), expected.numbers(split, *names)
        assert len(got) == len(wanted) > 2
        for step, (a, b) in enumerate(zip(got, wanted, strict=True)):
            assert a == pytest.approx(b, rel=relative), f"{split} {step}"


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[] if what == "dpo" else pytest.mark.slow) for what in METHODS]
)
def test_two_and_four_compute_what_one_computes(what: str, groups: Groups, tmp_path: Path) -> None:
    one = groups.train(tmp_path / "1", 1, what)
    for size in (2, 4):
        found = groups.train(tmp_path / str(size), size, what)
        assert_alike(found, one)


def test_the_gradients_of_an_adapter_are_reduced_once_a_step(groups: Groups, tmp_path: Path) -> None:
    found = groups.train(tmp_path / "2", 2, "sft-lora", steps=6)
    reductions = json.loads((found.out / "reductions.json").read_text())
    assert len(reductions) == 6
    assert len(set(reductions)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("begun", "others"), [(2, (1, 4)), (1, (2,))])
def test_a_checkpoint_is_gone_on_with_by_another_number(
    begun: int, others: tuple[int, ...], groups: Groups, tmp_path: Path
) -> None:
    whole = groups.train(tmp_path / "whole", 1, "sft-lora")
    for size in others:
        out = tmp_path / str(size)
        half = groups.train(out, begun, "sft-lora", stop_at=9)
        assert len(half.numbers("train", "loss")) == 9
        assert_alike(groups.train(out, size, "sft-lora"), whole)


@pytest.mark.slow
def test_whoever_is_killed_the_others_end_and_the_run_goes_on(groups: Groups, tmp_path: Path) -> None:
    """Ten kills at random moments, of rank 0 and of others; then the same bits as undisturbed."""
    whole, out, draw = groups.train(tmp_path / "whole", 3, "dpo", steps=120), tmp_path / "cut", random.Random(0)
    for kill in range(10):
        groups.start(out, 3, "dpo", steps=120)
        wait_for(lambda: len(list(out.glob("joined*"))) == 3 and (out / "ranks.json").exists())
        pids = json.loads((out / "ranks.json").read_text())
        if kill % 2:
            target = lines_of(out) + draw.randrange(8)
            wait_for(lambda: lines_of(out) >= target)  # noqa: B023
        time.sleep(draw.random() * 0.05)
        victim = kill % 3
        os.kill(pids[victim], signal.SIGKILL)
        begin = time.monotonic()
        assert groups.server.status() == 0
        assert time.monotonic() - begin < 20
        codes = Trained(out).codes
        assert codes[victim] == -signal.SIGKILL
        assert all(code == 2 for rank, code in enumerate(codes) if rank != victim), Trained(out).said
        assert f"rank {victim} of 3 (pid {pids[victim]}) was ended in the middle of the work" in Trained(out).said
    assert 0 < lines_of(out) < lines_of(whole.out)
    assert_alike(groups.train(out, 3, "dpo", steps=120), whole, relative=0)


def lines_of(out: Path) -> int:
    path = out / "stage" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(look: Callable[[], Any]) -> Any:
    """What is seen, once it is something."""
    until = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < until
        time.sleep(0.001)
    return found
