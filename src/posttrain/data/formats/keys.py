"""The names of columns that mean something, by what they mean: one table that all formats read.

``first`` and ``is_present`` say what it is to be there: a key whose value is null, blank, empty or not a number counts as absent,
so that the columns of a CSV or Parquet file that another row needs hide nothing in this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

TALKS = ("messages", "conversations", "conversation", "dialogue", "dialog", "dialogs", "chat", "chat_messages", "turns")
"""A list of turns; the first that is present is the conversation."""
PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input", "source", "user_prompt", "user_input")
"""What is asked; the first that is present is the prompt."""
REPLIES = (
    *("completion", "response", "output", "answer", "solution", "target", "std_answer"),
    *("assistant_response", "model_response", "generation"),
)
"""What is answered, as text."""
SIDES = (
    *("chosen", "rejected", "chosen_messages", "rejected_messages", "preferred_output", "non_preferred_output"),
    *("completions", "responses", "answers", "conversation_a", "conversation_b"),
)
"""Replies that are compared."""
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction", "meta_instruction")
TOOLS = ("tools", "functions", "available_tools", "function_definitions", "tool_definitions")
HISTORIES = ("history", "chat_history", "conversation_history", "dialog_history", "dialogue_history")
"""Turns before the prompt."""
CONTEXTS = (
    *("context", "contexts", "passage", "passages", "document", "documents", "article", "paragraph", "paragraphs"),
    *("retrieved_documents", "story"),
)
"""Passages that a prompt is about."""
OPTIONS = ("options", "choices")
"""The answers that a multiple-choice question offers."""
REASONINGS = (
    *("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "think", "rationale"),
    *("chain_of_thought", "cot", "reasoning_text", "thinking_content"),
)
"""What was thought before the reply."""
LABELS = ("label", "kto_tag")
WEIGHTS = ("weight", "loss_weight", "loss_scale")
"""How much a turn is trained on: any number of at least 0."""
MARKS = (
    *(*WEIGHTS, "loss", "loss_mask", "train", "training", "trainable", "train_detail"),
    *("train_on_turn", "mask", "masked"),
)
"""Whether, and how much, a turn is trained on."""
MEDIA: Mapping[str, tuple[str, ...]] = {
    "needs_image": ("image", "images", "image_path", "image_paths", "image_url", "image_urls", "image_file", "img"),
    "needs_audio": ("audio", "audios", "audio_path", "audio_url", "speech"),
    "needs_video": ("video", "videos", "video_path", "video_url"),
}
"""What a text model can't be given, by the reason of the drop."""
CRITIQUES = ("critique", "critiques", "criticism", "feedback")
"""Texts that find fault with the reply beside them."""


def is_present(value: Any) -> bool:
    """Whether a value says anything: not null, blank, an empty list or object, or NaN."""
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    return value is not None and value != [] and value != {} and value == value


def present(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record without the keys whose values say nothing."""
    if all(map(is_present, record.values())):
        return record
    return {key: value for key, value in record.items() if is_present(value)}


def first(record: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """The first of the keys that is present in a record, else the first that it has at all, else None."""
    had = [key for key in keys if key in record]
    return next((key for key in had if is_present(record[key])), had[0] if had else None)
