"""Formats of conversations, and of prompts that wait for their reply (docs/data-formats.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from posttrain.data.formats import keys
from posttrain.data.formats.base import Foreign, RowError, items, kind_of, lacking, objects, optional_text
from posttrain.data.formats.choices import counted, offered, right_ones
from posttrain.data.formats.drafts import Format, Prompt, Talk, having
from posttrain.data.formats.prompts import (
    has_reply,
    instruction_of,
    not_blank,
    prompt_key_of,
    prompt_of,
    reply_under,
    waiting_turns,
)
from posttrain.data.formats.turns import Turns, are_turns, calls_of, messages_in, role_of, talk, text_of, turns_under
from posttrain.types import Message, ToolCall


def _is_messages(record: Foreign) -> bool:
    return "messages" in record and has_reply(record["messages"])


def _messages(record: Foreign) -> Talk:
    """OpenAI messages: ``messages`` with role and content; content may be text, null or typed parts."""
    return Talk(record, {"messages"}, talk(items(record, "messages")))


_SHAREGPT_KEYS = (*(key for key in keys.TALKS if key != "messages"), "data")
_SURE = ("conversations", "conversation")
_OF_TEXTS = ("conversations", "conversation", "dialogue", "dialog", "data")
"""Keys under which plain texts are turns of the user and the assistant; ``turns`` of a benchmark are the user's alone."""


def _is_sharegpt(record: Foreign) -> bool:
    key = keys.first(record, _SHAREGPT_KEYS)
    if key is None:
        return False
    value = record[key]
    texts = isinstance(value, list) and any(isinstance(turn, str) for turn in value)
    if texts and key not in _OF_TEXTS:
        return False
    listed = isinstance(value, list) or (isinstance(value, str) and messages_in(value) is not None)
    if key == "data" and not (isinstance(value, list) and all(isinstance(turn, str) for turn in value)):
        return False
    return (listed or key in _SURE) and has_reply(value)


def _sharegpt(record: Foreign) -> Talk:
    """ShareGPT: ``conversations`` with from and value (or role and content), optionally ``system`` and ``tools``."""
    key = keys.first(record, _SHAREGPT_KEYS) or "conversations"
    return Talk(record, {key}, talk(items(record, key)))


_MARKS = re.compile(r"^\s*<\|[\w ]+\|>:?\s?|\s*<eo[a-z]>\s*$")


def _is_moss(record: Foreign) -> bool:
    chat = record.get("chat")
    return isinstance(chat, Mapping) and any(str(key).startswith("turn_") for key in chat)


def _moss(record: Foreign) -> Talk:
    """MOSS: under ``chat`` an object of turns (``turn_1``, ...) with what the human and the model said, in MOSS's own marks."""
    chat = record.get("chat")
    if not isinstance(chat, Mapping):
        raise RowError("wrong_shape", f"'chat' is {kind_of(chat)}, expected an object of turns")
    ordered = sorted(keys.present(chat).items(), key=lambda item: (len(str(item[0])), str(item[0])))
    turns = tuple(message for _, turn in ordered for message in _moss_turn(turn))
    return Talk(record, {"chat", "num_turns", "conversation_id"}, turns)


def _moss_turn(turn: object) -> Iterator[Message]:
    if not isinstance(turn, Mapping):
        raise RowError("wrong_shape", f"a turn is {kind_of(turn)}, expected an object")
    texts = {str(key): _unmarked(key, value) for key, value in turn.items()}
    for key in ("Commands", "Tool Responses"):
        if texts.get(key, "None") not in ("", "None"):
            raise RowError("unsupported_content", f"{key!r} of MOSS's plug-ins: {texts[key][:80]}")
    yield Message("user", texts.get("Human", ""))
    thoughts = texts.get("Inner Thoughts", "None")
    yield Message("assistant", texts.get("MOSS", ""), thoughts if thoughts not in ("", "None") else None)


def _unmarked(key: object, value: object) -> str:
    if not keys.is_present(value):
        return ""
    if not isinstance(value, str):
        raise RowError("wrong_shape", f"{key!r} of a turn is {kind_of(value)}, expected text")
    return _MARKS.sub("", value)


_SPOKEN = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*")
_QUOTED = re.compile(r"""\s*\{\s*"name":\s*"([^"]+)"\s*,\s*"arguments":\s*'(.*)'\s*\}\s*""", re.DOTALL)


def _is_glaive(record: Foreign) -> bool:
    chat = record.get("chat")
    return isinstance(chat, str) and _SPOKEN.match(chat) is not None and "ASSISTANT:" in chat


def _glaive(record: Foreign) -> Talk:
    """Glaive's function calling: under ``chat`` a text with ``USER:``, ``ASSISTANT:`` and ``FUNCTION RESPONSE:``, under ``system`` the tools."""
    before, *parts = _SPOKEN.split(optional_text(record, "chat"))
    if before.strip() or not parts:
        raise RowError("wrong_shape", f"not a chat of USER and ASSISTANT: {before[:80]!r}")
    system, tools = _system_and_tools(optional_text(record, "system"))
    turns = tuple(_glaive_turn(name, text) for name, text in zip(parts[::2], parts[1::2], strict=True))
    return Talk({**record, **({"tools": tools} if tools else {}), "system": system}, {"chat"}, turns)


def _glaive_turn(name: str, text: str) -> Message:
    text = text.replace("<|endoftext|>", "").strip()
    if name != "ASSISTANT":
        return Message("user" if name == "USER" else "tool", text)
    text, _, call = text.partition("<functioncall>")
    calls: tuple[ToolCall, ...] = ()
    if call:
        quoted = _QUOTED.fullmatch(call)
        calls = calls_of(call if quoted is None else {"name": quoted[1], "arguments": quoted[2]})
    return Message("assistant", text.strip(), tool_calls=calls)


def _system_and_tools(text: str) -> tuple[str, list[dict[str, Any]]]:
    """(the system prompt, the tools whose definitions follow upon it); the whole text where these can't be read."""
    text = text.strip().removeprefix("SYSTEM:").strip()
    tools: list[dict[str, Any]] = []
    prompt, at = text, text.find("{")
    while 0 <= at < len(text):
        try:
            tool, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            return text, []
        prompt = prompt if tools else text[:at].strip()
        tools.append(tool)
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return prompt, tools


def _is_export(record: Foreign) -> bool:
    tree = record.get("mapping")
    nodes = list(tree.values()) if isinstance(tree, Mapping) else []
    return bool(nodes) and all(
        isinstance(node, Mapping) and "message" in node and isinstance(node.get("parent"), str | None) for node in nodes
    )


def _export(record: Foreign) -> Talk:
    """ChatGPT's export (conversations.json): under ``mapping`` a tree of messages, each with its parent."""
    if not _is_export(record):
        raise RowError("wrong_shape", f"'mapping' is {kind_of(record.get('mapping'))}, expected a tree of messages")
    turns = [turn for message in _way(record["mapping"], record.get("current_node")) for turn in _export_turn(message)]
    return Talk(record, {"mapping", "current_node", "create_time", "update_time"}, talk(turns))


def _way(tree: Mapping[str, Foreign], leaf: Any) -> list[Foreign]:
    """The messages from the root to a leaf. Raises RowError (``wrong_shape``) where this isn't a tree."""
    parents = [node.get("parent", "") for node in tree.values()]
    if parents.count(None) != 1 or not {None, *tree} >= set(parents):
        raise RowError("wrong_shape", f"the messages are not a tree with one root: their parents are {parents}"[:200])
    if not isinstance(leaf, str) or leaf not in tree:
        leaf = next((name for name in reversed(list(tree)) if name not in parents), None)
    found: list[Foreign] = []
    while leaf is not None and len(found) <= len(tree):
        found.append(tree[leaf]["message"])
        leaf = tree[leaf]["parent"]
    if leaf is not None:
        raise RowError("wrong_shape", "the messages are not a tree: some are their own ancestors")
    return [message for message in reversed(found) if message is not None]


def _export_turn(message: Foreign) -> Iterator[Foreign]:
    """The turn of a message, as other formats write it; none where it is hidden."""
    fields = message if isinstance(message, Mapping) else {}
    author, content, about = (fields.get(key) for key in ("author", "content", "metadata"))
    if not isinstance(content, Mapping) or not isinstance(author, Mapping):
        raise RowError("wrong_shape", f"a message without author or content: {str(message)[:80]}")
    parts = content.get("parts")
    if isinstance(about, Mapping) and about.get("is_visually_hidden_from_conversation"):
        return
    if author.get("role") == "system" and parts in ([""], [], None):
        return
    kind = content.get("content_type", "text")
    if kind == "multimodal_text":
        raise RowError("needs_image", "a message with an image or a recording")
    if kind != "text" or author.get("role") == "tool" or message.get("recipient", "all") != "all":
        raise RowError("unsupported_content", f"a message of type {kind!r} of or to one of ChatGPT's own tools"[:200])
    if not isinstance(parts, list):
        raise RowError("wrong_shape", f"the parts of a message are {kind_of(parts)}, expected a list")
    yield {"role": author.get("role"), "content": parts}


_CALLS = ("answers", "function_calls", "tool_calls")


def _is_xlam(record: Foreign) -> bool:
    answers, tools = keys.first(record, _CALLS), keys.first(record, keys.TOOLS)
    if answers is None or tools is None or prompt_key_of(record) is None:
        return False
    try:
        return bool(calls_of(record[answers]))
    except RowError:
        return False


def _xlam(record: Foreign) -> Talk:
    """xLAM's function calling: a ``query``, the ``tools`` and, under ``answers``, the calls that answer it (lists, or their JSON text)."""
    prompt, used = prompt_of(record)
    answers = keys.first(record, _CALLS)
    if answers is None or not any(turn.content.strip() for turn in prompt):
        raise lacking(record, "no query or no answers")
    reply = Message("assistant", "", tool_calls=calls_of(record[answers]))
    return Talk(record, {*used, answers}, (*prompt, reply))


_QUESTIONS = ("question", "prompt", "query", "problem", "instruction", "input", "question_stem")
_RIGHT = ("answer", *keys.CORRECT, "target", "label", "solution")
_WRITTEN = ("messages", "conversations", "output", "response", "completion")
"""Where a reply stands as it is."""


def counts_from_one(records: Iterable[Foreign]) -> bool:
    """Whether the answers of a file are numbers from 1 to the number of options."""
    found = []
    for record in filter(_is_choice, records):
        options = offered(record)[1]
        if (number := counted(record[keys.first(record, _RIGHT) or ""], options)) is not None:
            found.append((number, len(options)))
    return all(number > 0 for number, _ in found) and any(number == options for number, options in found)


def _is_choice(record: Foreign) -> bool:
    asked = keys.first(record, _QUESTIONS) is not None and keys.first(record, _RIGHT) is not None
    return asked and record.keys().isdisjoint(_WRITTEN) and bool(offered(record)[1])


def _choice(record: Foreign, first: int = 0) -> Talk:
    """Multiple choice: a question, its options (a list, letters with texts, or columns A, B, C, D) and which one is right."""
    question, answer_key = keys.first(record, _QUESTIONS), keys.first(record, _RIGHT)
    columns, options = offered(record)
    if question is None or answer_key is None or not options:
        raise lacking(record, "no question, options or answer")
    prompt = turns_under(record, question, "user") if keys.is_present(record[question]) else ()
    not_blank(prompt, "question")
    answer = record[answer_key]
    if isinstance(answer, str) and answer in columns:  # option2
        answer = options[columns.index(answer)].label
    if isinstance(record[columns[0]], list) and answer in record[columns[0]] and not isinstance(answer, bool):
        answer = str(answer)  # one of the numbers that are the options
    right = right_ones(answer, options, first)
    reply = "\n".join(option.line for option in right) if right else text_of(answer, repr(answer_key))
    # the options as a column of their own are put below the question with everything else that stands beside it
    offer = {"options": [option._asdict() for option in options]}
    named = {key: value for key, value in record.items() if key not in columns} | offer
    others = {key for key in _RIGHT if key in record}
    return Talk(named, {question, *others}, (*prompt, Message("assistant", reply)))


_OUTPUTS = ("output", "response")


def _is_alpaca(record: Foreign) -> bool:
    return "instruction" in record and not record.keys().isdisjoint((*_OUTPUTS, "instances"))


def _alpaca(record: Foreign) -> Talk:
    """Alpaca: ``instruction``, optional ``input`` and ``output``; also the spellings of its relatives."""
    if not any(keys.is_present(record.get(key)) for key in _OUTPUTS) and "instances" in record:
        instances = objects(record, "instances")
        if len(instances) != 1:
            raise RowError("wrong_shape", f"'instances' holds {len(instances)} items, expected one")
        record = {**record, **instances[0]}
    output = keys.first(record, _OUTPUTS)
    if "instruction" not in record or output is None:
        raise lacking(record, "no instruction or no output")
    prompt, used = instruction_of(record)
    return Talk(record, {"instances", *used, *_OUTPUTS}, not_blank(prompt) + reply_under(record, output))


def _prompt_completion(record: Foreign) -> Talk:
    """Prompt and completion: each is text, or a list of messages (a completion also a single message)."""
    prompt = turns_under(record, "prompt", "user")
    given = record.get("completion")
    if given is None:
        raise RowError("wrong_shape", "'completion' is null, expected text or messages")
    completion = turns_under(record, "completion", "assistant") if given == [] else reply_under(record, "completion")
    not_blank(prompt)
    if any(turn.role == "user" for turn in completion):
        raise RowError("wrong_shape", "the completion holds a user turn")
    return Talk(record, {"prompt", "completion"}, prompt + completion)


def _of_another(prompt: str, reply: str) -> bool:
    """Whether two columns are another format's; and a ``source`` is mostly where a row comes from."""
    alpaca = prompt == "instruction" and reply in _OUTPUTS
    return alpaca or (prompt, reply) == ("prompt", "completion") or prompt == "source"


_PAIRED = {
    "question": "solution answer response std_answer",  # beside a solution the answer is the last line of it (LIMO, NuminaMath)
    "problem": "solution answer",
    "query": "response answer",
    "prompt": "response",
    "input": "output target",
    "source": "target",
}
TEXT_PAIRS = (
    *((prompt, reply) for prompt, replies in _PAIRED.items() for reply in replies.split()),
    ("question", "answers"),
    *((prompt, reply) for prompt in keys.PROMPTS for reply in keys.REPLIES if not _of_another(prompt, reply)),
)
"""Column names that make a pair, first match first."""
_PLACES = {pair: place for place, pair in reversed(list(enumerate(TEXT_PAIRS)))}
_FIRST, _SECOND = (tuple(dict.fromkeys(pair[side] for pair in TEXT_PAIRS)) for side in (0, 1))


def _columns(record: Foreign) -> tuple[str, str] | None:
    """The first two columns of a pair that are present, else that the record has at all."""
    replies = [key for key in _SECOND if key in record]
    had = [(key, reply) for key in _FIRST if key in record for reply in replies if (key, reply) in _PLACES]
    filled = [pair for pair in had if keys.is_present(record[pair[0]]) and keys.is_present(record[pair[1]])]
    return min(filled or had, key=_PLACES.__getitem__, default=None)


def _is_text_pair(record: Foreign) -> bool:
    columns = _columns(record)
    prompt = None if columns is None else record[columns[0]]
    return columns is not None and (isinstance(prompt, str | None) or (isinstance(prompt, list) and are_turns(prompt)))


def _text_pair(record: Foreign) -> Talk:
    """Text pairs: two columns, a question and its answer, by any of the usual names."""
    columns = _columns(record)
    if columns is None:
        raise lacking(record, "no pair of text columns")
    prompt = not_blank(_text_prompt(record, columns[0]))
    return Talk(record, set(columns), prompt + reply_under(record, columns[1]))


def _text_prompt(record: Foreign, key: str) -> Turns:
    """The turns of a prompt; an instruction may be a transcript, as in alpaca's."""
    value = record[key]
    turns = waiting_turns(value) if key == "instruction" and isinstance(value, str) else None
    return turns or ((Message("user", ""),) if value is None else turns_under(record, key, "user"))


# ---- prompts -------------------------------------------------------------------------------------------------------

_NO_PROMPTS = (*keys.REPLIES, *keys.SIDES, "text", "conversation_a", "response_0", "response_1", "response_a")
_REPLY_WORDS = keys.names_of(
    "judg feedback answer reply output completion assistant solution chosen rejected gpt bot resp code"
)
"""Parts of keys under which a text may be the reply."""
_NO_REPLY_WORDS = keys.names_of("reference gold ground expected final correct id len count format type")
"""Parts of keys of what a reply is compared with, and of numbers and names."""


def _is_prompt(record: Foreign) -> bool:
    talks = [key for key in keys.TALKS if key in record]
    if not record.keys().isdisjoint(_NO_PROMPTS) or any(map(_may_be_reply, record, record.values())):
        return False
    if talks:
        return not has_reply(record[talks[0]])
    key = prompt_key_of(record)
    value = None if key is None else record[key]
    if isinstance(value, list):
        return not has_reply(value)
    return isinstance(value, str) or (isinstance(value, Mapping) and role_of(value) == "user")


def _may_be_reply(key: str, value: Any) -> bool:
    name = str(key).lower()
    text = value[0] if isinstance(value, list) and value else value
    if not isinstance(text, str) or not any(word in name for word in _REPLY_WORDS):
        return False
    one_word = "code" in name and len(text.split()) <= 1  # that of a language, or an error
    return not one_word and not any(word in name for word in _NO_REPLY_WORDS)


def _prompt(record: Foreign) -> Prompt:
    """Prompts under one of the usual keys, as text, a message or messages, or as a conversation without a turn of the assistant."""
    key = keys.first(record, keys.TALKS)
    if key is not None and keys.is_present(record[key]):
        return Prompt(Talk(record, {key}, talk(items(record, key))))
    prompt, used = prompt_of(record)
    if not used:
        raise lacking(record, "no prompt")
    return Prompt(Talk(record, used, prompt))


# ---- the formats ---------------------------------------------------------------------------------------------------

MESSAGES = Format("messages", _is_messages, _messages)
SHAREGPT = Format("sharegpt", _is_sharegpt, _sharegpt)
MOSS = Format("moss", _is_moss, _moss)
GLAIVE = Format("glaive", _is_glaive, _glaive)
CHATGPT_EXPORT = Format("chatgpt_export", _is_export, _export)
XLAM = Format("xlam", _is_xlam, _xlam)
MULTIPLE_CHOICE = Format("multiple_choice", _is_choice, _choice)
MULTIPLE_CHOICE_FROM_1 = Format("multiple_choice_from_1", _is_choice, partial(_choice, first=1))
ALPACA = Format("alpaca", _is_alpaca, _alpaca)
PROMPT_COMPLETION = Format("prompt_completion", having("prompt", "completion"), _prompt_completion)
TEXT_PAIR = Format("text_pair", _is_text_pair, _text_pair)
PROMPTS = Format("prompts", _is_prompt, _prompt, "prompts")
FORMATS: tuple[Format[Talk], ...] = (
    *(MESSAGES, SHAREGPT, MOSS, GLAIVE, CHATGPT_EXPORT, XLAM, MULTIPLE_CHOICE, MULTIPLE_CHOICE_FROM_1, ALPACA),
    *(PROMPT_COMPLETION, TEXT_PAIR),
)
"""Those of conversations, the more telling ones first."""
