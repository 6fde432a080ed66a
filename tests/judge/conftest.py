"""Pairs with a known better reply, and scripted judges."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.generate.engine import Request
from posttrain.judge.items import Item, read_items

RECORDS = [
    # the better reply is shorter, longer, longer, shorter; differences in length: 6, 6, 8, 10
    {"id": "one", "category": "math", "prompt": "1+1?", "reply_a": "GOOD", "reply_b": "bad 678910", "label": "a"},
    {"id": "two", "category": "math", "prompt": "1+2?", "reply_a": "bad", "reply_b": "GOOD 6789", "label": "b"},
    {"id": "three", "category": "writing", "prompt": "Ode", "reply_a": "GOOD 6789012", "reply_b": "bad4", "label": "a"},
    {
        "id": "four",
        "category": "writing",
        "prompt": "Poem",
        "reply_a": "bad 5678901234",
        "reply_b": "GOOD",
        "label": "b",
    },
]


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return path


@pytest.fixture
def items(pairs_file: Path) -> tuple[Item, ...]:
    return read_items(pairs_file, "pair").items


def shown(request: Request) -> tuple[str, str]:
    """What a judge sees: the reply shown first and the one shown second."""
    assert not isinstance(request.prompt, str)
    text = request.prompt[-1].content
    first, second = (re.search(f"<answer_{x}>\n(.*?)\n</answer_{x}>", text, re.DOTALL) for x in "ab")
    assert first is not None
    assert second is not None
    return first[1], second[1]


def always_first(request: Request) -> str:
    return "Both have merits.\n[[A]]"


def longer_wins(request: Request) -> str:
    first, second = shown(request)
    return "[[A]]" if len(first) > len(second) else "[[B]]" if len(second) > len(first) else "[[C]]"


def perfect(request: Request) -> str:
    first, _ = shown(request)
    return "Checked.\n[[A]]" if "GOOD" in first else "Checked.\n[[B]]"


def prose(request: Request) -> str:
    return "Both replies are of interest, each in its own way."


@pytest.fixture(scope="session")
def judges() -> dict[str, Callable[[Request], str]]:
    return {"first": always_first, "longer": longer_wins, "perfect": perfect, "prose": prose}
