"""What the chat shows while a reply is made: whole characters only, and never a part of a stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.encode.template import ChatTemplate, load_template, load_tokenizer
from posttrain.errors import ModelError
from posttrain.generate.decode import NewToken
from posttrain.generate.engine import Sampling
from posttrain.lab import chat
from posttrain.types import Message

TEXTS = [
    "plain words, 中文字符与标点。",
    "emoji 🎉👩‍👩‍👧 and Ünïcödé",
    "  leading and trailing  ",
    "𝔘𝔫𝔦 ꦏ ₿ ⚗️",
]


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> ChatTemplate:
    return load_template(load_tokenizer(tiny_model), None)


def shown(
    template: ChatTemplate,
    ids: Sequence[int],
    stops: Sequence[tuple[int, ...]],
    finish: str,
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """The pieces of a stream over given tokens."""

    def scripted(*_: Any) -> Iterator[NewToken]:
        for place, token in enumerate(ids):
            yield NewToken(0, token, finish if place == len(ids) - 1 else None)  # type: ignore[arg-type]

    monkeypatch.setattr(chat, "decode", scripted)
    return list(chat.stream(object(), [Message("user", "x")], template, stops, Sampling()))


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_add_up(
    text: str, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = template.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 4
    pieces = shown(template, [*ids, 2], [(2,)], "stop", monkeypatch)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 3  # it does stream


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("before", [0, 1, 2, 3, 7])
def test_no_part_of_a_long_stop_is_shown(
    length: int, before: int, template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = template.tokenizer(" one two three four five six seven", add_special_tokens=False)["input_ids"][:before]
    stop = tuple(template.tokenizer(" a b c d e f", add_special_tokens=False)["input_ids"][:length])
    assert len(stop) == length
    assert len(ids) == before
    text = template.tokenizer.decode(ids)
    so_far = ""
    for piece in shown(template, [*ids, *stop], [stop, (2,)], "stop", monkeypatch):
        so_far += piece
        assert text.startswith(so_far)
    assert so_far == text


def test_a_reply_cut_in_a_character_ends_before_it(template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = template.tokenizer("fine 🎉", add_special_tokens=False)["input_ids"]
    assert "\ufffd" in template.tokenizer.decode(ids[:-1])
    assert "".join(shown(template, ids[:-1], [(2,)], "length", monkeypatch)) in ("fine", "fine ")


def test_half_a_stop_at_the_limit_is_text(template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = template.tokenizer(" one two three", add_special_tokens=False)["input_ids"]
    assert "".join(shown(template, ids, [(ids[-1], 5)], "length", monkeypatch)) == " one two three"


def test_nan_ends_a_stream_with_an_error(template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="NaN or infinity after 2 tokens"):
        shown(template, [100, 101, -1], [(2,)], "not_finite", monkeypatch)
