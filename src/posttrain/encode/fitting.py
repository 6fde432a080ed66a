"""A conversation in the form a chat template takes, rendered so that no turn before a reply is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.encode.template import ChatTemplate, RejectedError
from posttrain.types import Message, ToolCall

Tools = Sequence[Mapping[str, Any]]

FIRST_MARK, LAST_MARK = "\U000f0000", "\U000ffffd"
"""Private-use characters: no template has a reason to treat them specially."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation in the form the template takes, its rendering, and what was changed for that."""

    messages: tuple[Message, ...]
    text: str
    notes: frozenset[str]
    template: ChatTemplate
    tools: Tools = ()
    parts: bool = False
    """Whether contents are given as typed parts."""

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Render other messages in the same form; ``prompt``: with the generation prompt."""
        return self.template.render(messages, self.tools, prompt, self.parts)

    def tried(self, messages: Sequence[Message], prompt: bool = False) -> str | None:
        """Render, or None where the template refuses."""
        try:
            return self.render(messages, prompt)
        except RejectedError:
            return None


def fit(messages: Sequence[Message], tools: Tools, template: ChatTemplate) -> Fitted:
    """Render a conversation in a form the template takes.

    Tried in turn where the template refuses it or leaves out a context turn: contents as typed parts; names and ids of
    calls and results filled in (note ``tool_ids_numbered``); a leading system turn folded into the first user turn
    (system text, blank line, user text; note ``system_folded``). Raises RejectedError ``template_raised`` or
    ``message_dropped``, of the conversation as it was given or, where the system turn is what is wrong, as it was folded.
    """
    given = tuple(messages)
    try:
        return _fit_forms(given, tools, template, frozenset())
    except RejectedError as error:
        folded = _fold_system(given) if _is_of_system(error) else None
        if folded is None:
            raise
    return _fit_forms(folded, tools, template, frozenset({"system_folded"}))


def _fit_forms(given: tuple[Message, ...], tools: Tools, template: ChatTemplate, notes: frozenset[str]) -> Fitted:
    """The conversation in the first form the template takes; the error is that of the form it was given in."""
    try:
        return _fit(given, tools, template, False, notes)
    except RejectedError as error:
        if error.rejected.reason == "bad_tool_arguments":
            raise
        first = error
    with contextlib.suppress(RejectedError):
        return _fit(given, tools, template, True, notes)
    named = _named(given)
    if named is not None:
        with contextlib.suppress(RejectedError):
            return _fit(named, tools, template, False, notes | {"tool_ids_numbered"})
    raise first


def _is_of_system(error: RejectedError) -> bool:
    """Whether a conversation may fit without its system turn: the template refuses it, or leaves that turn out."""
    rejected = error.rejected
    return rejected.reason == "template_raised" or rejected.detail.startswith("the template leaves out message 1 ")


def _fit(
    messages: tuple[Message, ...], tools: Tools, template: ChatTemplate, parts: bool, notes: frozenset[str]
) -> Fitted:
    text = template.render(messages, tools, parts=parts)
    fitted = Fitted(messages, text, notes, template, tools, parts)
    ignored = _ignored(fitted)
    if ignored:
        first = messages[ignored[0]]
        raise RejectedError(
            "message_dropped",
            f"the template leaves out message {ignored[0] + 1} ({first.role}): {excerpt(first.content)}",
        )
    return fitted


def _fold_system(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    if not messages or messages[0].role != "system":
        return None
    rest = list(messages[1:])
    for k, message in enumerate(rest):
        if message.role == "user":
            rest[k] = replace(message, content=f"{messages[0].content}\n\n{message.content}")
            return tuple(rest)
    return None


def _named(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """The conversation with calls numbered in a form every template takes, and results named by the calls they answer.

    None where there are no calls.
    """
    if not any(message.tool_calls for message in messages):
        return None
    out: list[Message] = []
    waiting: list[tuple[str | None, ToolCall]] = []  # (id in the source, call as numbered)
    number = 0
    for message in messages:
        if message.tool_calls:
            calls = [replace(call, id=f"call{number + k:05d}") for k, call in enumerate(message.tool_calls)]
            number += len(calls)
            waiting.extend((old.id, new) for old, new in zip(message.tool_calls, calls, strict=True))
            message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool" and waiting:
            known = [k for k, (old, _) in enumerate(waiting) if old is not None and old == message.tool_call_id]
            _, call = waiting.pop(known[0] if known else 0)
            message = replace(message, tool_call_id=call.id, name=message.name or call.name)
        out.append(message)
    return tuple(out)


def _ignored(fitted: Fitted) -> list[int]:
    """List the context turns (indices) that have content of which the rendering shows nothing.

    Each is replaced by a character of its own, so a text that also stands elsewhere deceives nobody. A template that
    reads its content (JSON of a tool) may refuse such a character; then the text itself is looked for.
    """
    messages, text = fitted.messages, fitted.text
    context = [k for k, message in enumerate(messages) if message.role != "assistant" and message.content.strip()]
    marks = dict(zip(context, private_marks([text, *(m.content for m in messages)]), strict=False))
    marked = fitted.tried([replace(m, content=marks[k]) if k in marks else m for k, m in enumerate(messages)])
    if marked is None:
        return [k for k in context if messages[k].content.strip() not in text]
    return [k for k in context if marks[k] not in marked]


def private_marks(texts: Collection[str]) -> Iterator[str]:
    """Private-use characters that occur in none of the texts."""
    return (c for c in map(chr, range(ord(FIRST_MARK), ord(LAST_MARK) - 1)) if not any(c in text for text in texts))


def excerpt(text: str, limit: int = 60) -> str:
    """A text on one line, cut behind ``limit`` characters."""
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[:limit] + "...")
