"""Scored responses: a prompt, a list of ``responses``, and a list of their scores beside it.

The scores stand under ``scores``, ``ratings``, ``rewards`` or, as in Magpie, ``rewards_`` with the name of the reward model:
numbers, or objects with a ``score``.
"""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.data.formats.base import Foreign, Format, RowError, finite, items, kind_of
from posttrain.data.formats.prompts import prompt_key_of, prompt_of
from posttrain.data.formats.ranked import Ranked
from posttrain.types import Origin


def _detect(record: Foreign) -> bool:
    return "responses" in record and _scores_key(record) is not None and prompt_key_of(record) is not None


def _scores_key(record: Foreign) -> str | None:
    known = ("scores", "ratings", "rewards")
    return next((key for key in record if key in known or key.startswith("rewards_")), None)


def _parse(record: Foreign, origin: Origin, source: str) -> Ranked:
    prompt, used = prompt_of(record)
    key = _scores_key(record) or "scores"
    texts, scores = items(record, "responses"), items(record, key)
    if len(texts) != len(scores):
        raise RowError("wrong_shape", f"{len(texts)} responses with {len(scores)} scores in {key!r}")
    for text in texts:
        if not isinstance(text, str):
            raise RowError("wrong_shape", f"'responses' holds {kind_of(text)}, expected text")
    found = [finite(score.get("score") if isinstance(score, Mapping) else score) for score in scores]
    answers = tuple(zip(found, texts, strict=True))
    return Ranked(record, used | {"responses", key}, prompt, answers, origin, source)


SCORED_RESPONSES = Format(
    "scored_responses",
    _detect,
    _parse,
    '{"instruction": "Name a colour.", "responses": ["Blue.", "Seven."], "scores": [0.9, 0.2]}',
    "pairs",
    rated=True,
)
