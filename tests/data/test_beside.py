"""What stands beside a conversation and changes its meaning is used or refused, in every format, and never ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_examples import FORMAT_EXAMPLES
from posttrain.artifacts import StageDir
from posttrain.data.config import DataSettings, Source
from posttrain.data.dedup.step import DedupStep
from posttrain.data.filters.step import FilterStep
from posttrain.data.formats import FORMATS, RowError, detect_format, read_record
from posttrain.data.formats.drafts import PairRule, Ranked
from posttrain.data.pipeline import prepare
from posttrain.data.reading import rows_as
from posttrain.data.rows import frame_rows, read_feedback, read_pairs, read_rows, refuse_prompts, row_kind_of
from posttrain.data.select.difficulty import Ifd
from posttrain.data.select.step import SelectStep
from posttrain.data.steps import StepRun
from posttrain.errors import DataError
from posttrain.types import Message, Origin, PairRow, PromptRow, SftRow, ToolCall

ORIGIN = Origin("a.jsonl", 7)
FOREIGN = [name for name in FORMATS if not name.startswith("posttrain_")]
"""Rows that the chain wrote have what stood beside them already."""
SINGLE = [name for name in FOREIGN if FORMATS[name].kind == "conversations"]


def read(record: dict[str, Any], name: str | None = None) -> Any:
    """The row of a record as a file of its like gives it; of rated answers the best against the worst."""
    form = name or detect_format([record], "a").name
    found = read_record(record, form, True, ORIGIN, "source")
    return found.pairs(PairRule(), ORIGIN, "source")[0] if isinstance(found, Ranked) else found


def example(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(FORMAT_EXAMPLES[name])
    return record


def reason(record: dict[str, Any], name: str | None = None) -> str:
    with pytest.raises(RowError) as caught:
        read(record, name)
    assert caught.value.detail
    return caught.value.reason


def said(row: Any) -> str:
    """Everything a model reads of a row."""
    turns = row.messages + (row.rejected if isinstance(row, PairRow) else ())
    return "\n".join(f"{turn.content} {turn.reasoning or ''}" for turn in turns) + json.dumps(row.tools)


USED: list[tuple[str, Any, str]] = [
    *((key, "Be brief.", "Be brief.") for key in ("system", "system_prompt", "system_message", "meta_instruction")),
    *((key, [{"name": "seek"}], "seek") for key in ("tools", "functions")),
    ("functions", '[{"name": "seek"}]', "seek"),
    ("history", [["Before?", "Earlier."]], "Earlier."),
    ("history", [{"role": "user", "content": "Before?"}, {"role": "assistant", "content": "Earlier."}], "Earlier."),
    ("history", '[["Before?", "Earlier."]]', "Earlier."),
    ("chat_history", [{"human": "Before?", "assistant": "Earlier."}], "Earlier."),
    ("context", "The mill burnt down.", "The mill burnt down."),
    ("passage", "The mill burnt down.", "The mill burnt down."),
    ("documents", [{"title": "Mills", "text": "The mill burnt down."}], "Mills\nThe mill burnt down."),
    ("options", ["red", "seven of nine"], "B. seven of nine"),
]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize(("key", "value", "expected"), USED)
def test_what_is_beside_a_row_is_used(name: str, key: str, value: Any, expected: str) -> None:
    if name in ("moss", "openai_preference") and key == "input":
        pytest.skip("a key of its own")
    record = example(name) | {key: value}
    row = read(record, name)
    assert expected in said(row)
    assert key not in row.meta
    plain = read(example(name), name)
    assert row.id != plain.id
    if isinstance(row, PairRow):
        assert (row.chosen, row.rejected) == (plain.chosen, plain.rejected)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("image", "a.jpg", "needs_image"),
        ("images", ["a.jpg"], "needs_image"),
        ("image", {"bytes": "x", "path": None}, "needs_image"),
        ("audio", "a.wav", "needs_audio"),
        ("videos", ["a.mp4"], "needs_video"),
        ("system", {"a": 1}, "wrong_shape"),
        ("history", "Before?", "wrong_shape"),
        ("history", ["Before?"], "wrong_shape"),
        ("context", {"a": 1}, "wrong_shape"),
        ("critique", "The reply names no colour that anyone has seen.", "criticised"),
        ("feedback", "The reply names no colour that anyone has seen.", "criticised"),
    ],
)
def test_what_can_not_be_used_is_refused(name: str, key: str, value: Any, expected: str) -> None:
    if name == "prompts" and key in ("critique", "feedback"):
        pytest.skip("no reply to criticise")
    assert reason(example(name) | {key: value}, name) == expected


NOTHING = (
    "system",
    "tools",
    "functions",
    "history",
    "context",
    "passage",
    "images",
    "image",
    "options",
    "reasoning",
    "label",
)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("nothing", [None, "", " ", [], {}, float("nan")])
def test_empty_columns_beside_a_row_say_nothing(name: str, nothing: Any) -> None:
    others = (*NOTHING, "messages", "conversations", "instruction", "chosen", "rejected", "weight", "critique")
    record = dict.fromkeys(others, nothing) | example(name)
    assert detect_format([record], "a").name == name
    assert read(record).id == read(example(name)).id


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking", "thought", "rationale"])
def test_reasoning_belongs_to_the_last_reply(name: str, key: str) -> None:
    row = read(example(name) | {key: "Two and two."}, name)
    assert row.messages[-1].reasoning == "Two and two."
    assert read(example(name) | {key: "high"}, name).messages[-1].reasoning is None


@pytest.mark.parametrize("name", [name for name in FOREIGN if FORMATS[name].kind == "pairs"])
def test_reasoning_beside_two_replies_is_refused(name: str) -> None:
    assert reason(example(name) | {"reasoning": "Two and two."}, name) == "unclear_reasoning"


@pytest.mark.parametrize("name", ["messages", "sharegpt", "alpaca", "prompt_completion", "text_pair", "moss"])
@pytest.mark.parametrize(
    ("key", "value", "desirable"),
    [
        ("label", 0, False),
        ("label", 1, True),
        ("label", "1", True),
        ("label", "unsafe", False),
        ("label", False, False),
        ("kto_tag", True, True),
        ("is_safe", False, False),
        ("is_safe", "False", False),
        ("safety", "safe", True),
        ("is_harmful", True, False),
        ("response_harm_label", "harmful", False),
        ("quality", "bad", False),
        ("is_correct", 0.0, False),
        ("feedback", "good", True),
    ],
)
def test_a_label_of_quality_makes_feedback(name: str, key: str, value: Any, desirable: bool) -> None:
    record = example(name) | {key: value}
    assert detect_format([record], "a").name == "feedback"
    assert read(record).desirable is desirable
    if key != "label" or not isinstance(value, int | float | str) or value in (True, False, "unsafe"):
        return
    assert isinstance(read(record, name), SftRow)


def test_numbers_judge_only_where_all_of_a_file_do() -> None:
    rows = [example("text_pair") | {"label": label} for label in (0, 1, 2, 3)]
    assert detect_format(rows, "a").name == "text_pair"
    assert read(rows[0], "text_pair").meta == {"label": 0}
    assert detect_format(rows[:2], "a").name == "feedback"
    assert reason(example("text_pair") | {"label": True}, "text_pair") == "other_kind"
    assert reason(example("text_pair") | {"label": True, "is_safe": False}) == "labels_disagree"


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({"loss": False}, 0.0),
        ({"loss": True}, None),
        ({"loss": 0}, 0.0),
        ({"train": False}, 0.0),
        ({"train": "false"}, 0.0),
        ({"training": False}, 0.0),
        ({"weight": 0.5, "loss": True}, 0.5),
        ({"weight": 0.5, "train": False}, 0.0),
        ({"masked": True}, 0.0),
        ({"mask": 0}, None),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 4, "train": False}]}, 0.0),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 4, "train": True}]}, None),
        ({"train_detail": []}, None),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": True}]}, "partial_training"),
        (
            {"train_detail": [{"begin_offset": 0, "train": True}, {"begin_offset": 1, "train": False}]},
            "partial_training",
        ),
        ({"mask": 1}, "unclear_mark"),
        ({"loss": 0.35}, "unclear_mark"),
        ({"loss": "all"}, "wrong_shape"),
    ],
)
def test_marks_of_a_turn(fields: dict[str, Any], weight: float | str | None) -> None:
    for key, text, role in (("messages", "content", "role"), ("conversations", "value", "from")):
        record = {key: [{role: "user", text: "x"}, {role: "assistant", text: "reply", **fields}]}
        if isinstance(weight, str):
            assert reason(record) == weight
        else:
            assert read(record).messages[1] == Message("assistant", "reply", weight=weight)
    exchange = {"conversation": [{"human": "x", "assistant": "reply", **fields}]}
    if not isinstance(weight, str) and "train_detail" not in fields:
        assert read(exchange).messages[1].weight == weight


def test_marks_as_a_list_beside_the_turns() -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    for marks, last in (([0, 0, 1, 1], 1.0), ([False, True], None)):
        row = read({"messages": turns, "loss": marks})
        assert [turn.weight for turn in row.messages if turn.role == "assistant"] == [0.0, last]
    assert reason({"messages": turns, "loss": [1, 0, 1]}) == "wrong_shape"
    assert reason({"messages": turns, "mask": "Assistant"}) == "unclear_mark"
    assert read({"messages": turns, "mask": "User"}).meta == {}


@pytest.mark.parametrize(
    "text", ["<image>\nWhat is it?", "What is <image_1>?", "<video> Sum up.", "<|audio|> Write down."]
)
def test_a_placeholder_is_never_text(text: str) -> None:
    for record in (
        {"prompt": text, "completion": "y"},
        {"prompt": text},
        {"prompt": text, "chosen": "y", "rejected": "z"},
    ):
        assert reason(record).startswith("needs_")
    assert reason({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "y"}]}).startswith(
        "needs_"
    )


@pytest.mark.parametrize(
    "text", ["In RSS: <image><url>a</url></image>", "What does `<image>` do?", "a <imagery> b", "images > audio"]
)
def test_what_only_looks_like_a_placeholder(text: str) -> None:
    assert read({"prompt": text, "completion": "y"}).messages[0].content == text


def test_what_the_prompt_says_is_not_said_twice() -> None:
    record = {
        "prompt": "Given: The mill  burnt.\nWhen?",
        "completion": "y",
        "context": "The mill burnt.",
        "options": ["burnt", "When"],
    }
    assert read(record).messages[0].content == record["prompt"]
    assert (
        read({"question": "q", "instruction": "Answer.", "input": "i", "answer": "y"}).messages[0].content
        == "Answer.\nq\ni"
    )


# ---- calls ---------------------------------------------------------------------------------------------------------

U = {"role": "user", "content": "x"}


def test_text_and_calls_of_the_assistant_are_one_turn() -> None:
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {"a": 1}}'}
    text, result = {"role": "assistant", "content": "Let me see."}, {"role": "tool", "content": "1"}
    calls = (ToolCall("f", '{"a": 1}'),)
    for turns, expected in (
        ([U, text, call, result, text], [("Let me see.", calls), ("Let me see.", ())]),
        ([U, call, call, result, result, text], [("", calls * 2), ("Let me see.", ())]),
        ([U, text, text], [("Let me see.", ()), ("Let me see.", ())]),
        ([U, call, text], [("", calls), ("Let me see.", ())]),
        ([U, {**text, "weight": 0}, call, result, text], [("Let me see.", ()), ("", calls), ("Let me see.", ())]),
    ):
        row = read({"messages": turns})
        assert [(m.content, m.tool_calls) for m in row.messages if m.role == "assistant"] == expected


def test_ids_and_names_of_calls_and_results_are_kept() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for role in ("tool", "function", "environment", "observation", "ipython"):
        result = {"role": role, "name": "f", "tool_call_id": "c1", "content": {"t": 21}}
        row = read({"messages": [U, {"role": "assistant", "content": None, "tool_calls": [call]}, result]})
        assert row.messages[1].tool_calls == (ToolCall("f", "{}", "c1"),)
        assert row.messages[2] == Message("tool", '{"t": 21}', name="f", tool_call_id="c1")


def test_calls_of_anthropic() -> None:
    use = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "1"}]}
    turns = [
        U,
        {"role": "assistant", "content": [{"type": "text", "text": "y"}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
        {"role": "assistant", "content": "z"},
    ]
    assert read({"messages": turns}).messages[1:4] == (
        Message("assistant", "y", tool_calls=(ToolCall("f", '{"a": 1}', "c1"),)),
        Message("tool", "1", tool_call_id="c1"),
        Message("user", "And?"),
    )


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("add(a=2, b=[1, 'x'])", (ToolCall("add", '{"a": 2, "b": [1, "x"]}'),)),
        ("[add(a=2), m.sub()]", (ToolCall("add", '{"a": 2}'), ToolCall("m.sub", "{}"))),
        ("add(a=2)\nadd(a=3)", (ToolCall("add", '{"a": 2}'), ToolCall("add", '{"a": 3}'))),
        ('{"name": "add", "arguments": {}}\n{"name": "sub"}', (ToolCall("add", "{}"), ToolCall("sub", "{}"))),
        ("add(2)", None),
        ("I will add.", None),
        ("add(a=b)", None),
    ],
)
def test_calls_in_text(text: str, calls: tuple[ToolCall, ...] | None) -> None:
    record = {"messages": [U, {"role": "assistant", "content": None, "function_calls": text}]}
    if calls is None:
        assert reason(record) == "wrong_shape"
    else:
        assert read(record).messages[1].tool_calls == calls


def test_tools_that_stand_in_a_turn() -> None:
    turns = [
        {"role": "system", "content": "s", "functions": '[{"name": "f"}]'},
        U,
        {"role": "assistant", "content": "y"},
    ]
    for record in ({"messages": turns}, {"messages": json.dumps(turns)}, {"prompt": turns[:2], "completion": "y"}):
        assert read(record).tools == ({"name": "f"},)
    assert read({"messages": turns, "tools": [{"name": "f"}, {"name": "g"}]}).tools == ({"name": "f"}, {"name": "g"})


# ---- prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "x", "id": 5},
        {"instruction": "x", "input": ""},
        {"question": "x", "answer": None, "reference_answer": "y"},
        {"messages": [U]},
        {"messages": json.dumps([U])},
        {"prompt": [U], "reward_model": {"ground_truth": "5"}},
        {"prompt": "x", "messages": None, "chosen": None},
    ],
)
def test_a_prompt_alone_is_a_row_that_waits(record: dict[str, Any]) -> None:
    row = read(record)
    assert isinstance(row, PromptRow)
    assert row.messages == (Message("user", "x"),)


@pytest.mark.parametrize(
    "record", [{"prompt": "x", "model_answer": "y"}, {"prompt": "x", "text": "y"}, {"prompt": "x", "gpt_output": "y"}]
)
def test_what_may_be_a_reply_is_not_passed_over(record: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no row format fits"):
        detect_format([record], "a")


@pytest.mark.parametrize("name", FOREIGN)
def test_every_kind_of_row_has_a_prompt(name: str) -> None:
    (row,) = rows_as(read(example(name)), "prompts")
    assert isinstance(row, PromptRow)
    assert [turn.role for turn in row.messages] == ["user"]


def test_prompts_go_through_the_chain_and_stop_where_replies_are_needed(tmp_path: Path) -> None:
    texts = [f"Explain the {word} of stones." for word in ("weight", "colour", "age", "weight", "shape", "sound")]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in texts), encoding="utf-8")
    steps = (FilterStep(kind="filter"), DedupStep(kind="dedup", method="exact"))
    stage = DataSettings(sources=(Source(path=str(path)),), steps=steps, held_out=2)
    result = prepare(stage, StageDir(tmp_path / "out"), 0, lambda name: None)
    assert (result["train_rows"], result["held_out_rows"]) == (3, 2)
    rows = tmp_path / "out" / "rows" / "train.parquet"
    assert row_kind_of(rows) == "prompts"
    assert {row.messages[0].content for row in frame_rows(pl.read_parquet(rows))} < set(texts)
    for needs_replies in (read_rows, read_pairs, read_feedback, refuse_prompts):
        with pytest.raises(DataError, match=r"these rows are prompts, but .* replies are needed here"):
            needs_replies(rows)
    run = StepRun(lambda name: None)
    with pytest.raises(DataError, match="replies are needed here"):
        SelectStep(kind="select", rule=Ifd(method="ifd")).decide(rows, 0, run)


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].kind in ("pairs", "feedback")])
def test_no_row_that_judges_is_read_as_a_conversation_that_fits(name: str) -> None:
    """The look at the other formats is left out only where no key of theirs is there."""
    record = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]} | example(name)
    assert reason(record, "messages") == "other_kind"
