"""What is heard while a reply is made: whole characters only, never a part of what ends it, thinking apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from posttrain.encode.template import ChatTemplate, load_template, load_tokenizer
from posttrain.generate.decode import Likely, NewToken
from posttrain.generate.growing import GrowingText
from posttrain.generate.voice import Piece

TEXTS = [
    "plain words, 中文字符与标点。",
    "emoji 🎉👩‍👩‍👧 and Ünïcödé",
    "  leading and trailing  ",
    "𝔘𝔫𝔦 ꦏ ₿ ⚗️",
]


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> ChatTemplate:
    return load_template(load_tokenizer(tiny_model), None)


def text_of(template: ChatTemplate) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(template.tokenizer.decode(ids, skip_special_tokens=True))


def ids_of(template: ChatTemplate, text: str) -> list[int]:
    return list(template.tokenizer(text, add_special_tokens=False)["input_ids"])


def heard(
    template: ChatTemplate,
    ids: Sequence[int],
    finish: str = "stop",
    stops: Sequence[tuple[int, ...]] = ((2,),),
    texts: Sequence[str] = (),
    opened: bool = False,
    logprobs: bool = False,
) -> list[Piece]:
    """The pieces of a reply of given tokens, up to the last that is wanted."""
    growing = GrowingText(text_of(template), stops, texts, opened)
    pieces = []
    for place, token in enumerate(ids):
        ends = finish if place == len(ids) - 1 else None
        pieces.append(growing.add(NewToken(0, token, ends, Likely(-0.5, ()) if logprobs else None)))  # type: ignore[arg-type]
        if pieces[-1].finish:
            break
    assert [piece.finish is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    return pieces


def whole(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_add_up(text: str, template: ChatTemplate) -> None:
    ids = ids_of(template, text)
    assert len(ids) > 4
    pieces = heard(template, [*ids, 2])
    assert whole(pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert sum(bool(piece.text) for piece in pieces) > 3  # it does stream


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("before", [0, 1, 2, 3, 7])
def test_no_part_of_a_long_stop_is_shown(length: int, before: int, template: ChatTemplate) -> None:
    ids = ids_of(template, " one two three four five six seven")[:before]
    stop = tuple(ids_of(template, " a b c d e f")[:length])
    assert len(stop) == length
    assert len(ids) == before
    text = template.tokenizer.decode(ids)
    so_far = ""
    for piece in heard(template, [*ids, *stop], stops=[stop, (2,)]):
        so_far += piece.text
        assert text.startswith(so_far)
    assert so_far == text


def test_a_reply_cut_in_a_character_ends_before_it(template: ChatTemplate) -> None:
    ids = ids_of(template, "fine 🎉")
    assert "\ufffd" in template.tokenizer.decode(ids[:-1])
    assert whole(heard(template, ids[:-1], "length")) in ("fine", "fine ")


def test_half_a_stop_at_the_limit_is_text(template: ChatTemplate) -> None:
    ids = ids_of(template, " one two three")
    assert whole(heard(template, ids, "length", stops=[(ids[-1], 5)])) == " one two three"


@pytest.mark.parametrize("stop", [" three", "ee", "two th", "\n\nUser:", "🎉", "two"])
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_text_ends_a_reply_and_no_part_of_it_is_shown(stop: str, finish: str, template: ChatTemplate) -> None:
    text = " one two three\n\nUser: four 🎉 five"
    pieces = heard(template, ids_of(template, text) + [2] * (finish == "stop"), finish, texts=["never", stop])
    assert whole(pieces) == text[: text.index(stop)]
    assert pieces[-1].finish == "stop"
    so_far = ""
    for piece in pieces:
        so_far += piece.text
        assert text[: text.index(stop)].startswith(so_far)


def test_what_only_might_have_become_a_stop_is_shown_at_the_end(template: ChatTemplate) -> None:
    pieces = heard(template, [*ids_of(template, "one two\n\nUse"), 2], texts=["\n\nUser:"])
    assert whole(pieces) == "one two\n\nUse"
    assert pieces[-1].text.endswith("\n\nUse")


@pytest.mark.parametrize(
    ("said", "opened", "text", "reasoning"),
    [
        ("<think>a b\n</think>\n\nc < d", False, "c < d", "a b"),
        ("\n<think>a</think> <think>b</think>c", False, "c", "a\n\nb"),
        ("a b</think>c", True, "c", "a b"),
        ("a b c", True, "", "a b c"),
        ("<think>a b", False, "", "a b"),
        ("<thin ice", False, "<thin ice", ""),
        ("a <think>b</think>", False, "a <think>b</think>", ""),
        ("one</think>two", False, "one</think>two", ""),  # what was shown can't be taken back
        ("", False, "", ""),
    ],
)
def test_thinking_is_kept_apart(said: str, opened: bool, text: str, reasoning: str, template: ChatTemplate) -> None:
    pieces = heard(template, [*ids_of(template, said), 2], opened=opened)
    assert whole(pieces) == text
    assert "".join(piece.reasoning for piece in pieces) == reasoning


def test_log_probabilities_are_those_of_the_text(template: ChatTemplate) -> None:
    for text in TEXTS:
        pieces = heard(template, [*ids_of(template, text), 2], logprobs=True)
        assert len([t for piece in pieces for t in piece.logprobs]) == len(ids_of(template, text))
    pieces = heard(template, [*ids_of(template, " one two three four"), 2], texts=["three"], logprobs=True)
    assert [t.token for piece in pieces for t in piece.logprobs] == [" one", " two", " three"]  # begins before the stop
    pieces = heard(template, [*ids_of(template, " one two three four"), 2], texts=[" three"], logprobs=True)
    assert [t.token for piece in pieces for t in piece.logprobs] == [" one", " two"]
