"""Prompt and completion: each is text, or a list of messages (a completion also a single message)."""

from __future__ import annotations

from posttrain.data.formats.base import Foreign, Format, RowError
from posttrain.data.formats.conversation import reply_under, sft_row
from posttrain.data.formats.turns import turns_under
from posttrain.types import Origin, SftRow


def _detect(record: Foreign) -> bool:
    return {"prompt", "completion"} <= record.keys()


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    prompt = turns_under(record, "prompt", "user")
    if record.get("completion") is None:
        raise RowError("wrong_shape", "'completion' is null, expected text or messages")
    given = record["completion"]
    completion = turns_under(record, "completion", "assistant") if given == [] else reply_under(record, "completion")
    if not any(turn.content.strip() for turn in prompt):
        raise RowError("empty_prompt", "the prompt is blank")
    if any(turn.role == "user" for turn in completion):
        raise RowError("wrong_shape", "the completion holds a user turn")
    return sft_row(record, {"prompt", "completion"}, prompt + completion, origin, source)


PROMPT_COMPLETION = Format("prompt_completion", _detect, _parse, '{"prompt": "The sky is", "completion": " blue."}')
