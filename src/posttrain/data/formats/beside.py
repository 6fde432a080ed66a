"""What stands beside a conversation and changes what it means: every such column is used, or the row is refused.

::

    images, audio, video             needs_image, needs_audio, needs_video; so are placeholders as ``<image>`` in a text
    system prompt                    the first turn; two_system_prompts where there is one that says another thing
    history                          the turns before
    context, passage, document ...   before the question, with a blank line between; ``input`` after it
    options of a question            after the question, one a line, with their letters
    tools, functions                 the tools of the row, also where they stand in a turn
    reasoning                        of the last reply
    marks of turns as lists          the weights of the turns
    a critique of the reply          criticised: a reply with which fault is found is not one to imitate

A passage that the prompt says already (as a rendered prompt does) is not said twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, RowError, items, kind_of, objects
from posttrain.data.formats.choices import options_of
from posttrain.data.formats.turns import media_reason, messages_in, talk, thoughts_of, weight_of
from posttrain.types import Message

_PLACEHOLDER = re.compile(r"(?<![`\w])<\|?(image|audio|video)(?:_?pad|_?\d+|_placeholder)?\|?>(?!`)")
_WORDS_OF_A_VERDICT = 2
"""So many words of a feedback may be a verdict; more are a critique."""
_IMAGE_PATH = re.compile(r"<img>[^<>]*\.(?:jpe?g|png|webp|gif|bmp)</img>")


@dataclass(frozen=True, slots=True)
class Whole:
    """A conversation with what stood beside it."""

    turns: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    used: frozenset[str]
    """The keys that were used for it."""
    before: int
    """How many turns now stand before those that were given."""


_PLAIN = ("input", "instruction")
MEANING = frozenset(
    (
        *(*keys.SYSTEMS, *keys.TOOLS, *keys.HISTORIES, *keys.CONTEXTS, *keys.OPTIONS, *keys.REASONINGS, *keys.MARKS),
        *(*keys.CRITIQUES, *(key for names in keys.MEDIA.values() for key in names), *_PLAIN),
    )
)
"""Every key that is looked at beside a conversation."""


def beside(record: Foreign, taken: frozenset[str], turns: tuple[Message, ...]) -> Whole:
    """The conversation with everything that changes its meaning. ``taken``: the keys that the turns were made from."""
    free = {
        key: value for key, value in record.items() if key in MEANING and key not in taken and keys.is_present(value)
    }
    refuse_media(free, turns)
    _refuse_critique(free)
    _refuse_one_side(record, taken)
    tools, tool_keys = _tools(record, free, taken)
    used = {*tool_keys, *(key for key in record if key in MEANING and not keys.is_present(record[key]))}
    if any(key in free for key in keys.MARKS) and _has_marks(free):
        turns = _marked(free, turns, used)
    given = len(turns)
    turns = _asked_with(free, turns, used, talk_given=not taken.isdisjoint(keys.TALKS))
    turns = _thought(free, turns, used)
    for key in keys.HISTORIES:
        if key in free:
            earlier = history(free, key)
            used.add(key)
            if turns[: len(earlier)] != earlier:
                at = 1 if turns and turns[0].role == "system" else 0
                turns = (*turns[:at], *earlier, *turns[at:])
            break
    for key in keys.SYSTEMS:
        if key in free:
            used.add(key)
            turns = _with_system(turns, free[key], key)
    return Whole(turns, tools, frozenset(used), len(turns) - given)


def refuse_media(record: Foreign, turns: Sequence[Message]) -> None:
    """Raises RowError where a row needs what a text model can't be given."""
    if (found := media_reason(record)) is not None:
        raise RowError(found[0], f"{found[1]!r}: a text model can't be given it")
    for number, turn in enumerate(turns, 1):
        if turn.role != "tool" and (medium := placeholder(turn.content)) is not None:
            raise RowError(f"needs_{medium}", f"turn {number} holds a placeholder for {medium}")


def placeholder(text: str) -> str | None:
    """The medium that a placeholder in a text stands for; an element that is closed is XML, one in quotes is spoken of."""
    if "<" not in text or not any(word in text for word in ("image", "audio", "video", "<img>")):
        return None
    if _IMAGE_PATH.search(text):
        return "image"
    found = _PLACEHOLDER.search(text)
    return None if found is None or f"</{found[1]}>" in text else found[1]


def _refuse_critique(free: Foreign) -> None:
    for key in keys.CRITIQUES:
        value = free.get(key)
        if value is None or isinstance(value, bool | int | float):
            continue
        if key != "feedback" or len(str(value).split()) > _WORDS_OF_A_VERDICT:
            raise RowError("criticised", f"{key!r} finds fault with the reply: it is not there to be imitated")


def _with_system(turns: tuple[Message, ...], system: Any, key: str) -> tuple[Message, ...]:
    """The turns with a system prompt; two that differ are refused, for one of them would be ignored."""
    if not isinstance(system, str):
        raise RowError("wrong_shape", f"{key!r} is {kind_of(system)}, expected text")
    own = [turn.content for turn in turns if turn.role == "system"]
    if not own:
        return (Message("system", system), *turns)
    if any(text.strip() == system.strip() for text in own):
        return turns
    raise RowError(
        "two_system_prompts", f"{key!r} says another thing than the system turn: {system[:60]!r}, {own[0][:60]!r}"
    )


def _refuse_one_side(record: Foreign, taken: frozenset[str]) -> None:
    found = [key for key in ("chosen", "rejected") if key not in taken and keys.is_present(record.get(key))]
    if len(found) == 1:
        fix = "name both sides: columns: {chosen: ..., rejected: ...}"
        raise RowError("one_side", f"{found[0]!r} stands beside the reply without its other side; {fix}")


# ---- tools ---------------------------------------------------------------------------------------------------------


def _tools(record: Foreign, free: Foreign, taken: frozenset[str]) -> tuple[tuple[Mapping[str, Any], ...], set[str]]:
    """The definitions of tools, of the record and of its turns, each once; and their keys."""
    found: list[Mapping[str, Any]] = []
    used = {key for key in keys.TOOLS if key in record}
    holders: list[Foreign] = [free, *_turn_objects(record, taken)]
    for holder in holders:
        for key in keys.TOOLS:
            if keys.is_present(holder.get(key)):
                found += [tool for tool in definitions(holder, key) if tool not in found]
    return tuple(found), used


def definitions(holder: Foreign, key: str) -> list[Mapping[str, Any]]:
    """The tools under a key: a list, its JSON text, or one tool."""
    if isinstance(holder[key], Mapping):
        return [holder[key]]
    return [dict(tool) for tool in objects(holder, key)]


def _turn_objects(record: Foreign, taken: frozenset[str]) -> Iterator[Foreign]:
    for key in taken:
        value = record.get(key)
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            value = messages_in(value)
        if isinstance(value, Mapping):
            value = [value, *(value["messages"] if isinstance(value.get("messages"), list) else [])]
        if isinstance(value, list):
            yield from (turn for turn in value if isinstance(turn, Mapping))


# ---- turns ---------------------------------------------------------------------------------------------------------


def history(record: Foreign, key: str) -> tuple[Message, ...]:
    """The turns under a key: pairs of question and answer, exchanges, or messages."""
    found = items(record, key)
    if all(isinstance(turn, Mapping | list | tuple) for turn in found):
        return talk(found)
    if len(found) % 2 == 0 and all(isinstance(turn, str) for turn in found):
        return talk(found)
    raise RowError("wrong_shape", f"{key!r} holds {kind_of(found[0])}, expected [question, answer] pairs or messages")


def _asked_with(free: Foreign, turns: tuple[Message, ...], used: set[str], talk_given: bool) -> tuple[Message, ...]:
    """The turns with passages before, input and options after the first question."""
    place = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if place is None:
        asides = [key for key in (*keys.CONTEXTS, *keys.OPTIONS) if key in free]
        if asides:
            raise RowError("wrong_shape", f"{asides[0]!r} stands beside a conversation without a turn of the user")
        return turns
    said = " ".join(" ".join(turn.content for turn in turns if turn.role != "assistant").split())
    question = turns[place].content
    for key in keys.CONTEXTS:
        if (passage := _passage(free.get(key), key)) is not None:
            used.add(key)
            if not _says(said, passage):
                question = f"{passage}\n\n{question}"
    if not talk_given:
        for key, join in (("instruction", "{0}\n{1}"), ("input", "{1}\n{0}")):
            if isinstance(text := free.get(key), str):
                used.add(key)
                if not _says(said, text):
                    question = join.format(text, question)
    for key in keys.OPTIONS:
        if key in free and (options := options_of(free[key])) is not None:
            used.add(key)
            if not all(_says(said, option.text) for option in options):
                question = f"{question}\n" + "\n".join(option.line for option in options)
    return (*turns[:place], replace(turns[place], content=question), *turns[place + 1 :])


def _says(said: str, text: str) -> bool:
    return " ".join(text.split()) in said


def _passage(value: Any, key: str) -> str | None:
    """The text of a passage, or of several; None where there is none, or a number."""
    if value is None or isinstance(value, bool | int | float):
        return None
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    texts = [part if isinstance(part, str) else _document(part, key) for part in parts]
    return "\n\n".join(text for text in texts if text.strip())


def _document(part: Any, key: str) -> str:
    """A passage with its title, in one of the usual forms."""
    if isinstance(part, list) and part and all(isinstance(line, str) for line in part):
        return "\n".join(part)
    if isinstance(part, Mapping):
        text = next(
            (part[name] for name in ("text", "content", "passage", "page_content", "body") if part.get(name)), None
        )
        if isinstance(text, str):
            title = part.get("title")
            return f"{title}\n{text}" if isinstance(title, str) and title.strip() else text
    raise RowError("wrong_shape", f"{key!r} holds {kind_of(part)}, expected text or passages with a text")


def _thought(free: Foreign, turns: tuple[Message, ...], used: set[str]) -> tuple[Message, ...]:
    """The turns, the last reply with the reasoning that stood beside it."""
    found = thoughts_of(free)
    if found is None:
        return turns
    place = next((number for number in reversed(range(len(turns))) if turns[number].role == "assistant"), None)
    if place is None:
        return turns
    used.add(found[0])
    reply = turns[place]
    if reply.reasoning is not None or _says(" ".join(reply.content.split()), found[1]):
        return turns
    return (*turns[:place], replace(reply, reasoning=found[1]), *turns[place + 1 :])


def _has_marks(free: Foreign) -> bool:
    return any(isinstance(free.get(key), list) for key in keys.MARKS) or isinstance(free.get("mask"), str)


def _marked(free: Foreign, turns: tuple[Message, ...], used: set[str]) -> tuple[Message, ...]:
    """The turns with the weights of a list that has one mark for every turn, or for every reply.

    A ``mask`` in a word names the role that is not trained on (NeMo); only that of the user can be followed.
    """
    for key in keys.MARKS:
        marks = free.get(key)
        if key == "mask" and isinstance(marks, str):
            used.add(key)
            if marks.strip().lower() not in ("user", "human", "system"):
                raise RowError("unclear_mark", f"'mask' is {marks[:80]!r}; only replies can be trained on")
        if not isinstance(marks, list):
            continue
        used.add(key)
        replies = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        if len(marks) == len(turns):
            weights = dict(enumerate(marks))
        elif len(marks) == len(replies):
            weights = dict(zip(replies, marks, strict=True))
        else:
            raise RowError(
                "wrong_shape", f"{key!r} has {len(marks)} marks for {len(turns)} turns with {len(replies)} replies"
            )
        turns = tuple(
            replace(turn, weight=weight_of({key: weights[number], "content": turn.content}))
            if turn.role == "assistant"
            else turn
            for number, turn in enumerate(turns)
        )
    return turns
