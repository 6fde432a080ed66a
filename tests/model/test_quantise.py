"""Weights in 4 bits, by value against the paper's arithmetic, and trained against the same weights written out."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from families import QUICK, micro_folder
from posttrain.artifacts import StageDir
from posttrain.encode.preferences import FeedbackTokens, PairTokens
from posttrain.errors import ConfigError, ModelError
from posttrain.model import fused, quantise
from posttrain.model.adapters import (
    BASE_RECORD,
    adapter_mismatch,
    attach_lora,
    frozen_model,
    load_adapter,
    load_base,
    quantised_base,
    save_adapter,
    saved_settings,
    trainable_parameters,
)
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.model.export import merge_adapter, save_model
from posttrain.model.load import load_model
from posttrain.model.quantise import Nf4Linear, dequantise
from posttrain.model.score import batch_logps, lay_out
from posttrain.objectives import (
    DpoObjective,
    KtoObjective,
    OrpoObjective,
    RewardObjective,
)
from posttrain.train.config import TrainSettings
from posttrain.train.loop import TrainInputs, prepare_model, train
from posttrain.train.quantisation import GAP_FILE
from posttrain.types import Tokens

CPU, FP32 = torch.device("cpu"), torch.float32
NF4 = LoraAdapter(rank=4, alpha=8.0, quantize="nf4")
CODE = """-1 -0.6961928 -0.5250731 -0.3949175 -0.2844414 -0.1847734 -0.0910500 0 0.0795803 0.1609302 0.2461123 0.3379152 0.4407098
0.5626170 0.7229568 1"""
"""The 16 values of appendix E of the paper."""
REFUSED = ("gpt2", "deepseek-v3.2")
"""Layers of another kind, and code that reads weights past their layers."""

pytest.importorskip("bitsandbytes")


def layer(rows: int = 256, columns: int = 512) -> nn.Linear:
    linear = nn.Linear(columns, rows)
    nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(0))
    return linear.requires_grad_(False)


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def test_the_code_table_and_the_packing_are_the_papers() -> None:
    code = np.array([float(word) for word in CODE.split()])
    linear = nn.Linear(32, 32, bias=False)
    linear.weight.data = torch.from_numpy(
        np.resize(code, (32, 32))
    ).float()  # every block reaches 1: all of it is exact
    kept = Nf4Linear(linear, FP32, CPU)
    np.testing.assert_allclose(kept.dense(FP32).numpy(), linear.weight.detach().numpy(), atol=1e-6)
    np.testing.assert_array_equal(kept.weight.numpy()[:8, 0], [16 * k + k + 1 for k in range(0, 16, 2)])


@pytest.mark.parametrize("columns", [512, 48])
def test_a_weight_becomes_the_nearest_value_times_its_doubly_quantised_magnitude(columns: int) -> None:
    """Whether or not a row is a whole number of blocks."""
    linear = layer(1024, columns)
    kept, code = Nf4Linear(linear, FP32, CPU), np.array([float(word) for word in CODE.split()])
    blocks = linear.weight.numpy().astype(np.float64).reshape(-1, 64)
    magnitudes = np.abs(blocks).max(1)
    nearest = code[np.abs(blocks[..., None] / magnitudes[:, None, None] - code).argmin(-1)]
    found = kept.dense(FP32).numpy().astype(np.float64).reshape(-1, 64)
    used = (found * nearest).sum(1) / (nearest**2).sum(1)  # the magnitude each block was unpacked with
    np.testing.assert_allclose(found, nearest * used[:, None], rtol=0, atol=2e-6)
    centred = magnitudes - magnitudes.mean()
    steps = np.abs(centred).reshape(-1, 256).max(1).repeat(256)
    assert (np.abs(used - magnitudes) / steps).max() < 0.01  # 8 bits of a block of 256, finest near the mean
    error = np.linalg.norm(found - blocks) / np.linalg.norm(blocks)
    assert error == pytest.approx(
        0.092, abs=0.001
    )  # of normally distributed weights, with and without double quantisation


def test_a_parameter_takes_4_127_bits() -> None:
    kept = Nf4Linear(layer(2048, 2048), FP32, CPU)
    constants = kept.nbytes - 4 * (16 + 256) - 4  # two code tables and the mean, once a matrix
    assert 8 * constants / 2048**2 == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-9)


def test_forward_and_gradient_are_those_of_the_dense_weight() -> None:
    kept = Nf4Linear(layer(), FP32, CPU)
    x = torch.randn(7, 512, requires_grad=True)
    kept(x).square().sum().backward()
    assert x.grad is not None
    found, x.grad = x.grad.clone(), None
    nn.functional.linear(x, kept.dense(FP32), kept.bias).square().sum().backward()
    assert torch.equal(found, x.grad)


# ---- a model of them -------------------------------------------------------------------------------------------------


def dense_folder(model_folder: Path, folder: Path) -> Path:
    """The model that a 4-bit base stands for, as a folder of plain weights."""
    model = load_base(model_folder, FP32, CPU, "nf4")
    dequantise(model, FP32)
    folder.mkdir()
    save_model(model, folder, FP32)
    return folder


def moved(model: nn.Module) -> nn.Module:
    """An adapter that has learned something."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in trainable_parameters(model).items():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def logps(model: nn.Module, examples: list[Tokens]) -> torch.Tensor:
    return batch_logps(model, lay_out(model, examples), FP32).logps_S


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [*QUICK, "deepseek-v3.2", "falcon-h1", "gemma3n"])
def test_a_family_on_4_bits_is_the_family_on_what_they_stand_for(
    family: str, random_examples: Callable[..., list[Tokens]], tmp_path: Path
) -> None:
    examples = random_examples([9, 30, 17])
    folder = micro_folder(family, tmp_path)
    if family in REFUSED:
        with pytest.raises(ModelError, match="can't be kept in 4 bits"):
            load_base(folder, FP32, CPU, "nf4")
        return
    model = moved(attach_lora(load_base(folder, FP32, CPU, "nf4"), NF4, seed=0))
    fused.fuse(model)
    found = batch_logps(model, lay_out(model, examples), FP32).logps_S
    found.sum().backward()
    got = {name: p.grad.clone() for name, p in trainable_parameters(model).items() if p.grad is not None}
    fused.unfuse(model)
    model.zero_grad()
    dequantise(model, FP32)
    expected = batch_logps(model, lay_out(model, examples), FP32).logps_S
    expected.sum().backward()
    assert float((found - expected).abs().max() / (1 + expected.abs().max())) < 1e-5
    for name, p in trainable_parameters(model).items():
        if p.grad is not None:
            assert float((got[name] - p.grad).norm()) <= 1e-4 * float(p.grad.norm()) + 1e-6, name


def test_the_hot_path_takes_all_of_it(small_model: Path) -> None:
    plain = attach_lora(load_model(small_model, FP32, CPU), LoraAdapter(rank=4), seed=0)
    kept = attach_lora(load_base(small_model, FP32, CPU, "nf4"), NF4, seed=0)
    assert fused.fuse(kept) == fused.fuse(plain)


def test_the_4_bits_do_not_depend_on_the_compute_type(small_model: Path) -> None:
    one, other = (quantise.layers(load_base(small_model, dtype, CPU, "nf4")) for dtype in (FP32, torch.bfloat16))
    assert len(one) == 14
    assert all(torch.equal(a.dense(FP32), b.dense(FP32)) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_thirty_steps_are_those_of_lora_on_the_dense_weights(
    small_model: Path, random_examples: Callable[..., list[Tokens]], tmp_path: Path
) -> None:
    examples = random_examples([9, 30, 2, 17, 25, 6, 12, 40])
    losses = []
    for name, folder, adapter in (
        ("nf4", small_model, NF4),
        ("dense", dense_folder(small_model, tmp_path / "folder"), LoraAdapter(rank=4, alpha=8.0)),
    ):
        settings = TrainSettings(
            dtype="fp32",
            device="cpu",
            adapter=adapter,
            batch_size=4,
            epochs=15,
            learning_rate=3e-3,
            micro_batch_tokens=40,
        )
        out = StageDir(tmp_path / name)
        with contextlib.nullcontext() if adapter.quantize is None else pytest.warns(UserWarning, match="4 bits"):
            train(settings, TrainInputs(folder, examples), out, seed=0, digest="d")
        losses.append([record["loss"] for record in out.metrics()])
        assert out.file(GAP_FILE).exists() == (name == "nf4")
    assert len(losses[0]) == 30
    assert losses[0][-1] < losses[0][0] - 0.3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_merged_is_the_adapter_and_quantised_again_it_is_not(
    small_model: Path, random_examples: Callable[..., list[Tokens]]
) -> None:
    """PEFT's own merge into bitsandbytes' layers rounds the sum to 4 bits: that is the second number."""
    examples = random_examples([9, 30, 17])
    model = moved(attach_lora(load_base(small_model, FP32, CPU, "nf4"), NF4, seed=0))
    adapted = logps(model, examples)
    merged = merge_adapter(model)
    assert not quantise.layers(merged)
    assert float((logps(merged, examples) - adapted).abs().max() / adapted.abs().max()) < 1e-5
    names = [name for name, m in merged.named_modules() if type(m) is nn.Linear and name != "lm_head"]
    quantise.quantise(merged, names, FP32, CPU)
    assert float((logps(merged, examples) - adapted).abs().max()) > 0.1


def test_what_was_trained_on_4_bits_is_read_on_4_bits(
    small_model: Path, random_examples: Callable[..., list[Tokens]], tmp_path: Path
) -> None:
    examples = random_examples([9, 30, 17])
    model = moved(attach_lora(load_base(small_model, FP32, CPU, "nf4"), NF4, seed=0))
    save_adapter(model, tmp_path)  # type: ignore[arg-type]
    assert quantised_base(tmp_path) == "nf4"
    assert saved_settings(tmp_path).quantize == "nf4"
    assert "quantize" in (adapter_mismatch(tmp_path, LoraAdapter(rank=4, alpha=8.0)) or "")
    again = frozen_model(small_model, tmp_path, FP32, CPU)
    assert len(quantise.layers(again)) == 14
    torch.testing.assert_close(logps(again, examples), logps(model, examples), rtol=1e-6, atol=1e-6)
    whole = prepare_model(TrainSettings(adapter=FullWeights(), dtype="fp32", device="cpu"), small_model, tmp_path, 0)
    torch.testing.assert_close(logps(whole.model.eval(), examples), logps(model, examples), rtol=1e-5, atol=1e-5)
    plain = load_adapter(load_model(small_model, FP32, CPU), tmp_path, trainable=False)  # what other tools would do
    assert float((logps(plain, examples) - logps(model, examples)).abs().max()) > 1e-3
    (tmp_path / BASE_RECORD).write_text('{"quantize": "int3"}')
    with pytest.raises(ModelError, match="int3"):
        quantised_base(tmp_path)


@pytest.mark.filterwarnings("ignore:weights in 4 bits")
@pytest.mark.parametrize(
    "objective",
    [
        DpoObjective(),
        pytest.param(OrpoObjective(), marks=pytest.mark.slow),
        pytest.param(KtoObjective(), marks=pytest.mark.slow),
        pytest.param(RewardObjective(), marks=pytest.mark.slow),
    ],
    ids=lambda o: o.name,
)
def test_every_kind_of_objective_goes_as_on_the_dense_weights(
    objective: Any, small_model: Path, random_examples: Callable[..., list[Tokens]], tmp_path: Path
) -> None:
    """With a reference, without one, on single replies, with a score head. The reference too: before the first step every log-ratio is 0, though the weights of the file would say something else."""
    chosen, rejected = random_examples([9, 30, 17, 12]), random_examples([9, 30, 17, 12], seed=1)
    units: list[Any] = [PairTokens(c, r, c.row_id) for c, r in zip(chosen, rejected, strict=True)]
    if objective.row_kind == "feedback":
        units = [FeedbackTokens(c, bool(n % 2)) for n, c in enumerate(chosen)]
    losses = []
    for name, folder, adapter in (
        ("nf4", small_model, NF4),
        ("dense", dense_folder(small_model, tmp_path / "folder"), LoraAdapter(rank=4, alpha=8.0)),
    ):
        settings = TrainSettings(
            objective=objective, adapter=adapter, dtype="fp32", device="cpu", batch_size=4, epochs=3, learning_rate=1e-3
        )
        out = StageDir(tmp_path / name)
        train(settings, TrainInputs(folder, units), out, seed=0, digest="d")
        losses.append([record["loss"] for record in out.metrics()])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5, atol=1e-7)
    if objective.needs_reference:
        assert losses[0][0] == pytest.approx(objective.untrained_loss, abs=1e-6)


def test_a_score_head_stays_in_32_bits(small_model: Path) -> None:
    settings = TrainSettings(objective=RewardObjective(), adapter=NF4, dtype="bf16", device="cpu")
    trainee = prepare_model(settings, small_model, None, seed=0)
    assert {p.dtype for name, p in trainee.trained.items() if "score" in name} == {FP32}
    assert len(quantise.layers(trainee.model)) == 14


def test_without_bitsandbytes_one_line_says_how_to_get_it(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"posttrain\[qlora\]"):
        load_base(small_model, FP32, CPU, "nf4")


def test_dora_has_no_4_bits() -> None:
    with pytest.raises(ValueError, match="dora"):
        LoraAdapter(dora=True, quantize="nf4")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_folder_of_bitsandbytes_is_written_out(
    bits: int, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layout by the library's own layers, which transformers writes (names of tensors and constants)."""
    import bitsandbytes
    from safetensors.torch import load_file, save_file

    from posttrain.model.targets import model_folder

    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "packed"
    shutil.copytree(small_model, folder)
    tensors, expected = load_file(folder / "model.safetensors"), {}
    for name, tensor in list(tensors.items()):
        if "_proj" not in name:
            expected[name] = tensor
        elif bits == 4:
            packed, state = bitsandbytes.functional.quantize_4bit(tensor, quant_type="nf4", compress_statistics=True)
            tensors |= {name: packed} | {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
            expected[name] = bitsandbytes.functional.dequantize_4bit(packed, state)
        else:
            scales = tensor.abs().amax(1)
            tensors[name] = (tensor / scales[:, None] * 127).round().to(torch.int8)
            tensors[f"{name.removesuffix('weight')}SCB"] = scales
            expected[name] = tensors[name].float() * scales[:, None] / 127
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    found = load_model(model_folder(str(folder)), FP32, CPU).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    assert model_folder(str(folder)) == model_folder(str(folder))
