"""Checkpoints: what is saved comes back to the bit; damage and foreign ones are told apart."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.errors import CheckpointError, RunError
from posttrain.train import checkpoint
from posttrain.train.checkpoint import SLOTS, Checkpoints, Progress, optimizer_tensors, restore_optimizer


def tensors(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    weights = {"layer/with.dots": torch.randn(3, 4), "half": torch.randn(5).bfloat16()}
    return weights, {"exp_avg/layer/with.dots": torch.randn(3, 4), "step/half": torch.tensor(float(seed))}


def three_saves(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder, "digest")
    for step in (1, 2, 3):
        checkpoints.save(Progress(step=step, best_loss=0.1 * step), *tensors(step))
    return checkpoints


def newest(folder: Path) -> Path:
    return max((folder / name for name in SLOTS), key=lambda path: path.stat().st_mtime_ns)


def test_round_trip_to_the_bit(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, "digest").load() is None
    loaded = three_saves(tmp_path).load()
    assert loaded is not None
    progress, weights, optimizer = loaded
    assert progress == Progress(step=3, best_loss=0.1 * 3)
    for got, expected in zip((weights, optimizer), tensors(3), strict=True):
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[n], expected[n]) and got[n].dtype == expected[n].dtype for n in expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(SLOTS)


def test_infinite_best_loss_survives(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "digest")
    checkpoints.save(Progress(step=1), *tensors(1))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded[0] == Progress(step=1)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_newest_falls_back_to_the_one_before(keep: float, tmp_path: Path) -> None:
    checkpoints = three_saves(tmp_path)
    path = newest(tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.warns(UserWarning, match="damaged.*going on from the checkpoint before it"):
        loaded = checkpoints.load()
    assert loaded is not None
    assert loaded[0].step == 2
    # The next two saves replace the damaged file.
    for step in (3, 4):
        checkpoints.save(Progress(step=step), *tensors(step))
    again = checkpoints.load()
    assert again is not None
    assert again[0].step == 4


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    checkpoints = three_saves(tmp_path)
    path = newest(tmp_path)
    whole = path.read_bytes()
    for place in range(8, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.warns(UserWarning, match="going on from the checkpoint before it"):
            loaded = checkpoints.load()
        assert loaded is not None, place
        assert loaded[0].step == 2, place


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    checkpoints = three_saves(tmp_path)
    for name in SLOTS:
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"no usable checkpoint(.|\n)*fix: remove"):
        checkpoints.load()


def test_another_configuration_is_an_error_even_beside_a_good_one(tmp_path: Path) -> None:
    three_saves(tmp_path)
    other = Checkpoints(tmp_path, "other")
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        other.load()
    other.save(Progress(step=9), *tensors(9))
    for checkpoints in (other, Checkpoints(tmp_path, "digest")):
        with pytest.raises(CheckpointError, match="belongs to another configuration"):
            checkpoints.load()


def test_a_foreign_safetensors_file_is_damage(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / SLOTS[0])
    with pytest.raises(CheckpointError, match="damaged"):
        Checkpoints(tmp_path, "digest").load()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_full_disk_and_read_only_folder(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = three_saves(tmp_path)

    def fail(tensors: object, filename: Path, metadata: object) -> None:
        filename.write_bytes(b"half")
        raise OSError(number, "no")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(RunError, match="disk is full" if number == errno.ENOSPC else "read-only"):
        checkpoints.save(Progress(step=4), *tensors(4))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded[0].step == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(SLOTS)


@pytest.mark.slow
def test_safetensors_own_error_on_a_full_disk(tmp_path: Path) -> None:
    """The real thing: a file that may not grow (RLIMIT_FSIZE) makes safetensors raise an error of its own type."""
    import subprocess
    import sys

    code = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from posttrain.errors import RunError\n"
        "from posttrain.train.checkpoint import Checkpoints, Progress\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        "try: Checkpoints(Path(sys.argv[1]), 'd').save(Progress(step=1), {'w': torch.zeros(9000)}, {})\n"
        "except RunError as error: print('told:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("told:")
    assert list(tmp_path.iterdir()) == []


def test_optimizer_state_round_trip() -> None:
    """Restored into a fresh optimizer, AdamW goes on to the bit; the step counter stays on the host."""

    def start() -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
        torch.manual_seed(0)
        parameters = {"a": torch.nn.Parameter(torch.randn(3)), "b/a": torch.nn.Parameter(torch.randn(2, 2))}
        return parameters, torch.optim.AdamW(parameters.values(), lr=0.1, fused=True)

    def step(parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
        torch.manual_seed(number)
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    whole, whole_optimizer = start()
    for number in range(5):
        step(whole, whole_optimizer, number)
    first, first_optimizer = start()
    for number in range(3):
        step(first, first_optimizer, number)
    saved = {n: t.clone() for n, t in optimizer_tensors(first_optimizer, {id(p): n for n, p in first.items()}).items()}
    assert {n.split("/")[0] for n in saved} == {"exp_avg", "exp_avg_sq", "step"}
    assert len(saved) == 6
    second, second_optimizer = start()
    with torch.no_grad():
        for name, parameter in second.items():
            parameter.copy_(first[name])
    restore_optimizer(second_optimizer, saved, {id(p): n for n, p in second.items()})
    assert all(set(state) == {"exp_avg", "exp_avg_sq", "step"} for state in second_optimizer.state.values())
    for number in range(3, 5):
        step(second, second_optimizer, number)
    assert all(torch.equal(whole[n], second[n]) for n in whole)


def test_progress_is_plain_numbers(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "digest").save(Progress(step=1), *tensors(1))
    assert set(load_file(tmp_path / SLOTS[0])) == {
        "weights/layer/with.dots", "weights/half", "optimizer/exp_avg/layer/with.dots", "optimizer/step/half",
    }  # fmt: skip
