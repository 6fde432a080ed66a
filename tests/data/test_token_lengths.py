"""Lengths in tokens of a real tokenizer with its chat template."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.data.profile import Counts
from posttrain.data.token_lengths import model_counter
from posttrain.encode.template import ChatTemplate, load_template, load_tokenizer
from posttrain.types import Message, ToolCall

pytestmark = pytest.mark.demo_model


@pytest.fixture(scope="module")
def template(demo_model: Path) -> ChatTemplate:
    return load_template(load_tokenizer(demo_model), None)


def tokens(template: ChatTemplate, text: str) -> int:
    return len(template.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_conversation_is_as_long_as_its_rendering(template: ChatTemplate) -> None:
    messages = (
        Message("user", "Why is the sky blue?"),
        Message("assistant", "Rayleigh scattering."),
        Message("user", "为什么？"),
        Message("assistant", "因为散射。", tool_calls=(ToolCall("search", '{"q": 1}'),)),
    )
    counter = model_counter(template, "demo")
    assert (counter.name, counter.is_model) == ("tokenizer of demo", True)
    plain = messages[:2]
    (long, short) = counter.count([(messages, ()), (plain, ())])
    assert short == Counts(
        tokens(template, template.render(plain)),
        tokens(template, messages[0].content),
        tokens(template, messages[1].content),
    )
    assert long.user == tokens(template, messages[0].content) + tokens(template, messages[2].content)
    assert long.assistant == sum(
        tokens(template, text) for text in (messages[1].content, messages[3].content, 'search {"q": 1}')
    )
    assert long.whole > short.whole
    assert counter.count([]) == []


def test_half_a_character_is_counted(template: ChatTemplate) -> None:
    (counts,) = model_counter(template, "demo").count([((Message("user", "a\ud800b"), Message("assistant", "c")), ())])
    assert counts.user >= 2
