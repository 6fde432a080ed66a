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

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from posttrain.encode.fitting import Fitted, excerpt, fit, private_marks
from posttrain.encode.stop import MARKER, common_start, find_closing, known_markers
from posttrain.encode.template import ChatTemplate, RejectedError
from posttrain.types import Message, SftRow, ToolCall

THINK = re.compile(r"\s*(?:<think>(?P<given>.*?)|(?P<bare>.*?)(?<=\n))</think>(?P<answer>.*)", re.DOTALL)
"""Reasoning that opens a content: between ``<think>`` and ``</think>``, or before a ``</think>`` that begins a line (the
prompt had opened the block). A ``</think>`` anywhere else is text."""


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
    closing = find_closing(fitted, messages[:i], probe, text)
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
        first = error
    try:
        return _framed(fitted, i, text, block)
    except RejectedError as error:
        raise error from first


def _framed(fitted: Fitted, i: int, text: str, block: re.Match[str] | None) -> Frame:
    """The frame of the turn's words: its reasoning and its content, or the two parts of a block in the content."""
    turn = fitted.messages[i]
    if block is None:
        reasoning, answer = turn.reasoning or "", turn.content
    else:
        reasoning, answer = block["given"] or block["bare"] or "", block["answer"]
    marks = private_marks([text, turn.content, reasoning])
    thought = next(marks) if reasoning.strip() else reasoning
    said = next(marks) if answer.strip() or not turn.tool_calls else answer
    words = {mark: t for mark, t in ((thought, reasoning), (said, answer)) if mark is not t}
    if block is None:
        probe = replace(turn, content=said, reasoning=thought if turn.reasoning is not None else None)
    else:  # white space stays as it is: some templates know a block by it
        in_place = [_in_place(t, mark) if mark is not t else t for mark, t in ((thought, reasoning), (said, answer))]
        opening = turn.content[: block.start("given")] if block["given"] is not None else ""
        probe = replace(turn, content=f"{opening}{in_place[0]}</think>{in_place[1]}")
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
                "content_rewritten", f"the template {how} {excerpt(said_there)} of assistant turn {i + 1}"
            )
    head, *between, tail = re.split("|".join(words), marked)
    inside = text[len(head) : len(text) - len(tail)]
    in_order = sorted(words, key=marked.index)
    expected = words[in_order[0]] + "".join(b + words[m] for b, m in zip(between, in_order[1:], strict=True))
    around = text.startswith(head) and text.endswith(tail) and len(head) + len(tail) <= len(text)
    if not around or not _same(inside, expected):
        raise RejectedError(
            "content_rewritten", f"the template changes the text of assistant turn {i + 1}: {excerpt(turn.content)}"
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
    for opening in (prompt.rstrip(), prompt[: opened.start()]) if opened else ():
        written = text[len(opening) :].lstrip()
        if text.startswith(opening) and written.startswith(closing):
            return prompt, len(text) - len(written), frozenset()
    # Or the rendered turn lacks what it opens: the model is shown the rendering up to there.
    alike = common_start(prompt, text)
    markers = (*known_markers(text[:alike], fitted.template), *MARKER.finditer(text[:alike]))
    shared = max(text.rfind("\n", 0, alike) + 1, *(marker.end() for marker in markers), 0)
    start = min(shared, len(frame.head)) if frame.framed else shared
    context = len(conversation) if header.strip() else _context_length(fitted, i, prompt)
    if frame.reasoned or start < context:
        raise RejectedError("prompt_not_prefix", _difference(prompt, text, i))
    return text[:start], start, frozenset({"generation_prompt_differs"})


def _context_length(fitted: Fitted, i: int, prompt: str) -> int:
    """Up to where the prompt shows the turns before turn ``i``, of a template that opens a turn behind every conversation."""
    *earlier, last = fitted.messages[:i]
    mark = next(private_marks([prompt]))
    marked = fitted.tried((*earlier, replace(last, content=last.content + mark)), prompt=True)
    return len(prompt) - len(marked.rpartition(mark)[2]) if marked is not None and mark in marked else len(prompt) + 1


def _after_context(fitted: Fitted, i: int, prompt: str, header: str) -> str | None:
    """What the template writes for turn ``i`` behind the generation prompt, where it rewrites what stands before.

    A mark in the last turn before it tells where the rewritten part ends. From there on, the rendering must begin as the
    prompt does, or hold what the generation prompt adds.
    """
    *earlier, last = fitted.messages[:i]
    mark = next(private_marks([prompt, *(m.content for m in fitted.messages)]))
    for probe in (replace(last, content=mark), replace(last, content=last.content + mark)):
        given = fitted.tried((*earlier, probe), prompt=True)
        rendered = fitted.tried((*earlier, probe, fitted.messages[i]))
        if given is None or rendered is None or mark not in given or mark not in rendered:
            continue
        given, rendered = given.rpartition(mark)[2], rendered.rpartition(mark)[2]
        if rendered.startswith(given):
            return rendered[len(given) :]
        if header.strip() and header in rendered:
            return rendered.partition(header)[2]
    return None


def _difference(prompt: str, text: str, i: int) -> str:
    same = common_start(prompt, text)
    given, rendered = excerpt(prompt[same:], 30), excerpt(text[same:], 30)
    if given == rendered:  # they differ in white space, or behind what an excerpt shows
        given, rendered = repr(prompt[same : same + 30]), repr(text[same : same + 30])
    return f"before assistant turn {i + 1} the model is given {given} where the rendering has {rendered}"


def _same(left: str, right: str) -> bool:
    """Equal but for white space, which templates trim and rewrite."""
    return left == right or "".join(left.split()) == "".join(right.split())


def _calls_marked(fitted: Fitted, i: int, text: str, probe: Message) -> Message:
    """The probe with every name and argument of its calls a mark. Raises ``tool_call_dropped`` where one is not rendered."""
    calls = fitted.messages[i].tool_calls
    marks = private_marks([text, probe.content, probe.reasoning or ""])
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
