"""Rows as public data sets have them, and their neighbours: what each must become, or why it is refused.

One short row stands for a layout. What is written is format, then the turns (with what else is said in brackets), of pairs the
rejected reply behind ``/``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.data.formats import RowError, detect_format, read_record
from posttrain.data.formats.drafts import PairRule, Ranked
from posttrain.errors import DataError
from posttrain.types import Message, Origin, PairRow, UnpairedRow

QA = {"question": "What colour is red paint?", "answer": "Red."}
ASKED = "U What colour is red paint?"
OPTIONS = ["oak", "tin", "zinc"]
TALK = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def node(parent: str | None, role: str = "", part: Any = None, kind: str = "text") -> dict[str, Any]:
    """A node of ChatGPT's tree."""
    content = {"content_type": kind, "parts": [part]}
    return {"parent": parent, "message": {"author": {"role": role}, "content": content} if role else None}


def shown(turn: Message) -> str:
    calls = "".join(f" {{{call.name} {call.arguments}}}" for call in turn.tool_calls)
    beside = f" <{turn.reasoning}>" if turn.reasoning else ""
    weight = "" if turn.weight is None else f" *{turn.weight:g}"
    return f"{turn.role[0].upper()} {turn.content}{beside}{calls}{weight}"


def read(records: list[dict[str, Any]], number: int = 0) -> str:
    """The row that a file of these records gives for one of them, or the reason why it gives none."""
    name = detect_format(records, "a").name
    try:
        found = read_record(records[number], name, True, Origin("a", 1), "s")
        row = found.pairs(PairRule(), Origin("a", 1), "s")[0] if isinstance(found, Ranked) else found
    except RowError as error:
        return f"{name}: {error.reason}"
    said = " | ".join(map(shown, row.messages))
    if isinstance(row, PairRow):
        said += " / " + " | ".join(map(shown, row.rejected))
    if isinstance(row, UnpairedRow):
        said += " / good" if row.desirable else " / bad"
    tools = f" [{', '.join(str(tool.get('name')) for tool in row.tools)}]" if row.tools else ""
    return f"{name}: {said}{tools}"


LAYOUTS: list[tuple[dict[str, Any], str]] = [
    # names of columns in other spellings
    ({"INSTRUCTION": "x", "RESPONSE": "y", "SOURCE": "Zhihu"}, "alpaca: U x | A y"),
    ({"Question": "x", "A": "oak", "B": "tin", "Answer": "B"}, "multiple_choice: U x\nA. oak\nB. tin | A B. tin"),
    ({"问题": "x", "答案": "y"}, "text_pair: U x | A y"),
    ({"Prompt": "x", "Response": "y", "System Prompt": "s"}, "text_pair: S s | U x | A y"),
    ({"Question": "z", "question": "x", "answer": "y"}, "text_pair: U x | A y"),
    ({"inputs": "x", "targets": "y", "language": "English"}, "text_pair: U x | A y"),
    ({"prompt": "x", "pos_resp": "y", "neg_resp": "z", "pos_type": "t"}, "pairs: U x | A y / A z"),
    # which of several columns is the reply
    ({"question": "x", "solution": "Long.", "answer": "4"}, "text_pair: U x | A Long."),
    ({"problem": "x", "generated_solution": "y", "expected_answer": "4"}, "text_pair: U x | A y"),
    ({"input": [TALK[0]], "output": "y", "reasoning": "on"}, "text_pair: U x | A y"),
    # the prompt in two columns
    ({"instruction": "Answer.", "question": "x", "output": "y"}, "alpaca: U Answer.\nx | A y"),
    ({"instruction": "Do.", "input": "x", "prompt": "Below: Do.\nInput: x\nNow:", "output": "y"}, "alpaca: U Do.\nx | A y"),
    ({"instruction": "Do.", "question": "Do. Then more.", "output": "y"}, "alpaca: U Do.\nDo. Then more. | A y"),
    ({"prompt": "Be a pirate.", "question": "Who?", "answer": "Arr."}, "text_pair: U Be a pirate.\nWho? | A Arr."),
    ({"prompt": "five_shot", "question": "Who?", "answer": "Arr."}, "text_pair: U Who? | A Arr."),
    # passages
    ({**QA, "context": "red"}, f"text_pair: U red\n\n{ASKED[2:]} | A Red."),
    ({"prompt": "Text: red\nWhat?", "completion": "y", "context": "red"}, "prompt_completion: U Text: red\nWhat? | A y"),
    ({**QA, "document": "report.pdf", "article": "https://a.org/b"}, f"text_pair: {ASKED} | A Red."),
    ({**QA, "context": {"title": ["T", "V"], "sentences": [["a. ", "b."], ["c."]]}}, f"text_pair: U T\na. b.\n\nV\nc.\n\n{ASKED[2:]} | A Red."),
    ({**QA, "context": {"contexts": ["a", "b"], "labels": ["M"]}}, f"text_pair: U a\n\nb\n\n{ASKED[2:]} | A Red."),
    ({"context": TALK, "prompt": "z", "completion": "w"}, "prompt_completion: U x | A y | U z | A w"),
    ({"premise": "It fell.", "question": "cause", "choice1": "a", "choice2": "b", "label": 0}, "multiple_choice: U It fell.\n\ncause\nA. a\nB. b | A A. a"),
    # multiple choice
    ({"question": "x", "options": OPTIONS, "answer": 2}, "multiple_choice: U x\nA. oak\nB. tin\nC. zinc | A C. zinc"),
    ({"question": "x", "options": OPTIONS, "answer": "AC"}, "multiple_choice: U x\nA. oak\nB. tin\nC. zinc | A A. oak\nC. zinc"),
    ({"question": "x", "options": OPTIONS, "answer": ["A", "C"]}, "multiple_choice: U x\nA. oak\nB. tin\nC. zinc | A A. oak\nC. zinc"),
    ({"question": "x", "options": {"1": "oak", "2": "tin"}, "answer": 1}, "multiple_choice: U x\n1. oak\n2. tin | A 1. oak"),
    ({"question": "x", "options": [3, 5, 7], "answer": 5}, "multiple_choice: U x\nA. 3\nB. 5\nC. 7 | A B. 5"),
    ({"question": "x", "option1": "oak", "option2": "tin", "answer": "option2"}, "multiple_choice: U x\nA. oak\nB. tin | A B. tin"),
    ({"question": "x", "options": "A) oak  B) tin", "answer": "B"}, "multiple_choice: U x\nA. oak\nB. tin | A B. tin"),
    ({"Problem": "x", "Rationale": "r", "options": "a ) 38 , b ) 27", "correct": "b"}, "multiple_choice: U x\nA. 38\nB. 27 | A B. 27 <r>"),
    ({"question": {"stem": "x", "choices": [{"label": "A", "text": "oak"}, {"label": "B", "text": "tin"}]}, "answerKey": "B"}, "multiple_choice: U x\nA. oak\nB. tin | A B. tin"),
    ({"question": "x", "A": "oak", "B": "tin", "response": "B, for it shines."}, "text_pair: U x\nA. oak\nB. tin | A B, for it shines."),
    ({"question": "Is it oak or is it tin?", "choices": ["oak", "tin"], "answer": "tin"}, "multiple_choice: U Is it oak or is it tin?\nA. oak\nB. tin | A B. tin"),
    ({"question": "Oak paint, tin? (A) oak (B) tin", "choices": ["oak", "tin"], "answer": "B"}, "multiple_choice: U Oak paint, tin? (A) oak (B) tin | A B. tin"),
    ({**QA, "options": {"stop": "x", "mode": "y"}}, f"text_pair: {ASKED} | A Red."),
    # system prompts and tools in other places
    ({"contents": [{"role": "user", "parts": [{"text": "x"}]}, {"role": "model", "parts": [{"text": "y"}]}], "systemInstruction": {"parts": [{"text": "s"}]}}, "sharegpt: S s | U x | A y"),
    ({"system": [{"text": "s"}], "messages": [{"role": "user", "content": [{"text": "x"}]}, TALK[1]]}, "messages: S s | U x | A y"),
    ({"messages": TALK, "chat_template_kwargs": {"custom_instructions": "s", "xml_tools": [{"name": "f"}]}}, "messages: S s | U x | A y [f]"),
    ({"conversations": [{"from": "human", "value": "x"}, {"from": "function-call", "value": '{"name": "f"}'}, {"from": "function-response", "value": "1"}]}, "sharegpt: U x | A  {f {}} | T 1"),
    ({"system": 'SYSTEM: Be brief. Use -\n{"name": "f"}\n\n{"name": "g"}\n', "chat": "USER: x\n\n\nASSISTANT: <functioncall> {\"name\": \"f\", \"arguments\": '{\"a\": \"it''s\"}'} <|endoftext|>\n\n\nFUNCTION RESPONSE: 1\n\n\nASSISTANT: y <|endoftext|>"}, "glaive: S Be brief. Use - | U x | A  {f {\"a\": \"it''s\"}} | T 1 | A y [f, g]"),
    ({"system": "SYSTEM: Use {braces}.", "chat": "USER: x\n\nASSISTANT: y"}, "glaive: S Use {braces}. | U x | A y"),
    ({"mapping": {"r": node(None), "a": node("r", "user", "x"), "b": node("a", "assistant", "old"), "c": node("a", "assistant", "y")}, "current_node": "c"}, "chatgpt_export: U x | A y"),
    ({"mapping": {"a": node(None, "user", "x"), "b": node("a", "assistant", {"content_type": "image"}, "multimodal_text")}}, "chatgpt_export: needs_image"),
    ({"mapping": {"a": node(None, "user", "x"), "b": node("a", "assistant", "search()", "code")}}, "chatgpt_export: unsupported_content"),
    # prompts in other places
    ({"question_id": 1, "turns": ["x"]}, "prompts: U x"),
    ({"question_id": "1", "cluster": "c", "turns": [{"content": "x"}]}, "prompts: U x"),
    ({"context": [TALK[0]], "response1": "y", "response2": "z", "overall_preference": -2}, "two_responses: U x | A y / A z"),
    ({"prompt": "x", "response_1": "y", "response_2": "z", "preference_strength": 1}, "two_responses: U x | A z / A y"),
    ({"prompt": "x", "response_1": "y", "response_2": "z", "preference_strength": 0}, "two_responses: tie"),
    ({"question": "x", "response_A": "y", "response_B": "z", "label": "B>A"}, "two_responses: U x | A z / A y"),
    ({"question": "x", "response_A": "y", "response_B": "z", "label": "[[A=B]]"}, "two_responses: tie"),
    ({"instruction": "x", "output_1": "y", "output_2": "z", "preference": 1.02}, "two_responses: U x | A y / A z"),
    ({"prompt": "x", "responses": [{"text": "y", "score": 0.9}, {"text": "z", "score": 0.1}]}, "scored_responses: U x | A y / A z"),
    ({"prompt": "x", "completions": [{"text": "y", "rank": 2}, {"text": "z", "rank": 1}]}, "scored_responses: U x | A z / A y"),
    ({"input": "x", "system": "s", "chosen": "y", "rejected": "z", "rationale": "r"}, "pairs: S s | U x | A y / A z"),
    # what is harmless beside a row
    ({"prompt": "x", "chosen": "y", "rejected": "z", "rationale": "The first is short."}, "pairs: U x | A y / A z"),
    ({**QA, "feedback": "The customer liked the new app design."}, f"text_pair: {ASKED} | A Red."),
    ({**QA, "feedback": "The colour is wrong."}, "text_pair: criticised"),
    ({**QA, "image": "None", "images": [None], "system": "null", "tools": "None"}, f"text_pair: {ASKED} | A Red."),
    ({**QA, "audio": "yes", "speech": "Ladies and gentlemen."}, f"text_pair: {ASKED} | A Red."),
    ({**QA, "image": "coco/a 1.jpg"}, "text_pair: needs_image"),
    ({**QA, "image": "000000123"}, "text_pair: needs_image"),
    ({**QA, "mask": "[MASK]"}, f"text_pair: {ASKED} | A Red."),
    ({**QA, "history": [[]]}, f"text_pair: {ASKED} | A Red."),
    # marks before text and calls are joined
    ({"messages": [*TALK, {"role": "function_call", "content": '{"name": "f"}'}], "loss": [0, 1, 1]}, "messages: U x | A y {f {}} *1"),
    ({"messages": [*TALK, {"role": "function_call", "content": '{"name": "f"}'}], "loss": [0, 0, 1]}, "messages: U x | A y *0 | A  {f {}} *1"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "expected"), LAYOUTS)
def test_a_layout_of_the_hub(record: dict[str, Any], expected: str) -> None:
    assert read([record]) == expected


def test_numbers_of_options_count_from_where_the_file_says() -> None:
    def answers(*numbers: Any) -> list[dict[str, Any]]:
        return [{"question": f"x{place}", "options": OPTIONS, "answer": number} for place, number in enumerate(numbers)]

    listed = "U x0\nA. oak\nB. tin\nC. zinc"
    assert read(answers(1, 2, 0)) == f"multiple_choice: {listed} | A B. tin"
    assert read(answers(1, 2, 2)) == f"multiple_choice: {listed} | A B. tin"
    for three in (3, "3"):
        assert read(answers(1, 2, three)) == f"multiple_choice_from_1: {listed} | A A. oak"
        assert read(answers(three, 0, 1)) == "multiple_choice: wrong_shape"


@pytest.mark.parametrize(
    "record",
    [
        {"question": "x", "solutions": ["y", "z"]},
        {"prompt": "x", "code": "def f(): pass"},
        {"prompt": "x", "good_resp": "y"},
    ],
)
def test_what_may_be_a_reply_is_not_passed_over(record: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no row format fits"):
        detect_format([record], "a")


@pytest.mark.parametrize(
    ("text", "medium"),
    [
        ("<image>\nWhich HTML tag is this?", "image"),
        ("Compare <image> with <image>.", "image"),
        ("Look at <image 1> first.", "image"),
        ("<Image>What is it?", "image"),
        ("See <ImageHere> and say.", "image"),
        ("What does <video> do in HTML5?", None),
        ("<video> tag not working", None),
        ("In my feed the <image> element holds a url.", None),
        ("Mend:\n```html\n<audio>\n<source src=x>\n```", None),
    ],
)
def test_a_placeholder_or_markup(text: str, medium: str | None) -> None:
    expected = f"text_pair: U {text} | A y" if medium is None else f"text_pair: needs_{medium}"
    assert read([{"question": text, "answer": "y"}]) == expected


def test_the_names_of_columns_are_those_of_a_file_as_read() -> None:
    assert read([json.loads('{"Question": "x", "Answer": "y", "ID": 5}')]) == "text_pair: U x | A y"


def test_a_label_that_the_reply_names_is_a_class() -> None:
    def rows(*labels: int) -> list[dict[str, Any]]:
        return [{"question": f"I {label} it", "answer": ["no", "yes"][label], "label": label} for label in labels]

    assert read(rows(0, 1, 0, 1)) == "text_pair: U I 0 it | A no"
    assert read(rows(0, 1)) == "feedback: U I 0 it | A no / bad"
    assert read([*rows(0, 1, 0), *[row | {"answer": "no"} for row in rows(1)]]) == "feedback: U I 0 it | A no / bad"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"message_id": "1", "parent_id": None, "text": "x", "role": "prompter"}, "single messages of trees"),
        ({"question_id": 1, "turns": ["x", "z"]}, "turns of the user alone.*turns.0"),
        ({"question": "x", "response_a": "y", "response_b": "z"}, "say which column is what with columns"),
        ({"problem": "x", "expected_solution": "4", "r1_solution": "y"}, '"assistant": "r1_solution"'),
    ],
)
def test_the_hint_where_no_format_fits(record: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        detect_format([record], "a")
