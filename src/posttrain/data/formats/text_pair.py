"""Text pairs: two columns, a question and its answer, by any of the usual names."""

from __future__ import annotations

from posttrain.data.formats.base import Foreign, Format, RowError
from posttrain.data.formats.conversation import reply_under, sft_row
from posttrain.data.formats.keys import PROMPTS, REPLIES, is_present
from posttrain.data.formats.transcripts import waiting_turns
from posttrain.data.formats.turns import are_turns, turns_under
from posttrain.types import Message, Origin, SftRow


def _others(prompt: str, reply: str) -> bool:
    """Whether two columns are another format's; and a ``source`` is mostly where a row comes from."""
    alpaca = prompt == "instruction" and reply in ("output", "response")
    return alpaca or (prompt, reply) == ("prompt", "completion") or prompt == "source"


PAIRS = (
    ("question", "solution"),  # beside it the answer is the last line of it (LIMO, NuminaMath)
    ("question", "answer"),
    ("question", "response"),
    ("question", "std_answer"),
    ("problem", "solution"),
    ("problem", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "response"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
    ("question", "answers"),
    *((prompt, reply) for prompt in PROMPTS for reply in REPLIES if not _others(prompt, reply)),
)
"""Column names that make a pair, first match first."""


def _detect(record: Foreign) -> bool:
    keys = _keys(record)
    prompt = None if keys is None else record[keys[0]]
    return keys is not None and (isinstance(prompt, str | None) or (isinstance(prompt, list) and are_turns(prompt)))


_PLACES = {pair: place for place, pair in reversed(list(enumerate(PAIRS)))}
_FIRST, _SECOND = (tuple(dict.fromkeys(pair[side] for pair in PAIRS)) for side in (0, 1))


def _keys(record: Foreign) -> tuple[str, str] | None:
    """The first two columns of a pair that are present, else that the record has at all."""
    replies = [key for key in _SECOND if key in record]
    had = [(key, reply) for key in _FIRST if key in record for reply in replies if (key, reply) in _PLACES]
    said = [pair for pair in had if is_present(record[pair[0]]) and is_present(record[pair[1]])]
    return min(said or had, key=_PLACES.__getitem__, default=None)


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    keys = _keys(record)
    if keys is None:
        raise RowError("wrong_shape", f"no pair of text columns; keys: {', '.join(map(str, record))}"[:200])
    prompt = _prompt(record, keys[0])
    if not any(turn.content.strip() for turn in prompt):
        raise RowError("empty_prompt", "the prompt is blank")
    return sft_row(record, set(keys), prompt + reply_under(record, keys[1]), origin, source)


def _prompt(record: Foreign, key: str) -> tuple[Message, ...]:
    """The turns of a prompt; an instruction may be a transcript, as in alpaca's."""
    value = record[key]
    turns = waiting_turns(value) if key == "instruction" and isinstance(value, str) else None
    return turns or ((Message("user", ""),) if value is None else turns_under(record, key, "user"))


TEXT_PAIR = Format("text_pair", _detect, _parse, '{"question": "What is 2 + 2?", "answer": "4"}')
