"""What stands beside a conversation and changes what it means: every such column is used, or the row is refused (docs/data-formats.md).

A passage that the prompt says already (as a rendered prompt does) is not said twice. A short one may occur in it by chance: it is
said already only where it stands by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, RowError, items, kind_of, objects
from posttrain.data.formats.choices import COLUMNS, Option, offered
from posttrain.data.formats.turns import (
    ROLE_NAMES,
    Turns,
    are_turns,
    media_reason,
    messages_in,
    said_in,
    talk,
    thoughts_of,
    weight_of,
)
from posttrain.types import Message

_PLACEHOLDER = re.compile(
    r"(?<![`\w])<\|?(image|audio|video)(?:_?pad|[_ ]?\d+|_?placeholder|here)?\|?>(?!`)", re.IGNORECASE
)
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_TAG = re.compile(r"\s*(?:html5?\s+|xml\s+|svg\s+|rss\s+)?(?:tags?|elements?|attributes?|标签|元素)\b", re.IGNORECASE)
_MARKUP = re.compile(
    r"\b(?:html5?|xhtml|xml|svg|rss|css|dom|tags?|elements?|markup)\b|标签|</?[a-z]\w*[ >/]", re.IGNORECASE
)
"""What shows that a text speaks of markup."""
_IMAGE_PATH = re.compile(r"<img>[^<>]*\.(?:jpe?g|png|webp|gif|bmp)</img>")
_SHORT = 30
"""Characters below which a text may occur in another by chance; an ideograph counts twice."""
_NAME_OF_A_FILE = re.compile(r"\S+\.\w{1,5}|(?:https?|file|s3|gs)://\S+")
_FAULT = re.compile(
    r"\b(?:answers?|answered|response|repl(?:y|ies)|output|solution|assistant|explanation|explains?|summary|model|bot|"
    r"(?:in)?correct(?:ly)?|wrong(?:ly)?|errors?|mistakes?|(?:in)?accura\w+|should|could|would|missing|misses|missed|fail\w*|lacks?|"
    r"lacking|improve\w*|better|unclear|vague|false|untrue|not|no|never|only|but|however|instead)\b|n't\b|"
    r"回答|回复|答案|错|不|没|未|应|缺|改进|但|遗漏",
    re.IGNORECASE,
)
"""What a text says that finds fault with a reply, or speaks of it."""


class Whole(NamedTuple):
    """A conversation with what stood beside it, and the keys that were used for it."""

    turns: Turns
    tools: tuple[Mapping[str, Any], ...]
    used: frozenset[str]


_PLAIN = ("input", "instruction")
QUESTIONS = ("prompt", "question", "query", "problem")
_NOTHING = frozenset(("none", "null", "nan", "n/a"))
"""Texts by which a table says that there is nothing (as Python prints None into a CSV)."""
_MAY_BE_NOTHING = frozenset((*keys.BESIDE, *keys.ALL_MEDIA))
MEANING = _MAY_BE_NOTHING.union(keys.MARKS, keys.CRITIQUES, _PLAIN, QUESTIONS, *COLUMNS)
"""Every key that is looked at beside a conversation."""


def beside(record: Foreign, taken: frozenset[str], turns: Turns) -> Whole:
    """The conversation with everything that changes its meaning. ``taken``: the keys that the turns were made from."""
    free = {
        key: value
        for key, value in record.items()
        if key in MEANING and key not in taken and keys.is_present(value) and not _is_nothing(key, value)
    }
    refuse_media(free, turns)
    _refuse_critique(free)
    _refuse_one_side(record, taken)
    tools, tool_keys = _tools(record, free, taken)
    used = {*tool_keys, *(key for key in record if key in MEANING and key not in taken and key not in free)}
    if not free.keys().isdisjoint(keys.MARKS):
        turns = _marked(record, free, taken, turns, used)
    turns = _with_passages(free, turns, used, taken)
    turns = _thought(free, turns, used)
    for key in (*keys.HISTORIES, *keys.CONTEXTS):
        if key in free and (key in keys.HISTORIES or _is_talk(free[key])):
            earlier = _history(free, key)
            used.add(key)
            if turns[: len(earlier)] != earlier:
                at = 1 if turns and turns[0].role == "system" else 0
                turns = (*turns[:at], *earlier, *turns[at:])
            break
    for key in keys.SYSTEMS:
        if key in free:
            used.add(key)
            turns = _with_system(turns, free[key], key)
    return Whole(turns, tools, frozenset(used))


def refuse_media(record: Foreign, turns: Sequence[Message]) -> None:
    """Raises RowError where a row needs what a text model can't be given."""
    if (found := media_reason(record)) is not None:
        raise RowError(found[0], f"{found[1]!r}: a text model can't be given it")
    for number, turn in enumerate(turns, 1):
        if turn.role != "tool" and (medium := placeholder(turn.content)) is not None:
            raise RowError(f"needs_{medium}", f"turn {number} holds a placeholder for {medium}")


def placeholder(text: str) -> str | None:
    """The medium that a placeholder in a text stands for.

    An element that is closed is XML, one in quotes or in a block of code is spoken of, and so is one within a line of a text about
    markup, or one that is called a tag. What stands first or last in its line waits for an image.
    """
    if "<" not in text or (_PLACEHOLDER.search(text) is None and "<img>" not in text):
        return None
    if _IMAGE_PATH.search(text):
        return "image"
    bare = _FENCE.sub("", text)
    for found in _PLACEHOLDER.finditer(bare):
        line_before = bare[: found.start()].rpartition("\n")[2].strip()
        line_after = bare[found.end() :].partition("\n")[0].strip()
        closed = f"</{found[1].lower()}>" in text.lower() or _TAG.match(bare, found.end()) is not None
        alone = "|" in found[0] or any(sign.isdigit() for sign in found[0]) or not (line_before and line_after)
        if not closed and (alone or _MARKUP.search(_PLACEHOLDER.sub("", bare)) is None):
            return found[1].lower()
    return None


def _is_nothing(key: str, value: Any) -> bool:
    return isinstance(value, str) and len(value) < 5 and value.strip().lower() in _NOTHING and key in _MAY_BE_NOTHING


def _refuse_critique(free: Foreign) -> None:
    for key in keys.CRITIQUES:
        value = free.get(key)
        if value is None or isinstance(value, bool | int | float):
            continue
        if key != "feedback" or (len(str(value).split()) > 2 and _FAULT.search(str(value)) is not None):
            raise RowError("criticised", f"{key!r} finds fault with the reply: it is not there to be imitated")


def _with_system(turns: Turns, system: Any, key: str) -> Turns:
    """The turns with a system prompt; two that differ are refused, for one of them would be ignored."""
    if not isinstance(system, str | list | Mapping):
        raise RowError("wrong_shape", f"{key!r} is {kind_of(system)}, expected text")
    system = said_in(system)
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
    for holder in (free, *_turn_objects(record, taken)):
        for key in keys.TOOLS:
            if keys.is_present(one := holder.get(key)):  # one tool, a list, or its JSON text
                given = [one] if isinstance(one, Mapping) else map(dict, objects(holder, key))
                found += [tool for tool in given if tool not in found]
    return tuple(found), used


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


def _history(record: Foreign, key: str) -> Turns:
    """The turns under a key: pairs of question and answer, exchanges, or messages."""
    if isinstance(text := record[key], str) and text.lstrip()[:1] not in ("[", "{"):
        detail = f"{key!r} is text, expected turns (a passage is named so: columns: {{context: {key}}})"
        raise RowError("wrong_shape", detail)
    found = items(record, key)
    texts = all(isinstance(turn, str) for turn in found) and len(found) % 2 == 0
    if texts or all(isinstance(turn, Mapping | list | tuple) for turn in found):
        return talk(found)
    raise RowError("wrong_shape", f"{key!r} holds {kind_of(found[0])}, expected [question, answer] pairs or messages")


def _with_passages(free: Foreign, turns: Turns, used: set[str], taken: frozenset[str]) -> Turns:
    """The turns with passages before, other prompts around, input and options after the first question."""
    place = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if place is None:
        asides = [key for key in (*keys.CONTEXTS, *keys.OPTIONS) if key in free and not _is_talk(free[key])]
        if asides:
            raise RowError("wrong_shape", f"{asides[0]!r} stands beside a conversation without a turn of the user")
        return turns
    said = "\n".join(turn.content for turn in turns if turn.role != "assistant")
    question = turns[place].content
    for key in keys.CONTEXTS:
        if (passage := _passage(free.get(key), key)) is not None:
            used.add(key)
            if not _says(said, passage):
                question = f"{passage}\n\n{question}"
    if taken.isdisjoint(keys.TALKS):
        for key, join in _joins(taken):
            if isinstance(text := free.get(key), str):
                used.add(key)
                if not _says_again(key, text, said, turns[place].content):
                    question = join.format(text, question)
    columns, listed = offered(free)
    used.update(columns)
    if listed and not _lists(said, listed):
        question = f"{question}\n" + "\n".join(option.line for option in listed)
    return (*turns[:place], replace(turns[place], content=question), *turns[place + 1 :])


def _joins(taken: frozenset[str]) -> Iterator[tuple[str, str]]:
    """The other prompts that may stand beside the one that was taken, and how they are joined (``{0}``) to it (``{1}``)."""
    yield "instruction", "{0}\n{1}"
    if "instruction" in taken:
        yield from ((key, "{1}\n{0}") for key in QUESTIONS)
    elif "prompt" in taken:
        yield from ((key, "{1}\n{0}") for key in ("question", "problem"))
    else:
        yield "prompt", "{0}\n{1}"
    yield "input", "{1}\n{0}"


def _says_again(key: str, text: str, said: str, question: str) -> bool:
    """Whether another prompt is said already, is the name of a template, or the question with more around it and between its lines."""
    if _repeats(said, text) if key in QUESTIONS else _says(said, text):
        return True
    word = text.isascii() and len(text.split()) == 1
    return key == "prompt" and (word or all(_repeats(text, line) for line in question.splitlines()))


def _repeats(said: str, text: str) -> bool:
    return " ".join(text.split()) in " ".join(said.split())


def _says(said: str, text: str) -> bool:
    """Whether a text says another one; of a short one whether it stands by itself, on a line, after a colon, or in quotes."""
    wanted = " ".join(text.split())
    if not _repeats(said, text):
        return False
    if "\n" in text.strip() or len(wanted) + sum(character >= "\u2e80" for character in wanted) >= _SHORT:
        return True
    lines = "\n".join(" ".join(line.split()) for line in said.splitlines())
    alone = r"(?:^|[:\uff1a>\"“‘「'(\[`]) ?" + re.escape(wanted) + r"(?:$|[<\"”’」')\]`])"
    return re.search(alone, lines, re.MULTILINE) is not None


def _lists(said: str, options: Sequence[Option]) -> bool:
    """Whether a text lists these options, in order, with no more than separators, labels and an *or* between them."""
    blank = r"[\s\W_]*"
    between = rf"{blank}(?:(?:or|and|或者?|还是|和){blank})?(?:\w{{1,2}}[.):、\uff1a]{blank})?"
    texts = (r"\s+".join(map(re.escape, option.text.split())) for option in options)
    return re.search(r"(?<!\w)" + between.join(texts), said) is not None


def _is_talk(value: Any) -> bool:
    return isinstance(value, list) and are_turns(value)


def _passage(value: Any, key: str) -> str | None:
    """The text of a passage, or of several; None where there is none, or a number, the name of a file, or turns."""
    if value is None or isinstance(value, bool | int | float) or _is_talk(value):
        return None
    if isinstance(value, str):
        return None if _NAME_OF_A_FILE.fullmatch(value.strip()) else value
    parts = _listed(value) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    texts = [part if isinstance(part, str) else _document(part, key) for part in parts]
    return "\n\n".join(text for text in texts if text.strip())


def _listed(passages: Foreign) -> list[Any]:
    """Passages whose fields are lists, as a list: ``{"title": [...], "sentences": [[...]]}`` (HotpotQA), ``{"contexts": [...]}``."""
    texts = next((passages[key] for key in ("sentences", "contexts", "text", "content") if key in passages), None)
    if not isinstance(texts, list):
        return [passages]
    joined = [
        "".join(text) if isinstance(text, list) and all(isinstance(part, str) for part in text) else text
        for text in texts
    ]
    titles = passages.get("title")
    if not isinstance(titles, list) or len(titles) != len(joined):
        return joined
    return [{"title": title, "text": text} for title, text in zip(titles, joined, strict=True)]


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


def _thought(free: Foreign, turns: Turns, used: set[str]) -> Turns:
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


def _is_switch(key: str, value: Any) -> bool:
    """Whether one value says of all replies whether they are trained on; a number beside a row may be anything."""
    switch = isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))
    return switch and key not in (*keys.WEIGHTS, "mask", "train_detail")


def _marked(record: Foreign, free: Foreign, taken: frozenset[str], turns: Turns, used: set[str]) -> Turns:
    """The turns with the weights of a list that has one mark for every turn, or for every reply, or of one mark for all.

    A ``mask`` in a word names the role that is not trained on (NeMo); only that of the user can be followed.
    """
    written: Any = next((record[key] for key in keys.TALKS if key in taken and key in record), None)
    for key in keys.MARKS:
        marks = free.get(key)
        if key == "mask" and isinstance(marks, str) and (role := ROLE_NAMES.get(marks.strip().lower())) is not None:
            used.add(key)
            if role not in ("user", "system"):
                raise RowError("unclear_mark", f"'mask' is {marks[:80]!r}; only replies can be trained on")
        if _is_switch(key, marks):
            used.add(key)
            turns = tuple(_marked_too(turn, key, marks) for turn in turns)
        if not isinstance(marks, list):
            continue
        used.add(key)
        objects_too = isinstance(written, list) and all(isinstance(turn, Mapping) for turn in written)
        if objects_too and len(written) == len(marks) and talk(written) == turns:
            # before the text and the calls of a turn are joined, so that each keeps the weight that it was given
            written = [{**turn, key: mark} for turn, mark in zip(written, marks, strict=True)]
            turns = talk(written)
            continue
        replies = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        if len(marks) == len(turns):
            weights = dict(enumerate(marks))
        elif len(marks) == len(replies):
            weights = dict(zip(replies, marks, strict=True))
        else:
            detail = f"{key!r} has {len(marks)} marks for {len(turns)} turns with {len(replies)} replies"
            raise RowError("wrong_shape", detail)
        turns = tuple(
            _marked_too(turn, key, weights[number]) if number in weights else turn for number, turn in enumerate(turns)
        )
    return turns


def _marked_too(turn: Message, key: str, mark: Any) -> Message:
    """A turn with one more mark beside the weight it has; those of others than the assistant have none."""
    if turn.role != "assistant":
        return turn
    own = "loss_weight" if key == "weight" else "weight"
    return replace(turn, weight=weight_of({own: turn.weight, key: mark, "content": turn.content}))
