"""Pairs and labelled replies as training units: what is supervised, what both sides share, what is dropped and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.artifacts import Ledger
from posttrain.encode.collate import collate, collate_shared
from posttrain.encode.preferences import (
    encode_feedback,
    encode_pairs,
    reply_start,
    scored_at_end,
    sequences_of,
    with_prompt_supervised,
)
from posttrain.encode.template import ChatTemplate, load_template, load_tokenizer
from posttrain.types import Message, Origin, PairRow, Tokens, UnpairedRow

ASK = (Message("user", "Name a colour."),)
TALK = (
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "A colour?"),
)


@pytest.fixture(scope="module")
def chatml(demo_model: Path) -> ChatTemplate:
    return load_template(load_tokenizer(demo_model))


def say(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def pair(chosen: str, rejected: str, prompt: tuple[Message, ...] = ASK, line: int = 1, **meta: object) -> PairRow:
    return PairRow(prompt, say(chosen), say(rejected), Origin("pairs.jsonl", line), "pairs", meta=meta)


def supervised(tokens: Tokens, template: ChatTemplate) -> str:
    return template.tokenizer.decode(tokens.ids_T[tokens.weights_T != 0])


def test_only_the_replies_are_supervised_each_with_its_stop(chatml: ChatTemplate) -> None:
    (unit,) = encode_pairs([pair("Red.", "A potato.", TALK, margin=2)], chatml, 512).examples
    assert supervised(unit.chosen, chatml) == "Red.<|im_end|>"
    assert supervised(unit.rejected, chatml) == "A potato.<|im_end|>"
    assert unit.margin == 2.0
    start = reply_start(unit.chosen)
    assert start == reply_start(unit.rejected)
    assert chatml.tokenizer.decode(unit.chosen.ids_T[:start]).endswith("A colour?<|im_end|>\n<|im_start|>assistant\n")
    assert unit.chosen.row_id == unit.rejected.row_id == unit.row_id == pair("Red.", "A potato.", TALK).id


def test_a_pair_costs_its_prompt_once(chatml: ChatTemplate) -> None:
    (unit,) = encode_pairs([pair("Red.", "A potato.", TALK)], chatml, 512).examples
    sides = sequences_of(unit)
    shared, separate = collate_shared(sides), collate(sides)
    assert len(separate.ids_T) - len(shared.ids_T) >= reply_start(unit.chosen)
    assert shared.targets_S.tolist() == separate.targets_S.tolist()
    assert shared.counts_B.tolist() == [side.supervised for side in sides]
    for segment in (1, 2):  # both replies continue the prompt's positions
        assert shared.segments.depths[segment] == shared.segments.lengths[0]


def test_what_is_dropped_and_why(chatml: ChatTemplate) -> None:
    ledger = Ledger()
    rows = [
        pair("Red.", "Blue.", line=1),
        pair("Red.", "Red.", line=2),
        pair("Red.", "word " * 200, line=3),
        pair("word " * 200, "Red.", line=4),
    ]
    encoded = encode_pairs(rows, chatml, 100, ledger)
    assert len(encoded.examples) == 1
    ledger.check()
    assert [(r.origin.line, r.reason, r.detail.split(":")[0]) for r in ledger.rejects] == [
        (2, "equal_tokens", "both replies are the same tokens"),
        (3, "too_long", "rejected"),
        (4, "too_long", "chosen"),
    ]
    record = encoded.lengths(100).as_dict()
    assert record["chosen"]["count"] == record["rejected"]["count"] == 4
    assert record["conversation"]["count"] == record["assistant"]["count"] == 8
    assert record["chosen"]["max"] > 200


def test_feedback_keeps_its_label(chatml: ChatTemplate) -> None:
    rows = [
        UnpairedRow(ASK, say(text), good, Origin("f", 1), "f") for text, good in (("Red.", True), ("A potato.", False))
    ]
    encoded = encode_feedback(rows, chatml, 512)
    assert [unit.desirable for unit in encoded.examples] == [True, False]
    assert [supervised(unit.tokens, chatml) for unit in encoded.examples] == ["Red.<|im_end|>", "A potato.<|im_end|>"]
    assert encoded.lengths(512).as_dict()["undesirable"]["count"] == 1


def test_replies_of_several_turns_supervise_each_of_them(chatml: ChatTemplate) -> None:
    longer = (*say("Red."), Message("user", "Another."), *say("Blue."))
    row = PairRow(ASK, longer, say("No."), Origin("p", 1), "p")
    (unit,) = encode_pairs([row], chatml, 512).examples
    assert supervised(unit.chosen, chatml) == "Red.<|im_end|>Blue.<|im_end|>"


def test_where_a_reward_model_looks() -> None:
    tokens = Tokens(np.array([5, 6, 7, 2, 2], np.int32), np.array([0, 0, 1, 1, 1], np.float32), "r")
    for pad, place in ((None, 4), (2, 2), (9, 4)):
        batch = collate_shared([scored_at_end(tokens, pad)])
        assert batch.predict_S.tolist() == [place]
        assert batch.ids_T.tolist() == tokens.ids_T[: place + 1].tolist()


def test_the_whole_conversation_supervised() -> None:
    tokens = Tokens(np.array([5, 6, 7], np.int32), np.array([0, 0, 1], np.float32), "r")
    assert with_prompt_supervised(tokens).weights_T.tolist() == [0, 1, 1]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(str.strip)


@given(prompt=TEXT, chosen=TEXT, rejected=TEXT)
def test_any_pair_keeps_its_prompt_and_swaps(prompt: str, chosen: str, rejected: str, chatml: ChatTemplate) -> None:
    row = pair(chosen, rejected, (Message("user", prompt),))
    swapped = replace(row, chosen=row.rejected, rejected=row.chosen)
    there, back = (encode_pairs([one], chatml, 10_000).examples for one in (row, swapped))
    assert len(there) == len(back)
    for unit, swapped in zip(there, back, strict=True):
        assert np.array_equal(unit.chosen.ids_T, swapped.rejected.ids_T)
        start = reply_start(unit.chosen)
        assert np.array_equal(unit.chosen.ids_T[:start], unit.rejected.ids_T[:start])
        assert not np.array_equal(unit.chosen.ids_T, unit.rejected.ids_T)
