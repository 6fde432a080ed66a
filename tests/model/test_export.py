"""What is written is what was trained, for anyone: plain PEFT and plain transformers compute the same logits."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from families import micro_folder
from posttrain.artifacts import StageDir
from posttrain.encode.collate import collate
from posttrain.errors import ConfigError, ModelError
from posttrain.model.adapters import adapter_mismatch, attach_lora, check_written_adapter, load_adapter, save_adapter
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.model.export import check_written, merge_adapter, save_model
from posttrain.model.forward import final_hidden, output_head
from posttrain.model.fused import fuse
from posttrain.model.lengths import check_fits
from posttrain.model.load import load_model
from posttrain.train.config import TrainSettings
from posttrain.train.loop import TrainInputs, train
from posttrain.types import Tokens

CPU = torch.device("cpu")
MakeExamples = Callable[..., list[Tokens]]


@torch.no_grad()
def our_logits(model: nn.Module, examples: list[Tokens]) -> Tensor:
    batch = collate(examples)
    return final_hidden(model, torch.from_numpy(batch.ids_T), batch.segments) @ output_head(model)[0].T


@torch.no_grad()
def their_logits(model: nn.Module, examples: list[Tokens]) -> Tensor:
    """One row at a time through the model's own forward pass."""
    rows = [torch.from_numpy(e.ids_T.astype(np.int64))[None] for e in examples]
    return torch.cat([model(input_ids=row).logits[0] for row in rows])


def largest_relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def trained(folder: Path, examples: list[Tokens], out: Path, adapter: LoraAdapter | FullWeights) -> None:
    stage = TrainSettings(adapter=adapter, dtype="fp32", device="cpu", batch_size=2, learning_rate=1e-2)
    train(stage, TrainInputs(folder, examples), StageDir(out), seed=0, digest="d")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own affair
@pytest.mark.parametrize(
    "adapter",
    [LoraAdapter(rank=4), LoraAdapter(rank=4, rslora=True), LoraAdapter(rank=4, dora=True)],
    ids=["lora", "rslora", "dora"],
)
def test_adapter_merged_plain_peft_and_plain_folder_agree(
    adapter: LoraAdapter, small_model: Path, random_examples: MakeExamples, tmp_path: Path
) -> None:
    examples = random_examples([9, 30, 2, 17])
    trained(small_model, examples, tmp_path, adapter)
    ours = load_adapter(load_model(small_model, torch.float32, CPU), tmp_path / "adapter", trainable=False)
    fuse(ours)
    logits = our_logits(ours, examples)
    base = their_logits(AutoModelForCausalLM.from_pretrained(small_model).eval(), examples)
    assert largest_relative(base, logits) > 1e-3  # training did something

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_model), tmp_path / "adapter").eval()
    assert largest_relative(their_logits(plain, examples), logits) < 1e-5

    merged = merge_adapter(ours)  # also with the hot path in place
    assert largest_relative(our_logits(merged, examples), logits) < 1e-5
    folder = tmp_path / "merged"
    folder.mkdir()
    save_model(merged, folder, torch.float32)
    assert merged.config._attn_implementation == "posttrain_segments"
    hf = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert largest_relative(their_logits(hf, examples), logits) < 1e-5
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")  # tied: one matrix


def test_a_fully_trained_model_loads_anywhere(small_model: Path, random_examples: MakeExamples, tmp_path: Path) -> None:
    examples = random_examples([9, 30, 2, 17])
    trained(small_model, examples, tmp_path, FullWeights())
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert hf.dtype == torch.float32
    assert hf.config._attn_implementation != "posttrain_segments"
    logits = our_logits(load_model(tmp_path / "model", torch.float32, CPU), examples)
    assert largest_relative(their_logits(hf, examples), logits) < 1e-5
    base = our_logits(load_model(small_model, torch.float32, CPU), examples)
    assert largest_relative(base, logits) > 1e-3


def test_bf16_export_is_the_rounded_model(small_model: Path, random_examples: MakeExamples, tmp_path: Path) -> None:
    model = load_model(small_model, torch.float32, CPU)
    save_model(model, tmp_path, torch.bfloat16)
    assert model.dtype == torch.float32
    again = load_model(tmp_path, torch.bfloat16, CPU)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.bfloat16())
    assert '"dtype": "bfloat16"' in (tmp_path / "config.json").read_text()


def test_a_folder_that_is_read_back_as_something_else_is_told(small_model: Path, tmp_path: Path) -> None:
    model = load_model(small_model, torch.float32, CPU)
    save_model(model, tmp_path, torch.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of its \d+ tensors differ, the first: model.layers.1.mlp.up_proj.weight"):
        check_written(model, tmp_path, torch.float32)


def test_all_weights_of_a_quantised_model_are_refused_before_training(
    small_model: Path, random_examples: MakeExamples, tmp_path: Path
) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(small_model, folder)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantised"):
        trained(folder, random_examples([6, 8]), tmp_path / "out", FullWeights())


def test_ids_and_positions_beyond_the_model_are_found_before_training(
    random_examples: MakeExamples, tmp_path: Path
) -> None:
    model = load_model(micro_folder("gpt2", tmp_path), torch.float32, CPU)  # 199 ids, 128 learned positions
    check_fits(model, random_examples([128, 3]), "stages.sft.max_length")
    with pytest.raises(ConfigError, match="129 tokens, but the model has learned 128 positions") as told:
        check_fits(model, random_examples([3, 129]), "stages.sft.max_length")
    assert told.value.where == "stages.sft.max_length"
    beyond = Tokens(np.array([5, 199], np.int32), np.array([0, 1], np.float32), "row-7")
    with pytest.raises(ModelError, match="row-7 holds the token id 199, but the model knows 0 to 198"):
        check_fits(model, [beyond], "stages.sft.max_length")


def test_a_tied_head_is_not_merged(small_model: Path) -> None:
    adapter = LoraAdapter(rank=2, targets=("lm_head", "q_proj"))
    model = attach_lora(load_model(small_model, torch.float32, CPU), adapter, seed=0)
    with pytest.raises(ModelError, match="tied to the input embedding"):
        merge_adapter(model)


def test_fresh_adapters(small_model: Path) -> None:
    """B is zero, A is drawn from the seed and fp32 on a bf16 base; the caller's random numbers are left alone."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    made = []
    for seed in (0, 0, 1):
        model = attach_lora(load_model(small_model, torch.bfloat16, CPU), LoraAdapter(rank=4), seed)
        made.append({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
    assert torch.equal(torch.rand(3), expected)
    assert len(made[0]) == 28
    for name, parameter in made[0].items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, made[1][name])
        if "lora_B" in name:
            assert not parameter.any()
        else:
            assert not torch.equal(parameter, made[2][name])
            # Kaiming-uniform with a = sqrt(5): the bound is 1 / sqrt(inputs), here drawn in bf16.
            assert float(parameter.abs().max()) <= parameter.shape[1] ** -0.5 * (1 + 2**-8)


def test_targets_that_match_nothing_name_what_there_is(small_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.targets(.|\n)*down_proj, gate_proj, k_proj"):
        attach_lora(load_model(small_model, torch.float32, CPU), LoraAdapter(targets=("query",)), seed=0)


def test_an_adapter_of_other_layers_is_told(small_model: Path, tmp_path: Path) -> None:
    """One tensor less, one more, one other: what is read back is held against memory, and what is loaded against the model."""
    model = attach_lora(load_model(small_model, torch.float32, CPU), LoraAdapter(rank=4), 0)
    save_adapter(model, tmp_path)
    file, name = (
        tmp_path / "adapter_model.safetensors",
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
    )
    whole = load_file(file)
    less = {key: tensor for key, tensor in whole.items() if key != name}
    more = whole | {name.replace("layers.1", "layers.2"): whole[name].clone()}
    for other, fits in ((less, False), (more, False), (less | {name: whole[name] + 1}, True), (whole, True)):
        save_file(other, file, {"format": "pt"})
        with (
            contextlib.nullcontext()
            if other is whole
            else pytest.raises(ModelError, match=r"1 of its 28 tensors differ.*layers\.[12]\.self_attn\.q_proj")
        ):
            check_written_adapter(model, tmp_path)
        base = load_model(small_model, torch.float32, CPU)
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(ModelError, match=r"1 of its tensors .*layers\.[12]\.self_attn\.q_proj")
        ):
            load_adapter(base, tmp_path, trainable=False)


def test_adapter_folders_that_do_not_fit(small_model: Path, tmp_path: Path) -> None:
    base = load_model(small_model, torch.float32, CPU)
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load_adapter(base, tmp_path, trainable=False)
    save_adapter(attach_lora(load_model(small_model, torch.float32, CPU), LoraAdapter(rank=4), 0), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)  # and not in the order of this process's hashes
    assert len(targets) >= 7
    assert adapter_mismatch(tmp_path, LoraAdapter(rank=4)) is None
    q_only = LoraAdapter(rank=4, targets=("q_proj",))
    for changed in (LoraAdapter(rank=5), LoraAdapter(rank=4, alpha=1), LoraAdapter(rank=4, dora=True), q_only):
        assert "but the adapter to continue has" in str(adapter_mismatch(tmp_path, changed))
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="does not fit"):
        load_adapter(base, tmp_path, trainable=False)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled weights are never loaded"):
        load_adapter(load_model(small_model, torch.float32, CPU), tmp_path, trainable=False)


def test_a_gguf_file_that_is_none_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.model.targets import model_folder

    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(ModelError, match="this GGUF file can't be read"):
        model_folder(str(tmp_path / "x.gguf"))
    assert not list((tmp_path / "cache" / "models").glob("*"))
