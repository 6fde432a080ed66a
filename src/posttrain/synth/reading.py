"""How answers are read: tasks with input and output in any of the forms that models write them in, and the rules for instructions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from posttrain.data.text import tokens
from posttrain.synth.base import Dropped, Made
from posttrain.synth.pool import Similar
from posttrain.types import Message

_LABEL = re.compile(
    r"^[\s*#]*(?:\d+\s*[.:\uff0e\u3001)]\s*)?\**(?P<name>instruction|task|input|output|answer|\u6307\u4ee4|\u4efb\u52a1|\u8f93\u5165|\u8f93\u51fa|\u56de\u7b54)"
    r"\**\s*[:\uff1a]\**[^\S\n]*",
    re.IGNORECASE | re.MULTILINE,
)
_FIELDS = {
    **dict.fromkeys(("instruction", "task", "\u6307\u4ee4", "\u4efb\u52a1"), "instruction"),
    **dict.fromkeys(("input", "\u8f93\u5165"), "input"),
    **dict.fromkeys(("output", "answer", "\u8f93\u51fa", "\u56de\u7b54"), "output"),
}
_NO_INPUT = re.compile(
    r"^[<(\[\uff08]?\s*(?:no\s?input|none|n/a|\u65e0|\u65e0\u8f93\u5165)\s*[>)\]\uff09]?[.\u3002]?$", re.IGNORECASE
)


class Instance(NamedTuple):
    """An input (may be empty) with its output."""

    input: str
    output: str


class WrittenTask(NamedTuple):
    """An instruction with input and output."""

    instruction: str
    input: str
    output: str


def json_objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in a text, those in lists too, whatever prose stands around them.

    >>> list(json_objects('Sure! [{"a": 1}, {"a": 2}] Hope this helps {x}'))
    [{'a': 1}, {'a': 2}]
    """
    decoder, at = json.JSONDecoder(strict=False), 0
    while (begin := re.compile(r"[\[{]").search(text, at)) is not None:
        try:
            value, at = decoder.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            at = begin.start() + 1
            continue
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Mapping))


def labelled(text: str) -> list[tuple[str, str]]:
    """(field, text) of every part of a text that begins with a label such as ``Input:`` or ``\u8f93\u51fa\uff1a``, in order."""
    found = list(_LABEL.finditer(text))
    ends = [*(one.start() for one in found[1:]), len(text)][: len(found)]
    return [
        (_FIELDS[one["name"].lower()], text[one.end() : end].strip().removesuffix("###").strip())
        for one, end in zip(found, ends, strict=True)
    ]


def instances(text: str, *, output_first: bool) -> list[Instance]:
    r"""The pairs of input and output in an answer; an output without an input stands alone.

    >>> instances("Input: <noinput>\nOutput: Yes.", output_first=False)
    [Instance(input='', output='Yes.')]
    """
    parts = [part for part in labelled(text) if part[0] != "instruction"]
    found: list[Instance] = []
    held = ""
    for name, value in parts:
        content = "" if name == "input" and _NO_INPUT.match(value) else value
        if output_first:
            if name == "input" and held:
                found.append(Instance(content, held))
            held = content if name == "output" else ""
        elif name == "output":
            found.append(Instance(held, content))
            held = ""
        else:
            held = content
    if output_first and held:
        found.append(Instance("", held))
    return found


def written_tasks(text: str) -> list[WrittenTask]:
    """The tasks of an answer in the form of Alpaca's prompt (``###`` between them, labels before the fields) or as JSON objects."""
    objects = [one for one in json_objects(text) if "instruction" in one]
    if objects:
        return [
            WrittenTask(
                *(
                    ("" if _NO_INPUT.match(value) else value)
                    for value in (_text(one, name) for name in WrittenTask._fields)
                )
            )
            for one in objects
        ]
    found: list[dict[str, str]] = []
    for name, value in labelled(text):
        if name == "instruction":
            found.append({name: value})
        elif found:
            found[-1].setdefault(name, "" if _NO_INPUT.match(value) else value)
    return [WrittenTask(one["instruction"], one.get("input", ""), one.get("output", "")) for one in found]


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name, "")
    return (
        value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if value is not None else ""
    )


# ---- rules -----------------------------------------------------------------------------------------------------------


def check_words(least: int, most: int) -> None:
    """Raise ValueError where no length is allowed."""
    if least > most:
        raise ValueError(f"min_words {least} is above max_words {most}")


def instruction_fault(
    text: str, *, least: int, most: int, blacklist: Sequence[str] = (), openings: Sequence[str] = ()
) -> Dropped | None:
    """Why an instruction is not one that a text model should learn from; None where it may stay.

    ``least`` and ``most`` tokens (a CJK character is one). ``blacklist``: words it may not have, ``openings``: how it may not begin.
    """
    words = tokens(text)
    low = text.casefold()
    if len(words) < least:
        return Dropped("too_short", f"{len(words)} words, at least {least}", text)
    if len(words) > most:
        return Dropped("too_long", f"{len(words)} words, at most {most}", text)
    for entry in blacklist:
        part = entry.casefold()
        found = re.search(rf"\b{re.escape(part)}\b", low) if part.isascii() else part in low
        if found:
            return Dropped("blacklisted", f"has the word {entry!r}", text)
    for opening in openings:
        if low.lstrip().startswith(opening.casefold()):
            return Dropped("blacklisted", f"begins with {opening!r}", text)
    first = text.strip()[:1]
    if not (first.isalnum() or first in "\"'(\u201c\u2018\u300a\u300c\uff08\u300e`"):
        return Dropped("bad_opening", f"begins with {first!r}", text)
    return None


def task_row(
    task: str,
    one: Instance,
    parents: tuple[str, ...],
    similar: Sequence[Similar],
    meta: Mapping[str, Any] | None = None,
) -> Made:
    """A task with one input and output as a conversation of one turn."""
    question = f"{task}\n\n{one.input}" if one.input else task
    return Made(
        (Message("user", question),),
        (Message("assistant", one.output),),
        parents=parents,
        similar=similar,
        meta=meta or {},
    )


def instance_fault(instruction: str, found: Instance) -> Dropped | None:
    """Why an input and output can't be a row; None where they can."""
    text = f"{instruction}\n{found.input}\n{found.output}"
    if not found.output.strip():
        return Dropped("empty_output", "", text)
    if found.input and found.input.strip() == found.output.strip():
        return Dropped("output_is_input", "", text)
    if found.output.strip() == instruction.strip():
        return Dropped("output_is_instruction", "", text)
    if found.input.rstrip().endswith((":", "\uff1a")) or found.output.rstrip().endswith((":", "\uff1a")):
        return Dropped("ends_with_colon", "", text)
    return None
