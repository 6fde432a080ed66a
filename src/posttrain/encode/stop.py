"""The stop of an assistant turn, from evidence: what a template writes behind its words, last or followed by another."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from posttrain.encode.fitting import FIRST_MARK, LAST_MARK, Fitted
from posttrain.encode.template import ChatTemplate
from posttrain.types import Message, ToolCall

MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""A marker in a text whose markers the tokenizer does not know."""


class Closing(NamedTuple):
    """How a turn ends: what the model writes to stop begins at ``begin`` of the text; ``rest`` follows it."""

    begin: int
    stop: str
    rest: str


def find_closing(fitted: Fitted, before: tuple[Message, ...], probe: Message, text: str) -> Closing | None:
    """Find the stop of a turn, whose rendering is ``text`` and whose words are marks in ``probe``; None where it has none.

    What the template writes behind the words when the turn is the last one, and when another follows, begins alike:
    through the last marker of that, or the first token that ends generation, the model writes the stop. Where nothing
    follows the words of a last turn, the stop is what opens the next turn (GLM's ``<|user|>``).
    """
    alone = fitted.render((*before, probe))
    anchor = _last_anchor(alone, _anchors(probe, text))
    last = anchor.behind(alone)
    following = _followed(fitted, before, probe, anchor)
    # The marks of arguments may be written unlike the arguments: the end both renderings share is the template's own.
    own = common_start(last[::-1], text[::-1])
    alike = len(last) if following is None else common_start(last, following)
    found = _stop_end(last, following or "", alike, fitted.template, _of_calls(fitted, before, probe, anchor, last))
    foreign = len(last) - own
    if found is not None and not found.sure and last[alike:].strip():
        # The template opens a turn behind every conversation, and the next one may open alike: who can tell where?
        context = before or (Message("user", FIRST_MARK),)
        prompt, conversation = fitted.tried(context, prompt=True) or "", fitted.tried(context) or ""
        opened = (prompt, conversation if prompt.startswith(conversation) else "")
        found = None if any(given.endswith(last[alike:]) for given in opened) else found
    if found is None or found.end <= foreign or (found.follows and alike < foreign):
        return None
    if found.follows:
        return Closing(len(text) - own, last[foreign:alike] + (following or "")[alike : found.end], "")
    return Closing(len(text) - own, last[foreign : found.end], last[found.end :])


class _StopEnd(NamedTuple):
    """Where the stop ends: behind the words of a last turn or, where it ``follows``, of a turn that another follows."""

    end: int
    follows: bool = False
    sure: bool = False
    """Whether it is a token that ends generation."""


def _stop_end(
    last: str, following: str, alike: int, template: ChatTemplate, of_calls: Callable[[], OfCalls]
) -> _StopEnd | None:
    """``of_calls`` is asked only where it could decide."""
    ends = template.end_tokens
    shared = _markers(last[:alike], template)
    ending = [m.end() for m in shared if m.group() in ends]
    if ending:
        return _StopEnd(ending[0], sure=True)
    silent = not last[alike:].strip()  # a last turn says no more
    next_markers = [m for m in _markers(following, template) if m.end() > alike] if silent else []
    if next_markers and next_markers[0].group() in ends and not following[alike : next_markers[0].start()].strip():
        return _StopEnd(next_markers[0].end(), True)
    calls = of_calls()
    own = [m for m in _markers(last, template) if m.end() not in calls.closings]
    if not calls.none and known_markers(following, template) and not known_markers(last, template):
        own = []  # tags of a call
    of_replies = [m.end() for m in own if m.group() in calls.stops_of_replies]
    if of_replies:
        return _StopEnd(of_replies[0])
    closing = [m.end() for m in shared if m.end() not in calls.closings]
    if closing and (calls.none or silent):
        return _StopEnd(closing[-1])
    line = last[: len(last) - len(last.lstrip())] + last.lstrip().partition("\n")[0].rstrip()
    if calls.none and not shared and line.strip() and len(line) <= alike:  # of a call, it closes its arguments
        return _StopEnd(len(line))
    own = [m for m in own if m.end() > alike]
    if not silent and (calls.none or own):  # so it ends only where the conversation does
        return _StopEnd(next((m.end() for m in own if m.group() in ends), own[0].end() if own else len(line)))
    chosen = next((m for m in next_markers if m.group() in ends), next_markers[0] if next_markers else None)
    return None if chosen is None else _StopEnd(chosen.end(), True)


def _markers(text: str, template: ChatTemplate) -> list[re.Match[str]]:
    """The markers in a text: tokens the tokenizer knows or, where there are none, what looks like one."""
    return known_markers(text, template) or list(MARKER.finditer(text))


def known_markers(text: str, template: ChatTemplate) -> list[re.Match[str]]:
    """The special tokens of the tokenizer in a text, in order."""
    return list(template.added_pattern.finditer(text)) if template.added_pattern is not None else []


def _anchors(probe: Message, text: str) -> tuple[str, ...]:
    """The marks in a turn or, where the template takes none, the names of its calls."""
    said = "".join((probe.content, probe.reasoning or "", *(c.name + c.arguments for c in probe.tool_calls)))
    marks = tuple({c for c in said if c >= FIRST_MARK and c not in text})
    marked = not probe.tool_calls or any(c in marks for c in probe.tool_calls[-1].name)
    return marks if marked else (*marks, *(call.name for call in probe.tool_calls))


class Anchor(NamedTuple):
    """The last of a turn's words: the ``times``-th time that ``text`` stands in a rendering (a result may repeat it)."""

    text: str
    times: int

    def behind(self, rendering: str) -> str:
        """What stands behind it."""
        return rendering.split(self.text, self.times)[-1]


def _last_anchor(rendering: str, anchors: Sequence[str]) -> Anchor:
    text = max(anchors, key=lambda anchor: rendering.rfind(anchor) + len(anchor))
    return Anchor(text, rendering.count(text))


def _followed(fitted: Fitted, before: tuple[Message, ...], probe: Message, anchor: Anchor) -> str | None:
    """What stands behind the words of the turn when another turn follows, up to its content; None where none can."""
    taken = {c for turn in (*before, probe) for c in turn.content + (turn.reasoning or "") if c > FIRST_MARK}
    mark = next(c for c in map(chr, range(ord(LAST_MARK), ord(FIRST_MARK), -1)) if c not in taken)
    results = tuple(Message("tool", mark, name=call.name, tool_call_id=call.id) for call in probe.tool_calls)
    for turns in (results, (Message("user", mark),)):
        rendering = fitted.tried((*before, probe, *turns)) if turns else None
        if rendering is not None:
            return anchor.behind(rendering.partition(mark)[0])
    return None


class OfCalls(NamedTuple):
    """What is known of the markers behind a turn of calls; nothing, where it has none."""

    closings: Collection[int] = ()
    """Ends of markers that another call would follow just the same: they close the call, not the turn."""
    stops_of_replies: Collection[str] = ()
    """The marker that ends a turn of words alone, if there is one: it ends one of calls, too."""
    none: bool = True
    """Whether the turn has no calls."""


def _stop_of_reply(fitted: Fitted, before: tuple[Message, ...]) -> set[str]:
    """The marker that ends a turn of words alone in this place; none where only the next turn ends it."""
    reply = Message("assistant", FIRST_MARK)
    alone = fitted.tried((*before, reply)) or ""
    anchor = Anchor(FIRST_MARK, 1)
    following = _followed(fitted, before, reply, anchor) if FIRST_MARK in alone else None
    if following is None:
        return set()
    last = anchor.behind(alone)
    found = _stop_end(last, following, common_start(last, following), fitted.template, OfCalls)
    if found is None or found.follows:
        return set()
    return {m.group() for m in _markers(last, fitted.template) if m.end() == found.end}


def _of_calls(
    fitted: Fitted, before: tuple[Message, ...], probe: Message, anchor: Anchor, last: str
) -> Callable[[], OfCalls]:
    def find() -> OfCalls:
        if not probe.tool_calls:
            return OfCalls()
        stops = _stop_of_reply(fitted, before)
        more = ToolCall(LAST_MARK, "{}", probe.tool_calls[-1].id)
        rendering = fitted.tried((*before, replace(probe, tool_calls=(*probe.tool_calls, more))))
        same = common_start(last, anchor.behind(rendering)) if rendering is not None and LAST_MARK in rendering else 0
        closings = [m.end() for m in _markers(last, fitted.template) if m.end() <= same and m.group() not in stops]
        return OfCalls(closings, stops, none=False)

    return find


def common_start(left: str, right: str) -> int:
    """How many characters two texts begin with that are the same."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # slices compare a thousand times faster than characters
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
