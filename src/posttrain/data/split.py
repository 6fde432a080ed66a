"""Train and held-out rows: decided by content and seed alone, never by the order of the rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence, Set
from itertools import takewhile

from posttrain.errors import DataError
from posttrain.types import Message, content_id


def prompt_key(messages: Sequence[Message]) -> str:
    """16 hex digits that are equal for equal prompts: role and content of all turns before the first assistant turn."""
    prompt = takewhile(lambda message: message.role != "assistant", messages)
    return content_id(tuple(Message(message.role, message.content) for message in prompt))


def held_out_prompts(prompts: Sequence[str], held_out: float, seed: int) -> Set[str]:
    """Which prompts to hold out; ``prompts`` has the :func:`prompt_key` of every row.

    ``held_out`` below 1 is a share of the rows (rounded, at least one row), otherwise a number of rows. Prompts are
    taken in the order of a seeded hash as long as all their rows fit into the number; where not even one fits, the
    smallest alone is taken. Raises DataError where the rows can't be split so.
    """
    wanted = _wanted_rows(len(prompts), held_out)
    if wanted == 0:
        return frozenset()
    sizes = Counter(prompts)
    order = sorted(sizes, key=lambda prompt: hashlib.sha256(f"{seed}:{prompt}".encode()).digest())
    if len(order) == 1:
        raise DataError(
            f"all {len(prompts)} rows have the same prompt, and rows with the same prompt stay together",
            where="held_out",
            fix="set held_out: 0 and hold out rows of another source",
        )
    chosen: set[str] = set()
    left = wanted
    for prompt in order:
        if sizes[prompt] <= left:
            chosen.add(prompt)
            left -= sizes[prompt]
    return chosen or {min(order, key=lambda prompt: sizes[prompt])}


def _wanted_rows(rows: int, held_out: float) -> int:
    if held_out >= 1 and held_out != int(held_out):
        raise DataError(
            f"{held_out} is neither a share below 1 nor a number of rows", where="held_out", fix="give 0.05 or 200"
        )
    wanted = int(held_out) if held_out >= 1 else max(1, round(rows * held_out)) if held_out > 0 else 0
    if wanted and wanted >= rows:
        raise DataError(
            f"can't hold out {wanted} of {rows} row{'s' if rows != 1 else ''}: nothing is left to train on",
            where="held_out",
            fix="hold out less, or set held_out: 0",
        )
    return wanted
