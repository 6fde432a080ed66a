"""What makes a pair, or a judged reply, of turns: the checks that all preference formats share.

Both sides are checked as the conversations they belong to (:func:`posttrain.data.formats.base.sft_row`). Loss weights are
left out: what is supervised in preference data is the reply.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from posttrain.data.formats.base import Foreign, RowError
from posttrain.data.formats.conversation import sft_row
from posttrain.data.formats.turns import thoughts_of
from posttrain.types import Message, Origin, PairRow, SftRow, UnpairedRow

Turns = tuple[Message, ...]


def pair_row(
    record: Foreign, used: Set[str], prompt: Turns, chosen: Turns, rejected: Turns, origin: Origin, source: str
) -> PairRow:
    """The checked pair of a record; ``used`` are the keys it was made from, ``system`` and ``tools`` are read here.

    Reasons, besides those of conversations: ``empty_prompt``, ``no_final_reply``, ``equal_sides``.
    """
    used = {*used, "rationale"}  # beside two replies it says why one is better
    if (found := thoughts_of({key: value for key, value in record.items() if key not in used})) is not None:
        raise RowError("unclear_reasoning", f"{found[0]!r} stands beside two replies: whose it is can't be told")
    prompt, chosen, rejected = map(_unweighted, (prompt, chosen, rejected))
    better, _ = (
        _conversation(record, used, prompt, side, name, origin, source)
        for name, side in (("chosen", chosen), ("rejected", rejected))
    )
    if _are_same(chosen, rejected):
        raise RowError("equal_sides", "chosen and rejected are the same")
    begin = len(better.messages) - len(chosen)  # a system turn may have come before
    return PairRow(better.messages[:begin], chosen, rejected, origin, source, better.tools, better.meta)


def judged_row(row: SftRow, turns: int, desirable: bool) -> UnpairedRow:
    """The judgement of the last ``turns`` turns of a conversation. Reasons: ``empty_prompt``, ``no_final_reply``."""
    messages = _unweighted(row.messages)
    begin = len(messages) - turns
    prompt, completion = messages[:begin], messages[begin:]
    _check(prompt, completion, "judged")
    return UnpairedRow(prompt, completion, desirable, row.origin, row.source, row.tools, row.meta)


def parted(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """(prompt, chosen, rejected) of two whole conversations: the prompt is what they share.

    Raises RowError with ``equal_sides``, or with ``no_shared_prompt`` where they part at something that isn't a reply.
    """
    chosen, rejected = _unweighted(chosen), _unweighted(rejected)
    if _are_same(chosen, rejected):
        raise RowError("equal_sides", "chosen and rejected are the same")
    shared = 0
    while chosen[shared : shared + 1] == rejected[shared : shared + 1]:
        shared += 1
    replies = chosen[shared:], rejected[shared:]
    if not all(turns and turns[0].role == "assistant" for turns in replies):
        raise RowError("no_shared_prompt", f"after {shared} shared turns the two sides do not go on with a reply each")
    return chosen[:shared], *replies


def is_whole(turns: Turns) -> bool:
    """Whether a side begins with its prompt: its first turn is not the assistant's."""
    return bool(turns) and turns[0].role != "assistant"


def _conversation(
    record: Foreign, used: Set[str], prompt: Turns, reply: Turns, name: str, origin: Origin, source: str
) -> SftRow:
    """The checked conversation of a prompt and one of its replies."""
    _check(prompt, reply, name)
    try:
        return sft_row(record, used, prompt + reply, origin, source)
    except RowError as error:
        raise RowError(error.reason, f"with the {name} reply: {error.detail}") from None


def _check(prompt: Turns, reply: Turns, name: str) -> None:
    """A prompt says something; the first and the last turn of a reply are the assistant's."""
    if not any(turn.content.strip() for turn in prompt):
        raise RowError("empty_prompt", "the prompt is blank or missing")
    if not reply:
        raise RowError("empty_assistant_turn", f"the {name} reply has no turns")
    if is_whole(reply) or reply[-1].role != "assistant":
        roles = ", ".join(turn.role for turn in reply)
        raise RowError("no_final_reply", f"the {name} reply is not the assistant's from first to last: {roles}"[:200])


def _unweighted(turns: Turns) -> Turns:
    return tuple(turn if turn.weight is None else replace(turn, weight=None) for turn in turns)


def _are_same(left: Turns, right: Turns) -> bool:
    """Whether two sides are equal but for white space around their texts."""
    return len(left) == len(right) and all(
        one.content.strip() == other.content.strip() and replace(one, content=other.content) == other
        for one, other in zip(left, right, strict=True)
    )
