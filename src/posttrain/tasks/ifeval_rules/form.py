"""The form of a reply: highlights, a title, JSON, quotation marks."""

from __future__ import annotations

import json
import re

from posttrain.tasks.ifeval_rules.verifier import Count, Verifier

_HIGHLIGHT = re.compile(r"\*([^\n*]*)\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*([^\n*]*)\*\*")
_TITLE = re.compile(r"<<[^\n]+>>")
_FENCE = re.compile(r"\A```(?:json|Json|JSON)?|```\Z")


def number_highlighted_sections(*, num_highlights: Count) -> Verifier:
    """At least so many pieces between single or double asterisks that hold more than spaces."""

    def follows(reply: str) -> bool:
        pieces = [*_HIGHLIGHT.findall(reply), *_DOUBLE_HIGHLIGHT.findall(reply)]
        return sum(bool(piece.strip()) for piece in pieces) >= num_highlights

    return follows


def title() -> Verifier:
    """A line holds a title in double angle brackets that is not empty."""
    return lambda reply: any(found.lstrip("<").rstrip(">").strip() for found in _TITLE.findall(reply))


def json_format() -> Verifier:
    """The whole reply is JSON, alone or in a Markdown fence."""

    def follows(reply: str) -> bool:
        try:
            json.loads(_FENCE.sub("", reply.strip()).strip())
        except (ValueError, RecursionError):
            return False
        return True

    return follows


def quotation() -> Verifier:
    """The whole reply stands between straight double quotes."""

    def follows(reply: str) -> bool:
        text = reply.strip()
        return len(text) > 1 and text[0] == text[-1] == '"'

    return follows
