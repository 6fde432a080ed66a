"""The names of columns that mean something, by what they mean: one table that all formats read.

``first`` and ``is_present`` say what it is to be there: a key whose value is null, blank, empty or not a number counts as absent,
so that the columns of a CSV or Parquet file that another row needs hide nothing in this one. ``plain`` gives a record the names
of this table where it has the same words written in another way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any


def names_of(text: str) -> tuple[str, ...]:
    """The names in a text, in their order."""
    return tuple(text.split())


TALKS = names_of("messages conversations conversation dialogue dialog dialogs chat chat_messages turns contents")
"""A list of turns; the first that is present is the conversation."""
PROMPTS = names_of("prompt instruction question query problem input source user_prompt user_input inputs question_stem")
"""What is question; the first that is present is the prompt."""
REPLIES = (
    *names_of("completion response output answer solution target std_answer"),
    *names_of("assistant_response model_response generation targets generated_solution"),
)
"""What is answered, as text."""
SIDES = (
    *names_of("chosen rejected chosen_messages rejected_messages preferred_output non_preferred_output"),
    *names_of("completions responses answers conversation_a conversation_b"),
)
"""Replies that are compared."""
SYSTEMS = names_of("system system_prompt system_message system_instruction meta_instruction custom_instructions")
TOOLS = names_of("tools functions available_tools function_definitions tool_definitions xml_tools python_tools")
HISTORIES = names_of("history chat_history conversation_history dialog_history dialogue_history")
"""Turns before the prompt."""
CONTEXTS = (
    *names_of("context contexts passage passages document documents article paragraph paragraphs"),
    *names_of("retrieved_documents story premise"),
)
"""Passages that a prompt is about."""
OPTIONS = ("options", "choices")
"""The answers that a multiple-choice question offers."""
REASONINGS = (
    *names_of("reasoning_content reasoning thinking thought thoughts think rationale"),
    *names_of("chain_of_thought cot reasoning_text thinking_content"),
)
"""What was thought before the reply."""
LABELS = ("label", "kto_tag")
WEIGHTS = ("weight", "loss_weight", "loss_scale")
"""How much a turn is trained on: any number of at least 0."""
MARKS = (*WEIGHTS, *names_of("loss loss_mask train training trainable train_detail train_on_turn mask masked"))
"""Whether, and how much, a turn is trained on."""
MEDIA: Mapping[str, tuple[str, ...]] = {
    "needs_image": names_of("image images image_path image_paths image_url image_urls image_file img"),
    "needs_audio": names_of("audio audios audio_path audio_url speech"),
    "needs_video": names_of("video videos video_path video_url"),
}
"""What a text model can't be given, by the reason of the drop."""
ALL_MEDIA = tuple(key for found in MEDIA.values() for key in found)
CRITIQUES = names_of("critique critiques criticism feedback")
"""Texts that find fault with the reply beside them."""
CORRECT = (
    *names_of("answer_key answer_idx answer_index answer_id correct_answer correct_option correct"),
    *names_of("correct_index correct_idx gold cop"),
)
"""Which option of a question is right, besides the names of replies and labels."""
BESIDE = (*SYSTEMS, *TOOLS, *HISTORIES, *CONTEXTS, *OPTIONS, *REASONINGS)
"""What stands beside a prompt and its reply, as text or lists."""
_MEANT = {
    "chosen": "pos_resp chosen_response response_chosen better_response preferred_response",
    "rejected": "neg_resp rejected_response response_rejected worse_response dispreferred_response",
    "question": "问题 提问 问 题目",
    "answer": "答案 回答 答 回复",
    "instruction": "指令",
    "input": "输入",
    "output": "输出",
    "system": "系统",
    "history": "历史",
    "conversations": "对话",
}
_OTHER_WORDS = {word: name for name, words in _MEANT.items() for word in words.split()}
"""The names in Chinese, and those of the sides in CValues and its relatives."""
_NAMES = frozenset((*TALKS, *PROMPTS, *REPLIES, *SIDES, *BESIDE, *LABELS, *CRITIQUES, *CORRECT, *ALL_MEDIA))
_CAPITAL = re.compile("(?<=[a-z])(?=[A-Z])")


def name_of(key: str) -> str:
    """The name in this table that a column means: ``Question``, ``systemPrompt``, ``Correct Answer``, ``问题``; its own where none."""
    if key in _NAMES:
        return key
    words = _CAPITAL.sub("_", key.strip()).lower().replace(" ", "_").replace("-", "_")
    return _OTHER_WORDS.get(words) or (words if words in _NAMES else key)


@lru_cache(4096)
def _renamed(found: tuple[str, ...]) -> Mapping[str, str]:
    """Column -> its name in this table, of those that are written in another way; a name that is there itself goes first."""
    names: dict[str, str] = {}
    for key in found:
        name = name_of(key)
        if name != key and name not in found and name not in names.values():
            names[key] = name
    return names


def plain(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record with the names of this table, and with what stands in another place by habit: the keys of
    ``chat_template_kwargs`` (SmolTalk2), stem and choices of a question (ARC), a prompt in ``context`` (HelpSteer3) or as the only
    one of ``turns`` (Arena-Hard).
    """
    names = _renamed(tuple(record))
    if names:
        record = {names.get(key, key): value for key, value in record.items()}
    if isinstance(inner := record.get("chat_template_kwargs"), dict):
        record = {**inner, **record}
    if isinstance(question := record.get("question"), dict) and "stem" in question:
        record = {**record, "question": question["stem"], "choices": record.get("choices", question.get("choices"))}
    key = "context" if "context" in record else "turns"
    if isinstance(turns := record.get(key), list) and turns and record.keys().isdisjoint(_ASKING):
        prompt = turns if key == "context" and all(map(_is_turn, turns)) else _only_text(turns)
        if prompt is not None:
            return {("prompt" if name == key else name): value for name, value in record.items()} | {"prompt": prompt}
    return record


_ASKING = frozenset((*TALKS, *PROMPTS)) - {"turns", "source"}


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value and "content" in value


def _only_text(turns: list[Any]) -> str | None:
    """The text of a single turn that names no role."""
    only = turns[0].get("content") if isinstance(turns[0], Mapping) and "role" not in turns[0] else turns[0]
    return only if len(turns) == 1 and isinstance(only, str) else None


def is_present(value: Any) -> bool:
    """Whether a value says anything: not null, blank, NaN, empty, or a list or object of nothing but nulls and empty values."""
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    if isinstance(value, list):
        return any(map(_is_something, value))
    if isinstance(value, dict):
        return any(map(_is_something, value.values()))
    return value is not None and value == value


def _is_something(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {} and value == value


def present(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record without the keys whose values say nothing."""
    if all(map(is_present, record.values())):
        return record
    return {key: value for key, value in record.items() if is_present(value)}


def first(record: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """The first of the keys that is present in a record, else the first that it has at all, else None."""
    had = None
    for key in keys:
        if key in record:
            if is_present(record[key]):
                return key
            had = had or key
    return had
