"""Two numbered replies and which is better: PKU-SafeRLHF (``response_0``, ``response_1``, ``better_response_id``) and its relatives.

The verdict names the end of a reply's key: 0 or 1 of response_0 and response_1, 1 or 2 of output_1 and output_2, a or b (also as
``A>B``); or it is a number below 0 where the first is better, and above 0 where the second (HelpSteer). Where
``safer_response_id`` names the other reply, the row says two things and is refused (``labels_disagree``), unless columns name
which is meant: ``columns: {better: safer_response_id}``.
"""

from __future__ import annotations

import re
from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, Format, RowError, finite
from posttrain.data.formats.prompts import prompt_key_of, prompt_of
from posttrain.data.formats.sides import pair_row
from posttrain.data.formats.turns import turns_under
from posttrain.types import Origin, PairRow

_NAMES = ("response", "output", "answer", "completion", "reply")
_ENDS = (("0", "1"), ("1", "2"), ("a", "b"), ("A", "B"))
RESPONSES = tuple(
    (name + joint + ends[0], name + joint + ends[1]) for name in _NAMES for joint in ("_", "") for ends in _ENDS
)
"""The keys of two replies."""
_VERDICTS = (
    *("better", "better_response_id", "preferred", "preference", "winner", "label", "choice", "chosen", "better_id"),
    *("preference_strength", "overall_preference"),
)
_SIGNED = ("preference_strength", "overall_preference")
_COMPARED = re.compile(r"\[*(\w+)\s*(>+|<+|=+)\s*(\w+)\]*")
_TIES = ("tie", "equal", "both", "neither", "same", "tie (bothbad)")


def _sides(record: Foreign) -> tuple[str, str] | None:
    return next((pair for pair in RESPONSES if pair[0] in record and pair[1] in record), None)


def _detect(record: Foreign) -> bool:
    sides, key = _sides(record), keys.first(record, _VERDICTS)
    judged = sides is not None and key is not None and _better(key, record[key], sides) is not None
    return judged and prompt_key_of(record) is not None


def _parse(record: Foreign, origin: Origin, source: str) -> PairRow:
    sides, key = _sides(record), keys.first(record, _VERDICTS)
    if sides is None or key is None:
        raise RowError("wrong_shape", f"no two replies with a verdict; keys: {', '.join(map(str, record))}"[:200])
    better = _better(key, record[key], sides)
    if better == "":
        raise RowError("tie", f"{key}: {str(record[key])[:80]}")
    if better is None:
        raise RowError(
            "unknown_winner", f"{key!r} is {str(record[key])[:80]!r}, expected one of {sides[0]}, {sides[1]}"
        )
    safer = record.get("safer_response_id")
    if key != "better" and keys.is_present(safer) and _named(safer, sides) not in (better, None):
        raise RowError("labels_disagree", f"{key} and safer_response_id name different replies")
    prompt, used = prompt_of(record)
    good, bad = (turns_under(record, side, "assistant") for side in (better, sides[1 - sides.index(better)]))
    return pair_row(record, {*used, *sides, key}, prompt, good, bad, origin, source)


def _better(key: str, verdict: Any, sides: tuple[str, str]) -> str | None:
    """The key of the better reply, empty for a tie, None for what isn't a verdict."""
    if isinstance(verdict, str):
        word = verdict.strip().lower()
        compared = _COMPARED.fullmatch(word)
        if word in _TIES or (compared is not None and "=" in compared[2]):
            return ""
        return _named(compared[1 if ">" in compared[2] else 3] if compared is not None else word, sides)
    number = finite(verdict)
    if number is None:
        return None
    if key in _SIGNED:
        return "" if number == 0 else sides[number > 0]
    if key == "preference" and 1 < number < 2 and sides[0].endswith("1"):  # AlpacaEval's, weighted
        return "" if number == 1.5 else sides[number > 1.5]
    return _named(verdict, sides)


def _named(verdict: Any, sides: tuple[str, str]) -> str | None:
    """The key of the reply that a verdict names."""
    if isinstance(verdict, bool) or not isinstance(verdict, str | int | float):
        return None
    if isinstance(verdict, float) and verdict.is_integer():
        verdict = int(verdict)
    word = str(verdict).strip().lower()
    return next((side for side in sides if word in (side.lower(), side[-1].lower(), f"model_{side[-1].lower()}")), None)


TWO_RESPONSES = Format(
    "two_responses",
    _detect,
    _parse,
    '{"prompt": "Is it fine to skip breakfast?", "response_0": "Often yes.", "response_1": "Eat only sugar.", '
    '"better_response_id": 0}',
    "pairs",
)
