"""Foreign dicts become rows; every entry of the table keeps the same promises. Preferences: test_preference_formats.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from data_examples import FORMAT_EXAMPLES
from posttrain.data.formats import FORMATS, RowError, detect_format
from posttrain.data.formats.conversations import TEXT_PAIRS as PAIRS
from posttrain.data.formats.drafts import PairRule, Ranked
from posttrain.data.formats.turns import CALL_ROLES, ROLE_NAMES
from posttrain.errors import ConfigError, DataError
from posttrain.types import ROLES, Message, Origin, PairRow, PromptRow, SftRow, ToolCall, UnpairedRow, message_dict

ORIGIN = Origin("a.jsonl", 7)
TEXTS = st.sampled_from(["", "x", " ", "\ud800", "[]", "{", '[{"role": "user"}]', '{"name": "f"}', "user", "gpt"])
SCALARS = TEXTS | st.sampled_from([None, True, 0, -1.5, float("nan")])
FIELDS = ["role", "from", "content", "value", "type", "text", "tool_calls", "name", "arguments", "weight", "output"]
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), SCALARS | st.lists(SCALARS, max_size=2), max_size=4)
VALUES = SCALARS | OBJECTS | st.lists(SCALARS | OBJECTS | st.lists(OBJECTS | SCALARS, max_size=2), max_size=3)
KEYS = ["messages", "conversations", "instruction", "input", "output", "instances", "prompt", "completion", "question"]
PREFERENCE_KEYS = ["chosen", "rejected", "label", "completions", "answers", "responses", "scores", "score_chosen"]
PREFERENCE_KEYS += ["chosen_messages", "conversation_a", "winner", "response_j", "prompt_turns", "desirable", "meta"]
RECORDS = st.dictionaries(
    st.sampled_from([*KEYS, *PREFERENCE_KEYS, "answer", "history", "system", "tools", "id", "\ud800"]),
    VALUES,
    min_size=1,
    max_size=3,
)
KINDS = {"conversations": SftRow, "pairs": PairRow, "feedback": UnpairedRow, "prompts": PromptRow}


def parse(name: str, record: dict[str, Any]) -> Any:
    """The row of a record; of rated answers the best against the worst."""
    found = FORMATS[name].parse(record, ORIGIN, "source")
    assert isinstance(found, Ranked) == FORMATS[name].rated
    row = found.pairs(PairRule(), ORIGIN, "source")[0] if isinstance(found, Ranked) else found
    assert type(row) is KINDS[FORMATS[name].kind]
    return row


def beside_margin(row: Any) -> dict[str, Any]:
    return {key: value for key, value in row.meta.items() if key != "margin"}


def talk(row: Any) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in row.messages]


def reason(name: str, record: dict[str, Any]) -> str:
    with pytest.raises(RowError) as caught:
        parse(name, record)
    assert caught.value.detail
    return caught.value.reason


# ---- contract of every format --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_is_detected_and_parsed(name: str) -> None:
    record = json.loads(FORMAT_EXAMPLES[name])
    assert detect_format([record], "a.jsonl").name == name
    row = parse(name, record)
    assert row.origin == ORIGIN
    assert row.source == "source"
    assert [m.role for m in row.messages] == ["user", "assistant"][: 1 if name == "prompts" else 2]
    assert beside_margin(row) == {}
    assert ("margin" in row.meta) == FORMATS[name].rated


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.startswith("posttrain_")])
def test_the_example_stands_in_the_docs(name: str) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    pages = [(docs / page).read_text(encoding="utf-8") for page in ("data-formats.md", "data-preferences.md")]
    assert any(f"| `{name}` |" in page and f"`{FORMAT_EXAMPLES[name]}` |" in page for page in pages)


def test_every_reason_stands_in_the_docs() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data-formats.md").read_text(encoding="utf-8")
    assert [reason for reason in (*REASONS, "undesirable") if f"`{reason}`" not in page] == []


@pytest.mark.parametrize("name", FORMATS)
def test_key_order_and_foreign_keys_do_not_matter(name: str) -> None:
    record = json.loads(FORMAT_EXAMPLES[name])
    other = {"number": 5, "url": "x" * 201, "score": float("nan"), "nested": {"a": 1}, **dict(reversed(record.items()))}
    row = parse(name, other)
    assert row.id == parse(name, record).id
    assert beside_margin(row) == {"number": 5}


@pytest.mark.parametrize("name", FORMATS)
def test_system_and_tools_are_read(name: str) -> None:
    tools = [{"name": "search", "parameters": {"x": None}}]
    for given_tools in (tools, json.dumps(tools)):
        row = parse(name, json.loads(FORMAT_EXAMPLES[name]) | {"system": "Be brief.", "tools": given_tools})
        assert row.messages[0] == Message("system", "Be brief.")
        assert row.tools == tuple(tools)
        assert beside_margin(row) == {}
    for nothing in (None, "", [], "[]", "null"):
        assert parse(name, json.loads(FORMAT_EXAMPLES[name]) | {"system": None, "tools": nothing}).tools == ()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("extra", [{"tools": 5}, {"tools": ["x"]}, {"tools": "not json"}, {"system": 5}])
def test_a_wrong_system_or_tools_is_a_reject(name: str, extra: dict[str, Any]) -> None:
    assert reason(name, json.loads(FORMAT_EXAMPLES[name]) | extra) == "wrong_shape"


def check_row_or_reject(name: str, record: dict[str, Any]) -> None:
    try:
        row = parse(name, record)
    except RowError as error:
        event(error.reason)
        if error.reason not in REASONS:
            raise
        return
    turns = row.messages + (row.rejected if isinstance(row, PairRow) else ())
    assert any(m.role == "assistant" for m in row.messages) != isinstance(row, PromptRow)
    assert all(m.content.strip() or m.tool_calls for m in turns if m.role == "assistant")
    assert all(m.role in ROLES for m in turns)
    json.dumps(dict(row.meta), allow_nan=False).encode()
    json.dumps([message_dict(m) for m in turns], ensure_ascii=False).encode()
    if not isinstance(row, SftRow | PromptRow):
        replies = (row.chosen, row.rejected) if isinstance(row, PairRow) else (row.completion,)
        assert all(reply[0].role == reply[-1].role == "assistant" for reply in replies)
        assert any(m.content.strip() for m in row.prompt)


@pytest.mark.parametrize("name", FORMATS)
@given(change=RECORDS)
def test_any_record_gives_a_valid_row_or_a_reject(name: str, change: dict[str, Any]) -> None:
    check_row_or_reject(name, json.loads(FORMAT_EXAMPLES[name]) | change)


@given(
    change=st.dictionaries(st.sampled_from([*FIELDS, "reasoning", "function_call", "loss_weight"]), VALUES, max_size=3)
)
def test_any_turn_gives_a_valid_row_or_a_reject(change: dict[str, Any]) -> None:
    turn = {"role": "assistant", "content": [{"type": "text", "text": "y"}]} | change
    check_row_or_reject("messages", {"messages": [turn]})


REASONS = {
    "wrong_shape",
    "unknown_role",
    "unsupported_content",
    "needs_image",
    "needs_audio",
    "needs_video",
    "partial_training",
    "unclear_mark",
    "unclear_reasoning",
    "several_replies",
    "criticised",
    "labels_disagree",
    "two_system_prompts",
    "one_side",
    "equal_scores",
    "has_reply",
    "empty_conversation",
    "no_assistant_turn",
    "empty_assistant_turn",
    "empty_prompt",
    "invalid_unicode",
    "equal_sides",
    "no_final_reply",
    "no_shared_prompt",
    "too_few_answers",
    "margin_too_small",
    "tie",
    "unknown_winner",
}


@pytest.mark.parametrize("text", ["\ud800", "caf\udce9"])
def test_text_that_is_not_unicode_is_a_reject_where_it_is_used(text: str) -> None:
    assert reason("text_pair", {"question": text, "answer": "y"}) == "invalid_unicode"
    assert reason("text_pair", {"question": "x", "answer": "y", "tools": [{"name": text}]}) == "invalid_unicode"
    assert parse("text_pair", {"question": "x", "answer": "y", "id": text, text: 1}).meta == {}


# ---- detection -----------------------------------------------------------------------------------------------------


def test_the_format_of_most_rows_wins() -> None:
    pair, alpaca = {"question": "x", "answer": "y"}, {"instruction": "x", "output": "y"}
    assert detect_format([alpaca, pair, pair], "a").name == "text_pair"
    assert detect_format([pair, alpaca, alpaca], "a").name == "alpaca"
    assert detect_format([{"text": "x"}, pair], "a").name == "text_pair"


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"prompt": "x", "messages": []}, "prompts"),
        ({"prompt": "x", "messages": [{"role": "assistant"}]}, "messages"),
        ({"conversations": [], "instruction": "x", "output": "y"}, "alpaca"),
        ({"instruction": "x", "input": "z", "response": "y", "prompt": "z"}, "alpaca"),
        ({"instruction": "x", "input": "", "output": "y", "chosen": "y", "rejected": "z"}, "pairs"),
        ({"instruction": "x", "output": "y", "kto_tag": False}, "feedback"),
        ({"messages": [], "label": True}, "feedback"),
        ({"messages": [], "label": 3}, "messages"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "ranking"),
        ({"prompt": [], "completion": []}, "prompt_completion"),
        ({"question": "x", "answer": None}, "prompts"),
        ({"question": None, "answer": "y"}, "text_pair"),
    ],
)
def test_the_more_telling_keys_win(record: dict[str, Any], name: str) -> None:
    assert detect_format([record], "a").name == name


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "x"}, "text alone is not a conversation"),
        ({"prompt": "x", "chosen": "y"}, "keys found: prompt, chosen"),
        ({"text": "x", "label": True}, "keys found: text, label"),
        ({"model_a": "x", "model_b": "y", "winner": "model_a"}, "keys found: model_a, model_b, winner"),
        ({"prompt": "x", "completions": [{"response": "y"}, {"response": "z"}]}, "keys found: prompt, completions"),
        ({"question": ["x"], "answer": {}}, "keys found: question, answer"),
        ({str(n): n for n in range(30)}, "keys found: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...)"),
    ],
)
def test_no_format_fits(record: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        detect_format([record], "a.jsonl")
    assert "a.jsonl: no row format fits" in str(caught.value)
    assert words in str(caught.value)
    assert "known formats: messages, sharegpt, " in str(caught.value)


def test_a_misspelt_format_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown row format 'alpacca' \\(did you mean 'alpaca'\\?\\)"):
        FORMATS["alpacca"]


# ---- alpaca --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"instruction": "Translate.", "input": "Hi"}, "Translate.\nHi"),
        ({"instruction": "Translate.", "input": ""}, "Translate."),
        ({"instruction": "Translate.", "input": None}, "Translate."),
        ({"instruction": "Translate."}, "Translate."),
        ({"instruction": " \nTranslate. ", "input": " Hi\n\n"}, "Translate. \n Hi"),
        ({"instruction": None, "input": "Hi"}, "Hi"),
        ({"instruction": "Sum up.", "context": "Text"}, "Sum up.\nText"),
    ],
)
def test_alpaca_joins_instruction_and_input(record: dict[str, Any], prompt: str) -> None:
    for key in ("output", "response"):
        assert talk(parse("alpaca", record | {key: " Bonjour\n"})) == [("user", prompt), ("assistant", " Bonjour\n")]


def test_alpaca_history_comes_before() -> None:
    record = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}
    expected = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert talk(parse("alpaca", record)) == expected
    assert talk(parse("alpaca", record | {"history": '[["a", "b"]]'})) == expected
    assert len(parse("alpaca", record | {"history": None}).messages) == 3


def test_self_instruct_instances() -> None:
    record = {"id": "t", "instruction": "Haiku.", "instances": [{"input": "summer", "output": "..."}]}
    assert talk(parse("alpaca", record)) == [("user", "Haiku.\nsummer"), ("assistant", "...")]
    assert reason("alpaca", record | {"instances": []}) == "wrong_shape"
    assert reason("alpaca", record | {"instances": record["instances"] * 2}) == "wrong_shape"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "x", "output": ""}, "empty_assistant_turn"),
        ({"instruction": "x", "output": None}, "empty_assistant_turn"),
        ({"instruction": "x", "output": " \n"}, "empty_assistant_turn"),
        ({"instruction": " ", "input": "", "output": "y"}, "empty_prompt"),
        ({"instruction": "x", "output": ["y", "z"]}, "several_replies"),
        ({"instruction": ["x"], "output": "y"}, "wrong_shape"),
        ({"instruction": "x"}, "wrong_shape"),
        ({"output": "x"}, "wrong_shape"),
        ({"instruction": "x", "output": "y", "history": "z"}, "wrong_shape"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "wrong_shape"),
        ({"instruction": "x", "output": "y", "history": 5}, "wrong_shape"),
    ],
)
def test_alpaca_rejects(record: dict[str, Any], expected: str) -> None:
    assert reason("alpaca", record) == expected


# ---- conversations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spelling", "role"), ROLE_NAMES.items())
def test_every_role_name_means_its_role_in_both_spellings(spelling: str, role: str) -> None:
    text = '{"name": "f", "arguments": {}}' if spelling in CALL_ROLES else "x"
    turns = [{"from": spelling.upper(), "value": text}, {"role": "assistant", "content": "y"}]
    for name, key in (("messages", "messages"), ("sharegpt", "conversations"), ("sharegpt", "conversation")):
        row = parse(name, {key: turns})
        assert [m.role for m in row.messages] == [role, "assistant"]
        assert parse(name, {key: json.dumps(turns)}) == row


def test_two_system_prompts_are_one_or_a_reject() -> None:
    turns = [{"from": "system", "value": "own"}, {"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    row = parse("sharegpt", {"conversations": turns, "system": "own "})
    assert talk(row) == [("system", "own"), ("user", "x"), ("assistant", "y")]
    assert reason("sharegpt", {"conversations": turns, "system": "key"}) == "two_system_prompts"
    assert (
        reason("alpaca", {"instruction": "x", "output": "y", "system": "a", "system_prompt": "b"})
        == "two_system_prompts"
    )


def test_sharegpt_function_calls() -> None:
    call = '{"name": "area", "arguments": {"shape": "圆", "size": [4]}}'
    turns = [
        {"from": "human", "value": "area?"},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": '{"area": 50.27}'},
        {"from": "function_call", "value": f"[{call}, {call}]"},
        {"from": "gpt", "value": "50.27"},
    ]
    row = parse("sharegpt", {"conversations": turns})
    expected = ToolCall("area", '{"shape": "圆", "size": [4]}')
    assert [m.role for m in row.messages] == ["user", "assistant", "tool", "assistant", "assistant"]
    assert row.messages[1] == Message("assistant", "", tool_calls=(expected,))
    assert row.messages[3].tool_calls == (expected, expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text", ("text", None, ())),
        (" text\n", (" text\n", None, ())),
        ([{"type": "text", "text": "a "}, {"type": "text", "value": "b"}, "c"], ("a bc", None, ())),
        ([{"type": "output_text", "text": "a"}], ("a", None, ())),
        ([{"text": "a"}], ("a", None, ())),
        ([{"type": "reasoning", "value": "why"}, {"type": "text", "value": "a"}], ("a", "why", ())),
        ([{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "a"}], ("a", "why", ())),
        ([{"type": "tool_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'}], ("", None, ("f", '{"x": 1}'))),
        ([{"type": "tool_call", "value": {"name": "f"}}], ("", None, ("f", "{}"))),
    ],
)
def test_contents_and_their_parts(content: Any, expected: tuple[str, str | None, tuple[str, ...]]) -> None:
    row = parse("messages", {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]})
    text, reasoning, call = expected
    calls = (ToolCall(*call),) if call else ()
    assert row.messages[1] == Message("assistant", text, reasoning, calls)


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
        {"tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
        {"tool_calls": '[{"name": "f", "parameters": {"x": 1}}]'},
        {"function_call": {"name": "f", "arguments": '{"x": 1}'}, "tool_calls": None},
    ],
)
def test_tool_calls_in_every_spelling(fields: dict[str, Any]) -> None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, **fields}]
    row = parse("messages", {"messages": turns})
    call = ToolCall("f", '{"x": 1}', "1" if "id" in str(fields) else None)
    assert row.messages[1] == Message("assistant", "", tool_calls=(call,))


def test_weights_are_kept_for_replies_only() -> None:
    turns = [
        {"role": "user", "content": "x", "loss_weight": 1.0},
        {"role": "assistant", "content": "y", "weight": 0},
        {"role": "user", "content": "x", "weight": None},
        {"role": "assistant", "content": "y", "loss_weight": 0.5},
        {"role": "assistant", "content": "y", "reasoning_content": "why"},
    ]
    row = parse("messages", {"messages": turns})
    assert [m.weight for m in row.messages] == [None, 0.0, None, 0.5, None]
    assert row.messages[4].reasoning == "why"


@given(
    turns=st.lists(
        st.builds(
            Message,
            st.sampled_from(ROLES),
            st.text(min_size=1, max_size=9).filter(str.strip),
        ),
        max_size=6,
    )
)
def test_messages_are_the_inverse_of_message_dict(turns: list[Message]) -> None:
    call = Message("assistant", "", "why", (ToolCall("f", '{"x": "\\u00e9"}'),))
    row = parse("messages", {"messages": [message_dict(m) for m in [*turns, Message("user", "x"), call]]})
    *same, _, last = row.messages
    assert same == turns
    assert (last.role, last.reasoning, json.loads(last.tool_calls[0].arguments)) == ("assistant", "why", {"x": "é"})


U, A = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], "empty_conversation"),
        (None, "empty_conversation"),
        ("", "empty_conversation"),
        ([U], "no_assistant_turn"),
        ([U, {"role": "system", "content": "x"}], "no_assistant_turn"),
        ([U, {"role": "assistant", "content": ""}], "empty_assistant_turn"),
        ([U, {"role": "assistant", "content": None}], "empty_assistant_turn"),
        ([U, {"role": "assistant"}], "empty_assistant_turn"),
        ([U, A, U, {"role": "assistant", "content": [], "tool_calls": []}], "empty_assistant_turn"),
        ([U, {"role": "assistant", "content": " ", "reasoning": "why"}], "empty_assistant_turn"),
        ([{"role": "narrator", "content": "x"}, A], "unknown_role"),
        ([{"role": 5, "content": "x"}, A], "unknown_role"),
        ([{"content": "x"}, A], "unknown_role"),
        ("not json", "wrong_shape"),
        ({"role": "user"}, "wrong_shape"),
        ([U, "y"], "wrong_shape"),
        ([None], "wrong_shape"),
        ([U, {"role": "assistant", "content": 5}], "wrong_shape"),
        ([U, {"role": "assistant", "content": [5]}], "wrong_shape"),
        ([U, {"role": "assistant", "content": [{"type": "text", "text": 5}]}], "wrong_shape"),
        ([U, A | {"weight": -1}], "wrong_shape"),
        ([U, A | {"weight": "1"}], "wrong_shape"),
        ([U, A | {"weight": float("nan")}], "wrong_shape"),
        ([U, A | {"tool_calls": [{"function": {}}]}], "wrong_shape"),
        ([U, A | {"tool_calls": [{"name": "f", "arguments": "{x"}]}], "wrong_shape"),
        ([U, A | {"tool_calls": [{"name": "f", "arguments": "[1]"}]}], "wrong_shape"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, A], "needs_image"),
        ([{"role": "user", "content": [{"type": "file", "file": {}}]}, A], "unsupported_content"),
    ],
)
def test_conversation_rejects(turns: Any, expected: str) -> None:
    assert reason("messages", {"messages": turns}) == expected
    assert reason("sharegpt", {"conversations": turns}) == expected


# ---- prompt and completion, pairs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["x", [U], U])
@pytest.mark.parametrize("completion", ["y", [A], A])
def test_prompt_and_completion_as_text_or_messages(prompt: Any, completion: Any) -> None:
    assert talk(parse("prompt_completion", {"prompt": prompt, "completion": completion})) == [
        ("user", "x"),
        ("assistant", "y"),
    ]


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("", "y", "empty_prompt"),
        ([], "y", "empty_prompt"),
        ("x", "", "empty_assistant_turn"),
        ("x", [], "no_assistant_turn"),
        ("x", [A, U], "wrong_shape"),
        ("x", None, "wrong_shape"),
        (5, "y", "wrong_shape"),
    ],
)
def test_prompt_completion_rejects(prompt: Any, completion: Any, expected: str) -> None:
    assert reason("prompt_completion", {"prompt": prompt, "completion": completion}) == expected


@pytest.mark.parametrize("keys", PAIRS)
def test_every_pair_of_columns(keys: tuple[str, str]) -> None:
    record = {keys[1]: " y ", keys[0]: " x "}
    assert detect_format([record], "a").name == "text_pair"
    row = parse("text_pair", record)
    assert talk(row) == [("user", " x "), ("assistant", " y ")]
    assert row.meta == {}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "x", "answer": None}, "empty_assistant_turn"),
        ({"question": None, "answer": "y"}, "empty_prompt"),
        ({"question": "x", "answer": ["4", "four"]}, "several_replies"),
        ({"question": "x"}, "wrong_shape"),
        ({"text": "x"}, "wrong_shape"),
    ],
)
def test_pair_rejects(record: dict[str, Any], expected: str) -> None:
    assert reason("text_pair", record) == expected
