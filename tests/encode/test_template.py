from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from posttrain.encode.template import RejectedError, load_template, load_tokenizer, stopped_at
from posttrain.errors import ModelError, TemplateError
from posttrain.types import Message, ToolCall


def test_renders_as_hugging_face_does(golden, tokenizers):
    template = golden("chatml")
    plain = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hi"}]
    expected = tokenizers["markers known"].apply_chat_template(plain, chat_template=template.text, tokenize=False)
    assert template.render([Message("user", "你好"), Message("assistant", "Hi")]) == expected
    assert expected.endswith("<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n")


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match="no such model folder"):
        load_tokenizer(tmp_path / "absent")


def test_a_folder_without_tokenizer_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"no usable tokenizer(.|\n)*tokenizer.json") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path, tokenizers):
    tokenizers["markers known"].save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)


def test_a_saved_tokenizer_comes_back_with_its_template(tmp_path: Path, tokenizers, golden):
    tokenizer: PreTrainedTokenizerFast = tokenizers["markers known"]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(golden("gemma").text or "")
    template = load_template(load_tokenizer(tmp_path))
    assert template.render([Message("user", "Hi")], add_generation_prompt=True) == (
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_tokenizer_without_template_needs_a_file(tokenizers):
    with pytest.raises(TemplateError, match=r"no chat template(.|\n)*--template"):
        load_template(tokenizers["markers known"])


def test_a_missing_template_file_is_named(tokenizers, tmp_path: Path):
    with pytest.raises(TemplateError, match=r"absent\.jinja: can't read this template"):
        load_template(tokenizers["markers known"], tmp_path / "absent.jinja")


@pytest.mark.parametrize(
    ("text", "line"), [("{{ a }}\n\n{% for x in %}", 3), ("\n{{ messages | no_such_filter }}", 2), ("{% if x %}", 1)]
)
def test_invalid_jinja_names_file_and_line(tokenizers, tmp_path: Path, text: str, line: int):
    file = tmp_path / "broken.jinja"
    file.write_text(text)
    with pytest.raises(TemplateError, match=rf"broken\.jinja:{line}: the chat template is not valid Jinja"):
        load_template(tokenizers["markers known"], file)


def test_what_the_template_says_is_the_reason(golden):
    with pytest.raises(RejectedError) as caught:
        golden("refusing").render([Message("user", "a"), Message("assistant", "b"), Message("user", "c")])
    assert caught.value.rejected.reason == "template_raised"
    assert caught.value.rejected.detail == "only one question and one answer, please"


def test_tool_arguments_are_objects_and_text_where_the_template_wants_text(tokenizers, tmp_path: Path):
    messages = [Message("user", "a"), Message("assistant", "", tool_calls=(ToolCall("f", '{"x": 1}'),))]
    for argument in ("call['arguments']['x'] | string", "call['arguments'] + ''"):
        file = tmp_path / "tools.jinja"
        file.write_text(
            "{% for m in messages if m['tool_calls'] is defined %}{% set call = m['tool_calls'][0]['function'] %}"
            "{{ " + argument + " }}{% endfor %}"
        )
        rendered = load_template(tokenizers["markers known"], file).render(messages)
        assert rendered == ("1" if "['x']" in argument else '{"x": 1}')


def test_broken_tool_arguments_reject_the_row(golden):
    with pytest.raises(RejectedError) as caught:
        golden("qwen3").render([Message("assistant", "", tool_calls=(ToolCall("f", "{x"),))])
    assert caught.value.rejected.reason == "bad_tool_arguments"


def test_the_clock_stands_still(tokenizers, tmp_path: Path):
    file = tmp_path / "clock.jinja"
    file.write_text("\n{%- set d = strftime_now('%d %b %Y, %H:%M:%S') %}{{ d }}|{{ strftime_now('%-d. %B') }}|100%")
    with stopped_at(datetime(2024, 7, 6, 5, 4, 3)):
        template = load_template(tokenizers["markers known"], file)
    assert template.reads_clock
    assert template.render([Message("user", "x")]) == "06 Jul 2024, 05:04:03|6. July|100%"
    now = load_template(tokenizers["markers known"], file)
    assert now.render([Message("user", "x")]) == now.render([Message("user", "x")])
    assert f"{datetime.now().year}" in now.render([Message("user", "x")])


def test_reasoning_is_given_under_the_name_the_template_reads(tokenizers, tmp_path: Path):
    for name in ("reasoning_content", "reasoning", "thinking", "thought"):
        file = tmp_path / f"{name}.jinja"
        file.write_text("{% for m in messages %}{{ m['" + name + "'] }}{% endfor %}")
        template = load_template(tokenizers["markers known"], file)
        assert template.render([Message("assistant", "b", reasoning="hm")]) == "hm"


def test_the_tokens_that_end_generation_are_those_of_tokenizer_and_folder(tmp_path: Path, tokenizers, golden):
    tokenizers["markers known"].save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(golden("gemma").text or "")
    ids = tokenizers["markers known"].convert_tokens_to_ids(["<|eot_id|>", "<|end|>"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": ids[1]}))
    assert load_template(load_tokenizer(tmp_path)).end_tokens == {"</s>", "<|end|>"}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids[0]]}))
    assert load_template(load_tokenizer(tmp_path)).end_tokens == {"</s>", "<|eot_id|>"}
