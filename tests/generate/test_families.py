"""Every family of the table generates and chats what plain transformers says: the likeliest token after all before it, without a cache."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from decoding import replies
from families import EVERY_FAMILY, FAMILIES, micro_folder, micro_model, words_tokenizer
from posttrain.encode.template import ChatTemplate, load_template
from posttrain.encode.tokens import encode_prompt
from posttrain.generate import ways
from posttrain.generate.engine import Sampling
from posttrain.generate.voices import LocalVoice
from posttrain.generate.ways import BATCHED, OWN_CACHE, RECOMPUTED, speed_note, way_of
from posttrain.lab.chat import stream
from posttrain.model.load import load_model
from posttrain.types import Message

NEW = 14
"""Tokens of a reply: the shortest prompts begin below every switch of the table and end behind it."""
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
WORDS = {BATCHED: "batched", OWN_CACHE: "own cache", RECOMPUTED: "recomputed"}
"""What docs/models.md says of how a family generates."""


@pytest.fixture(scope="module")
def prompts() -> list[NDArray[np.int32]]:
    draw = np.random.default_rng(4)
    return [draw.integers(3, 199, n).astype(np.int32) for n in (5, 1, 17)]


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return load_template(words_tokenizer(), None)


@torch.no_grad()
def likeliest(model: nn.Module, prompt: Sequence[int], reply: Sequence[int], by_length: bool) -> list[int]:
    """The token that plain transformers puts at each place of a reply after all before it.

    One pass tells all places, unless rotary factors depend on the length; then each has its own, by a model without a past.
    """
    ids = [*prompt, *reply][:-1]
    if not by_length:
        logits_TV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return logits_TV[-len(reply) :].argmax(-1).tolist()
    ends = range(len(prompt), len(ids) + 1)
    return [
        int(copy.deepcopy(model)(input_ids=torch.tensor([ids[:end]]), use_cache=False).logits[0, -1].argmax())
        for end in ends
    ]


@pytest.mark.filterwarnings("ignore")  # these models' own
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_family_generates_and_chats_as_plain_transformers_does(
    family: str, prompts: list[NDArray[np.int32]], template: ChatTemplate, tmp_path: Path
) -> None:
    plain, by_length = micro_model(family), "long" in family or "dynamic" in family or family == "phimoe"
    model = load_model(micro_folder(family, tmp_path), torch.float32, torch.device("cpu")).requires_grad_(False)
    said, stops = [Message("user", "w5 w7 w11")], [(2,)]
    asked = [*prompts, encode_prompt(said, template)]
    found = replies(model, asked, [], Sampling(max_tokens=NEW), slots=3)
    for prompt, reply in zip(asked, found, strict=True):
        assert len(reply.ids) == NEW
        assert reply.ids == likeliest(plain, prompt.tolist(), reply.ids, by_length)
    row = f"| {family} | {FAMILIES[family].model_type} | .* | {WORDS[way_of(model, 40)]} |"
    assert re.search(row.replace("|", r"\|"), DOCUMENT.read_text(encoding="utf-8")), f"docs/models.md must say: {row}"
    assert (speed_note(model) is None) == (way_of(model) is BATCHED)
    whole = found[-1]
    until_stop = whole.ids[: whole.ids.index(2)] if 2 in whole.ids else whole.ids
    with contextlib.closing(LocalVoice(model, template.tokenizer, template, stops, slots=1)) as voice:
        text = "".join(stream(voice, said, Sampling(max_tokens=NEW)))
    assert text == template.tokenizer.decode(until_stop, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama-dynamic", "phi3-longrope", "mistral", "gpt-oss", "deepseek-v3"])
def test_the_slow_ways_say_the_same(
    family: str, prompts: list[NDArray[np.int32]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = micro_folder(family, tmp_path)
    found = []
    for first in range(len(ways.WAYS)):
        monkeypatch.setattr(ways, "WAYS", (BATCHED, OWN_CACHE, RECOMPUTED)[first:])
        model = load_model(folder, torch.float32, torch.device("cpu")).requires_grad_(False)
        found.append(replies(model, prompts, [], Sampling(1.2, max_tokens=NEW, seed=3)))
        assert way_of(model, 40) is (BATCHED, OWN_CACHE, RECOMPUTED)[first]
    assert found[0] == found[1] == found[2]
