"""Nectar: a ``prompt`` with ``answers``, each with its ``rank`` (1 is the best)."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.data.formats.base import Foreign, Format, finite, objects, optional_text
from posttrain.data.formats.prompts import prompt_key_of, prompt_of
from posttrain.data.formats.ranked import Ranked
from posttrain.types import Origin


def _detect(record: Foreign) -> bool:
    found = record.get("answers")
    first = found[0] if isinstance(found, list) and found else None
    return isinstance(first, Mapping) and {"answer", "rank"} <= first.keys() and prompt_key_of(record) is not None


def _parse(record: Foreign, origin: Origin, source: str) -> Ranked:
    prompt, used = prompt_of(record)
    answers = []
    for answer in objects(record, "answers"):
        rank = finite(answer.get("rank"))
        answers.append((None if rank is None else -rank, optional_text(answer, "answer")))
    return Ranked(record, used | {"answers"}, prompt, tuple(answers), origin, source)


NECTAR = Format(
    "nectar",
    _detect,
    _parse,
    r'{"prompt": "\n\nHuman: Name a colour.\n\nAssistant: ", "answers": [{"answer": "Blue.", "rank": 1}, '
    '{"answer": "Seven.", "rank": 2}]}',
    "pairs",
    rated=True,
)
