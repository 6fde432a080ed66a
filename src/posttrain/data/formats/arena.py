"""Chatbot Arena: two conversations with the same user, and which model won.

The first turns that both share are the prompt. Where the models differ from their first reply on, a side is a
continuation of several turns: assistant, user, assistant.
"""

from __future__ import annotations

from posttrain.data.formats.base import Foreign, Format, RowError, items
from posttrain.data.formats.sides import Turns, pair_row, parted
from posttrain.data.formats.turns import talk
from posttrain.types import Origin, PairRow

_TALKS = ("conversation_a", "conversation_b")
_WINNERS = {"model_a": _TALKS, "model_b": _TALKS[::-1]}
"""Winner -> the keys of chosen and rejected."""
_TIES = ("tie", "tie (bothbad)")


def _detect(record: Foreign) -> bool:
    return {*_TALKS, "winner"} <= record.keys()


def _parse(record: Foreign, origin: Origin, source: str) -> PairRow:
    winner = record.get("winner")
    if winner in _TIES:
        raise RowError("tie", f"winner: {winner}")
    keys = _WINNERS.get(winner) if isinstance(winner, str) else None
    if keys is None:
        raise RowError("unknown_winner", f"winner {winner!r}; known: {', '.join((*_WINNERS, *_TIES))}"[:200])
    chosen, rejected = (talk(items(record, key)) for key in keys)
    if _user_texts(chosen) != _user_texts(rejected):
        raise RowError("no_shared_prompt", "the user said other things to the two models")
    return pair_row(record, {*_TALKS, "winner"}, *parted(chosen, rejected), origin, source)


def _user_texts(turns: Turns) -> list[str]:
    return [turn.content for turn in turns if turn.role == "user"]


ARENA = Format(
    "arena",
    _detect,
    _parse,
    '{"winner": "model_a", "conversation_a": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
    '"Hello!"}], "conversation_b": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No."}]}',
    "pairs",
)
