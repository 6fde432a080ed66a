"""Scored responses: a prompt, a list of ``responses``, and a list of their scores beside it.

The scores stand under ``scores``, ``ratings``, ``rewards`` or, as in Magpie, ``rewards_`` with the name of the reward model:
numbers, or objects with a ``score``. A response may also be an object that has both, its text and its score (or its ``rank``, 1 the
best).
"""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.data.formats.base import Foreign, Format, RowError, finite, items, kind_of, objects
from posttrain.data.formats.prompts import prompt_key_of, prompt_of
from posttrain.data.formats.ranked import Ranked
from posttrain.types import Origin

_RATED = ("responses", "completions", "candidates", "outputs", "generations")
_TEXTS = ("text", "response", "content", "answer", "output", "completion")
_SCORES = ("score", "rating", "reward", "rank")


def _detect(record: Foreign) -> bool:
    scored = "responses" in record and _scores_key(record) is not None
    return (scored or _rated_key(record) is not None) and prompt_key_of(record) is not None


def _rated_key(record: Foreign) -> str | None:
    """The key of responses that are objects with text and score."""
    for key in _RATED:
        found = record.get(key)
        first = found[0] if isinstance(found, list) and found else None
        if isinstance(first, Mapping) and _text_of(first) and _score_of(first) is not None:
            return key
    return None


def _text_of(response: Foreign) -> str:
    return next((response[key] for key in _TEXTS if isinstance(response.get(key), str)), "")


def _score_of(response: Foreign) -> float | None:
    key = next((key for key in _SCORES if key in response), None)
    score = None if key is None else finite(response[key])
    return -score if key == "rank" and score is not None else score


def _scores_key(record: Foreign) -> str | None:
    known = ("scores", "ratings", "rewards")
    return next((key for key in record if key in known or key.startswith("rewards_")), None)


def _parse(record: Foreign, origin: Origin, source: str) -> Ranked:
    prompt, used = prompt_of(record)
    rated = _rated_key(record)
    if rated is not None:
        own = tuple((_score_of(response), _text_of(response)) for response in objects(record, rated))
        return Ranked(record, used | {rated}, prompt, own, origin, source)
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
