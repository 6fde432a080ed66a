"""Which parameters decay, and that clipping is torch's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.train.config import TrainSettings
from posttrain.train.loop import prepare_model
from posttrain.train.optimizer import build_optimizer, clip_gradients


def groups(stage: TrainSettings, folder: Path) -> dict[float, set[str]]:
    trainee = prepare_model(stage, folder, None, seed=0)
    optimizer = build_optimizer(trainee.model, trainee.trained, stage)
    names = {id(p): name for name, p in trainee.trained.items()}
    found = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    assert sum(len(g) for g in found.values()) == len(trainee.trained)
    return found


def test_full_weights_decay_matrices_only(make_stage: Callable[..., TrainSettings], small_model: Path) -> None:
    found = groups(make_stage(adapter=FullWeights(), weight_decay=0.1), small_model)
    assert all(name.endswith("_proj.weight") for name in found[0.1])
    assert len(found[0.1]) == 14
    assert {name.rsplit(".", 2)[-2] for name in found[0.0]} == {
        "embed_tokens",
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
    }  # fmt: skip  (the head is the embedding)


def test_adapter_matrices_decay_and_dora_magnitudes_do_not(
    make_stage: Callable[..., TrainSettings], small_model: Path
) -> None:
    assert set(groups(make_stage(weight_decay=0.1), small_model)) == {0.1}
    found = groups(make_stage(weight_decay=0.1, adapter=LoraAdapter(rank=2, dora=True)), small_model)
    assert all("magnitude" in name for name in found[0.0])
    assert len(found[0.0]) == 14
    assert not any("magnitude" in name for name in found[0.1])


def test_decay_is_decoupled(make_stage: Callable[..., TrainSettings], small_model: Path) -> None:
    """With a zero gradient a step multiplies matrices by 1 - rate * decay and leaves the rest."""
    stage = make_stage(adapter=FullWeights(), weight_decay=0.1, learning_rate=0.5)
    trainee = prepare_model(stage, small_model, None, seed=0)
    optimizer = build_optimizer(trainee.model, trainee.trained, stage)
    before = {name: p.detach().clone() for name, p in trainee.trained.items()}
    for parameter in trainee.trained.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in trainee.trained.items():
        factor = 0.95 if name.endswith("_proj.weight") else 1.0
        assert torch.allclose(parameter, before[name] * factor, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [None, 0.01, 1.0, 1e6])
def test_clipping_is_torchs(max_norm: float | None) -> None:
    torch.manual_seed(0)
    shapes = [(3, 4), (7,), (2, 2, 2)]
    grads = [torch.randn(shape) for shape in shapes]
    ours, torchs = ([torch.nn.Parameter(torch.zeros(shape)) for shape in [*shapes, (5,)]] for _ in range(2))
    for parameters in (ours, torchs):
        for parameter, grad in zip(parameters, grads, strict=False):  # the last one has no gradient
            parameter.grad = grad.clone()
    norm = clip_gradients(list(ours), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(torchs, max_norm if max_norm is not None else float("inf"))
    assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(ours[:3], torchs[:3], strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-6, atol=0)


def test_the_norm_of_many_numbers_is_exact() -> None:
    """torch's own fp32 norm is 1e-5 off on a CPU here, and by other amounts where the weights are divided."""
    weight = torch.nn.Parameter(torch.zeros(3000, 300))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    exact = float(weight.grad.double().norm())
    assert float(clip_gradients([weight], None)) == pytest.approx(exact, rel=1e-7)
