"""Items: what a line may say, and what a bad line costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.errors import DataError
from posttrain.judge.items import read_items

GOOD = {"id": 1, "prompt": "Q", "reply_a": "x", "reply_b": "y"}


def written(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_a_pair_and_its_defaults(tmp_path):
    item = read_items(written(tmp_path / "f.jsonl", GOOD), "pair").items[0]
    assert (item.id, item.turns, item.replies_a, item.replies_b) == ("1", ("Q",), ("x",), ("y",))
    assert (item.model_a, item.model_b, item.category, item.references, item.label) == ("a", "b", None, (), None)
    assert item.origin.line == 1


def test_turns_references_and_labels(tmp_path):
    record = {
        "id": "q",
        "turns": ["Q1", "Q2"],
        "reply_a": ["a1", "a2"],
        "reply_b": ["b1", "b2"],
        "reference": "of the last",
        "label": 2,
    }
    one_each = record | {"id": "r", "reference": ["r1", "r2"], "label": "Tie"}
    first, second = read_items(written(tmp_path / "f.jsonl", record, one_each), "pair").items
    assert first.references == ("", "of the last")
    assert first.label == "second"
    assert second.references == ("r1", "r2")
    assert second.label == "tie"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{broken", "not JSON"),
        ([1], "a JSON object is needed"),
        (GOOD | {"id": None}, "id: a text or a whole number"),
        ({k: v for k, v in GOOD.items() if k != "prompt"}, "either prompt or turns"),
        (GOOD | {"turns": ["Q"]}, "either prompt or turns"),
        (GOOD | {"prompt": " "}, "an empty question"),
        (GOOD | {"reply_b": None}, "reply_b: a text"),
        (GOOD | {"reply_a": ["x", "y"]}, "1 turns, but 2 texts in reply_a"),
        (GOOD | {"label": "better"}, "label 'better'"),
        (GOOD | {"label": True}, "label True"),
        (GOOD | {"reference": ["a", "b"]}, "2 texts in reference"),
        (GOOD | {"model_b": "a"}, "are both 'a'"),
        (GOOD | {"category": 3}, "category: a text"),
        (GOOD, "comes a second time (first in line 1)"),
    ],
)
def test_a_bad_line_costs_that_line_only(tmp_path, line, problem):
    path = written(tmp_path / "f.jsonl", GOOD, line, GOOD | {"id": "last"})
    read = read_items(path, "pair")
    assert [item.id for item in read.items] == ["1", "last"]
    (bad,) = read.bad
    assert bad.place == f"{path}:2"
    assert problem in bad.problem


def test_the_same_question_of_other_models_is_another_item(tmp_path):
    path = written(tmp_path / "f.jsonl", GOOD, GOOD | {"model_a": "sft", "model_b": "dpo"})
    assert len(read_items(path, "pair").items) == 2


def test_single_replies(tmp_path):
    path = written(tmp_path / "f.jsonl", {"id": "q", "prompt": "Q", "reply": "x", "model": "sft"}, GOOD)
    read = read_items(path, "single")
    assert [(i.replies_a, i.replies_b, i.model_a) for i in read.items] == [(("x",), (), "sft")]
    assert "reply: a text" in read.bad[0].problem


def test_labels_can_be_demanded(tmp_path):
    path = written(tmp_path / "f.jsonl", GOOD, GOOD | {"id": 2, "label": "a"})
    read = read_items(path, "pair", labelled=True)
    assert [item.id for item in read.items] == ["2"]
    assert "no label" in read.bad[0].problem


def test_a_file_without_a_usable_line_is_refused_with_its_first_problem(tmp_path):
    path = written(tmp_path / "f.jsonl", "[]", "x")
    with pytest.raises(DataError, match=r"f\.jsonl:1: a JSON object is needed, not list"):
        read_items(path, "pair")
    with pytest.raises(DataError, match="empty"):
        read_items(written(tmp_path / "e.jsonl", ""), "pair")
    with pytest.raises(DataError, match="can't read"):
        read_items(tmp_path / "absent", "pair")
