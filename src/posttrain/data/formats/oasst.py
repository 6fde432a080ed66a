"""OpenAssistant's trees: a message of the prompter, and its ``replies``, each with a ``rank`` (0 is the best).

The tree stands under ``prompt``, or the record is the first message itself. Only the first replies are compared.
"""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.data.formats.base import Foreign, Format, finite, objects, optional_text
from posttrain.data.formats.ranked import Ranked
from posttrain.types import Message, Origin


def _root(record: Foreign) -> Foreign | None:
    """The first message, where a record is such a tree."""
    root = record.get("prompt", record)
    found = isinstance(root, Mapping) and isinstance(root.get("replies"), list) and isinstance(root.get("text"), str)
    return root if found else None


def _detect(record: Foreign) -> bool:
    return _root(record) is not None


def _parse(record: Foreign, origin: Origin, source: str) -> Ranked:
    root = _root(record) or {}
    answers = []
    for reply in objects(root, "replies"):
        rank = finite(reply.get("rank"))
        text = "" if reply.get("deleted") is True else optional_text(reply, "text")
        answers.append((None if rank is None else -rank, text))
    prompt = (Message("user", optional_text(root, "text")),)
    used = {"prompt", "replies", "text", "role", "message_tree_id", "tree_state"}
    return Ranked(record, used, prompt, tuple(answers), origin, source)


OASST = Format(
    "oasst",
    _detect,
    _parse,
    '{"prompt": {"text": "Name a colour.", "role": "prompter", "replies": [{"text": "Blue.", "role": "assistant", "rank": 0}, '
    '{"text": "Seven.", "role": "assistant", "rank": 1}]}}',
    "pairs",
    rated=True,
)
