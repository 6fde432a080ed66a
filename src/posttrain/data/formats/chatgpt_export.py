"""ChatGPT's export (conversations.json): under ``mapping`` a tree of messages, each with its parent.

The conversation is the way from ``current_node``, what was last to be seen, up to the root; without it that of the last child each
time. Messages that are hidden are passed over; calls of ChatGPT's own tools, and what they answered, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.data.formats.base import Foreign, Format, RowError, kind_of
from posttrain.data.formats.conversation import sft_row
from posttrain.data.formats.turns import talk
from posttrain.types import Origin, SftRow

_USED = frozenset(("mapping", "current_node", "create_time", "update_time"))


def _detect(record: Foreign) -> bool:
    tree = record.get("mapping")
    nodes = list(tree.values()) if isinstance(tree, Mapping) else []
    return bool(nodes) and all(
        isinstance(node, Mapping) and "message" in node and isinstance(node.get("parent"), str | None) for node in nodes
    )


def _parse(record: Foreign, origin: Origin, source: str) -> SftRow:
    if not _detect(record):
        raise RowError("wrong_shape", f"'mapping' is {kind_of(record.get('mapping'))}, expected a tree of messages")
    turns = [turn for message in _way(record["mapping"], record.get("current_node")) for turn in _turn(message)]
    return sft_row(record, _USED, talk(turns), origin, source)


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


def _turn(message: Foreign) -> Iterator[Foreign]:
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


CHATGPT_EXPORT = Format(
    "chatgpt_export",
    _detect,
    _parse,
    '{"mapping": {"a": {"parent": null, "message": {"author": {"role": "user"}, "content": {"parts": ["Hi"]}}}, "b": {"parent": "a", '
    '"message": {"author": {"role": "assistant"}, "content": {"parts": ["Hello!"]}}}}}',
)
