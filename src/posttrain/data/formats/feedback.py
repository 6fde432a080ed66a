"""Binary feedback: any conversation format with a label that says whether the last reply is good.

A label is true or false, 0 or 1, or a word (``safe``, ``unsafe``, ``good``, ``bad``, ...) under one of the usual keys. Beside
``prompt`` and ``completion`` it judges the completion, otherwise the last turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.alpaca import ALPACA
from posttrain.data.formats.base import Foreign, Format, RowError, finite, kind_of
from posttrain.data.formats.conversation import reply_under
from posttrain.data.formats.messages import MESSAGES
from posttrain.data.formats.moss import MOSS
from posttrain.data.formats.prompt_completion import PROMPT_COMPLETION
from posttrain.data.formats.sharegpt import SHAREGPT
from posttrain.data.formats.sides import judged_row
from posttrain.data.formats.text_pair import TEXT_PAIR
from posttrain.types import Origin, SftRow, UnpairedRow

_JUDGES = (
    *("label", "kto_tag", "desirable", "is_desirable", "is_safe", "safe", "is_response_safe", "response_safe"),
    *("is_correct", "is_good", "is_acceptable", "is_helpful", "thumbs_up"),
)
"""Keys of labels that mean good where they are true."""
_ACCUSERS = ("is_unsafe", "unsafe", "is_harmful", "harmful", "is_toxic", "thumbs_down")
"""Keys of labels that mean bad where they are true."""
_SPEAKERS = (
    *("safety", "safety_label", "response_label", "response_harm_label", "response_safety", "quality", "quality_label"),
    *("verdict", "judgement", "judgment", "rating", "feedback", "correctness"),
)
"""Keys of labels in words only; a number there is a score."""
_WORDS = {
    **dict.fromkeys(
        ("true", "good", "safe", "desirable", "acceptable", "accepted", "correct", "unharmful", "harmless"), True
    ),
    **dict.fromkeys(("thumbs_up", "like", "liked", "helpful", "pass", "passed"), True),
    **dict.fromkeys(("false", "bad", "unsafe", "undesirable", "unacceptable", "rejected", "incorrect", "wrong"), False),
    **dict.fromkeys(
        ("harmful", "toxic", "thumbs_down", "dislike", "disliked", "unhelpful", "fail", "failed", "poor"), False
    ),
}
_NUMBERS: Mapping[Any, bool] = {0: False, 1: True, -1: False}
_CONVERSATIONS = (MESSAGES, SHAREGPT, MOSS, ALPACA, PROMPT_COMPLETION, TEXT_PAIR)


def _detect(record: Foreign) -> bool:
    if "prompt_turns" in record or all(_verdict(record, key) is None for key in LABEL_KEYS if key in record):
        return False
    numbered = any(key in record for key in keys.OPTIONS) and judged_by_number(record)  # the number of an option
    return not numbered and _conversation(record) is not None


def judged_by_number(record: Foreign) -> bool:
    """Whether nothing but a number judges a reply: in a file where it has other values, too, it is a class or a score."""
    found = [record[key] for key in LABEL_KEYS if key in record and _verdict(record, key) is not None]
    return all(finite(value) is not None for value in found)


def numbers_are_classes(records: Sequence[Foreign]) -> bool:
    """Whether the numbers that are labels in a file are classes: some judge nothing, or the reply says which it is (few replies,
    often repeated, and each always with one label).
    """
    labels: dict[str, set[Any]] = {}
    labelled = 0
    for record in records:
        reply = record.get(keys.first(record, keys.REPLIES) or "")
        if isinstance(reply, str) and (number := finite(record.get("label"))) is not None:
            labels.setdefault(reply, set()).add(number)
            labelled += 1
    said = labelled >= 4 and 2 <= len(labels) <= labelled // 2 and all(len(found) == 1 for found in labels.values())
    several = len({number for found in labels.values() for number in found}) > 1
    return (said and several) or any(map(_other_number, records))


def _other_number(record: Foreign) -> bool:
    """Whether a label is a number that judges nothing."""
    return any(finite(record.get(key)) is not None and _verdict(record, key) is None for key in ("label", "kto_tag"))


def _conversation(record: Foreign) -> Format[SftRow] | None:
    return next((known for known in _CONVERSATIONS if known.detect(record)), None)


def _verdict(record: Foreign, key: str) -> bool | None:
    """What a label says: a boolean, its name as in a CSV cell, a word, 0 or 1."""
    value = record.get(key)
    word = value.strip().lower() if isinstance(value, str) else ""
    found = _WORDS.get(word)
    if key not in _SPEAKERS and found is None:
        number = finite(value)
        found = value if isinstance(value, bool) else None if number is None else _NUMBERS.get(number)
    if found is None:
        return None
    said = word in _WORDS and word not in ("true", "false")
    return not found if key in _ACCUSERS and not said else found


LABEL_KEYS = (*_JUDGES, *_ACCUSERS, *_SPEAKERS)
"""Every key of a label."""


def _parse(record: Foreign, origin: Origin, source: str) -> UnpairedRow:
    found = {key: verdict for key in LABEL_KEYS if key in record and (verdict := _verdict(record, key)) is not None}
    known = _conversation(record)
    if not found:
        key = keys.first(record, LABEL_KEYS) or _JUDGES[0]
        raise RowError("wrong_shape", f"{key!r} is {kind_of(record.get(key))}, expected true or false")
    if known is None:
        raise RowError("wrong_shape", f"a label without a conversation; keys: {', '.join(map(str, record))}"[:200])
    if len(set(found.values())) > 1:
        raise RowError("labels_disagree", ", ".join(f"{key}: {record[key]!r}" for key in found)[:200])
    turns = len(reply_under(record, "completion")) if known is PROMPT_COMPLETION else 1
    row = known.parse({name: value for name, value in record.items() if name not in found}, origin, source)
    return judged_row(row, turns, next(iter(found.values())))


FEEDBACK = Format(
    "feedback", _detect, _parse, '{"prompt": "Name a colour.", "completion": "Blue.", "label": true}', "feedback"
)
