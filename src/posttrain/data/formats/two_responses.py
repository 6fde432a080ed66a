"""Two numbered replies and which is better: PKU-SafeRLHF (``response_0``, ``response_1``, ``better_response_id``) and its relatives.

The verdict names the end of a reply's key: 0 or 1 of response_0 and response_1, 1 or 2 of output_1 and output_2, a or b. Where
``safer_response_id`` names the other reply, the row says two things and is refused (``labels_disagree``), unless columns name
which is meant: ``columns: {better: safer_response_id}``.
"""

from __future__ import annotations

from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, Format, RowError
from posttrain.data.formats.prompts import prompt_of
from posttrain.data.formats.sides import pair_row
from posttrain.data.formats.turns import turns_under
from posttrain.types import Message, Origin, PairRow

_NAMES = ("response", "output", "answer", "completion", "reply")
_ENDS = (("0", "1"), ("1", "2"), ("a", "b"))
RESPONSES = tuple(
    (name + joint + ends[0], name + joint + ends[1]) for name in _NAMES for joint in ("_", "") for ends in _ENDS
)
"""The keys of two replies."""
_VERDICTS = (
    "better",
    "better_response_id",
    "preferred",
    "preference",
    "winner",
    "label",
    "choice",
    "chosen",
    "better_id",
)


def _sides(record: Foreign) -> tuple[str, str] | None:
    return next((pair for pair in RESPONSES if pair[0] in record and pair[1] in record), None)


def _detect(record: Foreign) -> bool:
    sides, key = _sides(record), keys.first(record, _VERDICTS)
    judged = sides is not None and key is not None and _named(record[key], sides) is not None
    return judged and _prompt_key(record) is not None


def _prompt_key(record: Foreign) -> str | None:
    """The key of the prompt; here also ``input`` alone."""
    return keys.first(record, ("prompt", "instruction", "question", "query", "input"))


def _parse(record: Foreign, origin: Origin, source: str) -> PairRow:
    sides, key = _sides(record), keys.first(record, _VERDICTS)
    if sides is None or key is None:
        raise RowError("wrong_shape", f"no two replies with a verdict; keys: {', '.join(map(str, record))}"[:200])
    better = _named(record[key], sides)
    if better is None:
        raise RowError(
            "unknown_winner", f"{key!r} is {str(record[key])[:80]!r}, expected one of {sides[0]}, {sides[1]}"
        )
    safer = record.get("safer_response_id")
    if key != "better" and keys.is_present(safer) and _named(safer, sides) not in (better, None):
        raise RowError("labels_disagree", f"{key} and safer_response_id name different replies")
    prompt, used = prompt_of(record)
    if not used and isinstance(record.get("input"), str):
        prompt, used = (Message("user", record["input"]),), {"input"}
    good, bad = (turns_under(record, side, "assistant") for side in (better, sides[1 - sides.index(better)]))
    return pair_row(record, {*used, *sides, key}, prompt, good, bad, origin, source)


def _named(verdict: Any, sides: tuple[str, str]) -> str | None:
    """The key of the reply that a verdict names."""
    if isinstance(verdict, bool) or not isinstance(verdict, str | int | float):
        return None
    if isinstance(verdict, float) and verdict.is_integer():
        verdict = int(verdict)
    word = str(verdict).strip().lower()
    return next((side for side in sides if word in (side, side[-1], f"model_{side[-1]}")), None)


TWO_RESPONSES = Format(
    "two_responses",
    _detect,
    _parse,
    '{"prompt": "Is it fine to skip breakfast?", "response_0": "Often yes.", "response_1": "Eat only sugar.", '
    '"better_response_id": 0}',
    "pairs",
)
