"""Columns that were named: which field of a record is what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.config import Source
from posttrain.data.formats import RowError, detect_format, read_record
from posttrain.data.formats.columns import check_columns, check_paths, renamed
from posttrain.data.pipeline import gather, rows_at
from posttrain.data.rows import read_rows
from posttrain.data.steps import StepRun
from posttrain.errors import ConfigError, DataError
from posttrain.lab.options import parse_columns
from posttrain.types import Origin

QA = [("user", "x"), ("assistant", "y")]


def read(record: dict[str, Any], columns: dict[str, str]) -> Any:
    value = renamed(record, columns)
    return read_record(value, detect_format([value], "a").name, True, Origin("a", 1), "s")


def talk(row: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in row.messages]


@pytest.mark.parametrize(
    ("record", "columns", "expected"),
    [
        ({"q": "x", "a": "y"}, {"user": "q", "assistant": "a"}, QA),
        ({"d": {"q": "x"}, "a": ["z", "y"]}, {"user": "d.q", "assistant": "a.1"}, QA),
        ({"d.q": "x", "d": {"q": "z"}, "a": "y"}, {"user": "d.q", "assistant": "a"}, QA),
        ({"d": '{"q": "x"}', "a": "y"}, {"user": "d.q", "assistant": "a"}, QA),
        ({"q": "x", "a": "y", "s": "z"}, {"user": "q", "assistant": "a", "system": "s"}, [("system", "z"), *QA]),
        ({"messages": [], "prompt": "z", "q": "x", "output": "w", "a": "y"}, {"user": "q", "assistant": "a"}, QA),
        ({"prompt": "z", "question": "x", "answer": "y"}, {"user": "question"}, QA),
        (
            {"messages": [], "persona": "z", "prompt": "x", "response": "y"},
            {"system": "persona"},
            [("system", "z"), *QA],
        ),
        (
            {"talk": [{"who": "human", "said": "x"}, {"who": "gpt", "said": "y"}]},
            {"messages": "talk", "role": "who", "content": "said"},
            QA,
        ),
        ({"p": "x", "good": "y", "bad": "z"}, {"prompt": "p", "chosen": "good", "rejected": "bad"}, QA),
    ],
)
def test_named_columns_say_what_the_row_is(
    record: dict[str, Any], columns: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    assert talk(read(record, columns)) == expected


def test_what_is_named_nothing_reads() -> None:
    with pytest.raises(ConfigError, match="unknown name of a column 'asistant' \\(did you mean 'assistant'\\?\\)"):
        check_columns({"asistant": "a"}, "a.jsonl")
    with pytest.raises(
        DataError, match="no row has the column 'ask' that columns name for 'user' \\(did you mean 'asks'"
    ):
        check_paths([{"asks": "x", "a": "y"}, {"a": "z"}], {"user": "ask", "assistant": "a"}, "a")


@pytest.mark.parametrize(
    "record",
    [
        {"ask": "x", "reply_text": "yy"},
        {"编号": "1", "用户问题": "x", "标准答案": "yy"},
        {"meta": {"id": 5}, "d": {"user_text": "x", "assistant_text": "yy"}},
        {"script": [{"speaker": "human", "text": "x", "id": "0"}, {"speaker": "gpt", "text": "yy", "id": "1"}]},
    ],
)
def test_the_error_proposes_columns_that_work(record: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        detect_format([record], "a")
    option = str(caught.value).split("--columns '")[1].split("'")[0]
    columns = parse_columns(option)
    assert columns is not None
    assert talk(read(record, columns)) == [("user", "x"), ("assistant", "yy")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("{user: q, assistant: d.a}", {"user": "q", "assistant": "d.a"}),
        ('{"user": "q"}', {"user": "q"}),
        ("user=q,assistant=d.a", {"user": "q", "assistant": "d.a"}),
        ("{user: 0}", {"user": "0"}),
    ],
)
def test_columns_on_the_command_line(text: str | None, expected: dict[str, str] | None) -> None:
    assert parse_columns(text) == expected


@pytest.mark.parametrize("text", ["q", "[q]", "{user: [q]}", "{user"])
def test_columns_that_are_no_mapping(text: str) -> None:
    with pytest.raises(ConfigError, match="not a mapping of columns"):
        parse_columns(text)


def test_columns_of_a_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "x", "a": "y"}\n{"q": "z"}\n{"q": "v", "a": "w"}\n', encoding="utf-8")
    source = Source(path=str(path), columns={"user": "q", "assistant": "a"})
    rows, ledger = gather([source], tmp_path / "out", StepRun(lambda name: None))
    assert [talk(row) for row in read_rows(rows)] == [QA, [("user", "v"), ("assistant", "w")]]
    assert [(reject.origin.line, reject.reason) for reject in ledger.rejects] == [(2, "wrong_shape")]
    assert talk(rows_at(source, 2, lambda name: None)[0]) == [("user", "v"), ("assistant", "w")]
    with pytest.raises(ConfigError, match="columns"):
        gather([Source(path=str(path), columns={"use": "q"})], tmp_path / "other", StepRun(lambda name: None))


def test_a_row_of_another_format_in_a_file(tmp_path: Path) -> None:
    records = [
        {"messages": None, "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "z"}], "conversations": None},
        {"instruction": "v", "output": "w"},
        {"prompt": "x", "chosen": "y", "rejected": "z"},
        {"messages": [], "output": ""},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    rows, ledger = gather([Source(path=str(path))], tmp_path / "out", StepRun(lambda name: None))
    assert [row.origin.line for row in read_rows(rows)] == [1, 2, 3]
    assert [(reject.origin.line, reject.reason) for reject in ledger.rejects] == [
        (4, "other_kind"),
        (5, "empty_conversation"),
    ]


def test_a_history_in_prose_is_a_passage_where_that_is_said() -> None:
    record = {"question": "What helps?", "answer": "Rest.", "history": "The patient has asthma."}
    with pytest.raises(RowError, match=r"columns: \{context: history\}"):
        read(record, {})
    expected = [("user", "The patient has asthma.\n\nWhat helps?"), ("assistant", "Rest.")]
    assert talk(read(record, {"context": "history"})) == expected
