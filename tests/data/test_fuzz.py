"""Records of every format with keys deleted, nulled, retyped, moved and doubled: kept right or dropped for a true reason, never a traceback.

What is right is known without the code under test: every text of an example is a word of its own, marked by who says it. A kept row
holds no word that the record has not, says what was asked as the user and what was answered as the assistant, and
lacks neither; a word may only be missing where its field was moved or outweighed. Turns have the weights that stand beside their
words. A key that says nothing, and another order of the keys, change nothing.

``FUZZ_ROWS=10000 pytest tests/data/test_fuzz.py`` tries that many records of every format.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import operator
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from posttrain.artifacts import Reject
from posttrain.data.formats import FORMATS
from posttrain.data.formats.drafts import PairRule
from posttrain.data.reading import Reading, parse
from posttrain.data.rows import rows_frame
from posttrain.data.sources import Record
from posttrain.types import Origin, PairRow, SftRow, ToolCall, message_dict

ROWS = int(os.environ.get("FUZZ_ROWS", "100"))
"""Records of every format."""
TALK = [
    {"role": "system", "content": "sayS1"},
    {"role": "user", "content": "sayU1"},
    {"role": "assistant", "content": "sayA1", "reasoning_content": "sayR1"},
    {"role": "user", "content": "sayU2"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "sayT1", "name": "f", "tool_call_id": "c1"},
    {"role": "assistant", "content": "sayA2", "weight": 1},
]
BESIDE = {
    "system_prompt": "sayS2",
    "history": [["sayU3", "sayA3"]],
    "context": "sayU4",
    "tools": [{"name": "f"}],
    "id": "x1",
    "score": 0.5,
}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": TALK[1:], **BESIDE}, {"messages": TALK}, {"messages": json.dumps(TALK[1:])}],
    "sharegpt": [
        {
            "conversations": [{"from": "human", "value": "sayU1"}, {"from": "gpt", "value": "sayA1", "loss": True}],
            **BESIDE,
        },
        {"conversation": [{"human": "sayU1", "assistant": "sayA1"}, {"input": "sayU2", "output": "sayA2"}]},
        {
            "conversations": [
                {"type": "human", "data": {"content": "sayU1"}},
                {"type": "ai", "data": {"content": "sayA1"}},
            ]
        },
    ],
    "moss": [
        {
            "chat": {"turn_1": {"Human": "<|Human|>: sayU1<eoh>", "MOSS": "<|MOSS|>: sayA1<eom>"}},
            "meta_instruction": "sayS1",
        }
    ],
    "xlam": [{"query": "sayU1", "tools": '[{"name": "f"}]', "answers": '[{"name": "f", "arguments": {"a": 1}}]'}],
    "multiple_choice": [
        {"question": "sayU1", "choices": ["sayO1", "sayO2"], "answer": 1, **BESIDE},
        {"question": "sayU1", "A": "sayO1", "B": "sayO2", "C": "sayO3", "answer": "B"},
        {"question": "sayU1", "choices": {"text": ["sayO1", "sayO2"], "label": ["1", "2"]}, "answerKey": "2"},
    ],
    "glaive": [
        {
            "system": 'SYSTEM: sayS1\n{"name": "f", "parameters": {}}\n',
            "chat": 'USER: sayU1\n\n\nASSISTANT: sayA1 <functioncall> {"name": "f", "arguments": \'{"a": 1}\'} <|endoftext|>\n\n\n'
            "FUNCTION RESPONSE: sayT1\n\n\nASSISTANT: sayA2 <|endoftext|>",
        }
    ],
    "chatgpt_export": [
        {
            "mapping": {
                "a": {"parent": None, "message": None},
                "b": {"parent": "a", "message": {"author": {"role": "user"}, "content": {"parts": ["sayU1"]}}},
                "c": {"parent": "b", "message": {"author": {"role": "assistant"}, "content": {"parts": ["sayA1"]}}},
            }
        }
    ],
    "multiple_choice_from_1": [{"question": "sayU1", "choices": ["sayO1", "sayO2"], "answer": 2, **BESIDE}],
    "alpaca": [
        {"instruction": "sayU1", "input": "sayU2", "output": "sayA1", **BESIDE},
        {"instruction": "sayU1", "instances": [{"input": "sayU2", "output": "sayA1"}]},
        {"instruction": "Human: sayU1\nAssistant: sayA1\nHuman: sayU2\nAssistant:", "input": "", "output": "sayA2"},
    ],
    "prompt_completion": [
        {"prompt": TALK[:2], "completion": TALK[2:3], **BESIDE},
        {"prompt": "sayU1", "completion": "sayA1"},
    ],
    "text_pair": [
        {"problem": "sayU1", "solution": "sayA1", "reasoning": "sayR1", **BESIDE},
        {"kind": "x", "input": "sayU1", "target": "sayA1"},
    ],
    "pairs": [
        {"prompt": "sayU1", "chosen": "sayA1", "rejected": "sayB1", **BESIDE},
        {
            "prompt": "sayU1",
            "chosen": TALK[1:3],
            "rejected": [TALK[1], {"role": "assistant", "content": "sayB1"}],
            "score_chosen": 5,
            "score_rejected": 1,
        },
    ],
    "hh_rlhf": [{"chosen": "\n\nHuman: sayU1\n\nAssistant: sayA1", "rejected": "\n\nHuman: sayU1\n\nAssistant: sayB1"}],
    "ranking": [
        {
            "conversations": [{"from": "human", "value": "sayU1"}],
            "chosen": {"from": "gpt", "value": "sayA1"},
            "rejected": {"from": "gpt", "value": "sayB1"},
            **BESIDE,
        }
    ],
    "ultrafeedback": [
        {
            "instruction": "sayU1",
            "completions": [{"response": "sayA1", "overall_score": 8.5}, {"response": "sayB1", "overall_score": 2}],
        }
    ],
    "nectar": [
        {
            "prompt": "\n\nHuman: sayU1\n\nAssistant: ",
            "answers": [{"answer": "sayA1", "rank": 1}, {"answer": "sayB1", "rank": 2}],
        }
    ],
    "scored_responses": [{"instruction": "sayU1", "responses": ["sayA1", "sayB1"], "scores": [0.9, 0.2], **BESIDE}],
    "arena": [
        {
            "winner": "model_a",
            "conversation_a": TALK[1:3],
            "conversation_b": [TALK[1], {"role": "assistant", "content": "sayB1"}],
        }
    ],
    "stack_exchange": [{"question": "sayU1", "response_j": "sayA1", "response_k": "sayB1"}],
    "feedback": [
        {"prompt": "sayU1", "completion": "sayA1", "label": True, **BESIDE},
        {"messages": TALK[1:], "is_safe": 1},
    ],
    "openai_preference": [
        {
            "input": {"messages": TALK[:2], "tools": []},
            "preferred_output": [{"role": "assistant", "content": "sayA1"}],
            "non_preferred_output": [{"role": "assistant", "content": "sayB1"}],
        }
    ],
    "two_responses": [
        {
            "prompt": "sayU1",
            "response_0": "sayA1",
            "response_1": "sayB1",
            "better_response_id": 0,
            "safer_response_id": 0,
            "is_response_0_safe": True,
            **BESIDE,
        }
    ],
    "oasst": [
        {
            "prompt": {
                "text": "sayU1",
                "role": "prompter",
                "replies": [
                    {"text": "sayA1", "role": "assistant", "rank": 0},
                    {"text": "sayB1", "role": "assistant", "rank": 1},
                ],
            }
        }
    ],
    "posttrain_pairs": [
        {
            "messages": TALK[1:3],
            "prompt_turns": 1,
            "rejected": [{"role": "assistant", "content": "sayB1"}],
            "tools": "[]",
            "meta": "{}",
        }
    ],
    "posttrain_feedback": [
        {"messages": TALK[1:3], "prompt_turns": 1, "desirable": True, "tools": "[]", "meta": '{"a": 1}'}
    ],
    "prompts": [{"prompt": "sayU1", **BESIDE}, {"messages": TALK[:2]}],
}
"""Records whose every text is a word: U asked, A (the good one) or B (the worse one) answered, S system, R thought, T a tool, O an option."""
OTHERS: list[Any] = [
    None,
    "",
    " ",
    [],
    {},
    0,
    1,
    -1.5,
    True,
    False,
    float("nan"),
    "other",
    ["other"],
    [["other"]],
    {"a": "other"},
    [{}],
    [None],
    "[",
    "{}",
    "[]",
    "\ud800",
    10**30,
    10**400,
]
KEYS = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "output",
    "answer",
    "chosen",
    "rejected",
    "label",
    "loss",
    "image",
    "history",
    "system",
    "role",
    "content",
    "text",
    "options",
    "tools",
    "feedback",
    "reasoning",
]
OUTWEIGHING = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "output",
    "answer",
    "chosen",
    "rejected",
    "role",
    "content",
    "text",
)
"""A column by one of these names may say what a row is, instead of those it had."""
SIDED = ("pairs", "hh_rlhf", "ranking", "stack_exchange", "openai_preference", "posttrain_pairs")
"""Formats that name the better side; in the others a changed number decides which it is."""
WORD = re.compile(r"say[A-Z]\d")
ORDERS = (("S2", "U3", "A3", "U1", "R1", "A1"), ("S1", "U1", "B1"), ("U1", "U2", "T1", "A2"))
"""How the words follow one another in a conversation, what stands beside it included."""
CALL = {"role": "assistant", **TALK[4]}
NOTHING: list[Any] = [None, "", [], {}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into a value."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def change(record: dict[str, Any], chance: random.Random) -> tuple[str, str]:
    """Change a record in one place; returns the JSON of what stood there and of all that a new column outweighs, and of that what may be lost."""
    path = chance.choice(list(places(record)))
    holder = at(record, path[:-1])
    before = json.dumps(holder[path[-1]])
    how = chance.choice(["delete", "null", "retype", "double", "add", "rename"])
    if how == "delete":
        del holder[path[-1]]
    elif how == "null":
        holder[path[-1]] = None
    elif how == "retype":
        value = holder[path[-1]]
        holder[path[-1]] = copy.deepcopy(
            chance.choice([*OTHERS, [value], {"content": value}, json.dumps(value), [value, value]])
        )
    elif how == "double" and isinstance(holder, list):
        holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
    elif how == "rename" and isinstance(holder, dict):
        value, key = holder.pop(path[-1]), chance.choice(KEYS)
        before += json.dumps(record if key in OUTWEIGHING else holder.get(key))
        holder[key] = value
    elif isinstance(holder, dict):
        key = chance.choice(KEYS)
        before += json.dumps(record if key in OUTWEIGHING else holder.get(key))
        holder[key] = copy.deepcopy(chance.choice(OTHERS))
    else:
        holder.append(copy.deepcopy(chance.choice(OTHERS)))
    return before, "" if how in ("retype", "null") else before


def turns_in(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a record that are turns."""
    inside = [at(record, path) for path in places(record) if not {"tools", "arguments"} & set(path)]
    return [
        value for value in inside if isinstance(value, dict) and isinstance(value.get("role", value.get("from")), str)
    ]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    return functools.reduce(operator.getitem, path, value)


def said_otherwise(record: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The same record with keys that say nothing, and its keys in another order."""
    other = copy.deepcopy(record)
    for holder in (other, *turns_in(other)):
        if chance.random() < 0.5 and holder:
            holder.setdefault(chance.choice(KEYS), copy.deepcopy(chance.choice(NOTHING)))
        shuffled = chance.sample(list(holder.items()), len(holder))
        holder.clear()
        holder.update(shuffled)
    return other


def weight_beside(word: str, record: dict[str, Any]) -> float | None:
    """The weight of the turn that says a word, by the marks beside it; 1.0 without any, None where it can't be told."""
    inside = [at(record, path) for path in places(record)]
    turns = [turn for turn in inside if isinstance(turn, dict) and word in list(turn.values())]
    if len(turns) > 1 or "instances" in record:
        return None
    marks = [turn.get(key) for turn in turns for key in ("weight", "loss")] + [record.get("loss") is not False]
    told = [float(mark) for mark in marks if isinstance(mark, int | float) and mark < 10**9]
    return math.prod(told) if len(told) == sum(mark not in [*NOTHING, " "] for mark in marks) else None


def as_line(record: dict[str, Any], twice: str | None = None) -> bytes:
    """The record in JSON, one of its keys twice where it is named."""
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    if twice is not None:
        parts.insert(0, f'{json.dumps(twice)}: "another value"')
    return ("{" + ", ".join(parts) + "}").encode("utf-8", "surrogatepass")


def check_row(row: Any, record: dict[str, Any], changed: set[str], outweighed: set[str], sided: bool) -> None:
    """That a kept row is right, as far as the words say."""
    line = json.dumps(record)
    sides = [("A", row.messages)] + ([("B", row.prompt + row.rejected)] if isinstance(row, PairRow) else [])
    for side, turns in sides:
        for turn in turns:
            words = WORD.findall(f"{turn.content} {turn.reasoning or ''}")
            assert all(word in line for word in words), "a word that is not in the record"
            wrong = {"user": "ABSRT", "assistant": "US", "system": "UABRT", "tool": "ABSR"}[turn.role]
            for word in words:
                assert word in changed or word[3] not in wrong, f"{word} is said by the {turn.role}"
                other = sided and word in ("sayA1", "sayB1") and word[3] != side
                assert word in changed or not other, f"{word} on the side {side}"
        assert all(turn.content.strip() or turn.tool_calls for turn in turns if turn.role == "assistant")
        json.dumps([message_dict(turn) for turn in turns], allow_nan=False).encode()
    spoken = " ".join(f"{turn.content} {turn.reasoning}" for _, turns in sides for turn in turns)
    lost = {word for word in WORD.findall(line) if word[3] in "UASRT" and word not in spoken} - outweighed
    assert not lost, f"{lost} of the record is nowhere in the row"
    json.dumps(dict(row.meta), allow_nan=False).encode()
    for _, turns in sides:
        text = " ".join(f"{turn.reasoning} {turn.content}" for turn in turns)
        for order in ORDERS:
            found = [word for word in order if f"say{word}" in text and f"say{word}" not in changed]
            assert found == sorted(found, key=text.index), "words in another order"
    if isinstance(row, SftRow):
        for turn in row.messages:
            if turn.content in ("sayA1", "sayA2") and (weight := weight_beside(turn.content, record)) is not None:
                assert (1.0 if turn.weight is None else turn.weight) == weight, f"{turn.content} has another weight"
    if not outweighed and json.dumps(CALL) in line:
        assert ToolCall("f", '{"a": 1}', "c1") in [call for turn in row.messages for call in turn.tool_calls]
    if record.get("tools") == [{"name": "f"}]:
        assert {"name": "f"} in row.tools, "the tools are lost"


@pytest.mark.parametrize("name", FORMATS)
def test_changed_records(name: str) -> None:
    chance = random.Random(name)
    reasons: Counter[str] = Counter()
    kept = 0
    for number in range(ROWS):
        record = copy.deepcopy(chance.choice(RECORDS[name]))
        changed, outweighed = set[str](), set[str]()
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            if record:
                for words, json_text in zip((changed, outweighed), change(record, chance), strict=True):
                    words |= set(WORD.findall(json_text))
        line = as_line(record)
        for detected in (True, False):
            reading = Reading("a", name, FORMATS[name].kind, "s", PairRule(), {}, detected)
            origin = Origin("a", number + 1)
            found = parse((number + 1, line), reading)
            other = parse(Record(origin, said_otherwise(record, chance)), reading)
            text = line.decode("utf-8", "surrogatepass")
            assert isinstance(found, Reject) == isinstance(other, Reject), f"{text}: {found}, {other}"
            if record:
                twice = parse((number + 1, as_line(record, chance.choice(list(record)))), reading)
                assert isinstance(twice, Reject), "one of two values is lost"
            if isinstance(found, Reject):
                reasons[found.reason] += 1
                assert found.detail, found.reason
                continue
            kept += 1
            assert not isinstance(other, Reject)
            for row, same in zip(found, other, strict=True):
                try:
                    check_row(row, record, changed, outweighed, name in SIDED)
                    assert str((row.messages, row.tools)) == str((same.messages, same.tools)), f"otherwise {same}"
                except AssertionError as error:
                    raise AssertionError(f"{error}: {text} gave {row}") from None
            rows_frame(found)
    assert kept > ROWS // 5, reasons
    print(f"{name}: {kept} of {2 * ROWS} kept; {dict(reasons)}")
