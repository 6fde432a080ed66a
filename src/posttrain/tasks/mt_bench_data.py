"""MT-Bench: two-turn questions in eight categories.

Procedure: Zheng et al. 2023, arXiv:2306.05685, and FastChat's ``fastchat/llm_judge/common.py``. The question file comes from a path; nothing of it is shipped here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import DataError
from posttrain.judge.items import base_category, needs_reference
from posttrain.tasks.rows import file_rows

_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
}
MAX_NEW_TOKENS = 1024
"""Limit of an answer in each turn."""


def answer_temperature(category: str) -> float:
    """The temperature at which a model answers; 0.7 for categories MT-Bench does not know."""
    return _TEMPERATURES.get(base_category(category), 0.7)


# ---- questions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A question of one or more user turns."""

    id: int
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()
    """A reference answer for each turn, or none."""


def load_questions(path: Path, references: Path | None = None) -> tuple[Question, ...]:
    """The questions of a JSON Lines file in MT-Bench's form (``question_id``, ``category``, ``turns``, ``reference``).

    ``references`` is a file of a model's answers (``question_id``, ``choices[0].turns``), as FastChat's
    ``reference_answer/gpt-4.jsonl``: it takes the place of the references in the question file and must hold every question of a category
    that needs one. Without it a question keeps its own, if it has any.

    Raises:
        DataError: names file and line of what is wrong.

    """
    given: dict[int, tuple[str, ...]] = {}
    if references is not None:
        for origin, record in file_rows(str(references)):
            place = str(origin)
            question_id, choices = field_of(record, "question_id", int, place), field_of(record, "choices", list, place)
            turns = choices[0].get("turns") if choices and isinstance(choices[0], dict) else None
            given[question_id] = _texts(turns, "choices[0].turns", place)
    questions: dict[int, Question] = {}
    for origin, record in file_rows(str(path)):
        place = str(origin)
        question_id, category = field_of(record, "question_id", int, place), field_of(record, "category", str, place)
        turns = _texts(record.get("turns"), "turns", place)
        if question_id in questions:
            raise DataError(f"question {question_id} comes a second time", where=place)
        own = () if record.get("reference") is None else _texts(record["reference"], "reference", place)
        answers = own if references is None else given.get(question_id, ())
        if references is not None and needs_reference(category) and not answers:
            raise DataError(f"question {question_id} ({category}) needs a reference answer", where=str(references))
        if answers and len(answers) != len(turns):
            raise DataError(
                f"question {question_id} has {len(turns)} turns, but {len(answers)} reference answers", where=place
            )
        questions[question_id] = Question(question_id, category, turns, answers)
    if not questions:
        raise DataError("there are no questions in this file", where=str(path))
    return tuple(questions.values())


def field_of(record: Mapping[str, Any], key: str, kind: type, place: str) -> Any:
    """The value of a key. Raises DataError where it is of another kind."""
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{key} must be {_KINDS[kind]}, not {value!r}", where=place)
    return value


_KINDS = {int: "a whole number", str: "a text", list: "a list"}


def _texts(value: Any, key: str, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise DataError(f"{key} must be a list of texts", where=place)
    return tuple(value)
