"""Every rule, cause and need has words in both languages that are filled in by the same numbers."""

from __future__ import annotations

import ast
from pathlib import Path
from string import Formatter
from typing import Any, get_args

import pytest

import posttrain.doctor
from posttrain.doctor.rules import OF_EVALUATION, OF_JUDGES, OF_ONLINE, OF_TRAINING
from posttrain.doctor.words import Language, texts

RULES = {**OF_TRAINING, **OF_ONLINE, **OF_EVALUATION, **OF_JUDGES}


def pairs(value: Any) -> list[dict[str, str]]:
    """All texts of the file, each with its translations."""
    if set(value) == set(get_args(Language)):
        return [value]
    return [found for inner in value.values() for found in pairs(inner)]


def test_every_text_is_there_in_both_languages_with_the_same_numbers() -> None:
    for found in pairs(texts()):
        names = [{name for _, name, _, _ in Formatter().parse(text) if name} for text in found.values()]
        assert names[0] == names[1], found
        assert all(found.values())


def test_every_rule_has_its_words_and_no_words_are_left_over() -> None:
    assert texts()["rules"].keys() == RULES.keys()


@pytest.mark.parametrize(("call", "part"), [("Cause", "causes"), ("Unknown", "needs")])
def test_every_cause_and_need_that_a_rule_names_has_words_and_the_other_way_round(call: str, part: str) -> None:
    named = set()
    for path in Path(posttrain.doctor.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == call:
                named |= {one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)}
    assert named == texts()[part].keys()
