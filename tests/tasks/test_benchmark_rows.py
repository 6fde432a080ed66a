"""Rows of prompt files, shares of categories, and the accounting that all benchmarks share."""

from __future__ import annotations

import doctest
import gzip
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import DataError
from posttrain.generate.engine import Failure, Sampling
from posttrain.tasks import rows
from posttrain.tasks.base import Answer, Task
from posttrain.tasks.measuring import counted, why_missing
from posttrain.tasks.records import Account
from posttrain.tasks.rows import file_rows, keep_shares, plain_tasks


def test_the_examples_in_the_docstrings_hold() -> None:
    found = doctest.testmod(rows)
    assert (found.failed, found.attempted) == (0, 2)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(1, 40))
def test_every_category_keeps_its_share(categories: list[str], most: int) -> None:
    places = range(len(categories))
    kept = keep_shares(places, categories, most)
    assert len(kept) == min(most, len(categories))
    assert kept == sorted(kept)
    whole, part = Counter(categories), Counter(categories[place] for place in kept)
    for category, count in whole.items():
        assert abs(part[category] - min(most, len(categories)) * count / len(categories)) < 1
        own = [place for place in places if categories[place] == category]
        assert own[: part[category]] == [place for place in kept if categories[place] == category]


def test_remainders_go_to_the_largest_then_to_the_first() -> None:
    assert keep_shares(range(4), ["b", "b", "a", "a"], 1) == [0]
    assert keep_shares("bbbba", "bbbba", 3) == ["b", "b", "a"]  # 2.4 and 0.6: the larger remainder
    assert keep_shares(range(4), ["b", "b", "a", "a"], None) == [0, 1, 2, 3]


def test_rows_of_csv_and_of_compressed_lines(tmp_path: Path) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text('id,prompt,category\n1,"One, two",\n2,Three,x\n')
    tasks = plain_tasks(str(table), None, Sampling())
    assert [(task.id, task.turns, task.category, task.language) for task in tasks] == [
        ("1", ("One, two",), None, None),
        ("2", ("Three",), "x", None),
    ]
    lines = tmp_path / "prompts.jsonl.gz"
    lines.write_bytes(gzip.compress(b'{"prompt": "One"}\n\n{"prompt": 2}\n'))
    assert [(origin.line, row) for origin, row in file_rows(str(lines))] == [(1, {"prompt": "One"}), (3, {"prompt": 2})]
    with pytest.raises(DataError, match=r"prompts\.jsonl\.gz:3: prompt must be a text"):
        plain_tasks(str(lines), None, Sampling())


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "One"}\n{"prompt": \n')
    with pytest.raises(DataError, match=r"broken\.jsonl:2: .*this is no row: broken_json"):
        plain_tasks(str(path), None, Sampling())
    path.write_text("[]")
    with pytest.raises(DataError, match="no prompts in this file"):
        plain_tasks(str(path), None, Sampling())


def test_nothing_is_lost_without_a_reason() -> None:
    task = Task("t", ("One.", "Two."), Sampling())
    whole = Answer(task, 0, ("1", "2"), ("stop", "stop"), (None, None))
    half = Answer(task, 1, ("1",), ("stop",), (None,), Failure("budget", "cap"))
    none = Answer(task, 2, (), (), ())
    assert (why_missing(half), why_missing(none)) == ("budget", "no_reply")
    assert counted([whole, half, none], ["budget", "no_reply"]) == Account(3, 1, 1, {"budget": 1, "no_reply": 1})
