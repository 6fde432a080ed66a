"""UltraFeedback: an ``instruction`` with ``completions``, each a response that was rated.

The score is ``overall_score``; where an answer has none, all answers of the record are compared by the mean of their
fine-grained ratings (``fine-grained_score``, or the ``Rating`` of every aspect of ``annotations``), for the two scales differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.base import Foreign, Format, finite, objects, optional_text
from posttrain.data.formats.prompts import prompt_key_of, prompt_of
from posttrain.data.formats.ranked import Ranked
from posttrain.types import Origin

_RATED = ("overall_score", "fine-grained_score", "annotations")


def _detect(record: Foreign) -> bool:
    found = record.get("completions")
    first = found[0] if isinstance(found, list) and found else None
    rated = isinstance(first, Mapping) and "response" in first and any(key in first for key in _RATED)
    return rated and prompt_key_of(record) is not None


def _parse(record: Foreign, origin: Origin, source: str) -> Ranked:
    prompt, used = prompt_of(record)
    completions = objects(record, "completions")
    scores = [finite(completion.get("overall_score")) for completion in completions]
    if None in scores:
        scores = [_mean_rating(completion) for completion in completions]
    texts = [optional_text(completion, "response") for completion in completions]
    answers = tuple(zip(scores, texts, strict=True))
    return Ranked(record, used | {"completions"}, prompt, answers, origin, source)


def _mean_rating(completion: Foreign) -> float | None:
    mean = finite(completion.get("fine-grained_score"))
    aspects = completion.get("annotations")
    if mean is not None or not isinstance(aspects, Mapping):
        return mean
    ratings = [rating for aspect in aspects.values() if (rating := _rating(aspect)) is not None]
    return sum(ratings) / len(ratings) if ratings else None


def _rating(aspect: Any) -> float | None:
    return finite(aspect.get("Rating")) if isinstance(aspect, Mapping) else None


ULTRAFEEDBACK = Format(
    "ultrafeedback",
    _detect,
    _parse,
    '{"instruction": "Name a colour.", "completions": [{"response": "Blue.", "overall_score": 8.5}, '
    '{"response": "Seven.", "overall_score": 2}]}',
    "pairs",
    rated=True,
)
