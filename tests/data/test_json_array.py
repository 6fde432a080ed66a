"""The elements of a JSON array, whole, broken and cut off, at every block size."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.json_array import Element, iterate_array

TEXT = st.text(max_size=12) | st.sampled_from(["\u2028", "\u2029\u0085", '"},{"', "},\n  {", "[", "\\", "\ufeff"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), min_size=1, max_size=6)


def blocks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def elements(text: str | bytes, size: int = 1 << 20) -> list[Element]:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return list(iterate_array(blocks(data, size)))


def good(found: list[Element]) -> list[Any]:
    return [element.value for element in found if element.error is None]


@given(
    values=st.lists(VALUES, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    ascii_=st.booleans(),
    size=st.integers(1, 40),
)
def test_any_array_at_any_block_size(values: list[Any], indent: int | None, ascii_: bool, size: int) -> None:
    found = elements(json.dumps(values, indent=indent, ensure_ascii=ascii_), size)
    assert [element.error for element in found] == [None] * len(values)
    assert good(found) == values
    assert [element.number for element in found] == list(range(1, len(values) + 1))


def test_lines_are_where_the_elements_start() -> None:
    found = elements('\n[\n  {\n    "a": 1\n  },\n\n  {"a": 2}, {"a": 3}\n]\n')
    assert [(element.line, element.value["a"]) for element in found] == [(3, 1), (7, 2), (7, 3)]


def test_long_arrays_are_read_through_a_window() -> None:
    rows = [{"n": n, "text": "x" * (n % 2000)} for n in range(4000)]
    found = elements("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]", 1 << 16)
    assert good(found) == rows
    assert [element.line for element in found] == list(range(2, 4002))


def test_memory_does_not_grow_with_the_file() -> None:
    block = b'{"text": "' + b"x" * 65_000 + b'"},\n'
    tracemalloc.start()
    count = sum(1 for _ in iterate_array(itertools.chain([b"["], itertools.repeat(block, 400), [b"]"])))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 400
    assert peak < 8_000_000  # of 26 million characters


def test_bom_commas_too_many_and_too_few_are_forgiven() -> None:
    assert good(elements('\ufeff [ , {"a": 1},, {"a": 2} {"a": 3}, ] ')) == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    "broken",
    [
        '{"a": 2, "b": }',
        '{"a": 2 "b": 3}',
        '{"a": "2, "b": 3}',
        '{"a": 2, "b": [{"c": 1}, {"c": 2}}',
        '{"a": 2, "b": 3',
        "{a: 2}",
        '"a": 2}',
        '{"a": 2, "b": "line\nbreak"}',
        "nonsense",
    ],
)
@pytest.mark.parametrize("between", [",", ", ", ",\n", ",\n  "])
def test_a_broken_element_costs_only_itself(broken: str, between: str, size: int) -> None:
    start = between[1:]
    text = "[" + start + between.join(['{"a": 1, "b": 1}', broken, '{"a": 3}', '{"b": 4, "a": 4}']) + "]"
    found = elements(text, size)
    rows = [value for value in good(found) if isinstance(value, dict)]
    assert rows == [{"a": 1, "b": 1}, {"a": 3}, {"b": 4, "a": 4}]
    assert any(element.error for element in found)


def test_the_first_element_may_be_the_broken_one() -> None:
    assert good(elements('[{"a": 1,, "b": 2}, {"a": 3}]')) == [{"a": 3}]
    assert good(elements('[\n {"a": [{"c": 1}, {"c": 2},,]},\n {"a": 3}\n]')) == [{"a": 3}]


@pytest.mark.parametrize("hurt", [0, 7, 49])
@pytest.mark.parametrize("lost", ["}", "]", ":"])
def test_one_of_fifty_elements_on_one_line_costs_itself(hurt: int, lost: str) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(50)
    ]
    whole = [json.dumps(row) for row in rows]
    place = whole[hurt].rindex(lost) if lost != ":" else whole[hurt].index(lost)
    whole[hurt] = whole[hurt][:place] + whole[hurt][place + 1 :]
    found = elements("[" + ", ".join(whole) + "]")
    assert [row for row in good(found) if isinstance(row, dict)] == rows[:hurt] + rows[hurt + 1 :]
    assert sum(element.error is not None for element in found) >= 1


def test_a_nested_object_of_a_broken_element_is_not_taken_for_a_row() -> None:
    turns = '{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}'
    text = f'[{{"conversations": [{turns}]}}, {{"conversations" [{turns}]}}, {{"conversations": []}}]'
    assert good(elements(text)) == [
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
        {"conversations": []},
    ]


@given(rows=ROWS, data=st.data(), size=st.sampled_from([3, 1 << 20]))
def test_an_array_cut_anywhere_keeps_every_whole_element_before(rows: list[Any], data: Any, size: int) -> None:
    whole = [json.dumps(row) for row in rows]
    text = "[\n" + ",\n".join(whole) + "\n]"
    cut = data.draw(st.integers(1, len(text) - 1))
    kept = [row for n, row in enumerate(rows) if len("[\n" + ",\n".join(whole[: n + 1])) <= cut]
    found = elements(text[:cut], size)
    assert good(found) == kept
    assert found[-1].error is not None
    assert len(found) == len(kept) + 1


@given(rows=ROWS.filter(lambda rows: len(rows) > 1), data=st.data())
def test_one_character_lost_in_an_indented_array_costs_one_row(rows: list[Any], data: Any) -> None:
    whole = [json.dumps(row, indent=2) for row in rows]
    hurt = data.draw(st.integers(0, len(rows) - 1))
    # the bracket of the very first element shows how the others are indented: without it all is guessing
    lost = data.draw(st.integers(1 if hurt == 0 else 0, len(whole[hurt]) - 1))
    whole[hurt] = whole[hurt][:lost] + whole[hurt][lost + 1 :]
    text = "[\n" + ",\n".join("  " + element.replace("\n", "\n  ") for element in whole) + "\n]"
    rest = iter([row for element in elements(text) if isinstance(row := element.value, dict)])
    survivors = [row for n, row in enumerate(rows) if n != hurt]
    assert all(any(found == row for found in rest) for row in survivors)


def test_text_after_the_end_is_told() -> None:
    *rows, last = elements('[{"a": 1}] trailing')
    assert good(rows) == [{"a": 1}]
    assert last.error is not None
    assert "trailing" in last.error


def test_an_array_that_is_not_closed_is_told() -> None:
    *rows, last = elements('[{"a": 1},\n')
    assert good(rows) == [{"a": 1}]
    assert last.error is not None
    assert "closed" in last.error


def test_bytes_that_are_not_utf8_arrive_as_lone_surrogates() -> None:
    assert good(elements(b'[{"a": "caf\xe9"}, {"a": 2}]')) == [{"a": "caf\udce9"}, {"a": 2}]


@pytest.mark.parametrize("size", [7, 1 << 20])
def test_a_key_that_stands_twice_costs_its_element_only(size: int) -> None:
    good = {"a": [{"b": 1}], "c": "x"}
    text = json.dumps([good, "HERE", good]).replace('"HERE"', '{"a": [{"b": 1, "b": 2}, {"a": 3, "c": 4}], "c": "x"}')
    first, second, third = elements(text, size)
    assert first.value == third.value == good
    assert second.error is not None
    assert "'b' stands twice" in second.error
    assert [e.value for e in elements('[{"a": 1, "a": 1}]')] == [{"a": 1}]
    huge = "1" * 5000  # more digits than Python reads
    assert [e.error is None for e in elements(f'[{{"a": {huge}}}, {{"a": 1}}]')] == [False, True]


def test_nesting_beyond_all_measure_is_one_bad_element() -> None:
    found = elements('[{"a": 1}, {"a": ' + "[" * 200_000 + '}, {"a": 3}]')
    assert found[0].value == {"a": 1}
    assert found[1].error is not None
