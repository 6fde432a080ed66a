"""Model folders with odd configurations and damaged files: loaded and right, or one ModelError; nothing else is ever raised.

``FUZZ_CONFIGS=300 pytest tests/model/test_damaged.py`` tries that many configurations of every family.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from encoding import encode_row
from families import micro_folder, words_tokenizer
from posttrain.encode.segments import Segments
from posttrain.encode.template import load_template, load_tokenizer
from posttrain.encode.tokens import stop_sequences
from posttrain.errors import ModelError, PosttrainError
from posttrain.model.forward import final_hidden
from posttrain.model.load import load_model, quiet_transformers
from posttrain.types import Message, Origin, SftRow

CONFIGS = int(os.environ.get("FUZZ_CONFIGS", "8"))
"""Configurations of every family."""
CPU = torch.device("cpu")
ODD: list[Any] = [
    *(None, "", "x", "10000", -1, 0, 1, 3, 2.5, 10**9, 10**30, float("nan"), float("inf")),
    *(True, False, [], [1], [None], {}, {"a": 1}),
]
IDS_T = torch.tensor([5, 9, 11, 100, 42, 7, 3])


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one place in it deleted or made odd."""
    whole: dict[str, Any] = json.loads(json.dumps(value))
    inside = [whole, *(part for part in whole.values() if isinstance(part, dict) and part)]
    holder = chance.choice(inside)
    key = chance.choice(list(holder))
    if chance.random() < 0.1:
        del holder[key]
    else:
        holder[key] = chance.choice(ODD)
    return whole


@torch.no_grad()
def check_loaded_right(folder: Path) -> None:
    """That what was loaded computes as transformers' plain code does."""
    model = load_model(folder, torch.float32, CPU)
    found_TD = final_hidden(model, IDS_T, Segments([len(IDS_T)]))
    with quiet_transformers():
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with contextlib.suppress(OverflowError):  # its masks take no window of 10**30
        wanted_TD = plain(IDS_T[None], output_hidden_states=True, use_cache=False).hidden_states[-1][0]
        torch.testing.assert_close(found_TD, wanted_TD, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen2", "phi3", "gemma"])
def test_odd_configurations(family: str, tmp_path: Path) -> None:
    folder = micro_folder(family, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    check_loaded_right(folder)
    chance = random.Random(family)
    for _ in range(CONFIGS):
        (folder / "config.json").write_text(json.dumps(odd := changed(config, chance)))
        message = str(folder)
        try:
            check_loaded_right(folder)
        except ModelError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"{[item for item in odd.items() if item not in config.items()]}: {error}") from error
        assert str(folder) in message


def rewritten(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return damage


def with_index(index: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def with_config(**more: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | more))

    return damage


QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "damage",
    [
        rewritten("model.safetensors", lambda tensors: tensors[QUERY].fill_(torch.nan)),
        rewritten("model.safetensors", lambda tensors: tensors.update({QUERY: tensors[QUERY].to(torch.int8)})),
        rewritten("model.safetensors", lambda tensors: tensors.update({QUERY: tensors[QUERY] > 0})),
        rewritten("model.safetensors", lambda tensors: tensors.update({QUERY: torch.tensor(1.0)})),
        rewritten("model.safetensors", lambda tensors: tensors.clear()),
        with_index({"weight_map": {QUERY: "model-00001-of-00001.safetensors"}}),
        with_index({"metadata": {}, "weight_map": {}}),
        with_index({"metadata": {}, "weight_map": {QUERY: 5}}),
        with_index([]),
        with_config(num_hidden_layers=10**9),
        with_config(num_nextn_predict_layers=10**9),
        with_config(text_config="x"),
        with_config(quantization_config=[1]),
    ],
)
def test_damaged_weights(damage: Callable[[Path], None], small_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_model, tmp_path / "model"))
    damage(folder)
    with pytest.raises(ModelError, match=str(folder)):
        load_model(folder, torch.float32, CPU)


def test_a_file_of_weights_hurt_anywhere(small_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_model, tmp_path / "model"))
    whole = (folder / "model.safetensors").read_bytes()
    chance, header = random.Random(0), int.from_bytes(whole[:8], "little")
    for number in range(24):
        hurt = bytearray(whole if number % 2 else whole[: chance.randrange(len(whole))])
        if number % 2:
            hurt[chance.randrange(8 + header)] ^= 1 << chance.randrange(8)
        (folder / "model.safetensors").write_bytes(hurt)
        with pytest.raises(ModelError, match=str(folder)):
            load_model(folder, torch.float32, CPU)


def test_odd_tokenizers_and_templates(tmp_path: Path) -> None:
    """A row is encoded or rejected, or one error says what is wrong with the folder."""
    folder = tmp_path / "tokenizer"
    words_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 199}')
    row = SftRow((Message("user", "w11 w12"), Message("assistant", "w13")), Origin("a", 1), "s")
    whole = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".jinja")}
    settings = json.loads(whole["tokenizer_config.json"])
    chance, told = random.Random(0), Counter[bool]()
    odd: list[tuple[str, Any]] = [
        (name, text)
        for name in (*whole, "special_tokens_map.json", "added_tokens.json", "generation_config.json")
        for text in ("", "{", "[]", "{}", "null", "\0", "[" * 100_000, "\ufeff{}")
    ]
    odd += [("tokenizer_config.json", {**settings, "model_max_length": value}) for value in ODD]
    odd += [
        (name, changed(json.loads(whole[name]), chance)) for name in whole if "tokenizer" in name for _ in range(30)
    ]
    templates = (
        "{{ nope() }}",
        "{% for i in range(10**12) %}{% endfor %}",
        "{% nope %}",
        "{{ 1/0 }}",
        "{{ messages[9].x }}",
    )
    odd += [("chat_template.jinja", text) for text in (*templates, "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}")]
    for name, value in odd:
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
        message = ""
        try:
            template = load_template(load_tokenizer(folder))
            encode_row(row, template, 100)
            stop_sequences(template)
        except PosttrainError as error:
            message = str(error)
        assert not message or str(folder) in message, value
        told[bool(message)] += 1
        if name in whole:
            (folder / name).write_bytes(whole[name])
        else:
            (folder / name).unlink()
    assert min(told[False], told[True]) > 20
