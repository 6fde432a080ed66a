from __future__ import annotations

import json

import pytest
from rich.console import Console

from encoding import encode_row
from posttrain.encode.show import RowView, as_json, show_row
from posttrain.lab.row_page import row_page
from posttrain.report import html
from posttrain.report import terminal as in_terminal
from posttrain.types import Message, Origin, SftRow, ToolCall


def chat(*contents: str) -> SftRow:
    turns = tuple(Message("user" if k % 2 == 0 else "assistant", text) for k, text in enumerate(contents))
    return SftRow(turns, Origin("rows.jsonl", 3), "test")


def terminal(shown: RowView, **options) -> str:
    console = Console(width=100, record=True, file=None, force_terminal=True, **options)
    with console.capture() as capture:
        console.print(*map(in_terminal.section, row_page(shown).sections), sep="\n")
    return capture.get()


@pytest.mark.parametrize("tokenizer", ["markers known", "markers unknown", "words swallow line ends", "metaspace"])
@pytest.mark.parametrize("name", ["llama3", "qwen3", "mistral", "deepseek"])
def test_token_texts_join_to_the_rendering_and_weights_are_those_of_training(golden, name, tokenizer):
    template = golden(name, tokenizer)
    row = chat("什么？ 👩‍👧", "你好 e\u0301 <|im_end|>\tx", "r", "b")
    value = as_json(show_row(row, template))
    encoded = encode_row(row, template, 10**9)
    assert "".join(token["text"] for token in value["tokens"]) == value["rendered"]
    assert value["rendered"] == "".join(example["rendered"] for example in value["examples"])
    assert [t["id"] for t in value["tokens"]] == [i for part in encoded.examples for i in part.ids_T.tolist()]
    assert [t["weight"] for t in value["tokens"]] == [w for part in encoded.examples for w in part.weights_T.tolist()]
    assert [t["example"] for t in value["tokens"]] == [k for k, part in enumerate(encoded.examples) for _ in part.ids_T]
    json.dumps(value)


def test_the_json_value_by_hand(golden):
    value = as_json(show_row(chat("q", "é!"), golden("zephyr")))
    assert value["tokens"][-5:] == [
        {"id": value["tokens"][-5]["id"], "text": "é", "weight": 1.0, "example": 0},
        {"id": value["tokens"][-4]["id"], "text": "", "weight": 1.0, "example": 0},  # the second byte of the letter
        {"id": value["tokens"][-3]["id"], "text": "!", "weight": 1.0, "example": 0},
        {"id": golden("zephyr").tokenizer.eos_token_id, "text": "</s>", "weight": 1.0, "example": 0},
        {"id": value["tokens"][-1]["id"], "text": "\n", "weight": 0.0, "example": 0},
    ]
    assert value["origin"] == {"file": "rows.jsonl", "line": 3}
    assert value["examples"][0]["supervised"] == 4
    assert value["examples"][0]["place"] == {"micro_batch": 0, "start": 0, "predicting": 4}
    assert value["rejected"] is None


def test_examples_are_placed_in_micro_batches(golden):
    row = chat("q", "a", "r", "b", "s", "c")
    lengths = [len(e.tokens) for e in show_row(row, golden("qwen3")).examples]
    shown = show_row(row, golden("qwen3"), budget=lengths[0] + lengths[1])
    assert [(e.place.micro_batch, e.place.start) for e in shown.examples if e.place] == [
        (0, 0),
        (0, lengths[0]),
        (1, 0),
    ]


def test_a_rejected_row_says_why_everywhere(golden):
    broken = Message("assistant", "", tool_calls=(ToolCall("f", "{oops"),))
    for row in (chat("q", "a"), SftRow((Message("user", "q"), broken), Origin("rows.jsonl", 3), "test")):
        shown = show_row(row, golden("no_stop"))
        reason = "bad_tool_arguments" if broken in row.messages else "no_stop"
        assert as_json(shown)["rejected"]["reason"] == reason
        assert as_json(shown)["tokens"] == []
        assert reason in terminal(shown)
        assert f"{reason}: " in html.page(row_page(shown))


def test_over_length_examples_are_cut_or_marked(golden):
    whole = show_row(chat("q", "a " * 20), golden("llama3"))
    size = len(whole.examples[0].tokens)
    (cut,) = show_row(chat("q", "a " * 20), golden("llama3"), size - 5, "truncate").examples
    assert cut.truncated
    assert len(cut.tokens) == size - 5
    (dropped,) = show_row(chat("q", "a " * 20), golden("llama3"), size - 5).examples
    assert dropped.rejected is not None
    assert dropped.rejected.reason == "too_long"
    assert len(dropped.tokens) == size
    assert dropped.place is None


def test_the_terminal_colours_supervised_tokens_only(golden):
    printed = terminal(show_row(chat("question", "answer"), golden("chatml")), color_system="standard")
    coloured = [part.split("\x1b[0m")[0] for part in printed.split("\x1b[30;")[1:]]
    assert "".join(part.split("m", 1)[1] for part in coloured) == "answer<|im_end|>"


def test_data_can_not_steer_the_terminal_or_the_page(golden):
    shown = show_row(chat("\x1b[31mred\x07 [bold]x[/bold]", "<script>alert(1)</script>\x1b]0;t\x07"), golden("chatml"))
    printed = terminal(shown, color_system=None)
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "␛[31mred␇ [bold]x[/bold]" in printed
    assert "<script>alert" not in html.page(row_page(shown))


def test_the_page_is_self_contained_and_marks_supervised_tokens(golden):
    shown = show_row(chat("q", "a & b"), golden("chatml"))
    page = html.page(row_page(shown))
    assert page.startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in page
    assert page.count('<span class="supervised" title="id ') == shown.examples[0].supervised
    assert 'weight 1">&lt;|im_end|&gt;</span>' in page


def test_every_message_shows_its_parts(golden):
    call = ToolCall("weather", '{"city": "Bern"}')
    row = SftRow(
        (Message("user", "q"), Message("assistant", "", "hm", (call,), weight=0.5)), Origin("rows.jsonl", 3), "test"
    )
    printed = terminal(show_row(row, golden("qwen3")), color_system=None)
    assert "assistant (weight 0.5): reasoning\nhm" in printed
    assert 'assistant (weight 0.5): call\nweather {"city": "Bern"}' in printed
