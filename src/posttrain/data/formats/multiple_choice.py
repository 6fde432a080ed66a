"""Multiple choice: a question, its options (a list, letters with texts, or columns A, B, C, D) and which one is right.

The options stand below the question, each with its letter; the reply is letter and text of the right one, or of each where there
are several. An answer that names none of the options is the reply as it is. Where answers are numbers, they count from 0, or from 1
in a file that has no 0 and names the last option by the number of options.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, Format, RowError
from posttrain.data.formats.choices import counted, offered, right_ones
from posttrain.data.formats.conversation import sft_row
from posttrain.data.formats.turns import text_of, turns_under
from posttrain.types import Message, Origin, SftRow

_QUESTIONS = ("question", "prompt", "query", "problem", "instruction", "input", "question_stem")
_ANSWERS = ("answer", *keys.CORRECT, "target", "label", "solution")
_WRITTEN = ("messages", "conversations", "output", "response", "completion")
"""Where a reply stands as it is."""


def counts_from_one(records: Iterable[Foreign]) -> bool:
    """Whether the answers of a file are numbers from 1 to the number of options."""
    numbers = [found for record in records if _detect(record) and (found := _number(record)) is not None]
    return all(number > 0 for number, _ in numbers) and any(number == options for number, options in numbers)


def _number(record: Foreign) -> tuple[int, int] | None:
    """(the answer, where it is the number of an option; how many options there are)"""
    options = offered(record)[1]
    number = counted(record[keys.first(record, _ANSWERS) or ""], options)
    return None if number is None else (number, len(options))


def _detect(record: Foreign) -> bool:
    question, answer_key = keys.first(record, _QUESTIONS), keys.first(record, _ANSWERS)
    written = any(key in record for key in _WRITTEN)
    return not written and question is not None and answer_key is not None and bool(offered(record)[1])


def _parse(record: Foreign, origin: Origin, source: str, first: int = 0) -> SftRow:
    question, answer_key = keys.first(record, _QUESTIONS), keys.first(record, _ANSWERS)
    columns, options = offered(record)
    if question is None or answer_key is None or not options:
        raise RowError("wrong_shape", f"no question, options or answer; keys: {', '.join(map(str, record))}"[:200])
    prompt = turns_under(record, question, "user") if keys.is_present(record[question]) else ()
    if not any(turn.content.strip() for turn in prompt):
        raise RowError("empty_prompt", "the question is blank")
    answer = record[answer_key]
    if isinstance(answer, str) and answer in columns:  # option2
        answer = options[columns.index(answer)].label
    if isinstance(record[columns[0]], list) and answer in record[columns[0]] and not isinstance(answer, bool):
        answer = str(answer)  # one of the numbers that are the options
    right = right_ones(answer, options, first)
    reply = "\n".join(option.line for option in right) if right else text_of(answer, repr(answer_key))
    # the options as a column of their own are put below the question with everything else that stands beside it
    offer = {"options": [option._asdict() for option in options]}
    named = {key: value for key, value in record.items() if key not in columns} | offer
    others = {key for key in _ANSWERS if key in record}
    return sft_row(named, {question, *others}, (*prompt, Message("assistant", reply)), origin, source)


MULTIPLE_CHOICE = Format(
    "multiple_choice", _detect, _parse, '{"question": "Which is a metal?", "choices": ["Wood", "Copper"], "answer": 1}'
)
MULTIPLE_CHOICE_FROM_1 = Format(
    "multiple_choice_from_1",
    _detect,
    partial(_parse, first=1),
    '{"question": "Which is a metal?", "choices": ["Wood", "Copper"], "answer": 2}',
)
