"""Preference formats: odd records by hand. What every format promises is in test_formats.py."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_examples import FORMAT_EXAMPLES
from posttrain.data.formats import FORMATS, RowError, detect_format
from posttrain.data.formats.drafts import PairRule, Ranked
from posttrain.data.formats.prompts import transcript
from posttrain.types import Message, Origin, PairRow, ToolCall, UnpairedRow

ORIGIN = Origin("a.jsonl", 7)
U, A = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
B = {"role": "assistant", "content": "z"}


def parse(name: str, record: dict[str, Any], **rule: Any) -> Any:
    """The row of a record; the pairs of rated answers."""
    found = FORMATS[name].parse(record, ORIGIN, "source")
    return found.pairs(PairRule(**rule), ORIGIN, "source") if isinstance(found, Ranked) else found


def reason(name: str, record: dict[str, Any], **rule: Any) -> str:
    with pytest.raises(RowError) as caught:
        parse(name, record, **rule)
    assert caught.value.detail
    return caught.value.reason


def talk(turns: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in turns]


def sides(row: PairRow) -> tuple[list[tuple[str, str]], ...]:
    return talk(row.prompt), talk(row.chosen), talk(row.rejected)


# ---- pairs with a prompt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["y", A, [A], {"from": "gpt", "value": "y"}])
@pytest.mark.parametrize("rejected", ["z", B, [B]])
@pytest.mark.parametrize("key", ["prompt", "instruction", "question", "query"])
def test_sides_as_text_message_or_messages_and_every_key_of_the_prompt(chosen: Any, rejected: Any, key: str) -> None:
    record = {"rejected": rejected, key: "x", "chosen": chosen}
    assert detect_format([record], "a").name == "pairs"
    assert sides(parse("pairs", record)) == ([("user", "x")], [("assistant", "y")], [("assistant", "z")])


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": [U, A, U]}, [("user", "x"), ("assistant", "y"), ("user", "x")]),
        ({"prompt": U}, [("user", "x")]),
        ({"prompt": [{"role": "system", "content": "s"}, U]}, [("system", "s"), ("user", "x")]),
        ({"prompt": "x", "system": "s"}, [("system", "s"), ("user", "x")]),
        ({"prompt": " x\n"}, [("user", " x\n")]),
        ({"instruction": "Sum up.", "input": "Text"}, [("user", "Sum up.\nText")]),
        (
            {"instruction": "c", "input": "", "history": [["a", "b"]]},
            [("user", "a"), ("assistant", "b"), ("user", "c")],
        ),
        ({"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"}, [("user", "a"), ("assistant", "b"), ("user", "c")]),
        ({"prompt": "Human: is a word\n\nAssistant: too, in this text"}, [("user", "Human: is a word\n\nAssistant: too, in this text")]),
        ({"prompt": "x: not this!", "question": "not this"}, [("user", "x: not this!")]),
    ],
)  # fmt: skip
def test_prompts(fields: dict[str, Any], prompt: list[tuple[str, str]]) -> None:
    assert talk(parse("pairs", fields | {"chosen": "y", "rejected": "z"}).prompt) == prompt


def test_a_reply_may_be_several_turns_with_tools() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}
    record = {
        "prompt": "x",
        "chosen": [call, {"role": "tool", "content": "1"}, A],
        "rejected": B,
        "tools": [{"name": "f"}],
    }
    row = parse("pairs", record)
    assert row.chosen[0] == Message("assistant", "", tool_calls=(ToolCall("f", "{}"),))
    assert [m.role for m in row.chosen] == ["assistant", "tool", "assistant"]
    assert row.tools == ({"name": "f"},)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "x", "chosen": "y", "rejected": " y\n"}, "equal_sides"),
        ({"prompt": "x", "chosen": [U, A], "rejected": [U, A]}, "equal_sides"),
        ({"prompt": "x", "chosen": "", "rejected": "z"}, "empty_assistant_turn"),
        ({"prompt": "x", "chosen": "y", "rejected": " \n"}, "empty_assistant_turn"),
        ({"prompt": "x", "chosen": "", "rejected": ""}, "empty_assistant_turn"),
        ({"prompt": "x", "chosen": {"role": "assistant", "content": None}, "rejected": B}, "empty_assistant_turn"),
        ({"prompt": "x", "chosen": None, "rejected": "z"}, "wrong_shape"),
        ({"prompt": "x", "chosen": 5, "rejected": "z"}, "wrong_shape"),
        ({"prompt": None, "chosen": "y", "rejected": "z"}, "wrong_shape"),
        ({"prompt": " ", "chosen": "y", "rejected": "z"}, "empty_prompt"),
        ({"instruction": "", "input": "", "chosen": "y", "rejected": "z"}, "empty_prompt"),
        ({"chosen": "y", "rejected": "z"}, "empty_prompt"),
        ({"chosen": [A], "rejected": [B]}, "empty_prompt"),
        ({"prompt": "x", "chosen": [A, U], "rejected": [B]}, "no_final_reply"),
        ({"prompt": "x", "chosen": [], "rejected": [B]}, "empty_assistant_turn"),
        ({"prompt": "x", "chosen": [U, A], "rejected": [B]}, "no_shared_prompt"),
        ({"chosen": [U, A], "rejected": [{"role": "user", "content": "other"}, B]}, "no_shared_prompt"),
        ({"chosen": [U, A], "rejected": [U, A, U, B]}, "no_shared_prompt"),
        ({"chosen": [U, A, U], "rejected": [U, A, {"role": "user", "content": "other"}]}, "no_shared_prompt"),
        ({"prompt": [{"role": "user", "content": "other"}], "chosen": [U, A], "rejected": [U, B]}, "wrong_shape"),
        ({"prompt": "x", "chosen": {"role": "nobody", "content": "y"}, "rejected": B}, "unknown_role"),
        ({"prompt": "x", "chosen": "\ud800", "rejected": "z"}, "invalid_unicode"),
        ({"prompt": "x", "chosen": "y", "rejected": "\ud800"}, "invalid_unicode"),
    ],
)  # fmt: skip
def test_pair_rejects(record: dict[str, Any], expected: str) -> None:
    assert reason("pairs", record) == expected


def test_the_detail_names_the_side() -> None:
    with pytest.raises(RowError, match="with the rejected reply: turn 2"):
        parse("pairs", {"prompt": "x", "chosen": "y", "rejected": ""})


# ---- whole conversations -------------------------------------------------------------------------------------------


def test_the_shared_beginning_is_the_prompt() -> None:
    record = {"chosen": [U, B, U, A], "rejected": [U, B, U, B]}
    row = parse("pairs", record)
    assert sides(row) == (talk_of([U, B, U]), talk_of([A]), talk_of([B]))
    for prompt in ("x", "User: x Bot: z User: x", [U], [U, B, U]):
        assert parse("pairs", record | {"prompt": prompt}).id == row.id
    assert reason("pairs", record | {"prompt": "anything"}) == "wrong_shape"  # which would be lost


def talk_of(turns: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in turns]


def test_scores_become_the_margin() -> None:
    binarized = {
        "prompt": "x",
        "prompt_id": "ab",
        "chosen": [U, A],
        "rejected": [U, B],
        "messages": [U, A],
        "score_chosen": 8.5,
        "score_rejected": 6,
    }
    assert detect_format([binarized], "a").name == "pairs"
    row = parse("pairs", binarized)
    assert sides(row) == ([("user", "x")], [("assistant", "y")], [("assistant", "z")])
    assert row.meta == {"prompt_id": "ab", "score_chosen": 8.5, "score_rejected": 6, "margin": 2.5}
    assert isinstance(row.meta["margin"], float)
    assert "margin" not in parse("pairs", binarized | {"score_rejected": None}).meta


# ---- ranking -------------------------------------------------------------------------------------------------------


def test_both_forms_of_the_ranking_give_the_same_pair() -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "x"}]
    old = {"conversations": turns, "chosen": {"from": "gpt", "value": "y"}, "rejected": {"from": "gpt", "value": "z"}}

    def typed(turn: dict[str, str], weight: float) -> dict[str, Any]:
        return {**turn, "content": [{"type": "text", "value": turn["content"]}], "loss_weight": weight}

    context = [typed({"role": "system", "content": "s"}, 0.0), typed(U, 0.0)]
    new = {"chosen_messages": [*context, typed(A, 1.0)], "rejected_messages": [*context, typed(B, 1.0)]}
    rows = [parse("ranking", record) for record in (old, new)]
    assert sides(rows[0]) == ([("system", "s"), ("user", "x")], [("assistant", "y")], [("assistant", "z")])
    assert rows[0].id == rows[1].id
    assert all(detect_format([record], "a").name == "ranking" for record in (old, new))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"conversations": [U, A], "chosen": A, "rejected": B}, "wrong_shape"),
        ({"conversations": [], "chosen": A, "rejected": B}, "empty_prompt"),
        ({"messages": [U], "chosen": A, "rejected": A}, "equal_sides"),
        ({"messages": [U], "chosen": A, "rejected": {**B, "content": ""}}, "empty_assistant_turn"),
        ({"chosen_messages": [U, A], "rejected_messages": [U]}, "no_shared_prompt"),
        ({"chosen_messages": [U, A], "rejected_messages": [U, A]}, "equal_sides"),
        ({"chosen_messages": [U, A], "rejected_messages": "?"}, "wrong_shape"),
    ],
)
def test_ranking_rejects(record: dict[str, Any], expected: str) -> None:
    assert reason("ranking", record) == expected


def test_ranking_with_whole_conversations_reads_them() -> None:
    row = parse("ranking", {"messages": [U, A], "chosen": [U, A], "rejected": [U, B]})
    assert sides(row) == ([("user", "x")], [("assistant", "y")], [("assistant", "z")])


# ---- transcripts ---------------------------------------------------------------------------------------------------


def hh(*replies: str, before: str = "\n\nHuman: x\n\nAssistant: ") -> dict[str, str]:
    return dict(zip(("chosen", "rejected"), (before + reply for reply in replies), strict=True))


def test_a_speaker_inside_a_line_is_text() -> None:
    before = "\n\nHuman: He said: Human: hello\nHuman: and\nAssistant: so on\n\nAssistant: Human: you?\n\nHuman: y\n\nAssistant: "
    row = parse("hh_rlhf", hh("a\n\nb  ", " Human: c", before=before))
    assert sides(row) == (
        [("user", "He said: Human: hello\nHuman: and\nAssistant: so on"), ("assistant", "Human: you?"), ("user", "y")],
        [("assistant", "a\n\nb")],
        [("assistant", "Human: c")],
    )


def test_several_turns_of_one_speaker_stay_apart() -> None:
    row = parse("hh_rlhf", hh("b", "c", before="\n\nHuman: x\n\nAssistant: a\n\nAssistant: "))
    assert sides(row) == ([("user", "x"), ("assistant", "a")], [("assistant", "b")], [("assistant", "c")])


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (hh("", "y"), "empty_assistant_turn"),
        (hh("y", " "), "empty_assistant_turn"),
        (hh("y", "y "), "equal_sides"),
        ({"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: u\n\nAssistant: y"}, "no_shared_prompt"),
        (hh("y", "z\n\nHuman: more"), "no_final_reply"),
        ({"chosen": "y", "rejected": "\n\nHuman: x\n\nAssistant: z"}, "wrong_shape"),
        ({"chosen": "y", "rejected": "z"}, "wrong_shape"),
        ({"chosen": None, "rejected": "\n\nHuman: x\n\nAssistant: z"}, "wrong_shape"),
        (hh("y", "z", before="\n\nAssistant: "), "empty_prompt"),
    ],
)
def test_transcript_rejects(record: dict[str, Any], expected: str) -> None:
    assert reason("hh_rlhf", record) == expected


def test_one_odd_row_does_not_change_what_the_file_is() -> None:
    odd = {"chosen": "y", "rejected": "z"}
    assert detect_format([hh("y", "z"), hh("z", "y"), odd], "a").name == "hh_rlhf"
    assert detect_format([odd], "a").name == "pairs"
    assert detect_format([{"prompt": "x", **odd}, {"prompt": "x", **odd}, hh("y", "z")], "a").name == "pairs"


@given(
    turns=st.lists(
        st.tuples(
            st.sampled_from(["Human", "Assistant"]),
            st.text("aé\n :HumanAssistant", max_size=20).map(str.strip),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_transcripts_are_read_as_they_are_written(turns: list[tuple[str, str]]) -> None:
    roles = {"Human": "user", "Assistant": "assistant"}
    spoken = [
        (speaker, text.replace("\n\nHuman:", "").replace("\n\nAssistant:", "").strip()) for speaker, text in turns
    ]
    written = "".join(f"\n\n{speaker}: {text}" for speaker, text in spoken)
    assert talk(transcript(written)) == [(roles[speaker], text) for speaker, text in spoken]


# ---- rated and ranked answers --------------------------------------------------------------------------------------


def rated(*scores: Any) -> dict[str, Any]:
    completions = [{"response": f"a{number}", "overall_score": score} for number, score in enumerate(scores)]
    return {"instruction": "x", "completions": completions}


def margins(rows: tuple[PairRow, ...]) -> list[tuple[str, str, float]]:
    return [(row.chosen[0].content, row.rejected[0].content, row.meta["margin"]) for row in rows]


def test_the_best_against_the_worst() -> None:
    assert margins(parse("ultrafeedback", rated(6, 8.5, "3", 8.5, 3))) == [("a1", "a2", 5.5)]
    assert isinstance(parse("ultrafeedback", rated(6, 3))[0].meta["margin"], float)


def test_all_pairs_with_a_margin() -> None:
    found = parse("ultrafeedback", rated(1, 4, 2, 4), take="all", min_margin=2)
    assert margins(found) == [("a1", "a2", 2.0), ("a1", "a0", 3.0), ("a3", "a2", 2.0), ("a3", "a0", 3.0)]
    assert len({row.id for row in found}) == 4


def test_the_margin_rule() -> None:
    assert reason("ultrafeedback", rated(5, 5, 5)) == "margin_too_small"
    assert reason("ultrafeedback", rated(5, 7), min_margin=2.1) == "margin_too_small"
    assert margins(parse("ultrafeedback", rated(5, 7), min_margin=2)) == [("a1", "a0", 2.0)]
    assert reason("ultrafeedback", rated(5, 7), min_margin=3, take="all") == "margin_too_small"


def test_answers_without_text_or_score_are_passed_over() -> None:
    record = {
        "instruction": "x",
        "responses": ["a", "b", " ", "", "c", "d"],
        "rewards_model": [{"score": 0.5}, {"score": 0.75}, 9, -9, None, "N/A"],
    }
    assert margins(parse("scored_responses", record)) == [("b", "a", 0.25)]
    assert (
        reason("scored_responses", {"instruction": "x", "responses": ["a", ""], "scores": [1, 2]}) == "too_few_answers"
    )
    assert reason("scored_responses", {"instruction": "x", "responses": [], "scores": []}) == "too_few_answers"
    assert reason("scored_responses", {"instruction": "x", "responses": ["a"], "scores": [1, 2]}) == "wrong_shape"
    assert reason("scored_responses", {"instruction": "x", "responses": [5, "a"], "scores": [1, 2]}) == "wrong_shape"


def test_equal_answers_of_unequal_score_are_no_pair() -> None:
    record = {"prompt": "x", "responses": ["a", "a ", "b"], "scores": [3, 1, 2]}
    assert reason("scored_responses", record) == "equal_sides"
    assert margins(parse("scored_responses", record, take="all")) == [("a", "b", 1.0), ("b", "a ", 1.0)]


def test_ultrafeedback_by_its_fine_grained_ratings() -> None:
    def aspects(*ratings: str) -> dict[str, Any]:
        return {name: {"Rating": rating, "Rationale": "why"} for name, rating in zip("abcd", ratings, strict=False)}

    record = rated(9, None, 1)
    record["completions"][0] |= {"annotations": aspects("2", "N/A", "3")}
    record["completions"][1] |= {"annotations": aspects("5", "4")}
    record["completions"][2] |= {"fine-grained_score": 3}
    # the scales differ, so without all overall scores the ratings count: 2.5, 4.5, 3
    assert margins(parse("ultrafeedback", record)) == [("a1", "a0", 2.0)]
    assert detect_format([record], "a").name == "ultrafeedback"


def test_the_answers_of_nectar_are_ranked() -> None:
    answers = [{"answer": f"a{rank}", "model": "m", "rank": float(rank)} for rank in (3, 1, 7, 2)]
    record = {"prompt": "\n\nHuman: x\n\nAssistant: y\n\nHuman: z\n\nAssistant: ", "answers": answers, "turns": 2}
    (row,) = parse("nectar", record)
    assert margins((row,)) == [("a1", "a7", 6.0)]
    assert talk(row.prompt) == [("user", "x"), ("assistant", "y"), ("user", "z")]
    assert row.meta == {"turns": 2, "margin": 6.0}
    assert talk(parse("nectar", record | {"prompt": "x"})[0].prompt) == [("user", "x")]
    assert reason("nectar", record, min_margin=6.5) == "margin_too_small"
    assert reason("nectar", record | {"prompt": "\n\nHuman: \n\nAssistant:"}) == "empty_prompt"


# ---- battles -------------------------------------------------------------------------------------------------------


def battle(winner: Any, a: list[dict[str, str]], b: list[dict[str, str]]) -> dict[str, Any]:
    return {"model_a": "m", "model_b": "n", "winner": winner, "conversation_a": a, "conversation_b": b, "turn": 1}


def test_the_winner_is_chosen() -> None:
    a = parse("arena", battle("model_a", [U, A], [U, B]))
    assert sides(a) == ([("user", "x")], [("assistant", "y")], [("assistant", "z")])
    b = parse("arena", battle("model_b", [U, A], [U, B]))
    assert b.id == replace(a, chosen=a.rejected, rejected=a.chosen).id != a.id
    assert b.meta == {"model_a": "m", "model_b": "n", "turn": 1}


def test_battles_of_several_turns() -> None:
    more = {"role": "user", "content": "more"}
    shared = parse("arena", battle("model_a", [U, A, more, A], [U, A, more, B]))
    assert sides(shared) == (talk_of([U, A, more]), talk_of([A]), talk_of([B]))
    apart = parse("arena", battle("model_a", [U, A, more, A], [U, B, more, B]))
    assert sides(apart) == (talk_of([U]), talk_of([A, more, A]), talk_of([B, more, B]))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (battle("tie", [U, A], [U, B]), "tie"),
        (battle("tie (bothbad)", [U, A], [U, B]), "tie"),
        (battle("model_c", [U, A], [U, B]), "unknown_winner"),
        (battle(None, [U, A], [U, B]), "unknown_winner"),
        (battle({}, [U, A], [U, B]), "unknown_winner"),
        (battle("model_a", [U, A], [U, A]), "equal_sides"),
        (battle("model_a", [U, A], [{"role": "user", "content": "other"}, B]), "no_shared_prompt"),
        (battle("model_a", [U, A, U, A], [U, B]), "no_shared_prompt"),
        (battle("model_a", [U, A, U], [U, B, U]), "no_final_reply"),
        (battle("model_a", [U, A, U, {**A, "content": ""}], [U, B, U, B]), "empty_assistant_turn"),
        (battle("model_a", "?", [U, B]), "wrong_shape"),
    ],
)
def test_battle_rejects(record: dict[str, Any], expected: str) -> None:
    assert reason("arena", record) == expected


# ---- StackExchange, feedback ---------------------------------------------------------------------------------------


def test_stack_exchange_rejects() -> None:
    record = {"question": "x", "response_j": "y", "response_k": "z"}
    assert reason("stack_exchange", record | {"response_k": "y"}) == "equal_sides"
    assert reason("stack_exchange", record | {"response_j": None}) == "empty_assistant_turn"
    assert reason("stack_exchange", record | {"question": None}) == "empty_prompt"
    assert reason("stack_exchange", record | {"question": 5}) == "wrong_shape"


@pytest.mark.parametrize(
    ("record", "prompt", "completion"),
    [
        ({"prompt": "x", "completion": "y", "label": True}, [U], [A]),
        ({"prompt": [U], "completion": [B, A], "label": True}, [U], [B, A]),
        ({"messages": [U, A], "label": True}, [U], [A]),
        ({"messages": [U, B, U, A], "label": True}, [U, B, U], [A]),
        ({"conversations": [U, A], "kto_tag": True}, [U], [A]),
        ({"instruction": "x", "input": "", "output": "y", "kto_tag": True}, [U], [A]),
        ({"question": "x", "answer": "y", "label": " True"}, [U], [A]),
        ({"prompt": "x", "response": "y", "label": "true"}, [U], [A]),
    ],
)
def test_feedback_in_every_conversation_format(
    record: dict[str, Any], prompt: list[dict[str, str]], completion: list[dict[str, str]]
) -> None:
    assert detect_format([record], "a").name == "feedback"
    row = parse("feedback", record)
    assert (talk(row.prompt), talk(row.completion), row.desirable) == (talk_of(prompt), talk_of(completion), True)
    assert row.meta == {}
    key = "label" if "label" in record else "kto_tag"
    for bad in (False, "false", "FALSE"):
        assert parse("feedback", record | {key: bad}) == UnpairedRow(
            row.prompt, row.completion, False, ORIGIN, "source"
        )


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [U, A], "label": 2}, "wrong_shape"),
        ({"messages": [U, A], "label": None}, "wrong_shape"),
        ({"messages": [U, A], "label": "sports"}, "wrong_shape"),
        ({"messages": [U, A]}, "wrong_shape"),
        ({"text": "x", "label": True}, "wrong_shape"),
        ({"messages": [U, A, U], "label": True}, "no_final_reply"),
        ({"messages": [A], "label": True}, "empty_prompt"),
        ({"messages": [U, {**A, "content": ""}], "label": True}, "empty_assistant_turn"),
        ({"prompt": "", "completion": "y", "label": True}, "empty_prompt"),
        ({"prompt": "x", "completion": "", "label": True}, "empty_assistant_turn"),
        ({"prompt": "x", "completion": ["y", "z"], "label": True}, "several_replies"),
    ],
)
def test_feedback_rejects(record: dict[str, Any], expected: str) -> None:
    assert reason("feedback", record) == expected


def test_a_loss_weight_means_nothing_beside_a_label() -> None:
    row = parse("feedback", {"messages": [U, {**A, "weight": 0.0}], "label": True})
    assert row.completion == (Message("assistant", "y"),)


# ---- our own files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt_turns": 3}, "wrong_shape"),
        ({"prompt_turns": "1"}, "wrong_shape"),
        ({"prompt_turns": 0}, "empty_prompt"),
        ({"prompt_turns": 2}, "empty_assistant_turn"),
        ({"meta": "[1]"}, "wrong_shape"),
        ({"meta": "{"}, "wrong_shape"),
    ],
)
@pytest.mark.parametrize("name", ["posttrain_pairs", "posttrain_feedback"])
def test_written_rows_that_were_changed(name: str, change: dict[str, Any], expected: str) -> None:
    assert reason(name, json.loads(FORMAT_EXAMPLES[name]) | change) == expected


def test_written_feedback_without_its_label() -> None:
    record = json.loads(FORMAT_EXAMPLES["posttrain_feedback"])
    assert reason("posttrain_feedback", record | {"desirable": None}) == "wrong_shape"
    assert detect_format([record | {"desirable": None, "prompt_turns": None}], "a").name == "messages"
