"""What every filter of the table promises."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_examples import FILTER_EXAMPLES, talk
from posttrain.config import field_docs, resolved_yaml
from posttrain.data.filters import FILTERS, Conversation
from posttrain.data.filters.step import FilterStep
from posttrain.types import ROLES, Message

REASONS = [(name, reason) for name, one in FILTER_EXAMPLES.items() for reason in one]
ODD = st.text(alphabet=st.characters(codec="utf-8"), max_size=60) | st.sampled_from(
    [
        "",
        " ",
        "```",
        "```py\n",
        "~~~\n~~~",
        "Ã©",
        "�",
        "。" * 30,
        "a@b.co",
        "As an AI",
        "浣犲ソ",
        "\x00",
        "🙂" * 99,
        "x = 1;\n" * 9,
    ]
)
MESSAGES = st.builds(Message, st.sampled_from(ROLES), ODD)
CONVERSATIONS = st.builds(
    Conversation,
    st.lists(MESSAGES, max_size=5).map(tuple),
    st.dictionaries(st.sampled_from(["score", "n"]), st.none() | st.booleans() | st.floats() | st.text(max_size=3)),
    st.booleans(),
    st.dictionaries(st.sampled_from(["score", "toxicity"]), st.floats()),
)
GOOD = [
    talk(
        "Give three tips for staying healthy.", "1. Eat a balanced diet.\n2. Exercise regularly.\n3. Get enough sleep."
    ),
    talk("保持健康的三个提示。", "以下是保持健康的三个提示：\n\n1. 保持身体活动。\n2. 均衡饮食。\n3. 睡眠充足。"),
    talk("Write a function that adds.", "```python\ndef add(a, b):\n    return a + b\n```\nIt returns the sum."),
    talk("用 Python 写一个求和函数", "```python\ndef add(a, b):\n    return a + b\n```\n这个函数返回两数之和。"),
    talk("What is 3 + 4?", "7", "And 5 + 9?", "14"),
    talk("How can I kill a Python process?", "Run `kill 1234` with its number, or `pkill python`."),
    talk("Où est la bibliothèque ? « CAFÉ »", "La bibliothèque est à côté de l'hôtel — « au café… »."),
    talk("路口交通规则是什么？", "红灯停，绿灯行。"),
    talk("Convert to emoji: I love cats", "😻"),
]
"""Rows that no filter may drop under its defaults."""


@pytest.mark.parametrize("name", FILTERS)
def test_the_table_names_a_field_of_the_step_of_the_same_type(name: str) -> None:
    on = getattr(FilterStep(kind="filter"), name)
    assert on is None or type(on) is FILTERS[name]
    assert [f.name for f in dataclasses.fields(FilterStep)] == ["kind", *FILTERS]
    assert list(FILTER_EXAMPLES) == list(FILTERS)


@pytest.mark.parametrize("name", FILTERS)
def test_every_setting_is_explained_and_has_a_default(name: str) -> None:
    config: Any = FILTERS[name]
    assert config.__dataclass_params__.frozen
    assert set(field_docs(config)) == {f.name for f in dataclasses.fields(config)}
    config()


@pytest.mark.parametrize(("name", "reason"), REASONS)
def test_the_example_is_dropped_for_its_reason_alone(name: str, reason: str) -> None:
    config, row = FILTER_EXAMPLES[name][reason]
    failed = [m for m in config.measure(row) if not m.passed]
    assert [m.reason for m in failed] == [reason]
    assert failed[0].detail
    assert re.fullmatch("[a-z_]+", reason)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("row", GOOD)
def test_good_rows_stay(name: str, row: Conversation) -> None:
    assert [m for m in FILTERS[name]().measure(row) if not m.passed] == []


@pytest.mark.parametrize(("name", "reason"), REASONS)
@settings(max_examples=30, deadline=None)
@given(row=CONVERSATIONS)
def test_any_row_is_measured_without_an_error(name: str, reason: str, row: Conversation) -> None:
    config, _ = FILTER_EXAMPLES[name][reason]
    measured = tuple(config.measure(row))
    again = Conversation(row.messages, row.meta, row.tools, row.scores)
    assert tuple(config.measure(again)) == measured
    assert len({m.check for m in measured}) == len(measured)
    for one in measured:
        assert one.check.startswith(f"{name}.")
        assert math.isfinite(one.value)
        assert one.limit
        assert one.passed or (one.reason in FILTER_EXAMPLES[name] and len(one.detail) < 500)


@pytest.mark.parametrize("name", FILTERS)
def test_settings_are_written_as_json(name: str) -> None:
    json.dumps(dataclasses.asdict(FILTERS[name]()))
    assert resolved_yaml(FILTERS[name]())
