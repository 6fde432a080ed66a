"""Several processes compute what one computes: losses, gradient norms, held-out rows, going on; and none waits for one that has died."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from rank_groups import Groups, Trained, wait_for

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


@pytest.mark.slow
@pytest.mark.parametrize("what", ["ipo", "simpo", "orpo", "qlora"])
def test_two_compute_what_one_computes(what: str, groups: Groups, tmp_path: Path) -> None:
    one = groups.train(tmp_path / "1", 1, what)
    assert_alike(groups.train(tmp_path / "2", 2, what), one)


@pytest.mark.slow
@pytest.mark.parametrize("what", METHODS)
def test_divided_weights_compute_the_same(what: str, groups: Groups, tmp_path: Path) -> None:
    """FSDP2 with two processes; all weights are gone on with by four and by one, from their sharded files."""
    one = groups.train(tmp_path / "1", 1, what)
    assert_alike(groups.train(tmp_path / "2", 2, what, shard=True), one)
    if what == "sft-full":
        for size in (4, 1):
            groups.train(tmp_path / f"2-{size}", 2, what, shard=True, stop_at=9)
            assert_alike(groups.train(tmp_path / f"2-{size}", size, what, shard=True), one)
        parts = [Trained(tmp_path / size).memory["parts"] for size in ("1", "2")]
        for name in ("weights", "gradients", "optimizer"):
            assert parts[1][name] == pytest.approx(parts[0][name] / 2, rel=0.02), name


@pytest.mark.slow
def test_divided_weights_with_checkpointing_and_in_bf16(groups: Groups, tmp_path: Path) -> None:
    """Layers that are gathered twice; and the mixed precision of FSDP2, fp32 masters under bf16 products, beside autocast's."""
    for name, settings, relative in (
        ("twice", {"gradient_checkpointing": True}, 1e-6),
        ("bf16", {"dtype": "bf16"}, 0.03),
    ):
        one = groups.train(tmp_path / f"{name}1", 1, "sft-full", steps=8, settings=settings)
        two = groups.train(tmp_path / f"{name}2", 2, "sft-full", steps=8, settings=settings, shard=True)
        assert_alike(two, one, relative)


@pytest.mark.slow
def test_a_sharded_checkpoint_that_lacks_a_file(groups: Groups, tmp_path: Path) -> None:
    """The one before is gone on with; where both are damaged, all processes end with one message."""
    one = groups.train(tmp_path / "1", 1, "sft-lora", steps=12)
    out = tmp_path / "2"
    often = {"checkpoint_every": 2}
    groups.train(out, 2, "sft-lora", steps=12, shard=True, stop_at=6, settings=often)
    slots = sorted(
        (out / "stage" / "checkpoints").glob("[ab]"), key=lambda slot: (slot / "state.json").stat().st_mtime_ns
    )
    (missing, *_) = sorted(slots[-1].glob("*.safetensors"))
    missing.unlink()
    assert_alike(groups.train(out, 2, "sft-lora", steps=12, shard=True, settings=often), one)
    for slot in (out / "stage" / "checkpoints").glob("[ab]"):
        sorted(slot.glob("*.safetensors"))[-1].unlink()
    groups.start(out, 2, "sft-lora", steps=14, shard=True, settings=often)
    assert groups.server.status() == 0
    assert Trained(out).codes == [2, 2]
    assert f"{slots[0].with_name('a')}: this checkpoint is damaged" in Trained(out).said
    assert "shard-00002" in Trained(out).said


def test_the_gradients_of_an_adapter_are_reduced_once_a_step(groups: Groups, tmp_path: Path) -> None:
    found = groups.train(tmp_path / "2", 2, "sft-lora", steps=6)
    reductions = json.loads((found.out / "reductions.json").read_text())
    assert len(reductions) == 6
    assert len(set(reductions)) == 1


def test_a_process_that_does_not_see_the_run_folder_is_named_before_anything_runs(
    groups: Groups, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    groups.start(tmp_path, 2, "run", words=["--runs", str(runs), "no.yaml"], blind=1, grace=0.0)
    assert groups.server.status() == 0
    found = Trained(tmp_path)
    assert found.codes == [2, 0]
    assert found.said.startswith(f"error: {runs}: rank 1 of 2 on ")
    assert " does not see what rank 0 writes there\n" in found.said
    assert found.said.count("error:") == 1
    assert not list(runs.iterdir())


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
    often = {"checkpoint_every": 1}
    for kill in range(10):
        groups.start(out, 3, "dpo", steps=120, settings=often)
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
    assert_alike(groups.train(out, 3, "dpo", steps=120, settings=often), whole, relative=0)


def lines_of(out: Path) -> int:
    path = out / "stage" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_rank_with_other_code_is_refused(groups: Groups, tmp_path: Path) -> None:
    groups.start(tmp_path, 2, "sft-lora", other_code=1)
    assert groups.server.status() == 0
    assert Trained(tmp_path).codes == [2, 2]
    assert "the processes have not the same version of posttrain: rank 0 has" in Trained(tmp_path).said
