"""The tokenizer for comparison, worked by hand."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_ngrams import ngrams

from posttrain.data.text import CJK, compared_text, normalised, tokens
from posttrain.types import Message

CASES = [
    ("Hello, World!", ["hello", "world"]),
    ("What is 3 + 4?", ["what", "is", "3", "4"]),
    ("３＋４ＡＢＣ", ["3", "4abc"]),
    ("我喜欢Python3编程", ["我", "喜", "欢", "python3", "编", "程"]),
    ("Straße GRÜẞE", ["strasse", "grüsse"]),
    ("cafe\u0301 café", ["café", "café"]),
    ("ﬁne ①", ["fine", "1"]),
    ("snake_case __init__ _", ["snake_case", "init__"]),
    ("ひらカタ 한글", ["ひ", "ら", "カ", "タ", "한", "글"]),
    ("... ——。", []),
    ("", []),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@given(st.text())
def test_tokens_are_normalised_and_hold_no_separators(text: str) -> None:
    found = tokens(text)
    for token in found:
        assert token.strip() == token
        assert len(token) == 1 or not any(_is_cjk(character) for character in token)
    assert found == tokens(" ".join(["", *text.split(), ""])) or unicodedata.normalize("NFKC", text) != text


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_read_like_everything_else(text: str) -> None:
    # a lone letter outside ASCII takes the general path
    assert tokens(text + " \u0436") == [*tokens(text), "\u0436"]
    assert normalised(text) == unicodedata.normalize("NFKC", text).casefold()


def _is_cjk(character: str) -> bool:
    import re

    return re.match(f"[{CJK}]", character) is not None


def test_ngrams_of_short_texts_are_one_shingle() -> None:
    assert ngrams(["a", "b", "c"], 2) == {("a", "b"), ("b", "c")}
    assert ngrams(["a"], 5) == {("a",)}
    assert ngrams([], 5) == set()


def test_the_compared_turns() -> None:
    turns = [Message("system", "s"), Message("user", "u"), Message("assistant", "a"), Message("tool", "t")]
    assert compared_text(turns, "user") == "u"
    assert compared_text(turns, "assistant") == "a"
    assert compared_text(turns, "conversation") == "u\na\nt"
