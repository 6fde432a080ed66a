"""The turns of a conversation, in any of the usual spellings, as Messages. Shared by all formats with messages.

A list of turns holds objects with a role and a text, exchanges (an object or a list with what was asked and what was answered),
or plain texts of the user and the assistant in turn. Text and calls of the assistant that follow one another are one turn.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, RowError, finite, json_value, kind_of, objects, value_in
from posttrain.types import Message, Role, ToolCall

Turns = tuple[Message, ...]

_ROLE_WORDS: Mapping[Role, str] = {
    "system": "system developer systemmessage",
    "user": "user human prompter humanmessage",
    "assistant": "assistant gpt chatgpt bot chatbot model ai aimessage bing bard claude "
    "function_call function_calls tool_call tool_calls",
    "tool": "tool function observation environment function_response function_result tool_response tool_result toolmessage "
    "functionmessage ipython",
}
ROLE_NAMES: Mapping[str, Role] = {word: role for role, words in _ROLE_WORDS.items() for word in words.split()}
"""Every role name that is understood, and the role it stands for."""
CALL_ROLES = ("function_call", "function_calls", "tool_call", "tool_calls")
"""Roles of turns whose text is a call."""

_PLAIN_ROLES = {name: role for name, role in ROLE_NAMES.items() if name not in CALL_ROLES}
_ROLES = ("role", "from", "speaker", "sender", "author", "type")
_TEXTS = ("content", "value", "text", "message", "parts")
_QUESTIONS = ("human", "user", "input", "prompt", "question", "query", "instruction", "q")
_ANSWERS = ("assistant", "gpt", "bot", "ai", "output", "response", "answer", "completion", "reply", "a")
"""Keys of an exchange, in small letters."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")
_CALL_PARTS = ("tool_call", "tool_use", "function_call")
_SETTINGS = ("on", "off", "true", "false", "yes", "no", "low", "medium", "high", "none", "enabled", "disabled", "auto")
"""Words that say how much is to be thought; they are not thoughts."""
_WORDS = {"true": True, "false": False}
_MEDIUM = re.compile(r"^\w+:|\.\w{2,4}$|[/\\]\w+$|^\S{200,}$")
"""A URL, the name of a file, a path, or the bytes of one in base64."""


def talk(turns: Sequence[Any]) -> Turns:
    """The messages of a list of turns. Raises RowError: ``unknown_role``, ``wrong_shape``, ``unsupported_content``, ``needs_image``,
    ``partial_training``, ``unclear_mark``, ...
    """
    if turns and isinstance(turns[0], str) and all(isinstance(turn, str) for turn in turns):
        if len(turns) < 2:
            raise RowError("wrong_shape", "the conversation is one text, expected turns")
        sides: tuple[Role, Role] = ("user", "assistant")
        return tuple(map(Message, cycle(sides), turns))
    found: list[Message] = []
    for turn in turns:
        if (plain := plain_turn(turn)) is not None:
            found.append(plain)
        else:
            found += _messages(turn)
    return _joined(found)


def _joined(messages: Iterable[Message]) -> Turns:
    """The messages, where calls that follow upon a text or other calls of the assistant are part of that turn."""
    found: list[Message] = []
    for message in messages:
        before = found[-1] if found and message.tool_calls and not message.content.strip() else None
        if before is None or not before.role == message.role == "assistant" or before.weight != message.weight:
            found.append(message)
            continue
        thoughts = "\n".join(part for part in (before.reasoning, message.reasoning) if part)
        calls = before.tool_calls + message.tool_calls
        found[-1] = replace(before, tool_calls=calls, reasoning=thoughts or before.reasoning)
    return tuple(found)


def turns_under(record: Foreign, key: str, role: Role) -> Turns:
    """The turns under a key that holds text (one turn of ``role``), a message, messages, or messages as JSON text."""
    value = record.get(key)
    if isinstance(value, str):
        return (Message(role, value),) if messages_in(value) is None else talk(objects(record, key))
    if (plain := plain_turn(value)) is not None:
        return (plain,)
    if isinstance(value, Mapping):
        if isinstance(talked := value.get("messages"), list) and talked:
            return talk(talked)
        if _named(value, _ROLES) is None and isinstance(text := value.get(_named(value, _TEXTS) or ""), str):
            return (Message(role, text),)
        return _joined(_messages(value))
    if not isinstance(value, list):
        raise RowError("wrong_shape", f"{key!r} is {kind_of(value)}, expected text or messages")
    return talk(objects(record, key))


def messages_in(text: str) -> list[Any] | None:
    """The messages that were stored as JSON (or Python) text; None where it is a text as any other."""
    if text.lstrip()[:1] not in ("[", "{") or not any(role in text for role in _ROLES):
        return None
    value = value_in(text)
    turns = value if isinstance(value, list) else [value]
    return turns if are_turns(turns) and all(_named(turn, _TEXTS) for turn in turns) else None


def role_of(turn: Foreign) -> Role | None:
    """The role of a turn; None where it names none that is known."""
    name = turn.get("role")
    if name is None:
        name = turn.get("from")
    if isinstance(name, str) and name in ROLE_NAMES:  # nearly every turn; what follows would give the same
        return ROLE_NAMES[name]
    key = _named(turn, _ROLES)
    return None if key is None else ROLE_NAMES.get(_role_name(turn[key]))


def are_turns(value: Sequence[Any]) -> bool:
    """Whether these are turns of a conversation, each with a role that is known."""
    return bool(value) and all(isinstance(turn, Mapping) and role_of(turn) is not None for turn in value)


def text_of(value: Any, what: str) -> str:
    """What stands where a text was wanted: text as it is, numbers and booleans in words of JSON, objects and lists as JSON text."""
    if isinstance(value, str):
        return value
    if value is None or not keys.is_present(value):
        return ""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise RowError("wrong_shape", f"{what} is {kind_of(value)} that is not JSON") from None


def thoughts_of(record: Foreign) -> tuple[str, str] | None:
    """(key, text) of what was thought, under any of its usual names. Raises RowError where it isn't text."""
    if record.keys().isdisjoint(keys.REASONINGS):
        return None
    for key in keys.REASONINGS:
        value = record.get(key)
        if not keys.is_present(value) or isinstance(value, bool | int | float):
            continue
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)
        if not isinstance(value, str):
            raise RowError("wrong_shape", f"{key!r} is {kind_of(value)}, expected text")
        if value.strip().lower() not in _SETTINGS:
            return key, value
    return None


def said_in(content: Any) -> str:
    """The text of a content, which may stand in parts. Raises RowError where there is something else in it."""
    text, reasoning, calls, results = _content(content)
    if reasoning or calls or results:
        raise RowError("wrong_shape", "expected text, found parts of other types")
    return text


def media_reason(record: Foreign) -> tuple[str, str] | None:
    """(reason, key) of an image, audio or video that a record or turn brings along."""
    if record.keys().isdisjoint(keys.ALL_MEDIA):
        return None
    for reason, names in keys.MEDIA.items():
        for key in names:
            value = record.get(key)
            if keys.is_present(value) and not isinstance(value, bool | int | float) and not _is_about(key, value):
                return reason, key
    return None


def _refuse_media(turn: Foreign) -> None:
    if (media := media_reason(turn)) is not None:
        raise RowError(media[0], f"{media[1]!r} of a turn: a text model can't be given it")


def _is_about(key: str, value: Any) -> bool:
    """Whether a text only speaks of an image or recording: it is a word of a setting, a sentence, or a ``speech`` that was held."""
    if not isinstance(value, str) or _MEDIUM.search(value.strip()):
        return False
    return key == "speech" or len(value.split()) > 1 or value.strip().lower() in (*_SETTINGS, "n/a", "null", "nan")


def weight_of(turn: Foreign) -> float | None:
    """The loss weight of an assistant turn: that of all its marks, None where there is none (= 1.0).

    Raises RowError: ``partial_training`` where only parts of its text are trained on, ``unclear_mark`` for a mask that may mean either.
    """
    if turn.keys().isdisjoint(keys.MARKS):
        return None
    weights: list[float] = []
    for key in keys.MARKS:
        value = turn.get(key)
        if not keys.is_present(value) and not isinstance(value, float):
            continue
        if isinstance(value, str):
            value = _WORDS.get(value.strip().lower(), value)
        if key == "train_detail":
            value = _trained(value, turn)
        elif key in ("mask", "masked"):
            if key == "mask" and value not in (0, False):
                detail = f"'mask' is {value!r}: whether that turn is trained on can't be told; say loss or weight"
                raise RowError("unclear_mark", detail)
            value = not value
        if isinstance(value, bool) and key not in keys.WEIGHTS:
            weights += [] if value else [0.0]
            continue
        weight = None if isinstance(value, str) else finite(value)
        if weight is None or weight < 0:
            shown = value if isinstance(value, bool) else str(value)[:80]
            raise RowError("wrong_shape", f"the {key} of a turn is {shown!r}, expected a number of at least 0")
        if key not in keys.WEIGHTS and value not in (0, 1):  # a loss may have been measured
            raise RowError("unclear_mark", f"{key!r} is {value}, neither on nor off: say weight where it is one")
        weights += [weight]
    return math.prod(weights) if weights else None


def _trained(spans: Any, turn: Foreign) -> bool:
    """Whether spans of a text (Axolotl's ``train_detail``) train on all of it; RowError where on a part."""
    marked = [span for span in spans if isinstance(span, Mapping)] if isinstance(spans, list) else []
    trained = [bool(span.get("train")) for span in marked]
    ends = [(span.get("begin_offset"), span.get("end_offset")) for span in marked]
    covered = sum(end - begin + 1 for begin, end in ends if isinstance(begin, int) and isinstance(end, int))
    text = str(turn.get(_named(turn, _TEXTS) or "", ""))
    if marked and not any(trained):
        return False
    if marked and all(trained) and covered >= len(text):
        return True
    raise RowError("partial_training", "train_detail trains on a part of a turn; whole turns can be trained on or not")


# ---- one turn ------------------------------------------------------------------------------------------------------


def plain_turn(turn: Any) -> Message | None:
    """The message of a turn that has a role and a text and nothing else, as nearly every one: :func:`_spoken` would give the same."""
    if not isinstance(turn, dict) or len(turn) != 2:
        return None
    name, text = turn.get("role"), turn.get("content")
    if name is None:
        name, text = turn.get("from"), turn.get("value")
    role = _PLAIN_ROLES.get(name) if isinstance(name, str) else None
    return Message(role, text) if role is not None and isinstance(text, str) else None


def _messages(turn: Any) -> Iterable[Message]:
    """The messages of one entry of a list of turns."""
    if isinstance(turn, Mapping):
        turn = _unwrapped(turn)
        unknown = role_of(turn) is None and _named_small(turn, _QUESTIONS) and "role" not in turn
        return _exchange(turn) if unknown or _named(turn, _ROLES) is None else _spoken(turn)
    if isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn):
        return Message("user", turn[0]), Message("assistant", turn[1])
    raise RowError("wrong_shape", f"a turn is {kind_of(turn)}, expected an object with role and content")


def _unwrapped(turn: Foreign) -> Foreign:
    """LangChain's turns without what is around them: ``{"type": "human", "data": {...}}``, or a serialised HumanMessage."""
    inner, names = turn.get("kwargs"), turn.get("id")
    if isinstance(inner, Mapping) and isinstance(names, list) and names and isinstance(names[-1], str):
        return {"type": names[-1].removesuffix("Chunk"), **inner}
    if isinstance(turn.get("data"), Mapping) and isinstance(turn.get("type"), str):
        return {**turn["data"], "type": turn["type"]}
    return turn


def _spoken(turn: Foreign) -> Iterator[Message]:
    """The messages of a turn with a role. A call with its observation is two, results beside a text of the user several."""
    role = role_of(turn)
    key = _named(turn, _ROLES)
    if role is None or key is None:
        raise RowError("unknown_role", f"role {turn.get(key or 'role')!r}"[:120])
    _refuse_media(turn)
    text_key = _named(turn, _TEXTS)
    content = turn.get(text_key) if text_key is not None else None
    name = turn.get("name") if isinstance(turn.get("name"), str) else None
    call_id = _id(turn.get("tool_call_id"))
    if role == "tool" and "observation" in turn and text_key is None:
        # ChatGLM3 writes a call and its result as one turn
        call = _call({"name": name, "arguments": turn.get("parameters", turn.get("arguments"))})
        yield Message("assistant", "", tool_calls=(call,))
        yield Message("tool", text_of(turn["observation"], "the observation"), name=name)
        return
    if role != "assistant" and not keys.is_present(content) and (others := _other_texts(turn)):
        raise RowError("wrong_shape", f"a turn of the {role} without a text, but with {', '.join(others)}"[:200])
    if _role_name(turn[key]) in CALL_ROLES:
        yield Message(role, "", tool_calls=calls_of(content if content is not None else turn), weight=weight_of(turn))
        return
    if role == "tool" and not isinstance(content, list):
        yield Message(role, text_of(content, "a tool result"), name=name, tool_call_id=call_id)
        return
    text, reasoning, calls, results = _content(content)
    if role != "assistant":
        yield from results
        if text or not results:
            yield Message(role, text, name=name, tool_call_id=call_id) if role == "tool" else Message(role, text)
        return
    if (thoughts := thoughts_of(turn)) is not None:
        reasoning = (reasoning or "") + thoughts[1]
    for field in ("tool_calls", "function_call", "function_calls"):
        calls += calls_of(turn.get(field))
    yield Message(role, text, reasoning, calls, weight_of(turn))


def _other_texts(turn: Foreign) -> list[str]:
    """The keys of a turn under which its text may stand, where it does not stand under any usual one."""
    known = {*_ROLES, *_TEXTS, *keys.TOOLS, "name", "id", "tool_call_id"}
    others = ((key, value) for key, value in turn.items() if key not in known)
    return [str(key) for key, value in others if isinstance(value, str | list | dict) and value]


def _exchange(turn: Foreign) -> Iterator[Message]:
    """What was asked and what was answered, in one entry of a conversation."""
    question_key, answer_key = _named_small(turn, _QUESTIONS), _named_small(turn, _ANSWERS)
    short = "q" in (question_key, answer_key) or "a" in (question_key, answer_key)
    text_key = _named(turn, _TEXTS)
    has_text = text_key is not None and keys.is_present(turn[text_key])  # of its own, which someone must have said
    if question_key is None or has_text or (short and not (answer_key and keys.is_present(turn[question_key]))):
        found = ", ".join(map(str, turn))
        raise RowError("unknown_role", f"a turn without a role; its keys: {found}"[:200])
    _refuse_media(turn)
    system = next((turn[key] for key in keys.SYSTEMS if keys.is_present(turn.get(key))), None)
    if system is not None:
        yield Message("system", text_of(system, "the system prompt"))
    parts = [turn[question_key]]
    if question_key.lower() == "instruction" and keys.is_present(turn.get("input")):
        parts.append(turn["input"])
    if any(isinstance(part, list | Mapping) and part for part in parts):
        raise RowError("wrong_shape", f"{question_key!r} of a turn is {kind_of(turn[question_key])}, expected text")
    question = "\n".join(text_of(part, "what is asked") for part in parts if keys.is_present(part))
    if question:
        yield Message("user", question)
    if answer_key is not None and keys.is_present(turn[answer_key]):
        reasoning = (thoughts_of(turn) or ("", None))[1]
        yield Message("assistant", text_of(turn[answer_key], "what is answered"), reasoning, weight=weight_of(turn))


def _named_small(turn: Foreign, names: Sequence[str]) -> str | None:
    small = {str(key).lower(): key for key in turn}
    return keys.first(turn, [small[name] for name in names if name in small])


def _named(turn: Foreign, names: Sequence[str]) -> str | None:
    """The key of a role or a text: the first that is present. A role that says nothing is none, nor is a ``type`` that names none."""
    found = keys.first(turn, names)
    if names is _ROLES and found is not None and not keys.is_present(turn[found]):
        return None
    if found == "type" and _role_name(turn["type"]) not in ROLE_NAMES:
        return None
    return found


def _role_name(value: Any) -> str:
    if isinstance(value, Mapping):  # the author of a ChatGPT export
        value = value.get("role")
    return value.strip().lower().replace("-", "_").replace(" ", "_") if isinstance(value, str) else ""


def _content(content: Any) -> tuple[str, str | None, tuple[ToolCall, ...], list[Message]]:
    """(text, reasoning, tool calls, tool results) of a content; several parts of a kind are joined as they are."""
    if content is None or content == {} or isinstance(content, str):
        return content or "", None, (), []
    if isinstance(content, Mapping):
        content = content["parts"] if isinstance(content.get("parts"), list) else [content]
    if not isinstance(content, list):
        raise RowError("wrong_shape", f"the content of a turn is {kind_of(content)}, expected text or parts")
    text, reasoning = "", None  # type: tuple[str, str | None]
    calls: tuple[ToolCall, ...] = ()
    results: list[Message] = []
    for part in content:
        if isinstance(part, str):
            text += part
            continue
        if not isinstance(part, Mapping):
            raise RowError("wrong_shape", f"a content part is {kind_of(part)}, expected an object")
        media = media_reason(part)
        kind = str(part.get("type") or (media[1] if media else "text"))
        value = next((part[key] for key in ("text", "value", "content", kind) if part.get(key) is not None), None)
        if kind in _CALL_PARTS:
            calls += calls_of(value if value is not None else part)
        elif kind == "tool_result":
            inner = _content(value)[0] if isinstance(value, list) else text_of(value, "a tool result")
            call_id = _id(part.get("tool_use_id") or part.get("tool_call_id"))
            results.append(Message("tool", inner, tool_call_id=call_id))
        elif kind not in _TEXT_PARTS + _REASONING_PARTS:
            reason = next(
                (f"needs_{name}" for name in ("image", "audio", "video") if name in kind), "unsupported_content"
            )
            raise RowError(reason, f"a part of type {kind!r}; only text can be trained on"[:200])
        elif not isinstance(value, str):
            raise RowError("wrong_shape", f"a part of type {kind!r} holds {kind_of(value)}, expected text")
        elif kind in _REASONING_PARTS:
            reasoning = (reasoning or "") + value
        else:
            text += value
    return text, reasoning, calls, results


# ---- calls ---------------------------------------------------------------------------------------------------------


def calls_of(value: Any) -> tuple[ToolCall, ...]:
    """The calls of ``tool_calls``, of a legacy ``function_call``, or of text: JSON with one call or a list, or Python calls."""
    if not keys.is_present(value):
        return ()
    if isinstance(value, str):
        value = _calls_in(value)
    return tuple(_call(item) for item in (value if isinstance(value, list | tuple) else [value]))


def _calls_in(text: str) -> Any:
    """JSON, JSON values after one another, or calls as Python writes them: ``add(a=2, b=5)``."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines):
        return [json_value(line, "tool call") for line in lines]
    found = _python_calls(text)
    if found is None:
        raise RowError("wrong_shape", f"no tool call can be read from: {text[:80]!r}")
    return found


def _python_calls(text: str) -> list[dict[str, Any]] | None:
    """Calls with keyword arguments of plain values; None for any other text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes in the texts
            body = ast.parse(text.strip().replace(";\n", "\n")).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    calls: list[dict[str, Any]] = []
    for statement in body:
        value = statement.value if isinstance(statement, ast.Expr) else None
        for call in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name | ast.Attribute):
                return None
            try:
                arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords if word.arg}
                json.dumps(arguments, allow_nan=False)
            except (ValueError, TypeError, RecursionError):
                return None
            calls.append({"name": ast.unparse(call.func), "arguments": arguments})
    return calls or None


def _call(item: Any) -> ToolCall:
    inner = item.get("function") if isinstance(item, Mapping) and item.get("function") is not None else item
    if isinstance(inner, str) and isinstance(item, Mapping):
        inner = {**item, "name": inner}
    name = inner.get("name", inner.get("tool_name")) if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(name, str) or not name.strip():
        raise RowError("wrong_shape", f"a tool call without a function name: {str(item)[:80]}")
    names = ("arguments", "parameters", "args", "input")
    arguments = next((inner[key] for key in names if inner.get(key) is not None), None)
    if isinstance(arguments, str) and arguments.strip():
        parsed = json_value(arguments, f"arguments of {name}")
    else:
        parsed = {} if arguments is None or isinstance(arguments, str) else arguments
        arguments = text_of(parsed, f"arguments of {name}") or "{}"
    if not isinstance(parsed, Mapping):
        raise RowError("wrong_shape", f"the arguments of {name} are {kind_of(parsed)}, expected an object")
    return ToolCall(name, arguments, _id(item.get("id") if isinstance(item, Mapping) else None))


def _id(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
