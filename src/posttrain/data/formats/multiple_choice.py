"""Multiple choice: a question, its options (a list, letters with texts, or columns A, B, C, D) and which one is right.

The options stand below the question, each with its letter; the reply is letter and text of the right one. An answer that names
none of the options is the reply as it is.
"""

from __future__ import annotations

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, Format, RowError
from posttrain.data.formats.choices import Option, meant, option_columns, options_of
from posttrain.data.formats.conversation import sft_row
from posttrain.data.formats.turns import text_of, turns_under
from posttrain.types import Message, Origin, SftRow

_QUESTIONS = ("question", "prompt", "query", "problem", "instruction", "input")
_ANSWERS = (
    *(
        "answer",
        "answerKey",
        "answer_key",
        "answer_idx",
        "answer_index",
        "answer_id",
        "correct_answer",
        "correct_option",
    ),
    *("correct", "correct_index", "correct_idx", "gold", "target", "label", "cop", "solution"),
)


def _detect(record: Foreign) -> bool:
    written = any(key in record for key in ("messages", "conversations", "output", "response", "completion"))
    asked, answered = keys.first(record, _QUESTIONS), keys.first(record, _ANSWERS)
    return not written and asked is not None and answered is not None and _options(record)[1] is not None


def _options(record: Foreign) -> tuple[tuple[str, ...], list[Option] | None]:
    """(their keys, the options)"""
    key = keys.first(record, keys.OPTIONS)
    if key is not None and keys.is_present(record[key]):
        return (key,), options_of(record[key])
    return option_columns(record) or ((), None)


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    asked, answered = keys.first(record, _QUESTIONS), keys.first(record, _ANSWERS)
    columns, options = _options(record)
    if asked is None or answered is None or options is None:
        raise RowError("wrong_shape", f"no question, options or answer; keys: {', '.join(map(str, record))}"[:200])
    prompt = turns_under(record, asked, "user") if keys.is_present(record[asked]) else ()
    if not any(turn.content.strip() for turn in prompt):
        raise RowError("empty_prompt", "the question is blank")
    answer = record[answered]
    right = meant(answer, options)
    reply = text_of(answer, repr(answered)) if right is None else right.line
    # the options as a column of their own are put below the question with everything else that stands beside it
    offered = {"options": [option._asdict() for option in options]}
    named = {key: value for key, value in record.items() if key not in columns} | offered
    others = {key for key in _ANSWERS if key in record}
    return sft_row(named, {asked, *others}, (*prompt, Message("assistant", reply)), origin, source)


MULTIPLE_CHOICE = Format(
    "multiple_choice",
    _detect,
    _parse,
    '{"question": "Which is a metal?", "choices": ["Wood", "Copper"], "answer": 1}',
)
