"""What a format reads from a record, a draft, and the checked row that it becomes.

A draft names the keys it was made ``of``; what else of the record changes its meaning (:mod:`posttrain.data.formats.beside`) is read
when it becomes a row. Loss weights are left out of preferences: what is supervised there is the reply.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

from annotated_types import Ge

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, RowError, is_unicode, meta_of
from posttrain.data.formats.beside import MEANING, QUESTIONS, beside, placeholder
from posttrain.data.formats.turns import Turns, plain_turn, thoughts_of
from posttrain.types import Message, Origin, PairRow, PromptRow, Row, RowKind, SftRow, UnpairedRow

_TOOLS = frozenset(keys.TOOLS)
_LOOKED_AT = MEANING | {"chosen", "rejected"}
_BESIDE_TALK = _LOOKED_AT - set(QUESTIONS)
"""Beside turns a prompt is only a repetition of the first (UltraChat)."""
_OTHER_BYTES = "bytes that are not UTF-8 (Windows text: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW)"


class Talk(NamedTuple):
    """A conversation to imitate."""

    record: Foreign
    of: Set[str]
    turns: Turns

    def row(self, origin: Origin, source: str) -> SftRow:
        """Raises RowError, as all drafts do."""
        record, of, turns = self
        if not turns:
            raise RowError("empty_conversation", "no turns")
        looked_at = _LOOKED_AT if of.isdisjoint(keys.TALKS) else _BESIDE_TALK
        if _is_plain_talk(turns) and (record.keys() - of).isdisjoint(looked_at) and not _with_more(record, of):
            return SftRow(turns, origin, source, (), meta_of(record, of))  # nearly every row passes all that follows
        if all(turn.role != "assistant" for turn in turns):
            raise RowError("no_assistant_turn", f"roles: {', '.join(turn.role for turn in turns)}"[:200])
        _check_replies(turns)
        turns, tools, meta = _completed(record, of, turns)
        return SftRow(turns, origin, source, tools, meta)


class Prompt(NamedTuple):
    """A conversation that waits for its reply."""

    talk: Talk

    def row(self, origin: Origin, source: str) -> PromptRow:
        """The prompt alone."""
        given = self.talk.turns
        if not any(turn.content.strip() for turn in given if turn.role != "system"):
            raise RowError("empty_prompt", "the prompt is blank or missing")
        if given[-1].role == "assistant":
            raise RowError("has_reply", "the last turn is a reply, and a prompt waits for one")
        turns, tools, meta = _completed(*self.talk)
        return PromptRow(turns, origin, source, tools, meta)


class Pair(NamedTuple):
    """A prompt with a better and a worse reply, and by how much."""

    record: Foreign
    of: Set[str]
    prompt: Turns
    chosen: Turns
    rejected: Turns
    margin: float | None = None

    def row(self, origin: Origin, source: str) -> PairRow:
        """Both sides are checked as conversations."""
        of = {*self.of, "rationale"}  # beside two replies it says why one is better
        if (found := thoughts_of({key: value for key, value in self.record.items() if key not in of})) is not None:
            raise RowError("unclear_reasoning", f"{found[0]!r} stands beside two replies: whose it is can't be told")
        prompt, chosen, rejected = map(_unweighted, self[2:5])
        checked = []
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            _check_judged(prompt, side, name)
            try:
                checked.append(Talk(self.record, of, prompt + side).row(origin, source))
            except RowError as error:
                raise RowError(error.reason, f"with the {name} reply: {error.detail}") from None
        if _are_same(chosen, rejected):
            raise RowError("equal_sides", "chosen and rejected are the same")
        if self.margin is not None and self.margin < 0:
            raise RowError("labels_disagree", f"the rejected reply has the higher score, by {-self.margin:g}")
        if self.margin == 0:
            raise RowError("equal_scores", "chosen and rejected have the same score: neither is preferred")
        better = checked[0]
        begin = len(better.messages) - len(chosen)  # a system turn may have come before
        meta = better.meta if self.margin is None else {**better.meta, "margin": self.margin}
        return PairRow(better.messages[:begin], chosen, rejected, origin, source, better.tools, meta)


class Judgement(NamedTuple):
    """A conversation, and whether its last turns are good."""

    talk: Talk
    judged: int
    """How many turns are judged."""
    desirable: bool

    def row(self, origin: Origin, source: str) -> UnpairedRow:
        """The last turns with their label."""
        row = self.talk.row(origin, source)
        messages = _unweighted(row.messages)
        begin = len(messages) - self.judged
        prompt, completion = messages[:begin], messages[begin:]
        _check_judged(prompt, completion, "judged")
        return UnpairedRow(prompt, completion, self.desirable, origin, source, row.tools, row.meta)


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """Which pairs are made of rated or ranked answers."""

    take: Literal["best_worst", "all"] = "best_worst"
    """The best answer against the worst, or every answer against every worse one."""
    min_margin: Annotated[float, Ge(0)] = 0.0
    """The least difference in score (or rank) of a pair. Answers of equal score are never one."""


class Ranked(NamedTuple):
    """Rated or ranked answers to one prompt, with their scores: higher is better, None where there is no score."""

    record: Foreign
    of: Set[str]
    prompt: Turns
    answers: tuple[tuple[float | None, str], ...]

    def pairs(self, rule: PairRule, origin: Origin, source: str) -> tuple[PairRow, ...]:
        """The pairs, each with the difference in score as ``meta["margin"]``; at least one.

        Blank answers and those without a score are passed over. Of equal scores the answer that stands first is taken. Raises
        RowError with ``too_few_answers``, ``margin_too_small``, or the reason why none of the pairs can be used.
        """
        usable = [(score, text) for score, text in self.answers if score is not None and text.strip()]
        if len(usable) < 2:
            detail = f"{len(usable)} of {len(self.answers)} answers have both a text and a score"
            raise RowError("too_few_answers", detail)
        ordered = sorted(usable, key=_score, reverse=True)
        compared = combinations(ordered, 2) if rule.take == "all" else [(ordered[0], min(usable, key=_score))]
        widest = ordered[0][0] - ordered[-1][0]
        detail = f"the scores differ by {widest:g}, wanted are {rule.min_margin:g} and more"
        problem = RowError("margin_too_small", detail)
        found = []
        for (better, good), (worse, bad) in compared:
            margin = better - worse
            if margin <= 0 or margin < rule.min_margin:
                continue
            sides = (Message("assistant", good),), (Message("assistant", bad),)
            try:
                found.append(Pair(self.record, self.of, self.prompt, *sides, margin).row(origin, source))
            except RowError as error:
                problem = error
        if not found:
            raise problem
        return tuple(found)


def _score(answer: tuple[float, str]) -> float:
    return answer[0]


AnyDraft = Talk | Prompt | Pair | Judgement | Ranked
Draft = TypeVar("Draft", bound=AnyDraft, covariant=True)


@dataclass(frozen=True, slots=True)
class Format(Generic[Draft]):
    """A foreign row format: how it is recognised, and what is read from a record of it (or a :class:`RowError` raised)."""

    name: str
    detect: Callable[[Foreign], bool]
    read: Callable[[Foreign], Draft]
    kind: RowKind = "conversations"
    """What its rows say."""
    rated: bool = False
    """Whether its records are rated or ranked answers, of which a :class:`PairRule` makes pairs."""

    def parse(self, record: Foreign, origin: Origin, source: str) -> Row | Ranked:
        """The checked row of a record, or its ranked answers. Raises :class:`RowError`."""
        draft = self.read(record)
        return draft if isinstance(draft, Ranked) else draft.row(origin, source)


def having(*names: str) -> Callable[[Foreign], bool]:
    """Whether a record has all of these keys."""
    wanted = set(names)
    return lambda record: record.keys() >= wanted


# ---- sides of a pair -----------------------------------------------------------------------------------------------


def parted(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """(prompt, chosen, rejected) of two whole conversations: the prompt is what they share."""
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


def _check_judged(prompt: Turns, reply: Turns, name: str) -> None:
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


# ---- checks of all rows --------------------------------------------------------------------------------------------


def _completed(
    record: Foreign, of: Set[str], turns: Turns
) -> tuple[Turns, tuple[Mapping[str, Any], ...], Mapping[str, Any]]:
    """(turns, tools, meta) with all that stands beside a conversation."""
    found = beside(record, frozenset(of), turns)
    _check_replies(found.turns)
    for number, turn in enumerate(found.turns, 1):
        texts = (turn.content, turn.reasoning, turn.name, turn.tool_call_id)
        calls = (part for call in turn.tool_calls for part in (call.name, call.arguments, call.id))
        if not all(is_unicode(text or "") for text in (*texts, *calls)):
            raise RowError("invalid_unicode", f"turn {number} holds a lone surrogate or {_OTHER_BYTES}")
    if found.tools and not is_unicode(json.dumps(found.tools, ensure_ascii=False)):
        raise RowError("invalid_unicode", f"the tools hold a lone surrogate or {_OTHER_BYTES}")
    return found.turns, found.tools, meta_of(record, of | found.used)


def _check_replies(turns: Turns) -> None:
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.tool_calls and not turn.content.strip():
            raise RowError("empty_assistant_turn", f"turn {number} has neither text nor tool calls")


def _with_more(record: Foreign, of: Set[str]) -> bool:
    """Whether tools may stand in one of the turns."""
    for key, value in record.items():
        if key not in of:
            continue
        if isinstance(value, str):
            if value.lstrip()[:1] == "[":
                return True
        elif isinstance(value, list):
            for turn in value:
                if isinstance(turn, dict) and not _TOOLS.isdisjoint(turn):
                    return True
        elif isinstance(value, dict) and plain_turn(value) is None:
            return True
    return False


def _is_plain_talk(turns: Turns) -> bool:
    """Whether these turns surely are a good conversation: without calls, nothing empty, no broken characters, no images."""
    answered = False
    for turn in turns:
        text = turn.content
        if turn.tool_calls or turn.reasoning is not None or not (text.isascii() or is_unicode(text)):
            return False
        if "<" in text and placeholder(text) is not None:
            return False
        if turn.role == "assistant":
            answered = True
            if not text or text.isspace():
                return False
        elif turn.role == "tool":
            return False
    return answered
