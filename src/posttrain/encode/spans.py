"""Which characters of a rendered conversation the model itself must write, proven for any chat template.

At inference the model is given ``prompt``, the rendering of the turns before assistant turn i with the generation
prompt, and must write the rest of ``text``, the rendering with the turn: header, words, calls and stop. That completion
is what is supervised. Three things are proven of it:

- **Nothing is lost or changed.** The turn is rendered again with a private character in place of its words (``marked``).
  What stands around that character is the template's own, so ``text`` must be that, with the words between.
- **It follows the prompt.** ``text == prompt + completion``; where the template shows earlier turns differently before a
  reply than before a prompt, what it writes behind the last of them must begin as the generation prompt does.
- **It ends.** The stop is what the template writes after the words both when the turn is the last one and when another
  follows, through its last marker or the first token that ends generation.

A turn of which one can't be shown is rejected: a guess would train the wrong tokens without a sign. See docs/masks.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from posttrain.encode.template import ChatTemplate, RejectedError
from posttrain.types import Message, SftRow, ToolCall

Tools = Sequence[Mapping[str, Any]]

MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""A marker in a text whose markers the tokenizer does not know."""

THINK = re.compile(r"\s*(?:<think>(?P<given>.*?)|(?P<bare>.*?)(?<=\n))</think>(?P<answer>.*)", re.DOTALL)
"""Reasoning that opens a content: between ``<think>`` and ``</think>``, or before a ``</think>`` that begins a line (the
prompt had opened the block). A ``</think>`` anywhere else is text."""


FIRST_MARK, LAST_MARK = "\U000f0000", "\U000ffffd"
"""Private-use characters: no template has a reason to treat them specially."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a rendering that are supervised with this weight."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Rendering:
    """The text of one training example and its supervised spans, in order and disjoint."""

    text: str
    spans: tuple[Span, ...]


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


@dataclass(frozen=True, slots=True)
class Turn:
    """One proven assistant turn: ``text`` is the conversation up to and with it, [start, end) what is supervised."""

    text: str
    start: int
    end: int
    stop: str
    """The end of the supervised text that the template writes behind the turn's words."""
    notes: frozenset[str]


def supervised_renderings(row: SftRow, template: ChatTemplate) -> tuple[tuple[Rendering, ...], frozenset[str]]:
    """Turn a row into training examples (text with supervised spans) and notes on what happened to it.

    One example where the rendering of the whole conversation agrees with what inference sees at every supervised
    turn; otherwise one example per supervised turn (templates that rewrite earlier turns). Raises RejectedError.
    """
    fitted = fit(row.messages, row.tools, template)
    turns = [
        (prove_turn(fitted, i), 1.0 if message.weight is None else message.weight)
        for i, message in enumerate(fitted.messages)
        if message.role == "assistant" and message.weight != 0
    ]
    if not turns:
        raise RejectedError("nothing_supervised", "no assistant turn with a weight other than 0")
    notes = fitted.notes.union(*(turn.notes for turn, _ in turns), _row_notes(row, fitted))
    last = turns[-1][0].text
    whole = last if last.startswith(fitted.text) else fitted.text  # a stop that shows only when a turn follows
    if all(whole.startswith(turn.text[: turn.end]) for turn, _ in turns):
        spans = tuple(Span(turn.start, turn.end, weight) for turn, weight in turns)
        if all(left.end <= right.start for left, right in itertools.pairwise(spans)):
            return (Rendering(whole, spans),), notes
    renderings = tuple(Rendering(turn.text, (Span(turn.start, turn.end, weight),)) for turn, weight in turns)
    return renderings, notes | {"expanded"}


# ---- the conversation as the template takes it -----------------------------------------------------------------------


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
            f"the template leaves out message {ignored[0] + 1} ({first.role}): {_excerpt(first.content)}",
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
    marks = dict(zip(context, _marks([text, *(m.content for m in messages)]), strict=False))
    marked = fitted.tried([replace(m, content=marks[k]) if k in marks else m for k, m in enumerate(messages)])
    if marked is None:
        return [k for k in context if messages[k].content.strip() not in text]
    return [k for k in context if marks[k] not in marked]


def _marks(texts: Collection[str]) -> Iterator[str]:
    """Private-use characters that occur in none of the texts."""
    return (c for c in map(chr, range(ord(FIRST_MARK), ord(LAST_MARK) - 1)) if not any(c in text for text in texts))


def _row_notes(row: SftRow, fitted: Fitted) -> frozenset[str]:
    notes = set()
    special = fitted.template.special_pattern
    if special is not None and any(special.search(message.content) for message in row.messages):
        notes.add("special_token_text_in_content")
    functions = [tool.get("function", tool) for tool in row.tools]
    names = [str(function.get("name", "")) for function in functions if isinstance(function, Mapping)]
    if any(name and name not in fitted.text for name in names):
        notes.add("tools_not_rendered")
    return frozenset(notes)


# ---- one assistant turn ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """What the template writes around the words of a turn: ``text == head + words + tail``."""

    probe: Message
    """The turn with a mark in place of its words."""
    head: str
    tail: str
    notes: frozenset[str] = frozenset()
    framed: bool = True
    """Whether the turn has words; one of calls alone has none."""
    reasoned: bool = False
    """Whether reasoning is among the words."""
    dropped: bool = False
    """Whether the template leaves out the reasoning that stands in the content."""


def prove_turn(fitted: Fitted, i: int) -> Turn:
    """Find what the model must write at assistant turn ``i``, or raise RejectedError with the reason it can't be."""
    messages, turn = fitted.messages, fitted.messages[i]
    text = fitted.text if i == len(messages) - 1 else fitted.render(messages[: i + 1])
    # Nothing precedes a conversation that the assistant opens: there is no prompt to render.
    prompt = fitted.render(messages[:i], prompt=True) if i else None
    frame = _frame(fitted, i, text)
    probe = _calls_marked(fitted, i, text, frame.probe) if turn.tool_calls else frame.probe
    closing = _closing(fitted, messages[:i], probe, text)
    if closing is None:
        raise RejectedError(
            "no_stop",
            f"the template writes nothing after assistant turn {i + 1}, so the model could never "
            "learn to stop: give a template that does",
        )
    if frame.dropped:
        context, words = _as_written(fitted, i, prompt)
        body, notes = words + text[len(text) - len(frame.tail) : closing.begin], frozenset({"reasoning_from_content"})
    else:
        context, start, notes = _begin(fitted, i, text, frame, prompt)
        if start > closing.begin:  # an empty reply whose stop the prompt begins already
            raise RejectedError("prompt_not_prefix", _difference(prompt or "", text, i))
        body = text[start : closing.begin]
    end = len(context) + len(body) + len(closing.stop)
    whole = context + body + closing.stop + closing.rest
    return Turn(whole, len(context), end, closing.stop, frame.notes | notes)


def _frame(fitted: Fitted, i: int, text: str) -> Frame:
    """Find the words of turn ``i`` in its rendering: all of its content, or a think block in it and the rest apart."""
    try:
        return _framed(fitted, i, text, None)
    except RejectedError as error:
        block = THINK.fullmatch(fitted.messages[i].content) if fitted.messages[i].reasoning is None else None
        if block is None:
            raise
        told = error
    try:
        return _framed(fitted, i, text, block)
    except RejectedError as error:
        raise error from told


def _framed(fitted: Fitted, i: int, text: str, block: re.Match[str] | None) -> Frame:
    """The frame of the turn's words: its reasoning and its content, or the two parts of a block in the content."""
    turn = fitted.messages[i]
    if block is None:
        reasoning, answer = turn.reasoning or "", turn.content
    else:
        reasoning, answer = block["given"] or block["bare"] or "", block["answer"]
    marks = _marks([text, turn.content, reasoning])
    thought = next(marks) if reasoning.strip() else reasoning
    said = next(marks) if answer.strip() or not turn.tool_calls else answer
    words = {mark: t for mark, t in ((thought, reasoning), (said, answer)) if mark is not t}
    if block is None:
        probe = replace(turn, content=said, reasoning=thought if turn.reasoning is not None else None)
    else:  # white space stays as it is: some templates know a block by it
        shown = [_in_place(t, mark) if mark is not t else t for mark, t in ((thought, reasoning), (said, answer))]
        opening = turn.content[: block.start("given")] if block["given"] is not None else ""
        probe = replace(turn, content=f"{opening}{shown[0]}</think>{shown[1]}")
    marked = fitted.render((*fitted.messages[:i], probe))
    dropped = bool(reasoning.strip()) and thought not in marked
    if dropped and block is None:
        raise RejectedError(
            "reasoning_dropped",
            f"the template leaves out the reasoning of assistant turn {i + 1}: take a template that shows it, or write "
            "it into the content as <think>...</think> where the model is to learn it in that form",
        )
    if dropped:
        del words[thought]
    if not words:
        return Frame(probe, text, "", framed=False)
    for mark, said_there in words.items():
        if (count := marked.count(mark)) != 1:
            how = f"writes {count} times" if count else "leaves out"
            raise RejectedError(
                "content_rewritten", f"the template {how} {_excerpt(said_there)} of assistant turn {i + 1}"
            )
    head, *between, tail = re.split("|".join(words), marked)
    inside = text[len(head) : len(text) - len(tail)]
    in_order = sorted(words, key=marked.index)
    expected = words[in_order[0]] + "".join(b + words[m] for b, m in zip(between, in_order[1:], strict=True))
    around = text.startswith(head) and text.endswith(tail) and len(head) + len(tail) <= len(text)
    if not around or not _same(inside, expected):
        raise RejectedError(
            "content_rewritten", f"the template changes the text of assistant turn {i + 1}: {_excerpt(turn.content)}"
        )
    rewritten = not between and inside not in expected
    notes = frozenset({"white_space_rewritten"} if rewritten else ())
    return Frame(probe, head, tail, notes, reasoned=bool(reasoning.strip() or block or _thinks(turn)), dropped=dropped)


def _thinks(turn: Message) -> bool:
    """Whether a think block opens the content."""
    block = THINK.fullmatch(turn.content)
    return block is not None and bool((block["given"] or block["bare"] or "").strip())


def _in_place(words: str, mark: str) -> str:
    """The mark between the white space that surrounds the words."""
    return words[: len(words) - len(words.lstrip())] + mark + words[len(words.rstrip()) :] if words.strip() else mark


def _as_written(fitted: Fitted, i: int, prompt: str | None) -> tuple[str, str]:
    """(context, words) of a turn whose template leaves out the think block in its content: the content as it stands.

    A template that shows no reasoning of earlier turns (R1) shows none of the turn to be learned, either. The model is
    given the prompt all the same, and writes the content; what of the block the prompt opens is not written again.
    """
    conversation = fitted.render(fitted.messages[:i]) if i else ""
    header = prompt[len(conversation) :] if prompt is not None and prompt.startswith(conversation) else None
    content = fitted.messages[i].content.lstrip()
    opened = re.search(r"<think>\s*\Z", header or "")
    unfit = opened is None and ("</think>" in (header or "") or not content.startswith("<think>"))
    if prompt is None or header is None or unfit:
        raise RejectedError("reasoning_dropped", f"the template leaves out the reasoning of assistant turn {i + 1}")
    if opened is None:
        return prompt, content
    content = content.removeprefix("<think>")
    return prompt, content.removeprefix(opened.group()[len("<think>") :])


def _begin(fitted: Fitted, i: int, text: str, frame: Frame, prompt: str | None) -> tuple[str, int, frozenset[str]]:
    """(context, where in ``text`` the model starts to write, notes): the context is what inference gives."""
    turn = fitted.messages[i]
    if prompt is None:
        if not frame.framed:
            raise RejectedError(
                "prompt_not_prefix",
                f"nothing stands before assistant turn {i + 1}, so what the template adds to its text can't be judged",
            )
        return frame.head, len(frame.head), frozenset()
    opened = re.search(r"(?:<(\w+)>|\[(\w+)\])\s*\Z", prompt)
    closing = "" if opened is None else f"</{opened[1]}>" if opened[1] else f"[/{opened[2]}]"
    if text.startswith(prompt):
        if (
            closing
            and not frame.reasoned
            and closing in turn.content
            and closing not in text[len(prompt) : len(frame.head)]
        ):
            raise RejectedError(
                "content_rewritten",
                f"the {closing} that assistant turn {i + 1} quotes would end the block the prompt opens",
            )
        return prompt, len(prompt), frozenset()
    before = fitted.messages[:i]
    conversation = fitted.render(before)
    if not prompt.startswith(conversation):  # the generation prompt does not merely open a turn
        raise RejectedError("prompt_not_prefix", _difference(prompt, text, i))
    header = prompt[len(conversation) :]
    written = _after_context(fitted, i, prompt, header)
    if written is not None and text.endswith(written):
        return prompt, len(text) - len(written), frozenset()
    # The generation prompt opens something (a think block) which the rendered turn closes at once. It may show the opening
    # with other white space (``<think></think>`` where the prompt has a line end), or leave it out.
    for shown in (prompt.rstrip(), prompt[: opened.start()]) if opened else ():
        written = text[len(shown) :].lstrip()
        if text.startswith(shown) and written.startswith(closing):
            return prompt, len(text) - len(written), frozenset()
    # Or the rendered turn lacks what it opens: the model is shown the rendering up to there.
    alike = _alike(prompt, text)
    markers = (*_known(text[:alike], fitted.template), *MARKER.finditer(text[:alike]))
    shared = max(text.rfind("\n", 0, alike) + 1, *(marker.end() for marker in markers), 0)
    start = min(shared, len(frame.head)) if frame.framed else shared
    context = len(conversation) if header.strip() else _context_length(fitted, i, prompt)
    if frame.reasoned or start < context:
        raise RejectedError("prompt_not_prefix", _difference(prompt, text, i))
    return text[:start], start, frozenset({"generation_prompt_differs"})


def _context_length(fitted: Fitted, i: int, prompt: str) -> int:
    """Up to where the prompt shows the turns before turn ``i``, of a template that opens a turn behind every conversation."""
    *earlier, last = fitted.messages[:i]
    mark = next(_marks([prompt]))
    marked = fitted.tried((*earlier, replace(last, content=last.content + mark)), prompt=True)
    return len(prompt) - len(marked.rpartition(mark)[2]) if marked is not None and mark in marked else len(prompt) + 1


def _after_context(fitted: Fitted, i: int, prompt: str, header: str) -> str | None:
    """What the template writes for turn ``i`` behind the generation prompt, where it rewrites what stands before.

    A mark in the last turn before it tells where the rewritten part ends. From there on, the rendering must begin as the
    prompt does, or hold what the generation prompt adds.
    """
    *earlier, last = fitted.messages[:i]
    mark = next(_marks([prompt, *(m.content for m in fitted.messages)]))
    for probe in (replace(last, content=mark), replace(last, content=last.content + mark)):
        given = fitted.tried((*earlier, probe), prompt=True)
        shown = fitted.tried((*earlier, probe, fitted.messages[i]))
        if given is None or shown is None or mark not in given or mark not in shown:
            continue
        given, shown = given.rpartition(mark)[2], shown.rpartition(mark)[2]
        if shown.startswith(given):
            return shown[len(given) :]
        if header.strip() and header in shown:
            return shown.partition(header)[2]
    return None


def _difference(prompt: str, text: str, i: int) -> str:
    same = _alike(prompt, text)
    given, rendered = _excerpt(prompt[same:], 30), _excerpt(text[same:], 30)
    if given == rendered:  # they differ in white space, or behind what an excerpt shows
        given, rendered = repr(prompt[same : same + 30]), repr(text[same : same + 30])
    return f"before assistant turn {i + 1} the model is given {given} where the rendering has {rendered}"


def _same(left: str, right: str) -> bool:
    """Equal but for white space, which templates trim and rewrite."""
    return left == right or "".join(left.split()) == "".join(right.split())


def _calls_marked(fitted: Fitted, i: int, text: str, probe: Message) -> Message:
    """The probe with every name and argument of its calls a mark. Raises ``tool_call_dropped`` where one is not rendered."""
    calls = fitted.messages[i].tool_calls
    marks = _marks([text, probe.content, probe.reasoning or ""])
    named = [next(marks) for _ in calls]
    argued = [json.dumps({next(marks): next(marks)}, ensure_ascii=False) for _ in calls]
    forms = (
        tuple(ToolCall(name, arguments, c.id) for c, name, arguments in zip(calls, named, argued, strict=True)),
        tuple(replace(c, name=name) for c, name in zip(calls, named, strict=True)),
        calls,  # a template that looks the name up among the tools
    )
    for form in forms:
        marked = fitted.tried((*fitted.messages[:i], replace(probe, tool_calls=form)))
        if marked is None:
            continue
        if not all(call.name in marked for call in form):
            break
        return replace(probe, tool_calls=form)
    raise RejectedError("tool_call_dropped", f"the template leaves out the tool call of assistant turn {i + 1}")


# ---- the stop --------------------------------------------------------------------------------------------------------


class Closing(NamedTuple):
    """How a turn ends: what the model writes to stop begins at ``begin`` of the text; ``rest`` follows it."""

    begin: int
    stop: str
    rest: str


def _closing(fitted: Fitted, before: tuple[Message, ...], probe: Message, text: str) -> Closing | None:
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
    own = _alike(last[::-1], text[::-1])
    alike = len(last) if following is None else _alike(last, following)
    found = _stop_end(last, following or "", alike, fitted.template, _of_calls(fitted, before, probe, anchor, last))
    foreign = len(last) - own
    if found is not None and not found.sure and last[alike:].strip() and before:
        # The template opens a turn behind every conversation, and the next one may open alike: who can tell where?
        found = None if fitted.render(before, prompt=True).endswith(last[alike:]) else found
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
    if not calls.none and _known(following, template) and not _known(last, template):
        own = []  # tags of a call
    of_replies = [m.end() for m in own if m.group() in calls.stops_of_replies]
    if of_replies:
        return _StopEnd(of_replies[0])
    closing = [m.end() for m in shared if m.end() not in calls.closings]
    if closing and (calls.none or silent):
        return _StopEnd(closing[-1])
    line = last[: len(last) - len(last.lstrip())] + last.lstrip().partition("\n")[0].rstrip()
    if not shared and line.strip() and len(line) <= alike:
        return _StopEnd(len(line))
    own = [m for m in own if m.end() > alike]
    if not silent and (calls.none or own):  # so it ends only where the conversation does
        return _StopEnd(next((m.end() for m in own if m.group() in ends), own[0].end() if own else len(line)))
    chosen = next((m for m in next_markers if m.group() in ends), next_markers[0] if next_markers else None)
    return None if chosen is None else _StopEnd(chosen.end(), True)


def _markers(text: str, template: ChatTemplate) -> list[re.Match[str]]:
    """The markers in a text: tokens the tokenizer knows or, where there are none, what looks like one."""
    return _known(text, template) or list(MARKER.finditer(text))


def _known(text: str, template: ChatTemplate) -> list[re.Match[str]]:
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
    results = tuple(Message("tool", LAST_MARK, name=call.name, tool_call_id=call.id) for call in probe.tool_calls)
    for turns in (results, (Message("user", LAST_MARK),)):
        rendering = fitted.tried((*before, probe, *turns)) if turns else None
        if rendering is not None:
            return anchor.behind(rendering.partition(LAST_MARK)[0])
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
    found = _stop_end(last, following, _alike(last, following), fitted.template, OfCalls)
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
        same = _alike(last, anchor.behind(rendering)) if rendering is not None and LAST_MARK in rendering else 0
        closings = [m.end() for m in _markers(last, fitted.template) if m.end() <= same and m.group() not in stops]
        return OfCalls(closings, stops, none=False)

    return find


def _alike(left: str, right: str) -> int:
    """How many characters two texts begin with that are the same."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # slices compare a thousand times faster than characters
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _excerpt(text: str, limit: int = 60) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[:limit] + "...")
