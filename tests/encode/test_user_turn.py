"""What a model is given to write the user's turn, from the template alone, beside what MAGPIE publishes for each family."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.encode.template import ChatTemplate, load_template
from posttrain.encode.user_turn import user_stops, user_turn
from posttrain.errors import TemplateError
from posttrain.types import Message

from .conftest import MARKERS, byte_level

TEMPLATES = Path(__file__).parent / "templates"

# MAGPIE's configs/model_configs.json; spaces that a SentencePiece decoder writes behind <s> are none of the template's.
PUBLISHED = {
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    "qwen3": "<|im_start|>user\n",
    "mistral": "<s>[INST] ",
    "phi3": "<|user|>\n",
    "zephyr": "<|user|>\n",
    # its template ends the header with one line end, where MAGPIE's list has two
    "gemma": "<s><start_of_turn>user\n",
    # with the default system turn, as MAGPIE's list has it for Qwen2.5
    "chatml": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "deepseek": "<s><｜User｜>",
}
ENDS = {
    "llama3": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "mistral": "[/INST]",
    "phi3": "<|end|>",
    "zephyr": "</s>",
    "gemma": "<end_of_turn>",
    "chatml": "<|im_end|>",
    "deepseek": "<｜Assistant｜>",
}


def template_of(name: str) -> ChatTemplate:
    return load_template(byte_level(MARKERS), TEMPLATES / f"{name}.jinja")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_pre_query_is_the_published_one(name: str) -> None:
    template = template_of(name)
    turn = user_turn(template)
    assert turn.before == PUBLISHED[name]
    assert turn.behind.strip().startswith(ENDS[name])
    end = template.tokenizer.convert_tokens_to_ids(ENDS[name])
    assert (end,) in user_stops(template)


def test_a_system_turn_and_earlier_turns_stand_before_it() -> None:
    talk = [Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello")]
    before = user_turn(template_of("chatml"), talk).before
    assert before.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n")
    assert before.endswith("<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n")


def test_headers_of_plain_words_have_stops_of_plain_words(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m['role'] | capitalize ~ ': ' ~ m['content'] ~ '\\n\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    template = load_template(byte_level(), tmp_path / "t.jinja")
    assert user_turn(template) == ("User: ", "\n\nAssistant:")
    texts = {template.tokenizer.decode(list(stop)) for stop in user_stops(template)}
    assert {"\n\nAssistant:", "Assistant:"} <= texts


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %} [end]", "nothing stands before"),
        ("{% for m in messages %}{{ 'User: ' ~ m['content'] }}{% endfor %}", "nothing ends"),
        ("{% for m in messages %}{{ 'User: ' ~ m['content'] | upper ~ '!' }}{% endfor %}", "as they are"),
        ("{% for m in messages %}{{ 'User: ' ~ m['content'] ~ m['content'] ~ '!' }}{% endfor %}", "as they are"),
        ("{{ raise_exception('never') }}", "never"),
    ],
)
def test_a_template_without_a_user_header_is_refused_with_the_reason(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(text)
    with pytest.raises(TemplateError, match=problem):
        user_turn(load_template(byte_level(), tmp_path / "t.jinja"))
