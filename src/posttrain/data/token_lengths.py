"""Lengths in tokens of a model, for the data profile: what a sequence length must hold, the chat template included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.data.profile import Conversation, Counts, TokenCounter
from posttrain.encode.template import ChatTemplate, RejectedError
from posttrain.types import Message


def model_counter(template: ChatTemplate, name: str) -> TokenCounter:
    """Count with a tokenizer and its chat template; ``name`` is the model as the report calls it."""
    return TokenCounter(f"tokenizer of {name}", True, _Count(template))


@dataclass(frozen=True)
class _Count:
    """A conversation is as long as its rendering; a turn as its text alone."""

    template: ChatTemplate

    def __call__(self, block: Sequence[Conversation]) -> list[Counts]:
        sides = [(_said(messages, "user"), _said(messages, "assistant")) for messages, _ in block]
        user = self._lengths([texts for texts, _ in sides])
        assistant = self._lengths([texts for _, texts in sides])
        whole = self._lengths([[self._rendered(messages, tools)] for messages, tools in block])
        return [Counts(*counts) for counts in zip(whole, user, assistant, strict=True)]

    def _rendered(self, messages: Sequence[Message], tools: Sequence[object]) -> str:
        """The conversation as the template writes it; where the template refuses it, its turns one after another."""
        try:
            return self.template.render(messages, tools)  # type: ignore[arg-type]
        except RejectedError:
            return "\n".join(message.content for message in messages)

    def _lengths(self, texts: Sequence[Sequence[str]]) -> list[int]:
        """The tokens of each row's texts together, counted in one call."""
        flat = [_whole(text) for row in texts for text in row]
        ids = self.template.tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"] if flat else []
        lengths = iter([len(one) for one in ids])
        return [sum(next(lengths) for _ in row) for row in texts]


def _said(messages: Sequence[Message], role: str) -> list[str]:
    """What a role said: content, reasoning and tool calls."""
    said = []
    for message in messages:
        if message.role == role:
            calls = (f"{call.name} {call.arguments}" for call in message.tool_calls)
            said += [text for text in (message.content, message.reasoning, *calls) if text]
    return said


def _whole(text: str) -> str:
    """Text without half characters, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()
