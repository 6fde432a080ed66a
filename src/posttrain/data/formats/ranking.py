"""LLaMA-Factory's ranking: a conversation that waits for a reply, and the replies under ``chosen`` and ``rejected``.

Its newer form has two whole conversations instead, ``chosen_messages`` and ``rejected_messages``.
"""

from __future__ import annotations

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, Format, RowError, items
from posttrain.data.formats.prompts import prompt_key_of
from posttrain.data.formats.sides import is_whole, pair_row, parted
from posttrain.data.formats.turns import talk, turns_under
from posttrain.types import Origin, PairRow

_TALKS = (*keys.TALKS[1:], "messages")
_WHOLE = ("chosen_messages", "rejected_messages")
_SIDES = ("chosen", "rejected")


def detect(record: Foreign) -> bool:
    """Whether a conversation has two replies, or there are two conversations."""
    replies = record.keys() >= set(_SIDES) and keys.first(record, _TALKS) is not None and prompt_key_of(record) is None
    return replies or record.keys() >= set(_WHOLE)


def _parse(record: Foreign, origin: Origin, source: str) -> PairRow:
    if record.keys() >= set(_WHOLE):
        chosen, rejected = (talk(items(record, key)) for key in _WHOLE)
        return pair_row(record, set(_WHOLE), *parted(chosen, rejected), origin, source)
    chosen, rejected = (turns_under(record, key, "assistant") for key in _SIDES)
    used = {*_SIDES, *_TALKS}
    if is_whole(chosen) or is_whole(rejected):
        return pair_row(record, used, *parted(chosen, rejected), origin, source)
    prompt = talk(items(record, keys.first(record, _TALKS) or "conversations"))
    if prompt and prompt[-1].role == "assistant":
        raise RowError("wrong_shape", "the conversation before the two replies ends with a reply")
    return pair_row(record, used, prompt, chosen, rejected, origin, source)


RANKING = Format(
    "ranking",
    detect,
    _parse,
    '{"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello!"}, '
    '"rejected": {"from": "gpt", "value": "Go away."}}',
    "pairs",
)
