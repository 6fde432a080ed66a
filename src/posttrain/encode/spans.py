"""Which characters of a rendered conversation the model itself must write, proven for any chat template.

For assistant turn i of a conversation m three renderings settle it:

- ``text``: m[:i+1], the conversation up to and with the turn;
- ``prompt``: m[:i] with the generation prompt, which is what the model is given at inference;
- ``marked``: m[:i] and an assistant turn whose content is one character found nowhere else. What stands before and
  after that character, ``head`` and ``tail``, is the template's own.

``text == head + content + tail`` then proves where the content stands, whatever it contains or repeats. Where the
template writes more for this turn than the content (reasoning, tool calls), the model must write all that follows
``prompt``, and ``text == prompt + body + tail`` proves that instead. The stop is the first marker of ``tail``.
A turn that fits neither is rejected: a guess would train the wrong tokens without a sign. See docs/masks.md.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.encode.template import ChatTemplate, RejectedError
from posttrain.types import Message, SftRow

Tools = Sequence[Mapping[str, Any]]

MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|[^\n]+")
"""A stop in a text whose markers the tokenizer does not know: ``<...>``, ``[...]``, otherwise the rest of the line."""


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


@dataclass(frozen=True, slots=True)
class Turn:
    """One proven assistant turn: ``text`` is the conversation up to and with it, [start, end) what is supervised."""

    text: str
    start: int
    end: int
    notes: frozenset[str]


def supervised_renderings(row: SftRow, template: ChatTemplate) -> tuple[tuple[Rendering, ...], frozenset[str]]:
    """Turn a row into training examples (text with supervised spans) and notes on what happened to it.

    One example where the rendering of the whole conversation agrees with what inference sees at every supervised
    turn; otherwise one example per supervised turn (templates that rewrite earlier turns). Raises RejectedError.
    """
    fitted = fit(row.messages, row.tools, template)
    turns = [
        (prove_turn(fitted, i, row.tools, template), 1.0 if message.weight is None else message.weight)
        for i, message in enumerate(fitted.messages)
        if message.role == "assistant" and message.weight != 0
    ]
    if not turns:
        raise RejectedError("nothing_supervised", "no assistant turn with a weight other than 0")
    notes = fitted.notes.union(*(turn.notes for turn, _ in turns), _row_notes(row, fitted, template))
    if all(fitted.text.startswith(turn.text[: turn.end]) for turn, _ in turns):
        spans = tuple(Span(turn.start, turn.end, weight) for turn, weight in turns)
        if all(left.end <= right.start for left, right in itertools.pairwise(spans)):
            return (Rendering(fitted.text, spans),), notes
    renderings = tuple(Rendering(turn.text, (Span(turn.start, turn.end, weight),)) for turn, weight in turns)
    return renderings, notes | {"expanded"}


# ---- the conversation as the template takes it -----------------------------------------------------------------------


def fit(messages: Sequence[Message], tools: Tools, template: ChatTemplate) -> Fitted:
    """Render a conversation in a form the template takes.

    Where it refuses or ignores a leading system turn, that is folded into the first user turn (system text, blank
    line, user text; note ``system_folded``). Raises RejectedError ``template_raised`` or ``message_dropped``.
    """
    messages = tuple(messages)
    folded = _fold_system(messages)
    try:
        text = template.render(messages, tools)
    except RejectedError:
        if folded is None:
            raise
        return replace(fit(folded, tools, template), notes=frozenset({"system_folded"}))
    ignored = _ignored(messages, tools, template, text)
    if ignored and ignored[0] == 0 and folded is not None:
        return replace(fit(folded, tools, template), notes=frozenset({"system_folded"}))
    if ignored:
        first = messages[ignored[0]]
        raise RejectedError(
            "message_dropped",
            f"the template leaves out message {ignored[0] + 1} ({first.role}): {_excerpt(first.content)}",
        )
    return Fitted(messages, text, frozenset())


def _fold_system(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    if not messages or messages[0].role != "system":
        return None
    rest = list(messages[1:])
    for k, message in enumerate(rest):
        if message.role == "user":
            rest[k] = replace(message, content=f"{messages[0].content}\n\n{message.content}")
            return tuple(rest)
    return None


def _ignored(messages: tuple[Message, ...], tools: Tools, template: ChatTemplate, text: str) -> list[int]:
    """List the context turns (indices) that have content of which the rendering shows nothing.

    Each is replaced by a character of its own, so a text that also stands elsewhere deceives nobody. A template that
    reads its content (JSON of a tool) may refuse such a character; then the text itself is looked for.
    """
    context = [k for k, message in enumerate(messages) if message.role != "assistant" and message.content.strip()]
    marks = dict(zip(context, _marks([text, *(m.content for m in messages)]), strict=False))
    probe = tuple(replace(m, content=marks[k]) if k in marks else m for k, m in enumerate(messages))
    try:
        marked = template.render(probe, tools)
    except RejectedError:
        return [k for k in context if messages[k].content.strip() not in text]
    return [k for k in context if marks[k] not in marked]


def _marks(texts: Collection[str]) -> Iterator[str]:
    """Private-use characters that occur in none of the texts: no template has a reason to treat them specially."""
    return (c for c in map(chr, range(0xF0000, 0xFFFFD)) if not any(c in text for text in texts))


def _row_notes(row: SftRow, fitted: Fitted, template: ChatTemplate) -> frozenset[str]:
    notes = set()
    special = template.special_pattern
    if special is not None and any(special.search(message.content) for message in row.messages):
        notes.add("special_token_text_in_content")
    functions = [tool.get("function", tool) for tool in row.tools]
    names = [str(function.get("name", "")) for function in functions if isinstance(function, Mapping)]
    if any(name and name not in fitted.text for name in names):
        notes.add("tools_not_rendered")
    return frozenset(notes)


# ---- one assistant turn ----------------------------------------------------------------------------------------------


def prove_turn(fitted: Fitted, i: int, tools: Tools, template: ChatTemplate) -> Turn:
    """Find what the model must write at assistant turn ``i``, or raise RejectedError with the reason it can't be."""
    messages, turn = fitted.messages, fitted.messages[i]
    before = messages[:i]
    last = i == len(messages) - 1
    text = fitted.text if last else template.render(messages[: i + 1], tools)
    # Nothing precedes a conversation that the assistant opens: there is no prompt to render.
    prompt = template.render(before, tools, add_generation_prompt=True) if before else None
    mark = next(_marks([text, turn.content]))
    parts = template.render((*before, Message("assistant", mark)), tools).split(mark)
    if len(parts) != 2:
        how = "leaves out the text of" if len(parts) == 1 else f"writes {len(parts) - 1} times the text of"
        raise RejectedError("content_rewritten", f"the template {how} assistant turn {i + 1}")
    head, tail = parts
    if not text.endswith(tail):
        own_tail = _closing_marker(text, template) if turn.tool_calls else None
        if own_tail is None:
            raise RejectedError("content_rewritten", f"the template ends assistant turn {i + 1} in a way of its own")
        tail = own_tail
    end = len(text) - len(tail)
    start, notes = _begin(text, head, prompt, end, turn, i)
    if "generation_prompt_differs" in notes:
        _only_header_differs(template.render(before, tools), prompt or "", text, i)
    if turn.tool_calls and not _calls_rendered(messages[: i + 1], tools, template, text):
        raise RejectedError("tool_call_dropped", f"the template leaves out the tool call of assistant turn {i + 1}")
    stop = _stop_length(text, tail, messages[: i + 1], tools, template)
    if stop is None or start >= end + stop:
        raise RejectedError(
            "no_stop",
            f"the template writes nothing after assistant turn {i + 1}, so the model could never "
            "learn to stop: give a template that does",
        )
    return Turn(text, start, end + stop, notes)


def _begin(text: str, head: str, prompt: str | None, end: int, turn: Message, i: int) -> tuple[int, frozenset[str]]:
    """Where the model starts to write; ``end`` is where the turn's stop begins."""
    reasoning, answer = _thought(turn)
    calls = bool(turn.tool_calls)
    given = prompt is not None and text.startswith(prompt)
    region = text[len(head) : end] if text.startswith(head) and len(head) <= end else None
    body = text[len(prompt) : end] if prompt is not None and given and len(prompt) <= end else None
    if region is not None and not calls and _same(region, turn.content):
        notes = {"white_space_rewritten"} if region not in turn.content else set()
        return _after_head(text, head, prompt, notes | _dropped_reasoning(region, turn.reasoning))
    if body is not None and reasoning is not None and _reasons(body, reasoning, answer, calls):
        return end - len(body), frozenset()
    if region is not None and _holds(region, answer, calls):
        return _after_head(text, head, prompt, _dropped_reasoning(region, reasoning))
    if body is not None and _holds(body, answer, calls):
        return end - len(body), frozenset(_dropped_reasoning(body, reasoning))
    if body is None and region is None:
        raise RejectedError("prompt_not_prefix", _difference(prompt, text, i))
    raise RejectedError(
        "content_rewritten", f"the template changes the text of assistant turn {i + 1}: {_excerpt(turn.content)}"
    )


def _after_head(text: str, head: str, prompt: str | None, notes: set[str]) -> tuple[int, frozenset[str]]:
    """Find the start of a turn that opens with the template's ``head``.

    What stands between prompt and content is the model's to write where it is white space (Mistral's ``[/INST] Hi``),
    and the template's own where it is more (an empty think block).
    """
    if prompt is None:
        return len(head), frozenset(notes)
    if text.startswith(prompt):
        return (len(prompt) if not head[len(prompt) :].strip() else len(head)), frozenset(notes)
    return len(head), frozenset(notes | {"generation_prompt_differs"})


def _only_header_differs(conversation: str, prompt: str, text: str, i: int) -> None:
    """Accept a generation prompt that opens something (a think block) which the rendered turn lacks or closes at once.

    The conversation before the turn must be the same in both; where the template rewrites that, the turn is rejected.
    """
    if not (prompt.startswith(conversation) and text.startswith(conversation)):
        raise RejectedError("prompt_not_prefix", _difference(prompt, text, i))


def _difference(prompt: str | None, text: str, i: int) -> str:
    if prompt is None:
        return f"nothing stands before assistant turn {i + 1}, so what the template adds to its text can't be judged"
    same = next((k for k in range(len(prompt)) if prompt[k] != text[k : k + 1]), len(prompt))
    given, rendered = _excerpt(prompt[same:], 30), _excerpt(text[same:], 30)
    return f"before assistant turn {i + 1} the model is given {given} where the rendering has {rendered}"


def _reasons(body: str, reasoning: str, answer: str, calls: bool) -> bool:
    """Whether the body holds the reasoning and after it the answer, which only tool calls may follow."""
    squeezed, wanted = _squeezed(body), _squeezed(answer)
    position = squeezed.rfind(wanted) if calls else len(squeezed) - len(wanted)
    return position >= 0 and squeezed.startswith(wanted, position) and _squeezed(reasoning) in squeezed[:position]


def _dropped_reasoning(part: str, reasoning: str | None) -> set[str]:
    return {"reasoning_dropped"} if reasoning and _squeezed(reasoning) not in _squeezed(part) else set()


def _holds(part: str, answer: str, calls: bool) -> bool:
    """Whether the part is the answer, or holds it beside tool calls."""
    return _squeezed(answer) in _squeezed(part) if calls else _same(part, answer)


def _thought(turn: Message) -> tuple[str | None, str]:
    """(reasoning, answer) of a turn: from its own field, or from a think block that opens its content."""
    if turn.reasoning is not None:
        return turn.reasoning, turn.content
    before, closed, answer = turn.content.rpartition("</think>")
    if not closed:
        return None, turn.content
    return before.strip().removeprefix("<think>"), answer


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _same(left: str, right: str) -> bool:
    """Equal but for white space, which templates trim and rewrite."""
    return left == right or _squeezed(left) == _squeezed(right)


def _calls_rendered(messages: tuple[Message, ...], tools: Tools, template: ChatTemplate, text: str) -> bool:
    """Whether every tool call of the last message is rendered: each name is replaced by a mark and looked for."""
    turn = messages[-1]
    marks = [mark for _, mark in zip(turn.tool_calls, _marks([text]), strict=False)]
    calls = tuple(replace(call, name=mark) for call, mark in zip(turn.tool_calls, marks, strict=True))
    try:
        marked = template.render((*messages[:-1], replace(turn, tool_calls=calls)), tools)
    except RejectedError:  # a template that looks the name up among the tools
        return all(call.name in text for call in turn.tool_calls)
    return all(mark in marked for mark in marks)


# ---- the stop --------------------------------------------------------------------------------------------------------


def _stop_length(
    text: str, tail: str, messages: tuple[Message, ...], tools: Tools, template: ChatTemplate
) -> int | None:
    """Length of the stop at the beginning of ``tail``, white space before it included; None where there is none."""
    stripped = tail.lstrip()
    white = len(tail) - len(stripped)
    if not stripped:
        return None
    for token in template.added_tokens:
        if stripped.startswith(token):
            return white + len(token)
    # Something stands before the first token the tokenizer knows. It belongs to the stop when it is always followed by
    # that token (a closing tag), and is the stop itself when that token only closes the last turn (Phi-3's files).
    found = [(stripped.find(token), -len(token)) for token in template.added_tokens if token in stripped]
    if found:
        position, negative_length = min(found)
        stop = position - negative_length
        if _followed(text, stripped, messages, tools, template).startswith(stripped[:stop]):
            return white + stop
    marker = MARKER.match(stripped)
    assert marker is not None, "a text that is not white space has a first line"
    return white + len(marker.group().rstrip())


def _followed(text: str, tail: str, messages: tuple[Message, ...], tools: Tools, template: ChatTemplate) -> str:
    """Render what stands after the last turn's content when a user turn follows; ``tail`` where that can't be."""
    try:
        longer = template.render((*messages, Message("user", "x")), tools)
    except RejectedError:
        return tail
    begin = len(text) - len(tail)
    return longer[begin:] if longer.startswith(text[:begin]) else tail


def _closing_marker(text: str, template: ChatTemplate) -> str | None:
    """Find the tail of a tool-calling turn that ends unlike a plain one: its closing token, if it has only one."""
    known = "|".join(map(re.escape, template.added_tokens))
    closing = re.search(rf"\s*(?:(?:{known})\s*)+\Z", text) if known else None
    if closing is None or len(re.findall(known, closing.group())) != 1:
        return None
    return closing.group()


def _excerpt(text: str, limit: int = 60) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[:limit] + "...")
