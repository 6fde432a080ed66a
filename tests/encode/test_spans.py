"""Golden cases: for every template, the exact text that each example supervises, written by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.encode.spans import supervised_renderings
from posttrain.encode.template import RejectedError, load_template
from posttrain.types import Message, Origin, SftRow, ToolCall


def row_of(*messages: Message, tools=()) -> SftRow:
    return SftRow(messages, Origin("rows.jsonl", 1), "test", tools=tools)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str, **fields) -> Message:
    return Message("assistant", text, **fields)


TWO_TURNS = (Message("system", "Be brief."), user("1+1?"), assistant(" two\n"), user(""), assistant("再见 👋"))
THOUGHT = (user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c"), assistant("<think>\nso\n</think>\n\nd"))
APART = (user("a"), assistant("b", reasoning="hm"), user("c"), assistant("d", reasoning="so"))
EMPTY = "<think>\n\n</think>\n\n"
CALL = ToolCall("weather", '{"city": "Bern"}')
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}},)
TOOL_USE = (
    Message("system", "s"),
    user("a"),
    assistant("", tool_calls=(CALL,)),
    Message("tool", '{"t": 3}'),
    assistant("3"),
)


def supervised(row: SftRow, template) -> list[list[str]]:
    renderings, _ = supervised_renderings(row, template)
    return [[r.text[span.start : span.end] for span in r.spans] for r in renderings]


def notes(row: SftRow, template) -> set[str]:
    return set(supervised_renderings(row, template)[1])


def rejection(row: SftRow, template) -> tuple[str, str]:
    with pytest.raises(RejectedError) as caught:
        supervised_renderings(row, template)
    return caught.value.rejected.reason, caught.value.rejected.detail


@pytest.mark.parametrize("tokenizer", ["markers known", "markers unknown", "metaspace"])
@pytest.mark.parametrize(
    ("name", "messages", "expected"),
    [
        ("chatml", TWO_TURNS, [[" two\n<|im_end|>", "再见 👋<|im_end|>"]]),
        ("chatml", THOUGHT, [["<think>\nhm\n</think>\n\nb<|im_end|>", "<think>\nso\n</think>\n\nd<|im_end|>"]]),
        ("llama3", TWO_TURNS, [["two<|eot_id|>", "再见 👋<|eot_id|>"]]),
        ("llama3", TOOL_USE, [['{"name": "weather", "parameters": {"city": "Bern"}}<|eot_id|>', "3<|eot_id|>"]]),
        # The system text moves to the last user turn, so each reply is seen in a context of its own.
        ("mistral", TWO_TURNS, [["  two\n</s>"], [" 再见 👋</s>"]]),
        ("mistral", TWO_TURNS[1:], [["  two\n</s>", " 再见 👋</s>"]]),
        ("gemma", TWO_TURNS, [["two<end_of_turn>", "再见 👋<end_of_turn>"]]),
        ("phi3", TWO_TURNS, [[" two\n<|end|>", "再见 👋<|end|>"]]),
        # The prompt leaves the empty think block to the model.
        ("qwen3", TWO_TURNS, [[f"{EMPTY} two\n<|im_end|>"], [f"{EMPTY}再见 👋<|im_end|>"]]),
        ("qwen3", TWO_TURNS[:3], [[f"{EMPTY} two\n<|im_end|>"]]),
        ("qwen3", THOUGHT, [["<think>\nhm\n</think>\n\nb<|im_end|>"], ["<think>\nso\n</think>\n\nd<|im_end|>"]]),
        ("qwen3", APART, [["<think>\nhm\n</think>\n\nb<|im_end|>"], ["<think>\nso\n</think>\n\nd<|im_end|>"]]),
        (
            "qwen3",
            TOOL_USE,
            [
                [f'{EMPTY}<tool_call>\n{{"name": "weather", "arguments": {{"city": "Bern"}}}}\n</tool_call><|im_end|>'],
                [f"{EMPTY}3<|im_end|>"],
            ],
        ),
        ("deepseek", TWO_TURNS, [[" two\n<｜end▁of▁sentence｜>", "再见 👋<｜end▁of▁sentence｜>"]]),
        # The template shows no reasoning, the prompt opens a block of it: what the row has is what the model writes.
        ("deepseek", THOUGHT, [["hm\n</think>\n\nb<｜end▁of▁sentence｜>"], ["so\n</think>\n\nd<｜end▁of▁sentence｜>"]]),
        ("zephyr", TWO_TURNS, [[" two\n</s>", "再见 👋</s>"]]),
        # The prompt ends before the line end, so the model has to write it.
        ("white_space", TWO_TURNS, [["\ntwo\n</end>", "\n再见 👋\n</end>"]]),
        ("refusing", TWO_TURNS[1:3], [[" two\n</assistant>"]]),
    ],
)
def test_contents_and_stops_are_supervised_and_nothing_else(golden, name, messages, expected, tokenizer):
    assert supervised(row_of(*messages), golden(name, tokenizer)) == expected


def test_expanded_examples_end_with_their_own_turn(golden):
    """Qwen3 strips thinking from earlier turns: what the second example shows of the first reply is what inference shows."""
    first, second = supervised_renderings(row_of(*THOUGHT), golden("qwen3"))[0]
    assert first.text == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nb<|im_end|>\n"
    )
    assert second.text == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nso\n</think>\n\nd<|im_end|>\n"
    )


def test_a_think_block_that_the_prompt_leaves_to_the_model_is_supervised(golden):
    (rendering,), _ = supervised_renderings(row_of(user("a"), assistant("b")), golden("qwen3"))
    (span,) = rendering.spans
    assert rendering.text[: span.start].endswith("<|im_start|>assistant\n")


def test_a_think_block_given_by_the_prompt_is_context(golden):
    empty = assistant("<think>\n\n</think>\n\nb")
    assert supervised(row_of(user("a"), empty), golden("qwen3", enable_thinking=False)) == [["b<|im_end|>"]]
    assert supervised(row_of(user("a"), empty), golden("qwen3")) == [["<think>\n\n</think>\n\nb<|im_end|>"]]


def test_a_think_block_the_prompt_forbids_rejects_the_row(golden):
    reason, detail = rejection(row_of(*THOUGHT[:2]), golden("qwen3", enable_thinking=False))
    assert reason == "prompt_not_prefix"
    assert "'</think>' where the rendering has 'hm </think> b" in detail


@pytest.mark.parametrize(
    "text", ["<|im_start|>assistant\n", "<|im_end|>\n", "<|im_end|>\n<|im_start|>user\nx", "b", "a", "\n"]
)
@pytest.mark.parametrize("name", ["chatml", "zephyr", "phi3", "mistral"])
def test_contents_may_hold_markers_and_repeat_each_other(golden, name, text):
    stop = {"chatml": "<|im_end|>", "zephyr": "</s>", "phi3": "<|end|>", "mistral": "</s>"}[name]
    space = " " if name == "mistral" else ""
    row = row_of(user(text), assistant(text), user("b"), assistant(text + text))
    assert supervised(row, golden(name)) == [[space + text + stop, space + text + text + stop]]


# ---- weights -----------------------------------------------------------------------------------------------------------


def test_turns_of_weight_zero_are_context(golden):
    row = row_of(user("a"), assistant("b", weight=0.0), user("c"), assistant("d", weight=0.5))
    (rendering,), _ = supervised_renderings(row, golden("chatml"))
    assert [(rendering.text[s.start : s.end], s.weight) for s in rendering.spans] == [("d<|im_end|>", 0.5)]


def test_turns_of_weight_zero_are_not_expanded(golden):
    row = row_of(user("a"), assistant("b", weight=0.0), user("c"), assistant("d"))
    assert supervised(row, golden("qwen3")) == [[EMPTY + "d<|im_end|>"]]
    assert "expanded" not in notes(row, golden("qwen3"))


@pytest.mark.parametrize("messages", [(user("a"),), (user("a"), assistant("b", weight=0.0))])
def test_a_row_without_a_supervised_turn_is_rejected(golden, messages):
    assert rejection(row_of(*messages), golden("chatml"))[0] == "nothing_supervised"


# ---- system turns and dropped turns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma", "forgetful"])
def test_a_refused_or_ignored_system_turn_is_folded_into_the_first_user_turn(golden, name):
    row = row_of(*TWO_TURNS)
    renderings, found = supervised_renderings(row, golden(name))
    assert "system_folded" in found
    assert "user\nBe brief.\n\n1+1?<" in renderings[0].text


def test_the_default_system_turn_of_a_template_is_context(golden):
    (rendering,), _ = supervised_renderings(row_of(user("a"), assistant("b")), golden("chatml"))
    assert rendering.text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")


def test_a_system_turn_without_a_user_turn_can_not_be_folded(golden):
    row = row_of(Message("system", "s"), assistant("b"))
    assert rejection(row, golden("gemma")) == ("template_raised", "System role not supported")


def test_alternation_is_the_template_s_own_message(golden):
    row = row_of(Message("system", "s"), user("a"), user("b"), assistant("c"))
    assert rejection(row, golden("gemma")) == ("template_raised", "Conversation roles must alternate")


def test_a_dropped_message_rejects_the_row_even_if_its_text_stands_elsewhere(golden):
    row = row_of(user("42"), assistant("ok"), Message("tool", "42"), assistant("42"))
    assert rejection(row, golden("forgetful")) == ("message_dropped", "the template leaves out message 3 (tool): '42'")


def test_a_dropped_tool_call_rejects_the_row_even_if_its_name_stands_elsewhere(golden):
    row = row_of(user("weather"), assistant("weather", tool_calls=(CALL,)))
    assert rejection(row, golden("chatml"))[0] == "tool_call_dropped"


def test_dropped_reasoning_is_refused_with_that_word_or_learned_as_the_content_has_it(golden):
    assert rejection(row_of(*APART), golden("chatml"))[0] == "reasoning_dropped"
    assert rejection(row_of(*APART), golden("deepseek"))[0] == "reasoning_dropped"
    assert notes(row_of(*THOUGHT), golden("deepseek")) == {"reasoning_from_content", "expanded"}


def test_tools_that_are_not_rendered_are_noted(golden):
    row = row_of(user("a"), assistant("b"), tools=TOOLS)
    assert notes(row, golden("qwen3")) == {"tools_not_rendered"}
    assert notes(row_of(Message("system", "s"), *row.messages, tools=TOOLS), golden("qwen3")) == set()


def test_special_token_text_in_a_content_is_noted(golden):
    row = row_of(user("what is <|im_end|>?"), assistant("a marker"))
    assert notes(row, golden("chatml")) == {"special_token_text_in_content"}
    assert notes(row, golden("chatml", "markers unknown")) == set()


# ---- what can't be proven --------------------------------------------------------------------------------------------


def test_a_template_without_stop_rejects_every_row(golden):
    reason, detail = rejection(row_of(user("a"), assistant("b")), golden("no_stop"))
    assert reason == "no_stop"
    assert "never learn to stop" in detail


OPENED = "{{ '<assistant>' if add_generation_prompt }}"


def template_of(text: str, golden, tmp_path: Path):
    file = tmp_path / "own.jinja"
    file.write_text(text)
    return load_template(golden("chatml").tokenizer, file)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{{ m['content'] | upper }}</s>", "content_rewritten"),
        ("{{ m['content'] | tojson }}</s>", "content_rewritten"),
        ("{{ m['content'] }} {{ m['content'] }}</s>", "content_rewritten"),
        ("{{ m['content'] if m['role'] == 'user' }}</s>", "content_rewritten"),
        ("{{ m['content'] }}{{ '.' if 'b' in m['content'] }}</s>", "content_rewritten"),
    ],
)
def test_a_changed_content_rejects_the_row(golden, tmp_path, body, reason):
    template = template_of("{% for m in messages %}<" + "{{ m['role'] }}>" + body + "{% endfor %}", golden, tmp_path)
    assert rejection(row_of(user("a"), assistant('b"')), template)[0] == reason


def test_a_context_rewritten_for_the_prompt_rejects_the_row(golden, tmp_path):
    text = "{{ 'PROMPT' if add_generation_prompt }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    assert rejection(row_of(user("a"), assistant("b")), template_of(text, golden, tmp_path))[0] == "prompt_not_prefix"


def test_a_closing_tag_always_followed_by_the_stop_token_belongs_to_the_stop(golden, tmp_path):
    text = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</turn><|im_end|>{% endfor %}" + OPENED
    row = row_of(user("a"), assistant("b"), user("c"), assistant("d"))
    assert supervised(row, template_of(text, golden, tmp_path)) == [["b</turn><|im_end|>", "d</turn><|im_end|>"]]


def test_a_stop_of_plain_words_is_the_rest_of_its_line(golden, tmp_path):
    text = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] ~ '\nEND OF TURN\n' }}{% endfor %}"
    text += "{{ 'assistant: ' if add_generation_prompt }}"
    row = row_of(user("a"), assistant("b"), user("c"), assistant("d"))
    assert supervised(row, template_of(text, golden, tmp_path)) == [["b\nEND OF TURN", "d\nEND OF TURN"]]


def test_a_stop_only_at_the_end_of_the_conversation_expands_the_row(golden, tmp_path):
    text = "{% for m in messages %}{{ '\n' ~ m['role'] }}: {{ m['content'] }}{% endfor %}{{ '\nassistant: ' if add_generation_prompt else '</s>' }}"
    row = row_of(user("a"), assistant("b"), user("c"), assistant("d"))
    assert supervised(row, template_of(text, golden, tmp_path)) == [["b</s>"], ["d</s>"]]


def test_a_conversation_opened_by_the_assistant_is_supervised_from_its_content(golden):
    row = row_of(assistant("Welcome!"), user("Hi"), assistant("b"))
    assert supervised(row, golden("phi3")) == [["Welcome!<|end|>", "b<|end|>"]]


def test_a_tool_call_with_a_stop_of_its_own(golden, tmp_path):
    text = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
        "{% for c in m['tool_calls'] | default([]) %}[{{ c['function']['name'] }}]{% endfor %}"
        "{{ '<|endoftext|>' if m['tool_calls'] is defined else '<|im_end|>' }}{% endfor %}"
        "{{ '<assistant>' if add_generation_prompt }}"
    )
    row = row_of(*TOOL_USE[1:])
    assert supervised(row, template_of(text, golden, tmp_path)) == [["[weather]<|endoftext|>", "3<|im_end|>"]]


# ---- what the renderings show of the stop ----------------------------------------------------------------------------


def chat_template(closing: str, golden, tmp_path: Path, opening: str = "<|im_start|>", calls: str = ""):
    """Turns that open alike; ``closing`` is Jinja behind the content of a turn of the assistant."""
    return template_of(
        "{% for m in messages %}" + opening + "{{ m.role }}\n{{ m.content }}" + calls + "{% if m.role == 'assistant' %}"
        f"{closing}" + "{% endif %}{% endfor %}{% if add_generation_prompt %}" + opening + "assistant\n{% endif %}",
        golden,
        tmp_path,
    )


TWO = row_of(user("a"), assistant("b"), user("c"), assistant("d"))


@pytest.mark.parametrize(
    ("closing", "stop"),
    [
        ("<|end|><|im_end|>", "<|end|><|im_end|>"),  # the last marker ends the turn (Command-A)
        ("<|end|>\n</s>\n<|im_end|>", "<|end|>\n</s>"),  # or the first that ends generation: </s> is the tokenizer's
        (
            "<|end|>{% if loop.last %}<|endoftext|>{% endif %}",
            "<|end|>",
        ),  # what only a last turn has is no stop (Phi-3)
        ("{% if not loop.last %}<|eot_id|>{% endif %}", "<|eot_id|>"),  # it shows only when a turn follows (Apriel)
        ("", "<|im_start|>"),  # what opens the next turn is what ends this one (GLM's <|user|>)
    ],
)
def test_the_stop_is_what_a_last_turn_and_a_followed_one_have_in_common(golden, tmp_path, closing, stop):
    assert supervised(TWO, chat_template(closing, golden, tmp_path)) == [[f"b{stop}", f"d{stop}"]]


def test_a_stop_that_only_the_next_turn_shows_is_put_behind_the_last(golden, tmp_path):
    ((rendering,), _) = supervised_renderings(TWO, chat_template("", golden, tmp_path))
    assert rendering.text.endswith("d<|im_start|>")


def test_the_end_of_arguments_is_no_stop(golden, tmp_path):
    calls = "{% for c in m.tool_calls or [] %}<|assistant|>{{ c.function.name }}\n{{ c.function.arguments | tojson }}{% endfor %}"
    written = 'weather\n{"city": "Bern"}<|im_start|>'
    template = chat_template("", golden, tmp_path, calls=calls)
    assert supervised(row_of(*TOOL_USE[1:]), template) == [[f"<|assistant|>{written}", "3<|im_start|>"]]


def test_the_header_that_stands_behind_every_conversation_is_no_stop(golden, tmp_path):
    thinks = "{{ '<|system|>' if m.role == 'assistant' }}"
    text = (
        "{% for m in messages %}<|user|><{{ m.role }}>"
        + thinks
        + "{{ m.content }}<|end|>{% endfor %}<|user|><assistant>"
    )
    text += "{{ '<|system|>' if add_generation_prompt }}"
    for row in (TWO, row_of(assistant("a"))):
        assert rejection(row, template_of(text, golden, tmp_path))[0] == "no_stop"


def test_a_call_ends_as_the_turn_does_and_not_as_the_call(golden, tmp_path):
    calls = "{% for c in m.tool_calls or [] %}[INST]{{ c.function.name }}{{ c.function.arguments | tojson }}[/INST]{% endfor %}"
    row = row_of(*TOOL_USE[1:])
    called = '[INST]weather{"city": "Bern"}[/INST]'
    for closing, stop in (("<|end|>\n<|im_end|>", "<|end|>\n<|im_end|>"), ("", "<|im_start|>")):
        template = chat_template(closing, golden, tmp_path, calls=calls)
        assert supervised(row, template) == [[f"{called}{stop}", f"3{stop}"]]


def test_a_content_that_the_template_drops_beside_a_call_is_refused_though_the_call_says_it(golden, tmp_path):
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    )
    template = template_of(text, golden, tmp_path)
    row = row_of(user("a"), assistant("Bern", tool_calls=(CALL,)))
    assert rejection(row, template) == ("content_rewritten", "the template leaves out 'Bern' of assistant turn 2")
    assert supervised(row_of(user("a"), assistant("", tool_calls=(CALL,))), template)


def test_what_inference_leaves_to_the_model_is_supervised(golden, tmp_path):
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' to=user' if m.role == 'assistant' }}\n{{ m.content }}<|im_end|>"
        "{% endfor %}{{ '<|im_start|>assistant' if add_generation_prompt }}"
    )
    assert supervised(TWO, template_of(text, golden, tmp_path)) == [[" to=user\nb<|im_end|>", " to=user\nd<|im_end|>"]]


@pytest.mark.parametrize("shown", ["<think></think>", "</think>", "<think>\n</think>"])
def test_the_closing_of_a_block_the_prompt_opened_is_supervised(golden, tmp_path, shown):
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n" + f"{{{{ {shown!r} if m.role == 'assistant' }}}}"
        "{{ m.content }}<|im_end|>{% endfor %}{{ '<|im_start|>assistant\n<think>\n' if add_generation_prompt }}"
    )
    template = template_of(text, golden, tmp_path)
    (rendering, *_), _ = supervised_renderings(row_of(user("a"), assistant("b")), template)
    (span,) = rendering.spans
    assert rendering.text[: span.start].endswith("<|im_start|>assistant\n<think>\n")
    assert rendering.text[span.start : span.end] == "</think>b<|im_end|>"


def test_a_row_whose_earlier_turns_are_rewritten_is_prompt_and_completion(golden):
    """Qwen3 with two replies in a row: the rendering takes the think block from the first, the prompt of the second has it."""
    row = row_of(user("a"), assistant("b"), assistant("c"))
    first, second = supervised_renderings(row, golden("qwen3"))[0]
    assert [first.text[s.start : s.end] for s in first.spans] == [EMPTY + "b<|im_end|>"]
    (span,) = second.spans
    prompt = golden("qwen3").render(row.messages[:2], add_generation_prompt=True)
    assert (second.text[: span.start], second.text[span.start : span.end]) == (prompt, EMPTY + "c<|im_end|>")


def test_a_quoted_end_of_thinking_is_no_reasoning(golden):
    quote = "It closes with </think> there."
    assert supervised(row_of(user("a"), assistant(quote)), golden("chatml")) == [[quote + "<|im_end|>"]]
    assert rejection(row_of(user("a"), assistant(quote)), golden("qwen3"))[0] == "content_rewritten"


@pytest.mark.parametrize("first", ["system", "user"])
def test_contents_are_typed_parts_where_the_template_drops_text(golden, tmp_path, first):
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{{ p.text if p.type == 'text' }}{% endfor %}"
        "<|im_end|>{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    )
    template = template_of(text, golden, tmp_path)
    row = row_of(*((Message("system", "s"),) if first == "system" else ()), user("a"), assistant("b"))
    assert supervised(row, template) == [["b<|im_end|>"]]
    assert "user\na<" in supervised_renderings(row, template)[0][0].text


def test_ids_and_names_reach_the_template_and_are_numbered_where_it_wants_others(golden, tmp_path):
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
        "{{ c.id }}:{{ c.function.name }}{% endfor %}{{ m.name }}={{ m.tool_call_id }}<|im_end|>{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    )
    template = template_of(text, golden, tmp_path)
    call = ToolCall("weather", "{}", "abcdefghi")
    given = row_of(
        user("a"), assistant("", tool_calls=(call,)), Message("tool", "3", name="weather", tool_call_id="abcdefghi")
    )
    (rendering,), found = supervised_renderings(given, template)
    assert "abcdefghi:weather" in rendering.text
    assert "tool\n3weather=abcdefghi" in rendering.text
    assert "tool_ids_numbered" not in found
    (rendering,), found = supervised_renderings(row_of(*TOOL_USE[1:4]), template)
    assert "call00000:weather" in rendering.text
    assert 'tool\n{"t": 3}weather=call00000' in rendering.text
    assert "tool_ids_numbered" in found


def test_a_refusal_shows_where_the_two_texts_differ(golden, tmp_path):
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ ' ' if add_generation_prompt else '\n' }}"
        "{% endfor %}{{ 'go' if add_generation_prompt }}"
    )
    reason, detail = rejection(row_of(user("a"), assistant("b")), template_of(text, golden, tmp_path))
    assert reason == "prompt_not_prefix"
    left, right = re.findall(r"'((?:[^'\\]|\\.)*)'", detail)
    assert left != right
