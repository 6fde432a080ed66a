"""A GGUF file computes what the folder computes: llama.cpp itself is asked, on a micro model of every architecture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from export.llama_cpp import Llama
from export.micro import ARCHITECTURES, CHAT, TEXTS, gpt2_tokenizer, micro_chat_model, spm_tokenizer
from families import WINDOW, micro_folder
from posttrain.encode.template import load_tokenizer
from posttrain.errors import ModelError
from posttrain.model.gguf import architectures
from posttrain.model.gguf.file import FileType, write_gguf, write_gguf_adapter
from posttrain.model.gguf.vocabulary import PRE_TOKENIZERS
from posttrain.model.lineage import Lineage
from posttrain.model.load import load_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, on odd configurations
CPU = torch.device("cpu")
COUNT = 12
HARD = (
    *TEXTS,
    "a  3 33  333\t4444\n\n 5",
    "I've DON'T we'LL \u2019s  x\u00e9\u00fc\u00df \U0001f999\U0001f999 \u200d end ",
    "<|turn|>user\nHi<|end|>\n  \n<|turn|>assistant\n",
    " leading, trailing ",
)


def written(folder: Path, file_type: FileType = "f32", name: str = "micro") -> Path:
    path = folder / f"{file_type}.gguf"
    write_gguf(load_model(folder, torch.float32, CPU), Lineage(folder), path, file_type, name)
    return path


class Greedy(NamedTuple):
    """What plain transformers says next: tokens without the end token, and how far each was ahead of the second likeliest."""

    tokens: list[int]
    ahead: list[float]
    logps_V: torch.Tensor
    """Log-probabilities of the first token."""

    def same(self, others: Sequence[int], tie: float) -> bool:
        """Whether others are the same, up to a place where two tokens were as good as equally likely."""
        places = zip(self.tokens, [*others, None, *self.tokens], self.ahead, strict=False)
        first = next((ahead for ours, theirs, ahead in places if ours != theirs), None)
        return len(self.tokens) == len(others) if first is None else first < tie


@torch.no_grad()
def greedy(model: PreTrainedModel, ids: Sequence[int], without: Sequence[int]) -> Greedy:
    one = torch.tensor([list(ids)])
    logps_V = model(one).logits[0, -1].log_softmax(-1)
    options = {"do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    found = model.generate(one, max_new_tokens=COUNT, suppress_tokens=list(without), **options)
    ahead = [float(best[0] - best[1]) for best in (scores[0].topk(2).values for scores in found.scores)]
    tokens = [i for i in found.sequences[0, len(ids) :].tolist() if i != model.generation_config.eos_token_id]
    return Greedy(tokens, ahead, logps_V)


def partial(tokenizer: Any) -> list[int]:
    """Tokens that end inside a character."""
    return [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]


def compared(folder: Path, llama: Llama, model: PreTrainedModel, tie: float = 1e-3) -> tuple[int, float]:
    """(texts with the same greedy tokens, largest difference of a log-probability that is above -15)."""
    tokenizer = load_tokenizer(folder)
    without, same, largest = partial(tokenizer), 0, 0.0
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        if (
            model.config.model_type == "phi3" and len(ids) <= WINDOW
        ):  # llama.cpp has the factors of long texts for short ones
            same += 1
            continue
        ours = greedy(model, ids, without)
        theirs, likely = llama.greedy(ids, COUNT, without)
        theirs = [i for i in theirs if i != model.generation_config.eos_token_id]  # it is told where it has a text
        same += ours.same(theirs, tie)
        largest = max([largest, *(abs(float(ours.logps_V[i]) - p) for i, p in likely.items() if p > -15)])
    return same, largest


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_chat_model(request.param, tmp_path_factory.mktemp(request.param))


def test_greedy_tokens_are_those_of_transformers(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    # llama.cpp rounds what goes into a 16-bit product as well; random weights often have two tokens that are equally likely
    for file_type, tolerance, tie in (("f32", 5e-3, 1e-3), ("f16", 0.2, 0.3)):
        same, largest = compared(folder, Llama(written(folder, file_type)), model, tie)  # type: ignore[arg-type]
        assert (same, largest < tolerance) == (len(TEXTS), True), (file_type, same, largest)


def test_other_types_load_and_come_near(tmp_path: Path) -> None:
    folder = micro_chat_model("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for file_type in ("bf16", "q8_0"):
        assert compared(folder, Llama(written(folder, file_type)), model)[1] < 3.0  # type: ignore[arg-type]
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.gguf")}
    assert sizes["q8_0.gguf"] < sizes["bf16.gguf"]


@pytest.mark.parametrize("wrong", ["not permuted", "norm without its 1"])
def test_a_wrong_layout_is_found(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = micro_chat_model("llama" if wrong == "not permuted" else "gemma3", tmp_path)
    if wrong == "not permuted":
        monkeypatch.setattr(architectures, "interleaved", lambda rows, heads: rows)
    else:
        plain = architectures.laid_out
        monkeypatch.setattr(
            "posttrain.model.gguf.file.laid_out",
            lambda name, tensor, config: plain(name, tensor, config) - float(name.endswith("_norm.weight")),
        )
    same, largest = compared(folder, Llama(written(folder)), AutoModelForCausalLM.from_pretrained(folder).eval())
    assert same < len(TEXTS)
    assert largest > 0.1


@pytest.mark.parametrize("pre", sorted({*PRE_TOKENIZERS.values()}))
def test_text_is_cut_the_same_way(pre: str, tmp_path: Path) -> None:
    folder = micro_chat_model("llama", tmp_path, gpt2_tokenizer(pre))
    check_ids(folder, Llama(written(folder)))


@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_is_cut_the_same_way(prefix: bool, tmp_path: Path) -> None:
    folder = micro_chat_model("llama", tmp_path, spm_tokenizer(prefix))
    check_ids(folder, Llama(written(folder)))


def check_ids(folder: Path, llama: Llama) -> None:
    tokenizer = load_tokenizer(folder)
    other = [text for text in HARD if not llama.same_ids(text, tokenizer(text)["input_ids"])]
    assert other == []


def test_the_chat_template_is_rendered_the_same_way(tmp_path: Path) -> None:
    folder = micro_chat_model("llama", tmp_path)
    llama = Llama(written(folder))
    tokenizer = load_tokenizer(folder)
    for text in TEXTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        llama.greedy(ids, 1)
        assert llama.chat(text, 1) == (len(ids), len(ids) - 1)


# ---- what a file says ------------------------------------------------------------------------------------------------


def test_metadata(tmp_path: Path) -> None:
    folder = micro_chat_model("llama-tied", tmp_path)
    reader = gguf.GGUFReader(written(folder, "q8_0", "my phi-3 run"))
    said = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = load_tokenizer(folder)
    assert said["general.name"] == "my phi 3 run"  # that word would change how llama.cpp reads special tokens
    assert said["tokenizer.chat_template"] == CHAT
    assert said["tokenizer.ggml.pre"] == "gpt-2"
    assert said["tokenizer.ggml.eos_token_id"] == tokenizer.convert_tokens_to_ids("<|end|>")
    assert said["tokenizer.ggml.add_bos_token"] is False
    assert said["tokenizer.ggml.tokens"] == [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert "output.weight" not in types
    assert {types["blk.0.attn_q.weight"], types["blk.0.attn_norm.weight"], types["blk.0.attn_q.bias"]} == {
        "Q8_0",
        "F32",
    }


def test_f32_holds_the_weights_bit_for_bit(tmp_path: Path) -> None:
    folder = micro_chat_model("qwen3", tmp_path)
    state = load_model(folder, torch.float32, CPU).state_dict()
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(written(folder)).tensors}
    assert torch.equal(found["blk.1.attn_k.weight"], state["model.layers.1.self_attn.k_proj.weight"])
    assert torch.equal(found["blk.1.attn_q_norm.weight"], state["model.layers.1.self_attn.q_norm.weight"])
    assert len(found) == len({name for name in state if name != "lm_head.weight"}) + ("output.weight" in found)


def test_rows_of_a_head_are_interleaved() -> None:
    rows = torch.arange(12.0)[:, None]
    assert architectures.interleaved(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


# ---- adapters --------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 8, "layers.1.mlp.down_proj": 2}, "alpha_pattern": {"k_proj": 3}},
    "rslora-ranks": {"use_rslora": True, "rank_pattern": {"v_proj": 9}, "alpha_pattern": {"q_proj": 1}},
}


def adapted(folder: Path, out: Path, **settings: Any) -> PeftModel:
    """A saved adapter whose A and B are both random."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(out)
    return model.eval()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_an_adapter_alone_is_that_of_peft(name: str, settings: str, tmp_path: Path) -> None:
    folder = micro_chat_model(name, tmp_path / "base")
    model = adapted(folder, tmp_path / "adapter", **SETTINGS[settings])
    lineage = Lineage(folder, tmp_path / "adapter")
    write_gguf_adapter(lineage, tmp_path / "adapter.gguf", "f32", "micro")
    base = written(folder)
    merged = model.merge_and_unload()
    same, largest = compared(folder, Llama(base, tmp_path / "adapter.gguf"), merged)
    assert (same, largest < 5e-3) == (len(TEXTS), True), largest
    assert compared(folder, Llama(base), merged)[1] > 0.05  # the adapter does something


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["norm"]}, "layers trained whole"),
        ({"bias": "all"}, "biases"),
    ],
)
def test_what_an_adapter_file_has_no_place_for(settings: dict[str, Any], what: str, tmp_path: Path) -> None:
    folder = micro_chat_model("llama-tied", tmp_path / "base")
    adapted(folder, tmp_path / "adapter", **settings)
    with pytest.raises(ModelError, match=f"can't hold {what}"):
        write_gguf_adapter(Lineage(folder, tmp_path / "adapter"), tmp_path / "a.gguf", "f32", "micro")
    assert not (tmp_path / "a.gguf").exists()


# ---- refusals --------------------------------------------------------------------------------------------------------


def refused(folder: Path, file_type: FileType = "f32") -> str:
    with pytest.raises(ModelError) as caught:
        written(folder, file_type)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("gpt2", {}, "GGUF file of 'gpt2'"),
        ("llama-dynamic", {}, "'dynamic'"),
        ("llama", {"hidden_act": "gelu"}, "the activation 'gelu'"),
        ("gemma3", {"layer_types": None, "query_pre_attn_scalar": 3}, "query_pre_attn_scalar 3"),
    ],
)
def test_models_that_llama_cpp_would_compute_otherwise(
    name: str, changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    folder = micro_chat_model(name, tmp_path, **changes) if name != "gpt2" else micro_folder(name, tmp_path)
    assert what in refused(folder)


def test_a_window_becomes_the_context(tmp_path: Path) -> None:
    folder = micro_chat_model("mistral", tmp_path, sliding_window=16)
    path = tmp_path / "window.gguf"
    notes = write_gguf(load_model(folder, torch.float32, CPU), Lineage(folder), path, "f32", "micro")
    assert gguf.GGUFReader(path).fields["llama.context_length"].contents() == 16
    assert "16 tokens of context" in notes[0]


def changed_tokenizer(change: Callable[[dict[str, Any]], None], folder: Path) -> Path:
    micro_chat_model("llama", folder)
    rules = json.loads((folder / "tokenizer.json").read_text())
    change(rules)
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    return folder


def test_tokenizers_that_llama_cpp_would_cut_otherwise(tmp_path: Path) -> None:
    def cuts(rules: dict[str, Any]) -> None:
        rules["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": False}, rules["pre_tokenizer"]],
        }

    def case(rules: dict[str, Any]) -> None:
        rules["normalizer"] = {"type": "Lowercase"}

    def space(rules: dict[str, Any]) -> None:
        rules["added_tokens"][1]["rstrip"] = True

    for number, (change, what) in enumerate(
        ((cuts, "pre_tokenizer is"), (case, "normalizer is"), (space, "white space"))
    ):
        assert what in refused(changed_tokenizer(change, tmp_path / str(number)))


def test_weights_beyond_the_range_of_16_bit(tmp_path: Path) -> None:
    folder = micro_chat_model("llama", tmp_path)
    model = load_model(folder, torch.float32, CPU)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(ModelError, match=r"blk.0.ffn_up.weight has weights beyond the range"):
        write_gguf(model, Lineage(folder), tmp_path / "f16.gguf", "f16", "micro")
    write_gguf(model, Lineage(folder), tmp_path / "bf16.gguf", "bf16", "micro")
    assert math.isfinite((tmp_path / "bf16.gguf").stat().st_size)
