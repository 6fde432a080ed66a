"""Model folders that can't be loaded are told in one message; scoring, hardware and arithmetic counts by hand."""

from __future__ import annotations

import json
import mmap
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from families import micro_folder
from posttrain.encode.collate import collate, collate_shared
from posttrain.errors import ConfigError, ModelError
from posttrain.model import hardware
from posttrain.model.adapters import attach_lora
from posttrain.model.config import FullWeights, LoraAdapter
from posttrain.model.export import save_model
from posttrain.model.forward import step_flops
from posttrain.model.load import load_model
from posttrain.model.score import score
from posttrain.model.targets import model_folder
from posttrain.train.config import TrainSettings
from posttrain.train.loop import prepare_model
from posttrain.types import Tokens

CPU = torch.device("cpu")
MakeExamples = Callable[..., list[Tokens]]


@pytest.fixture
def folder(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def weight_missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def wrong_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_bias(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        tensors | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def fewer_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))


def end_beyond(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 199]}')


def foreign_code(folder: Path) -> None:
    auto = {"AutoConfig": "x.Config", "AutoModelForCausalLM": "x.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model", "auto_map": auto}))


def unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_config, "no config.json here"),
        (without_weights, "no weights"),
        (pickled, "convert pytorch_model.bin to safetensors first"),
        (truncated, "damaged weights|can't be loaded"),
        (weight_missing, "1 weights .* are missing .* model.layers.1.mlp.up_proj.weight"),
        (wrong_shape, r"6 tensors .* of another shape than config.json says: \(32, 56\), not \(32, 64\)"),
        (broken_config, "can't be loaded|can't be read as JSON"),
        (unknown_type, "can't be loaded"),
        (unknown_bias, "1 of the tensors .*q_proj.bias.* unknown"),
        (fewer_layers, "9 tensors .*layers.1.* unknown"),
        (missing_shard, "names model-00002-of-00002.safetensors"),
        (end_beyond, "eos_token_id is 199"),
        (foreign_code, "never run"),
    ],
)
def test_bad_folders_are_told(damage: Callable[[Path], None], message: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder, torch.float32, CPU)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("said", [1, 0])
def test_layers_that_guess_ahead_are_left_out_and_told(said: int, tmp_path: Path) -> None:
    """One layer more than the model has, as DeepSeek-V3 comes: fine where the configuration says so, else an error."""
    folder = micro_folder("deepseek-v3", tmp_path, num_nextn_predict_layers=said)
    tensors = load_file(folder / "model.safetensors")
    ahead = {k.replace("layers.1.", "layers.2."): t.clone() for k, t in tensors.items() if "layers.1." in k}
    ahead["model.layers.2.eh_proj.weight"] = torch.ones(32, 64)
    save_file(tensors | ahead, folder / "model.safetensors", {"format": "pt"})
    if not said:
        with pytest.raises(ModelError, match="unknown to the model"):
            load_model(folder, torch.float32, CPU)
        return
    with pytest.warns(UserWarning, match=f"{len(ahead)} tensors .*layers.2.eh_proj.* neither trained nor written"):
        model = load_model(folder, torch.float32, CPU)
    (tmp_path / "written").mkdir()
    save_model(model, tmp_path / "written", torch.float32)
    assert json.loads((tmp_path / "written" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    load_model(tmp_path / "written", torch.float32, CPU)  # without a warning


@pytest.mark.filterwarnings("ignore")  # this model's own
def test_what_a_family_can_not_do_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no reward model of the type 'granite'"):
        load_model(micro_folder("granite", tmp_path / "granite"), torch.float32, CPU, head="score")
    stage = TrainSettings(dtype="bf16", device="cpu", learning_rate=1e-3, adapter=FullWeights())
    with pytest.raises(ConfigError, match=r"can't compute in bf16 with weights in fp32(.|\n)*dtype: fp32"):
        prepare_model(stage, micro_folder("dbrx", tmp_path / "dbrx"), None, seed=0)


def test_names_that_are_no_model(tmp_path: Path) -> None:
    assert model_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ModelError, match="did you mean"):
        model_folder("smollm2-135m-instrukt")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="this is a file"):
        model_folder(str(tmp_path / "file"))
    with pytest.raises(ModelError, match="no such model"):
        model_folder("./nothing/here")


def test_scores_do_not_depend_on_packing(small_model: Path, random_examples: MakeExamples) -> None:
    examples = random_examples([9, 30, 2, 17, 25, 6])
    model = load_model(small_model, torch.float32, CPU).train()
    seen: list[int] = []
    packed = score(model, examples, 1000, torch.float32, seen.append)
    alone = score(model, examples, 1, torch.float32)
    np.testing.assert_allclose(packed.nll_N, alone.nll_N, rtol=1e-5)
    np.testing.assert_array_equal(packed.weight_N, [float(e.weights_T.sum()) for e in examples])
    assert seen == [6]
    assert model.training
    assert packed.mean() == pytest.approx(packed.nll_N.sum() / packed.weight_N.sum())


def test_flops_by_hand(small_model: Path, random_examples: MakeExamples) -> None:
    """Two layers: q and o 32x32, k and v 16x32, three of 56x32; head 199x32. 5 and 3 tokens are supervised."""
    linear = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 56 * 32)
    attention = 6 * 2 * 32 * (10 * 10 + 5 * 5)
    batch = collate(random_examples([10, 5]))
    model = load_model(small_model, torch.float32, CPU)
    assert step_flops(model, batch) == 15 * linear * 6 + attention + 8 * 199 * 32 * 6
    model.requires_grad_(False)
    assert step_flops(model, batch) == 15 * linear * 4 + attention + 8 * 199 * 32 * 4
    adapted = attach_lora(model, LoraAdapter(rank=2, targets=("q_proj",)), 0)
    assert step_flops(adapted, batch) == 15 * (linear * 4 + 2 * 2 * (32 + 32) * 6) + attention + 8 * 199 * 32 * 4


def test_flops_of_a_shared_prefix(small_model: Path, random_examples: MakeExamples) -> None:
    """20 tokens, then 4 and 6 more that attend to them; the last token of each is a target only."""
    first, second = random_examples([25, 27])
    second.ids_T[:20] = first.ids_T[:20]
    second.ids_T[20] = first.ids_T[20] + 1
    batch = collate_shared([first, second])
    assert batch.segments.lengths == (20, 4, 6)
    model = load_model(small_model, torch.float32, CPU).requires_grad_(False)
    linear = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 56 * 32)
    pairs = 20 * 20 / 2 + 4 * (20 + 4 / 2) + 6 * (20 + 6 / 2)
    assert step_flops(model, batch) == 30 * linear * 4 + 12 * 2 * 32 * pairs + (13 + 14) * 199 * 32 * 4


def test_compute_type_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {torch.float32: 1.0, torch.bfloat16: 1.31}
    monkeypatch.setattr(hardware, "matmul_flops", lambda dtype, device: speeds[dtype])
    assert hardware.choose_dtype("auto", CPU) == torch.bfloat16
    speeds[torch.bfloat16] = 1.29
    assert hardware.choose_dtype("auto", CPU) == torch.float32
    assert hardware.choose_dtype("bf16", CPU) == torch.bfloat16
    assert hardware.choose_dtype("fp32", CPU) == torch.float32


def test_the_peak_of_a_product_is_that_of_the_size_that_fills_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(size: int, dtype: torch.dtype, device: torch.device) -> float:
        asked.append(size)
        return {1024: 100.0, 2048: 300.0, 4096: 310.0, 8192: 900.0}[size]

    monkeypatch.setattr(hardware, "_matmul_flops", measured)
    assert hardware.matmul_flops(torch.float16, torch.device("cuda", 7)) == 310.0
    assert asked == [1024, 2048, 4096]  # 3% more: it was full
    asked.clear()
    assert hardware.matmul_flops(torch.float16, CPU) == 100.0
    assert asked == [1024]
    hardware.matmul_flops.cache_clear()


def test_a_record_says_where_fp32_products_are_rounded() -> None:
    cuda, products = torch.device("cuda"), torch.backends.cuda.matmul
    before = products.fp32_precision
    assert hardware.precision(torch.float32, cuda) == "float32"
    products.fp32_precision = "tf32"
    try:
        assert hardware.precision(torch.float32, cuda) == "float32 (products in TF32)"
        assert hardware.precision(torch.bfloat16, cuda) == "bfloat16"
        assert hardware.precision(torch.float32, CPU) == "float32"
    finally:
        products.fp32_precision = before


def test_an_array_is_no_copy_on_a_cpu() -> None:
    array = np.arange(3)
    hardware.to_device(array, CPU)[0] = 7
    assert array.tolist() == [7, 1, 2]


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta2"])
def test_a_device_that_is_not_here(name: str) -> None:
    with pytest.raises(ConfigError, match=r"can't be used here(.|\n)*device: auto"):
        hardware.resolve_device(name)


def test_peak_memory_starts_anew() -> None:
    megabytes = 64
    before = hardware.current_memory(CPU)
    with mmap.mmap(-1, megabytes << 20) as block:  # not from the heap, which may hold freed memory already
        for _ in range(megabytes):
            block.write(b"x" * (1 << 20))
        assert hardware.current_memory(CPU) > before + (megabytes - 8 << 20)
    peak = hardware.peak_memory(CPU)
    assert peak > before + (megabytes - 8 << 20)
    hardware.reset_peak_memory(CPU)
    assert hardware.current_memory(CPU) <= hardware.peak_memory(CPU) < peak - (megabytes - 16 << 20)
